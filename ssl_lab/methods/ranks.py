"""What all ranks of a run saw, so that state which depends on data stays equal on all of them.

Each function is the identity in a run of one process, and reads nothing back to the host. Every rank has to
call it, with a tensor of the same shape.
"""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch import Tensor


def sum_over_ranks(tensor: Tensor) -> Tensor:
    """The sum of the ranks' tensors; no gradient."""
    if world() == 1:
        return tensor.detach()
    total = tensor.detach().clone()
    dist.all_reduce(total)
    return total


def mean_over_ranks(tensor: Tensor) -> Tensor:
    """The mean of the ranks' tensors; no gradient."""
    return sum_over_ranks(tensor) / world()


def cat_over_ranks(tensor: Tensor) -> Tensor:
    """[n, ...] -> [world * n, ...]: the rows of rank 0, then those of rank 1, and so on; no gradient."""
    if world() == 1:
        return tensor.detach()
    parts = [torch.empty_like(tensor) for _ in range(world())]
    dist.all_gather(parts, tensor.detach().contiguous())
    return torch.cat(parts)


def world() -> int:
    """The number of ranks, 1 without torch.distributed."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1
