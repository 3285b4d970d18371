"""Which images a pool has, kept in a folder's images.npz: so that data may move, and what came and went can be said."""

from __future__ import annotations

import io
import json
from collections import defaultdict, deque
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ssl_lab.data.arrays import IntArray
from ssl_lab.data.images import Contents
from ssl_lab.errors import UsageError
from ssl_lab.files import write_atomically

if TYPE_CHECKING:
    from ssl_lab.data.pool import Pool

NAME = "images.npz"
TRAIN, VALID, TEST, DROPPED = range(4)


@dataclass(frozen=True, eq=False)
class Inventory:
    """The images of a pool. fingerprint, shape: of all. parts: int64 [N]: 0 train, 1 valid, 2 test, 3 dropped. files:
    the name of each row's file below `root`, or (). contents: uint64 [N], a hash of each row's image, None where there
    are too many bytes to read. carried: whether the rows were numbered otherwise once; see `active.people.carry`."""

    fingerprint: str
    shape: tuple[int, ...]
    parts: IntArray
    root: str = ""
    files: tuple[str, ...] = ()
    contents: Contents | None = None
    carried: bool = False

    def __len__(self) -> int:
        return len(self.parts)

    def rows(self, part: int) -> IntArray:
        """int64, sorted: the rows of a part."""
        return np.flatnonzero(self.parts == part)

    def to_bytes(self) -> bytes:
        """As images.npz has it. No pickles: arrays, and JSON as bytes."""
        text = json.dumps({"fingerprint": self.fingerprint, "shape": self.shape, "root": self.root, "files": self.files,
                           "carried": self.carried})
        arrays: dict[str, Any] = {"text": np.frombuffer(text.encode(), np.uint8), "parts": self.parts.astype(np.int8)}
        if self.contents is not None:
            arrays["contents"] = self.contents
        file = io.BytesIO()
        np.savez_compressed(file, **arrays)
        return file.getvalue()


@dataclass(frozen=True, eq=False)
class Change:
    """What became of images. rows: int64 [before], the row now of each row before, -1 if it is gone or changed. Counts:
    added, removed; changed (other content under the name); renamed (the same content under another name)."""

    rows: IntArray
    added: int
    removed: int
    changed: int
    renamed: int
    same: bool

    def __str__(self) -> str:
        counts = {"added": self.added, "removed": self.removed, "changed under their names": self.changed,
                  "renamed": self.renamed}
        said = [f"{count:,} {what}" for what, count in counts.items() if count]
        return f"{', '.join(said) if said else 'none added or removed, but in another order'} (of {len(self.rows):,})"


def inventory(pool: Pool) -> Inventory:
    """Of this pool, as it is now."""
    parts = np.full(len(pool), TRAIN)
    for part, rows in ((VALID, pool.valid), (TEST, pool.test), (DROPPED, pool.dropped)):
        parts[rows] = part
    return Inventory(pool.images.fingerprint(), pool.images.shape, parts, pool.root, pool.files, pool.images.contents())


def write_inventory(folder: Path, content: Inventory) -> None:
    """Into the folder's images.npz."""
    data = content.to_bytes()
    write_atomically(folder / NAME, lambda file: file.write(data))


def read_inventory(folder: Path) -> Inventory | None:
    """From the folder's images.npz; None if there is none. UsageError if it is no such file."""
    path = folder / NAME
    if not path.exists():
        return None
    try:
        with np.load(path, allow_pickle=False) as file:
            text = json.loads(file["text"].tobytes())
            return Inventory(text["fingerprint"], tuple(text["shape"]), file["parts"].astype(np.int64), text["root"],
                             tuple(text["files"]), file.get("contents"), text["carried"])
    except Exception as error:  # damaged arrays raise nearly anything
        raise UsageError(f"cannot read {path}, the list of the images: {error}. Restore it, or remove it if the images "
                         "are the same as then") from error


def change(before: Inventory, now: Inventory) -> Change:
    """What became of the images: held together by name and content, then, what is left, by content alone."""
    if before.fingerprint == now.fingerprint:
        return Change(np.arange(len(before)), 0, 0, 0, 0, same=True)
    rows = np.full(len(before), -1)
    known = before.contents is not None and now.contents is not None and before.shape == now.shape
    named = {file: row for row, file in enumerate(now.files) if file}
    under = np.array([named.get(file, -1) for file in before.files] or rows, dtype=np.int64)
    alike = under >= 0
    if known and before.contents is not None and now.contents is not None:
        alike &= before.contents == now.contents[under]
    rows[alike] = under[alike]
    taken = set(rows[alike].tolist())
    if known and before.contents is not None and now.contents is not None:
        free: dict[int, deque[int]] = defaultdict(deque)
        for row, content in enumerate(now.contents.tolist()):
            if row not in taken:
                free[content].append(row)
        for row in np.flatnonzero(rows < 0).tolist():
            if places := free.get(int(before.contents[row])):
                rows[row] = places.popleft()
    found = set(rows[rows >= 0].tolist())
    lost = np.flatnonzero(rows < 0)
    changed = sum(int(under[row]) >= 0 and int(under[row]) not in found for row in lost.tolist())
    renamed = int((rows[~alike] >= 0).sum()) if before.files and now.files else 0
    return Change(rows, len(now) - len(found) - changed, len(lost) - changed, changed, renamed, same=False)


def require_same(folder: Path, pool: Pool, what: str) -> None:
    """UsageError if a folder's images are others than the pool's; writes down which they are where nothing is yet.

    what: e.g. "the runs in OUT are of".
    """
    before, now = read_inventory(folder), inventory(pool)
    if before is not None and (said := difference(before, now)):
        raise UsageError(f"{what} other images: {said}. Put the images back, or take another --out")
    write_inventory(folder, now)


def difference(before: Inventory, now: Inventory) -> str:
    """What is different about the images, in words; "" if nothing is."""
    found = change(before, now)
    if found.same:
        return ""
    if before.shape != now.shape:
        return (f"{_size(before.shape)} px then, {_size(now.shape)} px now (--image-size sets it, by default it is the "
                f"median of the files' shorter sides){f'; {found}' if before.files and now.files else ''}")
    return str(found)


def _size(shape: Sequence[int]) -> str:
    _, height, width = shape
    return f"{width}x{height}"
