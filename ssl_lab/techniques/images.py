"""Images for techniques that look at some beside those of the batch."""

from __future__ import annotations

import torch
from torch import Tensor

from ssl_lab.batch import At
from ssl_lab.data import IntArray, Pool
from ssl_lab.methods import Method
from ssl_lab.seeds import generator
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


def as_seen(method: Method, pool: Pool, count: int, seed: int, name: str) -> Tensor:
    """So many training images as the method sees them under its first view, float [n, C, H, W]: a function of pool,
    seed and name alone."""
    views = method.views
    kind, rows = (views.unlabeled, pool.unlabeled) if views.unlabeled else (views.labeled, pool.labeled)
    chosen, device = some(rows, count, seed, name), next(method.parameters()).device
    draw = At(0, 1, seed).draw(name, len(chosen), device)
    seen: Tensor = next(iter(kind.values()))(pool.style)(pool.images.take(chosen).to(device), draw)
    return seen
