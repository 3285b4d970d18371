"""A finished run to be looked into: what it left, its net, and the images that it was trained and tested on."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ssl_lab.config import OfARun, data_of, reading_of
from ssl_lab.data import Pool, load
from ssl_lab.engine.card import Card
from ssl_lab.errors import UsageError
from ssl_lab.nets import Net
from ssl_lab.nets.start import start_net
from ssl_lab.report.stored import StoredRun


@dataclass(frozen=True)
class Finished:
    """stored: numbers and settings. net: the one that the run reports. pool: its images, split as the run was."""

    stored: StoredRun
    net: Net
    pool: Pool

    @property
    def techniques(self) -> list[str]:
        """The texts of those that it was trained with."""
        return list(self.stored.summary.get("techniques") or [])

    @property
    def named(self) -> str:
        """Its method, its data, and what it was trained with."""
        summary = self.stored.summary
        return " with ".join(filter(None, [f"{summary['method']} on {summary['data']}", ", ".join(self.techniques)]))

    @property
    def seed(self) -> int:
        return int(self.stored.summary.get("seed") or 0)

    @classmethod
    def read(cls, run: str | Path, data: str | None = None, **others: Any) -> Finished:
        """The run in this folder. data: where its images lie now, if not where they lay for the run. others: arguments
        of `load` in place of the run's (data_dir, remote_gb).

        UsageError if there is none, if it trained no classifier, or if the images are others than the run's.
        """
        folder = Path(run)
        stored, card = StoredRun.read(folder), Card.read(folder)
        if not stored.class_names:
            raise UsageError(f"the run in {folder} learned no classes; fine-tune it first (recipes/finetune.py)")
        if card.kind != "net":
            raise UsageError(f"the run in {folder} is of several parts ({card.kind}); give one that trained a net")
        try:
            named = data or data_of(stored.settings, folder)
        except UsageError as error:
            raise UsageError(f"{error}; name them with --data") from None
        reading = reading_of(stored.settings) | others
        pool = load(named, **reading)
        if stored.split.get("pixels") not in (None, pool.images.fingerprint()):
            raise UsageError(f"{named} has other images now than the run in {folder} had: some came, went or changed. "
                             "Name those of the run with --data")
        pool = pool.split(labeled=folder / "split.json")
        return cls(stored, start_net(str(folder), pool.class_names, pool.style), pool)

    @classmethod
    def of(cls, settings: OfARun) -> Finished:
        """The run that a recipe looks into. UsageError for flags that ask for other labels than its own."""
        if any(given is not None for given in (settings.labels, settings.split_file, settings.valid,
                                               settings.imbalance)):
            raise UsageError("--labels, --split-file, --valid and --imbalance: images and labels are those of the run; "
                             "leave them out")
        others = {name: value for name, value in settings.said().items() if name in ("data_dir", "remote_gb")}
        return cls.read(settings.start, settings.data or None, **others)
