"""Reading data sets, of PyTorch or Hugging Face, into arrays."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from ssl_lab.class_names import Names, shown
from ssl_lab.data.arrays import IntArray, channels_first
from ssl_lab.data.decode import is_wide, turned, upright
from ssl_lab.data.reading import Reading, on_clear
from ssl_lab.data.rows import Fields, loaded, row_at
from ssl_lab.data.sizes import Sizes, fit_batch, fit_picture
from ssl_lab.data.values import Kind, Seen, Survey, decide, kind_of, merged, survey
from ssl_lab.errors import UsageError


class Row(NamedTuple):
    """An image before it is known how its values are read: [C, H, W], and of which kind they are."""

    values: NDArray[Any]
    kind: Kind


def read_datasets(datasets: Sequence[Any], fields: Sequence[Fields], reading: Reading) -> tuple[
        list[NDArray[np.uint8]], list[list[Any]], Reading, list[str]]:
    """uint8 [N, C, H, W] and the N labels as they are there of each data set (train, perhaps others), how they were
    read, and notes.

    fields: where the rows of each have them. How values become bytes is decided for all of them together. PIL images of
    other sizes than image_size, and arrays that differ in size, are resized; arrays of one size keep it. UsageError
    naming the first bad row.
    """
    rows, labels, surveys, sizes = [], [], [], list[tuple[int, int]]()
    clear = 0
    for dataset, columns in zip(datasets, fields, strict=True):
        some, given, seen = list[Row](), list[Any](), dict[Kind, Seen]()
        for row in range(len(dataset)):
            image, label = row_at(dataset, row, columns)
            found, survey_of_row, is_clear = _row(image, reading, f"row {row} of the data set", sizes)
            some.append(found)
            given.append(label)
            seen = merged([seen, survey_of_row])
            clear += is_clear
        rows.append(some)
        labels.append(given)
        surveys.append(seen)
    values, notes = decide(surveys, reading.value_range)
    notes += on_clear(clear, reading.background)
    if sizes:
        notes = Sizes.of(sizes).notes(reading.image_size, reading.resize) + notes
    colored = any(row.values.shape[0] == 3 for some in rows for row in some)
    pixels = [_stacked([values.to_bytes(row.values[None], row.kind)[0] for row in some], 3 if colored else 1, reading)
              for some in rows]
    return pixels, labels, replace(reading, values=values, gray=not colored), notes


def _row(image: Any, reading: Reading, what: str, sizes: list[tuple[int, int]]) -> tuple[Row, Survey, bool]:
    """An image of a data set, what its values are, and whether it is transparent somewhere. sizes: takes that of a PIL
    image which is resized."""
    from PIL import Image

    image, clear = loaded(image, what), False
    if isinstance(image, Image.Image):
        wide = is_wide(image)
        bits = image.mode == "1"
        if wide:
            image = turned(image)
        else:
            image, clear = upright(image, background=reading.background)
        seen = {} if bits else survey(np.asarray(image)[None], lambda _: what, what)
        kind = kind_of(np.asarray(image), what)
        if reading.image_size is not None:
            sizes.append(image.size)
            plain = image.convert("F") if image.mode.startswith("I") else image
            image = np.asarray(fit_picture(plain, reading.image_size, reading.resize))
            if wide:  # what bicubic resampling adds beyond the values that were there is none of theirs
                image = image.clip(seen[kind].low, seen[kind].high)
        array = np.asarray(image)
    else:
        array = np.asarray(image)
        kind, seen = kind_of(array, what), survey(array[None], lambda _: what, what)
    return Row(channels_first(array[None], what)[0], kind), seen, clear


def _stacked(images: Sequence[NDArray[np.uint8]], channels: int, reading: Reading) -> NDArray[np.uint8]:
    """uint8 [N, C, H, W] of images [1 or C, H, W], brought to one size if they differ and there is one to come to."""
    if len({image.shape[1:] for image in images}) > 1 and reading.image_size is not None:
        images = [fit_batch(torch.from_numpy(np.ascontiguousarray(image))[None], reading.image_size, reading.resize)[0]
                  .numpy() for image in images]
    for row, image in enumerate(images):
        if image.shape[1:] != images[0].shape[1:]:
            raise UsageError(f"row {row} of the data set is {image.shape[2]}x{image.shape[1]} pixels, but row 0 "
                             f"{images[0].shape[2]}x{images[0].shape[1]}. Give image_size=..., or images of one size.")
    return np.stack([np.repeat(image, channels // len(image), axis=0) for image in images])


def as_numbered(labels: IntArray, theirs: Names, names: Names, what: str, whose: str) -> IntArray:
    """Labels that number the classes `theirs`, int64 [N], as numbers of `names`: the same class by its name.

    what, whose: what has theirs, and what has `names`. UsageError for a label whose class is not among `names`, or is
    there twice.
    """
    if theirs == names:
        return labels
    foreign = sorted({theirs[label] for label in labels[labels >= 0].tolist() if label < len(theirs)} - {*names})
    if foreign or len({*names}) < len(names) or len({*theirs}) < len(theirs):
        raise UsageError(f"{what} has the classes {shown(theirs)}, {whose} {shown(names)}"
                         f"{f'; there is no {shown(foreign)}' if foreign else ', not each once'}. Give one of the same "
                         "classes")
    numbers = [names.index(name) if name in names else -1 for name in theirs]
    if labels.max(initial=-1) >= len(theirs):
        raise UsageError(f"a label of {what} is {labels.max()}, but there are {len(theirs)} classes: {shown(theirs)}")
    return np.array([numbers[label] if label >= 0 else label for label in labels.tolist()], dtype=np.int64)
