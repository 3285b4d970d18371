"""Pi-model (Laine and Aila 2017, arXiv 1610.02242): two noisy passes over an image are to agree."""

from __future__ import annotations

import torch

from ssl_lab import losses
from ssl_lab.batch import At, Batch, Loss
from ssl_lab.methods.base import Method, Views
from ssl_lab.nets import Net
from ssl_lab.schedule import Scalar, ramp_up
from ssl_lab.views import Weak


class PiModel(Method):
    """L = H(y, p(x)) + weight * (1/BC) sum_b |p(first_b) - p(second_b)|^2 over labeled and unlabeled rows b

    with two weak views of each image, each in a pass of its own, and gradient through both of them.

    Args:
        weight: w(t) of the paper, by default 100 after a ramp-up over 80 of 300 epochs. (The paper divides the
            labeled loss by all B rows and scales w by the share of labels; with the labeled mean here, both
            cancel.)
        stop_gradient: the second pass is a constant target.

    >>> pool = sl.load("digits").split(labels=10)
    >>> method = sl.PiModel(sl.net("tiny_4", classes=10, style=pool.style), weight=100.0)
    >>> batch = sl.Feed(pool, method.views, 4, 12, seed=0)(sl.At(0, 100))
    >>> [round(method(batch, sl.At(0, 100)).terms["consistency"].item(), 3) for _ in range(2)]
    [0.318, 0.318]
    """

    name = "pi_model"
    family = "consistency"
    paper = "Temporal Ensembling for Semi-Supervised Learning (Pi-model)"
    arxiv = "1610.02242"
    recipe = "recipes/consistency.py"
    views = Views(labeled={"first": Weak, "second": Weak}, unlabeled={"first": Weak, "second": Weak})

    def __init__(self, net: Net, weight: Scalar = ramp_up(100.0, until=80 / 300),
                 stop_gradient: bool = False, ema: Scalar = 0.999) -> None:
        super().__init__(net, ema)
        self.weight = weight
        self.stop_gradient = stop_gradient

    def forward(self, batch: Batch, at: At) -> Loss:
        x, u = batch.labeled, batch.unlabeled
        labeled, unlabeled = (out.logits for out in self.joint(x["first"], u["first"]))
        with torch.set_grad_enabled(not self.stop_gradient):
            second = self.net(torch.cat([x["second"], u["second"]])).logits
        first = losses.probabilities(torch.cat([labeled, unlabeled]))
        distance = losses.squared_error(first, losses.probabilities(second))
        return Loss(
            {
                "labeled": self.labeled_loss(labeled, x.targets),
                "consistency": at.value(self.weight) * distance,
            },
            logs={
                "train_accuracy": losses.accuracy(labeled.detach().argmax(dim=1), x.targets),
                "pseudo_label_accuracy": losses.accuracy(unlabeled.detach().argmax(dim=1), u.truth),
            },
        )
