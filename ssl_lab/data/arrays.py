"""From what people have in memory to what a pool holds: uint8 [N, C, H, W] pixels and int64 labels."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ssl_lab.errors import UsageError

IntArray = NDArray[np.int64]


def to_pixels(images: ArrayLike, unit: bool, what: str = "images") -> NDArray[np.uint8]:
    """uint8 [N, C, H, W] from [N, H, W], [N, C, H, W] or [N, H, W, C], where C is 1 or 3 (channels-first is
    tried first).

    Bytes are taken as they are, and not copied. Booleans become 0 and 255. Other integers must lie in 0..255.
    Floats are read as 0..1 if `unit`, else as 0..255, and rounded. UsageError for anything else, naming the
    first row at fault.
    """
    array = _channels_first(np.asanyarray(images), what)
    if array.dtype == np.uint8:
        return array
    if array.dtype == np.bool_:
        return array.astype(np.uint8) * np.uint8(255)
    if not (np.issubdtype(array.dtype, np.integer) or np.issubdtype(array.dtype, np.floating)):
        raise UsageError(f"{what} have dtype {array.dtype}, expected uint8, or floats in 0..1 or 0..255")
    high = 1 if unit and np.issubdtype(array.dtype, np.floating) else 255
    finite = np.isfinite(array)
    if not finite.all():
        raise UsageError(f"{what}: row {_first_row(~finite)} holds NaN or infinity. Repair or drop it.")
    outside = (array < 0) | (array > high)
    if outside.any():
        row = _first_row(outside)
        raise UsageError(f"{what}: row {row} spans {array[row].min():g} to {array[row].max():g}, expected "
                         f"0 to {high}. Give the pixels as they were before any normalization.")
    pixels: NDArray[np.uint8] = np.rint(array * (255 // high)).astype(np.uint8)
    return pixels


def in_unit_range(*arrays: ArrayLike) -> bool:
    """Whether all floats lie in [0, 1]; arrays of other types have no say."""
    floats = [array for array in map(np.asanyarray, arrays) if np.issubdtype(array.dtype, np.floating)]
    return all(array.size and array.min() >= 0 and array.max() <= 1 for array in floats)


def _channels_first(array: NDArray[Any], what: str) -> NDArray[Any]:
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


def _first_row(bad: NDArray[np.bool_]) -> int:
    return int(bad.reshape(len(bad), -1).any(axis=1).argmax())


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
