"""What predictions of images of known class show: confusions, accuracy by class, calibration, errors."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from ssl_lab.engine.evaluate import BINS
from ssl_lab.intervals import wilson
from ssl_lab.report.metrics import FloatArray

IntArray = NDArray[np.int64]


class Confusion(NamedTuple):
    """So many `images` of class `truth` were called `said`; `share` of those of the class."""

    truth: int
    said: int
    images: int
    share: float


class OfClass(NamedTuple):
    """Of one class: how many images there are, and of them right; how many were called so, and of these right; 95%
    intervals (Wilson) of the shares of right ones."""

    label: int
    images: int
    right: int
    called: int
    recall: tuple[float, float]
    precision: tuple[float, float]


class Bin(NamedTuple):
    """Of the images whose confidence lies in (low, high]: how many, how many right, and the mean confidence."""

    low: float
    high: float
    images: int
    right: int
    confidence: float


def confusion_counts(truth: IntArray, said: IntArray, classes: int) -> IntArray:
    """int64 [C, C]: how many images of the class of the row were called the class of the column."""
    counts: IntArray = np.bincount(truth * classes + said, minlength=classes * classes).reshape(classes, classes)
    return counts


def top_confusions(counts: IntArray, most: int) -> list[Confusion]:
    """The most frequent confusions of counts [C, C], at most so many; of equals those of the rarer class first."""
    wrong = counts - np.diag(np.diag(counts))
    truth, said = np.nonzero(wrong)
    sizes = counts.sum(axis=1)
    found = [Confusion(t, s, int(wrong[t, s]), float(wrong[t, s] / sizes[t]))
             for t, s in zip(truth.tolist(), said.tolist(), strict=True)]
    return sorted(found, key=lambda each: (-each.images, -each.share))[:most]


def by_class(counts: IntArray) -> list[OfClass]:
    """The classes of counts [C, C] of which there are images or that images were called, the least recognized first."""
    images, called, right = counts.sum(axis=1), counts.sum(axis=0), np.diag(counts)
    found = [OfClass(label, there, good, said, wilson(good, there), wilson(good, said))
             for label, (there, good, said) in enumerate(np.stack([images, right, called], axis=1).tolist())
             if there or said]
    return sorted(found, key=lambda each: (each.right / each.images if each.images else 2.0, -each.images))


def reliability(probs: FloatArray, truth: IntArray, bins: int = BINS) -> list[Bin]:
    """The bins of confidence that hold images, of equal width, as the calibration error has them (Guo et al. 2017).

    probs: float64 [n, C]. truth: int64 [n].
    """
    confidence, right = probs.max(axis=1), probs.argmax(axis=1) == truth
    place = np.clip(np.ceil(confidence * bins) - 1, 0, bins - 1).astype(np.int64)
    found = []
    for number in np.unique(place).tolist():
        here = place == number
        found.append(Bin(number / bins, (number + 1) / bins, int(here.sum()), int(right[here].sum()),
                         float(confidence[here].mean())))
    return found


def calibration_error(bins: list[Bin]) -> float:
    """The expected calibration error, in [0, 1], of the bins of `reliability`."""
    gaps = [abs(each.right - each.images * each.confidence) for each in bins]
    return sum(gaps) / sum(each.images for each in bins)


def confident_errors(probs: FloatArray, truth: IntArray, most: int) -> IntArray:
    """int64: places of the wrong predictions, the most confident first, at most so many."""
    wrong = np.flatnonzero(probs.argmax(axis=1) != truth)
    order: IntArray = wrong[np.argsort(-probs[wrong].max(axis=1), kind="stable")][:most]
    return order


def least_confident(probs: FloatArray, most: int) -> IntArray:
    """int64: places of the predictions with the least confidence, from the least on, at most so many."""
    order: IntArray = np.argsort(probs.max(axis=1), kind="stable")[:most]
    return order
