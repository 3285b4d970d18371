"""SymReg (Park et al. 2022, arXiv 2208.00338): weights whose distribution is symmetric about 0 round well."""

from __future__ import annotations

import torch
from torch import Tensor

from ssl_lab.batch import At, Batch, Loss
from ssl_lab.data import Pool
from ssl_lab.errors import UsageError
from ssl_lab.methods import Method
from ssl_lab.nets.parametrized import layers_of
from ssl_lab.schedule import Scalar
from ssl_lab.techniques.base import TermTechnique


class SymReg(TermTechnique):
    """L + weight * mean over layers of the mean over outputs of (E w)^2 / E w^2 + (E w^3)^2 / (E w^2)^3

    E over an output's weights. It is 0 for weights that are symmetric about 0, and does not change with their scale. A
    symmetric grid of few values then has no levels to spare on one side. The net stays in floats: round it afterwards
    (`recipes/compress.py --int8`), or train it in few bits beside, with `qnn`.

    Of the paper only the abstract was read: it penalizes asymmetry about 0, and its `satnl` saturates activations. The
    measure, of the first two odd moments, is ours.

    Args:
        weight: of the penalty.

    >>> pool = sl.load("digits").split(labels=10)
    >>> method = sl.Supervised(sl.net("tiny_4", classes=10, style=pool.style))
    >>> term = sl.SymReg(weight=0.1).around(method, pool, seed=0)
    >>> batch = sl.Feed(pool, term.views, 8, 0, seed=0)(sl.At(0, 100))
    >>> sorted(term(batch, sl.At(0, 100)).terms)
    ['labeled', 'symreg']
    """

    name = "symreg"
    paper = "Symmetry Regularization and Saturating Nonlinearity for Robust Quantization"
    arxiv = "2208.00338"
    serves = "size"

    def __init__(self, weight: Scalar = 0.1) -> None:
        super().__init__()
        self.weight = weight

    def check(self, method: Method, pool: Pool) -> None:
        if not layers_of(method.net):
            raise UsageError(f"symreg is about weights of convolutions and linear layers; {method.net.name} has none")

    def forward(self, batch: Batch, at: At) -> Loss:
        loss = super().forward(batch, at)
        found = [asymmetry(layer.weight) for layer in layers_of(self.net).values()]
        loss.terms["symreg"] = at.value(self.weight) * torch.stack(found).mean()
        return loss


def asymmetry(weight: Tensor) -> Tensor:
    """A scalar from 0 on, of a weight [out, ...]: see `SymReg`."""
    rows = weight.flatten(1)
    first, second, third = (rows.pow(power).mean(1) for power in (1, 2, 3))
    second = second.clamp(min=1e-24)
    return (first.square() / second + third.square() / second.pow(3)).mean()
