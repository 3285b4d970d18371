"""KOALA (Davtyan et al. 2022, arXiv 2107.03331): a Kalman filter of the weights, whose observation is the loss."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ssl_lab.optim.spec import Optimizer, parameter_groups
from ssl_lab.schedule import Scalar

LEAST = 1e-9  # norm of a gradient below which a tensor stays


@dataclass(frozen=True)
class KOALA(Optimizer):
    """KOALA-V (Davtyan et al. 2022, arXiv 2107.03331): one Kalman filter for all weights, which observes the loss.

    For each tensor, with g its gradient with decay and l = L + decay / 2 ||w||^2:

        s <- s + q,    R <- 0.9 R + 0.1 L^2,    S = s ||g||^2 + R,    w <- w - lr (l s / S) g
        s <- s - s^2 max over tensors of ||g||^2 / S

    one s, the variance of every weight, for all tensors. L is the mean loss over ranks and micro-batches, of the last
    pass of a step.

    Checked against the authors' code (Araachie/koala), whose R has the mean of squared losses of single images, which
    our loop does not know, and whose direction leaves the decay out of g.

    Attributes:
        sigma: s at the start.
        r: R, if it is to stay as it is.
        q: what s gains in each step.

    >>> sl.optimizer("koala(q=0.5)", usual=sl.SGD()).lr
    0.3
    """

    lr: Scalar = 0.3
    weight_decay: Scalar = 5e-4
    sigma: float = 1.0
    q: float = 1.0
    r: float | None = None

    def build(self, module: nn.Module) -> torch.optim.Optimizer:
        return _Koala(parameter_groups(module), {"s": self.sigma}, self.q, self.r)


@dataclass(frozen=True)
class KOALAM(Optimizer):
    """KOALA-M (Davtyan et al. 2022, arXiv 2107.03331): the filter's state is a weight and its velocity.

    P [2, 2] is their covariance, for all tensors:

        S = P_00 ||g||^2 + R,    w <- w - lr l P_00 / S g,    v <- v - lr l P_10 / S g,    P <- P - P diag(h, 0) P'

    with h = max over tensors of ||g||^2 / S, then the prediction w <- w + v, v <- momentum v, and P <- F P F' + diag(q,
    qv), F = [[1, 1], [0, momentum]]. The net holds the predicted weights. l and R are those of KOALA.

    Checked against the authors' code (Araachie/koala), which also estimates q from how far weights move.

    Attributes:
        momentum: share of the last step's direction that is kept, in [0, 1).
        q, qv: what the variances of weight and velocity gain in each step.
        r: R, if it is to stay as it is.
        sigma, sigma_v: the diagonal of P at the start.

    >>> sl.optimizer("koala_m(momentum=0.8, lr=1)", usual=sl.SGD()).momentum
    0.8
    """

    lr: Scalar = 0.3
    weight_decay: Scalar = 5e-4
    momentum: float = 0.9
    sigma: float = 0.1
    sigma_v: float = 0.1
    q: float = 0.01
    qv: float = 0.01
    r: float | None = None

    def build(self, module: nn.Module) -> torch.optim.Optimizer:
        return _KoalaM(parameter_groups(module), self)


class _Kalman(torch.optim.Optimizer):
    """What both share: the loss, which `observe` is told, and a state for all tensors, kept in the first group."""

    def __init__(self, groups: Iterable[dict[str, Any]], r: float | None, **state: Any) -> None:
        super().__init__(groups, {"lr": 0.0, "weight_decay": 0.0})
        self.fixed = r
        self.loss = torch.ones(())
        self.param_groups[0]["filter"] = {"R": torch.tensor(1.0 if r is None else r), **state}

    def observe(self, loss: Tensor) -> None:
        """The loss that the gradients are of."""
        self.loss = loss.detach().float()

    def filter(self) -> dict[str, Tensor]:
        """The common state, on the device of the loss, R with this step's loss."""
        common = {name: value.to(self.loss.device) for name, value in self.param_groups[0]["filter"].items()}
        if self.fixed is None:
            common["R"] = 0.9 * common["R"] + 0.1 * self.loss.square()
        self.param_groups[0]["filter"] = common
        return common

    def tensors(self) -> Iterable[tuple[nn.Parameter, Tensor, Tensor, Tensor, float]]:
        """Each tensor, its gradient with decay, that one's squared norm (0 to stay), its loss and learning rate."""
        for group in self.param_groups:
            for w in (w for w in group["params"] if w.grad is not None):
                decay = group["weight_decay"]
                g = w.grad + decay * w
                square = torch.where(w.grad.norm() < LEAST, 0.0, g.square().sum())
                yield w, g * (square > 0), square, self.loss + decay / 2 * w.square().sum(), group["lr"]


class _Koala(_Kalman):
    def __init__(self, groups: Iterable[dict[str, Any]], state: dict[str, float], q: float, r: float | None) -> None:
        super().__init__(groups, r, **{name: torch.tensor(value) for name, value in state.items()})
        self.q = q

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        common = self.filter()
        s, most = common["s"] + self.q, torch.zeros_like(self.loss)
        for w, g, square, loss, lr in self.tensors():
            whole = s * square + common["R"]
            w.sub_(lr * loss * s / whole * g)
            most = torch.maximum(most, square / whole)
        common["s"] = s - s.square() * most


class _KoalaM(_Kalman):
    def __init__(self, groups: Iterable[dict[str, Any]], spec: KOALAM) -> None:
        self.moves = torch.tensor([[1.0, 1.0], [0.0, spec.momentum]])
        self.noise = torch.diag(torch.tensor([spec.q, spec.qv]))
        begun = self.moves @ torch.diag(torch.tensor([spec.sigma, spec.sigma_v])) @ self.moves.T + self.noise
        super().__init__(groups, spec.r, P=begun)

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        common = self.filter()
        p, most, momentum = common["P"], torch.zeros_like(self.loss), float(self.moves[1, 1])
        for w, g, square, loss, lr in self.tensors():
            state = self.state[w]
            if not state:
                state["velocity"] = torch.zeros_like(w)
            whole = p[0, 0] * square + common["R"]
            w.sub_(lr * loss * p[0, 0] / whole * g)
            state["velocity"].sub_(lr * loss * p[1, 0] / whole * g)
            w.add_(state["velocity"])
            state["velocity"].mul_(momentum)
            most = torch.maximum(most, square / whole)
        p = p - most * torch.outer(p[:, 0], p[:, 0])
        moves, noise = self.moves.to(p.device), self.noise.to(p.device)
        common["P"] = moves @ p @ moves.T + noise
