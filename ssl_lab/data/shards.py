"""Tar shards in the WebDataset layout, as one more source of images: for data larger than memory, or than a disk.

A sample is what members of a tar share a name up to its first dot: `0001.jpg`, `0001.cls`, wherever in it they lie.
Nothing is ever unpacked.

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

import glob
import hashlib
import io
import math
import os
import re
import tarfile
from collections import Counter
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from functools import cache
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ssl_lab.class_names import shown
from ssl_lab.data.arrays import IntArray
from ssl_lab.data.classes import unlabeled_texts
from ssl_lab.data.content import Content
from ssl_lab.data.decode import decoding, read_image, reason
from ssl_lab.data.files import Hold
from ssl_lab.data.images import Contents, pixel_statistics, style_of
from ssl_lab.data.listing import nothing_trains, settle
from ssl_lab.data.pool import Pool, pool_of
from ssl_lab.data.reading import AS_BYTES, Reading, resolve
from ssl_lab.data.shard_index import WORKERS, Index, open_index
from ssl_lab.data.split import shuffled
from ssl_lab.data.values import check_spans
from ssl_lab.data.words import part_of
from ssl_lab.errors import UsageError, unknown

_STATISTICS_BYTES = 2**25


class ShardImages:
    """Images that lie encoded in files, each decoded when it is asked for, by threads.

    paths: the files. members: int64 [n, 3]: of each image the number of its file, its first byte and its bytes.
    size: (width, height), which matters where `reading` keeps it. reading: as decided. sha256: of the encoded images.
    contents: a hash of each, encoded. hold: keeps their index.
    """

    def __init__(self, paths: Sequence[Path], members: IntArray, size: tuple[int, int], reading: Reading, sha256: str,
                 contents: Contents, hold: Hold | None = None) -> None:
        self.paths, self.members, self.reading, self.sha256, self.hold = tuple(paths), members, reading, sha256, hold
        self._size = size if reading.image_size is None else (reading.image_size, reading.image_size)
        self._contents = contents

    @property
    def shape(self) -> tuple[int, int, int]:
        width, height = self._size
        return 1 if self.reading.gray else 3, height, width

    def __len__(self) -> int:
        return len(self.members)

    def take(self, indices: IntArray) -> Tensor:
        """uint8 [n, C, S, S]. UsageError if an image cannot be read any more."""
        members = self.members[indices]
        pixels = np.empty((len(members), *self.shape), np.uint8)

        def read(row: int) -> None:
            pixels[row] = self._read(*members[row].tolist())

        on_disk = np.lexsort((members[:, 1], members[:, 0])).tolist()
        with decoding():
            reads = [_threads(os.getpid()).submit(read, row) for row in on_disk]
            try:
                for each in reads:
                    each.result()
            finally:  # where one failed, the others are not to go on after `decoding`
                wait([each for each in reads if not each.cancel()])
        return torch.from_numpy(pixels)

    def _read(self, shard: int, offset: int, size: int) -> NDArray[np.uint8]:
        try:
            with self.paths[shard].open("rb") as file:
                file.seek(offset)
                return read_image(io.BytesIO(file.read(size)), self.reading).pixels
        except Exception as error:  # damaged files raise nearly anything
            raise UsageError(f"the image{_name_at(self.paths[shard], offset)} at byte {offset} of {self.paths[shard]} "
                             f"could be read when the shards were indexed, and cannot now: {reason(error)}. Restore "
                             "the shard; if it was changed, start again") from error

    def fingerprint(self) -> str:
        read, usual = self.reading.of_images(), AS_BYTES.of_images()
        more = "" if read == usual else f" {read}"
        return hashlib.sha256(f"{self.sha256} {self.shape}{more}".encode()).hexdigest()

    def contents(self) -> Contents:
        return self._contents


@cache
def _threads(process: int) -> ThreadPoolExecutor:
    """Those of this process (a fork has none of them) for all batches: to start them for each would cost its time."""
    return ThreadPoolExecutor(WORKERS)


def shards_of(path: Path) -> tuple[Path, list[str]]:
    """The folder and, relative to it, the shards that are meant.

    path: a .tar file, or a pattern like "path/{000..009}.tar" or "path/*.tar". UsageError if one is missing.
    """
    files = [path]
    if not path.is_file() and glob.has_magic(str(path)):
        files = [Path(file) for file in sorted(glob.glob(str(path)))]
    elif not path.is_file() and re.search(r"[{}$]|::", str(path)):
        files = _expanded(path)
    missing = [file for file in files if not file.is_file()]
    if missing or not files:
        raise UsageError(f"there is no shard {[*missing, path][0]} ({len(missing)} of the {len(files)} of {path} are "
                         "missing)")
    root = Path(os.path.commonpath([file.parent for file in files]))
    return root, [file.relative_to(root).as_posix() for file in files]


def _expanded(path: Path) -> list[Path]:
    try:
        import webdataset  # type: ignore[import-untyped]
    except ImportError:
        raise UsageError(f"a pattern such as {path} is read through webdataset, which is not installed: pip install "
                         "'ssl_lab[stream]'. Or give the folder") from None
    try:
        return [Path(file) for file in webdataset.shardlists.expand_urls(str(path))]
    except (ValueError, AssertionError) as error:  # a brace or a variable without an end
        raise UsageError(f"{path} is no pattern of shards ({error}); expected e.g. path/{{000..009}}.tar") from None


def load_shards(root: Path, files: Sequence[str], caches: Path, reading: Reading,
                passed_over: Mapping[str, int] | None = None) -> Pool:
    """A pool of the images in tar shards.

    files: paths relative to `root`. passed_over: what lies beside them. A shard with a word for `valid` or `test` in
    its path holds images of that part, one with a word for `unlabeled` train images whose labels do not count, every
    other one train images. The label is the text of a member `cls`, or else the `label` of a `json` (or what stands
    there under another usual name, or all of it, if it is a number or a text), or, without either, the text of a `txt`.
    Where `reading` names a label_column, that is the key in the `json`, which then comes first. What holds for labels
    and parts: see `settle`.

    Samples whose image or label cannot be read, and what follows a damaged place of a shard, are left out, listed
    with their reasons in skipped.json beside the index, and noted.
    """
    index = open_index(root, files, caches, reading.max_pixels, reading.label_column)
    if reading.label_column is not None and not index.keys:
        raise unknown("label column", reading.label_column, index.fields, f"No json member of {root} has such a key.")
    notes = [_on_skipped(index)] if index.skipped else []
    if reading.label_column is None and index.keys.keys() - {"label"}:
        notes.append(f"labels stand in json under {' and '.join(map(repr, index.keys))} (of {shown(index.fields)}); "
                     "--label-column names another key")
    labels = np.array(index.members[:, 3])
    counts = np.bincount(labels[labels >= 0], minlength=len(index.labels)).tolist()
    gone, more = unlabeled_texts(dict(zip(index.labels, counts, strict=True)))
    notes += more
    labels[np.isin(labels, [number for number, text in enumerate(index.labels) if text in gone])] = -1
    words = np.array([_part(file) for file in files])[index.members[:, 0]]
    labels[words == "unlabeled"] = -1
    parts = np.where(words == "unlabeled", "train", words)
    useful = np.flatnonzero((labels >= 0) | (parts == "train"))
    if not len(useful):
        raise nothing_trains(str(root))
    settled = settle(str(root), labels[useful], index.labels, parts[useful], notes, len(labels) - len(useful))
    if not settled.names:
        notes.append("no sample has a label: none has a member cls, json or txt that says one")
    resolved, said = resolve(reading, index.facts)
    if reading.value_range is None:
        check_spans(index.spans[useful], parts[useful], index.facts.survey)
    members = index.members[:, :3] if len(useful) == len(index.members) else index.members[useful, :3]
    images = ShardImages([root / file for file in files], members, index.facts.sizes.first, resolved, index.sha256,
                         index.contents[useful], index.hold)
    train = settled.train if len(settled.train) else np.arange(len(useful))
    some = shuffled(train, "pixel_statistics")[:max(1, _STATISTICS_BYTES // (3 * math.prod(images.shape[1:])))]
    style = style_of(images.shape, *pixel_statistics(images.take(some).numpy()), reading.flips())
    name = root.resolve().name if len(files) > 1 else Path(files[0]).stem
    beside = Counter(passed_over or {}) + Counter(index.passed_over)
    return pool_of(Content(name, images, settled.truth, settled.names, style, settled.test, settled.valid,
                           (*notes, *said), passed_over=dict(beside.most_common()), reading=resolved))


def _name_at(path: Path, offset: int) -> str:
    """The name in the header before a file in a tar, as " 'NAME'"; "" if that too is damaged."""
    try:
        with path.open("rb") as file:
            file.seek(offset - tarfile.BLOCKSIZE)
            header = file.read(tarfile.BLOCKSIZE)
        return f" {tarfile.TarInfo.frombuf(header, 'utf-8', 'surrogateescape').name!r}"
    except (OSError, tarfile.TarError):
        return ""


def _part(file: str) -> str:
    """The part that a shard's path says, folders first: of birds-val-000.tar, valid."""
    words = re.findall(r"[^\W\d_]+", file.removesuffix(".tar"))
    said = [part for part in (*map(part_of, file.split("/")[:-1]), *map(part_of, words)) if part]
    return "unlabeled" if "unlabeled" in said else (said or ["train"])[0]


def _on_skipped(index: Index) -> str:
    examples = "; ".join(f"{file!r} ({why})" for file, why in index.skipped[:3])
    return (f"{len(index.skipped)} samples or shards could not be read and are left out: {examples}"
            f"{' ...' if len(index.skipped) > 3 else ''}. All: {index.folder / 'skipped.json'}")
