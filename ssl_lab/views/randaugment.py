"""RandAugment as FixMatch uses it: random operations of random strength, drawn for each image by itself.

Sohn et al. 2020 (FixMatch), after Cubuk et al. 2019 (RandAugment). What a move uncovers is black here; the authors'
code works in RGBA, and makes pixels that are transparent at the end gray (127.5).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from ssl_lab.batch import Draw
from ssl_lab.views import ops

CHANCE = 0.5  # of a turn's operation to be done
LEVELS = 10
"""Strengths are the whole levels 1..9 of these 10."""


@dataclass(frozen=True)
class Operation:
    """One entry of the table.

    apply: see `ops`; None for the identity and for ops.MOVES. value: its parameter from the level v, both float64 [R].
    signed: the parameter is negated in half of the rows.
    """

    apply: Callable[[Tensor, Tensor], Tensor] | None = None
    value: Callable[[Tensor], Tensor] = lambda v: v
    signed: bool = False


# The ranges are those of the authors' CIFAR code. The paper's appendix and the PyTorch ports have others:
# factors from .05 to .95, 4 to 8 bits, and a largest shift of .3 of the side in place of 10 of 32 pixels.
OPERATIONS: dict[str, Operation] = {
    "identity": Operation(),
    "auto_contrast": Operation(ops.auto_contrast),
    "equalize": Operation(ops.equalize),
    "rotate": Operation(value=lambda v: (v * 30 / LEVELS).trunc(), signed=True),  # degrees
    "solarize": Operation(ops.solarize, lambda v: 256 - (v * 256 / LEVELS).trunc()),  # threshold
    "posterize": Operation(ops.posterize, lambda v: 4 - (v * 4 / LEVELS).trunc()),  # bits kept
    "color": Operation(ops.color, lambda v: v * 1.8 / LEVELS + 0.1),  # factors: 1 changes nothing
    "contrast": Operation(ops.contrast, lambda v: v * 1.8 / LEVELS + 0.1),
    "brightness": Operation(ops.brightness, lambda v: v * 1.8 / LEVELS + 0.1),
    "sharpness": Operation(ops.sharpness, lambda v: v * 1.8 / LEVELS + 0.1),
    "shear_x": Operation(value=lambda v: v * 0.3 / LEVELS, signed=True),  # pixels per line
    "shear_y": Operation(value=lambda v: v * 0.3 / LEVELS, signed=True),
    "translate_x": Operation(value=lambda v: v / 32, signed=True),  # fraction of the side
    "translate_y": Operation(value=lambda v: v / 32, signed=True),
}
PIXELWISE = {name: operation.apply for name, operation in OPERATIONS.items() if operation.apply}
ORDER = ["identity", *PIXELWISE, *ops.MOVES]  # so that rows which nothing changes adjoin, and those that move
PLACES = torch.tensor([ORDER.index(name) for name in OPERATIONS])
VALUES = torch.stack([operation.value(torch.arange(LEVELS).double()) for operation in OPERATIONS.values()])
SIGNED = torch.tensor([operation.signed for operation in OPERATIONS.values()])


def rand_augment(images: Tensor, draw: Draw, count: int = 2, chance: float = CHANCE) -> Tensor:
    """Run `count` turns; in each, a share `chance` of the rows undergoes an operation and a level (1..9) drawn for the
    row.

    images: uint8 [B, C, H, W]; returns the same shape and type. An operation may come twice.
    """
    numbers, _, values = drawn_operations(draw, count, chance)
    places = PLACES[numbers]
    rows = torch.arange(len(images))  # where each image was; they stay sorted by the last turn's operations
    for place, value in zip(places.unbind(1), values.unbind(1), strict=True):
        order = place[rows].argsort()
        rows = rows[order]
        images = _turn(images.index_select(0, order.to(images.device, non_blocking=True)), place[rows], value[rows])
    return images.index_select(0, rows.argsort().to(images.device, non_blocking=True))


def drawn_operations(draw: Draw, count: int, chance: float = CHANCE) -> tuple[Tensor, Tensor, Tensor]:
    """int64 [B, count] each, but for the last: which of OPERATIONS (0, the identity, in all but a share `chance` of the
    cases), at which level, and its value, float64."""
    applied = draw.uniform(count) < chance
    numbers = draw.integers(0, len(OPERATIONS), count)
    levels = draw.integers(1, LEVELS, count)
    signs = draw.integers(0, 2, count) * 2 - 1
    values = VALUES[numbers, levels]
    return torch.where(applied, numbers, 0), levels, torch.where(SIGNED[numbers], values * signs, values)


def _turn(images: Tensor, places: Tensor, values: Tensor) -> Tensor:
    """Apply operation ORDER[places[i]] to row i, all rows of an operation at once, and all moves.

    places, values: [B], sorted by places, on the CPU, so that grouping by them reads nothing back from the device.
    """
    sizes = places.bincount(minlength=len(ORDER)).tolist()
    sizes[1 + len(PIXELWISE):] = [sum(sizes[1 + len(PIXELWISE):])]
    still, *groups, moving = images.split_with_sizes(sizes)
    _, *parameters, ways = values.split_with_sizes(sizes)
    kinds = places.split_with_sizes(sizes)[-1] - ORDER.index(ops.MOVES[0])
    changed = [apply(group, value) for apply, group, value in zip(PIXELWISE.values(), groups, parameters, strict=True)]
    return torch.cat([still, *changed, ops.move(moving, ways, kinds)])
