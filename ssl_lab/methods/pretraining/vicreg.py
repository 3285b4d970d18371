"""VICReg (Bardes et al. 2021, arXiv 2105.04906): views agree, values vary, and no two of them vary together."""

from __future__ import annotations

from torch import Tensor

from ssl_lab import losses
from ssl_lab.batch import At, Batch, Loss
from ssl_lab.losses import full_precision
from ssl_lab.methods.base import Views
from ssl_lab.methods.pretraining.base import Pretraining, gather
from ssl_lab.methods.pretraining.heads import mlp
from ssl_lab.nets import Net
from ssl_lab.schedule import Scalar
from ssl_lab.views import VICREG


class VICReg(Pretraining):
    """L = invariance * MSE(Z_1, Z_2) + variance * (v(Z_1) + v(Z_2)) / 2 + covariance * (c(Z_1) + c(Z_2))

        v(Z) = (1/D) sum_j max(0, 1 - sqrt(Var(z_j) + 1e-4)),    c(Z) = (1/D) sum_(i != j) Cov(z_i, z_j)^2

    with Z_v the projections [N, D] of view v, and moments over the batch, divided by N - 1. As in the authors' code,
    the squared error is the mean over rows and values, and v is halved; the paper's equations have neither. Each view
    passes the net by itself. Moments are those of all ranks' rows; micro-batches have their own.

    Args:
        invariance, variance, covariance: the weights lambda, mu and nu.
        hidden, dim: values in the two hidden layers of the projector (the paper's expander), and of z.
        seed: of the projector.

    >>> pool = sl.load("digits").split(labels=10)
    >>> method = sl.VICReg(sl.net("tiny_4", classes=10, style=pool.style), hidden=16, dim=8)
    >>> batch = sl.Feed(pool, method.views, 0, 12, seed=0)(sl.At(0, 100))
    >>> loss = method(batch, sl.At(0, 100))
    >>> sorted(loss.terms)
    ['covariance', 'invariance', 'variance']
    """

    name = "vicreg"
    paper = "VICReg: Variance-Invariance-Covariance Regularization for Self-Supervised Learning"
    arxiv = "2105.04906"
    views = Views(unlabeled={"first": VICREG, "second": VICREG})

    def __init__(self, net: Net, invariance: Scalar = 25.0, variance: Scalar = 25.0, covariance: Scalar = 1.0,
                 hidden: int = 8192, dim: int = 8192, ema: Scalar = 0.0, seed: int = 0) -> None:
        super().__init__(net, ema)
        self.invariance, self.variance, self.covariance = invariance, variance, covariance
        self.projector = mlp((net.features_dim, hidden, hidden, dim), seed=seed)

    def forward(self, batch: Batch, at: At) -> Loss:
        u = batch.unlabeled
        projections = [self.projector(self.net(u[view]).features) for view in ("first", "second")]
        with full_precision(u.truth.device):
            first, second = (gather(z) for z in projections)
            terms = {
                "invariance": at.value(self.invariance) * losses.squared_error(first, second),
                "variance": at.value(self.variance) * (hinge(first) + hinge(second)) / 2,
                "covariance": at.value(self.covariance) * (covariance(first) + covariance(second)),
            }
        return Loss(terms)


def hinge(z: Tensor) -> Tensor:
    """v(Z): how much the columns of z, float [N, D], lack to a standard deviation of 1, on average."""
    return (1 - (z.var(dim=0) + 1e-4).sqrt()).relu().mean()


def covariance(z: Tensor) -> Tensor:
    """c(Z): the sum of the squared covariances of different columns of z, float [N, D], divided by D."""
    centered = z - z.mean(dim=0)
    matrix = centered.T @ centered / (len(z) - 1)
    return (matrix.square().sum() - matrix.diagonal().square().sum()) / z.shape[1]
