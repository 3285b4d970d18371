"""Schedules: pure functions of the training fraction t in [0, 1], for any scalar hyper-parameter.

Learning rates, thresholds, loss weights and EMA decays are all a `Scalar`: a number, or a schedule.
A method reads one with `at.value(self.threshold)`.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field

from ssl_lab import texts
from ssl_lab.errors import UsageError

__all__ = ["MAKERS", "Scalar", "Schedule", "constant", "cosine", "cosine_7_16", "course", "cyclical", "drops",
           "exp_range", "extremes", "geometric", "linear", "parse", "plain", "ramp_up", "scalar", "switch", "times",
           "triangular", "triangular2", "warm_up"]


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

    >>> [sl.schedule.linear(0.0, 1.0, until=0.5)(t) for t in (0.0, 0.25, 0.5, 1.0)]
    [0.0, 0.5, 1.0, 1.0]
    """
    return Schedule(f"linear({start}, {end}, until={until})",
                    lambda t: start + (end - start) * _clip(t / until))


def geometric(start: float, end: float) -> Schedule:
    """start * (end / start)^t: the same factor in every step. Both of one sign.

    >>> [sl.schedule.geometric(1.0, 0.01)(t) for t in (0.0, 0.5, 1.0)]
    [1.0, 0.1, 0.01]
    """
    return Schedule(f"geometric({start}, {end})", lambda t: start * (end / start) ** t)


def cosine(start: float, end: float = 0.0, cycles: float = 0.5) -> Schedule:
    """end + (start - end) * (1 + cos(2 pi cycles t)) / 2: with 0.5 cycles, half a wave from start to end.

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
    """value * exp(-5 (1 - t/until)^2), then value (Laine and Aila 2017).

    >>> [round(sl.schedule.ramp_up(100.0, until=0.4)(t), 2) for t in (0.0, 0.2, 0.4, 1.0)]
    [0.67, 28.65, 100.0, 100.0]
    """
    return Schedule(f"ramp_up({value}, until={until})",
                    lambda t: value * math.exp(-5 * (1 - _clip(t / until)) ** 2))


def drops(start: float, factor: float, *at: float) -> Schedule:
    """start, multiplied by factor at each of these fractions: drops(0.1, 0.2, 0.3, 0.6) is 0.1, 0.02, then 0.004.

    >>> [round(sl.schedule.drops(0.1, 0.2, 0.3, 0.6)(t), 4) for t in (0.0, 0.3, 0.6)]
    [0.1, 0.02, 0.004]
    """
    return Schedule(f"drops({', '.join(map(str, (start, factor, *at)))})",
                    lambda t: start * factor ** sum(t >= place for place in at))


def switch(first: float, then: float, at: float) -> Schedule:
    """first, and from this fraction on then.

    >>> [sl.schedule.switch(1.0, 0.0, at=0.5)(t) for t in (0.4, 0.5)]
    [1.0, 0.0]
    """
    return Schedule(f"switch({first}, {then}, {at})", lambda t: then if t >= at else first)


def cyclical(low: float, high: float, cycles: int = 1, factor: float = 2.0) -> Schedule:
    """From low to high in the first 1 / factor of each cycle, and back to low in the rest of it; with factor 1 it only
    rises (general cyclical training, Smith 2022, arXiv 2202.08835). With low = high it is the constant.

    value = (1 - eta) high + eta low, eta = 1 - factor t while factor t < 1, then (factor t - 1) / (factor - 1), with t
    the fraction of the cycle (in the paper's code epoch / (epochs - 1)).

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

    >>> [sl.schedule.triangular(0.0, 1.0, cycles=2)(t) for t in (0.0, 0.125, 0.25, 0.5)]
    [0.0, 0.5, 1.0, 0.0]
    """
    return Schedule(f"triangular({low}, {high}, cycles={cycles})",
                    lambda t: high - (high - low) * abs(2 * _in_cycle(t, cycles) - 1))


def triangular2(low: float, high: float, cycles: int = 4) -> Schedule:
    """triangular, of which each cycle reaches half as far from low as the last (Smith 2015).

    >>> [sl.schedule.triangular2(0.0, 1.0, cycles=2)(t) for t in (0.25, 0.75)]  # the peaks
    [1.0, 0.5]
    """
    wave = triangular(0.0, 1.0, cycles)
    return Schedule(f"triangular2({low}, {high}, cycles={cycles})",
                    lambda t: low + (high - low) * wave(t) * 0.5 ** _cycle(t, cycles))


def exp_range(low: float, high: float, gamma: float = 0.1, cycles: int = 4) -> Schedule:
    """triangular, of which high comes nearer to low by the factor gamma^t, so that gamma of the distance is left at the
    end (Smith 2015, whose gamma is per iteration: ours is that to the power of all iterations).

    >>> [round(sl.schedule.exp_range(0.0, 1.0, gamma=0.1, cycles=2)(t), 3) for t in (0.25, 0.75)]  # the peaks
    [0.562, 0.178]
    """
    wave = triangular(0.0, 1.0, cycles)
    return Schedule(f"exp_range({low}, {high}, gamma={gamma}, cycles={cycles})",
                    lambda t: low + (high - low) * wave(t) * gamma**t)


def warm_up(until: float, then: Scalar) -> Schedule:
    """Rises linearly from 0 to then(0) while t < until; `then` runs over what is left, from 0 to 1.

    >>> rate = sl.schedule.warm_up(0.1, sl.schedule.cosine(0.4))
    >>> [round(rate(t), 3) for t in (0.0, 0.05, 0.1, 0.55, 1.0)]
    [0.0, 0.2, 0.4, 0.2, 0.0]
    """
    after = then if callable(then) else constant(then)
    return Schedule(f"warm_up({until}, {then})",
                    lambda t: after(0.0) * t / until if t < until else after((t - until) / (1 - until)))


MAKERS: dict[str, Callable[..., Schedule]] = {maker.__name__: maker for maker in (
    constant, linear, geometric, cosine, cosine_7_16, ramp_up, drops, switch, cyclical, triangular, triangular2,
    exp_range, warm_up)}
"""By name, as texts have them."""


def parse(text: str) -> Schedule:
    """The schedule that its text describes, e.g. "linear(0, 75, until=0.3)": a function of this module and numbers.

    UsageError for anything else.

    >>> sl.schedule.parse("linear(0, 75, until=0.3)")(0.15)
    37.5
    """
    try:
        made = texts.make(texts.read(text, "schedule", "linear(0, 1)"), MAKERS.__getitem__)
        if not all(math.isfinite(made(t)) for t in (0.0, 0.5, 0.99)):  # numbers, and as many as it needs
            raise ValueError
    except (KeyError, ValueError, TypeError, ArithmeticError):
        raise UsageError(f"{text!r} is no schedule; expected e.g. linear(0, 1, until=0.3), by one of "
                         f"{', '.join(MAKERS)}") from None
    return made


def scalar(text: str) -> Scalar:
    """The number, or the schedule, that a text is: 0.5, "cyclical(0, 1)". UsageError for anything else.

    >>> sl.schedule.scalar("0.5"), sl.schedule.scalar("cyclical(0, 1)")
    (0.5, cyclical(0, 1, cycles=1, factor=2.0))
    """
    try:
        return float(text)
    except ValueError:
        if "(" in text:
            return parse(text)
        raise UsageError(f"{text!r} is no number, and no schedule such as linear(0, 1, until=0.3) or cyclical(0, 1)"
                         ) from None


def course(value: Scalar, shape: Callable[[float], Schedule]) -> Schedule:
    """What a number is the peak of, `shape` of it, as `cosine` is; a schedule has a course of its own.

    >>> sl.schedule.course(0.1, sl.schedule.cosine)
    cosine(0.1, 0.0, cycles=0.5)
    >>> sl.schedule.course(sl.schedule.linear(0, 1), sl.schedule.cosine)
    linear(0, 1, until=1.0)
    """
    return value if callable(value) else shape(value)


def times(value: Scalar, factor: float) -> Scalar:
    """A number, or a schedule, so many times as large.

    >>> sl.schedule.times(0.5, 4), sl.schedule.times(sl.schedule.linear(0, 1), 4)(0.5)
    (2.0, 2.0)
    """
    if not callable(value):
        return factor * value
    return Schedule(f"{factor} * {value!r}", lambda t: factor * value(t))


def plain(value: Scalar) -> float | str:
    """The number, or the text that describes the schedule: what YAML holds, and `scalar` reads again.

    >>> sl.schedule.plain(0.5), sl.schedule.plain(sl.schedule.linear(0, 1))
    (0.5, 'linear(0, 1, until=1.0)')
    """
    return repr(value) if callable(value) else value


def extremes(value: Scalar) -> tuple[float, float]:
    """The least and the largest value that it has, as far as 1001 moments show, to check it before a run.

    >>> sl.schedule.extremes(sl.schedule.cyclical(0.0, 0.5))
    (0.0, 0.5)
    """
    values = [value(t / 1000) for t in range(1001)] if callable(value) else [value]
    return min(values), max(values)


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


def _clip(t: float) -> float:
    return min(1.0, max(0.0, t))
