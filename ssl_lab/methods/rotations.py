"""Rotations by quarter turns, and the head that tells them apart (Gidaris et al. 2018, arXiv 1803.07728)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ssl_lab.errors import UsageError
from ssl_lab.nets.base import linear_head
from ssl_lab.seeds import seeded


def all_rotations(images: Tensor) -> Tensor:
    """float [4B, C, H, H]: the images unturned, then all turned by 90, by 180 and by 270 degrees."""
    _check_square(images)
    return torch.cat([images.rot90(turns, (2, 3)) for turns in range(4)])


def some_rotation(images: Tensor) -> tuple[Tensor, Tensor]:
    """Every image in one rotation, that of its row mod 4, in order of the rotations; and those, int64 [B]."""
    _check_square(images)
    turns = torch.arange(len(images), device=images.device) % 4
    return (torch.cat([images[first::4].rot90(first, (2, 3)) for first in range(4)]),
            torch.cat([turns[first::4] for first in range(4)]))


def _check_square(images: Tensor) -> None:
    """Refuse images whose shape changes when they are turned."""
    height, width = images.shape[2:]
    if height != width:
        raise UsageError(f"rotations need square images, these are {height} x {width}; give an image size.")


def rotation_head(features_dim: int, seed: int = 0) -> nn.Linear:
    """A linear layer features -> 4 rotations whose initial weights are a function of the seed."""
    with seeded(seed, "rotation head"):
        return linear_head(features_dim, 4)
