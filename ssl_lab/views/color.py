"""Color operations on float images with one parameter per row, in place: jitter, gray, solarize.

Images are float [B, C, H, W] in [0, 1]; parameters are on the CPU, so that choosing rows reads nothing back. The
results are those of torchvision's functional operations on float images.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor

from ssl_lab.batch import Draw

LUMA = 0.299, 0.587, 0.114
JITTERED = 0.8  # share of the images
BRIGHTNESS, CONTRAST, SATURATION = range(3)


@dataclass(frozen=True)
class Jitter:
    """What changes in each row, in which order. Indexed by rows.

    operation: int64 [B, 3], an order of brightness, contrast and saturation. factor: float [B, 3], of these. hue:
    float [B], in turns of the color circle. turn: int64 [B]: hue changes before the operation of this number, after
    all of them at 3; at 4 the row stays as it is.
    """

    operation: Tensor
    factor: Tensor
    hue: Tensor
    turn: Tensor

    @classmethod
    def drawn(cls, draw: Draw, strength: tuple[float, float, float, float]) -> Self:
        """Factors uniform in [max(0, 1 - strength), 1 + strength), hue in +- strength[3]; each order is as likely."""
        order = draw.uniform(4).argsort(dim=1)
        turn = (order == 3).int().argmax(dim=1)
        operation = order[order != 3].view(-1, 3)
        spread = torch.tensor(strength[:3])
        low = (1 - spread).clamp(min=0)
        factor = low + draw.uniform(3) * (1 + spread - low)
        hue = draw.uniform(low=-strength[3], high=strength[3])
        jittered = draw.uniform() < JITTERED
        return cls(operation, factor.gather(1, operation), hue, torch.where(jittered, turn, 4))

    def __getitem__(self, rows: Tensor | slice) -> Jitter:
        return Jitter(self.operation[rows], self.factor[rows], self.hue[rows], self.turn[rows])


def jitter_(images: Tensor, changes: Jitter) -> None:
    """Jitter of RGB images, whose rows must be sorted by `changes.turn`.

    Brightness, contrast and saturation are all x -> base + factor * (x - base), limited to [0, 1], with the base 0,
    the mean of the gray image, or the gray image: one pass serves all three.
    """
    ends = changes.turn.bincount(minlength=5).cumsum(0).tolist()
    starts = [0, *ends]
    x = images[: ends[3]]
    if not len(x):
        return
    changes = changes[: len(x)]
    hue, factors = _on(changes.hue, x), _on(changes.factor, x)
    mean, gray = (_on(changes.operation == number, x) for number in (CONTRAST, SATURATION))
    for turn in range(4):
        here = slice(starts[turn], ends[turn])
        shift_hue_(x[here], hue[here].flatten())
        if turn == 3:
            break
        base = luma(x)
        base = base * gray[:, turn] + base.mean((2, 3), keepdim=True) * mean[:, turn]
        torch.lerp(base.expand_as(x), x, factors[:, turn], out=x).clamp_(0, 1)


def jitter_gray_(images: Tensor, changes: Jitter) -> None:
    """Jitter of images with one channel: brightness and contrast."""
    x = images
    factors = torch.where((changes.operation == SATURATION) | (changes.turn == 4)[:, None], 1.0, changes.factor)
    factors, mean = _on(factors, x), _on(changes.operation == CONTRAST, x)
    for turn in range(3):
        base = x.mean((2, 3), keepdim=True) * mean[:, turn]
        torch.lerp(base.expand_as(x), x, factors[:, turn], out=x).clamp_(0, 1)


def shift_hue_(images: Tensor, turns: Tensor) -> None:
    """Turn the hue of RGB images by `turns`, float [B] in [-1/2, 1/2] on their device; value and saturation stay.

    In 0.4 of the time of Kornia's adjust_hue, which goes to HSV and back.
    """
    red, green, blue = images.unbind(1)
    high = torch.maximum(torch.maximum(red, green), blue)
    low = torch.minimum(torch.minimum(red, green), blue)
    chroma = high - low
    scale = 1 / chroma.clamp(min=1e-12)  # where there is no color, the differences are 0 too
    hue = torch.where(high == red, (green - blue) * scale,
                      torch.where(high == green, (blue - red) * scale + 2, (red - green) * scale + 4))
    hue += 6 * turns[:, None, None]  # in sixths of a turn, from -4 to 8
    hue = torch.where(hue < 0, hue + 6, torch.where(hue >= 6, hue - 6, hue))
    red.copy_(((hue - 3).abs_() - 1).clamp_(0, 1).mul_(chroma).add_(low))
    green.copy_((2 - (hue - 2).abs_()).clamp_(0, 1).mul_(chroma).add_(low))
    blue.copy_((2 - (hue - 4).abs_()).clamp_(0, 1).mul_(chroma).add_(low))


def luma(images: Tensor) -> Tensor:
    """float [B, 1, H, W]: the gray image of RGB images."""
    red, green, blue = images.tensor_split(3, dim=1)
    return (red * LUMA[0]).add_(green, alpha=LUMA[1]).add_(blue, alpha=LUMA[2])


def to_gray_(images: Tensor, chosen: Tensor) -> None:
    """Gray in all three channels where `chosen`, bool [B]."""
    rows = chosen_rows(chosen, images)
    if len(rows):
        images.index_copy_(0, rows, luma(images.index_select(0, rows)).expand(-1, 3, -1, -1))


def solarize_(images: Tensor, chosen: Tensor) -> None:
    """x -> 1 - x for values from 1/2 on where `chosen`, bool [B]."""
    rows = chosen_rows(chosen, images)
    if len(rows):
        x = images.index_select(0, rows)
        images.index_copy_(0, rows, torch.where(x >= 0.5, 1 - x, x))


def chosen_rows(chosen: Tensor, images: Tensor) -> Tensor:
    """int64 [R], on the images' device: which rows are chosen, bool [B] on the CPU."""
    return chosen.nonzero().flatten().to(images.device, non_blocking=True)


def _on(values: Tensor, images: Tensor) -> Tensor:
    """`values`, [B, ...], as floats on the images' device, with three more dimensions at the end."""
    return values.to(images.device, images.dtype, non_blocking=True)[..., None, None, None]
