"""Labels that leave: a CSV file of path,label,source,when from a loop, a ledger or a run; and the way back."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from ssl_lab.data.cells import csv_text, read_table, safe, unescaped
from ssl_lab.data.inventory import read_inventory
from ssl_lab.data.ledger import IGNORED, SPLIT, UNLABELED, Entry, Ledger
from ssl_lab.errors import UsageError, unknown

if TYPE_CHECKING:
    from ssl_lab.data.pool import Pool

COLUMNS = ("label", "source", "when")
"""Beside `path`, or `id` for images without files. when: ISO 8601 in UTC; empty for labels from before it was kept."""

Settle = Callable[[Sequence[Entry]], tuple[dict[int, tuple[int | None, str]], list[str]]]
"""The entries of a ledger -> row -> its label, None for none, and who said it; and notes."""


class Given(NamedTuple):
    """A label in effect. label: -2 = ignored. when: ISO 8601, or ""."""

    row: int
    label: int
    source: str
    when: str


def labels_csv(source: Path, folder: Path, settle: Settle | None = None) -> tuple[str, list[str]]:
    """The text of the CSV file, and notes on it.

    source: the folder of an active-learning loop, or of a run; or a ledger's file. folder: where the file is to lie:
    paths of images below it are relative to it, others whole. settle: what counts where people disagree (default: what
    was said last). Labels are names of classes; -2 is an image to leave out.
    UsageError if there are no labels.
    """
    home = source if source.is_dir() else source.parent
    notes: list[str] = []
    if (home / "labels.jsonl").exists() or source.is_file():
        given, names, notes = _of_ledger(source, home, settle)
    else:
        given, names = _of_run(home)
    if not given:
        raise UsageError(f"{source} holds no label")
    images = read_inventory(home)
    if images is None or not images.files:
        first, column = [str(each.row) for each in given], "id"
    else:
        if strays := sum(each.row >= len(images) for each in given):
            raise UsageError(f"{source} has {strays} labels of other images than {home / 'images.npz'} lists")
        first, column = [path_text(images.root, images.files[each.row], folder) for each in given], "path"
        if not os.path.exists(os.path.join(images.root, images.files[given[0].row])):
            notes.append(f"the images are no longer in {images.root}: the paths are those that were. Go on with the "
                         "loop or run once with --data where they are now, and it is known")
    rows = [(place, str(each.label) if each.label < 0 or not names else names[each.label], each.source, each.when)
            for place, each in zip(first, given, strict=True)]
    return csv_text((column, *COLUMNS), rows), notes


def _of_ledger(source: Path, home: Path,
               settle: Settle | None) -> tuple[list[Given], Sequence[str], list[str]]:
    ledger = Ledger(source if source.is_file() else home / "labels.jsonl")
    now: dict[int, Given] = {}
    for entry in ledger.entries:
        for row, label in zip(entry.indices.tolist(), entry.labels.tolist(), strict=True):
            now[row] = Given(row, label, entry.source, entry.when)
    settled, notes = ({}, []) if settle is None else settle(ledger.entries)
    for row, (label, who) in settled.items():
        now[row] = now[row]._replace(label=UNLABELED if label is None else label, source=who)
    given = [now[row] for row in sorted(now) if now[row].label != UNLABELED]
    names: list[str] = []
    if (home / "classes.json").exists():
        classes = json.loads((home / "classes.json").read_text(encoding="utf-8"))
        names = [*classes["names"], *classes["founded"]]
    return given, names, notes


def _of_run(home: Path) -> tuple[list[Given], Sequence[str]]:
    path = home / "split.json"
    if not path.exists():
        raise UsageError(f"{home} holds no labels: expected the folder of an active-learning loop (labels.jsonl) or of "
                         "a run (split.json), or a ledger's file")
    try:
        manifest = json.loads(path.read_text(encoding="utf-8"))
        labels = [*zip(manifest["labeled"], manifest["labels"], strict=True)]
        given = [*labels, *((row, IGNORED) for row in manifest.get("ignored", []))]
        return [Given(row, label, SPLIT, "") for row, label in sorted(given)], manifest["class_names"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UsageError(f"cannot read {path}: {error}") from error


def path_text(root: str, file: str, folder: Path) -> str:
    """The path of the image `file` below `root` in a CSV file that lies in `folder`: relative to it if the image lies
    below it, else whole."""
    path, folder = Path(root, file), Path(os.path.abspath(folder))
    text = path.relative_to(folder).as_posix() if path.is_relative_to(folder) else str(path)
    return text if safe(text) == text else f"./{text}"  # so that no reader need know how a formula is guarded


def read_labels(path: Path, pool: Pool) -> dict[str, Any]:
    """The rows that a CSV file of id or path, and label, gives labels of, as a manifest has them: labeled, labels and
    ignored. Paths may be whole, relative to the file's folder or to the pool's, or of where the images were: then the
    longest end that names an image counts. UsageError for an unknown image or class, and for two labels of an image."""
    table = read_table(path)
    if not isinstance(table, list) or not table or "label" not in table[0] or not {"id", "path"} & table[0].keys():
        raise UsageError(f"labeled: {path} has no rows of path (or id) and label")
    by_file = {file: row for row, file in enumerate(pool.files)}
    number = {name: label for label, name in enumerate(pool.class_names)}
    labels: dict[int, int] = {}
    for fields in table:
        where = f"labeled: {path}, row {fields['']}"
        row = _row(fields, by_file, pool, path.parent, where)
        text = fields["label"].strip()
        if text in number:
            label = number[text]
        elif text in ("", "-1"):
            continue
        elif text == str(IGNORED):
            label = IGNORED
        else:
            raise unknown("class", text, number, f"It stands in {path}, row {fields['']}.")
        if labels.setdefault(row, label) != label:
            raise UsageError(f"{where}: a second label of the same image")
    rows = np.array(sorted(row for row in labels if labels[row] >= 0), dtype=np.int64)
    return {"labeled": rows, "labels": np.array([labels[row] for row in rows.tolist()], dtype=np.int64),
            "ignored": np.array(sorted(row for row in labels if labels[row] == IGNORED), dtype=np.int64)}


def _row(fields: Mapping[str, str], by_file: Mapping[str, int], pool: Pool, folder: Path, where: str) -> int:
    text = fields.get("path", "").strip()
    if not text:
        cell = fields.get("id", "").strip()
        if not cell.isdecimal() or int(cell) >= len(pool):
            raise UsageError(f"{where}: id {cell!r} is no row of {pool.name}, which has {len(pool)}")
        return int(cell)
    for path in dict.fromkeys((text, unescaped(text))):
        near = os.path.relpath(os.path.join(folder.absolute(), path), pool.root or ".")
        parts = os.path.normpath(path.replace("\\", "/")).split("/")
        ends = ["/".join(parts[start:]) for start in range(len(parts))]
        found = next((by_file[file] for file in (near, *ends) if file in by_file), None)
        if found is not None:
            return found
    raise UsageError(f"{where}: {text!r} is no image of {pool.name}")
