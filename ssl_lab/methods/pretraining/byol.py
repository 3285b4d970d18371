"""BYOL (Grill et al. 2020, arXiv 2006.07733): predict a slow copy's projection of the other view; no negatives."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from ssl_lab.batch import At, Batch, Loss
from ssl_lab.losses import full_precision
from ssl_lab.methods.base import Views
from ssl_lab.methods.pretraining.base import Pretraining, Target
from ssl_lab.methods.pretraining.heads import mlp
from ssl_lab.nets import Net
from ssl_lab.schedule import Scalar, cosine
from ssl_lab.views import BYOL1, BYOL2

TAU = cosine(0.996, 1.0)
"""tau_k = 1 - (1 - 0.996) (cos(pi k / K) + 1) / 2 at step k of K."""


class BYOL(Pretraining):
    """L = mean over images of (2 - 2 cos(q(z_1), z'_2)) + (2 - 2 cos(q(z_2), z'_1))

    with z_v = projector(net(view v)), q a predictor, and z'_v the target's projection of view v, without gradient.
    The target, a copy of net and projector, starts equal to them and after each step becomes tau * target +
    (1 - tau) * (net, projector). Each view passes each net by itself, and in both nets BatchNorm normalizes by the
    batch. The views differ: the first is always blurred, the second seldom, and solarized at times.

    Args:
        tau: a schedule that rises to 1; it starts at 0.996 in the paper's 1000 epochs, at 0.97 to 0.99 in short
            runs.
        hidden, dim: values in the hidden layer of projector and predictor, and of z.
        seed: of the two.

    >>> pool = sl.load("digits").split(labels=10)
    >>> method = sl.BYOL(sl.net("tiny_4", classes=10, style=pool.style), hidden=16, dim=8)
    >>> batch = sl.Feed(pool, method.views, 0, 12, seed=0)(sl.At(0, 100))
    >>> loss = method(batch, sl.At(0, 100))
    >>> 0 <= loss.terms["regression"].item() <= 8  # two terms of 2 - 2 cos
    True
    """

    name = "byol"
    paper = "Bootstrap Your Own Latent: A New Approach to Self-Supervised Learning"
    arxiv = "2006.07733"
    views = Views(unlabeled={"first": BYOL1, "second": BYOL2})

    def __init__(self, net: Net, tau: Scalar = TAU, hidden: int = 4096, dim: int = 256, ema: Scalar = 0.0,
                 seed: int = 0) -> None:
        super().__init__(net, ema)
        self.tau = tau
        self.projector = mlp((net.features_dim, hidden, dim), seed=seed, name="projector")
        self.prediction = mlp((dim, hidden, dim), seed=seed, name="prediction")
        self.target = Target(net, self.projector)

    def forward(self, batch: Batch, at: At) -> Loss:
        first, second = batch.unlabeled["first"], batch.unlabeled["second"]
        predicted_1, predicted_2 = (self.prediction(self.projector(self.net(x).features)) for x in (first, second))
        target_1, target_2 = self.target(first), self.target(second)
        with full_precision(first.device):
            regression = distance(predicted_1, target_2) + distance(predicted_2, target_1)
        return Loss({"regression": regression})

    def after_step(self, at: At) -> None:
        super().after_step(at)
        self.target.follow(self.net, self.projector, at.value(self.tau))


def distance(predicted: Tensor, target: Tensor) -> Tensor:
    """The mean of 2 - 2 cos(predicted, target), the squared distance of the unit vectors. Both float [B, D]."""
    return 2 - 2 * F.cosine_similarity(predicted, target, dim=1).mean()
