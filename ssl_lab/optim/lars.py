"""LARS (You et al. 2017, arXiv 1708.03888): each weight tensor moves in proportion to its own length."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from ssl_lab.optim.spec import Optimizer, parameter_groups
from ssl_lab.schedule import Scalar


@dataclass(frozen=True)
class LARS(Optimizer):
    """SGD with momentum in which the gradient of each weight tensor is scaled to its length; for large batches (You et
    al. 2017, arXiv 1708.03888).

        d = g + weight_decay * w,    v <- momentum * v + eta * ||w|| / ||d|| * d,    w <- w - lr * v

    and for biases and BatchNorm's parameters v <- momentum * v + g. The ratio, of the norm of the sum, is that of the
    codes of SimCLR, BYOL, Barlow Twins and MoCo v3; the paper and lightly have ||g|| + weight_decay * ||w||. It is 1
    where w or d is 0.

    Attributes:
        momentum: share of the last step's direction that is kept, in [0, 1).
        eta: trust: a step's length as a share of the tensor's.

    >>> layer, spec = torch.nn.Linear(4, 4, bias=False), sl.optim.LARS(lr=1.0, weight_decay=0.0, eta=0.001)
    >>> before, optimizer = layer.weight.detach().clone(), spec.build(layer)
    >>> rate = spec.set(optimizer, sl.At(0, 100))
    >>> layer(torch.ones(1, 4)).square().sum().backward()
    >>> optimizer.step()
    >>> round(((layer.weight - before).norm() / before.norm()).item(), 6)  # whatever the gradient's length
    0.001
    """

    lr: Scalar = 3.0
    weight_decay: Scalar = 1e-6
    momentum: float = 0.9
    eta: float = 0.001

    def build(self, module: nn.Module) -> torch.optim.Optimizer:
        return _Lars(parameter_groups(module), self.momentum, self.eta)


class _Lars(torch.optim.Optimizer):
    """The update; `decay` in a group says whether its tensors are decayed and scaled. Nothing is read back."""

    def __init__(self, groups: Iterable[dict[str, Any]], momentum: float, eta: float) -> None:
        super().__init__(groups, {"lr": 0.0, "weight_decay": 0.0, "momentum": momentum, "eta": eta})

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        for group in self.param_groups:
            weights = [p for p in group["params"] if p.grad is not None]
            if not weights:
                continue
            updates = [p.grad for p in weights]
            if group["decay"]:
                updates = list(torch._foreach_add(updates, weights, alpha=group["weight_decay"]))
                lengths, sizes = (torch.stack(torch._foreach_norm(tensors)) for tensors in (weights, updates))
                scale = torch.where((lengths > 0) & (sizes > 0), group["eta"] * lengths / sizes, 1.0)
                torch._foreach_mul_(updates, list(scale.unbind()))
            velocities = [self._velocity(p) for p in weights]
            torch._foreach_mul_(velocities, group["momentum"])
            torch._foreach_add_(velocities, updates)
            torch._foreach_add_(weights, velocities, alpha=-group["lr"])

    def _velocity(self, weight: torch.Tensor) -> torch.Tensor:
        state = self.state[weight]
        if "velocity" not in state:
            state["velocity"] = torch.zeros_like(weight)
        velocity: torch.Tensor = state["velocity"]
        return velocity
