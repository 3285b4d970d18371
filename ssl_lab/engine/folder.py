"""A run's folder: config.yaml, split.json, metrics.jsonl, checkpoint.pt, model.safetensors, summary.json."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import yaml
from safetensors.torch import save as safetensors_bytes
from torch import nn

from ssl_lab.engine import checkpoint
from ssl_lab.errors import NonFiniteLossError, UsageError
from ssl_lab.files import cannot_write, sync, write_atomically, write_text

MAY_CHANGE = {"out", "resume", "data_dir", "device", "minutes", "tensorboard"}  # what a resumed run may set anew


class RunFolder:
    """Writes the files of one run. `writes` is False on all ranks but the first: then nothing is written."""

    def __init__(self, path: Path, writes: bool = True) -> None:
        self.path, self.writes = path, writes
        self.checkpoint = path / "checkpoint.pt"
        if not writes:
            return
        write_text(path / ".writable", "")  # better to fail now than after an hour
        (path / ".writable").unlink()

    def begin(self, config: Mapping[str, Any], manifest: Mapping[str, Any], after_step: int) -> None:
        """Writes config.yaml and split.json; drops the metrics of steps beyond `after_step`, which will be run again.

        With after_step = 0, a new run, the files of an earlier one in this folder are removed.
        """
        if not self.writes:
            return
        if not after_step:  # what an earlier run left here must not pass for this one's
            for path in (self.checkpoint, self.metrics, self.path / "model.safetensors", self.path / "summary.json"):
                path.unlink(missing_ok=True)
        write_text(self.path / "config.yaml", yaml.safe_dump(dict(config), sort_keys=False))
        write_text(self.path / "split.json", json.dumps(manifest) + "\n")
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
            try:
                with self.metrics.open("a") as file:
                    file.write(json.dumps(clean) + "\n")
            except OSError as error:
                raise cannot_write(self.metrics, error) from error

    def save(self, state: dict[str, Any]) -> None:
        """Replaces checkpoint.pt, after what it covers in metrics.jsonl is on disk."""
        if self.writes:
            sync(self.metrics)
            checkpoint.save(self.checkpoint, state)

    @contextmanager
    def naming_last_checkpoint(self) -> Iterator[None]:
        """Adds to a NonFiniteLossError where the run can be taken up again."""
        try:
            yield
        except NonFiniteLossError as error:
            saved = self.checkpoint.exists()
            good = f"the last good checkpoint is {self.checkpoint}" if saved else "no checkpoint had been saved yet"
            raise NonFiniteLossError(f"{error}; {good}; a lower learning rate or --precision fp32 may help") from None

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
