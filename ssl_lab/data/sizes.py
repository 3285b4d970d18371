"""How images of different sizes come to one size, and what is lost by it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, NamedTuple, get_args

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor
from torch.nn.functional import interpolate

from ssl_lab.errors import UsageError, unknown

Resize = Literal["crop", "pad", "squash", "none"]
"""crop: the shorter side to the size, then the center square. pad: the longer side to the size, then the pixels at the
edges repeated. squash: both sides to the size. none: images stay as they are, and must all have one size."""

LARGEST_DEFAULT = 224
_LOST = 0.1
"""Share of the area from which on a crop is worth a word."""


class Sizes(NamedTuple):
    """Of what size images are. short, long: medians of the shorter and the longer sides, in pixels. cropped: the mean
    share of the area that lies outside of the center square. first: (width, height) of the first image; other: of the
    first one that differs, if one does."""

    short: int
    long: int
    cropped: float
    first: tuple[int, int]
    other: tuple[int, int] | None

    @classmethod
    def of(cls, sizes: Sequence[tuple[int, int]]) -> Sizes:
        """Of (width, height) of each image."""
        pairs = np.array(sizes)
        short, long = pairs.min(axis=1), pairs.max(axis=1)
        other = np.flatnonzero((pairs != pairs[0]).any(axis=1))
        return cls(int(np.median(short)), int(np.median(long)), float((1 - short / long).mean()),
                   (int(pairs[0, 0]), int(pairs[0, 1])),
                   (int(pairs[other[0], 0]), int(pairs[other[0], 1])) if len(other) else None)

    def side(self, image_size: int | None, resize: Resize) -> int | None:
        """The side of the square that images come to; None if they keep their size. UsageError if they cannot."""
        if resize == "none":
            if self.other is not None:
                raise UsageError(f"images have different sizes, e.g. {_by(self.first)} and {_by(self.other)} pixels, "
                                 "and with --resize none they cannot come to one; crop, pad or squash them")
            return None
        return image_size or min(LARGEST_DEFAULT, self.long if resize == "pad" else self.short)

    def notes(self, image_size: int | None, resize: Resize) -> list[str]:
        """What is worth a word: an area that is cropped away, pixels that are left out without being asked for."""
        notes = []
        if resize == "crop" and self.cropped > _LOST:
            notes.append(f"{self.cropped:.0%} of the area is cropped from the images, on average, to make them square; "
                         "--resize pad or squash keeps all of it")
        usual = self.long if resize == "pad" else self.short
        if image_size is None and resize != "none" and usual > LARGEST_DEFAULT:
            notes.append(f"images of usually {usual} pixels ({'longer' if resize == 'pad' else 'shorter'} side) are "
                         f"resized to {LARGEST_DEFAULT}; --image-size N takes another size")
        return notes


def check_resize(resize: str, image_size: int | None) -> None:
    """UsageError for an unknown way, or one that the size contradicts."""
    if resize not in get_args(Resize):
        raise unknown("resize", resize, get_args(Resize))
    if resize == "none" and image_size is not None:
        raise UsageError(f"resize=none keeps images at their size, image_size={image_size} does not; give one of them")


def fit_picture(image: Image.Image, size: int | None, resize: Resize) -> Image.Image:
    """A plain image at size x size (bicubic, antialiased); itself if size is None."""
    if size is None:
        return image
    if resize == "crop":
        return ImageOps.fit(image, (size, size), Image.Resampling.BICUBIC)
    if resize == "squash":
        return image.resize((size, size), Image.Resampling.BICUBIC)
    image = image.resize(_within(*image.size, size), Image.Resampling.BICUBIC)
    rows, columns = (_repeated(side, size).numpy() for side in (image.height, image.width))
    return Image.fromarray(np.asarray(image)[rows[:, None], columns])


def fit_batch(images: Tensor, size: int, resize: Resize) -> Tensor:
    """uint8 [n, C, S, S] of uint8 [n, C, H, W], as `fit_picture` does."""
    height, width = images.shape[2:]
    if resize == "crop":
        short = min(height, width)
        top, left = (height - short) // 2, (width - short) // 2
        images = images[..., top:top + short, left:left + short]
    if resize != "pad":
        return interpolate(images, size=(size, size), mode="bicubic", antialias=True)
    width, height = _within(width, height, size)
    images = interpolate(images, size=(height, width), mode="bicubic", antialias=True)
    return images[..., _repeated(height, size)[:, None], _repeated(width, size)]


def _within(width: int, height: int, size: int) -> tuple[int, int]:
    """Width and height of which the longer is `size`."""
    long = max(width, height)
    return max(1, round(size * width / long)), max(1, round(size * height / long))


def _repeated(side: int, size: int) -> Tensor:
    """int64 [size]: for each place the one of `side` that is shown there, the outermost repeated."""
    return (torch.arange(size) - (size - side) // 2).clamp(0, side - 1)


def _by(size: tuple[int, int]) -> str:
    return f"{size[0]}x{size[1]}"
