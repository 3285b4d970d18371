"""What the numbers of labels and logits stand for: lists of class names, and what to do where two of them meet."""

from __future__ import annotations

from collections.abc import Sequence

from ssl_lab.errors import UsageError

Names = tuple[str, ...]
"""The name of class 0, of class 1, ..."""


def places(theirs: Sequence[str], ours: Sequence[str]) -> list[int] | None:
    """Where each of our classes stands in their list; None unless both have the same names, each once."""
    if sorted(theirs) != sorted(ours) or len({*ours}) < len(ours):
        return None
    return [list(theirs).index(name) for name in ours]


def order_of(theirs: Sequence[str], ours: Sequence[str], what: str) -> list[int]:
    """`places`, or else a UsageError with both lists; `what` is what has theirs."""
    order = places(theirs, ours)
    if order is None:
        given, wanted = apart(theirs, ours)
        raise UsageError(f"{what} tells other classes apart: {given}; expected {wanted}. Give one of these classes, or "
                         "rename the classes where they are the same")
    return order


def shown(names: Sequence[str] | None, most: int = 10) -> str:
    """The names in a line, of many the first; or that there are none."""
    if names is None:
        return "classes without names"
    return ", ".join(names[:most]) + (f", ... ({len(names)} in all)" if len(names) > most else "")


def apart(theirs: Sequence[str], ours: Sequence[str]) -> tuple[str, str]:
    """Two lists that differ, each in a line; of long ones what the other does not have, if that is what differs."""
    if max(len(theirs), len(ours)) <= 10 or {*theirs} == {*ours}:
        return shown(theirs), shown(ours)
    alone = [[name for name in mine if name not in {*others}] for mine, others in ((theirs, ours), (ours, theirs))]
    return tuple(f"{shown(some) or 'nothing'} beside {len(mine) - len(some)} others"  # type: ignore[return-value]
                 for some, mine in zip(alone, (theirs, ours), strict=True))
