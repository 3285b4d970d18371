"""A run's folder: config.yaml, metrics.jsonl, checkpoint.pt, model.safetensors, summary.json."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml
from safetensors.torch import save as safetensors_bytes
from torch import nn

from ssl_lab.engine import checkpoint
from ssl_lab.errors import UsageError
from ssl_lab.files import write_atomically, write_text

MAY_CHANGE = {"out", "resume", "data_dir", "device", "minutes"}  # what a resumed run may set anew


class RunFolder:
    """Writes the files of one run. `writes` is False on all ranks but the first: then nothing is written."""

    def __init__(self, path: Path, writes: bool = True) -> None:
        self.path, self.writes = path, writes
        self.checkpoint = path / "checkpoint.pt"
        if not writes:
            return
        write_text(path / ".writable", "")  # better to fail now than after an hour
        (path / ".writable").unlink()

    def begin(self, config: Mapping[str, Any], after_step: int) -> None:
        """Writes config.yaml; drops the metrics of steps beyond `after_step`, which will be run again."""
        if not self.writes:
            return
        write_text(self.path / "config.yaml", yaml.safe_dump(dict(config), sort_keys=False))
        kept = [line for line in self._metric_lines() if line["step"] <= after_step]
        write_text(self.metrics, "".join(json.dumps(line) + "\n" for line in kept))

    @property
    def metrics(self) -> Path:
        return self.path / "metrics.jsonl"

    def _metric_lines(self) -> list[dict[str, Any]]:
        lines = []
        for line in self.metrics.read_text().splitlines() if self.metrics.exists() else []:
            try:
                lines.append(json.loads(line))
            except json.JSONDecodeError:
                break  # torn by a kill in the middle of a write: its step comes after the checkpoint
        return lines

    def append(self, row: Mapping[str, float]) -> None:
        """Adds a row to metrics.jsonl; a value that is not finite is written as null."""
        if self.writes:
            clean = {key: value if math.isfinite(value) else None for key, value in row.items()}
            with self.metrics.open("a") as file:
                file.write(json.dumps(clean) + "\n")

    def save(self, state: dict[str, Any]) -> None:
        """Replaces checkpoint.pt, after what it covers in metrics.jsonl is on disk."""
        if self.writes:
            if self.metrics.exists():
                with self.metrics.open("a") as file:
                    os.fsync(file.fileno())
            checkpoint.save(self.checkpoint, state)

    def finish(self, net: nn.Module, summary: Mapping[str, Any]) -> None:
        """Writes model.safetensors (the reported weights) and summary.json."""
        if self.writes:
            weights = {name: tensor.detach().cpu().contiguous() for name, tensor in net.state_dict().items()}
            write_atomically(self.path / "model.safetensors", lambda file: file.write(safetensors_bytes(weights)))
            write_text(self.path / "summary.json", json.dumps(summary, indent=2) + "\n")


def check_same(before: Mapping[str, Any], now: Mapping[str, Any], where: Path) -> None:
    """Raises UsageError naming each setting of a resumed run that differs from when it was started."""
    keys = [key for key in {**before, **now} if key not in MAY_CHANGE and before.get(key) != now.get(key)]
    if keys:
        changes = ", ".join(f"{key}: {before.get(key)!r} -> {now.get(key)!r}" for key in keys)
        raise UsageError(f"{where} was started with other settings ({changes}); "
                         "resume with the same ones, or start afresh with another --out")
