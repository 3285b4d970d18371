"""A loop whose images were added to: what it knows by row number gets the new numbers of the rows.

The folder's images.npz says which image every row was. Where the pool has them all and more, labels.jsonl, the rounds,
abstained.json, asked.csv and Label Studio's tasks are written anew into `carried/`, whole and on disk, which a rename
puts in force; only then each takes the place of the old one, images.npz last. A kill at any instant leaves the old
ones, or a `carried/` from which the next start goes on.
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from ssl_lab.data import IntArray, Ledger, Pool
from ssl_lab.data.files import new_folder
from ssl_lab.data.inventory import (
    DROPPED,
    NAME,
    TEST,
    TRAIN,
    VALID,
    Inventory,
    change,
    difference,
    inventory,
    read_inventory,
    write_inventory,
)
from ssl_lab.data.ledger import SPLIT
from ssl_lab.errors import UsageError
from ssl_lab.files import make_folder, sync
from ssl_lab.notes import tell

_STAGE = "carried"
_STUDIO_ID = "ssl_lab_id"


def carried(pool: Pool, folder: Path) -> tuple[Pool, bool]:
    """The pool with the parts that the loop in `folder` has, and whether its rows were numbered otherwise once.

    Images that were added are said; they train, but where all that were test (or valid) still are, each is of the part
    that the pool has it in. UsageError if images were removed or changed, and where that cannot be told.
    """
    _finish(folder)
    now = inventory(pool)
    before = read_inventory(folder)
    if before is None:
        write_inventory(folder, now)
        return pool, False
    found = change(before, now)
    if not found.same:
        if before.shape != now.shape or found.removed or found.changed or (
                now.contents is None and not (before.files and now.files)):
            raise UsageError(f"the labels in {folder} are of other images: {difference(before, now)}. A loop goes on "
                             "when images were only added or renamed: restore the others, or start afresh with another "
                             "--out (`ssl-lab labels` takes the labels along)")
        if pool.ledger.path is not None:
            raise UsageError(f"{folder} has had images since ({found}), and the labels in {pool.ledger.path} are by "
                             "row numbers that were: let the loop keep the ledger, or take the images away again")
        parts = _parts(before, now, found.rows)
        _carry(folder, found.rows, replace(now, parts=parts, carried=True))
        tell([f"note: images came to {folder}: {found}. Its labels and rounds were carried over to the new row numbers"
              + (f"; test stays as it was ({int((parts == TEST).sum()):,})" if (parts == TEST).any() else "")])
        before = replace(now, parts=parts, carried=True)
    elif (before.files, before.root) != (now.files, now.root):
        before = replace(now, parts=before.parts, carried=before.carried)
        write_inventory(folder, before)
    return (_with_parts(pool, before), True) if before.carried else (pool, False)


def _with_parts(pool: Pool, known: Inventory) -> Pool:
    """The pool in these parts. If all its train rows have the labels that the data give them, they still have."""
    all_labels = pool.balance is None and len(pool.labeled) == int((pool.truth[pool.train] >= 0).sum())
    pool = replace(pool, train=known.rows(TRAIN), valid=known.rows(VALID), test=known.rows(TEST),
                   dropped=known.rows(DROPPED))
    if not all_labels or pool.ledger.path is not None:
        return pool
    rows, ledger = pool.train[pool.truth[pool.train] >= 0], Ledger()
    ledger.append(rows, pool.truth[rows], SPLIT)
    return replace(pool, ledger=ledger)


def _parts(before: Inventory, now: Inventory, rows: IntArray) -> IntArray:
    """int64 [now]: the part of each row: old ones keep theirs."""
    parts = np.full(len(now), TRAIN)
    new = np.setdiff1d(np.arange(len(now)), rows)
    for part in (VALID, TEST):
        if np.array_equal(before.parts == part, now.parts[rows] == part):  # not dealt anew, but said by the data
            parts[new[now.parts[new] == part]] = part
    parts[rows] = before.parts
    return parts


def _carry(folder: Path, rows: IntArray, now: Inventory) -> None:
    """Writes all that is by row number anew, and puts it in force."""
    with new_folder(folder / _STAGE) as stage:
        for path, content in _renumbered(folder, rows):
            target = stage / path.relative_to(folder)
            make_folder(target.parent)
            target.write_bytes(content)
            sync(target)
            sync(target.parent)
        (stage / NAME).write_bytes(now.to_bytes())
    _finish(folder)


def _finish(folder: Path) -> None:
    """Puts in place what `carried/` holds; images.npz last, as it says that all of it is."""
    stage = folder / _STAGE
    if not stage.is_dir():
        return
    files = sorted((path for path in stage.rglob("*") if path.is_file()), key=lambda path: path == stage / NAME)
    for path in files:
        target = folder / path.relative_to(stage)
        path.replace(target)
        sync(target.parent)
    for left in sorted((path for path in stage.rglob("*")), reverse=True):
        left.rmdir()
    stage.rmdir()
    sync(folder)


def _renumbered(folder: Path, rows: IntArray) -> Iterator[tuple[Path, bytes]]:
    """Each file that has row numbers, and what it is to hold. Whatever is torn or foreign stays as it is."""
    def new(row: Any) -> int:
        return int(rows[row])

    ledger = folder / "labels.jsonl"
    if ledger.exists():
        yield ledger, b"".join(_entry(line, new) for line in ledger.read_bytes().splitlines(keepends=True))
    for path in sorted(folder.glob("round-*.json")):
        record = json.loads(path.read_text())
        like = record.get("like") and [[new(row) for row in rows] for rows in record["like"]]
        yield path, _json(record | {"ids": [new(row) for row in record["ids"]], "like": like})
    abstained = folder / "abstained.json"
    if abstained.exists():
        yield abstained, _json(sorted(new(row) for row in json.loads(abstained.read_text())))
    asked = folder / "asked.csv"
    if asked.exists():
        yield asked, _table(asked.read_text(encoding="utf-8-sig"), new)
    for path in sorted((folder / "label_studio").rglob("*.json")):
        content = _studio(path, new)
        if content is not None:
            yield path, content


def _entry(line: bytes, new: Callable[[Any], int]) -> bytes:
    """A line of the ledger. A torn last one, which never counted, goes."""
    if not line.endswith(b"\n"):
        return b""
    record = json.loads(line)
    if "indices" not in record:
        return line
    record["indices"] = [new(row) for row in record["indices"]]
    return json.dumps(record, separators=(",", ":")).encode() + b"\n"


def _json(content: Any) -> bytes:
    return json.dumps(content).encode() + b"\n"


def _table(text: str, new: Callable[[Any], int]) -> bytes:
    """asked.csv, of which people have filled in the labels."""
    out = io.StringIO()
    delimiter = max(",;\t", key=text.partition("\n")[0].count)  # a spreadsheet may have saved it
    writer = csv.writer(out, delimiter=delimiter, lineterminator="\n")
    header, *lines = [line for line in csv.reader(io.StringIO(text, newline=""), delimiter=delimiter) if line] or [[]]
    writer.writerow(header)
    place = header.index("id") if "id" in header else None
    for line in lines:
        if place is not None and place < len(line) and line[place].strip().isdecimal():
            line[place] = str(new(int(line[place])))
        writer.writerow(line)
    return out.getvalue().encode()


def _studio(path: Path, new: Callable[[Any], int]) -> bytes | None:
    """Tasks and exports of Label Studio; None for what is neither."""
    try:
        tasks = json.loads(path.read_text(encoding="utf-8"))
    except ValueError:
        return None
    if not isinstance(tasks, list):
        return None
    for task in tasks:
        for fields in (task, task.get("data")) if isinstance(task, dict) else ():
            if isinstance(fields, dict) and isinstance(fields.get(_STUDIO_ID), int):
                fields[_STUDIO_ID] = new(fields[_STUDIO_ID])
    return json.dumps(tasks, indent=1).encode() + b"\n"
