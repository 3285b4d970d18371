"""A person's own images: a folder with a sub-folder per class, or a CSV file of `path,label`."""

from __future__ import annotations

import csv
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple, NoReturn

import numpy as np

from ssl_lab.data.cache import Decoded, decode_files
from ssl_lab.data.decode import SUFFIXES
from ssl_lab.data.images import ArrayImages, pixel_statistics, style_of
from ssl_lab.data.pool import Pool, pool_of
from ssl_lab.data.reading import Reading
from ssl_lab.data.split import hold_out
from ssl_lab.errors import UsageError

_PARTS = {"train": "train", "training": "train", "valid": "valid", "val": "valid", "validation": "valid",
          "test": "test", "testing": "test"}
"""What each name means, whatever its case."""
_TEST_FRACTION = 0.2


class Listed(NamedTuple):
    """An image file. file: path relative to the root. label: class name or None. part: train, valid, test."""

    file: str
    label: str | None
    part: str


def load_folder(root: Path, caches: Path, reading: Reading) -> Pool:
    """A pool of the images below `root`.

    Each sub-folder is a class, with the images at any depth below it. Images in no sub-folder, or in
    `unlabeled/`, are unlabeled. If there is a folder `train` (`training`), it holds the class folders, and `valid`
    (`val`, `validation`) and `test` (`testing`) beside it may hold more of them; without any of these, without
    folders in it and with other ones beside it, `train` is a class. The case of these names is all one. Hidden files,
    other files and linked sub-folders of class folders are passed over. What else holds for a listing: see
    `pool_of_listing`.
    """
    listing, notes = list_folder(root)
    if not listing:
        raise UsageError(f"{root} holds no image. Expected a sub-folder per class, with files of "
                         f"{' '.join(sorted(SUFFIXES))}")
    return pool_of_listing(root.resolve().name, root, listing, notes, caches, reading)


def load_csv(path: Path, caches: Path, reading: Reading) -> Pool:
    """A pool of the images that a CSV file lists, with the columns `path` (relative to the file's folder),
    `label` (empty or -1: unlabeled) and, if wanted, `split` (train, valid or test; empty: train)."""
    listing = list_csv(path)
    return pool_of_listing(path.stem, path.parent, listing, [], caches, reading)


def list_folder(root: Path) -> tuple[list[Listed], list[str]]:
    """The image files of a folder, sorted by path, and notes on what was passed over."""
    tops = _folders(root)
    parts = {top: _PARTS[top.lower()] for top in tops if top.lower() in _PARTS}
    aside = [top for top in tops if top not in parts and not _is_unlabeled(top)]
    train = next((top for top in parts if parts[top] == "train"), None)
    if train is None or (len(parts) == 1 and aside and not _folders(root / train)):  # else it is a class
        listing, notes = _in_part(root, root, "train")
        return sorted(listing), notes
    listing = [Listed(file, None, "train") for file in _images(root, root, deep=False)]
    notes = [f"folders beside {train}/ are left out: {', '.join(aside)}"] if aside else []
    for top in tops:
        if top in parts:
            more, said = _in_part(root, root / top, parts[top])
            listing += more
            notes += said
        elif _is_unlabeled(top):
            listing += [Listed(file, None, "train") for file in _images(root, root / top)]
    return sorted(listing), notes


def _in_part(root: Path, folder: Path, part: str) -> tuple[list[Listed], list[str]]:
    """The images of class folders, and the loose ones; and a note on class folders that hold none."""
    listing = [Listed(file, None, part) for file in _images(root, folder, deep=False)]
    empty = []
    for name in _folders(folder):
        label = None if _is_unlabeled(name) else name
        found = [Listed(file, label, part) for file in _images(root, folder / name)]
        listing += found
        if label is not None and not found:
            empty.append(name)
    notes = [f"{len(empty)} class folders of {folder} hold no file of {' '.join(sorted(SUFFIXES))}: "
             f"{', '.join(empty[:5])}{' ...' if len(empty) > 5 else ''}"] if empty else []
    return listing, notes


def _is_unlabeled(name: str) -> bool:
    return name.lower() == "unlabeled"


def _folders(folder: Path) -> list[str]:
    try:
        with os.scandir(folder) as entries:
            return sorted(entry.name for entry in entries if entry.is_dir() and not entry.name.startswith("."))
    except OSError as error:
        _cannot_list(error)


def _images(root: Path, folder: Path, deep: bool = True) -> Iterator[str]:
    """Paths, relative to root, of the files in `folder` that are named like images."""
    for where, folders, files in os.walk(folder, onerror=_cannot_list):
        folders[:] = [name for name in folders if deep and not name.startswith(".")]
        inside = Path(where).relative_to(root).as_posix()
        prefix = "" if inside == "." else f"{inside}/"
        for file in files:
            if not file.startswith(".") and os.path.splitext(file)[1].lower() in SUFFIXES:
                yield prefix + file


def _cannot_list(error: OSError) -> NoReturn:
    raise UsageError(f"cannot read the folder {error.filename}: {error.strerror}. Mend that or remove it, and start "
                     "again") from error


def list_csv(path: Path) -> list[Listed]:
    """The rows of a CSV file. UsageError naming the line at fault."""
    listing: list[Listed] = []
    seen: set[str] = set()
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            reader = csv.DictReader(file, skipinitialspace=True)
            if not {"path", "label"} <= set(reader.fieldnames or ()):
                raise UsageError(f"{path}: the first line must name the columns `path,label`, it is "
                                 f"{','.join(reader.fieldnames or ())[:80]!r}")
            for row in reader:
                where = f"{path}, line {reader.line_num}"
                name, label = (row["path"] or "").strip(), (row["label"] or "").strip()
                part = _PARTS.get((row.get("split") or "train").strip().lower())
                if part is None:
                    raise UsageError(f"{where}: split is {row['split']!r}, expected train, valid or test")
                if not name or name in seen:
                    raise UsageError(f"{where}: the path {name!r} is {'listed twice' if name else 'empty'}")
                seen.add(name)
                listing.append(Listed(name, None if label in ("", "-1") else label, part))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise UsageError(f"cannot read {path}: {error}") from error
    if not listing:
        raise UsageError(f"{path} lists no image")
    return listing


def pool_of_listing(name: str, root: Path, listing: Sequence[Listed], notes: Sequence[str], caches: Path,
                    reading: Reading) -> Pool:
    """The pool of listed files, decoded into or opened from a cache.

    Files that cannot be read are left out, listed with their reasons in the cache's skipped.json, and noted.
    If there is no test image, 20% of each class (at least one image, but not its only one) is held out as
    test, the same at each start, and noted. Unlabeled images of valid or test parts can serve neither and are
    left out. Class names are sorted; as numbers, if all are.
    """
    notes = list(notes)
    useful = [entry for entry in listing if entry.label is not None or entry.part == "train"]
    if len(useful) < len(listing):
        notes.append(f"{len(listing) - len(useful)} images of valid or test have no label and are left out")
    names = class_names_of(useful)
    if len(names) == 1:
        raise UsageError(f"{root} has images of one class only, {names[0]!r}, expected two classes or more")
    if not useful:
        raise UsageError(f"{root} has no image that could train: those of valid and test have no label")
    decoded = decode_files(root, [entry.file for entry in useful], caches, reading)
    if decoded.skipped:
        notes.append(_on_skipped(decoded))

    kept = [useful[row] for row in decoded.rows]
    number: dict[str | None, int] = {None: -1} | {label: index for index, label in enumerate(names)}
    truth = np.array([number[entry.label] for entry in kept], dtype=np.int64)
    part = np.array([entry.part for entry in kept])
    valid, test = np.flatnonzero(part == "valid"), np.flatnonzero(part == "test")
    if not len(test):
        test = hold_out(np.flatnonzero((part == "train") & (truth >= 0)), truth, _TEST_FRACTION, seed=0)
        if len(test):
            notes.append(f"no test images given: {len(test)} labeled ones, 20% of each class, are held out")
    images = ArrayImages(decoded.pixels, decoded.fingerprint, decoded.contents)
    train = np.setdiff1d(np.arange(len(kept)), np.concatenate([valid, test]))
    style = style_of(images.shape, *pixel_statistics(images.pixels, train, budget=2**26))
    return pool_of(name, images, truth, names, style, test, valid, tuple(notes),
                   tuple(entry.file for entry in kept))


def class_names_of(listing: Sequence[Listed]) -> tuple[str, ...]:
    """The labels that occur, sorted as numbers if all are numbers, else as text."""
    labels = {entry.label for entry in listing if entry.label is not None}
    numeric = all(label.isascii() and label.isdigit() for label in labels)
    return tuple(sorted(labels, key=lambda label: (int(label) if numeric else 0, label)))


def _on_skipped(decoded: Decoded) -> str:
    """One line on the files that could not be read."""
    examples = "; ".join(f"{file!r} ({reason})" for file, reason in decoded.skipped[:3])
    return (f"{len(decoded.skipped)} image files could not be read and are left out: {examples}"
            f"{' ...' if len(decoded.skipped) > 3 else ''}. All: {decoded.folder / 'skipped.json'}")
