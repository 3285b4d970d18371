"""Student's confidence interval, which every report of a mean over runs shows, and what so few runs can show."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.optimize import brentq
from scipy.special import gammaincinv, ndtr, stdtrit

FloatArray = NDArray[np.float64]


def half_width(values: ArrayLike) -> FloatArray:
    """Half the width of Student's 95% interval of the mean over the first axis: [R, ...] -> float64 [...].

    NaN for fewer than 2 runs.
    """
    runs = np.asarray(values, dtype=np.float64)
    if len(runs) < 2:
        return np.full(runs.shape[1:], np.nan)
    quantile = stdtrit(len(runs) - 1, 0.975)
    return np.asarray(quantile * runs.std(axis=0, ddof=1) / np.sqrt(len(runs)))


def wilson(right: int, total: int) -> tuple[float, float]:
    """Wilson's 95% interval (1927) of a share: `right` of `total`, in [0, 1]; (0, 1) of nothing."""
    if not total:
        return 0.0, 1.0
    z = 1.959963984540054
    share, spread = right / total, z * z / total
    center = (share + spread / 2) / (1 + spread)
    half = z * np.sqrt(share * (1 - share) / total + spread / (4 * total)) / (1 + spread)
    return float(max(0.0, center - half)), float(min(1.0, center + half))


def detectable(differences: ArrayLike, significance: float = 0.05, power: float = 0.8) -> float:
    """The least true difference that Student's paired t-test finds with probability `power`, two-sided.

    differences: [R], of which the standard deviation is taken for the true one; it is itself uncertain with few runs.
    NaN with fewer than 2 runs.

    The power is the mean over a sample's standard deviation (by 4,000 quantiles of chi) of P(|mean| / error > t).
    """
    each = np.asarray(differences, dtype=np.float64)
    runs = len(each)
    if runs < 2:
        return float("nan")
    chi = np.sqrt(2 * gammaincinv((runs - 1) / 2, (np.arange(4000) + 0.5) / 4000) / (runs - 1))
    critical = float(stdtrit(runs - 1, 1 - significance / 2))

    def missing(shift: float) -> float:
        return power - float((ndtr(shift - critical * chi) + ndtr(-shift - critical * chi)).mean())

    return float(brentq(missing, 0.0, 10 * critical + 10) * each.std(ddof=1) / runs**0.5)
