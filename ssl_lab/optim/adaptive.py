"""Optimizers after Adam: RAdam, Padam, and Muon for matrices."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from ssl_lab.optim.spec import Optimizer, parameter_groups
from ssl_lab.schedule import Scalar


@dataclass(frozen=True)
class RAdam(Optimizer):
    """Rectified Adam (Liu et al. 2020, arXiv 1908.03265), torch's, with decoupled weight decay.

    While too few squared gradients were seen for their mean to be reliable, it is SGD with momentum; then Adam's step
    times a factor that rises to 1. It needs no warm-up.

    Attributes:
        betas: b1 and b2, decay of the means of g and g^2.

    >>> sl.optim.RAdam(lr=0.002).build(torch.nn.Linear(2, 2)).defaults["decoupled_weight_decay"]
    True
    """

    lr: Scalar = 0.02
    weight_decay: Scalar = 1e-2
    betas: tuple[float, float] = (0.9, 0.999)

    def build(self, module: nn.Module) -> torch.optim.Optimizer:
        return torch.optim.RAdam(parameter_groups(module), lr=0.0, betas=(self.betas[0], self.betas[1]),
                                 decoupled_weight_decay=True, foreach=True)


@dataclass(frozen=True)
class Padam(Optimizer):
    """Padam (Chen et al. 2020, arXiv 1806.06763): Adam whose denominator has a power between those of SGD and Adam.

        m <- b1 m + (1 - b1) g,    v <- b2 v + (1 - b2) g^2,    u <- max(u, v)
        w <- (1 - lr decay) w - lr sqrt(1 - b2^t) / (1 - b1^t) m / (sqrt(u) + 1e-8)^(2 power)

    With SWA it is GadamX. Checked against the authors' code (uclaml/Padam), which has the decay in the gradient;
    decoupled it is as in Granziol et al. 2020.

    Attributes:
        betas: b1 and b2, decay of the means of g and g^2.
        power: 1/2 is AMSGrad, 0 is SGD with momentum.

    >>> sl.optimizer("padam(power=0.25)", usual=sl.SGD(lr=0.05)).power
    0.25
    """

    lr: Scalar = 0.3
    weight_decay: Scalar = 2.5e-4
    betas: tuple[float, float] = (0.9, 0.999)
    power: float = 0.125

    def build(self, module: nn.Module) -> torch.optim.Optimizer:
        return _Padam(parameter_groups(module), (self.betas[0], self.betas[1]), self.power)


@dataclass(frozen=True)
class Muon(Optimizer):
    """Muon (Jordan et al. 2024), torch's: momentum whose matrices are made orthogonal, by Newton and Schulz.

    It has the weights of hidden layers, convolutions as matrices [out, in * height * width]; `beside` is for the rest:
    biases, norms and the classifier's head, by AdamW with as many times the learning rate. The step's size is matched
    to AdamW's (0.2 sqrt(max(rows, columns)), Liu et al. 2025, arXiv 2502.16982), so that its rates and decays fit.

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
        return _Muon(matrix_groups(module), self.momentum, self.beside)


def matrix_groups(module: nn.Module) -> list[dict[str, Any]]:
    """Parameter groups of Muon: hidden weights, with `matrices` set; the classifier's; what has no decay."""
    heads = {id(p) for name, p in module.named_parameters() if "head" in name.split(".")}
    weights, others = parameter_groups(module)
    matrices = [p for p in weights["params"] if id(p) not in heads]
    rest = [p for p in weights["params"] if id(p) in heads]
    return [{"params": matrices, "decay": True, "matrices": True}, {"params": rest, "decay": True}, others]


class _Padam(torch.optim.Optimizer):
    def __init__(self, groups: Iterable[dict[str, Any]], betas: tuple[float, float], power: float) -> None:
        super().__init__(groups, {"lr": 0.0, "weight_decay": 0.0, "betas": betas, "power": power})

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        for group in self.param_groups:
            b1, b2 = group["betas"]
            for w in (w for w in group["params"] if w.grad is not None):
                state = self.state[w]
                if not state:
                    state |= {"step": 0, **{name: torch.zeros_like(w) for name in ("m", "v", "most")}}
                state["step"] += 1
                m, v, most = state["m"], state["v"], state["most"]
                m.lerp_(w.grad, 1 - b1)
                v.lerp_(w.grad.square(), 1 - b2)
                torch.maximum(most, v, out=most)
                rate = group["lr"] * (1 - b2 ** state["step"]) ** 0.5 / (1 - b1 ** state["step"])
                w.mul_(1 - group["lr"] * group["weight_decay"])
                w.addcdiv_(m, (most.sqrt() + 1e-8) ** (2 * group["power"]), value=-rate)


class _Muon(torch.optim.Optimizer):
    """torch's Muon over weights as matrices, and AdamW over the others."""

    def __init__(self, groups: Iterable[dict[str, Any]], momentum: float, beside: float) -> None:
        super().__init__(groups, {"lr": 0.0, "weight_decay": 0.0, "matrices": False})
        self.momentum, self.beside = momentum, beside

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        for group in self.param_groups:
            for w in (w for w in group["params"] if w.grad is not None):
                (self._orthogonal if group["matrices"] else self._adam)(w, group)

    def _orthogonal(self, w: nn.Parameter, group: dict[str, Any]) -> None:
        state = self.state[w]
        matrix = nn.Parameter(w.detach().reshape(len(w), -1).clone())
        matrix.grad = w.grad.reshape(len(w), -1)  # type: ignore[union-attr]
        one = torch.optim.Muon([matrix], lr=group["lr"], weight_decay=group["weight_decay"], momentum=self.momentum,
                               adjust_lr_fn="match_rms_adamw")
        if state:
            one.state[matrix]["momentum_buffer"] = state["velocity"].reshape(matrix.shape)
        one.step()  # type: ignore[no-untyped-call]
        state["velocity"] = one.state[matrix]["momentum_buffer"].reshape(w.shape)
        w.copy_(matrix.reshape(w.shape))

    def _adam(self, w: nn.Parameter, group: dict[str, Any]) -> None:
        state, lr = self.state[w], group["lr"] * self.beside
        if not state:
            state |= {"step": 0, "m": torch.zeros_like(w), "v": torch.zeros_like(w)}
        state["step"] += 1
        state["m"].lerp_(w.grad, 0.1)
        state["v"].lerp_(w.grad.square(), 0.001)  # type: ignore[union-attr]
        root = (state["v"] / (1 - 0.999 ** state["step"])).sqrt()
        w.mul_(1 - lr * group["weight_decay"])
        w.addcdiv_(state["m"], root + 1e-8, value=-lr / (1 - 0.9 ** state["step"]))
