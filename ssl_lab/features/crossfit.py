"""What a learner says of each label when it has not seen it: by folds, each predicted from the others."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from ssl_lab.data import IntArray
from ssl_lab.features.knn import check_labels
from ssl_lab.features.probe import linear_probe
from ssl_lab.features.search import FloatArray, matrix
from ssl_lab.features.self_training import Learner
from ssl_lab.seeds import seed_of


class CrossFitted(NamedTuple):
    """What a learner says of rows that it has not seen.

    Attributes:
        rows: int64 [n], the labeled rows that were held out once each.
        probs: float32 [n, C], of a fit without them.

    >>> labels = np.array([0, 0, 0, 1, 1, 1, -1])
    >>> found = sl.features.cross_fitted(np.eye(7), labels, classes=2, learner=sl.features.weighted_knn, folds=3)
    >>> found.rows, found.probs.shape
    (array([0, 1, 2, 3, 4, 5]), (6, 2))
    """

    rows: IntArray
    probs: FloatArray


def cross_fitted(features: ArrayLike, labels: ArrayLike, classes: int, learner: Learner = linear_probe,
                 folds: int = 5) -> CrossFitted:
    """Out-of-fold probabilities of the labeled rows.

    Each class is dealt over the folds, so that all have about its share. The only row of a class is never held out:
    without it nobody knows the class. Without two labels of one class, or with a single class, nothing is.

    Args:
        features: [N, D].
        labels: int [N], -1 = unlabeled.
        classes: how many there are.
        learner: that is fitted to all folds but one.
        folds: as many as labels at most.

    Raises:
        UsageError: as in `weighted_knn`.

    >>> labels = np.array([0, 0, 0, 1, 1, 1, -1])
    >>> features = np.stack([labels == 0, labels == 1], axis=1) + 0.1
    >>> found = sl.features.cross_fitted(features, labels, classes=2, learner=sl.features.weighted_knn, folds=3)
    >>> found.probs.argmax(axis=1)
    array([0, 0, 0, 1, 1, 1])
    """
    rows, known = matrix(features, "features"), check_labels(labels, classes)
    labeled = np.flatnonzero(known >= 0)
    counts = np.bincount(known[labeled], minlength=classes)
    order = np.random.default_rng(seed_of("crossfit")).permutation(labeled)
    order = order[np.argsort(known[order], kind="stable")]  # by class, in a random order within each
    order = order[counts[known[order]] > 1]
    folds = min(folds, len(order))
    if (counts > 0).sum() < 2 or folds < 2:
        return CrossFitted(np.empty(0, np.int64), np.empty((0, classes), np.float32))
    fold = np.full(len(known), -1)
    fold[order] = np.arange(len(order)) % folds
    probs = np.empty((len(known), classes), dtype=np.float32)
    for held in range(folds):
        mine = np.flatnonzero(fold == held)
        probs[mine] = learner(rows, np.where(fold == held, -1, known), rows[mine], classes)
    held_out = np.sort(order)
    return CrossFitted(held_out, probs[held_out])
