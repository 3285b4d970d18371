"""Slingshots (Thilak et al. 2022, arXiv 2206.04817): jumps of the last layer's norm, with spikes of the loss."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from ssl_lab.errors import UsageError


class Slingshot(NamedTuple):
    """Rows start to stop of a course.

    Attributes:
        start, stop: row numbers, both included.
        growth: the norm's, as a factor.
        spike: the largest loss there over the median before.

    >>> sl.analysis.Slingshot(start=30, stop=32, growth=1.4, spike=5.0).growth
    1.4
    """

    start: int
    stop: int
    growth: float
    spike: float


def slingshots(norms: Sequence[float], losses: Sequence[float], jump: float = 4.0, spike: float = 3.0,
               least: float = 1.05) -> list[Slingshot]:
    """Where |W| of the last layer grows `jump` times as fast (in its logarithm) as in the median row, by a factor of
    `least` or more in all, and the loss comes to `spike` times its median of the rows before it; then it is flat again.

    The first tenth of the course, where every norm grows, does not count. Several of them are the paper's cycle, which
    it sees under Adam, late and without weight decay; a later paper (arXiv 2605.06152) lays it to rounding. The
    thresholds are ours.

    Args:
        norms, losses: [n], in the order of training; `--with head_norm` writes the norms.
        jump: how many times as fast as in the median row the logarithm of the norm grows.
        spike: the loss, over its median of the rows before.
        least: the factor by which the norm grows in all.

    Raises:
        UsageError: unless there is a norm for each loss.

    >>> norms = [1 + 0.001 * t + 0.5 * (t >= 30) for t in range(60)]
    >>> losses = [0.1 + 2.0 * (t == 30) for t in range(60)]
    >>> [(each.start, each.stop) for each in sl.analysis.slingshots(norms, losses)]
    [(29, 30)]
    """
    if len(norms) != len(losses):
        raise UsageError(f"slingshots: {len(norms)} norms and {len(losses)} losses; expected one of each per row")
    if len(norms) < 10:
        return []
    size, loss = np.asarray(norms, np.float64), np.asarray(losses, np.float64)
    steps = np.diff(np.log(size))
    first = len(size) // 10
    usual = float(np.median(np.abs(steps[first:])))
    fast = steps > jump * usual
    fast[:first] = False
    edges = np.flatnonzero(np.diff(np.concatenate([[False], fast, [False]]).astype(np.int8)))
    found = []
    for start, stop in edges.reshape(-1, 2).tolist():
        growth = float(size[stop] / size[start])
        before = float(np.median(loss[max(0, start - max(10, first)) : max(1, start)]))
        height = float(loss[start : stop + 1].max()) / max(before, 1e-12)
        if growth >= least and height >= spike:
            found.append(Slingshot(start, stop, growth, height))
    return found
