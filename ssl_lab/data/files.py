"""Where data lie, files that are read, folders that are either whole or not there, and checksums."""

from __future__ import annotations

import hashlib
import io
import os
import shutil
import sys
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

from ssl_lab.files import cannot_write, make_folder, sync
from ssl_lab.files import data_folder as data_folder
from ssl_lab.locks import lock

_LARGE = 2**20  # bytes: what is read without a look at how many are left


class Bounded(io.BufferedReader):
    """A file to read, of which `read` takes no memory for more than is there: of damaged files the headers promise
    gigabytes."""

    def __init__(self, path: Path) -> None:
        super().__init__(io.FileIO(path))

    def read(self, size: int | None = -1, /) -> bytes:
        if size is not None and size > _LARGE:
            size = min(size, max(0, os.fstat(self.fileno()).st_size - self.tell()))
        return super().read(size)


@contextmanager
def new_folder(path: Path) -> Iterator[Path]:
    """A temporary folder that becomes `path` when the block succeeds, and vanishes when it does not.

    If another process made `path` meanwhile, that one stays. An OSError in the block counts as one of writing
    there, and becomes a UsageError.
    """
    temporary = None
    try:
        make_folder(path.parent)
        temporary = Path(tempfile.mkdtemp(prefix=f".{path.name}-", dir=path.parent))
        yield temporary
        for file in temporary.iterdir():
            sync(file)
        temporary.chmod(0o755)  # mkdtemp's 0700 would shut out the other users of a shared data folder
        try:
            temporary.rename(path)
        except OSError:
            if not path.is_dir():
                raise
        sync(path.parent)
    except BrokenPipeError:  # of what was printed in the block
        raise
    except OSError as error:
        raise cannot_write(path, error) from error
    finally:
        if temporary is not None:
            shutil.rmtree(temporary, ignore_errors=True)


@contextmanager
def alone(path: Path) -> Iterator[None]:
    """Within this, no other process is within it for the same `path`: it waits, by a lock on `path`.lock, which stays.

    A note says so where it has to wait. What a killed process left of a `new_folder` for `path` is removed. On a file
    system without locks, or where none can be written, nobody waits.
    """
    with ExitStack() as held:
        with suppress(OSError):
            make_folder(path.parent)
            file = held.enter_context(path.with_name(f"{path.name}.lock").open("w"))
            found = lock(file.fileno())
            if found == "taken":
                if os.environ.get("RANK", "0") == "0":
                    print(f"note: another process makes {path}; this one waits for it", file=sys.stderr)
                found = lock(file.fileno(), wait=True)
            if found == "held":
                for left in path.parent.glob(f".{path.name}-*"):
                    shutil.rmtree(left, ignore_errors=True)
        yield


class Hold:
    """Keeps a cache: a shared lock on its folder for as long as this object lives, which `ssl-lab cache` respects. Also
    notes that it is used now, as the folder's time of change. Does nothing where there are no locks."""

    def __init__(self, folder: Path) -> None:
        self._handle: int | None = None
        with suppress(OSError):
            self._handle = os.open(folder, os.O_RDONLY)
            lock(self._handle, shared=True)
        with suppress(OSError):  # of a shared folder that is not ours
            os.utime(folder)

    def __del__(self) -> None:
        if self._handle is not None:
            with suppress(OSError):
                os.close(self._handle)


def identity(path: Path) -> tuple[int, int] | None:
    """Of a file that is there: device and number."""
    try:
        status = os.stat(path)
    except (OSError, ValueError):
        return None
    return status.st_dev, status.st_ino


def sha256_file(path: Path) -> str:
    """sha256 of a file's bytes, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
