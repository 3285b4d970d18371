"""The three views of consistency training: weak, strong and eval."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ssl_lab.batch import Draw, Style
from ssl_lab.errors import UsageError
from ssl_lab.views.base import check_images, to_unit
from ssl_lab.views.randaugment import rand_augment

GRAY = 127


@dataclass(frozen=True)
class Eval:
    """The image as it is, scaled to [0, 1]."""

    style: Style
    mirrors = False

    def __call__(self, images: Tensor, draw: Draw) -> Tensor:
        check_images(images, draw)
        return to_unit(images)


@dataclass(frozen=True)
class Weak:
    """Horizontal flip in half of the images (where the style allows it), then a small shift."""

    style: Style

    @property
    def mirrors(self) -> bool:
        return self.style.flip

    def __call__(self, images: Tensor, draw: Draw) -> Tensor:
        check_images(images, draw)
        return to_unit(flip_and_shift(images, draw, self.style))


@dataclass(frozen=True)
class Strong:
    """Weak, then RandAugment, then cutout: FixMatch's strong view (Sohn et al. 2020).

    ops: how many operations each image draws. cutout: side of the gray square as a fraction of the image's
    shorter side, in [0, 1]; 0 for none.
    """

    style: Style
    ops: int = 2
    cutout: float = 0.5

    @property
    def mirrors(self) -> bool:
        return self.style.flip

    def __post_init__(self) -> None:
        if self.ops < 0 or not 0 <= self.cutout <= 1:
            raise UsageError(f"Strong(ops={self.ops}, cutout={self.cutout}): give ops >= 0 and a cutout, "
                             "the square's side as a fraction of the image's, in [0, 1].")

    def __call__(self, images: Tensor, draw: Draw) -> Tensor:
        check_images(images, draw)
        shifted = flip_and_shift(images, draw, self.style)
        return to_unit(cutout(rand_augment(shifted, draw, self.ops), draw, self.cutout))


def flip_and_shift(images: Tensor, draw: Draw, style: Style) -> Tensor:
    """Mirror half of the images if style.flip; shift each by -style.shift..style.shift pixels on both axes.

    images: uint8 [B, C, H, W]; returns new images of the same shape. What the shift uncovers mirrors the
    image about its border pixel; where that cannot reach (tiny images), the shift is smaller.
    """
    rows, channels, height, width = images.shape
    lines = _mirrored(torch.arange(height) + _shifts(height, draw, style.shift), height)
    most = min(style.shift, width - 1)
    first = most + _shifts(width, draw, style.shift)  # column of the longer lines with which the view begins
    mirrored = images.flip(3)
    longer = [mirrored[..., width - 1 - most : -1], images, mirrored[..., 1 : most + 1]]
    if style.flip:
        longer[2:] = [mirrored[..., 1:], images[..., 1 : most + 1]]  # runs on into the mirror image, and beyond it
        first = torch.where(draw.uniform(1) < 0.5, first + width - 1, first)
    wide = torch.cat(longer, dim=3).contiguous()  # whatever the layout of the images
    planes = torch.arange(rows * channels).view(rows, channels, 1)
    starts = (planes * height + lines[:, None]) * wide.shape[3] + first[..., None]
    # Each line of the view lies in memory as it is: a copy of it costs a tenth of gathering its pixels.
    windows = wide.as_strided((max(wide.numel() - width + 1, 0), width), (1, 1))
    return windows.index_select(0, starts.flatten().to(images.device, non_blocking=True)).view_as(images)


def _shifts(size: int, draw: Draw, most: int) -> Tensor:
    """int64 [B, 1]: by how many places to shift along an axis."""
    most = min(most, size - 1)
    return draw.integers(-most, most + 1, 1)


def _mirrored(places: Tensor, size: int) -> Tensor:
    """`places`, of an axis that goes on as its mirror image about its border pixels, as places in 0..size - 1."""
    return size - 1 - (size - 1 - places.abs()).abs()


def cutout(images: Tensor, draw: Draw, fraction: float) -> Tensor:
    """A gray square in each image, centered on any of its pixels and clipped at its border.

    images: uint8 [B, C, H, W]; returns new images of the same shape. The side is `fraction` of the shorter
    side of the image, in whole pixels (DeVries and Taylor 2017).
    """
    height, width = images.shape[2:]
    side = int(fraction * min(height, width))
    lines = _covered(height, draw, side).to(images.device, non_blocking=True)
    columns = _covered(width, draw, side).to(images.device, non_blocking=True)
    covered = lines[:, None, :, None] * columns[:, None, None, :]
    return images * (1 - covered) + GRAY * covered  # many times faster than masked_fill on CPUs


def _covered(size: int, draw: Draw, side: int) -> Tensor:
    """uint8 [B, size]: 1 where a place of an axis lies in a segment of `side` places around a random one."""
    offset = torch.arange(size) - draw.integers(0, size, 1) + side // 2
    return ((offset >= 0) & (offset < side)).to(torch.uint8)
