"""Confident learning: which labels are wrong, by what learners say of images whose labels they had not seen.

Northcutt, Jiang and Chuang 2021, "Confident Learning: Estimating Uncertainty in Dataset Labels" (arXiv 1911.00068).
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ssl_lab.data import IntArray
from ssl_lab.errors import UsageError

FloatArray = NDArray[np.float64]


class Doubt(NamedTuple):
    """Of n labels.

    Attributes:
        likelier: int64 [n], the class that each image is of if its label is wrong.
        wrong: bool [n], whether it likely is.
        score: float64 [n] in [0, 1], how improbable the label is, by which they are ranked.

    >>> probs = np.array([[0.9, 0.1], [0.8, 0.2], [0.1, 0.9], [0.2, 0.8], [0.95, 0.05]])
    >>> found = sl.features.doubt(labels=[0, 0, 1, 1, 1], probs=probs)
    >>> found.score.round(2)
    array([0.1 , 0.2 , 0.1 , 0.2 , 0.95])
    """

    likelier: IntArray
    wrong: NDArray[np.bool_]
    score: FloatArray


def thresholds(labels: ArrayLike, probs: ArrayLike) -> FloatArray:
    """float64 [C]: from which probability on an image counts as of class j, the mean of p_j over the images that are
    labeled j (the paper's t_j); infinite for a class without a label. labels: int [n]. probs: [n, C]."""
    known, p = _checked(labels, probs)
    counts = np.bincount(known, minlength=p.shape[1])
    sums = np.bincount(known, p[np.arange(len(known)), known], minlength=p.shape[1])
    return np.where(counts > 0, sums / np.maximum(counts, 1), np.inf)


def confident_class(probs: ArrayLike, threshold: FloatArray) -> IntArray:
    """int64 [n]: of the classes whose probability reaches their threshold [C] the most probable; -1 if none does."""
    p = np.asarray(probs, dtype=np.float64)
    reached = p >= threshold - 1e-6  # of a class with one probability throughout, rounding decides nothing
    return np.where(reached.any(axis=1), np.where(reached, p, -1.0).argmax(axis=1), -1)


def confident_joint(labels: ArrayLike, probs: ArrayLike) -> IntArray:
    """int64 [C, C]: how many images with label i count as of class j (C of Northcutt et al. 2021, arXiv 1911.00068);
    what is off the diagonal are likely errors.

    Args:
        labels: int [n].
        probs: [n, C].

    >>> probs = np.array([[0.9, 0.1], [0.8, 0.2], [0.1, 0.9], [0.2, 0.8], [0.95, 0.05]])
    >>> sl.features.confident_joint(labels=[0, 0, 1, 1, 1], probs=probs)  # the last label is likely wrong
    array([[1, 0],
           [1, 2]])
    """
    known, p = _checked(labels, probs)
    found, classes = confident_class(p, thresholds(known, p)), p.shape[1]
    sure = found >= 0
    return np.bincount(known[sure] * classes + found[sure], minlength=classes**2).reshape(classes, classes)


def doubt(labels: ArrayLike, probs: ArrayLike) -> Doubt:
    """Which labels are likely wrong, and how improbable each is, by confident learning (Northcutt et al. 2021, arXiv
    1911.00068).

    The score is 1 - p_given. As many are likely wrong as the confident joint has off its diagonal: those of the highest
    scores, of equals the first, but for labels that are the most probable class all the same. (The joint says how many;
    which ones, the ranking of all labels.)

    Args:
        labels: int [n].
        probs: [n, C], of learners that did not see the label.

    Raises:
        UsageError: for shapes that do not fit.

    >>> probs = np.array([[0.9, 0.1], [0.8, 0.2], [0.1, 0.9], [0.2, 0.8], [0.95, 0.05]])
    >>> found = sl.features.doubt(labels=[0, 0, 1, 1, 1], probs=probs)
    >>> np.flatnonzero(found.wrong), found.likelier[found.wrong]
    (array([4]), array([0]))
    """
    known, p = _checked(labels, probs)
    each = np.arange(len(known))
    score = 1 - p[each, known]
    joint = confident_joint(known, p)
    others = p.copy()
    others[each, known] = -np.inf
    likelier = others.argmax(axis=1)
    doubtful = np.flatnonzero(p[each, likelier] > p[each, known])
    order = doubtful[np.argsort(-score[doubtful], kind="stable")]
    wrong = np.zeros(len(known), dtype=bool)
    wrong[order[:joint.sum() - joint.trace()]] = True
    return Doubt(likelier, wrong, score)


def _checked(labels: ArrayLike, probs: ArrayLike) -> tuple[IntArray, FloatArray]:
    known, p = np.asarray(labels), np.asarray(probs, dtype=np.float64)
    whole: Any = np.issubdtype(known.dtype, np.integer)
    if known.ndim != 1 or p.ndim != 2 or len(p) != len(known) or not whole or p.shape[1] < 2 or (
            known.size and not 0 <= known.min() <= known.max() < p.shape[1]) or not np.isfinite(p).all():
        raise UsageError(f"labels are {known.dtype} {list(known.shape)} and probabilities {list(p.shape)}; expected "
                         "class numbers [n] and finite probabilities [n, classes], 2 classes or more")
    return known.astype(np.int64), p
