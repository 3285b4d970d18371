"""Files that are either whole or as they were: written beside their target, synced to disk, renamed over it."""

from __future__ import annotations

import contextlib
import errno
import os
from collections.abc import Callable
from pathlib import Path
from typing import IO

from ssl_lab.errors import UsageError


def data_folder(data_dir: str | os.PathLike[str] | None = None) -> Path:
    """Where data sets, weights and caches lie: `data_dir`, else $SSL_LAB_DATA, else ~/.cache/ssl_lab."""
    chosen = data_dir or os.environ.get("SSL_LAB_DATA") or "~/.cache/ssl_lab"
    return Path(chosen).expanduser()


def write_atomically(path: Path, write: Callable[[IO[bytes]], object]) -> None:
    """Calls write(file) on a new file in path's folder; `path` changes only when all of it is on disk.

    Makes missing folders. Raises UsageError for a full disk, a read-only folder and the like.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        make_folder(path.parent)
        with temporary.open("wb") as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
        sync(path.parent)
    except OSError as error:
        raise cannot_write(path, error) from error
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)


def reserve(file: IO[bytes], size: int) -> None:
    """Makes an open file `size` bytes long, of zeros, that have their place on the disk: an OSError if it is full.

    A file that is only stretched has none, and a process that writes into a map of it is killed where the disk ends.
    """
    file.flush()
    start = os.fstat(file.fileno()).st_size
    if size <= start:
        return
    try:
        os.posix_fallocate(file.fileno(), start, size - start)
    except (AttributeError, OSError) as error:  # macOS has no such call, some file systems do not know it
        if isinstance(error, OSError) and error.errno not in (errno.EOPNOTSUPP, errno.EINVAL, errno.ENOSYS):
            raise
        place, zeros = file.tell(), bytes(2**20)
        file.seek(start)
        for written in range(start, size, len(zeros)):
            file.write(zeros[: size - written])
        file.flush()
        file.seek(place)


def write_text(path: Path, text: str) -> None:
    """`write_atomically` for a short text, in UTF-8."""
    write_atomically(path, lambda file: file.write(text.encode()))


def cannot_write(path: Path, error: OSError) -> UsageError:
    """The error for a full disk, a read-only folder and the like."""
    return UsageError(f"cannot write {path}: {error.strerror or error}. "
                      "Free some space there, or choose another folder.")


def make_folder(path: Path) -> None:
    """Makes a folder and the missing ones above it, as durably as what will be written there."""
    missing = [folder for folder in (path, *path.parents) if not folder.exists()]
    path.mkdir(parents=True, exist_ok=True)
    for folder in missing:
        sync(folder.parent)


def sync(path: Path) -> None:
    """Waits until a file's content, or a folder's list of names, is on the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
