"""Rows of data sets that are in a person's hands: PyTorch's, of (image, label), and those of dicts, as Hugging Face's
`datasets` has them, which is not imported for that. Which columns hold images and labels, and what classes are called.
"""

from __future__ import annotations

import io
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from ssl_lab.class_names import Names, shown
from ssl_lab.data.decode import decoding, opened, reason
from ssl_lab.data.reading import MAX_PIXELS
from ssl_lab.data.words import LABEL_NAMES, named_like, part_of
from ssl_lab.errors import UsageError, unknown

_IMAGES = ("image", "img", "images", "pixel_values", "picture", "photo", "pixels", "jpg", "jpeg", "png", "webp", "x",
           "input", "data", "path", "file", "filename", "file_name", "image_path")


class Fields(NamedTuple):
    """Under which keys a row has its image and its label: names of columns, or 0 and 1. label: None if it has none."""

    image: Any
    label: Any | None


PAIR = Fields(0, 1)


def is_table(given: Any) -> bool:
    """Whether this is a data set of named columns, as Hugging Face's."""
    return hasattr(given, "column_names") and hasattr(given, "features")


def is_dataset(given: Any) -> bool:
    """Whether this is a data set, not a list of images."""
    return is_table(given) or isinstance(given, torch.utils.data.Dataset)


def has_rows(given: Any) -> bool:
    """Whether this can be indexed as a data set can: one of no known kind, which is no list, array or table either."""
    known = isinstance(given, Sequence | np.ndarray | torch.Tensor | Mapping) or hasattr(given, "iloc")
    return not known and hasattr(given, "__len__") and hasattr(given, "__getitem__")


def is_alone(row: Any) -> bool:
    """Whether a row is an image without a label: not a pair, or a tuple of one, as of a TensorDataset of images."""
    return not isinstance(row, tuple | list) or len(row) == 1


def parts_in(given: Any) -> dict[str, Any]:
    """The data sets of train, valid, test and unlabeled that `given` is: itself one of train, or a dict of them.

    UsageError for a dict without a part to train on, and for names that mean no part or the same one.
    """
    if not isinstance(given, Mapping):
        return {"train": given}
    found: dict[str, Any] = {}
    for name, part in given.items():
        said = "unlabeled" if str(name) == "unsupervised" else part_of(str(name), doubtful=True)
        if said is None or said in found:
            raise UsageError(f"the data set has parts called {shown([str(key) for key in given])}, and {str(name)!r} "
                             f"{'is no known part' if said is None else f'is {said} again'}; expected train, valid, "
                             "test and unlabeled. Give them one by one: train=..., valid=..., test=...")
        found[said] = part
    if "train" not in found:
        raise UsageError(f"the data set has parts called {shown([str(key) for key in given])}, none of them to train "
                         "on; give train=...")
    return found


def fields_of(dataset: Any, image: str | None, label: str | None, notes: list[str]) -> Fields:
    """Where the rows of a data set have their image and label. image, label: names of columns, None: the usual ones, by
    their types or their names.

    What was chosen among several is added to `notes`. UsageError where none is found.
    """
    if not hasattr(dataset, "__len__") or not hasattr(dataset, "__getitem__"):
        hint = "load it without streaming=True" if is_table(dataset) else "rows are read by number, once each"
        raise UsageError(f"the data set, a {type(dataset).__name__}, has no length or no rows by number: {hint}")
    if not len(dataset):
        raise UsageError("the data set is empty")
    features: Mapping[str, Any] = (getattr(dataset, "features", None) or {}) if is_table(dataset) else {}
    names = list(features)
    if not names:
        row = _row(dataset, 0)
        if not isinstance(row, Mapping):
            if image is not None or label is not None:
                raise UsageError(f"the data set has rows of type {type(row).__name__}, without columns to name")
            if is_alone(row):
                notes.append("rows of the data set are images alone, so no image has a label")
            return PAIR
        names = list(map(str, row))
    for wanted, what in ((image, "image"), (label, "label")):
        if wanted is not None and wanted not in names:
            raise unknown(f"{what} column", wanted, names, "It was asked for in the data set.")
    types = {name: type(features.get(name)).__name__ for name in names}
    of_images = _usual(names, _IMAGES, [name for name in names if types[name] == "Image"])
    of_labels = _usual(names, LABEL_NAMES, [name for name in names if types[name] == "ClassLabel"])
    image = image or next((name for name in of_images if name != label), None)
    if image is None:
        raise UsageError(f"the data set has the columns {shown(names)}, and it is not clear which one holds images. "
                         "Name it, image_column=..., or give it alone, dataset[name]")
    found = label or next((name for name in of_labels if name != image), None)
    if found is None:
        notes.append(f"none of the columns {shown(names)} is known to hold labels, so no image has one; "
                     "label_column=... names one")
    elif label is None and len(others := [name for name in of_labels if name not in (image, found)]):
        notes.append(f"labels are those in column {found!r} (not {others[0]!r}); label_column=... names another")
    return Fields(image, found)


def _usual(names: Sequence[str], usual: Sequence[str], typed: Sequence[str]) -> list[str]:
    """The columns that may be meant: of the right type first, among them those of usual names first."""
    ranked = named_like(names, usual)
    if typed:
        return [*(name for name in ranked if name in typed), *(name for name in typed if name not in ranked)]
    return ranked


def row_at(dataset: Any, number: int, fields: Fields) -> tuple[Any, Any]:
    """The image and the label of a row, as they are there; None for no label. UsageError naming a bad row."""
    row = _row(dataset, number)
    try:
        if fields is PAIR:
            if is_alone(row):
                return row[0] if isinstance(row, tuple | list) else row, None
            image, label = row
            return image, label
        return row[fields.image], None if fields.label is None else row[fields.label]
    except (TypeError, ValueError, KeyError) as error:
        of = f" of {', '.join(type(each).__name__ for each in row)}" if isinstance(row, tuple | list) else ""
        raise UsageError(f"row {number} of the data set is a {type(row).__name__}{of}; expected a pair of an image and "
                         "a label, or a dict of them") from error


def labels_in(dataset: Any, fields: Fields) -> list[Any]:
    """The labels of all rows, as they are there; of a table without a look at the images."""
    if is_table(dataset) and fields.label is not None:
        return list(dataset[fields.label])
    return [row_at(dataset, number, fields)[1] for number in range(len(dataset))]


def content_of_row(image: Any) -> Any:
    """An image as a row has it, or where it is: a path, or the bytes of a file."""
    if isinstance(image, Mapping):
        content, path = image.get("bytes"), image.get("path")
        image = path if content is None else content
    if isinstance(image, bytes):
        return io.BytesIO(image)
    return Path(image) if isinstance(image, str | os.PathLike) else image


def loaded(image: Any, what: str) -> Any:
    """The same as a PIL image, if it lies in a file. UsageError for one that cannot be read."""
    content = content_of_row(image)
    if not isinstance(content, Path | io.BytesIO):
        return content
    try:
        with decoding(), opened(content, MAX_PIXELS) as picture:
            return picture.copy()
    except Exception as error:  # damaged files raise nearly anything
        raise UsageError(f"{what} cannot be read: {reason(error)}") from error


def _row(dataset: Any, number: int) -> Any:
    try:
        return dataset[number]
    except (OSError, ValueError, SyntaxError, RuntimeError, KeyError) as error:  # as it decodes an image
        raise UsageError(f"row {number} of the data set cannot be read: {reason(error)}") from error


def names_in(dataset: Any, label: Any = None) -> Names | None:
    """What a data set calls its classes: its `classes`, or the keys of `class_to_idx` by number; the names of the
    column `label`, of named columns; of a `Subset` what the whole does, of a `ConcatDataset` what all parts do. None if
    it does not say. UsageError where parts disagree."""
    if is_table(dataset):
        given = getattr((dataset.features or {}).get(label), "names", None)
        return None if given is None else tuple(map(str, given))
    given, numbers = getattr(dataset, "classes", None), getattr(dataset, "class_to_idx", None)
    if isinstance(given, Sequence | np.ndarray) and not isinstance(given, str):
        return tuple(map(str, given))
    if isinstance(numbers, Mapping) and sorted(numbers.values()) == list(range(len(numbers))):
        return tuple(map(str, sorted(numbers, key=numbers.__getitem__)))
    parts = getattr(dataset, "datasets", None) or [whole for whole in [getattr(dataset, "dataset", None)] if whole]
    said = list(dict.fromkeys(names_in(part, label) for part in parts))
    if len(said) > 1:
        raise UsageError(f"the parts of the data set name their classes differently ({'; '.join(map(shown, said))}), "
                         "so the same number may mean two classes; give parts that agree")
    return said[0] if said else None
