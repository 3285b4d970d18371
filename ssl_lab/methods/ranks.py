"""What all ranks of a run saw, so that state which depends on data stays equal on all of them.

Each function is the identity in a run of one process, and reads nothing back to the host. Every rank has to
call it, with a tensor of the same shape.
"""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch import Tensor

from ssl_lab.batch import At


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


class Notes:
    """What a step's micro-batches note in `forward` for `after_step`, where each rank reads those of all ranks.

    Reading forgets them. A micro-batch that passes again replaces its own.
    """

    def __init__(self) -> None:
        self._of_part: dict[int, tuple[Tensor, ...]] = {}

    def put(self, at: At, *tensors: Tensor) -> None:
        """Notes some tensors, the same number from each micro-batch; no gradient."""
        self._of_part[at.rank] = tuple(tensor.detach() for tensor in tensors)

    def rows(self) -> tuple[Tensor, ...]:
        """Of each tensor [n, ...] the rows of all micro-batches of all ranks, one after the other."""
        return tuple(cat_over_ranks(torch.cat(parts)) for parts in self._taken())

    def mean(self) -> tuple[Tensor, ...]:
        """Of each tensor the mean over all micro-batches of all ranks."""
        return tuple(mean_over_ranks(torch.stack(parts).mean(dim=0)) for parts in self._taken())

    def _taken(self) -> list[tuple[Tensor, ...]]:
        tensors = [*zip(*self._of_part.values(), strict=True)]
        self._of_part.clear()
        return tensors
