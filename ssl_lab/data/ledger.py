"""The label ledger: every label ever given, in order, and never lost once `append` has returned."""

from __future__ import annotations

import json
import os
import warnings
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
from numpy.typing import ArrayLike

from ssl_lab.data.arrays import IntArray
from ssl_lab.errors import UsageError
from ssl_lab.files import cannot_write, make_folder, sync
from ssl_lab.locks import lock

UNLABELED = -1
IGNORED = -2
"""The label of an image that is to be left out: not a picture of any class, or not usable."""

SPLIT = "split"
"""The source of the labels that a split starts with; they cannot be undone."""

_HEADER = b'{"format":"ssl_lab.ledger","version":1}\n'


@dataclass(frozen=True, eq=False)
class Entry:
    """Labels that came together. indices, labels: int64 [n]. source: who gave them. when: in ISO 8601, UTC; "" in
    ledgers from before it was kept."""

    indices: IntArray
    labels: IntArray
    source: str
    when: str = ""


class Ledger:
    """An append-only list of labels, in memory, or in a file of JSON lines.

    A later entry for an image wins over an earlier one (relabel); label -2 takes the image out (ignore), -1
    takes its label back; `undo` withdraws the last entry, and is itself written down. When a call returns,
    its line is on the disk. A line that was torn by a kill or a full disk never counts: it is dropped, with a
    warning, and the next `append` overwrites it. Processes that write take turns.

    Args:
        path: of the file; None keeps it in memory.

    >>> ledger = sl.data.Ledger("labels.jsonl")
    >>> ledger.append([0, 1], [7, 3], source="me")
    >>> ledger.append([1], [5])  # a later entry wins
    >>> sl.data.Ledger("labels.jsonl").labels(3)
    array([ 7,  5, -1])
    """

    def __init__(self, path: str | os.PathLike[str] | None = None) -> None:
        """Read `path` if it exists; it is created by the first `append`. UsageError for a foreign file."""
        self.path = None if path is None else Path(path)
        self._entries: list[Entry] = []
        self._lines = 0
        self._size = 0
        self._current: IntArray | None = None
        if self._read():
            warnings.warn(f"{self.path}: the last line is torn (a kill in the middle of a write); the "
                          f"{len(self._entries)} whole entries before it are used", stacklevel=2)

    @property
    def entries(self) -> tuple[Entry, ...]:
        """The entries in effect, oldest first, without the undone ones."""
        return tuple(self._entries)

    def append(self, indices: ArrayLike, labels: ArrayLike, source: str = "oracle", when: str | None = None) -> None:
        """Add labels (-1 unlabeled, -2 ignored, else a class number), int [n], for the images `indices`, int [n].

        They are durable when this returns; if it raises, none of them was recorded.

        Args:
            when: now, unless it was said before.
        """
        record = {"indices": np.asarray(indices).tolist(), "labels": np.asarray(labels).tolist(),
                  "source": source, "when": now() if when is None else when}
        _entry(record, "labels to record")
        self._write(record)

    def undo(self) -> Entry:
        """Withdraw the last entry in effect, durably, and return it. UsageError if there is none to undo."""
        self._read()
        if not self._entries or self._entries[-1].source == SPLIT:
            raise UsageError("nothing to undo: the ledger holds no label beyond those of the split")
        undone = self._entries[-1]
        self._write({"undo": True})
        return undone

    def labels(self, n: int) -> IntArray:
        """int64 [n], read-only: the labels now, of images 0..n-1. UsageError if an entry lies beyond n."""
        if self._current is None or len(self._current) != n:
            current = np.full(n, UNLABELED, dtype=np.int64)
            for entry in self._entries:
                if len(entry.indices) and entry.indices.max() >= n:
                    raise UsageError(f"{self.path or 'the ledger'} labels image {entry.indices.max()}, but "
                                     f"there are only {n} images: it belongs to other data")
                current[entry.indices] = entry.labels
            current.flags.writeable = False
            self._current = current
        return self._current

    def _write(self, record: dict[str, object]) -> None:
        line = json.dumps(record, separators=(",", ":")).encode() + b"\n"
        if self.path is None:
            self._apply(line)
            return
        try:
            written = self._write_durably(line)
        except OSError as error:
            raise cannot_write(self.path, error) from error
        self._size += written
        self._apply(line)

    def _write_durably(self, line: bytes) -> int:
        """Replace whatever follows the last whole line by this one; returns how many bytes were written."""
        assert self.path is not None
        created = not self.path.exists()
        if created and self._size:
            raise UsageError(f"the label ledger {self.path} was removed while in use. Restore it, or start again")
        make_folder(self.path.parent)
        handle = os.open(self.path, os.O_RDWR | os.O_CREAT, 0o644)
        try:
            lock(handle, wait=True)
            self._read()  # what another process added since, so that it is not overwritten
            content = line if self._size else _HEADER + line
            os.ftruncate(handle, self._size)
            try:
                left = content
                while left:
                    left = left[os.pwrite(handle, left, self._size + len(content) - len(left)):]
                os.fsync(handle)
            except OSError:
                os.ftruncate(handle, self._size)
                raise
        finally:
            os.close(handle)
        if created:
            sync(self.path.parent)
        return len(content)

    def _read(self) -> bool:
        """Take in the whole lines that follow those already read; True if a torn line follows them."""
        if self.path is None or not self.path.exists():
            return False
        try:
            with self.path.open("rb") as file:
                if file.seek(0, os.SEEK_END) < self._size:
                    raise UsageError(f"the label ledger {self.path} was cut while in use. Restore it, or start again")
                file.seek(self._size)
                content = file.read()
        except OSError as error:
            raise UsageError(f"cannot read the label ledger {self.path}: {error.strerror}") from error
        if self._size == 0:
            if not _HEADER.startswith(content[:len(_HEADER)]):
                raise UsageError(f"{self.path} is not a label ledger. Name another file.")
            if len(content) < len(_HEADER):
                return bool(content)
            self._size, content = len(_HEADER), content[len(_HEADER):]
        *lines, rest = content.split(b"\n")
        for number, line in enumerate(lines):
            if number == len(lines) - 1 and not rest and not _is_json(line):
                return True  # a power cut can leave the length of a line without its bytes
            self._apply(line)
            self._size += len(line) + 1
        return bool(rest)

    def _apply(self, line: bytes) -> None:
        self._current = None
        self._lines += 1
        where = f"{self.path or 'ledger'}, entry {self._lines}"
        if not _is_json(line):
            raise UsageError(f"{where}: damaged. Restore the file, or cut it before that line.")
        record = json.loads(line)
        if isinstance(record, dict) and record.get("undo") is True and self._entries:
            self._entries.pop()
        else:
            self._entries.append(_entry(record, where))


def now() -> str:
    """The time in ISO 8601, UTC, to the second."""
    return datetime.now(UTC).isoformat(timespec="seconds")


def _is_json(line: bytes) -> bool:
    try:
        json.loads(line)
    except ValueError:
        return False
    return True


def _entry(record: object, where: str) -> Entry:
    """Check a record and give it its types."""
    fields = record if isinstance(record, dict) else {}
    indices, labels = (_whole(fields.get(key), f"{where}: {key}") for key in ("indices", "labels"))
    if len(indices) != len(labels):
        raise UsageError(f"{where}: {len(indices)} indices but {len(labels)} labels")
    if len(indices) and (indices.min() < 0 or labels.min() < IGNORED):
        raise UsageError(f"{where}: index {indices.min()} or label {labels.min()} is out of range; indices "
                         f"start at 0, labels at {IGNORED}")
    return Entry(indices, labels, str(fields.get("source", "")), str(fields.get("when", "")))


def _whole(values: object, what: str) -> IntArray:
    if not isinstance(values, list) or not all(type(value) is int and abs(value) < 2**62 for value in values):
        raise UsageError(f"{what} must be a list of whole numbers")
    return np.array(values, dtype=np.int64)
