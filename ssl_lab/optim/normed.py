"""Muon on filters of a fixed length, as in speed-runs on CIFAR-10."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ssl_lab.optim.adaptive import matrix_groups
from ssl_lab.optim.spec import Optimizer
from ssl_lab.schedule import Scalar

QUINTIC = 3.4445, -4.7750, 2.0315
"""The coefficients of Muon's iteration (Jordan et al. 2024): quick for small singular values, which end near 1."""


@dataclass(frozen=True)
class MuonNormed(Optimizer):
    """Muon (Jordan et al. 2024) on filters of a fixed length, as in speed-runs on CIFAR-10 (`airbench94_muon`).

        m <- momentum m + g,    W <- sqrt(rows) W / ||W||_F,    W <- (1 - lr decay) W - lr NS(g + momentum m)

    for the weights of convolutions and hidden linear layers, as matrices [out, in * height * width]; NS are
    `iterations` of Newton and Schulz's, which make a matrix roughly orthogonal. Each step sets a matrix's length anew,
    as BatchNorm after it makes its scale meaningless. `beside`: the rate of the rest (biases, norms, the classifier's
    head), as a multiple of lr, by Adam.

    Attributes:
        momentum: share of the last step's direction that is kept, in [0, 1).
        iterations: of Newton and Schulz.
        beside: learning rate of the rest, as a multiple of lr.
        betas: of Adam, for the rest.

    >>> sl.optimizer("muon_normed(lr=0.24, iterations=5)", usual=sl.SGD()).iterations
    5
    """

    lr: Scalar = 0.03
    weight_decay: Scalar = 0.0
    momentum: float = 0.9
    iterations: int = 3
    beside: float = 1 / 16
    betas: tuple[float, float] = (0.85, 0.98)

    def build(self, module: nn.Module) -> torch.optim.Optimizer:
        return _MuonNormed(matrix_groups(module), self)


class _MuonNormed(torch.optim.Optimizer):
    def __init__(self, groups: Iterable[dict[str, Any]], spec: MuonNormed) -> None:
        super().__init__(groups, {"lr": 0.0, "weight_decay": 0.0, "matrices": False})
        self.spec = spec

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        for group in self.param_groups:
            weights = [w for w in group["params"] if w.grad is not None]
            if weights:
                (self._orthogonal if group["matrices"] else self._adam)(weights, group)

    def _orthogonal(self, weights: list[nn.Parameter], group: dict[str, Any]) -> None:
        for w in weights:
            momentum, state = self.spec.momentum, self.state[w]
            if not state:
                state["velocity"] = torch.zeros_like(w)
            m = state["velocity"].mul_(momentum).add_(w.grad)
            update = orthogonalized((w.grad + momentum * m).flatten(1), self.spec.iterations)
            w.mul_(len(w) ** 0.5 / w.norm().clamp(min=1e-12) * (1 - group["lr"] * group["weight_decay"]))
            w.add_(update.view(w.shape), alpha=-group["lr"])

    def _adam(self, weights: list[nn.Parameter], group: dict[str, Any]) -> None:
        (b1, b2), lr = self.spec.betas, group["lr"] * self.spec.beside
        for w in weights:
            state = self.state[w]
            if not state:
                state |= {"step": 0, "m": torch.zeros_like(w), "v": torch.zeros_like(w)}
            state["step"] += 1
            state["m"].lerp_(w.grad, 1 - b1)
            state["v"].lerp_(w.grad.square(), 1 - b2)  # type: ignore[union-attr]
            root = (state["v"] / (1 - b2 ** state["step"])).sqrt_()
            w.mul_(1 - lr * group["weight_decay"])
            w.addcdiv_(state["m"], root.add_(1e-8), value=-lr / (1 - b1 ** state["step"]))


def orthogonalized(matrix: Tensor, iterations: int) -> Tensor:
    """Roughly U V' of a matrix's U S V', float [n, m]: X <- a X + b (X X') X + c (X X')^2 X, from X = matrix / length.

    In bfloat16, as Muon has it, unless it is of double precision; singular values end between 0.7 and 1.2 where they
    were not tiny.
    """
    a, b, c = QUINTIC
    x = matrix if matrix.dtype == torch.float64 else matrix.bfloat16()
    x = x / (x.norm() + 1e-7)
    tall = len(x) > x.shape[1]
    x = x.T if tall else x
    for _ in range(iterations):
        gram = x @ x.T
        x = torch.addmm(x, torch.addmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return (x.T if tall else x).to(matrix.dtype)
