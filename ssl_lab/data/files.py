"""Where data lie, folders that are either whole or not there, and checksums."""

from __future__ import annotations

import hashlib
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ssl_lab.files import cannot_write, sync


def data_folder(data_dir: str | os.PathLike[str] | None = None) -> Path:
    """Where data sets and caches lie: `data_dir`, else $SSL_LAB_DATA, else ~/.cache/ssl_lab."""
    chosen = data_dir or os.environ.get("SSL_LAB_DATA") or "~/.cache/ssl_lab"
    return Path(chosen).expanduser()


@contextmanager
def new_folder(path: Path) -> Iterator[Path]:
    """A temporary folder that becomes `path` when the block succeeds, and vanishes when it does not.

    If another process made `path` meanwhile, that one stays. An OSError in the block counts as one of writing
    there, and becomes a UsageError.
    """
    temporary = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
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
    except OSError as error:
        raise cannot_write(path, error) from error
    finally:
        if temporary is not None:
            shutil.rmtree(temporary, ignore_errors=True)


def sha256_file(path: Path) -> str:
    """sha256 of a file's bytes, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
