"""Greedy choice of rows whose values only fall as others are chosen: exact, and lazy (Minoux 1978)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ssl_lab.active.queries.base import IntArray, rng

HOT = 4096


def lazy_greedy(
    bounds: NDArray[Any],
    now: Callable[[IntArray], NDArray[Any]],
    choose: Callable[[int], None],
    budget: int,
    seed: int,
    batch: int = 64,
) -> IntArray:
    """`budget` positions, each of the highest value at its turn; equal values in an order drawn from the seed.

    bounds: [M], at least the value of each position at the start; -infinity: not to be chosen. now(positions):
    their values after the choices so far. choose(position) is told of every choice.

    A value computed before is a bound on the value now. So only positions whose bound beats the best value known
    are computed again, in batches of `batch`, then twice as many; and the search is among the HOT highest bounds
    until one outside may be higher.
    """
    order = rng(seed, "ties").permutation(len(bounds))
    bounds = bounds[order].astype(np.float64)
    fresh = np.full(len(bounds), -1)  # after how many choices a bound was computed
    chosen: list[int] = []
    while len(chosen) < budget:
        hot, floor = _top(bounds, HOT)
        values, ages = bounds[hot], fresh[hot]
        size = batch
        while len(chosen) < budget and values.max() >= floor:
            ties = values == values.max()
            settled = np.flatnonzero(ties & (ages == len(chosen)))
            if len(settled):
                best = settled[hot[settled].argmin()]
                choose(int(order[hot[best]]))
                chosen.append(int(order[hot[best]]))
                values[best] = -np.inf
                size = batch
            else:
                top, _ = _top(values, size)
                stale = top[ages[top] < len(chosen)]
                values[stale] = np.minimum(values[stale], now(order[hot[stale]]))
                ages[stale] = len(chosen)
                size *= 2
        bounds[hot], fresh[hot] = values, ages
    return np.array(chosen, dtype=np.int64)


def _top(values: NDArray[Any], count: int) -> tuple[IntArray, float]:
    """Positions of the `count` highest values, in no order, and the highest of the others."""
    if count >= len(values):
        return np.arange(len(values)), -np.inf
    parted = np.argpartition(-values, count)
    return parted[:count], float(values[parted[count]])
