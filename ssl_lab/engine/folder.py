"""A run's folder: config.yaml, split.json, metrics.jsonl, checkpoint.pt (and the one before it; of a sharded run with a
folder each), model.safetensors, model.json, predictions.npz, summary.json, report.html (see `ssl_lab.report.run`); and
track.json where a tracker shows it."""

from __future__ import annotations

import json
import math
import os
import shutil
import sys
from collections.abc import Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from safetensors.torch import save as safetensors_bytes
from torch import Tensor
from torch.utils._pytree import tree_map_only

from ssl_lab.data import Pool
from ssl_lab.data.inventory import difference, inventory, read_inventory
from ssl_lab.engine import checkpoint
from ssl_lab.engine.card import Card
from ssl_lab.engine.evaluate import Predictions
from ssl_lab.errors import BusyError, NonFiniteLossError, UsageError
from ssl_lab.files import cannot_write, make_folder, write_atomically, write_text
from ssl_lab.locks import LOCK, lock
from ssl_lab.nets.stored import metadata

FINISHED = ("model.safetensors", "model.json", "predictions.npz", "summary.json", "report.html")  # of a run that ended
TRACKED = "track.json"  # the ids that trackers have given the run
LATEST = Path("runs/latest")  # the folder of a run that was given none
MAY_CHANGE = {"out", "resume", "data_dir", "remote_gb", "device", "minutes", "track", "calibrate",  # by a resumed run
              "data", "image_size", "split_file"}  # these because images and split are held together themselves


@contextmanager
def alone_in(folder: Path) -> Iterator[None]:
    """Within it no other process runs in this folder. BusyError if one does, UsageError if it cannot be written to.

    However the process ends, the lock ends with it; a file that is left behind locks nothing.
    """
    path = folder / LOCK
    try:
        make_folder(folder)
        handle = os.open(path, os.O_WRONLY | os.O_CREAT, 0o644)
    except OSError as error:
        raise cannot_write(path, error) from error
    try:
        if not _locked(handle, path):
            raise BusyError(f"another process writes into {folder}: wait for it, or choose another --out")
        try:
            yield
        finally:
            path.unlink(missing_ok=True)
    finally:
        os.close(handle)


def make_way(folder: Path, *marks: str) -> None:
    """What a new run does with an earlier one in its folder, finished or not: it is never overwritten.

    The one in runs/latest, the default, is renamed runs/latest-1, -2 and so on, with a word. UsageError in any other
    folder, BusyError while a run goes on there. marks: further files that show that something lies there.
    """
    if not checkpoint.exists(folder / "checkpoint.pt") and not any(
            (folder / name).exists() for name in ("model.safetensors", *marks)):
        return
    if folder != LATEST:
        finished = (folder / "summary.json").exists()
        raise UsageError(f"{folder} holds a run that {'is' if finished else 'was not'} finished, and it is not "
                         f"overwritten: {'report it again' if finished else 'go on'} with --resume auto, choose "
                         "another --out, or remove that folder first")
    with alone_in(folder):
        pass
    aside = next(each for each in (folder.with_name(f"{folder.name}-{i}") for i in count(1)) if not each.exists())
    try:
        folder.rename(aside)
    except OSError as error:
        raise cannot_write(aside, error) from error
    print(f"note: the earlier run in {folder} lies in {aside} now; --out names a folder of its own", file=sys.stderr)


def clear(folder: Path) -> None:
    """Removes what an earlier run left in a folder, where runs are cheap to repeat. BusyError while one goes on."""
    if folder.exists():
        with alone_in(folder):
            for path in folder.iterdir():
                shutil.rmtree(path) if path.is_dir() else path.unlink()


def _locked(handle: int, path: Path) -> bool:
    """Whether the file at `path`, which is open, is now locked for this process, or its file system has no locks."""
    found = lock(handle)
    if found != "held":
        return found == "unknown"
    try:
        return os.path.samefile(handle, path)  # not so if a run ended in this moment, and removed what was opened here
    except FileNotFoundError:
        return False


def writes_behind(device: torch.device) -> bool:
    """Whether a run there has its checkpoints written by a thread: on a CPU that would only take turns with it."""
    return device.type == "cuda"


class RunFolder:
    """Writes the files of one run. `writes` is False on all ranks but the first: then nothing is written.

    behind: a thread writes checkpoints, of which it gets copies on the host, so that a GPU need not wait for the disk;
    it does for those of sharded runs. rows: the text of metrics.jsonl, which every checkpoint carries too: a damaged
    one is restored from there.
    """

    def __init__(self, path: Path, writes: bool = True, behind: bool = False) -> None:
        self.path, self.writes, self.rows = path, writes, ""
        self._thread = ThreadPoolExecutor(1) if behind and writes else None
        self._writing: Future[None] | None = None
        self.checkpoint, self.metrics = path / "checkpoint.pt", path / "metrics.jsonl"

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
                         self.path / TRACKED, *(self.path / name for name in FINISHED)):
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
            line = json.dumps(_finite(row)) + "\n"
            self.rows += line
            try:
                with self.metrics.open("a") as file:
                    file.write(line)
            except OSError as error:
                raise cannot_write(self.metrics, error) from error

    def save(self, state: dict[str, Any]) -> None:
        """Replaces checkpoint.pt, see `checkpoint.save`; once the one before it is written, whose errors it raises."""
        self.written()
        if not self.writes:
            return
        state = {**state, "rows": self.rows}
        if "sharded" in state:
            checkpoint.save(self.checkpoint, state)
            before = checkpoint.sharded_folder(checkpoint.previous(self.checkpoint))
            checkpoint.keep_only(self.path, before, state["sharded"])
        elif self._thread is not None:
            kept = tree_map_only(Tensor, lambda tensor: tensor.detach().to("cpu", copy=True), state)
            self._writing = self._thread.submit(checkpoint.save, self.checkpoint, kept)
        else:
            checkpoint.save(self.checkpoint, state)

    def written(self) -> None:
        """Until the last checkpoint is on the disk. UsageError if it could not be written."""
        writing, self._writing = self._writing, None
        if writing is not None:
            writing.result()

    @contextmanager
    def naming_last_checkpoint(self) -> Iterator[None]:
        """Adds to a NonFiniteLossError where the run can be taken up again; ends when all is written."""
        try:
            yield
        except NonFiniteLossError as error:
            self.written()
            saved = self.checkpoint.exists()
            good = f"the last good checkpoint is {self.checkpoint}" if saved else "no checkpoint had been saved yet"
            raise NonFiniteLossError(f"{error}; {good}; a lower learning rate or --precision fp32 may help") from None
        finally:
            self.written()

    def finish(self, weights: dict[str, Tensor], summary: Mapping[str, Any], predicted: Mapping[str, Predictions],
               card: Card) -> None:
        """Writes model.safetensors (the reported weights, and the classes of the head), model.json, predictions.npz
        (`SPLIT_rows`, `SPLIT_logits`, `SPLIT_truth`) and, last, summary.json, where null stands as in metrics.jsonl."""
        self.written()
        if self.writes:
            if weights:
                content = safetensors_bytes(weights, metadata(card.class_names))
                write_atomically(self.path / "model.safetensors", lambda file: file.write(content))
            card.write(self.path)
            arrays = {f"{split}_{name}": array for split, found in predicted.items()
                      for name, array in found._asdict().items()}
            write_atomically(self.path / "predictions.npz", lambda file: np.savez(file, **arrays))
            write_text(self.path / "summary.json", json.dumps(_finite(summary), indent=2) + "\n")


def _finite(values: Mapping[str, Any]) -> dict[str, Any]:
    """The same with None for numbers that are not finite, which JSON does not have."""
    return {key: None if isinstance(value, float) and not math.isfinite(value) else value
            for key, value in values.items()}


def check_same(before: Mapping[str, Any], now: Mapping[str, Any], where: Path) -> None:
    """Raises UsageError naming each setting of a resumed run that differs from when it was started.

    Another way to write a file's or folder's path is no difference. That the data are the same is for the caller to
    see to: wherever they lie now, their fingerprint tells."""
    keys = [key for key in {**before, **now} if key not in MAY_CHANGE and not same(before.get(key), now.get(key))]
    if keys:
        changes = ", ".join(f"{key}: {before.get(key)!r} -> {now.get(key)!r}" for key in keys)
        raise UsageError(f"{where} was started with other settings ({changes}); "
                         "resume with the same ones, or start afresh with another --out")


def same(before: Any, now: Any) -> bool:
    """Whether they are equal, or two ways to name one file."""
    if before == now or not (isinstance(before, str) and isinstance(now, str)):
        return bool(before == now)
    try:
        return Path(before).expanduser().samefile(Path(now).expanduser())
    except (OSError, RuntimeError, ValueError):
        return False


def check_same_split(before: str, manifest: Mapping[str, Any], pool: Pool, where: Path) -> None:
    """Raises UsageError if the split of a resumed run is another one: which images came or went, or what else differs.

    before: the hash of the split that it was started with. manifest: that of `pool`.
    """
    if before == manifest["hash"]:
        return
    images = read_inventory(where)
    said = images and difference(images, inventory(pool))
    if said:
        weights = where / "model.safetensors"
        way = (f"start another one from its weights: --weights {weights} --out ANOTHER" if weights.exists() else
               "start afresh with another --out")
        raise UsageError(f"{where} trains on other images: {said}. A run cannot go on so, as all images would be drawn "
                         f"in another order: put them back, or {way}")
    try:
        then = json.loads((where / "split.json").read_text())
    except (OSError, ValueError):
        then = {}
    parts = [(key, set(then.get(key, [])), set(manifest.get(key, [])))
             for key in ("labeled", "ignored", "valid", "test")]
    others = [f"{len(one - other | other - one):,} {key} images" for key, one, other in parts if one != other]
    if not others:
        others = ["classes or labels"]
    raise UsageError(f"{where} was started with another split: other {', '.join(others)}, of the same images. Split as "
                     "then, or start afresh with another --out")
