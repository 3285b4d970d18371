"""Image files decoded once, in parallel, into a memory-mapped array that later starts open at once."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import sys
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import BinaryIO, NamedTuple, TypeVar

import numpy as np
from numpy.typing import NDArray

from ssl_lab.data.arrays import IntArray
from ssl_lab.data.decode import Probe, decoding, is_passing, probe, read_image, reason
from ssl_lab.data.files import alone, new_folder
from ssl_lab.data.images import Contents, content_of
from ssl_lab.data.reading import Reading
from ssl_lab.errors import UsageError
from ssl_lab.files import write_text

T = TypeVar("T")

_FORMAT = 2
_LARGEST_DEFAULT = 224
_CHUNK = 512
"""Files decoded before their pixels are written: bounds the memory."""


class Decoded(NamedTuple):
    """Images in a cache. pixels: uint8 [n, C, S, S], memory-mapped. rows: int64 [n], which of the files they
    are. skipped: (file, reason) of the others. contents: a hash of each image. folder: where pixels and skipped.json
    lie."""

    pixels: NDArray[np.uint8]
    rows: IntArray
    skipped: list[tuple[str, str]]
    fingerprint: str
    contents: Contents
    folder: Path


def decode_files(root: Path, files: Sequence[str], caches: Path, reading: Reading) -> Decoded:
    """The readable ones of `files` (paths relative to `root`) at one size, from a cache in `caches`.

    Without an image_size they take the median of the shorter sides, at most 224. Images are gray if all
    files are, else RGB. The cache is keyed by the settings and by each file's path, size and time of change,
    so that a start reads no file; the pixels' sha256, taken at decoding, is their fingerprint. A cache that is
    not there or damaged is made, with a word on stderr: removed, it is made again as it was. UsageError if no
    file is readable, one cannot be read for no fault of its own, or the cache cannot be written.
    """
    folder = caches / _key(root, files, reading)
    return open_or_make(folder, lambda: _open(folder, files),
                        lambda: _decode_into(folder, root, files, reading),
                        f"{len(files)} image files of {root} are decoded")


def open_or_make(folder: Path, read: Callable[[], T | None], make: Callable[[], None], what: str) -> T:
    """What `read` finds in a cache, made first if it is not there or damaged. what: to say then.

    Of the processes that want it at a time, e.g. the ranks of a run, one makes it and the others wait.
    """
    found = read()
    if found is None:
        with alone(folder):
            existed = folder.exists()
            found = read()  # another process may have made it meanwhile
            if found is None:
                if existed:
                    shutil.rmtree(folder, ignore_errors=True)
                print(f"note: {what} into {folder}{', which was damaged' if existed else ''}", file=sys.stderr)
                make()
                found = read()
    if found is None:
        raise UsageError(f"the cache {folder} is damaged. Remove it and start again.")
    return found


def _key(root: Path, files: Sequence[str], reading: Reading) -> str:
    digest = hashlib.sha256(repr((_FORMAT, str(root.resolve()), reading)).encode())
    for file in files:
        try:
            status = os.stat(os.path.join(root, file))
            state = (file, status.st_size, status.st_mtime_ns)
        except OSError:
            state = (file, -1, -1)
        digest.update(repr(state).encode())
    return digest.hexdigest()[:24]


def _open(folder: Path, files: Sequence[str]) -> Decoded | None:
    """The cache, if it is there and whole."""
    try:
        meta = json.loads((folder / "meta.json").read_text(encoding="utf-8"))
        skipped = [(entry["file"], entry["reason"])
                   for entry in json.loads((folder / "skipped.json").read_text(encoding="utf-8"))]
        pixels = np.load(folder / "images.npy", mmap_mode="r")
        contents = np.load(folder / "contents.npy")
        shape, fingerprint = tuple(meta["shape"]), str(meta["sha256"])
    except (OSError, ValueError, KeyError, TypeError, EOFError):
        return None
    left_out = {file for file, _ in skipped}
    rows = np.array([row for row, file in enumerate(files) if file not in left_out], dtype=np.int64)
    if pixels.shape != shape or len(rows) != len(pixels) or len(contents) != len(pixels):
        return None
    return Decoded(pixels, rows, skipped, fingerprint, contents, folder)


def _decode_into(folder: Path, root: Path, files: Sequence[str], reading: Reading) -> None:
    workers = min(32, os.cpu_count() or 1)
    with new_folder(folder) as target, decoding(), ThreadPoolExecutor(workers) as threads:
        look = partial(probe, max_pixels=reading.max_pixels)
        probes = list(_outcomes(threads, look, root, files, "reading headers"))
        good = {file: found for file, found in probes if isinstance(found, Probe)}
        reasons = {file: found for file, found in probes if isinstance(found, str)}
        if not good:
            raise _nothing_readable(root, reasons)
        typical = int(np.median([found.short for found in good.values()]))
        size = reading.image_size or min(_LARGEST_DEFAULT, typical)
        gray = all(found.gray for found in good.values())
        read = partial(read_image, size=size, gray=gray, max_pixels=reading.max_pixels)
        shape = (1 if gray else 3, size, size)
        contents, digest = [], hashlib.sha256()
        with (target / "images.npy").open("wb") as out:
            _write_header(out, (len(good), *shape))
            for file, found in _outcomes(threads, read, root, list(good), "decoding images"):
                if isinstance(found, str):
                    reasons[file] = found
                else:
                    out.write(found.data)
                    digest.update(found.data)
                    contents.append(content_of(found[None])[0])
            count = len(contents)
            if not count:
                raise _nothing_readable(root, reasons)
            out.seek(0)
            _write_header(out, (count, *shape))
        np.save(target / "contents.npy", np.array(contents, np.uint64))
        skipped = [{"file": file, "reason": reasons[file]} for file in files if file in reasons]
        meta = {"root": str(root.resolve()), "shape": [count, *shape], "sha256": digest.hexdigest()}
        write_text(target / "skipped.json", json.dumps(skipped, indent=1) + "\n")
        write_text(target / "meta.json", json.dumps(meta, indent=1) + "\n")


def _write_header(out: BinaryIO, shape: tuple[int, ...]) -> None:
    """The .npy header; NumPy pads it so that the number of rows may change in place."""
    np.lib.format.write_array_header_1_0(out, {"descr": "|u1", "fortran_order": False, "shape": shape})


def _outcomes(threads: ThreadPoolExecutor, work: Callable[[Path], T], root: Path, files: Sequence[str],
              doing: str) -> Iterator[tuple[str, T | str]]:
    """Each file with what `work` makes of it, or with the reason why it failed; in order, with progress.

    UsageError if a file cannot be read for no fault of its own: noted in a cache, that would leave it out for good.
    Threads suffice: Pillow decodes and resizes without holding Python's lock.
    """
    from rich.console import Console
    from rich.progress import Progress

    def attempt(file: str) -> T | str:
        try:
            return work(root / file)
        except Exception as error:  # damaged files raise nearly anything
            if is_passing(error):
                raise UsageError(f"cannot read {root / file}: {reason(error)}. Mend that or remove the file, and start "
                                 "again") from error
            return reason(error)

    console = Console(stderr=True)
    with Progress(console=console, transient=True, disable=not console.is_terminal) as progress:
        task = progress.add_task(doing, total=len(files))
        for start in range(0, len(files), _CHUNK):
            chunk = files[start:start + _CHUNK]
            yield from zip(chunk, threads.map(attempt, chunk), strict=True)
            progress.advance(task, len(chunk))


def _nothing_readable(root: Path, reasons: dict[str, str]) -> UsageError:
    file, why = next(iter(reasons.items()))
    return UsageError(f"none of the {len(reasons)} images of {root} can be read. The first, {file!r}: {why}")
