"""Optimisers as specs: what to build once the method's parameters are known. Any scalar may be a schedule."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from ssl_lab.batch import At
from ssl_lab.schedule import Scalar


def parameter_groups(module: nn.Module) -> list[dict[str, Any]]:
    """Two groups of the parameters that learn: weights (2 or more dimensions), and biases and norms.

    The first is decayed, the second never is; the groups say so under "decay".

    Args:
        module: a net or a method.

    >>> weights, others = sl.optim.parameter_groups(sl.net("tiny_4"))
    >>> len(weights["params"]), weights["decay"], len(others["params"]), others["decay"]
    (10, True, 19, False)
    """
    learning = [p for p in module.parameters() if p.requires_grad]
    return [
        {"params": [p for p in learning if p.ndim >= 2], "decay": True},
        {"params": [p for p in learning if p.ndim < 2], "decay": False},
    ]


def kernels(module: nn.Module) -> dict[str, bool]:
    """What torch's optimizers take: one kernel for all of a step on a GPU, elsewhere one call for all tensors."""
    return {"fused" if all(p.device.type == "cuda" for p in module.parameters()) else "foreach": True}


@dataclass(frozen=True)
class Optimizer:
    """lr and weight_decay are read anew before each step; see SGD and AdamW.

    Attributes:
        lr: the learning rate.
        weight_decay: how strongly weights are drawn to 0; 0 for biases and norms (see `parameter_groups`).

    >>> spec = sl.SGD(lr=sl.schedule.linear(0.1, 0.0), weight_decay=5e-4)
    >>> optimizer = spec.build(sl.net("tiny_4"))
    >>> round(spec.set(optimizer, sl.At(step=25, total=100)), 4)
    0.075
    >>> [group["weight_decay"] for group in optimizer.param_groups]  # of weights, and of biases and norms
    [0.0005, 0.0]
    """

    lr: Scalar
    weight_decay: Scalar = 0.0

    def build(self, module: nn.Module) -> torch.optim.Optimizer:
        """The torch optimizer over the module's learning parameters."""
        raise NotImplementedError

    def set(self, optimizer: torch.optim.Optimizer, at: At) -> float:
        """Sets learning rate and weight decay for the step at hand; returns the learning rate."""
        lr, weight_decay = at.value(self.lr), at.value(self.weight_decay)
        for group in optimizer.param_groups:
            group["lr"] = lr
            group["weight_decay"] = weight_decay if group["decay"] else 0.0
        return lr


@dataclass(frozen=True)
class SGD(Optimizer):
    """SGD with Nesterov momentum; weight decay is added to the gradient (L2).

    Attributes:
        momentum: in [0, 1).
        nesterov: whether a step looks ahead by it.

    >>> sl.Trainer(steps=100, optimizer=sl.SGD(lr=sl.schedule.cosine(0.1))).optimizer.lr(0.5)
    0.05
    """

    lr: Scalar = 0.03
    weight_decay: Scalar = 5e-4
    momentum: float = 0.9
    nesterov: bool = True

    def build(self, module: nn.Module) -> torch.optim.Optimizer:
        return torch.optim.SGD(parameter_groups(module), lr=0.0, momentum=self.momentum, nesterov=self.nesterov,
                               **kernels(module))


@dataclass(frozen=True)
class AdamW(Optimizer):
    """Adam with decoupled weight decay (Loshchilov and Hutter 2017, arXiv 1711.05101).

    Attributes:
        betas: decay of the means of the gradient and of its square.

    >>> [group["weight_decay"] for group in sl.AdamW().build(sl.net("tiny_4")).param_groups]  # set before each step
    [0.01, 0.01]
    """

    lr: Scalar = 3e-3
    weight_decay: Scalar = 1e-2
    betas: tuple[float, float] = (0.9, 0.999)

    def build(self, module: nn.Module) -> torch.optim.Optimizer:
        return torch.optim.AdamW(parameter_groups(module), lr=0.0, betas=self.betas, **kernels(module))
