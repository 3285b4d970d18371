"""RandAugment's operations as places in one table: what `dense` looks pixels up in, and by which numbers.

A pixel x of a row whose operation is a function of x alone lies at start + x. Blends are functions of x and of the
base that it is blended with: they lie at start + SPAN * x + base, where the base is 0 (brightness), the image's mean
(contrast), the gray pixel (color) or the smoothed one (sharpness). From base EDGE on, nothing changes.
"""

from __future__ import annotations

from functools import lru_cache
from typing import NamedTuple

import torch
from torch import Tensor

from ssl_lab.views import ops
from ssl_lab.views.randaugment import LEVELS, OPERATIONS
from ssl_lab.views.shift import GRAY

# The sum of a pixel's neighborhood and 4 times itself, over 13, is the smoothed pixel. The neighborhood's part, less
# EDGE, is added within the image; at its border it is not, so that the base there is EDGE + 4 / 13 * x.
OFFSET, EDGE = 377, 261  # 9 / 13 of the first is the second
SPAN = EDGE + 80
LOOKUPS = ("identity", "solarize", "posterize")
SQUARE = len(LOOKUPS) * LEVELS * 256
"""Where the gray of cutout lies."""
BLENDS = SQUARE + 1
SIZE = BLENDS + LEVELS * 256 * SPAN
NEVER = 2.0**40


@lru_cache(maxsize=1)
def table() -> Tensor:
    """float32 [2, SIZE]: gray levels 0..255, and the same over 255."""
    ramp = torch.arange(256, dtype=torch.uint8).expand(LEVELS, 1, 1, 256)
    levels = torch.arange(LEVELS, dtype=torch.float64)
    runs = [ramp, *(getattr(ops, name)(ramp, OPERATIONS[name].value(levels)) for name in LOOKUPS[1:])]
    base = torch.arange(256).view(1, 1, 256, 1)
    factors = OPERATIONS["color"].value(levels)
    blends = [ops.blend(base.mT, ramp.view(-1, 1, 256, 1), factors), ramp.mT.expand(-1, 1, 256, SPAN - 256)]
    gray = torch.tensor([GRAY], dtype=torch.uint8)
    values = torch.cat([*(run.flatten() for run in runs), gray, torch.cat(blends, dim=3).flatten()]).float()
    return torch.stack([values, values / 255])


class Turn(NamedTuple):
    """The numbers of rows, [..., R, 1, 1, 1], `start` and `floor` [..., R, C, 1, 1]; float64, from `weight` on float32.

    start: where its operation's values begin in the table. factor: of the pixel. smooth, gray: 1 where these planes are
    the base. mean: 1 where the image's mean gray is. Where the operation has a table of each channel's own, weight: how
    much a pixel adds to its bin, ramp: what each bin holds before, half: what is added before truncation; and floor is
    0, elsewhere NEVER.
    """

    start: Tensor
    floor: Tensor
    factor: Tensor
    smooth: Tensor
    gray: Tensor
    mean: Tensor
    weight: Tensor
    ramp: Tensor
    low: Tensor
    half: Tensor


def turn(numbers: Tensor, levels: Tensor, channels: int) -> Turn:
    """numbers, levels: int64 [..., R], see `drawn_operations`; on the CPU."""
    fields = _NUMBERS[:, numbers, None, None, None].unbind()
    own = torch.isin(numbers, _OWNERS)[..., None]
    slots = torch.arange(numbers.shape[-1] * channels).view(-1, channels)
    first = torch.where(own, SIZE + 256.0 * slots, _STARTS[numbers, levels][..., None]) + 0.5  # rounds what is added
    floor = torch.where(own, 0.0, NEVER).double().expand(first.shape)
    return Turn(first[..., None, None], floor[..., None, None], *fields[:4], *(part.float() for part in fields[4:]))


def _starts(name: str) -> list[int]:
    """Where the values of an operation begin, by level."""
    if name in ("brightness", "contrast", "color", "sharpness"):
        return [BLENDS + level * 256 * SPAN + EDGE * (name == "sharpness") for level in range(LEVELS)]
    place = LOOKUPS.index(name) if name in LOOKUPS else 0
    return [(place * LEVELS + level) * 256 for level in range(LEVELS)]


_STARTS = torch.tensor([_starts(name) for name in OPERATIONS], dtype=torch.float64)
_BLENDED: dict[str, list[float]] = {
    "brightness": [SPAN, 0, 0, 0], "contrast": [SPAN, 0, 0, 1], "color": [SPAN, 0, 1, 0],
    "sharpness": [SPAN + 4 / 13, 1, 0, 0]}
_OWN: dict[str, list[float]] = {"equalize": [1, 0, 0, 0.5], "auto_contrast": [0, 255, -255, 0]}
_OWNERS = torch.tensor([number for number, name in enumerate(OPERATIONS) if name in _OWN])
_NUMBERS = torch.tensor([[*_BLENDED.get(name, [1, 0, 0, 0]), *_OWN.get(name, [0, 0, 0, 0])] for name in OPERATIONS],
                        dtype=torch.float64).T.contiguous()
"""Fields of Turn from factor on, by operation."""
