"""SimCLR's view in few operations: for GPUs, where starting one costs more than what it does.

Every row passes every stage with its own numbers, and stages change nothing where these say so. On a CPU rows are
sorted by what happens to them; pixels are the same but for the last bits.

Hue changes before, between or after the other three changes of color, at one of four turns. To change it once for all
rows, those that come before it in a row's order are in the stages before it, those that come after in the stages after
it. Of these three, brightness is no stage: clamp(g * clamp(x, 0, 1), 0, 1) is clamp(g * x, 0, min(g, 1)), so that it
joins what comes before.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from itertools import product
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from ssl_lab.views import color
from ssl_lab.views.color import BRIGHTNESS, CONTRAST, Jitter
from ssl_lab.views.send import send

SECTORS = 0.0, 4.0, 2.0
"""By how many sixths of a turn the hue of red, green and blue is ahead of that of which a color has most."""
SHARP = -1e30
"""An exponent of the Gaussian that leaves the center alone."""


class Colors(NamedTuple):
    """What the stages do to each row, float32 [R, ...].

    scale: [R, 1, 1, 1], the pixels, uint8, are divided by it: 255, over the brightness that comes first. keep, top,
    flat: [S, R, 1, 1, 1] of S stages, two before the hue and two after it (one in all, of gray images):
    clamp(keep * x + base, 0, top), with the base sum(mix * x) over channels, and its mean over the image if `flat`,
    bool. mix: [S, R, C, 1, 1]. sectors: [R, 3, 1, 1], by how many sixths of a turn hue changes, see SECTORS. bright:
    [R, 1, 1, 1], the brightness that comes right after the hue. The last stage is gray.
    """

    scale: Tensor
    keep: Tensor
    top: Tensor
    flat: Tensor
    mix: Tensor
    sectors: Tensor
    bright: Tensor


class Constants(NamedTuple):
    """places: float64 [max(H, W)]; zero: 0, float32; squares: of the distances in each axis' Gaussian, float32 [K]."""

    places: Tensor
    zero: Tensor
    down: Tensor
    across: Tensor


def simclr(images: Tensor, sides: tuple[int, int], boxes: Tensor, flipped: Tensor, changes: Jitter, gray: Tensor,
           sigmas: Tensor | None, solarized: Tensor | None, augment: Callable[..., Tensor] | None = None) -> Tensor:
    """`SimCLRView`'s views of checked images, float32 [B, C, *sides], height and width. augment: `augmented`, or what
    it was compiled to.

    boxes: int64 [B, 4]. flipped, gray, solarized: bool [B]. sigmas: float [B], 0 for no blur. All of them on the CPU.
    None: nothing is blurred, or solarized.
    """
    channels, height, width = images.shape[1:]
    parts = [_axes(boxes, flipped, (height, width), sides), *_colors(changes, gray, channels)]
    if sigmas is not None:
        parts.append(torch.where(sigmas > 0, -0.5 / sigmas.square(), SHARP).repeat_interleave(channels)[:, None])
    if solarized is not None:
        parts.append(torch.where(solarized, 1.0, 2.0).view(-1, 1, 1, 1))
    axes, *sent = send(parts, images.device)
    colors, rest = Colors(*sent[:7]), sent[7:]
    exponents, sums = (rest.pop(0) if given is not None else None for given in (sigmas, solarized))
    return (augment or augmented)(images, sides, axes, colors, exponents, sums, constants(*sides, images.device))


def augmented(images: Tensor, sides: tuple[int, int], axes: Tensor, colors: Colors, exponents: Tensor | None,
              sums: Tensor | None, fixed: Constants) -> Tensor:
    """The views, by nothing but tensors of the images' device, so that all of it may be compiled.

    axes: float64 [4, 2, B, 1]. exponents: float32 [B * C, 1], of the Gaussians. sums: float32 [B, 1, 1, 1], from which
    a solarized image is subtracted where that is darker.
    """
    channels, (height, width) = images.shape[1], sides
    slope, start, first, last = axes
    places = torch.addcmul(start, slope, fixed.places).clamp_(first, last).float()
    shape = (len(images), height, width)
    grid = torch.stack([places[0, :, None, :width].expand(shape), places[1, :, :height, None].expand(shape)], dim=3)
    x = F.grid_sample(images / colors.scale, grid, mode="bilinear", padding_mode="border", align_corners=False)
    x = x.clamp_(max=1)
    stages = [*zip(colors.keep, colors.mix, colors.flat, colors.top, strict=False)]  # the last, gray, has neither
    if channels == 1:
        x = _stage(x, *stages[0], fixed.zero)
    else:
        for stage in stages[:2]:
            x = _stage(x, *stage, fixed.zero)
        x = _turned(x, colors.sectors).mul_(colors.bright).clamp_(max=1)
        for stage in stages[2:4]:
            x = _stage(x, *stage, fixed.zero)
        x = torch.addcmul((x * colors.mix[4]).sum(1, keepdim=True), colors.keep[4], x)
    if exponents is not None:
        x = _blurred(x, exponents, fixed)
    if sums is not None:
        x = torch.minimum(x, sums - x)
    return x.clamp_(0, 1)


def _stage(x: Tensor, keep: Tensor, mix: Tensor, flat: Tensor, top: Tensor, zero: Tensor) -> Tensor:
    """See Colors."""
    base = (x * mix).sum(1, keepdim=True)
    base = torch.where(flat, base.mean((2, 3), keepdim=True), base)
    return torch.addcmul(base, keep, x).clamp_(zero, top)


def _turned(x: Tensor, sectors: Tensor) -> Tensor:
    """Other hues; see `color.shift_hue_`, which this is in fewer operations.

    A channel is low + chroma * clamp(|u % 6 - 3| - 1, 0, 1) if u is the hue as seen from it, in sixths of a turn.
    """
    high, most = x.max(1, keepdim=True)
    low = x.amin(1, keepdim=True)
    chroma = (high - low).clamp_(min=1e-12)  # where there is no color, the differences are 0 too
    around = torch.cat([x, x[:, :2]], dim=1)
    difference = (around[:, 1:4] - around[:, 2:5]).gather(1, most)  # of the two others
    hue = torch.addcdiv(torch.add(sectors, most, alpha=2), difference, chroma)
    share = hue.remainder_(6).sub_(3).abs_().clamp_(1, 2)
    return torch.addcmul(low - chroma, chroma, share)


def _blurred(x: Tensor, exponents: Tensor, fixed: Constants) -> Tensor:
    """A Gaussian of its own for each channel of each row; see `contrastive.blur_`."""
    planes = x.view(1, -1, *x.shape[2:])
    across = (exponents * fixed.across).softmax(dim=1)
    down = across if len(fixed.down) == len(fixed.across) else (exponents * fixed.down).softmax(dim=1)
    half = len(fixed.across) // 2, len(fixed.down) // 2
    padded = F.pad(planes, (half[0], half[0], half[1], half[1]), mode="reflect")
    lines = F.conv2d(padded, across[:, None, None, :], groups=len(across))
    return F.conv2d(lines, down[:, None, :, None], groups=len(down)).view(x.shape)


@lru_cache(maxsize=8)
def constants(height: int, width: int, device: torch.device) -> Constants:
    """Copied to the device once."""
    squares = [torch.arange(-(side // 20), side // 20 + 1).float().square() for side in (height, width)]
    numbers = torch.arange(max(height, width), dtype=torch.float64), torch.tensor(0.0), *squares
    return Constants(*(part.to(device) for part in numbers))


def _axes(boxes: Tensor, flipped: Tensor, given: tuple[int, int], sides: tuple[int, int]) -> Tensor:
    """float64 [4, 2, B, 1]: grid_sample's coordinates of place k of the columns and of the lines are slope * k + start,
    within first and last; see `contrastive.resized_crop`. given, sides: height and width of images and results."""
    start, length = boxes.double().view(-1, 2, 2).flip(2).unbind(1)  # [B, 2]: columns, lines
    size, of = (torch.tensor(each[::-1], dtype=torch.float64) for each in (given, sides))
    slope = length / of
    begin = slope / 2 - 0.5
    mirrored = torch.stack([flipped, torch.zeros_like(flipped)], dim=1)
    begin, slope = torch.where(mirrored, length - 1 - begin, begin), torch.where(mirrored, -slope, slope)
    places = torch.stack([start + begin, start, start + length - 1])
    return torch.cat([2 * slope[None] / size, (2 * places + 1) / size - 1]).mT[..., None]


def _colors(changes: Jitter, gray: Tensor, channels: int) -> Colors:
    """The numbers of the stages; on the CPU."""
    places, flats = _cases(channels)
    case = (3 * changes.operation[:, 0] + changes.operation[:, 1]) * 5 + changes.turn
    factors = torch.ones(len(gray), 4).scatter_(1, changes.operation, changes.factor)  # of the last: none
    lead, keep, after = torch.split(factors.gather(1, places[case]).T, [2, 4, 4])
    flat = flats[case].T
    luma = torch.tensor(color.LUMA if channels == 3 else (1.0,))
    mix = ((1 - keep) * after)[..., None] * luma
    keep = torch.cat([keep * after, 1 - gray[None].float()])  # and the last stage: gray
    mix = torch.cat([mix, gray[None, :, None] * luma])
    turns = torch.where(changes.turn < 4, changes.hue.flatten(), 0.0)
    return Colors((255 / lead[0])[:, None, None, None], keep[..., None, None, None],
                  after.clamp(max=1)[..., None, None, None], flat[..., None, None, None], mix[..., None, None],
                  (torch.tensor(SECTORS) + 6 * turns[:, None])[..., None, None], lead[1][:, None, None, None])


@lru_cache(maxsize=2)
def _cases(channels: int) -> tuple[Tensor, Tensor]:
    """For each order of the operations and turn of the hue, first and second operation and turn being the digits of
    its number, 3, 3 and 5 of each: whose factors are the two leads, the four stages' keeps and what comes after these,
    int64 [45, 10], where 3 is none's; and whether the stages are flat, bool [45, 4]."""
    places, flats = torch.full((45, 10), 3), torch.zeros(45, 4, dtype=torch.bool)
    for first, second, turn in product(range(3), range(3), range(4)):
        if first == second:
            continue
        case, done = (3 * first + second) * 5 + turn, [0, 0]
        for number, operation in enumerate((first, second, 3 - first - second)):
            side = int(turn <= number and channels == 3)  # of the hue
            stage = 2 * side + done[side]
            if operation == BRIGHTNESS:
                places[case, 6 + stage - 1 if done[side] else side] = BRIGHTNESS
            elif operation == CONTRAST or channels == 3:
                places[case, 2 + stage], flats[case, stage] = operation, operation == CONTRAST
                done[side] += 1
    return places, flats
