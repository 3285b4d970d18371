"""RandAugment as FixMatch uses it: random operations of random strength, drawn for each image by itself.

Sohn et al. 2020 (FixMatch), after Cubuk et al. 2019 (RandAugment).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from ssl_lab.batch import Draw
from ssl_lab.views import ops

LEVELS = 10
"""Strengths are the whole levels 1..9 of these 10."""


@dataclass(frozen=True)
class Operation:
    """One entry of the table.

    apply: see `ops`. value: its parameter from the level v, both float64 [R]. signed: the parameter is
    negated in half of the rows.
    """

    apply: Callable[[Tensor, Tensor], Tensor]
    value: Callable[[Tensor], Tensor] = lambda v: v
    signed: bool = False


# The ranges are those of the authors' CIFAR code. The paper's appendix and the PyTorch ports have others:
# factors from .05 to .95, 4 to 8 bits, and a largest shift of .3 of the side in place of 10 of 32 pixels.
OPERATIONS: dict[str, Operation] = {
    "identity": Operation(ops.identity),
    "auto_contrast": Operation(ops.auto_contrast),
    "equalize": Operation(ops.equalize),
    "rotate": Operation(ops.rotate, lambda v: (v * 30 / LEVELS).trunc(), signed=True),  # degrees
    "solarize": Operation(ops.solarize, lambda v: 256 - (v * 256 / LEVELS).trunc()),  # threshold
    "posterize": Operation(ops.posterize, lambda v: 4 - (v * 4 / LEVELS).trunc()),  # bits kept
    "color": Operation(ops.color, lambda v: v * 1.8 / LEVELS + 0.1),  # factors: 1 changes nothing
    "contrast": Operation(ops.contrast, lambda v: v * 1.8 / LEVELS + 0.1),
    "brightness": Operation(ops.brightness, lambda v: v * 1.8 / LEVELS + 0.1),
    "sharpness": Operation(ops.sharpness, lambda v: v * 1.8 / LEVELS + 0.1),
    "shear_x": Operation(ops.shear_x, lambda v: v * 0.3 / LEVELS, signed=True),  # pixels per line
    "shear_y": Operation(ops.shear_y, lambda v: v * 0.3 / LEVELS, signed=True),
    "translate_x": Operation(ops.translate_x, lambda v: v / 32, signed=True),  # fraction of the side
    "translate_y": Operation(ops.translate_y, lambda v: v / 32, signed=True),
}
TABLE = tuple(OPERATIONS.values())
IDENTITY = list(OPERATIONS).index("identity")


def rand_augment(images: Tensor, draw: Draw, count: int = 2) -> Tensor:
    """Run `count` turns; in each, half of the rows undergo an operation and a level (1..9) drawn for the row.

    images: uint8 [B, C, H, W]; returns the same shape and type. An operation may come twice.
    """
    applied = draw.uniform(count) < 0.5
    numbers = torch.where(applied, draw.integers(0, len(TABLE), count), IDENTITY)
    levels = draw.integers(1, LEVELS, count).double()
    signs = draw.integers(0, 2, count) * 2 - 1
    for number, level, sign in zip(numbers.unbind(1), levels.unbind(1), signs.unbind(1), strict=True):
        images = _turn(images, number, level, sign)
    return images


def _turn(images: Tensor, numbers: Tensor, levels: Tensor, signs: Tensor) -> Tensor:
    """Apply operation numbers[i] to row i, all rows of an operation at once.

    numbers, levels, signs: [B], on the CPU, so that grouping by them reads nothing back from the device.
    """
    order = numbers.argsort()
    sizes = numbers.bincount(minlength=len(TABLE)).tolist()
    groups = zip(
        TABLE,
        images.index_select(0, order.to(images.device, non_blocking=True)).split_with_sizes(sizes),
        levels[order].split_with_sizes(sizes),
        signs[order].split_with_sizes(sizes),
        strict=True,
    )
    changed = []
    for operation, group, level, sign in groups:
        value = operation.value(level)
        changed.append(operation.apply(group, value * sign if operation.signed else value))
    return torch.cat(changed).index_select(0, order.argsort().to(images.device, non_blocking=True))
