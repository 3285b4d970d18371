"""Queues of rows, in buffers whose size stays."""

from __future__ import annotations

import torch
from torch import Tensor


def prepend(queue: Tensor, rows: Tensor) -> None:
    """The rows come first, and as many of the oldest fall out. queue: [N, ...]. rows: [n, ...]."""
    queue.copy_(torch.cat([rows, queue])[: len(queue)])


def push(queue: Tensor, rows: Tensor, step: int) -> None:
    """Writes the rows [n, D] of a step over the oldest ones of the queue [Q, D]. All steps have the same n."""
    places = step * len(rows) + torch.arange(min(len(rows), len(queue)), device=rows.device)
    queue.index_copy_(0, places % len(queue), rows[: len(queue)])
