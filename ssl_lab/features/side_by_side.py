"""Learners on frozen features side by side, over several draws of the labels."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from ssl_lab.data import Pool
from ssl_lab.features.search import FloatArray
from ssl_lab.features.self_training import Learner, ensemble

ENSEMBLE = "ensemble"
"""The learner that is all backbones together, each with self-training."""


@dataclass
class Draws:
    """What a learner reached on the test images, by draw of the labels: shares in [0, 1], and seconds."""

    name: str
    accuracies: list[float] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)

    def __str__(self) -> str:
        spread = f" ± {100 * np.std(self.accuracies, ddof=1):.1f}" if len(self.accuracies) > 1 else ""
        return f"{self.name:14} {100 * np.mean(self.accuracies):5.1f}{spread}%  {np.mean(self.seconds):6.1f} s"


def compared(names: Sequence[str], learners: Mapping[str, Learner], features: Sequence[FloatArray],
                 pools: Sequence[Pool]) -> list[Draws]:
    """What each learner, by name, reaches on each of the pools, the same images with other labels.

    features: of each backbone, float32 [N, D], a row for each image. A learner takes those of the first one, `ENSEMBLE`
    all of them.
    """
    found = [Draws(name) for name in names]
    for pool in pools:
        train, queries = ([each[rows] for each in features] for rows in (pool.train, pool.test))
        labels, truth = pool.labels[pool.train], pool.truth[pool.test]
        for draws in found:
            start = time.perf_counter()
            if draws.name == ENSEMBLE:
                probs = ensemble(train, labels, queries, pool.classes, learners["self_training"], pseudo=False)
            else:
                probs = learners[draws.name](train[0], labels, queries[0], pool.classes)
            draws.seconds.append(time.perf_counter() - start)
            draws.accuracies.append(float((probs.argmax(axis=1) == truth).mean()))
    return found
