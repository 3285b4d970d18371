"""Muon, for matrices: torch's scale of its steps, and that of speed-runs on CIFAR-10, on filters of a fixed length."""

from __future__ import annotations

import functools
from collections.abc import Iterable, Sequence
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
            if learning := [w for w in group["params"] if w.grad is not None]:
                slopes = [w.grad for w in learning]
                (self._orthogonal if group["matrices"] else self._adam)(learning, slopes, group)

    def _orthogonal(self, w: list[Tensor], g: list[Tensor], group: dict[str, Any]) -> None:
        lr, m = group["lr"], self._kept(w, "velocity")
        torch._foreach_lerp_(m, g, 1 - self.momentum)
        updates = orthogonal(torch._foreach_lerp(g, m, self.momentum), iterations=5)
        torch._foreach_mul_(w, 1 - lr * group["weight_decay"])
        for each, update in zip(w, updates, strict=True):
            each.add_(update, alpha=-0.2 * max(update.flatten(1).shape) ** 0.5 * lr)

    def _kept(self, w: list[Tensor], name: str) -> list[Tensor]:
        """The averages of this name, one for each parameter, which begin as zeros."""
        for each in w:
            if name not in self.state[each]:
                self.state[each][name] = torch.zeros_like(each)
        return [self.state[each][name] for each in w]

    def _adam(self, w: list[Tensor], g: list[Tensor], group: dict[str, Any]) -> None:
        (b1, b2), lr, m, v = self.betas, group["lr"] * self.beside, self._kept(w, "m"), self._kept(w, "v")
        steps = [self.state[each].get("step", 0) + 1 for each in w]
        for each, step in zip(w, steps, strict=True):
            self.state[each]["step"] = step
        torch._foreach_lerp_(m, g, 1 - b1)
        torch._foreach_lerp_(v, torch._foreach_mul(g, g), 1 - b2)
        root = torch._foreach_div(v, [1 - b2**step for step in steps])
        torch._foreach_sqrt_(root)
        torch._foreach_add_(root, 1e-8)
        torch._foreach_mul_(w, 1 - lr * group["weight_decay"])
        torch._foreach_addcdiv_(w, m, root, [-lr / (1 - b1**step) for step in steps])


class _MuonNormed(_Muon):
    def __init__(self, groups: Iterable[dict[str, Any]], spec: MuonNormed) -> None:
        super().__init__(groups, spec.momentum, spec.beside, spec.betas)
        self.iterations = spec.iterations

    def _orthogonal(self, w: list[Tensor], g: list[Tensor], group: dict[str, Any]) -> None:
        m = self._kept(w, "velocity")
        torch._foreach_mul_(m, self.momentum)
        torch._foreach_add_(m, g)
        updates = orthogonal(torch._foreach_add(g, torch._foreach_mul(m, self.momentum)), self.iterations)
        lengths = torch._foreach_norm(w)
        torch._foreach_clamp_min_(lengths, 1e-12)
        share = 1 - group["lr"] * group["weight_decay"]
        torch._foreach_mul_(w, [len(each) ** 0.5 / length * share for each, length in zip(w, lengths, strict=True)])
        torch._foreach_add_(w, updates, alpha=-group["lr"])


def orthogonal(weights: Sequence[Tensor], iterations: int) -> list[Tensor]:
    """`orthogonalized` of each as a matrix, in its own shape."""
    return [orthogonalized(each.flatten(1), iterations).view(each.shape) for each in weights]


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
