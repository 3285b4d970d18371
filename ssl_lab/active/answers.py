"""What people said of a pool's images, durable in a folder."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from ssl_lab.active.oracle import ABSTAIN, IGNORE, Answer
from ssl_lab.active.query import IGNORED, UNLABELED, IntArray
from ssl_lab.data import Ledger, Pool
from ssl_lab.errors import UsageError, unknown
from ssl_lab.files import write_text

_ABSTAINED = -3


class Answers:
    """The answers in a folder: labels.jsonl (the ledger, unless the pool's has a file), classes.json, abstained.json.

    `pool` is the given one with that ledger, and with the classes that answers founded. new_classes: whether a name
    that is not known founds a class; else it is an error, as it may be a typo.
    """

    def __init__(self, pool: Pool, folder: Path, new_classes: bool) -> None:
        self.folder, self.new_classes = folder, new_classes
        names = [name for name in read_json(folder / "classes.json", []) if name not in pool.class_names]
        self.pool = _durable(replace(pool, class_names=(*pool.class_names, *names)), folder / "labels.jsonl")
        self._abstained: set[int] = set(read_json(folder / "abstained.json", []))

    @property
    def abstained(self) -> IntArray:
        """int64, sorted: the ids that nobody would label; they stay unlabeled."""
        return np.array(sorted(i for i in self._abstained if self.pool.labels[i] == UNLABELED), dtype=np.int64)

    def record(self, ids: ArrayLike, labels: Sequence[Answer] | IntArray, source: str) -> None:
        """See `ActiveLoop.tell`. source: who said so, for the ledger."""
        given, answers = np.asarray(ids), list(labels)
        if given.size and not np.issubdtype(given.dtype, np.integer):
            raise UsageError(f"tell: ids are of {given.dtype}; expected whole numbers")
        rows = given.astype(np.int64)
        if rows.shape != (len(answers),) or len(np.unique(rows)) != len(rows):
            raise UsageError(f"tell: {rows.size} ids for {len(answers)} labels; expected a label for each id, and "
                             "no id twice")
        strays = np.setdiff1d(rows, self.pool.train)
        if len(strays):
            raise UsageError(f"tell: row {strays[0]} of {self.pool.name} is not a train row ({len(strays)} such rows)")
        names = list(self.pool.class_names)
        values = np.array([self._value(answer, names) for answer in answers], dtype=np.int64)
        if len(names) > self.pool.classes:  # before a label says so: a class without images does no harm
            founded = names[self.pool.classes:]
            grown = replace(self.pool, class_names=tuple(names))
            path = self.folder / "classes.json"
            write_text(path, json.dumps(read_json(path, []) + founded) + "\n")
            self.pool = grown
        said = values != _ABSTAINED
        abstained = (self._abstained - set(rows[said].tolist())) | set(rows[~said].tolist())
        if abstained != self._abstained:
            write_text(self.folder / "abstained.json", json.dumps(sorted(abstained)) + "\n")
            self._abstained = abstained
        if said.any():
            self.pool.record(rows[said], values[said], source)

    def _value(self, answer: Answer, names: list[str]) -> int:
        """The number of an answer; adds a name that founds a class to `names`."""
        if isinstance(answer, str) and answer not in names:
            answer = {IGNORE: IGNORED, ABSTAIN: None}.get(answer, answer)
        if answer is None:
            return _ABSTAINED
        if isinstance(answer, str):
            if answer not in names:
                if not self.new_classes:
                    raise unknown("class", answer, names, "To add a class, make the loop with new_classes=True.")
                names.append(answer)
            return names.index(answer)
        if not isinstance(answer, int | np.integer) or not IGNORED <= answer < self.pool.classes:
            raise UsageError(f"tell: label {answer!r} is no answer; expected a class number below "
                             f"{self.pool.classes}, a class name, -2 to ignore, -1 to take a label back, or None to "
                             "abstain")
        return int(answer)


def _durable(pool: Pool, path: Path) -> Pool:
    """The pool with a ledger in a file: its own, or one at `path` that begins as its own does."""
    if pool.ledger.path is not None:
        return pool
    ledger, given = Ledger(path), pool.ledger.entries
    for old, new in zip(ledger.entries, given, strict=False):
        if not (np.array_equal(old.indices, new.indices) and np.array_equal(old.labels, new.labels)):
            raise UsageError(f"{path} began with other labels than this pool: split it as then, or choose another "
                             "folder")
    for entry in given[len(ledger.entries):]:
        ledger.append(entry.indices, entry.labels, entry.source)
    return replace(pool, ledger=ledger)


def read_json(path: Path, default: Any) -> Any:
    """What a JSON file holds; `default` if there is none."""
    if not path.exists():
        return default
    try:
        return json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise UsageError(f"cannot read {path}: {error}") from error
