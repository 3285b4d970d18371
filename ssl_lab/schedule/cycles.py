"""Schedules that rise and fall in cycles."""

from __future__ import annotations

import math

from ssl_lab.errors import UsageError
from ssl_lab.schedule.shapes import Schedule


def cyclical(low: float, high: float, cycles: int = 1, factor: float = 2.0) -> Schedule:
    """From low to high in the first 1 / factor of each cycle, and back to low in the rest of it; with factor 1 it only
    rises (general cyclical training, Smith 2022, arXiv 2202.08835). With low = high it is the constant.

    value = (1 - eta) high + eta low, eta = 1 - factor t while factor t < 1, then (factor t - 1) / (factor - 1), with t
    the fraction of the cycle (in the paper's code epoch / (epochs - 1)).

    Args:
        low, high: the least and the largest value.
        cycles: over the run.
        factor: at least 1; 2 rises for half a cycle.

    Raises:
        UsageError: for a factor below 1.

    >>> [round(sl.schedule.cyclical(0.8, 0.98, cycles=2)(t), 3) for t in (0.0, 0.25, 0.5, 0.75)]
    [0.8, 0.98, 0.8, 0.98]
    """
    if factor < 1:
        raise UsageError(f"cyclical: factor={factor}; expected 1 or more")
    return Schedule(f"cyclical({low}, {high}, cycles={cycles}, factor={factor})",
                    lambda t: high - (high - low) * _eta(_in_cycle(t, cycles), factor))


def triangular(low: float, high: float, cycles: int = 1) -> Schedule:
    """Straight lines from low to high and back, in each cycle (cyclical learning rates, Smith 2015, arXiv 1506.01186).
    A cycle is two of the paper's steps, 2 stepsize iterations.

    Args:
        low, high: the least and the largest value.
        cycles: over the run.

    >>> [sl.schedule.triangular(0.0, 1.0, cycles=2)(t) for t in (0.0, 0.125, 0.25, 0.5)]
    [0.0, 0.5, 1.0, 0.0]
    """
    return Schedule(f"triangular({low}, {high}, cycles={cycles})",
                    lambda t: high - (high - low) * abs(2 * _in_cycle(t, cycles) - 1))


def triangular2(low: float, high: float, cycles: int = 4) -> Schedule:
    """triangular, of which each cycle reaches half as far from low as the last (Smith 2015, arXiv 1506.01186).

    Args:
        low, high: the least value, and the first peak.
        cycles: over the run.

    >>> [sl.schedule.triangular2(0.0, 1.0, cycles=2)(t) for t in (0.25, 0.75)]  # the peaks
    [1.0, 0.5]
    """
    wave = triangular(0.0, 1.0, cycles)
    return Schedule(f"triangular2({low}, {high}, cycles={cycles})",
                    lambda t: low + (high - low) * wave(t) * 0.5 ** _cycle(t, cycles))


def exp_range(low: float, high: float, gamma: float = 0.1, cycles: int = 4) -> Schedule:
    """triangular, of which high comes nearer to low by the factor gamma^t, so that gamma of the distance is left at the
    end (Smith 2015, arXiv 1506.01186, whose gamma is per iteration: ours is that to the power of all iterations).

    Args:
        low, high: the least value, and the first peak.
        gamma: in (0, 1].
        cycles: over the run.

    >>> [round(sl.schedule.exp_range(0.0, 1.0, gamma=0.1, cycles=2)(t), 3) for t in (0.25, 0.75)]  # the peaks
    [0.562, 0.178]
    """
    wave = triangular(0.0, 1.0, cycles)
    return Schedule(f"exp_range({low}, {high}, gamma={gamma}, cycles={cycles})",
                    lambda t: low + (high - low) * wave(t) * gamma**t)


def _in_cycle(t: float, cycles: int) -> float:
    """The fraction of its cycle at t; cycles end where the next begins, but for the last."""
    return t * cycles - _cycle(t, cycles)


def _cycle(t: float, cycles: int) -> int:
    """The number of the cycle at t, from 0."""
    return min(math.floor(t * cycles), max(math.ceil(cycles), 1) - 1)


def _eta(t: float, factor: float) -> float:
    """From 1 to 0 until t = 1 / factor, and back to 1 at t = 1."""
    if factor * t < 1 or factor == 1:
        return 1 - factor * t
    return (factor * t - 1) / (factor - 1)
