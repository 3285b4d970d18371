"""The errors that a person can mend: each says what was given, what was expected and what to do."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class UsageError(ValueError):
    """Bad input. Recipes and the command line print it as one line and exit with status 2.

    >>> try:
    ...     sl.load("no/such/folder")
    ... except sl.UsageError as error:
    ...     print(str(error).partition(";")[0])
    there is no file or folder no/such/folder
    """


class BusyError(UsageError):
    """Another process writes where this one would; it can be tried again later."""


class NonFiniteLossError(RuntimeError):
    """The training loss became NaN or infinite; the message names the step, the terms and the checkpoint."""


class RunFailedError(RuntimeError):
    """A run in a process of its own ended with an error; the message has its last line and names its log."""


class Interrupted(KeyboardInterrupt):
    """Ctrl-C or SIGTERM arrived; the step was finished and a checkpoint saved. Exit status 130."""


def unknown(kind: str, given: str, known: Iterable[str], hint: str = "") -> UsageError:
    """The error for a name that does not exist: lists the nearest known names, or all of a short list."""
    names = sorted(known)
    near = difflib.get_close_matches(given, names, n=3, cutoff=0.5)
    if near:
        tail = f"Did you mean {' or '.join(near)}?"
    elif len(names) <= 20:
        tail = f"Known: {', '.join(names)}."
    else:
        tail = f"There are {len(names)} known names."
    return UsageError(" ".join(filter(None, [f"unknown {kind} {given!r}. {tail}", hint])))
