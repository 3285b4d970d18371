"""What a person should be told of a pool when a run begins."""

from __future__ import annotations

import numpy as np

from ssl_lab.data.pool import Pool
from ssl_lab.data.summary import summary
from ssl_lab.notes import tell

NAMED = 5  # classes, where there are many to name


def announce(pool: Pool) -> None:
    """Says on stderr what was loaded, and the remarks on it: see `notes.tell`.

    Args:
        pool: as `load` gives it, split or whole.

    >>> sl.announce(sl.load("digits").split(labels=10))  # a line on stderr
    """
    what, *others = loaded(pool)
    tell([what, *(f"note: {remark}" for remark in others)])


def loaded(pool: Pool) -> list[str]:
    """What was loaded, in a line, and the remarks on it."""
    return [summary(pool), *remarks(pool)]


def remarks(pool: Pool) -> tuple[str, ...]:
    """The pool's notes, and which classes the labels that there are now leave out; a line each."""
    without = np.setdiff1d(np.arange(pool.classes), pool.labels[pool.labeled])
    if not 0 < len(without) < pool.classes:  # without any label, no class lacks more than another
        return pool.notes
    named = ", ".join(repr(pool.class_names[label]) for label in without[:NAMED]) + ", ..." * (len(without) > NAMED)
    return (*pool.notes, f"{len(without)} of the {pool.classes} classes have no labeled train image: {named}"
            + "; --balance covered draws one of each first" * (pool.balance == "natural"))
