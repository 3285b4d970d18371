"""The index of tar shards: one pass over them notes where each image lies and what its label is."""

from __future__ import annotations

import hashlib
import json
import os
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from ssl_lab.data.arrays import IntArray
from ssl_lab.data.cache import FORMAT, facts_of, key_of, open_or_make, outcomes
from ssl_lab.data.decode import Probe, decoding
from ssl_lab.data.files import Hold, new_folder
from ssl_lab.data.images import Contents
from ssl_lab.data.reading import Facts
from ssl_lab.data.shard_scan import scan_shard
from ssl_lab.data.values import spans_of
from ssl_lab.errors import UsageError
from ssl_lab.files import write_text

WORKERS = min(32, os.cpu_count() or 1)


class Index(NamedTuple):
    """All images of some shards. members: int64 [n, 4] of (shard, offset, size, label), memory-mapped; label counts
    in `labels`, texts as they stand there, -1 = none. facts: of all images. skipped: (sample or shard, reason).
    passed_over, keys, fields: see `Scan`. hold: keeps the index. spans: see `spans_of`."""

    members: IntArray
    labels: list[str]
    facts: Facts
    sha256: str
    contents: Contents
    skipped: list[tuple[str, str]]
    passed_over: dict[str, int]
    keys: dict[str, int]
    fields: list[str]
    folder: Path
    hold: Hold
    spans: NDArray[np.float64]


def open_index(root: Path, files: Sequence[str], caches: Path, max_pixels: int, label_key: str | None) -> Index:
    """The index of the shards, from a folder of `caches` (shards often lie where nothing can be written), where it is
    made first if it is not there or damaged. label_key: see `scan_shard`. UsageError if no image is readable."""
    folder = caches / key_of(root, files, ("index", max_pixels, label_key))
    return open_or_make(folder, lambda: _read_index(folder),
                        lambda: _write_index(folder, root, files, max_pixels, label_key),
                        f"{len(files)} shards of {root} are indexed")


def _read_index(folder: Path) -> Index | None:
    """The index, if it is there and whole."""
    try:
        hold = Hold(folder)
        meta = json.loads((folder / "meta.json").read_text(encoding="utf-8"))
        skipped = [(entry["file"], entry["reason"])
                   for entry in json.loads((folder / "skipped.json").read_text(encoding="utf-8"))]
        members = np.asarray(np.load(folder / "members.npy", mmap_mode="r"))
        contents = np.load(folder / "contents.npy")
        spans = np.load(folder / "spans.npy")
        whole = list(members.shape) == meta["shape"] and len(contents) == len(spans) == len(members)
        return Index(members, meta["labels"], Facts.read(meta), meta["sha256"], contents, skipped,
                     meta["passed_over"], meta["keys"], meta["fields"], folder, hold, spans) if whole else None
    except Exception:  # damaged arrays raise nearly anything
        return None


def _write_index(folder: Path, root: Path, files: Sequence[str], max_pixels: int,
                 label_key: str | None) -> None:
    rows: list[IntArray] = []
    labels: dict[str, int] = {}
    probes: list[Probe] = []
    contents: list[int] = []
    skipped: list[tuple[str, str]] = []
    clear, digest, passed_over, keys, fields = 0, hashlib.sha256(), Counter[str](), Counter[str](), list[str]()
    with decoding(), ThreadPoolExecutor(WORKERS) as threads:
        scan = partial(scan_shard, max_pixels=max_pixels, label_key=label_key)
        for number, (file, found) in enumerate(outcomes(threads, scan, root, files, "indexing shards")):
            if isinstance(found, str):
                skipped.append((file, found))
                continue
            known = [-1 if label is None else labels.setdefault(label, len(labels)) for label in found.labels]
            rows.append(np.column_stack([np.full(len(known), number), found.places, np.array(known, np.int64)]))
            probes += found.probes
            clear += found.clear
            digest.update(found.digest)
            contents += found.contents
            passed_over.update(found.passed_over)
            keys.update(found.keys)
            fields = fields or found.fields
            skipped += [(f"{file}/{name}" if name else file, why) for name, why in found.skipped]
    if not probes:
        file, why = skipped[0] if skipped else (files[0], "it holds no image")
        raise UsageError(f"none of the {len(files)} shards of {root} has an image that can be read. The first, "
                         f"{file!r}: {why}")
    members = np.concatenate(rows)
    meta = {"root": str(root.resolve()), "shape": list(members.shape), "labels": list(labels),
            "format": FORMAT, "sha256": digest.hexdigest(), "passed_over": passed_over, "keys": keys,
            "fields": fields} | facts_of(
                probes)._replace(clear=clear).plain()
    with new_folder(folder) as target:
        np.save(target / "members.npy", members)
        np.save(target / "contents.npy", np.array(contents, np.uint64))
        np.save(target / "spans.npy", spans_of([found.survey for found in probes]))
        write_text(target / "skipped.json",
                   json.dumps([{"file": file, "reason": why} for file, why in skipped], indent=1) + "\n")
        write_text(target / "meta.json", json.dumps(meta, indent=1) + "\n")
