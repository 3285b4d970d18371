"""What a run was made with and what it gave."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ssl_lab.methods import Method
from ssl_lab.nets import Ema
from ssl_lab.schedule import Schedule


@dataclass(frozen=True)
class Result:
    """What a run gave.

    Attributes:
        summary: what summary.json holds, which has null for NaN.
        out: the run's folder.
        method: as it was trained.

    >>> pool = sl.load("digits").split(labels=10)
    >>> method = sl.Supervised(sl.net("tiny_4", classes=pool.class_names, style=pool.style))
    >>> result = sl.Trainer(steps=2, out="run", device="cpu", callbacks=[]).fit(method, pool, labeled=4, unlabeled=0)
    >>> result.summary["steps"], 0 <= result.test_accuracy <= 1
    (2, True)
    """

    summary: Mapping[str, Any]
    method: Method
    out: Path

    @property
    def test_accuracy(self) -> float:
        """Share of correct predictions on the test split, in [0, 1]; NaN without one."""
        value = self.summary["test_accuracy"]
        return float("nan") if value is None else float(value)

    def __str__(self) -> str:
        accuracies = "  ".join(f"{split} {self.summary[f'{split}_accuracy']:.2%}" for split in ("valid", "test")
                               if self.summary[f"{split}_accuracy"] is not None)
        page = self.out / "report.html"
        labels = f" with {self.summary['labels']} labels" if self.method.views.labeled else ""
        return (f"{self.summary['method']} on {self.summary['data']}{labels}: "
                f"{accuracies}  ({self.summary['steps']} steps, {self.summary['seconds']:.0f} s; "
                f"{page if page.exists() else self.out})")


def arguments(method: Method) -> dict[str, Any]:
    """The numbers, words and schedules that a method, and the averages and methods inside it, were made with."""
    parts = [(name, part) for name, part in method.named_modules() if isinstance(part, Method | Ema)]
    found = {".".join(filter(None, ("method", name, key))): value for name, part in parts
             for key, value in vars(part).items()
             if key != "training" and not key.startswith("_") and isinstance(value, int | float | str | Schedule)}
    return {name: value if type(value) in (bool, int, float, str) else str(value) for name, value in found.items()}
