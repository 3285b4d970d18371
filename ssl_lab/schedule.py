"""Schedules: pure functions of the training fraction t in [0, 1], for any scalar hyper-parameter.

Learning rates, thresholds, loss weights and EMA decays are all a `Scalar`: a number, or a schedule.
A method reads one with `at.value(self.threshold)`.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

from ssl_lab import texts
from ssl_lab.errors import UsageError


@dataclass(frozen=True)
class Schedule:
    """A named function of the training fraction; `name` is how it prints and is recorded."""

    name: str
    function: Callable[[float], float]

    def __call__(self, t: float) -> float:
        return self.function(t)

    def __repr__(self) -> str:
        return self.name


Scalar = float | Schedule


def constant(value: float) -> Schedule:
    """value, always."""
    return Schedule(f"constant({value})", lambda t: value)


def linear(start: float, end: float, until: float = 1.0) -> Schedule:
    """A straight line from start at t=0 to end at t=until, then end."""
    return Schedule(f"linear({start}, {end}, until={until})",
                    lambda t: start + (end - start) * _clip(t / until))


def cosine(start: float, end: float = 0.0, cycles: float = 0.5) -> Schedule:
    """end + (start - end) * (1 + cos(2 pi cycles t)) / 2: with 0.5 cycles, half a wave from start to end."""
    return Schedule(f"cosine({start}, {end}, cycles={cycles})",
                    lambda t: end + (start - end) * (1 + math.cos(2 * math.pi * cycles * t)) / 2)


def cosine_7_16(start: float) -> Schedule:
    """start * cos(7 pi t / 16), which ends at 0.195 * start (FixMatch, Sohn et al. 2020, section 2.3)."""
    return Schedule(f"cosine_7_16({start})", lambda t: start * math.cos(7 * math.pi * t / 16))


def ramp_up(value: float, until: float) -> Schedule:
    """value * exp(-5 (1 - t/until)^2), then value (Laine and Aila 2017)."""
    return Schedule(f"ramp_up({value}, until={until})",
                    lambda t: value * math.exp(-5 * (1 - _clip(t / until)) ** 2))


def drops(start: float, factor: float, *at: float) -> Schedule:
    """start, multiplied by factor at each of these fractions: drops(0.1, 0.2, 0.3, 0.6) is 0.1, 0.02, then 0.004."""
    return Schedule(f"drops({', '.join(map(str, (start, factor, *at)))})",
                    lambda t: start * factor ** sum(t >= place for place in at))


def cyclical(low: float, high: float, cycles: int = 1) -> Schedule:
    """Triangle waves that start and end at low and reach high in the middle of each cycle (Smith 2015)."""
    return Schedule(f"cyclical({low}, {high}, cycles={cycles})",
                    lambda t: high - (high - low) * abs(2 * ((t * cycles) % 1.0) - 1))


def warm_up(until: float, then: Scalar) -> Schedule:
    """Rises linearly from 0 to then(0) while t < until; `then` runs over what is left, from 0 to 1."""
    after = then if callable(then) else constant(then)
    return Schedule(f"warm_up({until}, {then})",
                    lambda t: after(0.0) * t / until if t < until else after((t - until) / (1 - until)))


MAKERS: dict[str, Callable[..., Schedule]] = {maker.__name__: maker for maker in (
    constant, linear, cosine, cosine_7_16, ramp_up, drops, cyclical, warm_up)}
"""By name, as texts have them."""


def parse(text: str) -> Schedule:
    """The schedule that its text describes, e.g. "linear(0, 75, until=0.3)": a function of this module and numbers.

    UsageError for anything else.
    """
    try:
        made = texts.make(texts.read(text, "schedule", "linear(0, 1)"), MAKERS.__getitem__)
        if not all(math.isfinite(made(t)) for t in (0.0, 0.5, 0.99)):  # numbers, and as many as it needs
            raise ValueError
    except (KeyError, ValueError, TypeError, ZeroDivisionError):
        raise UsageError(f"{text!r} is no schedule; expected e.g. linear(0, 1, until=0.3), by one of "
                         f"{', '.join(MAKERS)}") from None
    return made


def _clip(t: float) -> float:
    return min(1.0, max(0.0, t))
