"""SCL (Tang et al. 2022, arXiv 2201.05020): which weights there are is learned together with their values."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import ClassVar

import torch
from torch import Tensor, nn

from ssl_lab.batch import At, Batch, Loss
from ssl_lab.data import Pool
from ssl_lab.errors import UsageError
from ssl_lab.methods import Method
from ssl_lab.nets import Net
from ssl_lab.nets.parametrized import baked, layers_of, reparametrize
from ssl_lab.schedule import Scalar
from ssl_lab.techniques.base import TermTechnique
from ssl_lab.techniques.weights.invariant import nets_of

REWRITES = dict.fromkeys(
    ("reinit", "shrink_perturb", "layerwise_reinit", "gradmax", "weight_norm", "sphere", "weight_rescaling", "swa",
     "rigl", "lottery", "lookahead"),
    "both say what the net's weights are")


class SCL(TermTechnique):
    """w_eff = w H(m),    L + weight * sum H(m),    dH/dm := 1

    H(m) = 1 where m > 0, else 0; m, one number for each weight of convolutions and linear layers, starts at `start` and
    learns by the run's optimizer. So m has the gradient dL/dw_eff w + weight: a weight that the task does not ask for
    is masked after its m has come down from `start`, and comes back if the gradient asks for it.

    Only the abstract and a summary were read: the identity H' = 1 and the penalty are the paper's, `normalize`, `start`
    and the defaults are ours.

    Unmasked weights are what is evaluated and exported; zeros in it make no kernel faster. No argument turns it off.

    Args:
        weight: of the penalty on unmasked weights.
        start: the first m, above 0.
        normalize: of each output feature, the task's part of that gradient is divided by its largest entry:
            `weight` is then the share of it below which a weight goes. A tenth leaves 0.4% of a trained net's weights
            after 1,000 steps, and half of its accuracy; a hundredth 12%, and all of it (MNIST, one seed).

    >>> pool = sl.load("digits").split(labels=10)
    >>> method = sl.Supervised(sl.net("tiny_4", classes=10, style=pool.style))
    >>> term = sl.SCL(weight=0.1).around(method, pool, seed=0)
    >>> batch = sl.Feed(pool, term.views, 8, 0, seed=0)(sl.At(0, 100))
    >>> sorted(term(batch, sl.At(0, 100)).terms)
    ['gates', 'labeled']
    """

    name = "scl"
    paper = "Automatic Sparse Connectivity Learning for Neural Networks"
    arxiv = "2201.05020"
    serves = "size"
    excludes: ClassVar[Mapping[str, str]] = REWRITES

    def __init__(self, weight: Scalar = 0.01, start: float = 0.5, normalize: bool = True) -> None:
        super().__init__()
        if start <= 0:
            raise UsageError(f"scl: start={start}; expected a positive number, so that all weights are there at first")
        self.weight, self.start, self.normalize = weight, start, normalize

    def check(self, method: Method, pool: Pool) -> None:
        check_plain(self.name, method.net)

    def begin(self, pool: Pool, seed: int) -> None:
        reparametrize(nets_of(self), lambda _, layer: Gates(layer.get_parameter("weight"), self.start, self.normalize))

    def forward(self, batch: Batch, at: At) -> Loss:
        loss = super().forward(batch, at)
        gates = [part.open() for part in self.net.modules() if isinstance(part, Gates)]
        opened = torch.stack([gate.sum() for gate in gates]).sum()
        density = opened.detach() / sum(gate.numel() for gate in gates)
        return replace(loss, terms={**loss.terms, "gates": at.value(self.weight) * opened},
                       logs={**loss.logs, "density": density})

    def predictor(self) -> Net:
        return baked(super().predictor())


class Gates(nn.Module):
    """w -> w H(m) of a weight [out, ...]."""

    def __init__(self, weight: Tensor, start: float, normalize: bool) -> None:
        super().__init__()
        self.m, self.normalize = nn.Parameter(torch.full_like(weight, start)), normalize

    def forward(self, weight: Tensor) -> Tensor:
        return weight * self.open(self.normalize)

    def open(self, normalize: bool = False) -> Tensor:
        """H(m), of whose gradient `normalize` says whether m sees it by output feature."""
        m = normalized_slope(self.m) if normalize else self.m
        return (m > 0).to(m.dtype) + (m - m.detach())  # the identity's gradient, and exactly H


def normalized_slope(m: Tensor) -> Tensor:
    """m [out, ...], whose gradient is divided by its largest entry in each output feature."""
    out = m.view_as(m)
    if out.requires_grad:
        out.register_hook(_by_largest)  # type: ignore[no-untyped-call]
    return out


def _by_largest(slope: Tensor) -> Tensor:
    return slope / slope.flatten(1).abs().amax(1).clamp(min=1e-12).view(-1, *[1] * (slope.ndim - 1))


def check_plain(name: str, net: Net) -> None:
    """UsageError unless the net has layers with weights of their own."""
    if not layers_of(net):
        raise UsageError(f"{name} needs convolutions or linear layers, and {net.name} has none")
    if any(nn.utils.parametrize.is_parametrized(part) for part in net.modules()):
        raise UsageError(f"{name} makes the net's weights from other parameters, and those of {net.name} are made of "
                         "other ones already; leave one of them out")
