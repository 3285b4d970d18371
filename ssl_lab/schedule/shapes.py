"""Schedules, and the simple ones."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Schedule:
    """A named function of the training fraction; `name` is how it prints, is recorded, and tells it from others.

    Attributes:
        name: how it prints, is recorded, and tells it from others.
        function: the fraction of training, in [0, 1) -> a number.

    >>> halves = sl.schedule.Schedule("halves", lambda t: 0.5**t)
    >>> halves, halves(1.0)
    (halves, 0.5)
    """

    name: str
    function: Callable[[float], float] = field(compare=False)

    def __call__(self, t: float) -> float:
        return self.function(t)

    def __repr__(self) -> str:
        return self.name


Scalar = float | Schedule


def constant(value: float) -> Schedule:
    """value, always.

    >>> [sl.schedule.constant(0.1)(t) for t in (0.0, 0.5, 1.0)]
    [0.1, 0.1, 0.1]
    """
    return Schedule(f"constant({value})", lambda t: value)


def linear(start: float, end: float, until: float = 1.0) -> Schedule:
    """A straight line from start at t=0 to end at t=until, then end.

    Args:
        start, end: the first and the last value.
        until: the fraction of training at which it ends, above 0.

    >>> [sl.schedule.linear(0.0, 1.0, until=0.5)(t) for t in (0.0, 0.25, 0.5, 1.0)]
    [0.0, 0.5, 1.0, 1.0]
    """
    return Schedule(f"linear({start}, {end}, until={until})",
                    lambda t: start + (end - start) * _clip(t / until))


def geometric(start: float, end: float) -> Schedule:
    """start * (end / start)^t: the same factor in every step.

    Args:
        start, end: the first and the last value, both above 0 or both below.

    >>> [sl.schedule.geometric(1.0, 0.01)(t) for t in (0.0, 0.5, 1.0)]
    [1.0, 0.1, 0.01]
    """
    return Schedule(f"geometric({start}, {end})", lambda t: start * (end / start) ** t)


def cosine(start: float, end: float = 0.0, cycles: float = 0.5) -> Schedule:
    """end + (start - end) * (1 + cos(2 pi cycles t)) / 2; by default half a wave from start to end.

    Args:
        start, end: the first and the last value.
        cycles: waves over the run; halves end at `end`, whole ones at `start`.

    >>> [round(sl.schedule.cosine(0.1)(t), 4) for t in (0.0, 0.5, 1.0)]
    [0.1, 0.05, 0.0]
    """
    return Schedule(f"cosine({start}, {end}, cycles={cycles})",
                    lambda t: end + (start - end) * (1 + math.cos(2 * math.pi * cycles * t)) / 2)


def cosine_7_16(start: float) -> Schedule:
    """start * cos(7 pi t / 16), which ends at 0.195 * start (FixMatch, Sohn et al. 2020, section 2.3).

    >>> round(sl.schedule.cosine_7_16(1.0)(1.0), 3)
    0.195
    """
    return Schedule(f"cosine_7_16({start})", lambda t: start * math.cos(7 * math.pi * t / 16))


def ramp_up(value: float, until: float) -> Schedule:
    """value * exp(-5 (1 - t/until)^2), then value (Laine and Aila 2017, arXiv 1610.02242).

    Args:
        value: the last one.
        until: the fraction of training from which on it holds, above 0.

    >>> [round(sl.schedule.ramp_up(100.0, until=0.4)(t), 2) for t in (0.0, 0.2, 0.4, 1.0)]
    [0.67, 28.65, 100.0, 100.0]
    """
    return Schedule(f"ramp_up({value}, until={until})",
                    lambda t: value * math.exp(-5 * (1 - _clip(t / until)) ** 2))


def drops(start: float, factor: float, *at: float) -> Schedule:
    """start, multiplied by factor at each of some fractions: drops(0.1, 0.2, 0.3, 0.6) is 0.1, 0.02, then 0.004.

    Args:
        start: the first value.
        factor: of each drop.
        at: fractions of training in [0, 1].

    >>> [round(sl.schedule.drops(0.1, 0.2, 0.3, 0.6)(t), 4) for t in (0.0, 0.3, 0.6)]
    [0.1, 0.02, 0.004]
    """
    return Schedule(f"drops({', '.join(map(str, (start, factor, *at)))})",
                    lambda t: start * factor ** sum(t >= place for place in at))


def switch(first: float, then: float, at: float) -> Schedule:
    """first, and from a fraction of training on then.

    Args:
        first, then: the two values.
        at: a fraction of training, in [0, 1].

    >>> [sl.schedule.switch(1.0, 0.0, at=0.5)(t) for t in (0.4, 0.5)]
    [1.0, 0.0]
    """
    return Schedule(f"switch({first}, {then}, {at})", lambda t: then if t >= at else first)


def warm_up(until: float, then: Scalar) -> Schedule:
    """Rises linearly from 0 to then(0) while t < until; `then` runs over what is left, from 0 to 1.

    Args:
        until: a fraction of training, in (0, 1).
        then: a number, or a schedule.

    >>> rate = sl.schedule.warm_up(0.1, sl.schedule.cosine(0.4))
    >>> [round(rate(t), 3) for t in (0.0, 0.05, 0.1, 0.55, 1.0)]
    [0.0, 0.2, 0.4, 0.2, 0.0]
    """
    after = then if callable(then) else constant(then)
    return Schedule(f"warm_up({until}, {then})",
                    lambda t: after(0.0) * t / until if t < until else after((t - until) / (1 - until)))


def _clip(t: float) -> float:
    return min(1.0, max(0.0, t))
