"""Mini-block Fisher (Bahamou et al. 2022, arXiv 2202.04124): many small blocks of the empirical Fisher, inverted."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ssl_lab.optim.spec import Optimizer, parameter_groups
from ssl_lab.schedule import Scalar


@dataclass(frozen=True)
class MiniBlockFisher(Optimizer):
    """Mini-block Fisher (Bahamou et al. 2022, arXiv 2202.04124): many small blocks of the Fisher matrix, inverted.

    w <- (1 - lr decay) w - lr (G + damping I)^-1 m,   G <- b G + (1 - b) g g',   m <- momentum m + (1 - momentum) g

    for each block by itself: in a convolution the kernel of each pair of an output and an input channel; in a linear
    layer the weights of each output, whose G is the mean over outputs; else each number, with G of size 1. G is that of
    the batch's gradient. Its inverse is renewed every so many steps; b = 1 - forgets.

    From the paper's abstract, and from memory for the blocks of linear layers; no code was read, so claim no fidelity
    in detail.

    Attributes:
        momentum: share of the last step's direction that is kept, in [0, 1).
        forgets: 1 - b.
        damping: added to the diagonal of G.
        every: steps between two inverses.

    >>> sl.optimizer("mini_block_fisher(lr=0.01, every=20)", usual=sl.SGD()).every
    20
    """

    lr: Scalar = 1e-3
    weight_decay: Scalar = 1e-2
    momentum: float = 0.9
    forgets: float = 0.05
    damping: float = 1e-3
    every: int = 10

    def build(self, module: nn.Module) -> torch.optim.Optimizer:
        return _MiniBlockFisher(parameter_groups(module), self)


class _MiniBlockFisher(torch.optim.Optimizer):
    def __init__(self, groups: Iterable[dict[str, Any]], spec: MiniBlockFisher) -> None:
        super().__init__(groups, {"lr": 0.0, "weight_decay": 0.0})
        self.spec = spec

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        spec = self.spec
        for group in self.param_groups:
            for w in (w for w in group["params"] if w.grad is not None):
                blocks, state = as_blocks(w.grad), self.state[w]
                square = outer(blocks, shared=w.ndim == 2)
                if not state:
                    state |= {"step": 0, "momentum": torch.zeros_like(w), "fisher": torch.zeros_like(square)}
                state["momentum"].lerp_(w.grad, 1 - spec.momentum)
                state["fisher"].lerp_(square, spec.forgets)
                if state["step"] % spec.every == 0:
                    eye = torch.eye(blocks.shape[-1], device=w.device, dtype=w.dtype)
                    state["inverse"] = torch.linalg.inv(state["fisher"] + spec.damping * eye)
                state["step"] += 1
                ahead = (state["inverse"] @ as_blocks(state["momentum"]).unsqueeze(-1)).view(w.shape)
                w.mul_(1 - group["lr"] * group["weight_decay"]).sub_(group["lr"] * ahead)


def as_blocks(g: Tensor) -> Tensor:
    """[blocks, size]: kernels of a convolution, rows of a matrix, else single numbers."""
    return g.flatten(2).flatten(0, 1) if g.ndim > 2 else g if g.ndim == 2 else g.reshape(-1, 1)


def outer(blocks: Tensor, shared: bool) -> Tensor:
    """[blocks, size, size], of each block; or [size, size], their mean."""
    if shared:
        return blocks.T @ blocks / len(blocks)
    return blocks.unsqueeze(2) * blocks.unsqueeze(1)
