"""Which columns of a table hold the paths of images, their labels and their parts."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from ssl_lab.data.decode import SUFFIXES
from ssl_lab.data.delimited import Row
from ssl_lab.data.reading import Reading
from ssl_lab.data.words import LABEL_NAMES, missing, part_of, plain_name
from ssl_lab.errors import UsageError, unknown

_PATHS = ("path", "file", "filepath", "file_path", "image_path", "img_path", "imagepath", "filename", "file_name",
          "fname", "image", "img", "image_file", "image_name", "picture", "photo", "image_id", "img_id", "id", "name")
_SPLITS = ("split", "part", "partition", "set", "subset", "phase", "usage", "fold", "stage", "data_set", "dataset")
_FLAGS = {"is_valid": "valid", "is_val": "valid", "is_validation": "valid", "valid": "valid", "val": "valid",
          "is_test": "test", "test": "test"}
"""Columns of true and false, as fastai has them."""
_TRUE, _FALSE = ("true", "1", "1.0", "yes", "t"), ("false", "0", "0.0", "no", "f", "")
_SAMPLE = 200


@dataclass
class Columns:
    """names: of all columns. path, label, split: numbers of columns. flags: of columns of true and false, with the part
    that true means."""

    names: Sequence[str]
    path: int
    label: int
    split: int | None = None
    flags: dict[int, str] = field(default_factory=dict)

    def part(self, fields: Sequence[str], where: str) -> tuple[str, bool]:
        """The part of a row, and whether its label counts. UsageError for a word that means none."""
        for column, part in self.flags.items():
            if fields[column].lower() in _TRUE:
                return part, True
        given = "" if self.split is None else fields[self.split]
        said = part_said(given)
        if said == "unlabeled":
            return "train", False
        if said is None:
            raise UsageError(f"{where}: {self.names[self.split or 0]} is {given!r}, expected train, valid or test")
        return said, True


def part_said(given: str) -> str | None:
    """The part that a word in a column of parts means: train, valid, test or unlabeled; None if it means none."""
    return part_of(given, doubtful=True) or ("train" if missing([given]) else None)


def choose(path: Path, header: list[str], rows: list[Row], reading: Reading, notes: list[str]) -> Columns:
    """The columns of a table, by the names that `reading` gives, else by usual ones. Where the first row is of the kind
    of the others, it becomes the first of `rows`. What was chosen is added to `notes`. UsageError if it is not clear.
    """
    plain = [plain_name(name) for name in header]
    given = any((reading.path_column, reading.label_column, reading.split_column))
    if not given and len(header) > 1 and not {*plain} & {*_PATHS, *LABEL_NAMES} and _is_image(header):
        return _without_header(path, header, rows, notes)
    repeated = [name for name in header if header.count(name) > 1]
    image = _named(path, header, reading.path_column, "path")
    label = _named(path, header, reading.label_column, "label")
    split = _named(path, header, reading.split_column, "split")
    if image is None:
        image = _first(plain, _PATHS, exclude=(label, split))
    if label is None:
        label = _first(plain, LABEL_NAMES, exclude=(image, split))
    image, label = _by_content(plain, rows, image, label, split)
    chosen = [header[number] for number in (image, label, split) if number is not None]
    if twice := [name for name in chosen if name in repeated]:
        raise UsageError(f"{path}: the first line names {twice[0]!r} twice; expected another name for each column")
    if image is None or label is None or image == label:
        _refuse_one_hot(path, header, rows, image)
        raise UsageError(f"{path}: the first line must name the columns of paths and labels, such as `path,label`, it "
                         f"is {','.join(header)[:80]!r}. Name them with --path-column and --label-column")
    columns = Columns(header, image, label, split)
    if split is None:
        _choose_parts(columns, plain, rows, notes)
    usual = [header[image], header[label], *([] if columns.split is None else [header[columns.split]])]
    if not given and usual not in (["path", "label"], ["path", "label", "split"]):
        words = ["paths", "labels", "parts"]
        said = ", ".join(f"{what} in column {name!r}" for what, name in zip(words, usual, strict=False))
        others = [name for number, name in enumerate(header) if number not in (image, label, columns.split)
                  and plain[number] in LABEL_NAMES]
        notes.append(f"{path.name}: {said}{f' (not {others[0]!r})' if others else ''}; --path-column, --label-column "
                     "and --split-column name others")
    return columns


def _named(path: Path, header: Sequence[str], wanted: str | None, what: str) -> int | None:
    if wanted is None:
        return None
    if wanted not in header:
        raise unknown(f"{what} column", wanted, header, f"It was asked for in {path}.")
    return list(header).index(wanted)


def _first(plain: Sequence[str], usual: Sequence[str], exclude: Sequence[int | None]) -> int | None:
    return next((number for name in usual for number, other in enumerate(plain)
                 if other == name and number not in exclude), None)


def _by_content(plain: Sequence[str], rows: Sequence[Row], image: int | None, label: int | None,
                split: int | None) -> tuple[int | None, int | None]:
    """The one column of images' names, if none has a usual name; and the only one beside it, if none names labels."""
    left = [number for number, name in enumerate(plain) if number not in (image, label, split)]
    if image is None:
        holding = [number for number in left
                   if rows and all(_is_image([value]) for value in _values(rows[:_SAMPLE], number))]
        image = holding[0] if len(holding) == 1 else None
    others = [number for number in left if number != image and plain[number] not in (*_SPLITS, *_FLAGS)]
    if image is not None and label is None and len(others) == 1:
        label = others[0]
    return image, label


def _values(rows: Sequence[Row], column: int) -> set[str]:
    return {row.fields[column].strip() for row in rows if column < len(row.fields)}


def _choose_parts(columns: Columns, plain: Sequence[str], rows: Sequence[Row], notes: list[str]) -> None:
    """Finds the column of parts, or those of true and false."""
    for number, name in enumerate(plain):
        if number in (columns.path, columns.label):
            continue
        values = _values(rows, number)
        if name in _FLAGS and {value.lower() for value in values} <= {*_TRUE, *_FALSE}:
            columns.flags[number] = _FLAGS[name]
            notes.append(f"column {columns.names[number]!r} marks images of {_FLAGS[name]}")
        elif name in _SPLITS or name in _FLAGS:
            words = {value for value in values if value and not missing([value])}
            if columns.split is None and (name == "split" or (words and all(part_of(word, True) for word in words))):
                columns.split = number
            elif words:
                some = ", ".join(sorted(words)[:3]) + (" ..." if len(words) > 3 else "")
                notes.append(f"column {columns.names[number]!r} ({some}) is not read as parts: such a column holds "
                             "train, valid or test, and is named by --split-column")


def _refuse_one_hot(path: Path, header: Sequence[str], rows: Sequence[Row], image: int | None) -> None:
    """UsageError for a table with a column per class."""
    hot = [name for number, name in enumerate(header) if number != image
           and len(_values(rows[:_SAMPLE], number) - {""}) > 0
           and _values(rows[:_SAMPLE], number) <= {"0", "1", "0.0", "1.0", "True", "False", ""}]
    if len(hot) > 1:
        some = ", ".join(hot[:4]) + (" ..." if len(hot) > 4 else "")
        raise UsageError(f"{path}: the columns {some} hold 0 and 1, one for each class it seems; expected one column, "
                         "`label`, with the name of the one class of each image")


def _is_image(fields: Sequence[str]) -> bool:
    """Whether one of the fields is the path of an image."""
    return any(os.path.splitext(field)[1].lower() in SUFFIXES for field in fields)


def _without_header(path: Path, header: list[str], rows: list[Row], notes: list[str]) -> Columns:
    """The columns of a table whose first row is an image as well: one is of paths, and the other of labels."""
    rows.insert(0, Row(1, header))
    image = next(number for number in range(len(header)) if _is_image([header[number]]))
    others = [number for number in range(len(header)) if number != image]
    splits = [number for number in others if all(part_of(word, True) for word in _values(rows, number) if word)]
    split = splits[0] if len(others) == 2 and len(splits) == 1 else None
    labels = [number for number in others if number != split]
    if len(labels) != 1:
        raise UsageError(f"{path}: the first line names no columns, it is {','.join(header)[:80]!r}, and it is not "
                         "clear which one holds labels. Put a first line such as `path,label` there")
    notes.append(f"{path.name} names no columns: column {image + 1} is read as paths, column {labels[0] + 1} as labels"
                 f"{'' if split is None else f', column {split + 1} as parts'}")
    return Columns([f"column {number + 1}" for number in range(len(header))], image, labels[0], split)
