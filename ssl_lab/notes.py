"""Lines for a person at the start of a run, on stderr: said by the first process, and as often as is asked for here."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from functools import cache

_LEFT: ContextVar[list[int] | None] = ContextVar("left", default=None)  # how often more; None: as often as wanted


def tell(lines: Sequence[str]) -> None:
    """Prints the lines, in the first of several ranks, unless enough was said: see `at_most`."""
    left = _LEFT.get()
    if os.environ.get("RANK", "0") != "0" or left == [0]:
        return
    if left is not None:
        left[0] -= 1
    for line in lines:
        print(line, file=sys.stderr)


@cache
def once(line: str) -> None:
    """Prints a line, in the first of several ranks, the first time that a process says it."""
    if os.environ.get("RANK", "0") == "0":
        print(line, file=sys.stderr)


@contextmanager
def at_most(times: int) -> Iterator[None]:
    """Within it `tell` speaks so often, or less if that holds of what is around it: a command that trains ten times
    says once what was loaded."""
    around = _LEFT.get()
    before = _LEFT.set(around if around is not None and around[0] <= times else [times])
    try:
        yield
    finally:
        _LEFT.reset(before)
