"""What is listed, from wherever, on its way to a pool: images with labels and parts, in one set of rules."""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from ssl_lab.data.arrays import IntArray
from ssl_lab.data.cache import Decoded, decode_files
from ssl_lab.data.classes import classes_of
from ssl_lab.data.content import Content
from ssl_lab.data.images import ArrayImages, pixel_statistics, style_of
from ssl_lab.data.reading import Reading
from ssl_lab.data.split import hold_out
from ssl_lab.data.values import check_spans
from ssl_lab.data.words import same
from ssl_lab.errors import UsageError

_TEST_SHARE = 0.2


class Listed(NamedTuple):
    """An image file. file: path relative to the root. label: class name or None. part: train, valid, test."""

    file: str
    label: str | None
    part: str


class Listing(NamedTuple):
    """Image files in the order of their rows; what a person should be told; how many files were left out, by what
    they are; and what `settle` takes."""

    entries: list[Listed]
    notes: list[str]
    passed_over: Mapping[str, int]
    class_names: tuple[str, ...] | None = None
    test_share: float = _TEST_SHARE


class Settled(NamedTuple):
    """What n images are. truth: int64 [n], -1 = none. names: of the classes. train, valid, test: int64, sorted rows."""

    truth: IntArray
    names: tuple[str, ...]
    train: IntArray
    valid: IntArray
    test: IntArray


def settle(where: str, labels: IntArray, texts: Sequence[str], parts: NDArray[np.str_], notes: list[str],
           useless: int, class_names: tuple[str, ...] | None = None, test_share: float = _TEST_SHARE) -> Settled:
    """What n images are, by their labels and parts; what a person should be told is added to `notes`.

    labels: int [n], which of `texts`, -1 = none. parts: [n] of train, valid, test. useless: how many others there
    were: unlabeled images of valid or test can serve neither. class_names: of all classes; by default they are those
    that occur. If there is no test image, `test_share` of each class (at least one image, but not its only one; 0:
    none) is held out as test, the same at each start. UsageError for one class only, or if valid and test have none of
    those of train.
    """
    if useless:
        notes.append(f"{useless} images of valid or test have no label and are left out")
    if class_names is None:
        counts = np.bincount(labels[labels >= 0], minlength=len(texts)).tolist()
        names, number, more = classes_of({text: count for text, count in zip(texts, counts, strict=True) if count})
        notes += more
    else:
        names, number = class_names, {name: label for label, name in enumerate(class_names)}
    if len(names) == 1:
        raise UsageError(f"{where} has images of one class only, {names[0]!r}, expected two classes or more (or none, "
                         "if no image has a label, which is what an empty one, -1 and nan say)")
    truth = np.array([*(number.get(text, -1) for text in texts), -1], dtype=np.int64)[labels]
    _note_classes_apart(where, truth, parts, names, notes)
    valid, test = np.flatnonzero(parts == "valid"), np.flatnonzero(parts == "test")
    if not (parts == "train").any():
        notes.append(f"no image is there to train on: all {len(labels)} are of "
                     f"{' and '.join(sorted(set(parts.tolist())))}")
    elif not len(test) and test_share:
        test = hold_out(np.flatnonzero((parts == "train") & (truth >= 0)), truth, test_share, seed=0)
        if len(test):
            notes.append(f"no test images given: {len(test)} labeled ones, {test_share:.0%} of each class, are held "
                         "out")
    train = np.setdiff1d(np.arange(len(labels)), np.concatenate([valid, test]))
    return Settled(truth, names, train, valid, test)


def _note_classes_apart(where: str, truth: IntArray, parts: NDArray[np.str_], names: Sequence[str],
                        notes: list[str]) -> None:
    """Adds a line on classes that valid and test have and train has not, if it has any. UsageError if all are such."""
    train, others = (np.unique(truth[mask & (truth >= 0)]) for mask in (parts == "train", parts != "train"))
    apart = np.setdiff1d(others, train)
    if not len(train) or not len(apart):
        return
    theirs, its = (", ".join(repr(names[label]) for label in some[:5]) + (" ..." if len(some) > 5 else "")
                   for some in (apart, train))
    if len(apart) == len(others):
        raise UsageError(f"{where}: valid and test have images of {theirs} only, train of {its}. Call the same classes "
                         "by the same names in all parts")
    notes.append(f"no train image is labeled as one of {len(apart)} classes of valid or test: {theirs}. No net learns "
                 "what it is not shown: label some in train, or take these images out")


def once(entries: Iterable[Listed], identities: Iterable[Hashable], places: Sequence[str]) -> tuple[list[Listed], int]:
    """The entries with each image once, and how many are left out.

    identities: the same for entries of one image. places: where each entry stands, for a person. Of a labeled and an
    unlabeled entry the labeled one stays. UsageError if two labels or two parts are given to one image.
    """
    kept: dict[Hashable, int] = {}
    given = list(entries)
    for row, identity in enumerate(identities):
        before = kept.setdefault(identity, row)
        if before == row:
            continue
        first, entry = given[before], given[row]
        if first.label is not None and entry.label is not None and same(first.label) != same(entry.label):
            raise UsageError(f"{places[before]} and {places[row]} are one image, labeled {first.label!r} and "
                             f"{entry.label!r}: give it one label")
        if first.part != entry.part and not any(one.label is None and one.part == "train" for one in (first, entry)):
            raise UsageError(f"{places[before]} and {places[row]} are one image, in {first.part} and in {entry.part}: "
                             "leave it in one part")
        if (first.label is None, first.part == "train") > (entry.label is None, entry.part == "train"):
            kept[identity] = row
    return [given[row] for row in kept.values()], len(given) - len(kept)


def content_of_listing(name: str, root: Path, listing: Listing, caches: Path, reading: Reading) -> Content:
    """What listed files are, decoded into or opened from a cache. What holds for labels and parts: see `settle`.

    Files that cannot be read are left out, listed with their reasons in the cache's skipped.json, and noted.
    """
    notes = list(listing.notes)
    useful = [entry for entry in listing.entries if entry.label is not None or entry.part == "train"]
    if not useful:
        raise nothing_trains(str(root))
    decoded = decode_files(root, [entry.file for entry in useful], caches, reading)
    if decoded.skipped:
        notes.append(_on_skipped(decoded))
    kept = [useful[row] for row in decoded.rows]
    texts: dict[str | None, int] = {None: -1}
    labels = np.array([texts.setdefault(entry.label, len(texts) - 1) for entry in kept], dtype=np.int64)
    parts = np.array([entry.part for entry in kept])
    settled = settle(str(root), labels, [text for text in texts if text is not None], parts, notes,
                     len(listing.entries) - len(useful), listing.class_names, listing.test_share)
    if reading.value_range is None:
        check_spans(decoded.spans, parts, decoded.survey)
    images = ArrayImages(decoded.pixels, decoded.fingerprint, decoded.contents, decoded.hold)
    style = style_of(images.shape, *pixel_statistics(images.pixels, settled.train, budget=2**26), reading.flips())
    return Content(name, images, settled.truth, settled.names, style, settled.test, settled.valid,
                   tuple(dict.fromkeys([*notes, *decoded.notes])), tuple(entry.file for entry in kept),
                   dict(Counter(listing.passed_over).most_common()), root=str(root.resolve()), reading=decoded.reading)


def nothing_trains(where: str) -> UsageError:
    return UsageError(f"{where} has no image that could train: those of valid and test have no label")


def passed_over_text(passed_over: Mapping[str, int]) -> str:
    """What was left out, as "3 .txt, 2 links"."""
    return ", ".join(f"{count} {what}" for what, count in Counter(passed_over).most_common())


def _on_skipped(decoded: Decoded) -> str:
    """One line on the files that could not be read."""
    examples = "; ".join(f"{file!r} ({reason})" for file, reason in decoded.skipped[:3])
    return (f"{len(decoded.skipped)} image files could not be read and are left out: {examples}"
            f"{' ...' if len(decoded.skipped) > 3 else ''}. All: {decoded.folder / 'skipped.json'}")
