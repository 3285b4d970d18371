"""What a finished run left in its folder, as its report needs it: numbers alone, so that the data may be gone."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from ssl_lab.calibration import Calibration
from ssl_lab.data import IntArray, Pool
from ssl_lab.data.inventory import change, inventory, read_inventory
from ssl_lab.engine.card import Card
from ssl_lab.engine.evaluate import Predictions
from ssl_lab.errors import UsageError
from ssl_lab.report.metrics import Row, read_metrics


@dataclass(frozen=True)
class StoredRun:
    """A finished run. summary, settings, split: what summary.json, config.yaml and split.json hold. rows: its metrics,
    none where nothing was trained step by step. predicted: of the splits with images of known class. class_names: of
    the logits; empty where no classifier was trained."""

    folder: Path
    summary: Mapping[str, Any]
    settings: Mapping[str, Any]
    split: Mapping[str, Any]
    rows: Sequence[Row]
    predicted: Mapping[str, Predictions]
    class_names: tuple[str, ...]
    calibration: Calibration

    @classmethod
    def read(cls, folder: Path) -> StoredRun:
        """The run in this folder. UsageError if there is none, it is not finished, or a file of it is damaged."""
        if not (folder / "summary.json").is_file():
            if (folder / "checkpoint.pt").exists():
                raise UsageError(f"the run in {folder} is not finished: go on with it first, by its command and "
                                 "--resume auto")
            raise UsageError(f"{folder} is no folder of a finished run: there is no summary.json in it. Give the --out "
                             "of one that has ended")
        card = Card.read(folder)
        settings, metrics = folder / "config.yaml", folder / "metrics.jsonl"
        try:
            summary = json.loads((folder / "summary.json").read_text(encoding="utf-8"))
            config = yaml.safe_load(settings.read_text(encoding="utf-8")) if settings.exists() else None
            split = json.loads((folder / "split.json").read_text()) if (folder / "split.json").exists() else {}
            predicted = _predictions(folder / "predictions.npz")
        except Exception as error:  # damaged arrays raise nearly anything
            raise UsageError(f"a file of the run in {folder} cannot be read: {' '.join(str(error).split())}. Restore "
                             "it; the run's command with --resume auto writes all but the checkpoint again") from error
        return cls(folder, summary, config or {}, split, read_metrics(metrics) if metrics.exists() else [], predicted,
                   card.class_names, card.calibration)

    def rows_in(self, pool: Pool, rows: IntArray) -> IntArray:
        """int64: the rows of the pool that show the same images as `rows` of the run's, -1 for those that are gone.

        UsageError where images have another size now, so that none can be held together.
        """
        before, now = read_inventory(self.folder), inventory(pool)
        if before is None:
            return np.where(rows < len(pool), rows, -1)
        if before.shape != now.shape:
            raise UsageError(f"images are of {now.shape[2]}x{now.shape[1]} px now, and were of "
                             f"{before.shape[2]}x{before.shape[1]} px in the run")
        return change(before, now).rows[rows]


def _predictions(path: Path) -> dict[str, Predictions]:
    """Those of valid and test, as far as they are there."""
    if not path.exists():
        return {}
    with np.load(path, allow_pickle=False) as file:
        return {split: Predictions(*(file[f"{split}_{name}"] for name in Predictions._fields))
                for split in ("valid", "test") if len(file.get(f"{split}_truth", ()))}
