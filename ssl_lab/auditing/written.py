"""An audit as files: the issues as CSV and JSON, and the labels with the corrections, to go on with."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np

from ssl_lab.auditing.findings import PARTS, Audit
from ssl_lab.data.cells import csv_text
from ssl_lab.data.label_file import path_text
from ssl_lab.files import write_text

ISSUES, LABELS, SUMMARY = "issues.csv", "labels.csv", "audit.json"


def write_files(audit: Audit, folder: Path, correct: bool = False) -> list[str]:
    """Writes issues.csv, labels.csv and audit.json into the folder; returns what a person should be told. correct: with
    the likelier class as the label, where the given one is likely wrong."""
    column, places = image_names(audit, folder)
    names = (*audit.pool.class_names, "")
    issues = audit.issues()
    rows = [(places[issue.row], issue.kind, f"{issue.score:.4f}", names[issue.given], names[issue.likelier],
             PARTS[audit.part[issue.row]], places[issue.other] if issue.other >= 0 else "", issue.note)
            for issue in issues]
    columns = (column, "issue", "score", "given", "likelier", "part", "other", "note")
    write_text(folder / ISSUES, csv_text(columns, rows))
    content = {"data": audit.pool.name, "images": len(audit.pool), "net": audit.net, "counts": audit.counts,
               "near_duplicates_from": audit.bar._asdict(), "notes": [*audit.pool.notes, *audit.notes],
               "issues": [{column: places[issue.row], **issue._asdict(), "given": names[issue.given],
                           "likelier": names[issue.likelier]} for issue in issues]}
    if audit.doubts is not None:
        content |= {"learner": audit.doubts.learner, "agreement": audit.doubts.agreement}
    write_text(folder / SUMMARY, json.dumps(content, indent=1) + "\n")
    return _write_labels(audit, folder, column, places, correct)


def image_names(audit: Audit, folder: Path) -> tuple[str, list[str]]:
    """The column, path or id, and the cell of each image in it."""
    pool = audit.pool
    if not pool.files:
        return "id", [str(row) for row in range(len(pool))]
    return "path", [path_text(pool.root, file, folder) for file in pool.files]


def _write_labels(audit: Audit, folder: Path, column: str, places: list[str], correct: bool) -> list[str]:
    """labels.csv: every label of train, the most doubtful first, with the likelier class beside those that are likely
    wrong. One that is there and says something else may have been edited: it is kept under another name."""
    pool, names = audit.pool, (*audit.pool.class_names, "")
    labels, doubts = pool.labels, audit.doubts
    likelier = dict[int, int]()
    if doubts is not None:
        mine = doubts.wrong & np.isin(doubts.rows, pool.labeled)
        likelier = dict(zip(doubts.rows[mine].tolist(), doubts.likelier[mine].tolist(), strict=True))
    rows = [*likelier, *(row for row in pool.labeled.tolist() if row not in likelier)]
    if not rows:
        return []
    lines = [(places[row], names[likelier[row] if correct and row in likelier else labels[row]],
              "audit" if correct and row in likelier else "given", names[labels[row]], names[likelier.get(row, -1)])
             for row in rows]
    text, path, said = csv_text((column, "label", "source", "given", "likelier"), lines), folder / LABELS, []
    if path.exists() and path.read_bytes() != text.encode():
        number = next(n for n in range(1, 10**6) if not (folder / f"labels.{n}.csv").exists())
        path.rename(folder / f"labels.{number}.csv")
        said.append(f"the {LABELS} that was in {folder} is kept as labels.{number}.csv")
    write_text(path, text)
    return said
