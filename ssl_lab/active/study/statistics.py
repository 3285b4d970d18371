"""What may be said of learning curves: areas, labeling efficiency, intervals, paired tests. Pure functions.

A curve is accuracy against the number of labels: labels, float [P], rising; accuracy, float [P], or [R, P] of R runs.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.special import stdtr

from ssl_lab.intervals import half_width

FloatArray = NDArray[np.float64]


class Paired(NamedTuple):
    """A paired comparison.

    Attributes:
        difference: the mean.
        half_width: half the width of its 95% interval.
        p: the two-sided p-value of "no difference".

    >>> sl.active.paired_t([0.8, 0.9, 0.85], [0.7, 0.82, 0.74])._fields
    ('difference', 'half_width', 'p')
    """

    difference: float
    half_width: float
    p: float


def area(labels: ArrayLike, accuracy: ArrayLike) -> FloatArray:
    """The area under each curve by trapezoids, divided by its width: the mean accuracy over the budget.

    Of a single point, its accuracy.

    Args:
        labels: float [P], rising.
        accuracy: [..., P].

    Returns:
        float64 [...].

    >>> round(float(sl.active.area(labels=[10, 20, 40], accuracy=[0.5, 0.7, 0.9])), 4)
    0.7333
    """
    x, y = np.asarray(labels, dtype=np.float64), np.asarray(accuracy, dtype=np.float64)
    if len(x) == 1:
        return y[..., 0]
    return np.asarray(np.trapezoid(y, x, axis=-1) / (x[-1] - x[0]))


def paired_t(one: ArrayLike, other: ArrayLike) -> Paired:
    """Student's paired t-test of `one - other`.

    Where all differences are equal, p is 1 if they are 0, else 0. With fewer than 2 runs, interval and p are NaN.

    Args:
        one, other: [R] each, run by run.

    >>> found = sl.active.paired_t([0.80, 0.90, 0.85], [0.70, 0.82, 0.74])
    >>> round(found.difference, 3), bool(found.p < 0.05)
    (0.097, True)
    """
    differences = np.asarray(one, dtype=np.float64) - np.asarray(other, dtype=np.float64)
    mean, runs = float(differences.mean()), len(differences)
    if runs < 2:
        return Paired(mean, float("nan"), float("nan"))
    error = float(differences.std(ddof=1)) / runs**0.5
    if error == 0:
        return Paired(mean, 0.0, float(mean == 0))
    return Paired(mean, float(half_width(differences)), float(2 * stdtr(runs - 1, -abs(mean / error))))


def holm(p: Sequence[float]) -> list[float]:
    """Holm's adjusted p-values, in the order given: those below .05 are, with 95% certainty, all no accident.

    NaN, of what could not be tested, stays NaN and does not count among the tests.

    Args:
        p: p-values in [0, 1], or NaN.

    >>> [round(p, 3) for p in sl.active.holm([0.01, 0.04, 0.03])]
    [0.03, 0.06, 0.06]
    """
    tested = [place for place, value in enumerate(p) if not math.isnan(value)]
    adjusted, least = list(p), 0.0
    for rank, place in enumerate(sorted(tested, key=p.__getitem__)):
        least = max(least, min(1.0, (len(tested) - rank) * p[place]))
        adjusted[place] = least
    return adjusted


def monotone(accuracy: ArrayLike) -> FloatArray:
    """The non-decreasing curve [P] nearest to the given one in squares (pool adjacent violators).

    Args:
        accuracy: [P].

    >>> sl.active.monotone([0.5, 0.8, 0.7, 0.9])
    array([0.5 , 0.75, 0.75, 0.9 ])
    """
    groups: list[tuple[float, int]] = []  # mean, size
    for value in np.asarray(accuracy, dtype=np.float64).tolist():
        mean, size = value, 1
        while groups and groups[-1][0] > mean:
            before, count = groups.pop()
            mean, size = (before * count + mean * size) / (count + size), count + size
        groups.append((mean, size))
    return np.repeat([mean for mean, _ in groups], [size for _, size in groups])


def labels_needed(labels: ArrayLike, accuracy: ArrayLike, level: float) -> tuple[float, float]:
    """The fewest labels at which the monotone curve, linear between its points, reaches `level`: at least, at most.

    The two are equal if it does so within the curve. Of a curve that starts above, the most are its first labels, and
    the least 0; of one that never does, the least are its last, and the most infinity.

    Args:
        labels: float [P], rising.
        accuracy: [P].
        level: the accuracy to reach.

    >>> labels, accuracy = [10, 20, 40], [0.5, 0.7, 0.9]
    >>> sl.active.labels_needed(labels, accuracy, 0.7), sl.active.labels_needed(labels, accuracy, 0.95)
    ((20.0, 20.0), (40.0, inf))
    """
    x, y = np.asarray(labels, dtype=np.float64), monotone(accuracy)
    if level < y[0]:
        return 0.0, float(x[0])
    if level > y[-1]:
        return float(x[-1]), math.inf
    after = int(np.argmax(y >= level))
    if after == 0:
        return float(x[0]), float(x[0])
    share = (level - y[after - 1]) / (y[after] - y[after - 1])
    needed = float(x[after - 1] + share * (x[after] - x[after - 1]))
    return needed, needed


def labeling_efficiency(labels: ArrayLike, accuracy: ArrayLike, baseline: ArrayLike,
                        level: float | None = None) -> tuple[float, float]:
    """Labels that the baseline needs / labels that the strategy needs, to reach the same accuracy (arXiv 2106.15324):
    at least, at most.

    Above 1, the strategy saves labels.

    The two are equal if both have `level` within their curves; else one curve, or both, only bounds the ratio.

    Args:
        labels: float [P], rising.
        accuracy, baseline: mean curves [P].
        level: an accuracy; by default the highest that both reach.

    >>> sl.active.labeling_efficiency([10, 20, 40], accuracy=[0.5, 0.9, 0.95], baseline=[0.5, 0.7, 0.9])
    (2.0, 2.0)
    """
    if level is None:
        level = float(min(monotone(accuracy)[-1], monotone(baseline)[-1]))
    (low, high), (base_low, base_high) = (labels_needed(labels, curve, level) for curve in (accuracy, baseline))
    return base_low / high if high < math.inf else 0.0, base_high / low if low else math.inf


def efficiency_interval(labels: ArrayLike, accuracy: ArrayLike, baseline: ArrayLike,
                        draws: int = 1000) -> tuple[float, float]:
    """95% interval of the labeling efficiency over runs.

    By the bootstrap (percentiles): runs are drawn with replacement, both curves of a run together, and `level` anew for
    each draw's means. Bounds count as what they may be at the least and at the most, so that an end may be 0 or
    infinity. With few runs such an interval is rather too narrow.

    Args:
        labels: float [P], rising.
        accuracy, baseline: [R, P] each, run r of both with the same seed.
        draws: of the bootstrap.

    Returns:
        Its lower and its upper end.

    >>> rng = np.random.default_rng(0)
    >>> ours, theirs = (rng.normal(curve, 0.01, (5, 3)) for curve in ([0.5, 0.9, 0.95], [0.5, 0.7, 0.9]))
    >>> low, high = sl.active.efficiency_interval([10, 20, 40], ours, theirs, draws=100)
    >>> 1 < low < high
    True
    """
    one, other = np.asarray(accuracy, dtype=np.float64), np.asarray(baseline, dtype=np.float64)
    drawn = np.random.default_rng(0).integers(len(one), size=(draws, len(one)))
    ends = np.array([labeling_efficiency(labels, one[rows].mean(axis=0), other[rows].mean(axis=0)) for rows in drawn])
    return (float(np.quantile(ends[:, 0], 0.025, method="lower")),
            float(np.quantile(ends[:, 1], 0.975, method="higher")))


def win_matrix(runs: Mapping[str, ArrayLike], significance: float = 0.05) -> FloatArray:
    """float64 [M, M]: the share of points at which row beats column, by a paired two-sided t-test (arXiv 1906.03671).

    A column's mean is how often that strategy is beaten: the lower, the better.

    Args:
        runs: name -> accuracy [R, P], run r of each with the same initial labels and seed.
        significance: the p-value below which a difference counts.

    >>> rng = np.random.default_rng(0)
    >>> runs = {"margin": 0.8 + rng.normal(0, 0.01, (5, 4)), "random": 0.6 + rng.normal(0, 0.01, (5, 4))}
    >>> sl.active.win_matrix(runs)
    array([[0., 1.],
           [0., 0.]])
    """
    curves = [np.asarray(accuracy, dtype=np.float64) for accuracy in runs.values()]
    wins = np.zeros((len(curves), len(curves)))
    for i, one in enumerate(curves):
        for j, other in enumerate(curves):
            tests = [paired_t(a, b) for a, b in zip(one.T, other.T, strict=True)]
            wins[i, j] = np.mean([test.difference > 0 and test.p < significance for test in tests])
    return wins
