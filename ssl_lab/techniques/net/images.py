"""Images for what initializes a net by data."""

from __future__ import annotations

import torch
from torch import Tensor

from ssl_lab.batch import At, generator
from ssl_lab.data import IntArray, Pool
from ssl_lab.views import Eval


def pixels(pool: Pool, rows: IntArray, device: torch.device) -> Tensor:
    """These images as they are, float [n, C, H, W] in [0, 1]."""
    draw = At(0, 1).draw("pixels", len(rows), device)
    seen: Tensor = Eval(pool.style)(pool.images.take(rows).to(device), draw)
    return seen


def some(rows: IntArray, count: int, *key: int | str) -> IntArray:
    """So many of the rows, drawn by the key; all of them, if there are no more."""
    chosen: IntArray = rows[torch.randperm(len(rows), generator=generator(*key))[:count].numpy()]
    return chosen
