"""The weak and the strong view in few operations: for GPUs, where starting one costs more than what it does.

Every row passes every stage with its own numbers, where on a CPU rows are grouped by operation. What a view draws, and
the pixels, are the same byte for byte (an H200's quotients by 255 are 6e-8 off): positions are computed in whole
numbers, and all other arithmetic is exact, or off by so little that truncation forgets it, in any order and fused or
not. A turn of RandAugment is

    sample where the row moves -> its statistics -> one place in a table (see `tables`) -> one look-up for all pixels.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from ssl_lab.batch import Draw, Style
from ssl_lab.views import ops, tables
from ssl_lab.views.base import to_unit
from ssl_lab.views.randaugment import CHANCE, OPERATIONS, drawn_operations
from ssl_lab.views.send import send
from ssl_lab.views.shift import GRAY, drawn_shifts, drawn_squares
from ssl_lab.views.tables import Turn

KINDS = torch.tensor([ops.MOVES.index(name) if name in ops.MOVES else -1 for name in OPERATIONS])


Augment = Callable[..., Tensor]


class Constants(NamedTuple):
    """What does not change from batch to batch, on the device.

    lines, columns: int32 [H, 1] and [W]. scale, bias: float32 [2, 1 + T, 1, 1, 1], from the numbers of columns and of
    lines to grid_sample's coordinates. luma, round: int64 [3, 1, 1]. bins: float32 [C, 257], 0 and then ones. table:
    float32 [T, tables.SIZE], one for each turn.
    """

    lines: Tensor
    columns: Tensor
    scale: Tensor
    bias: Tensor
    luma: Tensor
    round: Tensor
    bins: Tensor
    table: Tensor


def weak(images: Tensor, draw: Draw, style: Style, augment: Augment | None = None) -> Tensor:
    """`Weak`'s views of checked images."""
    return strong(images, draw, style, count=0, fraction=0.0, augment=augment)


def strong(images: Tensor, draw: Draw, style: Style, count: int, fraction: float, chance: float = CHANCE,
           augment: Augment | None = None) -> Tensor:
    """`Strong`'s views of checked images. augment: `augmented`, or what it was compiled to."""
    pixels = augment or augmented
    if not len(images):
        return to_unit(images)
    _, channels, height, width = images.shape
    fixed = constants(channels, height, width, count, images.device)
    shifts = _shifted(*drawn_shifts(draw, height, width, style), width)[:, None]
    operations = drawn_operations(draw, count, chance) if count else 3 * (torch.empty(0),)
    numbers, levels, values = (each.mT if each.ndim > 1 else each for each in operations)
    squares = [part.bool() for part in drawn_squares(draw, height, width, fraction)] if fraction else []
    if not count:
        sent = send([shifts, *squares], images.device)
        return pixels(images, sent[0], None, sent[1:], fixed)
    kinds = KINDS[numbers]
    moves = ops.coefficients(torch.where(kinds < 0, 0.0, values), kinds.clamp(min=0), height, width)
    drawn = tables.turn(numbers, levels, channels)
    sent = send([torch.cat([shifts, moves], dim=1), *squares, *drawn], images.device)
    of_turns = len(sent) - len(drawn)
    return pixels(images, sent[0], Turn(*sent[of_turns:]), sent[1:of_turns], fixed)


def augmented(images: Tensor, moves: Tensor, turns: Turn | None, squares: list[Tensor], fixed: Constants) -> Tensor:
    """The views, by nothing but tensors of the images' device, so that all of it may be compiled.

    moves: int32 [6, 1 + T, R], see `ops.coefficients`: of the weak view, and of T turns. turns: with leading dimension
    T, None for T = 0. squares: bool [R, H] and [R, W], lines and columns of cutout, or nothing.
    """
    grids = _grids(moves, fixed)
    x = F.grid_sample(images.float(), grids[0], mode="nearest", padding_mode="reflection", align_corners=True)
    covered = squares[0][:, None, :, None] & squares[1][:, None, None, :] if squares else None
    if turns is None:
        return (x if covered is None else x.masked_fill_(covered, GRAY)).div_(255)
    rows, channels = images.shape[:2]
    count, own = len(turns.start), rows * channels * 256
    bins = turns.ramp[..., 0] * fixed.bins
    table = images.new_empty((count, tables.SIZE + own), dtype=torch.float32)
    table[:, : tables.SIZE] = fixed.table
    for number in range(count):
        last = number == count - 1
        moved = F.grid_sample(x, grids[number + 1], mode="nearest", align_corners=False)
        places = _places(moved.long(), Turn(*(part[number] for part in turns)), bins[number],
                         table[number, tables.SIZE :].view(rows, channels, 256), last, fixed)
        if last and covered is not None:
            places.masked_fill_(covered, tables.SQUARE)
        x = table[number].index_select(0, places.flatten()).view(images.shape)
    return x


def _grids(moves: Tensor, fixed: Constants) -> list[Tensor]:
    """float32 [R, H, W, 2] for each of `moves`: grid_sample's coordinates of the centers of pixels."""
    slope, steep, start = moves.view(2, 3, *moves.shape[1:], 1, 1).unbind(1)
    places = torch.addcmul(torch.addcmul(start, steep, fixed.lines), slope, fixed.columns).bitwise_right_shift_(16)
    return list(torch.addcmul(fixed.bias, places, fixed.scale).permute(1, 2, 3, 4, 0).unbind(0))


def _places(x: Tensor, turn: Turn, bins: Tensor, own: Tensor, last: bool, fixed: Constants) -> Tensor:
    """int64 [R, C, H, W]: where the table has what a turn makes of each pixel.

    x: int64 [R, C, H, W], moved. bins: float32 [R, C, 257], with what they hold before. own: float32 [R, C, 256], to be
    filled with the tables of channels that have their own, over 255 in the last turn; before it they have fractions,
    which the next turn cuts off.
    """
    height, width = x.shape[2:]
    pixels = x.flatten(2)
    gray = x if x.shape[1] == 1 else torch.addcmul(
        fixed.round, x, fixed.luma).sum(1, keepdim=True).bitwise_right_shift_(16)
    start = torch.addcmul(turn.start, turn.mean, gray.mean((2, 3), keepdim=True, dtype=torch.float64))
    low, high = pixels.aminmax(dim=2, keepdim=True)
    bins[..., :1].addcmul_(low, turn.low[..., 0])  # auto_contrast: 255 * (x - low) / (high - low)
    bins[..., 1:].scatter_add_(2, pixels, turn.weight[..., 0].expand(pixels.shape))  # equalize: darker pixels / step
    darker = bins.cumsum(2)
    step = darker.gather(2, high).floor_divide_(255)
    values = torch.addcdiv(turn.half[..., 0], darker[..., :256], step)
    if last:
        torch.div(values.clamp_(max=255).floor_(), 255, out=own)
    else:
        torch.clamp(values, max=255, out=own)
    # with a step of 0 a channel stays as it is: the table begins with that
    start = torch.minimum(torch.add(turn.floor, step[..., None], alpha=tables.NEVER), start)
    places = torch.addcmul(start, turn.factor, x)
    if height > 2 and width > 2:
        around = F.avg_pool2d(x - float(tables.OFFSET), 3, stride=1, divisor_override=13)
        places[..., 1:-1, 1:-1].addcmul_(turn.smooth, around)
    return places.addcmul_(turn.gray, gray).long()


@lru_cache(maxsize=8)
def constants(channels: int, height: int, width: int, count: int, device: torch.device) -> Constants:
    """Those of `count` turns; copied to the device once."""
    sides = torch.tensor([width, height]).view(2, 1, 1, 1, 1)
    scale, bias = (2 / sides).repeat(1, 1 + count, 1, 1, 1), (1 / sides - 1).repeat(1, 1 + count, 1, 1, 1)
    scale[:, :1], bias[:, :1] = 2 / (sides - 1).clamp(min=1), -1  # of the weak view, between the centers of pixels
    numbers = [torch.arange(height, dtype=torch.int32)[:, None], torch.arange(width, dtype=torch.int32), scale, bias,
               torch.tensor(ops.LUMA).view(3, 1, 1), torch.tensor([1 << 15, 0, 0]).view(3, 1, 1),
               (torch.arange(257) > 0).float().repeat(channels, 1),
               tables.table().index_select(0, (torch.arange(count) == count - 1).long())]
    return Constants(*(part.to(device) for part in numbers))


def _shifted(down: Tensor, right: Tensor, flipped: Tensor, width: int) -> Tensor:
    """int32 [6, R]: the weak view's `ops.coefficients`, of [R, 1] as drawn; beyond the image they mirror it."""
    slope = torch.where(flipped, -1.0, 1.0).double().flatten()
    start = torch.where(flipped, width - right, right).flatten() + slope / 2
    zero, one = torch.zeros_like(slope), torch.ones_like(slope)
    return ops.fixed_point(torch.stack([slope, zero, start, zero, one, down.flatten() + one / 2]))
