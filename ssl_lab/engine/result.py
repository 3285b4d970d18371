"""What a run was made with and what it gave."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ssl_lab.data import Pool
from ssl_lab.data.remarks import loaded
from ssl_lab.engine.runtime import Runtime
from ssl_lab.methods import Method
from ssl_lab.nets import Ema
from ssl_lab.schedule import Schedule

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
        page = self.out / "report.html"
        labels = f" with {self.summary['labels']} labels" if self.method.views.labeled else ""
        return (f"{self.summary['method']} on {self.summary['data']}{labels}: "
                f"{accuracies}  ({self.summary['steps']} steps, {self.summary['seconds']:.0f} s; "
                f"{page if page.exists() else self.out})")


def summary_of(method: str, techniques: Sequence[str], pool: Pool, runtime: Runtime, measured: Mapping[str, float],
               split: str, class_names: Sequence[str], seed: int, steps: int, seconds: float, views: str,
               images: int) -> dict[str, Any]:
    """What summary.json holds: what a run was, what it took, and what was measured at its end. views: what a person is
    told of them."""
    nothing = dict.fromkeys(("valid_accuracy", "valid_accuracy_plain", "test_accuracy", "test_accuracy_plain"))
    with_them = {"techniques": list(techniques)} if techniques else {}
    return {"method": method, **with_them, "data": pool.name, "labels": len(pool.labeled),
            "valid_images": len(pool.valid), "seed": seed, "steps": steps,
            "seconds": round(seconds, 2), "images_per_second": round(images / seconds, 1),
            "peak_memory_bytes": runtime.peak_memory_bytes(), **nothing, **measured,
            "selection": SELECTION, "precision": runtime.precision,
            "device": str(runtime.device), "ranks": runtime.world, "split": split,
            "class_names": list(class_names), "loaded": [*loaded(pool), views]}


def arguments(method: Method) -> dict[str, Any]:
    """The numbers, words and schedules that a method, and the averages and methods inside it, were made with."""
    parts = [(name, part) for name, part in method.named_modules() if isinstance(part, Method | Ema)]
    found = {".".join(filter(None, ("method", name, key))): value for name, part in parts
             for key, value in vars(part).items()
             if key != "training" and not key.startswith("_") and isinstance(value, int | float | str | Schedule)}
    return {name: value if type(value) in (bool, int, float, str) else str(value) for name, value in found.items()}
