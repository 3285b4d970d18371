"""The parts of the weak and strong views beside RandAugment: flip, shift and cutout."""

from __future__ import annotations

import torch
from torch import Tensor

from ssl_lab.batch import Draw, Style

GRAY = 127


def flip_and_shift(images: Tensor, draw: Draw, style: Style) -> Tensor:
    """Mirror half of the images if style.flip; shift each by -style.shift..style.shift pixels on both axes.

    images: uint8 [B, C, H, W]; returns new images of the same shape. What the shift uncovers mirrors the
    image about its border pixel; where that cannot reach (tiny images), the shift is smaller.
    """
    rows, channels, height, width = images.shape
    down, right, flipped = drawn_shifts(draw, height, width, style)
    lines = _mirrored(torch.arange(height) + down, height)
    most = min(style.shift, width - 1)
    first = most + right  # column of the longer lines with which the view begins
    mirrored = images.flip(3)
    longer = [mirrored[..., width - 1 - most : -1], images, mirrored[..., 1 : most + 1]]
    if style.flip:
        longer[2:] = [mirrored[..., 1:], images[..., 1 : most + 1]]  # runs on into the mirror image, and beyond it
        first = torch.where(flipped, first + width - 1, first)
    wide = torch.cat(longer, dim=3).contiguous()  # whatever the layout of the images
    planes = torch.arange(rows * channels).view(rows, channels, 1)
    starts = (planes * height + lines[:, None]) * wide.shape[3] + first[..., None]
    # Each line of the view lies in memory as it is: a copy of it costs a tenth of gathering its pixels.
    windows = wide.as_strided((max(wide.numel() - width + 1, 0), width), (1, 1))
    return windows.index_select(0, starts.flatten().to(images.device, non_blocking=True)).view_as(images)


def drawn_shifts(draw: Draw, height: int, width: int, style: Style) -> tuple[Tensor, Tensor, Tensor]:
    """int64 [B, 1]: by how many places to shift down the lines and along the columns; bool [B, 1]: whether mirrored."""
    down, right = (draw.integers(-most, most + 1, 1) for most in
                   (min(style.shift, height - 1), min(style.shift, width - 1)))
    return down, right, draw.uniform(1) < 0.5 if style.flip else torch.zeros(down.shape, dtype=torch.bool)


def _mirrored(places: Tensor, size: int) -> Tensor:
    """`places`, of an axis that goes on as its mirror image about its border pixels, as places in 0..size - 1."""
    return size - 1 - (size - 1 - places.abs()).abs()


def cutout(images: Tensor, draw: Draw, fraction: float) -> Tensor:
    """A gray square in each image, centered on any of its pixels and clipped at its border.

    images: uint8 [B, C, H, W]; returns new images of the same shape. The side is `fraction` of the shorter
    side of the image, in whole pixels (DeVries and Taylor 2017).
    """
    lines, columns = (covered.to(images.device, non_blocking=True)
                      for covered in drawn_squares(draw, images.shape[2], images.shape[3], fraction))
    covered = lines[:, None, :, None] * columns[:, None, None, :]
    return images * (1 - covered) + GRAY * covered  # many times faster than masked_fill on CPUs


def drawn_squares(draw: Draw, height: int, width: int, fraction: float) -> tuple[Tensor, Tensor]:
    """uint8 [B, height] and [B, width]: 1 where a line or a column meets the square."""
    side = int(fraction * min(height, width))
    return _covered(height, draw, side), _covered(width, draw, side)


def _covered(size: int, draw: Draw, side: int) -> Tensor:
    """uint8 [B, size]: 1 where a place of an axis lies in a segment of `side` places around a random one."""
    offset = torch.arange(size) - draw.integers(0, size, 1) + side // 2
    return ((offset >= 0) & (offset < side)).to(torch.uint8)
