"""Pools of images in memory: arrays, tensors, memory maps, and what data sets of PyTorch and Hugging Face give."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ssl_lab.batch import Style
from ssl_lab.data.arrays import PARTS, to_pixels
from ssl_lab.data.content import Content
from ssl_lab.data.dataset import as_numbered, read_datasets
from ssl_lab.data.images import ArrayImages, at_size, join, pixel_statistics, style_of
from ssl_lab.data.labels import Labels, read_labels, written
from ssl_lab.data.reading import Reading
from ssl_lab.data.rows import fields_of, names_in
from ssl_lab.errors import UsageError


def content_of_arrays(images: ArrayLike, labels: Any, test_images: ArrayLike | None, test_labels: Any,
                   class_names: Sequence[str] | None, name: str, style: Style | None, reading: Reading) -> Content:
    """See `Pool.from_arrays`."""
    if (test_images is None) != (test_labels is None):
        raise UsageError("test_images and test_labels belong together: give both or none")
    given = [images] if test_images is None else [images, test_images]
    pixels, reading, notes = to_pixels(given, reading)
    read = read_labels([labels] if test_images is None else [labels, test_labels], [*map(len, pixels)], class_names)
    return _content_of_pixels(pixels, ("train", "test"), read, name, style, reading, notes)


def content_of_datasets(parts: Mapping[str, Any], class_names: Sequence[str] | None, name: str, reading: Reading,
                     columns: tuple[str | None, str | None] = (None, None), labels: Any = None) -> Content:
    """See `Pool.from_dataset`. parts: train, and perhaps valid, test and unlabeled (of which labels do not count).
    columns: of images and labels. labels: of train, in place of its own."""
    notes: list[str] = []
    fields = [fields_of(dataset, *columns, notes) for dataset in parts.values()]
    pixels, given, reading, said = read_datasets(list(parts.values()), fields, reading)
    notes += said
    if labels is not None:
        given[0] = labels
    named = [names_in(dataset, each.label) for dataset, each in zip(parts.values(), fields, strict=True)]
    class_names = named[0] if class_names is None else tuple(class_names)
    names = named[0] or class_names
    whats = tuple("labels" if part == "train" else f"{part}_labels" for part in parts)
    truth: list[Any] = []
    for part, some, theirs, what in zip(parts, given, named, whats, strict=True):
        if part == "unlabeled":
            some = [None] * len(some)
        numbers: Any = written(some, what, notes)
        if part not in ("train", "unlabeled") and not isinstance(numbers, list):
            if theirs and not names and isinstance(truth[0], list):
                numbers = ["" if number < 0 else theirs[number] for number in numbers.tolist()]
            elif theirs and names:
                numbers = as_numbered(numbers, theirs, names, f"the {part} data set", "that of training")
            elif theirs != names:
                notes.append(f"only the {part if names is None else 'training'} data set names its classes: the labels "
                             "of both are taken as numbers of the same ones")
        truth.append(numbers)
    read = read_labels(truth, [*map(len, pixels)], class_names, whats)
    return _content_of_pixels(pixels, tuple(parts), read, name, None, reading, notes)


def _content_of_pixels(pixels: Sequence[NDArray[np.uint8]], parts: Sequence[str], labels: Labels, name: str,
                    style: Style | None, reading: Reading, notes: Sequence[str]) -> Content:
    """pixels: uint8 [N, C, H, W] of train and, if there are any, other parts. reading: as they were read."""
    sources, notes = [], [*notes]
    for array in pixels:
        images, said = at_size(ArrayImages(array), reading)
        sources.append(images)
        notes += said
    for part, images in zip(parts, sources, strict=False):
        if images.shape != sources[0].shape:
            what = {"test": PARTS[1]}.get(part, f"{part} images")
            raise UsageError(f"{PARTS[0]} are {sources[0].shape} and {what} {images.shape}, expected the same "
                             "channels, height and width")
    if style is None:
        style = style_of(sources[0].shape, *pixel_statistics(pixels[0]), reading.flips())
    else:
        style = replace(style, flip=reading.flips(style.flip))
        reading = replace(reading, flip=style.flip)
    height, width = sources[0].shape[1:]
    place = np.repeat(parts[:len(pixels)], [*map(len, pixels)])
    return Content(name, join(sources), np.concatenate(labels.truth), labels.class_names, style,
                   np.flatnonzero(place == "test"), np.flatnonzero(place == "valid"),
                   tuple(dict.fromkeys([*notes, *labels.notes])),
                   reading=replace(reading, image_size=height if height == width else None))
