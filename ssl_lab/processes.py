"""What a process does when the world around it ends: its parent, its terminal, the reader of its output, its memory.

Imports no torch.
"""

from __future__ import annotations

import contextlib
import errno
import os
import re
import select
import signal
import sys
import threading
import time
import traceback
from types import TracebackType

PARENT = "SSL_LAB_PARENT"
"""In the environment of a process that is to end with the one of this number, which started it."""
STOPPING = [getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGUSR1", "SIGHUP") if hasattr(signal, name)]
"""Ctrl-C; what schedulers send; what SLURM is told to send before the time limit (`--signal=USR1@60`); what a terminal
that is closed sends."""
NO_MEMORY = ("can't allocate memory", "not enough memory", "out of memory", "STATUS_ALLOC_FAILED")
"""What torch says in errors that may be plain RuntimeErrors."""


def stopping_signals() -> list[signal.Signals]:
    """Those of `STOPPING` that mean this process; not SIGHUP where it is ignored, as `nohup` has it."""
    return [number for number in STOPPING
            if number.name != "SIGHUP" or signal.getsignal(number) is not signal.SIG_IGN]


def end_with(parent: int, seconds: float = 0.5) -> None:
    """From now on this process gets SIGTERM when its parent is gone, however that ended: a run is saved then.

    A thread looks after the parent, because no system but Linux tells a child of a SIGKILL.
    """
    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(seconds)
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=watch, name="parent", daemon=True).start()


def end_with_parent_if_told() -> None:
    """`end_with` the process that $SSL_LAB_PARENT names. What this process starts is not told."""
    parent = os.environ.pop(PARENT, "")
    if parent.isdecimal():
        end_with(int(parent))


def hang_up() -> None:
    """Of stdout and stderr, what leads to a closed terminal or to a reader that is gone leads nowhere from now on."""
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError, AttributeError):  # of no file, as tests and notebooks have them
            look = select.poll()
            look.register(stream.fileno(), select.POLLOUT)
            if any(found & (select.POLLERR | select.POLLHUP) for _, found in look.poll(0)):
                with open(os.devnull, "w") as nowhere:
                    os.dup2(nowhere.fileno(), stream.fileno())


def quiet_imports() -> None:
    """A Ctrl-C that arrives while modules are imported ends the process with a word in place of a traceback."""
    before = sys.excepthook

    def hook(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
        modules = [frame for frame, _ in traceback.walk_tb(trace) if frame.f_code.co_name == "<module>"]
        if issubclass(kind, KeyboardInterrupt) and len(modules) > 1:  # the program, and what it imports
            print("interrupted", file=sys.stderr)
        else:
            before(kind, error, trace)

    sys.excepthook = hook


def out_of_memory(error: BaseException, where: str = "", side: int | None = None) -> str | None:
    """What to say and to do if `error` is a lack of memory, of the host or of a GPU, in one line; else None.

    where: in what it happened. side: of the images, in pixels; None if it is not known.
    """
    text = str(error)
    lacks = (isinstance(error, MemoryError) or (isinstance(error, OSError) and error.errno == errno.ENOMEM) or (
        isinstance(error, RuntimeError)
        and (type(error).__name__ == "OutOfMemoryError" or any(words in text for words in NO_MEMORY))))
    if not lacks:
        return None
    asked = re.search(r"[Tt]ried to allocate ([\d.]+ ?\w+)|[Uu]nable to allocate ([\d.]+ ?\w+)", text)
    size = f", when {next(filter(None, asked.groups()))} more were asked for" if asked else ""
    smaller = "" if side is not None and side <= 64 else ", or a smaller --image-size"
    return (f"out of memory{where}{size}. Give --micro-batches 2 (or 4, 8), fewer --unlabeled images per "
            f"step{smaller}, or a smaller --net")
