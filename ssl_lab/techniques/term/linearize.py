"""Nonlinear Advantage (Mehmeti-Goepel and Disselhoff 2022, arXiv 2211.17180): channel by channel, a net made linear."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import ClassVar

import torch
from torch import Tensor

from ssl_lab.batch import At, Batch, Loss
from ssl_lab.data import Pool
from ssl_lab.errors import UsageError
from ssl_lab.methods import Method
from ssl_lab.nets import Net
from ssl_lab.nets.slopes import slopes_of, with_slopes
from ssl_lab.schedule import Scalar
from ssl_lab.techniques.base import TermTechnique
from ssl_lab.techniques.weights.invariant import nets_of


class Linearize(TermTechnique):
    """max(x, 0) + a_c min(x, 0) for each rectifier and channel, a_c at first 0;    L + weight * sum |1 - a_c|^power

    A channel whose slope comes to 1 is linear, and stays as good as that: what is evaluated and exported, {net}+prelu,
    has slope 1 where |1 - a| < `near`. `analysis.effective_depth` says how many nonlinearities are left on a path;
    while training, `bent` is the share of channels that are. No argument turns it off: slopes learn.

    Of the paper the abstract was read, and a summary (slopes by channel, driven to 1 by a penalty on |1 - a|^p); the
    defaults and `near` are ours.

    Args:
        weight: of the penalty.
        power: of |1 - a|, above 0.
        near: how far from 1 a slope still counts as 1.

    >>> pool = sl.load("digits").split(labels=10)
    >>> method = sl.Supervised(sl.net("tiny_4", classes=10, style=pool.style))
    >>> term = sl.Linearize().around(method, pool, seed=0)
    >>> batch = sl.Feed(pool, term.views, 8, 0, seed=0)(sl.At(0, 100))
    >>> sorted(term(batch, sl.At(0, 100)).terms)
    ['labeled', 'linearize']
    """

    name = "linearize"
    paper = "Nonlinear Advantage: Trained Networks Might Not Be As Complex as You Think"
    arxiv = "2211.17180"
    serves = "size"
    excludes: ClassVar[Mapping[str, str]] = dict.fromkeys(
        ("gradmax", "svi", "reinit", "shrink_perturb", "layerwise_reinit", "perturbation_margin", "swa"),
        "it counts on rectifiers as they are")

    def __init__(self, weight: Scalar = 0.003, power: float = 0.5, near: float = 0.05) -> None:
        super().__init__()
        if power <= 0 or not 0 <= near < 1:
            raise UsageError(f"linearize: power={power}, near={near}; expected a positive power, and near from 0 to "
                             "below 1")
        self.weight, self.power, self.near = weight, power, near

    def check(self, method: Method, pool: Pool) -> None:
        with_slopes(copy.deepcopy(method.net), pool.style)

    def begin(self, pool: Pool, seed: int) -> None:
        for net in nets_of(self):
            with_slopes(net, pool.style)
        for slopes in slopes_of(self.ema.net):
            slopes.requires_grad_(False)

    def forward(self, batch: Batch, at: At) -> Loss:
        loss = super().forward(batch, at)
        slopes = torch.cat([*slopes_of(self.net)])
        loss.terms["linearize"] = at.value(self.weight) * bend(slopes, self.power).sum()
        loss.logs["bent"] = ((1 - slopes.detach()).abs() >= self.near).float().mean()
        return loss

    @torch.no_grad()
    def predictor(self) -> Net:
        net = copy.deepcopy(super().predictor())
        for slopes in slopes_of(net):
            slopes[(1 - slopes).abs() < self.near] = 1.0
        return net


def bend(slopes: Tensor, power: float) -> Tensor:
    """|1 - a|^power, whose gradient is bounded: that of the line through (0, 0) within 0.01 of 1."""
    gap, least = (1 - slopes).abs(), 0.01
    return torch.where(gap < least, gap * least ** (power - 1), gap.clamp(min=least) ** power)
