"""Which learner on frozen features the labels favor."""

from __future__ import annotations

import time

import numpy as np

from ssl_lab.data import IntArray, Pool
from ssl_lab.errors import UsageError
from ssl_lab.features import LEARNERS
from ssl_lab.features.search import FloatArray
from ssl_lab.ways import deal, parts

ORDER = ("self_training", "probe", "anchored", "prototype", "knn", "propagation")
"""Learners on features; of equals the first is taken. They are tried from the last one on: the first takes longest."""
FITS = 6
"""Of a probe, in self-training."""


def best_learner(features: FloatArray, pool: Pool, end: float, seed: int) -> str:
    """By cross-validation on the labels, of those learners that end in time.

    features: float [images, D]. end: when, as `time.perf_counter` counts.
    """
    labels = pool.labels[pool.train]
    rows = np.flatnonzero(labels >= 0)
    try:
        folds = np.full(len(labels), -1)
        folds[rows] = deal(labels[rows], seed)
    except UsageError:
        return ORDER[0]
    found: dict[str, float] = {}
    took = 0.0  # seconds for a fold
    for name in reversed(ORDER):
        expected = took * FITS if name == "self_training" else 0.0
        right, took = _held_out(name, features[pool.train], labels, folds, pool.classes, end, expected)
        if right is not None:
            found[name] = right
    if not found:
        print("probe: no time is left to compare learners; --method names another", flush=True)
        return "probe"
    best = max((name for name in ORDER if name in found), key=lambda name: found[name])
    print(f"learner on its features, by {(folds >= 0).sum()} labels held out in turn: "
          + ", ".join(f"{name} {100 * right:.0f}%" for name, right in found.items()) + f"; {best} it is", flush=True)
    return best


def _held_out(name: str, features: FloatArray, labels: IntArray, folds: IntArray, classes: int, end: float,
              expected: float) -> tuple[float | None, float]:
    """The share of held-out labels that a learner predicts, None if there is no time for it; and the seconds that a
    fold took, of which `expected` are known beforehand."""
    right, begun = 0, time.perf_counter()
    count = folds.max() + 1
    if begun + 2 * expected * count > end:
        return None, expected
    each = 0.0
    for fold, held in parts(folds):
        probs = LEARNERS[name](features, np.where(held, -1, labels), features[held], classes)
        right += int((probs.argmax(axis=1) == labels[held]).sum())
        now = time.perf_counter()
        each = (now - begun) / (fold + 1)
        if now + 2 * each * count > end:  # and as long again for the fit and its calibration
            return None, each
    return right / int((folds >= 0).sum()), each
