"""Barlow Twins (Zbontar et al. 2021, arXiv 2103.03230): two views agree in each value, and values do not repeat."""

from __future__ import annotations

from torch import Tensor

from ssl_lab.batch import At, Batch, Loss
from ssl_lab.losses import full_precision
from ssl_lab.methods.base import Views
from ssl_lab.methods.pretraining.base import Pretraining, gather
from ssl_lab.methods.pretraining.heads import mlp
from ssl_lab.nets import Net
from ssl_lab.schedule import Scalar
from ssl_lab.views import BYOL1, BYOL2


class BarlowTwins(Pretraining):
    """L = sum_i (1 - C_ii)^2 + redundancy * sum_(i != j) C_ij^2,    C = (1/N) Z_1' Z_2

    with Z_v the projections of view v, each value standardized over the batch: C is their cross-correlation. Each view
    passes the net by itself. C is that of all ranks' rows; micro-batches correlate their own rows. The authors train
    weights at 0.2 for each 256 images, biases and norms at 0.0048: `with_rates(LARS(lr=0.2), {}, biases=0.0048)`.

    Args:
        redundancy: lambda.
        hidden, dim: values in the two hidden layers of the projector, and of z.
        seed: of the projector.

    >>> pool = sl.load("digits").split(labels=10)
    >>> method = sl.BarlowTwins(sl.net("tiny_4", classes=10, style=pool.style), hidden=16, dim=8)
    >>> batch = sl.Feed(pool, method.views, 0, 12, seed=0)(sl.At(0, 100))
    >>> loss = method(batch, sl.At(0, 100))
    >>> sorted(loss.terms)
    ['invariance', 'redundancy']
    """

    name = "barlow_twins"
    paper = "Barlow Twins: Self-Supervised Learning via Redundancy Reduction"
    arxiv = "2103.03230"
    views = Views(unlabeled={"first": BYOL1, "second": BYOL2})

    def __init__(self, net: Net, redundancy: Scalar = 0.005, hidden: int = 8192, dim: int = 8192, ema: Scalar = 0.0,
                 seed: int = 0) -> None:
        super().__init__(net, ema)
        self.redundancy = redundancy
        self.projector = mlp((net.features_dim, hidden, hidden, dim), seed=seed)

    def forward(self, batch: Batch, at: At) -> Loss:
        u = batch.unlabeled
        first, second = (self.projector(self.net(u[view]).features) for view in ("first", "second"))
        with full_precision(u.truth.device):
            invariance, redundancy = cross_correlation_terms(gather(first), gather(second))
        return Loss({"invariance": invariance, "redundancy": at.value(self.redundancy) * redundancy})


def cross_correlation_terms(first: Tensor, second: Tensor) -> tuple[Tensor, Tensor]:
    """sum_i (1 - C_ii)^2 and sum_(i != j) C_ij^2. first, second: float [N, D], two views' projections of N images."""
    correlation = standardized(first).T @ standardized(second) / len(first)
    diagonal = correlation.diagonal()
    return (1 - diagonal).square().sum(), correlation.square().sum() - diagonal.square().sum()


def standardized(z: Tensor) -> Tensor:
    """Each column of z, float [N, D], with mean 0 and (biased) variance 1, as BatchNorm does it."""
    return (z - z.mean(dim=0)) / (z.var(dim=0, correction=0) + 1e-5).sqrt()
