"""What goes wrong becomes one line and an exit status: 0; 2 for bad usage; 75 where another process has the run's
folder; 130 after Ctrl-C, SIGTERM or a closed terminal; 1 for a run that failed. Imports no torch."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable
from types import FrameType
from typing import NoReturn

from ssl_lab.errors import BusyError, NonFiniteLossError, RunFailedError, UsageError
from ssl_lab.notes import at_most
from ssl_lab.processes import end_with_parent_if_told, hang_up, out_of_memory, stopping_signals

BUSY = 75  # as in sysexits.h: try again later


def exit_with_status(action: Callable[[], object]) -> None:
    """Runs `action`; what goes wrong becomes one line on stderr and the exit status."""
    # Threads that spin while they wait starve each other where cores are shared: a short run of a small net was
    # seen to take 7 times as long beside other processes. Read when torch is imported, which is not yet.
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")
    for number in stopping_signals():  # until training handles them: as Ctrl-C
        if number.name != "SIGINT" or signal.getsignal(number) is signal.default_int_handler:  # else it is ignored
            signal.signal(number, _interrupt)
    _interrupts.clear()
    end_with_parent_if_told()
    try:
        try:
            message, status = _outcome(action)
        finally:  # also of --help, which ends by SystemExit
            sys.stdout.flush()
        if message:
            print(message, file=sys.stderr, flush=True)
    except BrokenPipeError:  # the reader, e.g. `head`, has seen enough
        hang_up()
        status = 0
    if status:
        sys.exit(status)


_interrupts: list[int] = []  # signals that have arrived before training


def _interrupt(number: int, frame: FrameType | None) -> NoReturn:
    if number == getattr(signal, "SIGHUP", None):
        hang_up()
    _interrupts.append(number)
    raise KeyboardInterrupt


def _outcome(action: Callable[[], object]) -> tuple[str, int]:
    """Runs `action`: what to say of how it ended, if anything, and the exit status."""
    try:
        with at_most(1):
            action()
    except BusyError as error:
        return f"error: {error}", BUSY
    except UsageError as error:
        return f"error: {error}", 2
    except KeyboardInterrupt as error:
        if isinstance(error.__context__, RunFailedError):  # torchrun ends a rank that is about to say why it failed
            return f"error: {error.__context__}", 1
        return str(error) or "interrupted", 130
    except BrokenPipeError:
        raise
    except (NonFiniteLossError, RunFailedError) as error:
        return f"error: {error}", 1
    except (MemoryError, OSError, RuntimeError) as error:
        if lacking := out_of_memory(error):
            return f"error: {lacking}", 1
        if _interrupts:
            return "interrupted", 130
        if not isinstance(error, OSError):
            raise
        return f"error: {error}", 1
    except Exception:
        if _interrupts:  # what was cut off in the middle of its import fails in ways of its own
            return "interrupted", 130
        raise
    return "", 0
