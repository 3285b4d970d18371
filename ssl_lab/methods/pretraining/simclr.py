"""SimCLR (Chen et al. 2020, arXiv 2002.05709): tell the other view of an image from all other images' views."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from ssl_lab import losses
from ssl_lab.batch import At, Batch, Loss
from ssl_lab.losses import full_precision
from ssl_lab.methods.base import Views
from ssl_lab.methods.pretraining.base import Pretraining, gather, global_places
from ssl_lab.methods.pretraining.heads import mlp
from ssl_lab.nets import Net
from ssl_lab.schedule import Scalar
from ssl_lab.views import SimCLRView


class SimCLR(Pretraining):
    """L = mean over the 2N views i of -log( exp(z_i . z_j(i) / T) / sum_(k != i) exp(z_i . z_k / T) )

    with z the projections W2 relu(W1 h) of the features h, scaled to length 1, and j(i) the other view of i's image.
    Both views pass the net together. The sum is over the views of all ranks, which is the loss of the whole batch;
    micro-batches see their own rows only, so they have fewer negatives. The authors' code has BatchNorm after each
    linear layer of the projector; the paper's equation, which is used here, has not.

    Args:
        temperature: T; 0.1 in the paper on ImageNet, 0.5 on CIFAR-10.
        hidden, dim: values of W1's result (default: as many as h has) and of z.
        seed: of the projector.

    >>> pool = sl.load("digits").split(labels=10)
    >>> method = sl.SimCLR(sl.net("tiny_4", classes=10, style=pool.style), hidden=16, dim=8)
    >>> batch = sl.Feed(pool, method.views, 0, 12, seed=0)(sl.At(0, 100))
    >>> loss = method(batch, sl.At(0, 100))
    >>> round(loss.terms["contrast"].item()), round(float(np.log(2 * 12 - 1)))  # a guess among 23 other views
    (3, 3)
    """

    name = "simclr"
    paper = "A Simple Framework for Contrastive Learning of Visual Representations"
    arxiv = "2002.05709"
    views = Views(unlabeled={"first": SimCLRView, "second": SimCLRView})

    def __init__(self, net: Net, temperature: Scalar = 0.5, hidden: int | None = None, dim: int = 128,
                 ema: Scalar = 0.0, seed: int = 0) -> None:
        super().__init__(net, ema)
        self.temperature = temperature
        self.projector = mlp((net.features_dim, hidden or net.features_dim, dim), norm=False, seed=seed)

    def forward(self, batch: Batch, at: At) -> Loss:
        u = batch.unlabeled
        first, second = (self.projector(out.features) for out in self.joint(u["first"], u["second"]))
        with full_precision(u.truth.device):
            scores, positives = similarities(first, second, at.value(self.temperature))
            contrast = losses.cross_entropy(scores, positives)
        return Loss({"contrast": contrast}, logs={
            "contrast_accuracy": losses.accuracy(scores.detach().argmax(dim=1), positives)})


def similarities(first: Tensor, second: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
    """The logits of NT-Xent and the class of each, of which `cross_entropy` is the loss.

    first, second: float [N, D], projections of two views of this rank's images, of any length. Returns float
    [2N, 2NW]: cosine / temperature of this rank's views with those of all W ranks (first views, then second ones),
    -inf with itself; and int64 [2N], the column of the other view of the image.
    """
    first, second = F.normalize(first, dim=1), F.normalize(second, dim=1)
    candidates = torch.cat([gather(first), gather(second)])
    mine, half = global_places(first), len(candidates) // 2
    own, positives = torch.cat([mine, half + mine]), torch.cat([half + mine, mine])
    scores = torch.cat([first, second]) @ candidates.T / temperature
    return scores.scatter(1, own[:, None], -torch.inf), positives
