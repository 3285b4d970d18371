"""Our presets, with pixels by Kornia: weak_kornia, strong_kornia and simclr_kornia.

The first two draw the numbers that `Weak` and `Strong` draw, so that of one draw both kinds see nearly the same images:
here values are not rounded to whole gray levels between operations. `ssl-lab bench views` times both kinds.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache

import torch
from torch import Tensor

from ssl_lab.batch import Draw, Style
from ssl_lab.views import ops
from ssl_lab.views.base import View, ViewFactory, to_unit
from ssl_lab.views.color import JITTERED
from ssl_lab.views.contrastive import SIGMA, SimCLRView
from ssl_lab.views.foreign import kornia
from ssl_lab.views.presets import Strong, Weak
from ssl_lab.views.randaugment import OPERATIONS, drawn_operations
from ssl_lab.views.shift import GRAY, drawn_shifts, drawn_squares

NAMES = list(OPERATIONS)
MOVES = torch.tensor([NAMES.index(name) for name in ops.MOVES])


class WeakKornia(Weak):
    """As weak: flip in half of the images, then a small shift; by Kornia's remap."""

    def pixels(self, images: Tensor, draw: Draw) -> Tensor:
        return flip_and_shift(to_unit(images), draw, self.style)


class StrongKornia(Strong):
    """As strong: weak, then RandAugment, then cutout; RandAugment's table by Kornia's functions, each row its own draw.

    ops, cutout, chance: see `Strong`.
    """

    def pixels(self, images: Tensor, draw: Draw) -> Tensor:
        pixels = flip_and_shift(to_unit(images), draw, self.style)
        numbers, _, values = drawn_operations(draw, self.ops, draw.value(self.chance))
        for number, value in zip(numbers.unbind(1), values.unbind(1), strict=True):
            _turn_(pixels, number, value)
        return cutout(pixels, draw, draw.value(self.cutout))


def simclr_kornia(style: Style, area: float | None = None, jitter: tuple[float, float, float, float] | None = None,
                  gray: float = 0.2, blur: float = 0.5, solarize: float = 0.0, most: float = 1.0) -> View:
    """As simclr: random resized crop, flip, color jitter, gray, blur and solarize; modules of kornia.augmentation.

    Arguments are those of `SimCLRView`, but for `size`. The order of the jitter's changes is one for the batch.
    """
    ours = SimCLRView(style, area, jitter and (*jitter,), gray, blur, solarize, most)
    return _by_kornia(ours)(style)


@lru_cache(maxsize=64)
def _by_kornia(ours: SimCLRView) -> ViewFactory:
    """Modules that do as this view; the same ones for an equal one, so that they are tried once."""
    from kornia import augmentation as of

    style = ours.style
    size = style.height, style.width
    modules = [of.RandomResizedCrop(size, scale=(ours._area, ours.most), ratio=(3 / 4, 4 / 3))]
    modules += [of.RandomHorizontalFlip(p=0.5)] if style.flip else []
    modules += [of.ColorJitter(*ours._jitter, p=JITTERED), of.RandomGrayscale(p=ours.gray)]
    if not ours._small:
        modules.append(of.RandomGaussianBlur(tuple(side // 20 * 2 + 1 for side in size), SIGMA, p=ours.blur))
    if ours.solarize:
        modules.append(of.RandomSolarize(thresholds=(0.5, 0.5), additions=(0.0, 0.0), p=ours.solarize))
    return kornia(*modules)


def flip_and_shift(pixels: Tensor, draw: Draw, style: Style) -> Tensor:
    """`shift.flip_and_shift`, by the same numbers. pixels: float [B, C, H, W]; returns new ones."""
    height, width = pixels.shape[2:]
    downs, rights, flipped = (drawn.flatten() for drawn in drawn_shifts(draw, height, width, style))
    still, upright = torch.zeros_like(downs), torch.ones_like(downs)
    columns = torch.where(flipped, width - 1 - rights, rights)
    return _remapped(pixels, [1 - 2 * flipped.long(), still, columns, still, upright, downs], "reflection")


def cutout(pixels: Tensor, draw: Draw, fraction: float) -> Tensor:
    """`shift.cutout`, by the same numbers. pixels: float [B, C, H, W]; returns new ones."""
    height, width = pixels.shape[2:]
    lines, columns = (covered.bool().to(pixels.device, non_blocking=True)
                      for covered in drawn_squares(draw, height, width, fraction))
    return torch.where(lines[:, None, :, None] & columns[:, None, None, :], GRAY / 255, pixels)


def _turn_(pixels: Tensor, numbers: Tensor, values: Tensor) -> None:
    """In place, operation `numbers[i]` of `OPERATIONS`, by its value, on row i. Both are [B], on the CPU, so that
    grouping by them reads nothing back from the device."""
    for name, apply in _functions().items():
        rows = (numbers == NAMES.index(name)).nonzero().flatten()
        if len(rows):
            factors = values[rows].float().to(pixels.device, non_blocking=True)
            on_device = rows.to(pixels.device, non_blocking=True)
            pixels.index_copy_(0, on_device, apply(pixels.index_select(0, on_device), factors))
    rows = torch.isin(numbers, MOVES).nonzero().flatten()
    if len(rows):
        on_device = rows.to(pixels.device, non_blocking=True)
        pixels.index_copy_(0, on_device, _move(pixels.index_select(0, on_device), numbers[rows], values[rows]))


def _functions() -> dict[str, Callable[[Tensor, Tensor], Tensor]]:
    """Kornia's function for each operation that moves nothing: of images and a parameter for each, on their device."""
    from kornia import enhance as of

    return {
        "auto_contrast": lambda x, value: _stretched(x),
        "equalize": lambda x, value: of.equalize(x),
        "solarize": lambda x, value: of.solarize(x, (value - 0.5) / 255),  # between two gray levels
        "posterize": lambda x, value: of.posterize(x, value.int()),
        "color": of.adjust_saturation_with_gray_subtraction,
        "contrast": of.adjust_contrast_with_mean_subtraction,
        "brightness": of.adjust_brightness_accumulative,
        "sharpness": lambda x, value: of.sharpness(x, value) if min(x.shape[2:]) > 2 else x,
    }


def _stretched(pixels: Tensor) -> Tensor:
    """Each channel from 0 to 1; a flat one stays as it is."""
    from kornia.enhance import normalize_min_max

    flat = pixels.amax((2, 3), keepdim=True) == pixels.amin((2, 3), keepdim=True)
    return torch.where(flat, pixels, normalize_min_max(pixels, 0.0, 1.0).clamp(0, 1))


def _move(pixels: Tensor, numbers: Tensor, values: Tensor) -> Tensor:
    """Rotate about the center, shear or translate, as `ops.move` does; black comes from outside."""
    kinds = (numbers[:, None] == MOVES).int().argmax(dim=1)
    xx, xy, x0, yx, yy, y0 = ops.coefficients(values, kinds, *pixels.shape[2:]).double() / 65536  # to a pixel's edge
    return _remapped(pixels, [xx, xy, x0 - 0.5, yx, yy, y0 - 0.5], "zeros")


def _remapped(pixels: Tensor, coefficients: list[Tensor], beyond: str) -> Tensor:
    """The nearest pixel to (xx * x + xy * y + x0, yx * x + yy * y + y0), for each x and y of each image; `beyond` as in
    grid_sample. coefficients: six [R], on the CPU."""
    from kornia.geometry.transform import remap

    height, width = pixels.shape[2:]
    rows = torch.stack(coefficients).float().to(pixels.device, non_blocking=True)[:, :, None, None]
    columns = torch.arange(width, device=pixels.device)
    lines = torch.arange(height, device=pixels.device)[:, None]
    x, y = (rows[i] * columns + rows[i + 1] * lines + rows[i + 2] for i in (0, 3))
    found: Tensor = remap(pixels, x, y, mode="nearest", padding_mode=beyond, align_corners=True)
    return found
