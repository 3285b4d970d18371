"""Schedules by their texts, and what else is done with a scalar, be it a number or a schedule."""

from __future__ import annotations

import math
from collections.abc import Callable

from ssl_lab import texts
from ssl_lab.errors import UsageError
from ssl_lab.schedule.cycles import cyclical, exp_range, triangular, triangular2
from ssl_lab.schedule.shapes import (
    Scalar,
    Schedule,
    constant,
    cosine,
    cosine_7_16,
    drops,
    geometric,
    linear,
    ramp_up,
    switch,
    warm_up,
)

MAKERS: dict[str, Callable[..., Schedule]] = {maker.__name__: maker for maker in (
    constant, linear, geometric, cosine, cosine_7_16, ramp_up, drops, switch, cyclical, triangular, triangular2,
    exp_range, warm_up)}
"""By name, as texts have them."""


def parse(text: str) -> Schedule:
    """The schedule that its text describes, e.g. "linear(0, 75, until=0.3)": one of `MAKERS`, and numbers.

    Raises:
        UsageError: for anything else.

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
    """The number, or the schedule, that a text is: 0.5, "cyclical(0, 1)".

    Raises:
        UsageError: for anything else.

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

    Args:
        value: a number, or a schedule.
        shape: makes a schedule of a peak.

    >>> sl.schedule.course(0.1, sl.schedule.cosine)
    cosine(0.1, 0.0, cycles=0.5)
    >>> sl.schedule.course(sl.schedule.linear(0, 1), sl.schedule.cosine)
    linear(0, 1, until=1.0)
    """
    return value if callable(value) else shape(value)


def times(value: Scalar, factor: float) -> Scalar:
    """The value, so many times as large.

    Args:
        value: a number, or a schedule.
        factor: of it, or of each of its values.

    >>> sl.schedule.times(0.5, 4), sl.schedule.times(sl.schedule.linear(0, 1), 4)(0.5)
    (2.0, 2.0)
    """
    if not callable(value):
        return factor * value
    return Schedule(f"{factor} * {value!r}", lambda t: factor * value(t))


def plain(value: Scalar) -> float | str:
    """The number, or the text that describes the schedule: what YAML holds, and `scalar` reads again.

    Args:
        value: a number, or a schedule.

    >>> sl.schedule.plain(0.5), sl.schedule.plain(sl.schedule.linear(0, 1))
    (0.5, 'linear(0, 1, until=1.0)')
    """
    return repr(value) if callable(value) else value


def extremes(value: Scalar) -> tuple[float, float]:
    """The least and the largest value that it has, as far as 1001 moments show, to check it before a run.

    Args:
        value: a number, or a schedule.

    >>> sl.schedule.extremes(sl.schedule.cyclical(0.0, 0.5))
    (0.0, 0.5)
    """
    values = [value(t / 1000) for t in range(1001)] if callable(value) else [value]
    return min(values), max(values)
