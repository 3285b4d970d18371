"""What people said of a pool's images, durable in a folder."""

from __future__ import annotations

import json
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from ssl_lab.active.people.carry import carried
from ssl_lab.active.people.keys import ABSTAIN, IGNORE, Answer
from ssl_lab.active.queries.view import IGNORED, UNLABELED, IntArray
from ssl_lab.class_names import apart, shown
from ssl_lab.data import Ledger, Pool
from ssl_lab.data.ledger import SPLIT
from ssl_lab.errors import UsageError, unknown
from ssl_lab.files import write_text

_ABSTAINED = -3
ASKED, CORRECTED = "asked", "asked, corrected"
"""How the source of a label begins that the loop's oracle gave."""
_DATA = "data"  # the source of labels that came with images that were added


class Answers:
    """The answers in a folder: labels.jsonl (the ledger, unless the pool's has a file), classes.json, abstained.json.

    `pool` is the given one with that ledger, and with the classes that answers founded, each under the number that it
    has in the ledger: classes.json says which. new_classes: whether a name that is not known founds a class; else it is
    an error, as it may be a typo. Images may have been added since (`carry`). UsageError if images were removed or
    changed, or classes of the data renamed or removed.
    """

    def __init__(self, pool: Pool, folder: Path, new_classes: bool) -> None:
        pool, renumbered = carried(pool, folder)
        self.folder, self.new_classes, self._given = folder, new_classes, pool.class_names
        path = folder / "classes.json"
        self._founded: list[str] = []
        if path.exists():
            before = read_json(path, {})
            self._names, self._founded = tuple(before["names"]), before["founded"]
            pool = _numbered(pool, (*self._names, *self._founded), self._names, folder)
            self._founded += pool.class_names[len(self._names) + len(self._founded):]
        else:
            self._names = pool.class_names
        self._write_classes()
        self.pool = _durable(pool, folder / "labels.jsonl", renumbered)
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
            self._founded += names[self.pool.classes:]
            self._write_classes()
            self.pool = replace(self.pool, class_names=tuple(names))
        said = values != _ABSTAINED
        abstained = (self._abstained - set(rows[said].tolist())) | set(rows[~said].tolist())
        if abstained != self._abstained:
            write_text(self.folder / "abstained.json", json.dumps(sorted(abstained)) + "\n")
            self._abstained = abstained
        if said.any():
            self.pool.record(rows[said], values[said], source)

    def in_words(self, answers: Iterable[Answer]) -> list[Answer]:
        """The answers of someone who numbers classes as the pool did that this was made with, each by its name."""
        return [self._given[answer] if isinstance(answer, int | np.integer) and 0 <= answer < len(self._given)
                else answer for answer in answers]

    def named(self, i: int) -> str:
        """What is recorded of an image, in words."""
        label = int(self.pool.labels[i])
        if label == UNLABELED:
            return ABSTAIN if i in self._abstained else "no answer"
        return IGNORE if label == IGNORED else self.pool.class_names[label]

    def corrected(self, answers: Mapping[int, Answer], asked: Collection[int]) -> dict[int, Answer]:
        """Those of the answers that say something else than when they were taken. asked: the ids that were asked for.

        Only what was last said by the oracle counts, not what was told over it since, and no class that is founded now.
        """
        last = {int(i): entry.source for entry in self.pool.ledger.entries for i in entry.indices}
        labels = self.pool.labels
        changed: dict[int, Answer] = {}
        for i, answer in answers.items():
            now = _ABSTAINED if i in self._abstained and labels[i] == UNLABELED else int(labels[i])
            taken = now == _ABSTAINED or (now != UNLABELED and last[i].startswith(ASKED))
            if i in asked and taken and self._value(self.in_words([answer])[0], [*self.pool.class_names]) != now:
                changed[i] = answer
        return changed

    def _write_classes(self) -> None:
        content = {"names": self._names, "founded": self._founded}
        path = self.folder / "classes.json"
        if read_json(path, None) != json.loads(json.dumps(content)):
            write_text(path, json.dumps(content) + "\n")

    def _value(self, answer: Answer, names: list[str]) -> int:
        """The number of an answer; adds a name that founds a class to `names`."""
        if isinstance(answer, str) and answer not in names:
            answer = {IGNORE: IGNORED, ABSTAIN: None}.get(answer, answer)
        if answer is None:
            return _ABSTAINED
        if isinstance(answer, str):
            if answer not in names:
                if not self.new_classes:
                    raise unknown("class", answer, names, "To add a class: --new-classes (new_classes=True).")
                names.append(answer)
            return names.index(answer)
        if not isinstance(answer, int | np.integer) or not IGNORED <= answer < self.pool.classes:
            raise UsageError(f"tell: label {answer!r} is no answer; expected a class number below "
                             f"{self.pool.classes}, a class name, -2 to ignore, -1 to take a label back, or None to "
                             "abstain")
        return int(answer)


def _numbered(pool: Pool, names: tuple[str, ...], data: tuple[str, ...], folder: Path) -> Pool:
    """The pool with its classes in the order of `names`, behind which come those that it has more. data: the first of
    them, which it must have."""
    if not {*data} <= {*pool.class_names}:
        before, now = apart(data, pool.class_names)
        raise UsageError(f"{folder} holds labels of the classes {before}; {pool.name} now has {now}: a label would "
                         "be of another class. Give classes their old names, or start afresh in another folder")
    order = (*names, *(name for name in pool.class_names if name not in names))
    if pool.class_names == order[:pool.classes]:
        return replace(pool, class_names=order)
    if pool.ledger.path is not None:
        raise UsageError(f"{folder} began with the classes {shown(data)}, and the labels in {pool.ledger.path} are of "
                         f"{shown(pool.class_names)}, in this order: give them as then")
    number = np.array([order.index(name) for name in pool.class_names])

    def moved(labels: IntArray) -> IntArray:
        return np.where(labels >= 0, number[labels], labels)

    ledger = Ledger()
    for entry in pool.ledger.entries:
        ledger.append(entry.indices, moved(entry.labels), entry.source, entry.when)
    return replace(pool, class_names=order, truth=moved(pool.truth), ledger=ledger)


def _durable(pool: Pool, path: Path, renumbered: bool) -> Pool:
    """The pool with a ledger in a file: its own, or one at `path` that begins as its own does. renumbered: see
    `people.carry`: labels were drawn from fewer images then, or, if none were drawn, the data may have more of them."""
    if pool.ledger.path is not None:
        return pool
    ledger, given = Ledger(path), pool.ledger.entries
    if renumbered:
        if pool.balance is None:
            _take_in(ledger, pool, path)
        return replace(pool, ledger=ledger)
    for old, new in zip(ledger.entries, given, strict=False):
        if not (np.array_equal(old.indices, new.indices) and np.array_equal(old.labels, new.labels)):
            raise UsageError(f"{path} began with other labels than this pool: split it as then, or choose another "
                             "folder")
    for entry in given[len(ledger.entries):]:
        ledger.append(entry.indices, entry.labels, entry.source, entry.when)
    return replace(pool, ledger=ledger)


def _take_in(ledger: Ledger, pool: Pool, path: Path) -> None:
    """Adds the labels of images that came with one. UsageError if the data label another one otherwise than then."""
    first: dict[int, int] = {}
    for entry in ledger.entries:
        for row, label in zip(entry.indices.tolist(), entry.labels.tolist(), strict=True):
            first.setdefault(row, label if entry.source in (SPLIT, _DATA) else UNLABELED)
    said = pool.labels
    rows = pool.train[said[pool.train] != UNLABELED]
    if others := sum(first.get(row, UNLABELED) not in (UNLABELED, said[row]) for row in rows.tolist()):
        raise UsageError(f"{path} began with other labels of {others} images than {pool.name} has now: label them as "
                         "then, or choose another folder")
    new = np.array([row for row in rows.tolist() if row not in first], dtype=np.int64)
    if len(new):
        ledger.append(new, said[new], _DATA)


def read_json(path: Path, default: Any) -> Any:
    """What a JSON file holds; `default` if there is none."""
    if not path.exists():
        return default
    try:
        return json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise UsageError(f"cannot read {path}: {error}") from error
