"""Every file below a folder, once: images and shards, and how many others there are, by what they are."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import NoReturn

from ssl_lab.data.decode import SUFFIXES
from ssl_lab.data.words import part_of
from ssl_lab.errors import UsageError

_OF_SYSTEMS = frozenset(["__macosx", "@eadir", "$recycle.bin", "system volume information", "lost+found",
                         "__pycache__", "thumbs.db", "desktop.ini", "ehthumbs.db"])
"""What operating systems leave in folders: as hidden as what begins with a dot."""
_MAGIC = (b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n", b"GIF87a", b"GIF89a", b"BM", b"II*\0", b"MM\0*")

Identity = tuple[int, int]
"""Device and number of a file: the same by whatever name it is reached."""


@dataclass
class Folder:
    """A folder, by its path relative to the root ("" of the root itself). images: paths relative to the root."""

    path: str
    images: list[str] = field(default_factory=list)
    folders: dict[str, Folder] = field(default_factory=dict)

    @property
    def name(self) -> str:
        return self.path.rpartition("/")[2]

    def all_images(self) -> Iterator[str]:
        """Those at any depth."""
        yield from self.images
        for folder in self.folders.values():
            yield from folder.all_images()

    def __bool__(self) -> bool:
        """Whether there is an image at any depth."""
        return bool(self.images) or any(self.folders.values())

    def full(self) -> dict[str, Folder]:
        """The sub-folders that hold images, sorted by name."""
        return {name: folder for name, folder in sorted(self.folders.items()) if folder}


@dataclass
class Found:
    """top: the root. identities: of each image file. shards: .tar files, sorted. passed_over: of the other files and
    of links, how many there are of a kind."""

    top: Folder
    identities: dict[str, Identity]
    shards: list[str]
    passed_over: Counter[str]


def walk(root: Path) -> Found:
    """What lies below `root`. UsageError if a folder there cannot be read.

    Image files are those with the suffix of an image, or with no suffix and the first bytes of one; those that are
    links are read. Folders that are links are read where class folders or parts may lie, in `root` or in a part, unless
    they lead to what is read anyway; else they are passed over and counted.
    """
    walker = _Walker(root)
    walker.read(walker.found.top)
    for parent, name in walker.links:
        walker.follow(parent, name)
    return walker.found


class _Walker:
    def __init__(self, root: Path) -> None:
        self.root = root
        self.found = Found(Folder(""), {}, [], Counter())
        self.links: list[tuple[Folder, str]] = []
        self.seen: set[Identity] = set()

    def read(self, folder: Folder) -> None:
        """Fills a folder, and those in it."""
        waiting = [folder]
        while waiting:
            now = waiting.pop()
            where = os.path.join(self.root, now.path) if now.path else str(self.root)
            try:
                status = os.stat(where)
                self.seen.add((status.st_dev, status.st_ino))
                with os.scandir(where) as entries:
                    for entry in sorted(entries, key=lambda entry: entry.name):
                        waiting += self._take(now, entry, status.st_dev)
            except OSError as error:
                _cannot_list(error, where)
        self.found.shards.sort()

    def _take(self, folder: Folder, entry: os.DirEntry[str], device: int) -> list[Folder]:
        """Notes an entry of a folder; if it is a folder, it is the answer."""
        path = f"{folder.path}/{entry.name}" if folder.path else entry.name
        is_folder = entry.is_dir()
        if entry.name.startswith(".") or entry.name.lower() in _OF_SYSTEMS:
            self.found.passed_over["hidden folders" if is_folder else "hidden files"] += 1
        elif is_folder and entry.is_symlink():
            self.links.append((folder, entry.name))
        elif is_folder:
            folder.folders[entry.name] = Folder(path)
            return [folder.folders[entry.name]]
        else:
            self._take_file(folder, entry, path, device)
        return []

    def _take_file(self, folder: Folder, entry: os.DirEntry[str], path: str, device: int) -> None:
        suffix = suffix_of(entry.name)
        if suffix in SUFFIXES or (not suffix and _looks_like_an_image(entry)):
            folder.images.append(path)
            self.found.identities[path] = _target(entry.path) if entry.is_symlink() else (device, entry.inode())
        else:
            self.found.passed_over[suffix or "without suffix"] += 1
            if suffix == ".tar":
                self.found.shards.append(path)

    def follow(self, parent: Folder, name: str) -> None:
        """Reads a folder that is a link, or counts it."""
        path = f"{parent.path}/{name}" if parent.path else name
        real = Path(os.path.realpath(self.root / path))
        may_be = all(part_of(above, doubtful=True) for above in Path(parent.path).parts)
        around = Path(os.path.realpath(self.root)).is_relative_to(real)
        if not may_be or around or _target(self.root / path) in self.seen:
            self.found.passed_over["links"] += 1
            return
        parent.folders[name] = Folder(path)
        self.read(parent.folders[name])


def suffix_of(name: str) -> str:
    """Of a file's name, in lower case: ".jpg"; ".tar.gz" whole; "" where what follows the last dot is no suffix."""
    stem, suffix = os.path.splitext(name.lower())
    if suffix in (".gz", ".bz2", ".xz", ".zst") and stem.endswith(".tar"):
        return ".tar" + suffix
    return suffix if 1 < len(suffix) <= 10 and suffix[1:].isalnum() and not suffix[1:].isdigit() else ""


def _looks_like_an_image(entry: os.DirEntry[str]) -> bool:
    try:
        if not entry.is_file():
            return False
        with open(entry.path, "rb") as file:
            begin = file.read(16)
    except OSError:
        return False
    return begin.startswith(_MAGIC) or (begin[:4], begin[8:12]) == (b"RIFF", b"WEBP")


def _target(path: str | Path) -> Identity:
    """What a link leads to; of one that leads nowhere, one of its own."""
    try:
        status = os.stat(path)
    except OSError:
        status = os.lstat(path)
    return status.st_dev, status.st_ino


def _cannot_list(error: OSError, where: str) -> NoReturn:
    raise UsageError(f"cannot read the folder {error.filename or where}: {error.strerror}. Mend that or remove it, and "
                     "start again") from error
