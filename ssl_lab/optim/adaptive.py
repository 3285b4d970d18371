"""Optimizers after Adam: RAdam and Padam."""

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
