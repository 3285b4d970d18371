"""The noise of mini-batches along weights: Hurst exponents (Tan et al. 2022, arXiv 2206.04359)."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from ssl_lab.analysis.landscape import Landscape
from ssl_lab.errors import UsageError
from ssl_lab.seeds import generator

FloatArray = NDArray[Any]
SMALLEST, LARGEST, FACTOR = 50, 500, 1.2  # windows of the authors' code
LEAST = 120  # rows: two windows of different length
KEPT = 0.01, 0.99  # exponents, there too


def gradient_noise(land: Landscape, batches: int = 600, size: int = 32, coordinates: int = 500,
                   seed: int = 0) -> FloatArray:
    """float64 [batches, coordinates]: the gradient of a mini-batch of `size` images, less that of all, at frozen
    weights and at coordinates drawn at random. Tan et al. 2022 (arXiv 2206.04359) take 3,000 batches and 500,000
    coordinates.

    Args:
        land: the loss, its weights and images.
        batches: how many are drawn, each without replacement.
        size: images in each.
        coordinates: weights that are looked at, or all if there are fewer.
        seed: of both draws.

    >>> net = sl.Net(torch.nn.Flatten(), torch.nn.Linear(4, 2), mean=(0.0,), std=(1.0,))
    >>> land = sl.analysis.Landscape(net, torch.rand(64, 1, 2, 2), torch.arange(64) % 2)
    >>> sl.analysis.gradient_noise(land, batches=20, size=8, coordinates=5).shape
    (20, 5)
    """
    total = sum(w.numel() for w in land.weights)
    kept = torch.randperm(total, generator=generator(seed, "coordinates"))[:coordinates].to(land.y.device)

    def chosen(part: Landscape) -> FloatArray:
        flat = torch.cat([g.flatten() for g in part.gradient()])
        return flat[kept].double().cpu().numpy()

    draw, whole = generator(seed, "batches"), chosen(land)
    rows = [torch.randperm(len(land.y), generator=draw)[:size].to(land.y.device) for _ in range(batches)]
    return np.stack([chosen(land.part(each)) - whole for each in rows])


def hurst_exponents(series: FloatArray) -> FloatArray:
    """float64 [D]: of each column of increments, by rescaled ranges: the slope of log(R / S) against log of the window,
    over windows of 50 to 500, each 1.2 times the one before.

    The sum of white noise, a random walk, has 0.5; more: it goes on as it went; less: it turns back. Short windows bend
    R/S: fractional noise of 0.3, 0.5, 0.7 and 0.9 reads 0.37, 0.54, 0.71 and 0.86. NaN for a constant column. As in the
    code of Tan et al. 2022 (arXiv 2206.04359; `bound2024`, of a later version).

    Args:
        series: float [T, D], of 120 rows or more.

    Raises:
        UsageError: for other shapes.

    >>> rng = np.random.default_rng(0)
    >>> sl.analysis.hurst_exponents(rng.normal(size=(600, 3))).shape
    (3,)
    """
    rows = np.asarray(series, np.float64)
    if rows.ndim != 2 or len(rows) < LEAST:
        raise UsageError(f"hurst_exponents: increments of shape {rows.shape}; expected [T, D] with {LEAST} rows or "
                         "more")
    most = min(LARGEST, len(rows) // 2)
    grid = SMALLEST * FACTOR ** np.arange(1 + np.log(most / SMALLEST) / np.log(FACTOR) + 1e-9)
    sizes = np.unique(grid[grid <= most + 1e-9].astype(np.int64))
    sizes = np.unique(np.append(sizes, most))
    logs = []
    for size in sizes.tolist():
        cut = rows[: len(rows) // size * size].reshape(-1, size, rows.shape[1])
        walked = (cut - cut.mean(axis=1, keepdims=True)).cumsum(axis=1)
        with np.errstate(invalid="ignore", divide="ignore"):
            ratio = (walked.max(axis=1) - walked.min(axis=1)) / cut.std(axis=1)
            logs.append(np.log(ratio.mean(axis=0)))
    x, y = np.log(sizes), np.stack(logs)
    x = x - x.mean()
    slopes: FloatArray = x @ y / (x @ x)
    return slopes


def hurst_exponent(series: FloatArray) -> float:
    """The mean of `hurst_exponents` over columns [T, D] that are not constant.

    Args:
        series: float [T, D], of 120 rows or more.

    >>> rng = np.random.default_rng(0)
    >>> abs(sl.analysis.hurst_exponent(rng.normal(size=(1000, 20))) - 0.54) < 0.05  # of white noise
    True
    """
    found = hurst_exponents(series)
    return float(found[np.isfinite(found)].mean()) if np.isfinite(found).any() else float("nan")


def fractal_dimension(exponents: FloatArray) -> float:
    """(1 + sum_(i < k) (H_k - H_i)) / H_k, k the first of the exponents, sorted upwards, whose cumulative sum passes 1
    (the last, if none does): the dimension of the path of that many fractional Brownian motions, by which Tan et al.
    2022 (arXiv 2206.04359) bound the gap between training and test. Exponents outside 0.01 to 0.99 are left out. Of
    equal ones, h, it is 1 / h.

    Args:
        exponents: float [D], as `hurst_exponents` gives them.

    Returns:
        A number from 1 on; NaN where no exponent is left.

    >>> round(sl.analysis.fractal_dimension(np.full(500, 0.5)), 3)
    2.0
    """
    kept = np.sort(exponents[(exponents >= KEPT[0]) & (exponents <= KEPT[1])])
    if not len(kept):
        return float("nan")
    k = min(int(np.searchsorted(kept.cumsum(), 1.0, side="right")), len(kept) - 1)
    return float((1 + (kept[k] - kept[:k]).sum()) / kept[k])
