"""SimSiam (Chen and He 2020, arXiv 2011.10566): predict the other view's projection, held constant."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from ssl_lab.batch import At, Batch, Loss
from ssl_lab.losses import full_precision
from ssl_lab.methods.base import Views
from ssl_lab.methods.pretraining.base import Pretraining
from ssl_lab.methods.pretraining.heads import mlp
from ssl_lab.nets import Net
from ssl_lab.schedule import Scalar
from ssl_lab.views import MOCO


class SimSiam(Pretraining):
    """L = -cos(q(z_1), stop(z_2)) / 2 - cos(q(z_2), stop(z_1)) / 2, mean over images

    with z_v = projector(net(view v)), a projector of three layers that ends in BatchNorm, and q a predictor with a
    bottleneck. Each view passes the net by itself. The paper keeps the predictor's learning rate constant while the
    others' decays: `with_rates(SGD(lr=cosine(0.05)), {"prediction": 0.05})`.

    Args:
        dim, bottleneck: values of z and of the predictor's hidden layer.
        seed: of projector and predictor. logs: `output_std`, sqrt(dim) times the deviation of each value of the
            unit z: about 1 if all is well, 0 in collapse.

    >>> pool = sl.load("digits").split(labels=10)
    >>> method = sl.SimSiam(sl.net("tiny_4", classes=10, style=pool.style), dim=16, bottleneck=8)
    >>> batch = sl.Feed(pool, method.views, 0, 12, seed=0)(sl.At(0, 100))
    >>> loss = method(batch, sl.At(0, 100))
    >>> -1 <= loss.terms["similarity"].item() <= 1, round(loss.logs["output_std"].item(), 1)  # no collapse
    (True, 1.0)
    """

    name = "simsiam"
    paper = "Exploring Simple Siamese Representation Learning"
    arxiv = "2011.10566"
    views = Views(unlabeled={"first": MOCO, "second": MOCO})

    def __init__(self, net: Net, dim: int = 2048, bottleneck: int = 512, ema: Scalar = 0.0, seed: int = 0) -> None:
        super().__init__(net, ema)
        self.projector = mlp((net.features_dim, dim, dim, dim), last_norm=True, seed=seed, name="projector")
        self.prediction = mlp((dim, bottleneck, dim), seed=seed, name="prediction")

    def forward(self, batch: Batch, at: At) -> Loss:
        u = batch.unlabeled
        z_1, z_2 = (self.projector(self.net(u[view]).features) for view in ("first", "second"))
        with full_precision(u.truth.device):
            similarity = -(cosine(self.prediction(z_1), z_2.detach()) + cosine(self.prediction(z_2), z_1.detach())) / 2
            spread = F.normalize(z_1.detach(), dim=1).std(dim=0).mean() * z_1.shape[1] ** 0.5
        return Loss({"similarity": similarity}, logs={"output_std": spread})


def cosine(predicted: Tensor, target: Tensor) -> Tensor:
    """The mean cosine of rows. Both float [B, D]."""
    return F.cosine_similarity(predicted, target, dim=1).mean()
