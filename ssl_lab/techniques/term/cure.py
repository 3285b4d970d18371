"""CURE (Moosavi-Dezfooli et al. 2019, arXiv 1811.09716): a loss that bends little under changes of the image."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from ssl_lab import schedule
from ssl_lab.batch import At, Batch, Loss
from ssl_lab.data import Pool
from ssl_lab.errors import UsageError
from ssl_lab.losses import full_precision
from ssl_lab.methods import Method
from ssl_lab.nets import Net, evaluating
from ssl_lab.schedule import Scalar
from ssl_lab.techniques.base import TermTechnique

RISING = schedule.linear(0.1, 3.0, until=1 / 3)


class CURE(TermTechnique):
    """L + weight * (1 / B) sum_b |grad l_b(x_b + z_b) - grad l_b(x_b)|,    z_b = h sign(g_b) / |sign(g_b)|

    with l_b the cross-entropy of labeled image b under the method's first view, gradients by the image as the net sees
    it (normalized), g_b = grad l_b(x_b), and z_b constant. The net is in evaluation mode for it, and the gradient
    reaches its weights by differentiating twice: a step takes about three times as long.

    Checked against that code (`CURE.py`), where the norm is not squared and z is along signs, unlike the paper's
    equations.

    Args:
        weight: lambda, 4 in the authors' code.
        h: there .1, .4, .8, 1.8 and 3 in the first five epochs of fine-tuning, and 3 in the others; here it rises
            to 3 in a third of training.

    >>> pool = sl.load("digits").split(labels=10)
    >>> method = sl.Supervised(sl.net("tiny_4", classes=10, style=pool.style))
    >>> term = sl.CURE().around(method, pool, seed=0)
    >>> batch = sl.Feed(pool, term.views, 8, 0, seed=0)(sl.At(0, 100))
    >>> sorted(term(batch, sl.At(0, 100)).terms)
    ['cure', 'labeled']
    """

    name = "cure"
    paper = "Robustness via curvature regularization, and vice versa"
    arxiv = "1811.09716"
    serves = "robustness"

    def __init__(self, weight: Scalar = 4.0, h: Scalar = RISING) -> None:
        super().__init__()
        self.weight, self.h = weight, h

    def check(self, method: Method, pool: Pool) -> None:
        if not method.classifies or not method.views.labeled:
            raise UsageError(f"cure bends the loss of labeled images less, and {method.name} has none")

    def forward(self, batch: Batch, at: At) -> Loss:
        loss = super().forward(batch, at)
        if not at.value(self.weight):
            loss.terms["cure"] = torch.zeros_like(loss.total)
            return loss
        x = next(iter(batch.labeled.views.values()))
        loss.terms["cure"] = at.value(self.weight) * bending(self.net, x, batch.labeled.targets, at.value(self.h))
        return loss


def bending(net: Net, x: Tensor, targets: Tensor, h: float) -> Tensor:
    """Mean over rows of |grad l(x + z) - grad l(x)|, z of length h, see `CURE`; a scalar with gradient by the weights.

    x: float [B, C, H, W] in [0, 1]. targets: int64 [B]. h: in units of the net's normalized pixels. As h goes to 0, it
    is h |H z / h|, H the Hessian of l at x.
    """
    eager = torch.compiler.set_stance("force_eager")  # compiled code has no second gradient
    with evaluating(net), full_precision(x.device), torch.enable_grad(), eager:
        here = x.detach().requires_grad_()
        slope, = torch.autograd.grad(_losses(net, here, targets), here)
        z = h * F.normalize((slope * net.std).sign().flatten(1)).view_as(x)
        there = _losses(net, here + z * net.std, targets)
        change, = torch.autograd.grad(there - _losses(net, here, targets), here, create_graph=True)
    mean: Tensor = (change * net.std).flatten(1).norm(dim=1).mean()
    return mean


def _losses(net: Net, x: Tensor, targets: Tensor) -> Tensor:
    """The sum over rows: the gradient by a row is that of its own loss."""
    return F.cross_entropy(net(x).logits, targets, reduction="sum")
