"""Muon, for matrices: torch's scale of its steps, and that of speed-runs on CIFAR-10, on filters of a fixed length."""

from __future__ import annotations

import functools
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ssl_lab.machine import TYPES, resolve_precision
from ssl_lab.optim.spec import Optimizer, parameter_groups
from ssl_lab.schedule import Scalar

QUINTIC = 3.4445, -4.7750, 2.0315
"""The coefficients of Muon's iteration (Jordan et al. 2024): quick for small singular values, which end near 1."""


@dataclass(frozen=True)
class Muon(Optimizer):
    """Muon (Jordan et al. 2024), torch's: momentum whose matrices are made orthogonal, by Newton and Schulz.

        m <- momentum m + (1 - momentum) g,    u = (1 - momentum) g + momentum m
        W <- (1 - lr decay) W - 0.2 sqrt(max(rows, columns)) lr NS(u)

    for the weights of hidden layers, convolutions as matrices [out, in * height * width]; NS are five iterations of
    Newton and Schulz's. The size of a step is matched to AdamW's (Liu et al. 2025, arXiv 2502.16982), so that its rates
    and decays fit. `beside` is for the rest (biases, norms and the classifier's head), by AdamW with as many times the
    learning rate.

    Attributes:
        momentum: share of the last step's direction that is kept, in [0, 1).
        beside: learning rate of the rest, as a multiple of lr.

    >>> optimizer = sl.optim.Muon(lr=0.01).build(torch.nn.Sequential(torch.nn.Linear(8, 8), torch.nn.Linear(8, 2)))
    >>> len(optimizer.param_groups)  # matrices by Muon, the rest by AdamW
    3
    """

    lr: Scalar = 5e-3
    weight_decay: Scalar = 1e-2
    momentum: float = 0.95
    beside: float = 1.0

    def build(self, module: nn.Module) -> torch.optim.Optimizer:
        return _Muon(matrix_groups(module), self.momentum, self.beside, betas=(0.9, 0.999))


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


def matrix_groups(module: nn.Module) -> list[dict[str, Any]]:
    """Parameter groups of Muon: hidden weights, with `matrices` set; the classifier's; what has no decay."""
    heads = {id(p) for name, p in module.named_parameters() if "head" in name.split(".")}
    weights, others = parameter_groups(module)
    matrices = [p for p in weights["params"] if id(p) not in heads]
    rest = [p for p in weights["params"] if id(p) in heads]
    return [{"params": matrices, "decay": True, "matrices": True}, {"params": rest, "decay": True}, others]


class _Muon(torch.optim.Optimizer):
    """Muon over weights as matrices, and AdamW over the others."""

    def __init__(self, groups: Iterable[dict[str, Any]], momentum: float, beside: float,
                 betas: tuple[float, float]) -> None:
        super().__init__(groups, {"lr": 0.0, "weight_decay": 0.0, "matrices": False})
        self.momentum, self.beside, self.betas = momentum, beside, betas

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        for group in self.param_groups:
            for w in (w for w in group["params"] if w.grad is not None):
                (self._orthogonal if group["matrices"] else self._adam)(w, w.grad, group)

    def _orthogonal(self, w: nn.Parameter, g: Tensor, group: dict[str, Any]) -> None:
        lr, m = group["lr"], self._velocity(w).lerp_(g, 1 - self.momentum)
        update = orthogonalized(g.lerp(m, self.momentum).flatten(1), iterations=5)
        w.mul_(1 - lr * group["weight_decay"])
        w.add_(update.view(w.shape), alpha=-0.2 * max(update.shape) ** 0.5 * lr)

    def _velocity(self, w: nn.Parameter) -> Tensor:
        if not self.state[w]:
            self.state[w]["velocity"] = torch.zeros_like(w)
        velocity: Tensor = self.state[w]["velocity"]
        return velocity

    def _adam(self, w: nn.Parameter, g: Tensor, group: dict[str, Any]) -> None:
        (b1, b2), lr, state = self.betas, group["lr"] * self.beside, self.state[w]
        if not state:
            state |= {"step": 0, "m": torch.zeros_like(w), "v": torch.zeros_like(w)}
        state["step"] += 1
        state["m"].lerp_(g, 1 - b1)
        state["v"].lerp_(g.square(), 1 - b2)
        root = (state["v"] / (1 - b2 ** state["step"])).sqrt_()
        w.mul_(1 - lr * group["weight_decay"])
        w.addcdiv_(state["m"], root.add_(1e-8), value=-lr / (1 - b1 ** state["step"]))


class _MuonNormed(_Muon):
    def __init__(self, groups: Iterable[dict[str, Any]], spec: MuonNormed) -> None:
        super().__init__(groups, spec.momentum, spec.beside, spec.betas)
        self.iterations = spec.iterations

    def _orthogonal(self, w: nn.Parameter, g: Tensor, group: dict[str, Any]) -> None:
        m = self._velocity(w).mul_(self.momentum).add_(g)
        update = orthogonalized((g + self.momentum * m).flatten(1), self.iterations)
        w.mul_(len(w) ** 0.5 / w.norm().clamp(min=1e-12) * (1 - group["lr"] * group["weight_decay"]))
        w.add_(update.view(w.shape), alpha=-group["lr"])


def orthogonalized(matrix: Tensor, iterations: int) -> Tensor:
    """Roughly U V' of a matrix's U S V', float [n, m]: X <- a X + b (X X') X + c (X X')^2 X, from X = matrix / length.

    In bfloat16, as Muon has it, where that is faster here, unless it is of double precision; singular values end
    between 0.7 and 1.2 where they were not tiny.
    """
    a, b, c = QUINTIC
    x = matrix if matrix.dtype == torch.float64 else matrix.to(_quickest(matrix.device))
    x = x / (x.norm() + 1e-7)
    tall = len(x) > x.shape[1]
    x = x.T if tall else x
    for _ in range(iterations):
        gram = x @ x.T
        x = torch.addmm(x, torch.addmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return (x.T if tall else x).to(matrix.dtype)


@functools.cache
def _quickest(device: torch.device) -> torch.dtype:
    """What a run that leaves it to us multiplies in, but never fp16, whose range is too small for the iteration: a CPU
    without bf16 is hundreds of times slower in it."""
    name, _ = resolve_precision(device, "auto")
    return torch.float32 if name == "fp16" else TYPES[name]
