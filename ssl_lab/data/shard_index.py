"""The index of tar shards: one pass over them notes where each image lies and what its label is."""

from __future__ import annotations

import hashlib
import io
import json
import os
import tarfile
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from ssl_lab.data.arrays import IntArray
from ssl_lab.data.cache import _key, _outcomes, open_or_make
from ssl_lab.data.decode import _GRAY, SUFFIXES, decoding, is_passing, opened, reason, upright
from ssl_lab.data.files import new_folder
from ssl_lab.data.images import Contents, content_of
from ssl_lab.data.reading import Reading
from ssl_lab.errors import UsageError
from ssl_lab.files import write_text

_LABELS = ("cls", "json", "txt")
WORKERS = min(32, os.cpu_count() or 1)


class Member(NamedTuple):
    """A file in a tar: where its bytes begin, how many there are, and the bytes (of images and labels only)."""

    offset: int
    size: int
    content: bytes


class Scan(NamedTuple):
    """What one shard holds. places: int64 [n, 2] of (offset, size). labels: of each image, None without one. shorts:
    the shorter sides in pixels. gray: whether no image has color. digest: of the images' bytes. contents: a hash of
    each image's bytes. skipped: (sample or shard, reason)."""

    places: IntArray
    labels: list[str | None]
    shorts: list[int]
    gray: bool
    digest: bytes
    contents: list[int]
    skipped: list[tuple[str, str]]


class Index(NamedTuple):
    """All images of some shards. members: int64 [n, 4] of (shard, offset, size, label), memory-mapped; label counts
    in `labels`, -1 = none. short: the median of the shorter sides. skipped: (sample or shard, reason)."""

    members: IntArray
    labels: list[str]
    short: int
    gray: bool
    sha256: str
    contents: Contents
    skipped: list[tuple[str, str]]
    folder: Path


def open_index(root: Path, files: Sequence[str], caches: Path, max_pixels: int) -> Index:
    """The index of the shards, from a folder of `caches` (shards often lie where nothing can be written), where it is
    made first if it is not there or damaged. UsageError if no image is readable."""
    folder = caches / _key(root, files, Reading(max_pixels=max_pixels))
    return open_or_make(folder, lambda: _read_index(folder), lambda: _write_index(folder, root, files, max_pixels),
                        f"{len(files)} shards of {root} are indexed")


def _read_index(folder: Path) -> Index | None:
    """The index, if it is there and whole."""
    try:
        meta = json.loads((folder / "meta.json").read_text(encoding="utf-8"))
        skipped = [(entry["file"], entry["reason"])
                   for entry in json.loads((folder / "skipped.json").read_text(encoding="utf-8"))]
        members = np.asarray(np.load(folder / "members.npy", mmap_mode="r"))
        contents = np.load(folder / "contents.npy")
        whole = list(members.shape) == meta["shape"] and len(contents) == len(members)
        return Index(members, meta["labels"], meta["short"], meta["gray"], meta["sha256"], contents, skipped,
                     folder) if whole else None
    except (OSError, ValueError, KeyError, TypeError, EOFError):
        return None


def _write_index(folder: Path, root: Path, files: Sequence[str], max_pixels: int) -> None:
    webdataset_library()
    rows: list[IntArray] = []
    labels: dict[str, int] = {}
    shorts: list[int] = []
    contents: list[int] = []
    skipped: list[tuple[str, str]] = []
    gray, digest = True, hashlib.sha256()
    with decoding(), ThreadPoolExecutor(WORKERS) as threads:
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
            contents += found.contents
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
        np.save(target / "contents.npy", np.array(contents, np.uint64))
        write_text(target / "skipped.json",
                   json.dumps([{"file": file, "reason": why} for file, why in skipped], indent=1) + "\n")
        write_text(target / "meta.json", json.dumps(meta, indent=1) + "\n")


def scan_shard(path: Path, max_pixels: int) -> Scan:
    """Read a shard from end to end, decoding its images. Never raises for what the shard holds: see `Scan.skipped`.
    What `is_passing` is raised."""
    places: list[tuple[int, int]] = []
    labels: list[str | None] = []
    shorts: list[int] = []
    contents: list[int] = []
    skipped: list[tuple[str, str]] = []
    gray, digest = True, hashlib.sha256()
    try:
        for sample in webdataset_library().tariterators.group_by_keys(_members(path)):
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
            contents.append(int(content_of(np.frombuffer(image.content, np.uint8)[None])[0]))
    except Exception as error:
        if is_passing(error):
            raise
        skipped.append(("", f"damaged, only the {len(places)} images before that are used: {reason(error)}"))
    return Scan(np.array(places, np.int64).reshape(-1, 2), labels, shorts, gray, digest.digest(), contents, skipped)


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


def webdataset_library() -> Any:
    try:
        import webdataset  # type: ignore[import-untyped]
    except ImportError:
        raise UsageError("tar shards are read through webdataset, which is not installed: "
                         "pip install 'ssl_lab[stream]'") from None
    return webdataset
