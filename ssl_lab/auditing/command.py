"""`ssl-lab audit`: from data to a page, a list of issues and corrected labels."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path
from typing import Annotated, Literal

import tyro

from ssl_lab.auditing.findings import Audit, audit
from ssl_lab.auditing.page import counts_table, page
from ssl_lab.auditing.written import ISSUES, LABELS, write_files
from ssl_lab.config import AS_USUAL, ReadingSettings
from ssl_lab.data import announce, load
from ssl_lab.engine.folder import alone_in
from ssl_lab.report import print_tables

PAGE = "report.html"


def audit_command(data: Annotated[str, tyro.conf.Positional], net: str | None = None, weights: Path | None = None,
                  pretrained: bool = False,
                  learner: Literal["auto", "knn", "probe"] = "auto",
                  out: Path | None = None, labels: Path | None = None, correct: bool = False,
                  read: Annotated[ReadingSettings, tyro.conf.OmitArgPrefixes] = AS_USUAL,
                  seed: int = 0, device: str = "auto") -> None:
    """What is wrong with a data set: labels, duplicates, leaks, foreign, blank and odd images; on one page.

    Nothing is changed. The folder holds report.html, issues.csv (all that was found), labels.csv (the labels of train,
    the doubtful first: edit it and go on with it) and audit.json.

    Args:
        data: folder of images, CSV of path,label, the name of a data set, or package.module:Mine.
        net: what sees the images: folder of a run, file of weights, timm/MODEL, or a net by name (default: a pretrained
            one that was fetched, else the images' own values).
        weights: of that net, from this file.
        pretrained: its published weights.
        learner: that doubts labels; auto takes knn or probe, whichever agrees with more held-out labels.
        out: folder of the audit (default: runs/audit-NAME).
        labels: audit these labels: a CSV of path (or id) and label, e.g. of `ssl-lab labels`, or a split.json.
        correct: in labels.csv put the likelier class in place of labels that are likely wrong.
        read: how images are listed and read.
        seed: of what is drawn to compare by.
        device: cpu, cuda, or auto.
    """
    pool = load(data, **read.reading())
    if labels is not None:
        pool = pool.split(labeled=labels)
    announce(pool)
    folder = out or Path("runs") / f"audit-{pool.name}"
    with alone_in(folder):
        found = audit(pool, net, learner=learner, weights=weights, pretrained=pretrained, data_dir=read.data_dir,
                      seed=seed, device=device, say=_say)
        for line in write_files(found, folder, correct):
            _say(line)
        steps = next_steps(found, data, folder, correct)
        page(found, steps).write(folder / PAGE)
    for note in found.notes[1:]:
        _say(note)
    print_tables(counts_table(found))
    print("\n".join([f"{folder / PAGE} shows them, {folder / ISSUES} lists them all.", *steps]))


def next_steps(found: Audit, data: str, folder: Path, correct: bool = False) -> list[str]:
    """What to do with what was found, a line each."""
    counts, steps = found.counts, list[str]()
    if found.doubts is not None and (folder / LABELS).exists() and counts["label"]:
        path = str(folder / LABELS)
        what = ("take back corrections that are none (column given)" if correct else
                "correct them in the column label, beside which likelier stands (--correct does it for all)")
        steps.append(f"Labels: look at them; in {path}, where they come first, {what}, and write -2 to "
                     f"leave an image out. Then train on it: ssl-lab train {shlex.quote(data)} --split-file "
                     f"{shlex.quote(path)}, or in code "
                     f"sl.load({data!r}).split(labeled={path!r}).")
    if counts["leak"]:
        steps.append(f"Leaks: of each pair take one image out: {ISSUES} names both.")
    return steps


def _say(line: str) -> None:
    print(f"note: {line}", file=sys.stderr)
