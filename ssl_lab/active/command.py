"""`ssl-lab query`: arrays in, ids out, for people who keep their own training code."""

from __future__ import annotations

import csv
import io
import json
import sys
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from ssl_lab.active.plugins import make_query
from ssl_lab.active.queries.base import Query
from ssl_lab.active.queries.inputs import ARRAYS
from ssl_lab.active.queries.view import IGNORED, UNLABELED, IntArray, PoolView
from ssl_lab.engine import Runtime
from ssl_lab.errors import UsageError
from ssl_lab.files import write_atomically, write_text


def query_command(query: str, budget: int, embeddings: Path | None = None, probs: Path | None = None,
                  mc_probs: Path | None = None, view_probs: Path | None = None, predicted_loss: Path | None = None,
                  head_weight: Path | None = None, head_bias: Path | None = None, labeled: Path | None = None,
                  ignored: Path | None = None, out: Path | None = None, seed: int = 0) -> None:
    """Chooses images to label from arrays: prints their row numbers, one a line, in the order of choice.

    Files of float32 and float16 are read where they lie (others are copied), by many queries in blocks: see `ssl-lab
    bench query` for what memory they take. Under `torchrun --nproc-per-node 4 -m ssl_lab.cli query ...` ranks share
    the rows, and choose what one would.

    Args:
        query: its name (see `ssl-lab list queries`), or package.module:Class of your own; with arguments, if any, as in
            prob_cover(delta=0.5) or prefilter(margin, k_center).
        budget: how many to choose; where fewer are left, all of them are chosen.
        embeddings: .npy [N, D], features of each image.
        probs: .npy [N, C], predicted probabilities.
        mc_probs: .npy [N, S, C], probabilities by dropout samples or committee members.
        view_probs: .npy [N, V, C], probabilities of the image itself and of augmented views of it.
        predicted_loss: .npy [N].
        head_weight: .npy [C, D], of the linear classifier on the embeddings.
        head_bias: .npy [C], of the same.
        labeled: rows that have a label and are not chosen: .npy, .json, or text or .csv with a row number on each line,
            or row,class for queries that use the classes (.npy then [n, 2]; .json an object {row: class}).
        ignored: rows that may not be chosen either, in the same formats.
        out: .txt, .npy, .csv or .json in place of printing.
        seed: of ties and random choices.
    """
    if out is not None and out.suffix not in (".txt", ".npy", ".csv", ".json"):
        raise UsageError(f"--out {out}: expected a name that ends in .txt, .npy, .csv or .json")
    ranks, chosen = Runtime.start("cpu", "fp32"), make_query(query)
    given = {"embeddings": embeddings, "probs": probs, "mc_probs": mc_probs, "view_probs": view_probs,
             "predicted_loss": predicted_loss, "head_weight": head_weight, "head_bias": head_bias}
    arrays = {name: _load(path, name) for name, path in given.items() if path is not None}
    rows = next((len(array) for name, array in arrays.items() if ARRAYS[name].startswith("[N")), None)
    if rows is None:
        raise UsageError(f"give the arrays of the pool, a row for each image: --embeddings E.npy; {query} needs "
                         f"{', '.join(sorted(chosen.needs)) or 'none in particular'}")
    labels = _labels(rows, labeled, ignored, chosen)
    left = int((labels == UNLABELED).sum())
    if budget > left and ranks.main:
        print(f"note: {left} rows are left without a label, fewer than --budget {budget}: all of them are chosen",
              file=sys.stderr)
    with ranks.explaining_failures():
        view = PoolView(labels, **arrays, ranks=ranks)
        for note in chosen.notes(view, budget) if ranks.main else []:
            print(f"note: {note}", file=sys.stderr)
        ids = chosen(view, min(budget, left), seed) if left or budget < 1 else view.candidates
    if not ranks.main:
        return
    if out is None:
        sys.stdout.write(_text(ids))
    else:
        _write(ids, out)


def _load(path: Path, name: str) -> np.ndarray:
    """A memory map of a .npy file."""
    try:
        array: np.ndarray = np.load(path, mmap_mode="r", allow_pickle=False)
    except Exception as error:  # damaged arrays raise nearly anything
        raise UsageError(f"cannot read {name} from {path}: {getattr(error, 'strerror', None) or error}. Expected an "
                         f".npy file of {ARRAYS[name]}") from error
    if not (isinstance(array, np.ndarray) and np.issubdtype(array.dtype, np.floating)):
        raise UsageError(f"{path} holds {getattr(array, 'dtype', 'several arrays')}; expected floats: {ARRAYS[name]}")
    return array


def _labels(rows: int, labeled: Path | None, ignored: Path | None, query: Query) -> IntArray:
    """int64 [rows]: class, -1 or -2. Rows that are labeled with an unknown class count as of class 0."""
    labels = np.full(rows, UNLABELED, dtype=np.int64)
    known = Rows() if labeled is None else read_rows(labeled, rows)
    if known.classes is None and len(known.ids) and query.uses_classes:
        raise UsageError(f"{query.name} uses the classes of labeled rows, but {labeled} has row numbers alone; "
                         "write row,class on each line")
    labels[known.ids] = 0 if known.classes is None else known.classes
    if ignored is not None:
        labels[read_rows(ignored, rows).ids] = IGNORED
    return labels


@dataclass(frozen=True)
class Rows:
    """Row numbers, int64 [n], and their classes, int64 [n], or None."""

    ids: IntArray = field(default_factory=lambda: np.empty(0, dtype=np.int64))
    classes: IntArray | None = None


def read_rows(path: Path, rows: int) -> Rows:
    """Row numbers below `rows`, perhaps with classes, from a file; see `query_command`. UsageError for others."""
    expected = "row numbers, or row,class on each line"
    try:
        if path.suffix == ".npy":
            table = np.load(path, allow_pickle=False)
        elif path.suffix == ".json":
            content = json.loads(path.read_text())
            table = np.array(list(content.items()) if isinstance(content, dict) else content)
        else:
            lines = [line for line in csv.reader(path.read_text(encoding="utf-8-sig").splitlines()) if line]
            header = lines[:1] and not lines[0][0].strip().lstrip("-").isdecimal()
            table = np.array(lines[1:] if header else lines)
        if table.dtype.kind == "f" and table.size:
            raise ValueError("fractional numbers")
        table = table.astype(np.int64)
    except Exception as error:  # damaged arrays raise nearly anything, and JSON may hold anything
        raise UsageError(f"cannot read rows from {path}: {getattr(error, 'strerror', None) or error}. Expected "
                         f"{expected}") from error
    columns = table.shape[1:]
    if columns not in ((), (1,), (2,)) or not table.ndim:
        raise UsageError(f"{path} holds a table of shape {table.shape}; expected {expected}")
    ids = table if table.ndim == 1 else table[:, 0]
    classes = table[:, 1] if columns == (2,) else None
    outside = (ids < 0) | (ids >= rows)
    if outside.any():
        raise UsageError(f"{path} names row {ids[outside][0]}, but there are {rows} rows")
    if classes is not None and (classes < 0).any():
        raise UsageError(f"{path} gives row {ids[classes < 0][0]} the class {classes.min()}; expected 0 or more")
    if len(np.unique(ids)) != len(ids):
        raise UsageError(f"{path} names a row more than once")
    return Rows(ids, classes)


def _text(ids: IntArray) -> str:
    return "".join(f"{i}\n" for i in ids.tolist())


def _write(ids: IntArray, out: Path) -> None:
    if out.suffix == ".npy":
        file = io.BytesIO()
        np.save(file, ids)
        write_atomically(out, lambda target: target.write(file.getvalue()))
    elif out.suffix == ".json":
        write_text(out, json.dumps(ids.tolist()) + "\n")
    elif out.suffix == ".csv":
        write_text(out, "id\n" + _text(ids))
    else:
        write_text(out, _text(ids))
