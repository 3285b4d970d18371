"""Student's confidence interval, which every report of a mean over runs shows."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.special import stdtrit

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
