"""From what people have in memory to what a pool holds: uint8 [N, C, H, W] pixels and int64 labels."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ssl_lab.data.reading import Reading
from ssl_lab.data.values import decide, survey
from ssl_lab.errors import UsageError

IntArray = NDArray[np.int64]
PARTS = ("images", "test_images")


def to_pixels(parts: Sequence[ArrayLike], reading: Reading) -> tuple[list[NDArray[np.uint8]], Reading, list[str]]:
    """uint8 [N, C, H, W] of each part, how they were read, and notes on that.

    parts: images, and perhaps test images, each [N, H, W], [N, C, H, W] or [N, H, W, C], where C is 1 or 3
    (channels-first is tried first). Bytes are taken as they are, and not copied; how other values are read is decided
    for all parts together, see `decide`. UsageError for values or shapes that cannot be read.
    """
    arrays = [channels_first(np.asanyarray(part), what) for part, what in zip(parts, PARTS, strict=False)]
    surveys = [survey(array, lambda row, what=what: f"{what}: row {row}", what)  # type: ignore[misc]
               for array, what in zip(arrays, PARTS, strict=False)]
    values, notes = decide(surveys, reading.value_range)
    pixels = [values.to_bytes(array) for array in arrays]
    return pixels, replace(reading, values=values, gray=pixels[0].shape[1] == 1), notes


def channels_first(array: NDArray[Any], what: str) -> NDArray[Any]:
    if array.ndim == 3:
        array = array[:, None]
    elif array.ndim == 4 and array.shape[1] not in (1, 3) and array.shape[3] in (1, 3):
        array = array.transpose(0, 3, 1, 2)
    if array.ndim != 4 or array.shape[1] not in (1, 3) or 0 in array.shape[1:]:
        raise UsageError(f"{what} have shape {array.shape}, expected [N, H, W], [N, C, H, W] or [N, H, W, C] "
                         "with 1 or 3 channels")
    if not len(array):
        raise UsageError(f"{what} are empty: shape {array.shape}")
    return array


def to_labels(labels: ArrayLike, rows: int, classes: int | None = None, what: str = "labels") -> IntArray:
    """int64 [rows] of class numbers, -1 = unlabeled. UsageError for a wrong length, type or range."""
    array = _integers(labels, what)
    if len(array) != rows:
        raise UsageError(f"{what} have length {len(array)}, but there are {rows} images")
    _within(array, -1, classes, what, "-1 for unlabeled, else a class number")
    return array


def to_indices(indices: ArrayLike, size: int, what: str = "indices") -> IntArray:
    """int64 [n] of row numbers below `size`, sorted. UsageError for a wrong type or range, or a repeat."""
    array = np.sort(_integers(indices, what))
    _within(array, 0, size, what, "a row of the pool")
    repeated = array[1:][array[1:] == array[:-1]]
    if len(repeated):
        raise UsageError(f"{what} name row {repeated[0]} more than once")
    return array


def _integers(values: ArrayLike, what: str) -> IntArray:
    try:
        array = np.asarray(values)
    except ValueError as error:
        raise UsageError(f"{what} are not a list of integers: {error}") from error
    if array.size == 0:
        array = array.astype(np.int64)
    if array.ndim != 1 or not np.issubdtype(array.dtype, np.integer):
        raise UsageError(f"{what} are an array of {array.dtype} and shape {array.shape}, expected integers "
                         "in one dimension")
    return array.astype(np.int64)


def _within(array: IntArray, low: int, high: int | None, what: str, meaning: str) -> None:
    outside = (array < low) | (array >= high) if high is not None else array < low
    if outside.any():
        place = int(outside.argmax())
        limit = f"{low}..{high - 1}" if high is not None else f"{low} or more"
        raise UsageError(f"{what}: entry {place} is {array[place]}, expected {limit} ({meaning})")
