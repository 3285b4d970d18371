"""What is kept on disk to start faster: decoded images, indexes of shards, features, copies of what lies elsewhere;
listed, and removed if wanted."""

from __future__ import annotations

import json
import os
import re
import shutil
import time
from pathlib import Path
from typing import Any, NamedTuple

from ssl_lab.data.files import data_folder
from ssl_lab.data.remote import LISTING
from ssl_lab.errors import UsageError
from ssl_lab.locks import lock

OLD_DAYS = 30
_FILES = {"images.npy": "decoded images", "members.npy": "index of shards", "features.npy": "features"}
_OURS = {*_FILES, "meta.json", "skipped.json", "contents.npy", "spans.npy", "index.faiss", "index.json"}


class Kept(NamedTuple):
    """A cache. what: of which kind. source: the folder, data set or address that it is of. rows: images in it, or, as
    `unit` says, files. size: in bytes. used: when it was last opened, in seconds since 1970."""

    folder: Path
    what: str
    source: str
    rows: int
    size: int
    used: float
    unit: str = "images"


def kept(data_dir: str | os.PathLike[str] | None = None) -> list[Kept]:
    """The caches of a data folder, those that were used last first. Folders that hold anything else are none."""
    found, rooms = [], [data_folder(data_dir) / name for name in ("cache", "features", "remote")]
    for folder in (path for room in rooms for path in room.glob("*")):
        if not re.fullmatch(r"[0-9a-f]{24}", folder.name) or folder.is_symlink() or not folder.is_dir():
            continue
        if folder.parent.name == "remote":
            found += _copy(folder)
            continue
        files = {file.name: file for file in folder.iterdir()}
        what = next((kind for name, kind in _FILES.items() if name in files), None)
        try:
            meta: dict[str, Any] = json.loads((folder / "meta.json").read_text(encoding="utf-8"))
            source, rows = str(meta.get("root", meta.get("data", ""))), int((meta.get("shape") or [meta["rows"]])[0])
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            continue
        if what is not None and files.keys() <= _OURS:
            states = [os.lstat(file) for file in files.values()]
            used = max(os.stat(folder).st_mtime, *(state.st_mtime for state in states))
            found.append(Kept(folder, what, source, rows, sum(state.st_size for state in states), used))
    return sorted(found, key=lambda each: -each.used)


def _copy(folder: Path) -> list[Kept]:
    """A copy of what lies elsewhere, whole or in part."""
    inside = {path.name for path in folder.iterdir()}
    if not inside & {"files", "parts"} or not inside <= {"files", "parts", LISTING}:
        return []
    try:
        source = str(json.loads((folder / LISTING).read_text(encoding="utf-8"))["address"])
    except (OSError, ValueError, KeyError, TypeError):
        source = "an address, not all of it yet"
    states = [os.lstat(path) for path in folder.rglob("*") if not path.is_dir()]
    used = max(os.stat(folder).st_mtime, *(state.st_mtime for state in states), 0.0)
    count = sum(path.is_file() for part in ("files", "parts") for path in (folder / part).rglob("*"))
    return [Kept(folder, "copied", source, count, sum(state.st_size for state in states), used, "files")]


def remove(which: str, data_dir: str | os.PathLike[str] | None = None) -> tuple[list[Kept], list[Kept]]:
    """Removes caches, and says which were removed and which stay because a process holds them.

    which: "all", "old" (not used for 30 days), or the name of one. UsageError if there is none of that name.
    """
    there = kept(data_dir)
    chosen = [each for each in there if which == "all" or each.folder.name == which
              or (which == "old" and time.time() - each.used > OLD_DAYS * 86400)]
    if not chosen and which not in ("all", "old"):
        raise UsageError(f"there is no cache {which!r}; expected all, old, or a name that `ssl-lab cache` lists")
    gone, held = list[Kept](), list[Kept]()
    for each in chosen:
        (gone if _removed(each.folder) else held).append(each)
    return gone, held


def _removed(folder: Path) -> bool:
    """Whether it is gone: nobody held it, or made it just now. Where there are no locks, nobody knows: it stays."""
    maker = folder.with_name(f"{folder.name}.lock")
    handles = [os.open(path, os.O_RDONLY) for path in (folder, maker) if path.exists()]
    try:
        if any(lock(handle) != "held" for handle in handles):
            return False
        shutil.rmtree(folder)
    except OSError:
        return False
    finally:
        for handle in handles:
            os.close(handle)
    return True
