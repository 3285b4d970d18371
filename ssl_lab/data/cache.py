"""Image files decoded once, in parallel, into a memory-mapped array that later starts open at once."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import BinaryIO, NamedTuple, TypeVar

import numpy as np
from numpy.typing import NDArray

from ssl_lab.data.arrays import IntArray
from ssl_lab.data.decode import Probe, brightest, decoding, is_passing, probe, read_image, reason
from ssl_lab.data.files import Hold, alone, new_folder
from ssl_lab.data.images import Contents, content_of
from ssl_lab.data.reading import Facts, Reading, resolve
from ssl_lab.data.sizes import Sizes
from ssl_lab.data.values import Seen, Survey, merged, spans_of
from ssl_lab.errors import UsageError
from ssl_lab.files import write_text

T = TypeVar("T")

FORMAT = 3
"""Of caches: it is part of their keys, so that those of another version are made anew."""
_CHUNK = 512
"""Files decoded before their pixels are written: bounds the memory."""


class Decoded(NamedTuple):
    """Images in a cache. pixels: uint8 [n, C, S, S], memory-mapped. rows: int64 [n], which of the files they
    are. skipped: (file, reason) of the others. contents: a hash of each image. folder: where pixels and skipped.json
    lie. reading: as it was decided for these images. notes: what a person should be told of it. hold: keeps the cache.
    spans: what `spans_of` says of each image. survey: of all.
    """

    pixels: NDArray[np.uint8]
    rows: IntArray
    skipped: list[tuple[str, str]]
    fingerprint: str
    contents: Contents
    folder: Path
    reading: Reading
    notes: tuple[str, ...]
    hold: Hold
    spans: NDArray[np.float64]
    survey: Survey


def decode_files(root: Path, files: Sequence[str], caches: Path, reading: Reading) -> Decoded:
    """The readable ones of `files` (paths relative to `root`) at one size, from a cache in `caches`.

    Without an image_size they take the median of the shorter sides, at most 224. Images are gray if all
    files are, else RGB. The cache is keyed by the settings and by each file's path, size and times of change,
    so that a start reads no file; the pixels' sha256, taken at decoding, is their fingerprint. A cache that is
    not there or damaged is made, with a word on stderr: removed, it is made again as it was. UsageError if no
    file is readable, one cannot be read for no fault of its own, their values or sizes do not go together, or the
    cache cannot be written.
    """
    folder = caches / key_of(root, files, reading.of_pixels())
    return open_or_make(folder, lambda: _open(folder, files, reading),
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


def key_of(root: Path, files: Sequence[str], settings: tuple[object, ...]) -> str:
    """The name of the cache of these files: 24 hexadecimal digits.

    Times of change are both that of the content, which copying tools set back, and that of the inode, which nobody
    can: what else it means (a file was renamed or its permissions changed) costs a decoding, and changes no pixels.
    """
    digest = hashlib.sha256(repr((FORMAT, str(root.resolve()), settings)).encode())
    for file in files:
        try:
            status = os.stat(os.path.join(root, file))
            state = (file, status.st_size, status.st_mtime_ns, status.st_ctime_ns)
        except OSError:
            state = (file, -1, -1, -1)
        digest.update(repr(state).encode())
    return digest.hexdigest()[:24]


def _open(folder: Path, files: Sequence[str], reading: Reading) -> Decoded | None:
    """The cache, if it is there and whole."""
    try:
        hold = Hold(folder)
        meta = json.loads((folder / "meta.json").read_text(encoding="utf-8"))
        skipped = [(entry["file"], entry["reason"])
                   for entry in json.loads((folder / "skipped.json").read_text(encoding="utf-8"))]
        pixels = np.load(folder / "images.npy", mmap_mode="r")
        contents = np.load(folder / "contents.npy")
        shape, fingerprint, notes = tuple(meta["shape"]), str(meta["sha256"]), tuple(meta["notes"])
        facts = Facts.read(meta)
        resolved, spans = resolve(reading, facts)[0], np.load(folder / "spans.npy")
    except Exception:  # damaged arrays raise nearly anything
        return None
    left_out = {file for file, _ in skipped}
    rows = np.array([row for row, file in enumerate(files) if file not in left_out], dtype=np.int64)
    if pixels.shape != shape or {len(rows), len(contents), len(spans)} != {len(pixels)}:
        return None
    return Decoded(pixels, rows, skipped, fingerprint, contents, folder, resolved, notes, hold, spans,
                   facts.survey)


def _decode_into(folder: Path, root: Path, files: Sequence[str], reading: Reading) -> None:
    with new_folder(folder) as target, decoding(), ThreadPoolExecutor(min(32, os.cpu_count() or 1)) as threads:
        look = partial(probe, reading=reading)
        probes = list(outcomes(threads, look, root, files, "reading headers"))
        good = {file: found for file, found in probes if isinstance(found, Probe)}
        reasons = {file: found for file, found in probes if isinstance(found, str)}
        if not good:
            raise _nothing_readable(root, reasons)
        facts = facts_of(good.values())
        written = _write_pixels(target, threads, root, list(good), resolve(reading, facts)[0])
        if written.brightest == 1 and reading.value_range is None and facts.survey.keys() == {"bytes"}:
            look_again = partial(brightest, max_pixels=reading.max_pixels)
            peaks = [found for _, found in outcomes(threads, look_again, root, list(good), "looking for white")]
            if max(peak for peak in peaks if isinstance(peak, int)) == 1:  # in their files, not only when made small
                facts = facts._replace(survey={"bytes": Seen(0, 1)})
                written = _write_pixels(target, threads, root, list(good), resolve(reading, facts)[0])
        reasons |= written.reasons
        if not written.shape[0]:
            raise _nothing_readable(root, reasons)
        facts = facts._replace(clear=written.clear)
        spans = spans_of([found.survey for file, found in good.items() if file not in written.reasons])
        np.save(target / "spans.npy", spans)
        skipped = [{"file": file, "reason": reasons[file]} for file in files if file in reasons]
        meta = {"root": str(root.resolve()), "shape": written.shape, "sha256": written.sha256, "format": FORMAT,
                "notes": resolve(reading, facts)[1]} | facts.plain()
        write_text(target / "skipped.json", json.dumps(skipped, indent=1) + "\n")
        write_text(target / "meta.json", json.dumps(meta, indent=1) + "\n")


def facts_of(probes: Iterable[Probe]) -> Facts:
    """What is known of image files before they are decoded."""
    probes = list(probes)
    return Facts(Sizes.of([found.size for found in probes]), all(found.gray for found in probes),
                 merged(found.survey for found in probes), sum(found.deep for found in probes))


class _Written(NamedTuple):
    """Pixels in a file. clear: how many images are transparent somewhere. reasons: of the files that failed."""

    shape: tuple[int, ...]
    sha256: str
    brightest: int
    clear: int
    reasons: dict[str, str]


def _write_pixels(target: Path, threads: ThreadPoolExecutor, root: Path, files: Sequence[str],
                  reading: Reading) -> _Written:
    shape: tuple[int, ...] = ()
    contents, digest, brightest, clear, reasons = list[int](), hashlib.sha256(), 0, 0, dict[str, str]()
    with (target / "images.npy").open("wb") as out:
        for file, found in outcomes(threads, partial(read_image, reading=reading), root, files, "decoding images"):
            if isinstance(found, str):
                reasons[file] = found
                continue
            if not contents:
                shape = found.pixels.shape
                _write_header(out, (len(files), *shape))
            out.write(found.pixels.data)
            digest.update(found.pixels.data)
            contents.append(content_of(found.pixels[None])[0])
            clear += found.clear
            if brightest <= 1:
                brightest = max(brightest, int(found.pixels.max()))
        out.seek(0)
        _write_header(out, (len(contents), *shape))
    np.save(target / "contents.npy", np.array(contents, np.uint64))
    return _Written((len(contents), *shape), digest.hexdigest(), brightest, clear, reasons)


def _write_header(out: BinaryIO, shape: tuple[int, ...]) -> None:
    """The .npy header; NumPy pads it so that the number of rows may change in place."""
    np.lib.format.write_array_header_1_0(out, {"descr": "|u1", "fortran_order": False, "shape": shape})


def outcomes(threads: ThreadPoolExecutor, work: Callable[[Path], T], root: Path, files: Sequence[str],
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
