"""Temporal Ensembling (Laine and Aila 2017, arXiv 1610.02242): an image's past predictions are its target."""

from __future__ import annotations

import torch
from torch import Tensor

from ssl_lab import losses
from ssl_lab.batch import At, Batch, Loss
from ssl_lab.errors import UsageError
from ssl_lab.methods.base import Method, Views
from ssl_lab.methods.ranks import Notes
from ssl_lab.nets import Net
from ssl_lab.schedule import Scalar, ramp_up
from ssl_lab.views import Weak


class TemporalEnsembling(Method):
    """L = H(y, p(x)) + weight * (1/BC) sum_b |p(u_b) - Z_b / (1 - decay^t_b)|^2

    with Z_b the average of the predictions at the image's t_b visits so far, Z_b <- decay * Z_b + (1 - decay) * p(u_b)
    after each step. An image that was never visited has no target: its part of the sum is 0.

    In the paper all Z move at an epoch's end. Here each moves after its image's visit, which is the same: an
    epoch visits each image once, so that nothing reads its Z before the next epoch. (Of an image that is in one
    batch more than once, the mean prediction counts. An update rule that evaluates the loss more than once a
    step leaves the last evaluation's predictions.)

    Args:
        images: number of images of the pool, len(pool).
        weight: by default 30 after a ramp-up over 80 of 300 epochs; as in PiModel, the paper's scaling by the share
            of labels cancels.
        decay: alpha of the paper.

    >>> pool = sl.load("digits").split(labels=10)
    >>> net = sl.net("tiny_4", classes=10, style=pool.style)
    >>> method = sl.TemporalEnsembling(net, images=len(pool), weight=30.0)
    >>> batch = sl.Feed(pool, method.views, 4, 12, seed=0)(sl.At(0, 100))
    >>> method(batch, sl.At(0, 100)).terms["consistency"].item()  # of images that were not seen before
    0.0
    >>> method.after_step(sl.At(0, 100))
    >>> method(batch, sl.At(1, 100)).terms["consistency"].item() < 1e-3  # and of the same images again
    True
    """

    name = "temporal_ensembling"
    family = "consistency"
    paper = "Temporal Ensembling for Semi-Supervised Learning"
    arxiv = "1610.02242"
    unmixable = "keeps what it has seen of each labeled image"
    recipe = "recipes/consistency.py"
    views = Views(labeled={"weak": Weak}, unlabeled={"weak": Weak})
    ensemble: Tensor

    def __init__(self, net: Net, images: int, weight: Scalar = ramp_up(30.0, until=80 / 300),
                 decay: Scalar = 0.6, ema: Scalar = 0.999) -> None:
        super().__init__(net, ema)
        if images < 1:
            raise UsageError(f"TemporalEnsembling(images={images}): give the number of images of the pool, len(pool)")
        self.weight, self.decay = weight, decay
        self.register_buffer("ensemble", torch.zeros(images, net.classes))  # Z of the paper
        self.notes = Notes()

    def forward(self, batch: Batch, at: At) -> Loss:
        x, u = batch.labeled, batch.unlabeled
        labeled, unlabeled = (out.logits for out in self.joint(x["weak"], u["weak"]))
        prediction = losses.probabilities(unlabeled)
        average = self.ensemble[u.indices]
        total = average.sum(dim=1, keepdim=True)  # 1 - decay^t, since each prediction sums to 1
        visited = total > 0
        target = average / total.where(visited, 1)
        distance = ((prediction - target).square() * visited).mean()
        self.notes.put(at, u.indices, prediction)
        return Loss(
            {
                "labeled": self.labeled_loss(labeled, x.targets),
                "consistency": at.value(self.weight) * distance,
            },
            logs={
                "train_accuracy": losses.accuracy(labeled.detach().argmax(dim=1), x.targets),
                "mask_rate": visited.float().mean(),
                "pseudo_label_accuracy": losses.accuracy(target.argmax(dim=1), u.truth, visited[:, 0]),
            },
        )

    def after_step(self, at: At) -> None:
        super().after_step(at)
        indices, predictions = self.notes.rows()
        copies = (indices[:, None] == indices).sum(dim=1, keepdim=True)
        change = (predictions - self.ensemble[indices]) * (1 - at.value(self.decay)) / copies
        self.ensemble.index_add_(0, indices, change.to(self.ensemble.dtype))
