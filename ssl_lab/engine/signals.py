"""SIGINT, SIGTERM, SIGUSR1 and SIGHUP as a request to stop after the step at hand; a second one stops at once."""

from __future__ import annotations

import signal
import threading
import time
from types import FrameType, TracebackType
from typing import Any

from ssl_lab.processes import hang_up, stopping_signals

SAME = 0.5  # seconds within which a signal is the first one again: launchers pass on what the process got itself


class StopRequest:
    """While entered, the first signal sets `asked`; one that comes later raises KeyboardInterrupt.

    Outside the main thread, where Python delivers no signals, it does nothing.
    """

    def __init__(self) -> None:
        self.asked = False
        self._first = 0.0
        self._before: dict[int, Any] = {}

    def __enter__(self) -> StopRequest:
        if threading.current_thread() is threading.main_thread():
            for number in stopping_signals():
                self._before[number] = signal.signal(number, self._handle)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None,
                 trace: TracebackType | None) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if number == getattr(signal, "SIGHUP", None):
            hang_up()  # before the next line of progress is an error
        now = time.monotonic()
        if not self.asked:
            self.asked, self._first = True, now
        elif now - self._first > SAME:
            raise KeyboardInterrupt
