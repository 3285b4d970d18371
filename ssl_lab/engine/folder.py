"""A run's folder: config.yaml, split.json, metrics.jsonl, checkpoint.pt (and the one before it; of a sharded run with a
folder each), model.safetensors, summary.json."""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import yaml
from safetensors.torch import save as safetensors_bytes
from torch import Tensor

from ssl_lab.engine import checkpoint
from ssl_lab.errors import NonFiniteLossError, UsageError
from ssl_lab.files import cannot_write, write_atomically, write_text

MAY_CHANGE = {"out", "resume", "data_dir", "device", "minutes", "tensorboard"}  # what a resumed run may set anew


class RunFolder:
    """Writes the files of one run. `writes` is False on all ranks but the first: then nothing is written.

    rows: the text of metrics.jsonl, which every checkpoint carries too: a damaged one is restored from there. sharded:
    the folder that the last checkpoint names, if it names one.
    """

    def __init__(self, path: Path, writes: bool = True) -> None:
        self.path, self.writes = path, writes
        self.rows, self.sharded = "", None
        self.checkpoint, self.metrics = path / "checkpoint.pt", path / "metrics.jsonl"
        if not writes:
            return
        write_text(path / ".writable", "")  # better to fail now than after an hour
        (path / ".writable").unlink()

    def begin(self, config: Mapping[str, Any], manifest: Mapping[str, Any], after_step: int) -> None:
        """Writes config.yaml and split.json; cuts metrics.jsonl to `rows`, as later steps will be run again.

        With after_step = 0, a new run, the files of an earlier one in this folder are removed.
        """
        if not self.writes:
            return
        for path in (*self.path.glob(".*.tmp"), *self.path.glob("checkpoint.new.pt")):  # a kill in a write left these
            path.unlink()
        if not after_step:  # what an earlier run left here must not pass for this one's
            for path in (checkpoint.previous(self.checkpoint), self.checkpoint, self.metrics,
                         self.path / "model.safetensors", self.path / "summary.json"):
                path.unlink(missing_ok=True)
            checkpoint.keep_only(self.path)
        write_text(self.path / "config.yaml", yaml.safe_dump(dict(config), sort_keys=False))
        write_text(self.path / "split.json", json.dumps(manifest) + "\n")
        found = self.metrics.read_bytes() if self.metrics.exists() else b""
        if not found.startswith(self.rows.encode()) or found[-1:] not in (b"", b"\n"):
            print(f"note: {self.metrics} is torn or damaged; its rows up to step {after_step} are taken from the "
                  "checkpoint, later steps are run again", file=sys.stderr)
        write_text(self.metrics, self.rows)

    def append(self, row: Mapping[str, float]) -> None:
        """Adds a row to metrics.jsonl; a value that is not finite is written as null."""
        if self.writes:
            clean = {key: value if math.isfinite(value) else None for key, value in row.items()}
            line = json.dumps(clean) + "\n"
            self.rows += line
            try:
                with self.metrics.open("a") as file:
                    file.write(line)
            except OSError as error:
                raise cannot_write(self.metrics, error) from error

    def save(self, state: dict[str, Any]) -> None:
        """Replaces checkpoint.pt; see `checkpoint.save`."""
        if self.writes:
            checkpoint.save(self.checkpoint, {**state, "rows": self.rows})
            before, self.sharded = self.sharded, state.get("sharded")
            checkpoint.keep_only(self.path, before, self.sharded)

    @contextmanager
    def naming_last_checkpoint(self) -> Iterator[None]:
        """Adds to a NonFiniteLossError where the run can be taken up again."""
        try:
            yield
        except NonFiniteLossError as error:
            saved = self.checkpoint.exists()
            good = f"the last good checkpoint is {self.checkpoint}" if saved else "no checkpoint had been saved yet"
            raise NonFiniteLossError(f"{error}; {good}; a lower learning rate or --precision fp32 may help") from None

    def finish(self, weights: dict[str, Tensor], summary: Mapping[str, Any]) -> None:
        """Writes model.safetensors (the reported weights) and summary.json."""
        if self.writes:
            write_atomically(self.path / "model.safetensors", lambda file: file.write(safetensors_bytes(weights)))
            write_text(self.path / "summary.json", json.dumps(summary, indent=2) + "\n")


def check_same(before: Mapping[str, Any], now: Mapping[str, Any], where: Path) -> None:
    """Raises UsageError naming each setting of a resumed run that differs from when it was started."""
    keys = [key for key in {**before, **now} if key not in MAY_CHANGE and before.get(key) != now.get(key)]
    if keys:
        changes = ", ".join(f"{key}: {before.get(key)!r} -> {now.get(key)!r}" for key in keys)
        raise UsageError(f"{where} was started with other settings ({changes}); "
                         "resume with the same ones, or start afresh with another --out")
