"""Tar shards in the WebDataset layout, as one more source of images: for data larger than memory, or than a disk.

A sample is a run of members of a tar that share a name up to its first dot: `0001.jpg`, `0001.cls`. Which members
these are is said by the `webdataset` library (extra `[stream]`). Nothing is ever unpacked.

Shards are indexed, not streamed: one pass over them notes where each image lies (shard, first byte, bytes) and its
label, and `take` reads those bytes and decodes them. A stream has an order and a place, which belong to a process:
what it shuffles depends on its buffer, what a rank sees on how shards are dealt, and to resume it means to read up
to where it was. With an index, shards have the one index space of every pool. The sampler stays a pure function of
(seed, purpose, step), so a resumed run goes on at the very sample, ranks read disjoint rows, splits, ledgers and
evaluation work as for a folder, and images are shuffled over all shards. The price is a seek per image where a
stream reads on: nothing beside decoding on a disk without moving parts or a file system over a network; copy shards
from a spinning disk. Memory holds 32 mapped bytes per image and the batch at hand.

The pass also decodes each image once, so that no damaged one stops a run after days. It is made anew when a shard's
size or time of change is another one.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import re
import tarfile
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ssl_lab.data.arrays import IntArray
from ssl_lab.data.cache import _LARGEST_DEFAULT, _key, _outcomes, open_or_make
from ssl_lab.data.decode import _GRAY, SUFFIXES, decoding, is_passing, opened, read_image, reason, upright
from ssl_lab.data.files import new_folder
from ssl_lab.data.folder import _PARTS, _TEST_FRACTION, Listed, class_names_of, list_folder
from ssl_lab.data.images import pixel_statistics, style_of
from ssl_lab.data.pool import Pool, pool_of
from ssl_lab.data.split import hold_out, shuffled
from ssl_lab.errors import UsageError
from ssl_lab.files import write_text

_LABELS = ("cls", "json", "txt")
_STATISTICS_BYTES = 2**25
_WORKERS = min(32, os.cpu_count() or 1)


class Member(NamedTuple):
    """A file in a tar: where its bytes begin, how many there are, and the bytes (of images and labels only)."""

    offset: int
    size: int
    content: bytes


class Scan(NamedTuple):
    """What one shard holds. places: int64 [n, 2] of (offset, size). labels: of each image, None without one. shorts:
    the shorter sides in pixels. gray: whether no image has color. digest: of the images' bytes. skipped: (sample or
    shard, reason)."""

    places: IntArray
    labels: list[str | None]
    shorts: list[int]
    gray: bool
    digest: bytes
    skipped: list[tuple[str, str]]


class Index(NamedTuple):
    """All images of some shards. members: int64 [n, 4] of (shard, offset, size, label), memory-mapped; label counts
    in `labels`, -1 = none. short: the median of the shorter sides. skipped: (sample or shard, reason)."""

    members: IntArray
    labels: list[str]
    short: int
    gray: bool
    sha256: str
    skipped: list[tuple[str, str]]
    folder: Path


class ShardImages:
    """Images that lie encoded in files, each decoded when it is asked for, by threads.

    paths: the files. members: int64 [n, 3]: of each image the number of its file, its first byte and its bytes.
    size, gray, max_pixels: as for `read_image`. sha256: of the encoded images.
    """

    def __init__(self, paths: Sequence[Path], members: IntArray, size: int, gray: bool, max_pixels: int,
                 sha256: str) -> None:
        self.paths, self.members, self.size, self.gray = tuple(paths), members, size, gray
        self.max_pixels, self.sha256 = max_pixels, sha256

    @property
    def shape(self) -> tuple[int, int, int]:
        return 1 if self.gray else 3, self.size, self.size

    def __len__(self) -> int:
        return len(self.members)

    def take(self, indices: IntArray) -> Tensor:
        """uint8 [n, C, S, S]. UsageError if an image cannot be read any more."""
        members = self.members[indices]
        pixels = np.empty((len(members), *self.shape), np.uint8)

        def read(row: int) -> None:
            pixels[row] = self._read(*members[row].tolist())

        on_disk = np.lexsort((members[:, 1], members[:, 0])).tolist()
        with decoding(), ThreadPoolExecutor(_WORKERS) as threads:
            for _ in threads.map(read, on_disk):
                pass
        return torch.from_numpy(pixels)

    def _read(self, shard: int, offset: int, size: int) -> NDArray[np.uint8]:
        try:
            with self.paths[shard].open("rb") as file:
                file.seek(offset)
                return read_image(io.BytesIO(file.read(size)), self.size, self.gray, self.max_pixels)
        except Exception as error:  # damaged files raise nearly anything
            raise UsageError(f"the image{_name_at(self.paths[shard], offset)} at byte {offset} of {self.paths[shard]} "
                             f"could be read when the shards were indexed, and cannot now: {reason(error)}. Restore "
                             "the shard; if it was changed, start again") from error

    def fingerprint(self) -> str:
        return hashlib.sha256(f"{self.sha256} {self.shape}".encode()).hexdigest()


def find_shards(given: str | os.PathLike[str]) -> tuple[Path, list[str]] | None:
    """The folder and, relative to it, the shards that are meant; None if `given` means no shards.

    given: a .tar file, a pattern like "path/{000..009}.tar", or a folder that holds .tar files, or in which `train`,
    `valid` or `test` do, and no images. UsageError if one of a pattern is missing.
    """
    path = Path(given).expanduser()
    if path.is_dir():
        parts = [folder for folder in path.glob("*") if folder.name.lower() in _PARTS]
        found = [file for folder in (path, *parts) for file in folder.glob("*.tar")]
        if not found or list_folder(path)[0]:
            return None
        return path, sorted(file.relative_to(path).as_posix() for file in found)
    if path.suffix != ".tar":
        return None
    try:
        files = [Path(file) for file in _webdataset().shardlists.expand_urls(str(path))]
    except (ValueError, AssertionError) as error:  # a brace or a variable without an end
        if isinstance(error, UsageError):
            raise
        raise UsageError(f"{path} is no pattern of shards ({error}); expected e.g. path/{{000..009}}.tar") from None
    missing = [file for file in files if not file.is_file()]
    if missing:
        raise UsageError(f"there is no shard {missing[0]} ({len(missing)} of the {len(files)} of {path} are missing)")
    root = Path(os.path.commonpath([file.parent for file in files]))
    return root, [file.relative_to(root).as_posix() for file in files]


def load_shards(root: Path, files: Sequence[str], caches: Path, image_size: int | None, max_pixels: int) -> Pool:
    """A pool of the images in tar shards.

    files: paths relative to `root`. A shard with `valid` (`val`, `validation`) or `test` as a word of its path holds
    images of that part, every other one train images. The label is the text of a member `cls`, or else the `label` of
    a `json` (or all of it, if it is a number or a text), or, without either, the text of a `txt`; none, "" and -1
    mean unlabeled. If no shard is one of test, 20% of each class is held out, as from a folder.

    Samples whose image or label cannot be read, and what follows a damaged place of a shard, are left out, listed
    with their reasons in skipped.json beside the index, and noted.
    """
    index = open_index(root, files, caches, max_pixels)
    parts = np.array([_part(file) for file in files])[index.members[:, 0]]
    labels = index.members[:, 3]
    useful = np.flatnonzero((labels >= 0) | (parts == "train"))
    parts, labels = parts[useful], labels[useful]
    notes = [_on_skipped(index)] if index.skipped else []
    if len(useful) < len(index.members):
        notes.append(f"{len(index.members) - len(useful)} images of valid or test have no label and are left out")
    if not len(useful):
        raise UsageError(f"{root} has no image that could train: those of valid and test have no label")
    names = class_names_of([Listed("", index.labels[label], "") for label in np.unique(labels[labels >= 0])])
    number = np.array([*(names.index(label) if label in names else -1 for label in index.labels), -1])  # -1 stays -1
    truth = number[labels]

    valid, test = np.flatnonzero(parts == "valid"), np.flatnonzero(parts == "test")
    if not len(test):
        test = hold_out(np.flatnonzero((parts == "train") & (truth >= 0)), truth, _TEST_FRACTION, seed=0)
        if len(test):
            notes.append(f"no test images given: {len(test)} labeled ones, 20% of each class, are held out")
    size = image_size or min(_LARGEST_DEFAULT, index.short)
    members = index.members[:, :3] if len(useful) == len(index.members) else index.members[useful, :3]
    images = ShardImages([root / file for file in files], members, size, index.gray, max_pixels, index.sha256)
    train = np.setdiff1d(np.arange(len(useful)), np.concatenate([valid, test]))
    some = shuffled(train, "pixel_statistics")[:max(1, _STATISTICS_BYTES // (3 * size * size))]
    style = style_of(images.shape, *pixel_statistics(images.take(some).numpy()))
    name = root.resolve().name if len(files) > 1 else Path(files[0]).stem
    return pool_of(name, images, truth, names, style, test, valid, tuple(notes))


def open_index(root: Path, files: Sequence[str], caches: Path, max_pixels: int) -> Index:
    """The index of the shards, from a folder of `caches` (shards often lie where nothing can be written), where it is
    made first if it is not there or damaged. UsageError if no image is readable."""
    folder = caches / _key(root, files, None, max_pixels)
    return open_or_make(folder, lambda: _read_index(folder), lambda: _write_index(folder, root, files, max_pixels),
                        f"{len(files)} shards of {root} are indexed")


def _read_index(folder: Path) -> Index | None:
    """The index, if it is there and whole."""
    try:
        meta = json.loads((folder / "meta.json").read_text(encoding="utf-8"))
        skipped = [(entry["file"], entry["reason"])
                   for entry in json.loads((folder / "skipped.json").read_text(encoding="utf-8"))]
        members = np.asarray(np.load(folder / "members.npy", mmap_mode="r"))
        whole = list(members.shape) == meta["shape"]
        return Index(members, meta["labels"], meta["short"], meta["gray"], meta["sha256"], skipped,
                     folder) if whole else None
    except (OSError, ValueError, KeyError, TypeError, EOFError):
        return None


def _write_index(folder: Path, root: Path, files: Sequence[str], max_pixels: int) -> None:
    _webdataset()
    rows: list[IntArray] = []
    labels: dict[str, int] = {}
    shorts: list[int] = []
    skipped: list[tuple[str, str]] = []
    gray, digest = True, hashlib.sha256()
    with decoding(), ThreadPoolExecutor(_WORKERS) as threads:
        scan = partial(scan_shard, max_pixels=max_pixels)
        for number, (file, found) in enumerate(_outcomes(threads, scan, root, files, "indexing shards")):
            if isinstance(found, str):
                skipped.append((file, found))
                continue
            known = [-1 if label is None else labels.setdefault(label, len(labels)) for label in found.labels]
            rows.append(np.column_stack([np.full(len(known), number), found.places, np.array(known, np.int64)]))
            shorts += found.shorts
            gray &= found.gray
            digest.update(found.digest)
            skipped += [(f"{file}/{name}" if name else file, why) for name, why in found.skipped]
    if not shorts:
        file, why = skipped[0] if skipped else (files[0], "it holds no image")
        raise UsageError(f"none of the {len(files)} shards of {root} has an image that can be read. The first, "
                         f"{file!r}: {why}")
    members = np.concatenate(rows)
    meta = {"root": str(root.resolve()), "shape": list(members.shape), "labels": list(labels),
            "short": int(np.median(shorts)), "gray": gray, "sha256": digest.hexdigest()}
    with new_folder(folder) as target:
        np.save(target / "members.npy", members)
        write_text(target / "skipped.json",
                   json.dumps([{"file": file, "reason": why} for file, why in skipped], indent=1) + "\n")
        write_text(target / "meta.json", json.dumps(meta, indent=1) + "\n")


def scan_shard(path: Path, max_pixels: int) -> Scan:
    """Read a shard from end to end, decoding its images. Never raises for what the shard holds: see `Scan.skipped`.
    What `is_passing` is raised."""
    places: list[tuple[int, int]] = []
    labels: list[str | None] = []
    shorts: list[int] = []
    skipped: list[tuple[str, str]] = []
    gray, digest = True, hashlib.sha256()
    try:
        for sample in _webdataset().tariterators.group_by_keys(_members(path)):
            image = next((value for suffix, value in sample.items() if f".{suffix}" in SUFFIXES), None)
            if image is None:
                continue
            try:
                label = _label(sample)
                with opened(io.BytesIO(image.content), max_pixels) as picture:
                    short, colorless = min(picture.size), picture.mode in _GRAY
                    upright(picture)
            except Exception as error:  # damaged files raise nearly anything
                if is_passing(error):
                    raise
                skipped.append((sample["__key__"], reason(error)))
                continue
            places.append((image.offset, image.size))
            labels.append(label)
            shorts.append(short)
            gray &= colorless
            digest.update(hashlib.sha256(image.content).digest())
    except Exception as error:
        if is_passing(error):
            raise
        skipped.append(("", f"damaged, only the {len(places)} images before that are used: {reason(error)}"))
    return Scan(np.array(places, np.int64).reshape(-1, 2), labels, shorts, gray, digest.digest(), skipped)


def _members(path: Path) -> Iterator[dict[str, Any]]:
    """The files in a tar, as `webdataset` groups them into samples. ValueError or tarfile's where it is damaged."""
    with path.open("rb") as file, tarfile.open(fileobj=file, mode="r:") as tar:
        while (info := tar.next()) is not None:
            tar.members = []  # type: ignore[attr-defined]  # or it keeps all of them
            if not info.isreg() or info.issparse():
                continue
            suffix = info.name.rpartition(".")[2].lower()
            content = b""
            if suffix in _LABELS or f".{suffix}" in SUFFIXES:
                file.seek(info.offset_data)
                content = file.read(info.size)
                if len(content) < info.size:
                    raise ValueError(f"{info.name!r} is cut off")
            yield {"fname": info.name, "data": Member(info.offset_data, info.size, content), "__url__": str(path)}
        file.seek(tar.offset)  # tarfile takes a header that it cannot read for the end
        if file.read(tarfile.BLOCKSIZE) != bytes(tarfile.BLOCKSIZE):
            raise ValueError(f"no file and no end mark at byte {tar.offset}")


def _name_at(path: Path, offset: int) -> str:
    """The name in the header before a file in a tar, as " 'NAME'"; "" if that too is damaged."""
    try:
        with path.open("rb") as file:
            file.seek(offset - tarfile.BLOCKSIZE)
            header = file.read(tarfile.BLOCKSIZE)
        return f" {tarfile.TarInfo.frombuf(header, 'utf-8', 'surrogateescape').name!r}"
    except (OSError, tarfile.TarError):
        return ""


def _label(sample: dict[str, Any]) -> str | None:
    suffix = next((suffix for suffix in _LABELS if suffix in sample), None)
    if suffix is None:
        return None
    text = sample[suffix].content.decode()
    value = json.loads(text) if suffix == "json" else text.strip()
    if isinstance(value, dict):
        value = value.get("label")
    if value is not None and type(value) not in (str, int):
        raise ValueError(f"the label is {value!r}, expected a text or a whole number")
    return None if value in (None, "", "-1", -1) else str(value)


def _part(file: str) -> str:
    return next((_PARTS[word] for word in re.split(r"[^a-z]+", file.lower()) if word in _PARTS), "train")


def _on_skipped(index: Index) -> str:
    examples = "; ".join(f"{file!r} ({why})" for file, why in index.skipped[:3])
    return (f"{len(index.skipped)} samples or shards could not be read and are left out: {examples}"
            f"{' ...' if len(index.skipped) > 3 else ''}. All: {index.folder / 'skipped.json'}")


def _webdataset() -> Any:
    try:
        import webdataset  # type: ignore[import-untyped]
    except ImportError:
        raise UsageError("tar shards are read through webdataset, which is not installed: "
                         "pip install 'ssl_lab[stream]'") from None
    return webdataset
