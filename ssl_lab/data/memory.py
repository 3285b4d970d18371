"""Pools of images in memory: arrays, tensors, memory maps, and what a `torch.utils.data.Dataset` gives."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ssl_lab.batch import Style
from ssl_lab.data.arrays import PARTS, IntArray, to_labels, to_pixels
from ssl_lab.data.classes import compact
from ssl_lab.data.dataset import as_numbered, names_in, read_datasets
from ssl_lab.data.images import ArrayImages, pixel_statistics, style_of
from ssl_lab.data.pool import Pool, at_size, join, pool_of
from ssl_lab.data.reading import Reading
from ssl_lab.errors import UsageError


def pool_of_arrays(images: ArrayLike, labels: ArrayLike, test_images: ArrayLike | None,
                   test_labels: ArrayLike | None, class_names: Sequence[str] | None, name: str, style: Style | None,
                   reading: Reading) -> Pool:
    """See `Pool.from_arrays`."""
    if (test_images is None) != (test_labels is None):
        raise UsageError("test_images and test_labels belong together: give both or none")
    given = [images] if test_images is None else [images, test_images]
    pixels, reading, notes = to_pixels(given, reading)
    classes = None if class_names is None else len(class_names)
    truth = [to_labels(labels, len(pixels[0]), classes)]
    if test_labels is not None:
        truth.append(to_labels(test_labels, len(pixels[1]), classes, "test_labels"))
    return _pool_of_pixels(pixels, truth, class_names, name, style, reading, notes)


def pool_of_datasets(train: Any, test: Any, class_names: Sequence[str] | None, name: str, reading: Reading) -> Pool:
    """See `Pool.from_dataset`."""
    pixels, labels, reading, notes = read_datasets([train] if test is None else [train, test], reading)
    names = names_in(train)
    class_names = names if class_names is None else tuple(class_names)
    theirs, names = None if test is None else names_in(test), names or class_names
    if theirs and names:
        labels[1] = as_numbered(labels[1], theirs, names, "the test data set", "that of training")
    elif test is not None and theirs != names:
        notes.append(f"only the {'test' if names is None else 'training'} data set names its classes: the labels of "
                     "both are taken as numbers of the same ones")
    classes = None if class_names is None else len(class_names)
    truth = [to_labels(some, len(part), classes, what)
             for some, part, what in zip(labels, pixels, ("labels", "test_labels"), strict=False)]
    return _pool_of_pixels(pixels, truth, class_names, name, None, reading, notes)


def _pool_of_pixels(pixels: Sequence[NDArray[np.uint8]], truth: Sequence[IntArray], class_names: Sequence[str] | None,
                    name: str, style: Style | None, reading: Reading, notes: Sequence[str]) -> Pool:
    """pixels: uint8 [N, C, H, W] of train and, if there are any, test images. reading: as they were read."""
    parts, notes = [], list(notes)
    for part in pixels:
        images, said = at_size(ArrayImages(part), reading)
        parts.append(images)
        notes += [note for note in said if note not in notes]
    shapes = [images.shape for images in parts]
    if shapes[0] != shapes[-1]:
        raise UsageError(f"{PARTS[0]} are {shapes[0]} and {PARTS[1]} {shapes[1]}, expected the same channels, height "
                         "and width")
    known = np.concatenate(truth)
    if class_names is None:
        known, class_names, said = compact(known)
        notes += said
    if style is None:
        style = style_of(shapes[0], *pixel_statistics(pixels[0]), reading.flips())
    else:
        style = replace(style, flip=reading.flips(style.flip))
        reading = replace(reading, flip=style.flip)
    height, width = shapes[0][1:]
    return pool_of(name, join(parts), known, tuple(class_names), style, np.arange(len(pixels[0]), len(known)),
                   notes=tuple(notes), reading=replace(reading, image_size=height if height == width else None))
