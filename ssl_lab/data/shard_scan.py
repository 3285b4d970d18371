"""One tar shard, read from end to end: where each image lies, what is seen of it, and what its label is."""

from __future__ import annotations

import hashlib
import io
import json
import tarfile
from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from ssl_lab.data.arrays import IntArray
from ssl_lab.data.decode import SUFFIXES, Probe, is_passing, look, opened, peak, reason, upright
from ssl_lab.data.files import Bounded
from ssl_lab.data.images import content_of
from ssl_lab.data.values import Seen
from ssl_lab.data.walk import suffix_of
from ssl_lab.data.words import LABEL_NAMES, named_like

_MEMBERS = ("cls", "json", "txt")
"""Members that hold labels; the first that is there counts."""


class Member(NamedTuple):
    """A file in a tar: its name without and with its last suffix, where its bytes begin, how many there are, and they
    themselves."""

    stem: str
    suffix: str
    offset: int
    size: int
    content: bytes


class Image(NamedTuple):
    """What stays of an image: where it lies, what is seen of it, whether it is transparent somewhere, its sha256 and a
    shorter hash."""

    stem: str
    offset: int
    size: int
    probe: Probe
    clear: bool
    digest: bytes
    content: int


class Scan(NamedTuple):
    """What one shard holds. places: int64 [n, 2] of (offset, size). labels: of each image, None without one. probes: of
    each image. clear: how many are transparent somewhere. digest: of the images' bytes. contents: a hash of each
    image's bytes. skipped: (sample or shard, reason). passed_over: how many members are neither images nor labels, by
    what they are. keys: under which keys of json how many labels stand. fields: the keys of a json."""

    places: IntArray
    labels: list[str | None]
    probes: list[Probe]
    clear: int
    digest: bytes
    contents: list[int]
    skipped: list[tuple[str, str]]
    passed_over: dict[str, int]
    keys: dict[str, int]
    fields: list[str]


def scan_shard(path: Path, max_pixels: int, label_key: str | None = None) -> Scan:
    """Read a shard from end to end, decoding its images. label_key: under which labels stand in json, None: a usual one
    of each. Never raises for what the shard holds: see `Scan.skipped`. What `is_passing` is raised."""
    images: list[Image] = []
    labels: dict[str, dict[str, bytes]] = {}
    passed_over: Counter[str] = Counter()
    skipped: list[tuple[str, str]] = []
    broken: set[str] = set()
    damage, last, white = "", "", False
    try:
        for member in members_of(path, passed_over):
            last = member.stem
            if member.suffix in _MEMBERS:
                labels.setdefault(member.stem, {})[member.suffix] = member.content
                continue
            try:
                with opened(io.BytesIO(member.content), max_pixels) as picture:
                    probe = look(picture, turn=True)
                    plain, clear = upright(picture)
                if not white and "bytes" in probe.survey:
                    white = (top := peak(plain)) > 1
                    probe = probe._replace(survey={"bytes": Seen(0, 255 if white else top)})
            except Exception as error:  # damaged files raise nearly anything
                if is_passing(error):
                    raise
                skipped.append((member.stem, reason(error)))
                broken.add(member.stem)
                continue
            digest = hashlib.sha256(member.content).digest()
            content = int(content_of(np.frombuffer(member.content, np.uint8)[None])[0])
            images.append(Image(member.stem, member.offset, member.size, probe, clear, digest, content))
    except Exception as error:
        if is_passing(error):
            raise
        damage = reason(error)
        images = [image for image in images if sample_of(image.stem) != sample_of(last)]  # may have lost its label
    chosen: list[tuple[Image, str | None]] = []
    keys, fields = Counter[str](), list[str]()
    for image, given in _samples(images, labels, broken, passed_over):
        try:
            value, key = _label(given, label_key, fields)
            chosen.append((image, value))
            keys.update([] if key is None else [key])
        except Exception as error:
            skipped.append((image.stem, reason(error)))
    if damage:
        skipped.append(("", f"damaged, only the {len(chosen)} images before that are used: {damage}"))
    places = np.array([(image.offset, image.size) for image, _ in chosen], np.int64).reshape(-1, 2)
    digest = hashlib.sha256(b"".join(image.digest for image, _ in chosen)).digest()
    return Scan(places, [label for _, label in chosen], [image.probe for image, _ in chosen],
                sum(image.clear for image, _ in chosen), digest,
                [image.content for image, _ in chosen], skipped, passed_over, keys, fields)


def sample_of(stem: str) -> str:
    """What the members of a sample share of their names, in the layout of `webdataset`: all up to the first dot."""
    folder, slash, name = stem.rpartition("/")
    return f"{folder}{slash}{name.partition('.')[0]}"


def _samples(images: Sequence[Image], labels: Mapping[str, Mapping[str, bytes]], broken: Collection[str],
             passed_over: Counter[str]) -> Iterator[tuple[Image, Mapping[str, bytes]]]:
    """Each sample's image and labels, wherever in the shard they lie.

    A sample has one image: the one named like it (`1.jpg`, beside which `1.seg.png` is passed over). Where there is
    none, images with more words in their names (`1.5x.jpg`, `1.7x.jpg`) are samples of their own, each with the label
    that is named like it; if only a common one is there, the first of them has it.
    """
    several: dict[str, list[Image]] = {}
    for image in images:
        several.setdefault(sample_of(image.stem), []).append(image)
    for sample, group in several.items():
        plain = [image for image in group if image.stem == sample]
        common = labels.get(sample, {})
        own = [image for image in group if image.stem in labels or not common]
        taken = plain[:1] or own or group[:1]
        for image in taken:
            yield image, labels.get(image.stem, common)
        if len(taken) < len(group):
            passed_over["further images of samples"] += len(group) - len(taken)
    alone = [stem for stem in labels if sample_of(stem) not in several and stem not in broken]
    if alone:
        passed_over["labels without an image"] += len(alone)


def members_of(path: Path, passed_over: Counter[str]) -> Iterator[Member]:
    """The images and labels in a tar; of other members their number. ValueError or tarfile's where it is damaged."""
    seen: set[str] = set()
    with Bounded(path) as file, tarfile.open(fileobj=file, mode="r:") as tar:
        while (info := tar.next()) is not None:
            tar.members = []  # type: ignore[attr-defined]  # or it keeps all of them
            if info.size < 0 or tar.offset <= info.offset:  # the second would go round for ever
                raise ValueError(f"{info.name!r} has a size below zero")
            name = info.name.removeprefix("./")
            stem, _, suffix = name.rpartition(".")
            suffix = suffix.lower()
            if info.isdir():
                continue
            if not info.isreg() or info.issparse():
                passed_over["links" if info.issym() or info.islnk() else "special files"] += 1
            elif name.rpartition("/")[2].startswith("."):
                passed_over["hidden files"] += 1
            elif name in seen:
                passed_over["names that are there twice"] += 1
            elif suffix in _MEMBERS or f".{suffix}" in SUFFIXES:
                seen.add(name)
                file.seek(info.offset_data)
                content = file.read(info.size)
                if len(content) < info.size:
                    raise ValueError(f"{info.name!r} is cut off")
                yield Member(stem, suffix, info.offset_data, info.size, content)
            else:
                passed_over[suffix_of(name) or "without suffix"] += 1
        file.seek(tar.offset)  # tarfile takes a header that it cannot read for the end
        if file.read(tarfile.BLOCKSIZE) != bytes(tarfile.BLOCKSIZE):
            raise ValueError(f"no file and no end mark at byte {tar.offset}")


def _label(given: Mapping[str, bytes], key: str | None, fields: list[str]) -> tuple[str | None, str | None]:
    """The text of a label as it stands there, None without one; and under which key of json it stands, if it does.

    key: the one to look under, which then comes before other members. fields: takes the keys, if it is empty.
    """
    order = _MEMBERS if key is None else ("json", *_MEMBERS)
    suffix = next((suffix for suffix in order if suffix in given), None)
    if suffix is None:
        return None, None
    text = given[suffix].decode()
    value = json.loads(text) if suffix == "json" else text.strip()
    if isinstance(value, dict):
        fields.extend([] if fields else value)
        key = next(iter(named_like(value, LABEL_NAMES)), None) if key is None else key
        key, value = (key, value[key]) if key in value else (None, None)
    else:
        key = None
    if isinstance(value, float) and (value != value or value.is_integer()):  # as pandas writes them
        return None if value != value else str(value), key
    if value is not None and type(value) not in (str, int):
        raise ValueError(f"the label is {value!r}, expected a text or a whole number")
    return None if value is None else str(value), key
