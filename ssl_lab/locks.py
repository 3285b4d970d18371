"""Locks on open files, between processes: they end when the file is closed, however the process ends."""

from __future__ import annotations

import fcntl
import os
from pathlib import Path
from typing import Literal

Lock = Literal["held", "taken", "unknown"]
"""held: by this process now. taken: by another one. unknown: the file system has no locks."""
LOCK = ".lock"
"""The file in a run's folder that the process which trains there holds."""


def lock(handle: int, shared: bool = False, wait: bool = False) -> Lock:
    """Locks the open file for this process, until it is closed.

    shared: beside others that share it, and only kept from those that do not. wait: until it is free; without, it may
    be taken.
    """
    try:
        fcntl.flock(handle, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | (0 if wait else fcntl.LOCK_NB))
    except BlockingIOError:
        return "taken"
    except OSError:
        return "unknown"
    return "held"


def is_taken(folder: Path) -> bool:
    """Whether a process trains in this folder now (see `engine.folder.alone_in`)."""
    try:
        handle = os.open(folder / LOCK, os.O_RDONLY)
    except OSError:
        return False
    try:
        return lock(handle, shared=True) == "taken"
    finally:
        os.close(handle)
