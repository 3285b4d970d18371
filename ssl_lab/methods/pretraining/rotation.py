"""RotNet (Gidaris et al. 2018, arXiv 1803.07728): tell by how many quarter-turns an image was turned."""

from __future__ import annotations

import torch

from ssl_lab import losses
from ssl_lab.batch import At, Batch, Loss
from ssl_lab.methods.base import Views
from ssl_lab.methods.pretraining.base import Pretraining
from ssl_lab.methods.rotations import all_rotations, rotation_head
from ssl_lab.nets import Net
from ssl_lab.schedule import Scalar
from ssl_lab.views import Weak


class Rotation(Pretraining):
    """L = mean over images of (1/4) sum_r -log p_r(turn_r(image)),    r over 0, 90, 180 and 270 degrees

    with p the softmax of a linear layer on the features. Every image is there in all four rotations, and all 4 B rows
    pass the net together. Images must be square.

    Args:
        seed: of the linear layer.

    >>> pool = sl.load("digits").split(labels=10)
    >>> method = sl.Rotation(sl.net("tiny_4", classes=10, style=pool.style))
    >>> batch = sl.Feed(pool, method.views, 0, 12, seed=0)(sl.At(0, 100))
    >>> loss = method(batch, sl.At(0, 100))
    >>> loss.terms["rotation"].item() > 1  # log 4 is a guess among four rotations
    True
    """

    name = "rotation"
    paper = "Unsupervised Representation Learning by Predicting Image Rotations"
    arxiv = "1803.07728"
    views = Views(unlabeled={"weak": Weak})

    def __init__(self, net: Net, ema: Scalar = 0.0, seed: int = 0) -> None:
        super().__init__(net, ema)
        self.rotation_head = rotation_head(net.features_dim, seed)

    def forward(self, batch: Batch, at: At) -> Loss:
        turned = all_rotations(batch.unlabeled["weak"])
        turns = torch.arange(4, device=turned.device).repeat_interleave(len(batch.unlabeled))
        logits = self.rotation_head(self.net(turned).features)
        return Loss({"rotation": losses.cross_entropy(logits, turns)}, logs={
            "rotation_accuracy": losses.accuracy(logits.detach().argmax(dim=1), turns)})
