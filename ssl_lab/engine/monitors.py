"""What is measured beside accuracy at each evaluation point; see `evaluate.Monitor`."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from ssl_lab.data import Pool
from ssl_lab.engine.evaluate import predict
from ssl_lab.engine.runtime import Runtime
from ssl_lab.methods import Method
from ssl_lab.seeds import generator


@dataclass(frozen=True)
class PseudoLabels:
    """How right the evaluated net is about the unlabeled images, by class: the same measure for every method.

    Of a fixed sample of `rows` unlabeled training images whose truth the pool knows: `pseudo_coverage/c`, the share of
    the images of class c that are predicted, as whatever class, with a confidence of `threshold` or more, and
    `pseudo_precision/c`, the share of right ones among the confident predictions of c (NaN where there are none);
    `pseudo_coverage` and `pseudo_precision`, the same over all classes. Training never sees these numbers. Nothing
    is measured where no truth is known, or of a method that trains no classifier.

    Attributes:
        threshold: in [0, 1].
        rows: at most so many images, always the same ones.

    >>> pool = sl.load("digits").split(labels=10)
    >>> method = sl.Supervised(sl.net("tiny_4", classes=pool.class_names, style=pool.style))
    >>> found = sl.PseudoLabels(threshold=0.2)(method, pool, sl.Runtime.start("cpu"))
    >>> "pseudo_coverage" in found, "pseudo_precision/3" in found
    (True, True)
    """

    threshold: float = 0.95
    rows: int = 2000

    def __call__(self, method: Method, pool: Pool, runtime: Runtime) -> dict[str, float]:
        known = np.setdiff1d(pool.unlabeled[pool.truth[pool.unlabeled] >= 0], pool.labeled)
        if not method.classifies or not len(known):
            return {}
        sample = known[torch.randperm(len(known), generator=generator("pseudo-labels"))[: self.rows].numpy()]
        mine = sample[runtime.rank :: runtime.world]
        p, said = (part.numpy() for part in predict(method.predictor(), pool, mine, runtime).softmax(dim=1).max(dim=1))
        truth, confident, classes = pool.truth[mine], p >= self.threshold, pool.classes
        counts = [np.bincount(part, minlength=classes) for part in (
            truth, truth[confident], said[confident], said[confident & (said == truth)])]
        there, covered, claimed, right = np.split(np.array(runtime.totals(np.concatenate(counts).tolist())), 4)
        with np.errstate(invalid="ignore"):  # 0 / 0 is NaN: nothing to report
            by_class = {"pseudo_coverage": covered / there, "pseudo_precision": right / claimed}
            over_all = {"pseudo_coverage": covered.sum() / there.sum(), "pseudo_precision": right.sum() / claimed.sum()}
        return {name: float(value) for name, value in over_all.items()} | {
            f"{name}/{c}": float(values[c]) for name, values in by_class.items() for c in range(classes)}
