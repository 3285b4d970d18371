"""Data that lie elsewhere: a folder, table or shards at an address (s3://, gs://, hf://, https://), copied once.

Whatever reads data reads the copy, so that training is the same, bit for bit, and as fast. A copy is made again only of
what has changed there. Addresses may not hold credentials, as they are recorded with every run: the libraries of
fsspec take these from the environment.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import re
import shutil
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path, PurePosixPath
from typing import Any, NoReturn
from urllib.parse import urlsplit

from ssl_lab.data.files import Hold, alone, data_folder
from ssl_lab.data.table import TABLES
from ssl_lab.errors import UsageError
from ssl_lab.files import write_text

GIGABYTES = 20.0
MOST_FILES = 1_000_000
PART = 2**24  # bytes that are asked for at a time
AT_A_TIME = 16  # files
TRIES = 5
PAUSE = 0.5  # seconds before the second try of a file, twice as long before each further one
LISTING = "listing.json"
_HELD: dict[Path, Hold] = {}


@dataclass(frozen=True)
class Remote:
    """A file there. name: its path below the copy. size: in bytes, None if the server does not say. mark: what is
    another one when its content is."""

    name: str
    path: str
    size: int | None
    mark: str


def is_address(given: object) -> bool:
    """Whether this is the address of something elsewhere: protocol://...

    >>> from ssl_lab.data.remote import is_address
    >>> is_address("s3://bucket/photos"), is_address("photos")
    (True, False)
    """
    return isinstance(given, str) and re.match(r"[a-z][a-z0-9+.-]+://", given, re.IGNORECASE) is not None


def name_of(address: str) -> str:
    """What a folder elsewhere is called: its last part, or the bucket."""
    parts = urlsplit(address)
    return PurePosixPath(parts.path).name or parts.netloc


def copied(address: str, data_dir: str | os.PathLike[str] | None = None, gigabytes: float = GIGABYTES) -> Path:
    """The path of the copy on this machine, made first of what is missing or has changed.

    address: of a folder, of a .tar or .npz file or a pattern of shards ("s3://bucket/{000..009}.tar"), or of a table,
    whose folder is copied too; by https of one file alone. data_dir: where copies lie, in remote/. gigabytes: more than
    that is refused before it is copied. Where nothing can be reached, a whole copy of before is taken, with a note. A
    copy that was cut off, in the middle of a file too, goes on where it was, and changes what was there all at once.

    UsageError: an address with credentials; nothing there, or no right to read it; more than the limit or the disk;
    a file that ended early five times, or that went away meanwhile.
    """
    parts = urlsplit(address)
    if parts.username or parts.password or "@" in parts.netloc or parts.query or parts.fragment:
        raise UsageError(f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path}: an address is recorded with "
                         "each run, so it may hold no credentials, ? or #; these belong into the environment, e.g. "
                         "AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY")
    folder_of_it, _, last = address.rpartition("/")
    beside = bool(re.search(r"[{}*\[]", last)) or last.lower().endswith(TABLES)
    source = folder_of_it if beside else address.rstrip("/")
    if parts.scheme in ("http", "https") and (beside or not PurePosixPath(parts.path).suffix):
        raise UsageError(f"{address}: what lies beside a file or in a folder is not listed by {parts.scheme}; give the "
                         "address of one .tar or .npz file")
    pattern = _pattern(last) if beside and not last.lower().endswith(TABLES) else None
    folder = data_folder(data_dir) / "remote" / hashlib.sha256(f"{source}\n{pattern}".encode()).hexdigest()[:24]
    with alone(folder):
        _bring(source, pattern, folder, gigabytes)
    _HELD[folder] = Hold(folder)  # until the process ends, as nobody knows who reads in it
    files = folder / "files"
    if beside:
        return files / last
    only = files / PurePosixPath(parts.path).name
    return only if only.is_file() and [*files.iterdir()] == [only] else files


def _pattern(text: str) -> str:
    """The regular expression of names like those that a pattern means: it may mean fewer."""
    any_of_some = re.sub(r"\\\[.*?\\\]", ".", re.sub(r"\\\{.*?\\\}", ".*", re.escape(text)))
    return any_of_some.replace(r"\*", ".*")


def _bring(source: str, pattern: str | None, folder: Path, gigabytes: float) -> None:
    """Makes the copy the same as the source is now."""
    try:
        system, root = _opened(source)
        there = _listed(system, root, source, pattern)
    except UsageError:
        raise
    except Exception as error:
        _take_the_old(error, source, folder)
        return
    bytes_there = sum(file.size or 0 for file in there)
    if bytes_there > gigabytes * 1e9:
        raise UsageError(f"{source} holds {bytes_there / 1e9:.1f} GB in {len(there):,} files, and at most "
                         f"{gigabytes:g} are copied to this machine; --remote-gb {math.ceil(bytes_there / 1e9)} allows "
                         "it (remote_gb= of sl.load in code)")
    before, names = {file["name"]: file for file in _read(folder).get("files", [])}, {file.name for file in there}
    new = [file for file in there
           if before.get(file.name) != asdict(file) or not (folder / "files" / file.name).is_file()]
    gone = before.keys() - names
    if not new and not gone:
        return
    (folder / "files").mkdir(parents=True, exist_ok=True)
    needed, free = sum(file.size or 0 for file in new), shutil.disk_usage(folder).free
    if needed > free:
        raise UsageError(f"{source}: {needed / 1e9:.1f} GB are to be copied to {folder}, where {free / 1e9:.1f} GB are "
                         "free; --data-dir names another place")
    print(f"note: {len(new):,} files of {source} ({needed / 1e6:,.1f} MB) are copied to {folder}"
          + f"; {len(gone):,} are not there any more" * bool(gone), file=sys.stderr)
    with ThreadPoolExecutor(AT_A_TIME) as threads:
        waiting = [threads.submit(_copy, system, file, folder) for file in new]
        try:
            for each in waiting:
                each.result()
        except BaseException:
            threads.shutdown(wait=False, cancel_futures=True)
            raise
    for file in new:  # all at once: what was copied until a process is killed waits in parts/
        target = folder / "files" / file.name
        target.parent.mkdir(parents=True, exist_ok=True)
        _part(file, folder).replace(target)
    for name in gone:
        (folder / "files" / name).unlink(missing_ok=True)
    listing = {"address": source, "when": time.strftime("%Y-%m-%d %H:%M"), "files": [asdict(file) for file in there]}
    write_text(folder / LISTING, json.dumps(listing) + "\n")
    shutil.rmtree(folder / "parts", ignore_errors=True)


def _take_the_old(error: Exception, source: str, folder: Path) -> None:
    reason = re.sub(r"//[^/\s]*@", "//", " ".join(str(error).split())) or type(error).__name__
    if isinstance(error, FileNotFoundError):
        raise UsageError(f"there is nothing at {source}") from error
    if isinstance(error, PermissionError) or "credential" in reason.lower() or "forbidden" in reason.lower():
        raise UsageError(f"{source} may not be read with the credentials in the environment ({reason})") from error
    when = _read(folder).get("when")
    if when is None:
        raise UsageError(f"{source} cannot be reached: {reason}") from error
    print(f"note: {source} cannot be reached ({reason}); the copy of {when} is taken", file=sys.stderr)


def _read(folder: Path) -> dict[str, Any]:
    try:
        found: dict[str, Any] = json.loads((folder / LISTING).read_text(encoding="utf-8"))
        return found
    except (OSError, ValueError):
        return {}


def _opened(source: str) -> tuple[Any, str]:
    """fsspec's file system, and the path in it."""
    try:
        import fsspec
    except ImportError as error:
        raise UsageError(f"{source} is read by fsspec, which is not installed: pip install "
                         '"ssl_lab[remote]"') from error
    try:
        system, root = fsspec.core.url_to_fs(source)
    except (ImportError, ValueError) as error:
        raise UsageError(f"{source}: {error}; s3 comes with pip install \"ssl_lab[remote]\"") from error
    system.invalidate_cache()
    return system, root


def _listed(system: Any, root: str, source: str, pattern: str | None) -> list[Remote]:
    """The files at and below a path, by name. FileNotFoundError if there is none."""
    files = sorted(_found(system, root, source, pattern), key=lambda file: file.name)
    if not files:
        raise FileNotFoundError(root)
    return files


def _found(system: Any, root: str, source: str, pattern: str | None) -> Iterator[Remote]:
    if source.startswith(("http://", "https://")) or system.isfile(root):
        yield _remote(PurePosixPath(urlsplit(source).path).name, root, system.info(root))
        return
    count, start = 0, root.rstrip("/")
    for path, info in _below(system, root, source, pattern):
        name = path[len(start):].lstrip("/")
        base = name.rpartition("/")[2]
        if not base or (pattern and not re.fullmatch(pattern, base)):
            continue
        if any(part in ("..", "") for part in name.split("/")):
            raise UsageError(f"{source} holds {name!r}, which would lie outside of the copy")
        count += 1
        if count > MOST_FILES:
            raise UsageError(f"{source} holds more than {MOST_FILES:,} files; pack them into tar shards of some "
                             "thousands each (WebDataset), which are copied as they are")
        yield _remote(name, info["name"], info)


def _below(system: Any, root: str, source: str, pattern: str | None) -> Iterator[tuple[str, dict[str, Any]]]:
    """(path, what is known of it) of the files in a folder, and without a pattern of those in its folders too.

    A folder that cannot be listed is an error, and not one without files, as it is for fsspec's `walk`. S3 lists all
    below a prefix at once: so no more than can be copied are asked for, however many there are.
    """
    if not pattern and source.startswith("s3://"):
        yield from system.find(root, detail=True, max_items=MOST_FILES + 1).items()
        return
    left = [root]
    while left:
        folder = left.pop()
        for info in system.ls(folder, detail=True):
            path = info["name"]
            if info["type"] != "directory":
                yield path, info
            elif not pattern and path.rstrip("/") != folder.rstrip("/"):
                left.append(path)


def _remote(name: str, path: str, info: dict[str, Any]) -> Remote:
    known = [str(info[key]) for key in ("ETag", "etag", "sha256", "md5", "blob_id", "LastModified", "mtime", "created")
             if info.get(key)]
    return Remote(name, path, info.get("size"), " ".join(known))


def _copy(system: Any, file: Remote, folder: Path) -> None:
    """One file, in parts; what was there of it already, of the same mark, stays."""
    part = _part(file, folder)
    part.parent.mkdir(parents=True, exist_ok=True)
    reason = ""
    for attempt in range(TRIES):
        if attempt:
            time.sleep(PAUSE * 2 ** (attempt - 1))
        try:
            _append(system, file, part)
            have = part.stat().st_size
            if file.size is None or have == file.size:
                return
            reason = f"it has {have:,} bytes, and the listing says {file.size:,}"
            if have > file.size:
                part.unlink()
        except FileNotFoundError as error:
            raise UsageError(f"{file.path} went away while it was copied; start again") from error
        except PermissionError as error:
            raise UsageError(f"{file.path} may not be read: {error}") from error
        except OSError as error:
            _full(error, folder)
            reason = str(error)
        except Exception as error:  # each library has its own for a broken connection
            reason = f"{type(error).__name__}: {error}"
    raise UsageError(f"{file.path} could not be copied in {TRIES} tries: {' '.join(reason.split())}. The same command "
                     "goes on where this one was")


def _part(file: Remote, folder: Path) -> Path:
    """Where it lies until all are copied."""
    return folder / "parts" / hashlib.sha256(f"{file.name}\n{file.mark}\n{file.size}".encode()).hexdigest()[:24]


def _full(error: OSError, folder: Path) -> None:
    if error.errno in (28, 122, 30):  # no space, no quota, read-only
        _cannot_write(error, folder)


def _cannot_write(error: OSError, folder: Path) -> NoReturn:
    raise UsageError(f"cannot write into {folder}: {error.strerror}; --data-dir names another place") from error


def _append(system: Any, file: Remote, part: Path) -> None:
    if file.size is None:
        part.write_bytes(system.cat_file(file.path))
        return
    with part.open("ab") as out:
        while (have := out.tell()) < file.size:
            found = system.cat_file(file.path, start=have, end=min(have + PART, file.size))
            if not found:
                return
            out.write(found)
    if not file.size:
        part.touch()
