"""Time and peak memory of one call."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple, TypeVar

T = TypeVar("T")


class Cost(NamedTuple):
    """seconds: wall clock. cpu: seconds of the processor, of all threads. resident: the peak of the process's resident
    memory, in bytes; memory: how far that is above where it was when the call began. None where the system does not
    tell (only Linux does)."""

    seconds: float
    cpu: float
    memory: int | None
    resident: int | None


def measured(call: Callable[[], T]) -> tuple[T, Cost]:
    """What the call returns, and what it cost."""
    before = _bytes("VmRSS") if _reset_peak() else None
    start, cpu = time.perf_counter(), time.process_time()
    result = call()
    seconds, cpu = time.perf_counter() - start, time.process_time() - cpu
    peak = None if before is None else _bytes("VmHWM")
    return result, Cost(seconds, cpu, None if before is None or peak is None else max(0, peak - before), peak)


def _reset_peak() -> bool:
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        return False
    return True


def _bytes(key: str) -> int | None:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(f"{key}:"):
            return 1024 * int(line.split()[1])
    return None
