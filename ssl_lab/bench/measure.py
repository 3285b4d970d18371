"""What the benchmarks share: laps in turn, their spread, where time goes, FLOPs and peak memory."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

from ssl_lab.engine import Runtime
from ssl_lab.errors import UsageError
from ssl_lab.machine import return_freed_memory

T = TypeVar("T")


@dataclass(frozen=True)
class Spread:
    """Median, least and most of some numbers."""

    median: float
    least: float
    most: float

    @classmethod
    def of(cls, numbers: Sequence[float]) -> Spread:
        return cls(statistics.median(numbers), min(numbers), max(numbers))


def in_turn(actions: Mapping[str, Callable[[], T]], repeats: int, warm_up: int = 1) -> dict[str, list[T]]:
    """What each action returned, `repeats` times; they take turns, because a machine drifts from minute to minute.

    warm_up: rounds before, whose results are dropped.
    """
    if repeats < 1:
        raise UsageError(f"repeats={repeats}: expected 1 or more")
    results: dict[str, list[T]] = {name: [] for name in actions}
    for _ in range(warm_up + repeats):
        for name, action in actions.items():
            results[name].append(action())
    return {name: values[warm_up:] for name, values in results.items()}


def waiting(device: torch.device) -> Callable[[], None]:
    """A function that returns when the device has done what it was given."""
    return torch.cuda.synchronize if device.type == "cuda" else lambda: None


def seconds(action: Callable[[], object], wait: Callable[[], None] = lambda: None) -> float:
    """How long it takes."""
    wait()
    begun = time.perf_counter()
    action()
    wait()
    return time.perf_counter() - begun


@dataclass
class Clock:
    """Where the time goes: seconds by part. Time in a part within another one counts for the inner one."""

    wait: Callable[[], None] = lambda: None
    seconds: dict[str, float] = field(default_factory=dict)
    _open: list[str] = field(default_factory=list)
    _since: float = 0.0

    def enter(self, part: str) -> None:
        self._tick()
        self._open.append(part)

    def leave(self) -> None:
        self._tick()
        self._open.pop()

    @contextmanager
    def part(self, name: str) -> Iterator[None]:
        self.enter(name)
        try:
            yield
        finally:
            self.leave()

    def _tick(self) -> None:
        self.wait()
        now = time.perf_counter()
        if self._open:
            part = self._open[-1]
            self.seconds[part] = self.seconds.get(part, 0.0) + now - self._since
        self._since = now


def flops(action: Callable[[], object]) -> int:
    """Floating-point operations of the matrix products and convolutions in it; a multiply-add counts as 2."""
    with torch.compiler.set_stance("force_eager"), _Flops() as counter:
        action()
    total: int = counter.total
    return total


class _Flops(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Counts; torch's FlopCounterMode also follows modules, which fails where a step differentiates twice."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.total = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        count = flop_registry.get(func.overloadpacket)
        if count is None:
            with self:
                parts = func.decompose(*args, **kwargs)
            if parts is not NotImplemented:
                return parts
        out = func(*args, **kwargs)
        if count is not None:
            self.total += int(count(*args, **kwargs, out_val=out))
        return out


def peak_memory(action: Callable[[], object], runtime: Runtime) -> int:
    """The most bytes that were in use meanwhile: of the GPU's memory, or the resident memory of this process.

    Where the system cannot forget earlier peaks of a process (all but Linux), they count too.
    """
    if runtime.device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(runtime.device)
    else:
        return_freed_memory()
        try:
            Path("/proc/self/clear_refs").write_text("5")  # proc(5): resets VmHWM
        except OSError:
            action()
            return runtime.peak_memory_bytes()
    action()
    if runtime.device.type == "cuda":
        return runtime.peak_memory_bytes()
    status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return int(status["VmHWM"].split()[0]) * 1024
