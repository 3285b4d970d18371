"""Where pixels come from: `Images` gives uint8 NCHW batches by index, from memory or from a mapped file."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ssl_lab.batch import Style
from ssl_lab.data.arrays import IntArray
from ssl_lab.data.files import Hold
from ssl_lab.data.reading import Reading
from ssl_lab.data.sizes import Resize, Sizes, fit_batch
from ssl_lab.seeds import generator

Contents = NDArray[np.uint64]
HASHED = 2**29
"""Bytes of pixels that are read to hash each image (half a second); hashes of files are kept when they are decoded."""


class Images(Protocol):
    """Random access to images of one size.

    >>> images: sl.data.Images = sl.load("digits").images
    >>> images.shape, images.take(np.array([0, 1])).dtype
    ((1, 8, 8), torch.uint8)
    """

    @property
    def shape(self) -> tuple[int, int, int]:
        """Channels, height, width."""

    def __len__(self) -> int: ...

    def take(self, indices: IntArray) -> Tensor:
        """uint8 [n, C, H, W]: the images of `indices` (int64 [n]), in that order, copied."""

    def fingerprint(self) -> str:
        """A hash in hexadecimal that changes when the pixels do."""

    def contents(self) -> Contents | None:
        """uint64 [N]: a hash of each image, alike for the same image only. None where all would have to be read, and
        they are more than `HASHED` bytes."""


class ArrayImages:
    """Images in one array, or in a memory-mapped file, of uint8 [N, C, H, W].

    Args:
        pixels: uint8 [N, C, H, W].
        fingerprint, contents: known from when the file was written; computed on demand without them.
        hold: keeps the file.

    >>> images = sl.data.ArrayImages(np.zeros((5, 3, 8, 8), dtype=np.uint8))
    >>> len(images), images.shape, images.take(np.array([4, 0])).shape
    (5, (3, 8, 8), torch.Size([2, 3, 8, 8]))
    """

    def __init__(self, pixels: NDArray[np.uint8], fingerprint: str | None = None,
                 contents: Contents | None = None, hold: Hold | None = None) -> None:
        # The plain view of a memory map: indexing np.memmap itself costs several microseconds a call.
        self.pixels = np.asarray(pixels)
        self._fingerprint, self._contents, self.hold = fingerprint, contents, hold

    @property
    def shape(self) -> tuple[int, int, int]:
        _, channels, height, width = self.pixels.shape
        return channels, height, width

    def __len__(self) -> int:
        return len(self.pixels)

    def take(self, indices: IntArray) -> Tensor:
        return torch.from_numpy(self.pixels[indices])

    def fingerprint(self) -> str:
        if self._fingerprint is None:
            self._fingerprint = fingerprint(self.pixels)
        return self._fingerprint

    def contents(self) -> Contents | None:
        if self._contents is None and self.pixels.nbytes <= HASHED:
            self._contents = content_of(self.pixels)
        return self._contents


class Concat:
    """Several sources behind one another, in one index space.

    Args:
        parts: of one shape [C, H, W].

    >>> both = sl.data.Concat([sl.load("digits").images, sl.load("digits").images])
    >>> len(both), torch.equal(both.take(np.array([0])), both.take(np.array([1797])))
    (3594, True)
    """

    def __init__(self, parts: Sequence[Images]) -> None:
        self.parts = tuple(parts)
        self.starts = np.cumsum([0, *map(len, parts)])

    @property
    def shape(self) -> tuple[int, int, int]:
        return self.parts[0].shape

    def __len__(self) -> int:
        return int(self.starts[-1])

    def take(self, indices: IntArray) -> Tensor:
        owner = np.searchsorted(self.starts, indices, side="right") - 1
        if len(owner) and (owner == owner[0]).all():  # the usual case: a batch of train, or of test
            number = int(owner[0])
            return self.parts[number].take(indices - self.starts[number])
        batch = torch.empty((len(indices), *self.shape), dtype=torch.uint8)
        for number, part in enumerate(self.parts):
            rows = np.flatnonzero(owner == number)
            batch[torch.from_numpy(rows)] = part.take(indices[rows] - self.starts[number])
        return batch

    def fingerprint(self) -> str:
        return hashlib.sha256("".join(part.fingerprint() for part in self.parts).encode()).hexdigest()

    def contents(self) -> Contents | None:
        found = [each for part in self.parts if (each := part.contents()) is not None]
        return np.concatenate(found) if len(found) == len(self.parts) else None


class Subset:
    """Some images of another source, in the order of `rows`, int64 [n], perhaps more than once."""

    def __init__(self, images: Images, rows: IntArray) -> None:
        self.images, self.rows = images, rows

    @property
    def shape(self) -> tuple[int, int, int]:
        return self.images.shape

    def __len__(self) -> int:
        return len(self.rows)

    def take(self, indices: IntArray) -> Tensor:
        return self.images.take(self.rows[indices])

    def fingerprint(self) -> str:
        return hashlib.sha256(self.images.fingerprint().encode() + self.rows.astype("<i8").tobytes()).hexdigest()

    def contents(self) -> Contents | None:
        found = self.images.contents()
        return None if found is None else found[self.rows]


class Resized:
    """Another source at another size, bicubic and antialiased, as `Resize` says: by default the shorter side to `size`,
    then the center square.

    Resized on the fly, batch by batch, so that a small data set can be seen large without a large copy.
    """

    def __init__(self, images: Images, size: int, resize: Resize = "crop") -> None:
        self.images, self.size, self.resize = images, size, resize

    @property
    def shape(self) -> tuple[int, int, int]:
        return self.images.shape[0], self.size, self.size

    def __len__(self) -> int:
        return len(self.images)

    def take(self, indices: IntArray) -> Tensor:
        return fit_batch(self.images.take(indices), self.size, self.resize)

    def fingerprint(self) -> str:
        way = "" if self.resize == "crop" else f" {self.resize}"
        return hashlib.sha256(f"{self.images.fingerprint()} {self.size}{way}".encode()).hexdigest()

    def contents(self) -> Contents | None:
        return self.images.contents()


def at_size(images: Images, reading: Reading) -> tuple[Images, list[str]]:
    """Images of one size at the size that is wanted, by default theirs, and what to say of that."""
    _, height, width = images.shape
    sizes = Sizes.of([(width, height)])
    size = reading.image_size
    if size is None and reading.resize in ("pad", "squash") and height != width:
        size = sizes.side(None, reading.resize)
    if size is None or (height, width) == (size, size):
        return images, []
    return Resized(images, size, reading.resize), sizes.notes(size, reading.resize)


def join(parts: Sequence[Images]) -> Images:
    """One source of several, or of one."""
    return parts[0] if len(parts) == 1 else Concat(parts)


def fingerprint(pixels: NDArray[Any]) -> str:
    """sha256 of pixels and shape. Of more than 1 GiB, of evenly spaced images that make up about 1 GiB."""
    digest = hashlib.sha256()
    stride = math.ceil(pixels.nbytes / 2**30) or 1
    for start in range(0, len(pixels), 256 * stride):
        digest.update(np.ascontiguousarray(pixels[start:start + 256 * stride:stride]).data)
    digest.update(repr(pixels.shape).encode())
    return digest.hexdigest()


def content_of(images: NDArray[np.uint8]) -> Contents:
    """uint64 [n]: a hash of each of the images, uint8 [n, ...]. Eight times as fast as one of cryptography: no secret
    hangs on it, and of a million different images two are alike with a chance of 1 in 40 million.

    Each word of 8 bytes, made another by a one-to-one mixing that depends on its place, and their sum.
    """
    rows = images.reshape(len(images), -1)
    bytes_ = rows.shape[1]
    places = np.arange(-(-bytes_ // 8), dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15)
    places = (places ^ places >> np.uint64(31)) * np.uint64(0xBF58476D1CE4E5B9) | np.uint64(1)
    found = np.empty(len(rows), np.uint64)
    step = max(1, 2**18 // max(1, bytes_))  # what stays in the processor's cache
    for start in range(0, len(rows), step):
        part = rows[start:start + step]
        padded = np.zeros((len(part), 8 * len(places)), np.uint8)
        padded[:, :bytes_] = part
        words = padded.view("<u8").astype(np.uint64, copy=False)
        words += places
        words ^= words >> np.uint64(32)
        words *= places
        words ^= words >> np.uint64(29)
        words *= np.uint64(0x94D049BB133111EB)
        words ^= words >> np.uint64(32)
        found[start:start + step] = words.sum(axis=1)
    return found + np.uint64(bytes_)


def pixel_statistics(pixels: NDArray[Any], rows: IntArray | None = None,
                     budget: int = 2**28) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation per channel of uint8 [N, C, H, W] scaled to [0, 1], over `rows` or all.

    At most `budget` bytes are read, of images drawn at random: an even spacing can fall in step with the
    data, as it does on MNIST. The deviation is at least 1/255, for images of one color.
    """
    rows = np.arange(len(pixels)) if rows is None or not len(rows) else rows
    order = torch.randperm(len(rows), generator=generator("pixel_statistics")).numpy()
    rows = np.sort(rows[order[:max(1, budget // pixels[0].nbytes)]])
    count, total, squares = 0, np.zeros(pixels.shape[1]), np.zeros(pixels.shape[1])
    for start in range(0, len(rows), 256):
        part = pixels[rows[start:start + 256]] / np.float32(255)
        count += part.size // part.shape[1]
        total += part.sum(axis=(0, 2, 3), dtype=np.float64)
        squares += np.square(part).sum(axis=(0, 2, 3), dtype=np.float64)
    mean = total / count
    std = np.sqrt(np.maximum(squares / count - mean**2, 1 / 255**2))
    return tuple(mean.tolist()), tuple(std.tolist())


def style_of(shape: tuple[int, int, int], mean: tuple[float, ...], std: tuple[float, ...],
             flip: bool = True) -> Style:
    """The style of images of `shape`; they may shift by an eighth of the shorter side (4 at 32, 12 at 96)."""
    channels, height, width = shape
    return Style(channels, height, width, mean, std, flip, shift=round(min(height, width) / 8))
