"""A pool with few labels, made of one with all: which rows are labeled, which validate, which are left out."""

from __future__ import annotations

import os
from dataclasses import replace
from numbers import Integral, Real
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike

from ssl_lab.data.arrays import IntArray, to_indices, to_labels
from ssl_lab.data.label_file import read_labels
from ssl_lab.data.ledger import IGNORED, SPLIT, Ledger
from ssl_lab.data.split import Balance, draw_labeled, draw_valid, long_tail, read_rows
from ssl_lab.errors import UsageError

if TYPE_CHECKING:
    from ssl_lab.data.pool import Pool


def dealt(pool: Pool, labels: float | None, valid: float | ArrayLike | str | os.PathLike[str] | None, seed: int,
          balance: Balance, labeled: ArrayLike | str | os.PathLike[str] | None, imbalance: float | None,
          ledger: str | os.PathLike[str] | None) -> Pool:
    """See `Pool.split`."""
    if labeled is not None and labels is not None:
        raise UsageError(f"labels={labels} and labeled={_brief(labeled)} both choose labels; give one "
                         "(--labels, --split-file)")
    if labeled is not None and imbalance is not None:
        raise UsageError(f"imbalance={imbalance:g} chooses train rows, perhaps not those of labeled="
                         f"{_brief(labeled)}; give one (a manifest brings its long tail with it)")
    manifest = {} if labeled is None else _manifest_of(pool, labeled)
    rows = np.union1d(np.union1d(pool.train, pool.valid), pool.dropped)
    chosen = to_indices(manifest["labeled"], len(pool), "labeled") if manifest else None

    if valid is None:
        valid = manifest.get("valid", pool.valid)
    known, held = rows[pool.truth[rows] >= 0], rows[:0]
    if not isinstance(valid, Real):
        held = to_indices(read_rows(valid, "valid")["valid"], len(pool), "valid")
        require_among(pool, held, rows, "valid", "is a test row")
        require_among(pool, held, known, "valid", "has no known label")
    dropped = np.setdiff1d(to_indices(manifest.get("dropped", []), len(pool), "dropped"), pool.test)
    if imbalance is not None:
        dropped = np.setdiff1d(known, long_tail(known, pool.truth, imbalance, pool.class_names, seed, held))
    if chosen is None and labels is not None:
        chosen = draw_labeled(np.setdiff1d(known, dropped), pool.truth, labels, pool.class_names, seed, balance,
                              imbalance is not None, held)
    if isinstance(valid, Real):  # from what the labels leave, so that they stay
        amount = int(valid) if isinstance(valid, Integral) else float(valid)
        held = draw_valid(known, pool.truth, amount, seed, rows[:0] if chosen is None else chosen)
        if imbalance is not None:
            dropped = np.setdiff1d(known, long_tail(known, pool.truth, imbalance, pool.class_names, seed, held,
                                                    chosen))
    train = np.setdiff1d(rows, np.concatenate([held, dropped]))
    dropped, known = np.setdiff1d(dropped, held), train[pool.truth[train] >= 0]
    chosen = known if chosen is None else chosen
    require_among(pool, chosen, train, "labeled", "is a valid or test row")
    if "labels" in manifest:
        from ssl_lab.data.dataset import as_numbered

        names = tuple(manifest.get("class_names", pool.class_names))
        values = to_labels(manifest["labels"], len(chosen), len(names), "the manifest's labels")
        values = as_numbered(values, names, pool.class_names, f"the manifest {_brief(labeled)}", pool.name)
        values = values[np.argsort(manifest["labeled"])]
    else:
        require_among(pool, chosen, known, "labeled", "has no known label")
        values = pool.truth[chosen]
    ignored = np.setdiff1d(to_indices(manifest.get("ignored", []), len(pool), "ignored"), chosen)
    ignored = np.intersect1d(ignored, train)
    values = np.concatenate([values, np.full(len(ignored), IGNORED)])
    return replace(pool, train=train, valid=held, seed=seed, balance=None if labels is None else balance,
                   imbalance=manifest.get("imbalance", imbalance), dropped=dropped,
                   ledger=begun(Ledger(ledger), np.concatenate([chosen, ignored]), values))


def _manifest_of(pool: Pool, labeled: ArrayLike | str | os.PathLike[str]) -> dict[str, Any]:
    if isinstance(labeled, str | os.PathLike) and Path(labeled).suffix.lower() in (".csv", ".tsv"):
        return read_labels(Path(labeled), pool)
    manifest = read_rows(labeled, "labeled")
    if "pixels" in manifest and manifest["pixels"] != pool.images.fingerprint():
        raise UsageError(f"the manifest {_brief(labeled)} belongs to other images than {pool.name}'s")
    return manifest


def require_among(pool: Pool, rows: IntArray, allowed: IntArray, what: str, otherwise: str) -> None:
    """UsageError that names the first of `rows` which is not `allowed`, and says what it is instead."""
    wrong = np.setdiff1d(rows, allowed)
    if len(wrong):
        raise UsageError(f"{what}: row {wrong[0]} of {pool.name} {otherwise} ({len(wrong)} such rows)")


def begun(ledger: Ledger, rows: IntArray, labels: IntArray) -> Ledger:
    """Give a new ledger its first entry, or check that an old one began with the same."""
    if not ledger.entries:
        ledger.append(rows, labels, SPLIT)
    first = ledger.entries[0]
    if not (np.array_equal(first.indices, rows) and np.array_equal(first.labels, labels)):
        raise UsageError(f"{ledger.path} began with another split: {len(first.indices)} labels, not these "
                         f"{len(rows)}. Split with the same arguments as then, or name another ledger.")
    return ledger


def _brief(given: object) -> str:
    return str(given) if isinstance(given, str | os.PathLike) else "..."
