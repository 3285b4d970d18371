"""What a run gave."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ssl_lab.methods import Method

SELECTION = "weights of the last step, averaged by the method's EMA; fixed before the run"


@dataclass(frozen=True)
class Result:
    """What a run gave. summary: what summary.json holds, which has null for NaN. out: the run's folder."""

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
        labels = f" with {self.summary['labels']} labels" if self.method.views.labeled else ""
        return (f"{self.summary['method']} on {self.summary['data']}{labels}: "
                f"{accuracies}  ({self.summary['steps']} steps, {self.summary['seconds']:.0f} s; {self.out})")
