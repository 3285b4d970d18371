"""What pretraining methods share: a net whose head does not learn, a target that follows it, rows of all ranks."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from ssl_lab.errors import UsageError
from ssl_lab.methods.base import Method
from ssl_lab.methods.pretraining.heads import Head
from ssl_lab.methods.ranks import cat_over_ranks, sum_over_ranks, world
from ssl_lab.nets import Net
from ssl_lab.schedule import Scalar
from ssl_lab.views import ViewFactory


class Pretraining(Method):
    """Base of the methods that learn the features of a net and leave its head as it is.

    ema: decay of the averaged weights; 0, the default, exports the plain net, as these papers do.
    """

    family = "pretraining"
    recipe = "recipes/pretrain.py"
    classifies = False

    def __init__(self, net: Net, ema: Scalar = 0.0) -> None:
        super().__init__(net, ema)
        self.net.head.requires_grad_(False)


def small_crops(count: int, view: ViewFactory) -> dict[str, ViewFactory]:
    """So many draws of a view, as crop_1, crop_2 and so on: multi-crop's views beside the two large ones."""
    if count < 0:
        raise UsageError(f"crops={count}: expected 0 or more")
    return {f"crop_{number + 1}": view for number in range(count)}


def crossed(targets: Sequence[Tensor], predictions: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    """Predictions of views and the targets of every other view, row by row; views of which there are targets come
    first. targets, predictions: [N, K] each; returns [pairs * N, K] twice."""
    pairs = [(view, other) for view in range(len(predictions)) for other in range(len(targets)) if other != view]
    return torch.cat([predictions[view] for view, _ in pairs]), torch.cat([targets[other] for _, other in pairs])


class Target(torch.nn.Module):
    """A copy of a net and its projector that follows them slowly and only makes targets.

    It is in train mode while its parent is: BatchNorm normalizes by the batch, and its running statistics are the
    target's own.
    """

    def __init__(self, net: Net, projector: Head) -> None:
        super().__init__()
        self.net = copy.deepcopy(net).requires_grad_(False)
        self.projector = copy.deepcopy(projector).requires_grad_(False)

    @torch.no_grad()
    def forward(self, view: Tensor) -> Tensor:
        """[B, dim]: the projections of a view, float [B, C, H, W]."""
        projections: Tensor = self.projector(self.net(view).features)
        return projections

    @torch.no_grad()
    def follow(self, net: Net, projector: Head, tau: float) -> None:
        """target <- tau * target + (1 - tau) * (net, projector); call it after the optimizer's step."""
        sources = [*net.parameters(), *projector.parameters()]
        torch._foreach_lerp_([*self.parameters()], [source.detach() for source in sources], 1 - tau)


def gather(rows: Tensor) -> Tensor:
    """[n, ...] -> [world * n, ...]: the rows of all ranks, with gradient to all of them.

    The gradient of a rank's rows is the sum of what all ranks' losses say of them. DDP's mean over ranks is then the
    gradient of the mean of the ranks' losses, which is the loss of the whole batch. All ranks must call it.
    """
    if world() == 1:
        return rows
    gathered: Tensor = _Gather.apply(rows)
    return gathered


def global_places(rows: Tensor) -> Tensor:
    """int64 [n]: where this rank's rows [n, ...] are among those that `gather` returns."""
    rank = dist.get_rank() if world() > 1 else 0
    return rank * len(rows) + torch.arange(len(rows), device=rows.device)


class _Gather(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, rows: Tensor) -> Tensor:
        return cat_over_ranks(rows)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        return sum_over_ranks(gradient.contiguous()).chunk(world())[dist.get_rank()]
