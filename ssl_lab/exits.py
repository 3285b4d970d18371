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
SPINS = "1000"
"""How often a thread of torch's looks whether the others are ready before it sleeps. Without end, as libgomp has it,
it is in the way of whatever shares its core; not at all, and a run that is alone waits for threads to wake.

Milliseconds of a step of rapid_32_64_128 on two cores, means of medians: alone 157 with none (seven runs), 122 with
1,000 (ten), 130 with 3,000 (four); 197, 226 and 271 with another such run beside it, 272, 325 and 396 with two. On
another day, when it took 138 and 188 with none: 99 without end, and 462 beside another."""


def exit_with_status(action: Callable[[], object]) -> None:
    """Runs `action`; what goes wrong becomes one line on stderr and the exit status."""
    if "OMP_WAIT_POLICY" not in os.environ:  # both are read when torch is imported, which is not yet
        os.environ["OMP_WAIT_POLICY"] = "passive"
        os.environ.setdefault("GOMP_SPINCOUNT", SPINS)  # wins over a policy
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
