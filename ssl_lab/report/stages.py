"""The page of a story in several runs: what each of them gave, side by side."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import yaml

from ssl_lab.errors import UsageError
from ssl_lab.report.html import NAME, Report
from ssl_lab.report.images import image_grid
from ssl_lab.report.metrics import band, read_metrics
from ssl_lab.report.plots import curves
from ssl_lab.report.tables import Cell, Column, Table

if TYPE_CHECKING:  # it imports torch
    from ssl_lab.data import Pool

SHOWN = 20  # images


def stage_table(stages: Mapping[str, Path]) -> Table:
    """A row for each stage: its method, net, labels, steps, seconds and accuracy.

    Args:
        stages: name -> the folder of a finished run of a recipe.

    Raises:
        UsageError: for another folder.

    >>> import json
    >>> from pathlib import Path
    >>> done = {"method": "kd", "labels": 10, "steps": 500, "seconds": 9.0, "test_accuracy": 0.8}
    >>> size = Path("summary.json").write_text(json.dumps(done)), Path("config.yaml").write_text("net: tiny_4")
    >>> sl.report.stage_table({"distilled": Path(".")}).rows
    [['distilled', 'kd', 'tiny_4', 10, 500, 9.0, 0.8]]
    """
    columns = [Column("stage"), Column("method"), Column("net"), Column("labels", "right"),
               Column("steps", "right", ",d"), Column("training (s)", "right", ".1f"),
               Column("test accuracy", "right", ".2%")]
    rows: list[list[Cell]] = []
    for stage, folder in stages.items():
        try:
            done = json.loads((folder / "summary.json").read_text())
            net = yaml.safe_load((folder / "config.yaml").read_text())["net"]
        except (OSError, ValueError, KeyError, yaml.YAMLError) as error:
            raise UsageError(f"{folder} is no folder of a finished run of a recipe ({error})") from error
        rows.append([stage, done["method"], net, done["labels"], done["steps"], done["seconds"],
                     done["test_accuracy"]])
    return Table("Stages", columns, rows)


def stage_report(title: str, said: str, stages: Mapping[str, Path], pool: Pool, asked: Sequence[int],
                 out: Path) -> None:
    """Writes report.html into a folder: `stage_table`, what was said, accuracy curves of the stages that have one, and
    the first images that were asked for, with their labels.

    Args:
        title: of the page.
        said: lines of text, below the table.
        stages: name -> the folder of a finished run of a recipe.
        pool: whose images are shown.
        asked: rows of it, of which the first are shown.
        out: the folder, which must exist.

    Raises:
        UsageError: as in `stage_table`.

    >>> import json
    >>> from pathlib import Path
    >>> done = {"method": "kd", "labels": 10, "steps": 500, "seconds": 9.0, "test_accuracy": 0.8}
    >>> size = Path("summary.json").write_text(json.dumps(done)), Path("config.yaml").write_text("net: tiny_4")
    >>> size = Path("metrics.jsonl").write_text('{"step": 1, "test_accuracy": 0.8}')
    >>> here = Path(".")
    >>> sl.report.stage_report("Digits", "It went well.", {"kd": here}, sl.load("digits"), asked=[3, 7], out=here)
    >>> (here / "report.html").exists()
    True
    """
    page = Report(title, f"{len(pool.train):,} training images, {len(pool.labeled):,} of them labeled; "
                         f"{len(pool.test):,} to test on")
    page.table(stage_table(stages))
    page.runs(stages, out)
    for line in said.splitlines():
        page.text(line)
    runs = {stage: read_metrics(folder / "metrics.jsonl") for stage, folder in stages.items()}
    for split in ("valid", "test"):
        lines = {stage: band([rows], f"{split}_accuracy") for stage, rows in runs.items()}
        lines = {stage: line for stage, line in lines.items() if len(line.x)}
        if lines:
            page.figure(curves(lines, f"{split} accuracy", percent=True),
                        f"Averaged weights on {split} images, of the stages that train a classifier. One run: where it "
                        "goes is partly chance.")
    ids = np.array(asked[:SHOWN], dtype=np.int64)
    names = {-1: "no answer", -2: "ignored"} | dict(enumerate(pool.class_names))
    grid = image_grid(pool.images.take(ids).numpy(), [names[label] for label in pool.labels[ids].tolist()], columns=10)
    page.images(grid, "The first images that were to be labeled, in the order of choice, with their labels.")
    page.write(out / NAME)
