"""Callbacks: what watches a run. Progress in the terminal, what comes after it; see also `trackers`."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Self

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn

from ssl_lab.afterwards import finished
from ssl_lab.data import Pool

SHOWN = {"loss": "loss {:.3f}", "mask_rate": "mask {:.0%}", "pseudo_label_accuracy": "pseudo {:.1%}",
         "valid_accuracy": "valid {:.1%}", "test_accuracy": "test {:.1%}"}


class Callback:
    """Entered when training starts (or resumes) and left when it ends, however it ends.

    >>> class Steps(sl.Callback):
    ...     def step(self, done):
    ...         print("step", done)
    >>> pool = sl.load("digits").split(labels=10)
    >>> method = sl.Supervised(sl.net("tiny_4", classes=pool.class_names, style=pool.style))
    >>> result = sl.Trainer(steps=2, out="run", device="cpu", callbacks=[Steps()]).fit(method, pool, 4, 0)
    step 1
    step 2
    """

    def start(self, name: str, out: Path, step: int, steps: int) -> None:
        """Training begins at `step` of `steps`."""

    def step(self, done: int) -> None:
        """`done` steps are done."""

    def row(self, row: Mapping[str, float]) -> None:
        """A row was added to the metrics."""

    def finish(self, out: Path, pool: Pool) -> None:
        """The run is done, and its files are in the folder `out`."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None,
                 trace: TracebackType | None) -> None: ...


class Together(Callback):
    """Several callbacks as one; those that have started are left when it is left."""

    def __init__(self, callbacks: Sequence[Callback]) -> None:
        self.callbacks = callbacks
        self._started = ExitStack()

    def start(self, name: str, out: Path, step: int, steps: int) -> None:
        for callback in self.callbacks:
            callback.start(name, out, step, steps)
            self._started.enter_context(callback)

    def step(self, done: int) -> None:
        for callback in self.callbacks:
            callback.step(done)

    def row(self, row: Mapping[str, float]) -> None:
        for callback in self.callbacks:
            callback.row(row)

    def finish(self, out: Path, pool: Pool) -> None:
        for callback in self.callbacks:
            callback.finish(out, pool)

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None,
                 trace: TracebackType | None) -> None:
        self._started.__exit__(kind, error, trace)


class ShowProgress(Callback):
    """A live bar with time left where there is a terminal; else a line per evaluation.

    Args:
        console: where it is printed; None: standard output.

    >>> trainer = sl.Trainer(steps=100, callbacks=[sl.ShowProgress()])  # and no report, which comes by default
    >>> len(trainer.callbacks)
    1
    """

    def __init__(self, console: Console | None = None) -> None:
        self.console = console or Console(file=sys.stderr)
        self._live = self.console.is_terminal
        self._numbers: dict[str, str] = {}

    def start(self, name: str, out: Path, step: int, steps: int) -> None:
        self._steps = steps
        self._progress = Progress(
            TextColumn("[bold]{task.description}"), BarColumn(bar_width=None), TaskProgressColumn(),
            TextColumn("{task.fields[numbers]}"), TimeRemainingColumn(),
            console=self.console, transient=True, disable=not self._live)
        self._task = self._progress.add_task(name, total=steps, completed=step, numbers="")
        self._name = name
        self._progress.start()

    def step(self, done: int) -> None:
        if self._live:
            self._progress.update(self._task, completed=done)

    def row(self, row: Mapping[str, float]) -> None:
        self._numbers |= {key: text.format(row[key]) for key, text in SHOWN.items() if key in row}
        if "mask_rate" in row and "pseudo_label_accuracy" not in row:  # not one of them has a known truth, or none is
            self._numbers["pseudo_label_accuracy"] = "pseudo -"
        numbers = "  ".join(self._numbers[key] for key in SHOWN if key in self._numbers)
        if self._live:
            self._progress.update(self._task, numbers=numbers)
        elif any(key.endswith("_accuracy_plain") for key in row):
            self.console.print(f"{self._name} step {row['step']:.0f}/{self._steps}  {numbers}  "
                               f"{row['seconds']:.0f} s", highlight=False, soft_wrap=True)

    def __exit__(self, *error: object) -> None:
        self._progress.stop()


class Afterwards(Callback):
    """Does what is done with every finished run, see `ssl_lab.afterwards`."""

    def finish(self, out: Path, pool: Pool) -> None:
        finished(out, pool)
