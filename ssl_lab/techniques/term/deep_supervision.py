"""Deeply-supervised nets (Lee et al. 2014, arXiv 1409.5185): classifiers on hidden layers, while training."""

from __future__ import annotations

from typing import Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor

from ssl_lab import losses, schedule
from ssl_lab.batch import At, Batch, Loss
from ssl_lab.errors import unknown
from ssl_lab.schedule import Scalar
from ssl_lab.techniques.term.companions import Companions

Kind = Literal["hinge", "softmax"]


class DeepSupervision(Companions):
    """L + weight * sum_m [L_m - slack]_+,    L_m cross-entropy, or (1 / B) sum_b sum_c max(0, 1 - t_bc s_bc)^2

    with s the scores of companion m (see `Companions`), and t 1 for the label and -1 for the other classes. Where L_m
    is below the slack, gamma in the paper, it has no gradient.

    Checked against the authors' code (`loss_layer.cpp` and its nets), which has no slack; the paper's has, and |w_m|^2
    in the bracket. There the companions are on convolutions before their ReLU, not averaged, and learn at 0.001 of the
    rate (`sl.optim.with_rates(optimizer, {"heads": ...})` can do that); the other rows are ours.

    Args:
        layers: of the backbone, by path, which have a companion.
        weight: alpha; by default 1, and 0 from 5/12 of training on, where the authors drop the companions (after 50
            of 120 thousand steps).
        loss: "hinge", or "softmax", which the authors have for CIFAR-100 and SVHN. "hinge", with companions that
            learn as fast as the net, ended in a training accuracy of 20% where "softmax" did not (MNIST, 40 labels,
            500 steps, one seed).
        slack: 0 or more.

    >>> pool = sl.load("digits").split(labels=10)
    >>> method = sl.Supervised(sl.net("tiny_4", classes=10, style=pool.style))
    >>> term = sl.DeepSupervision(weight=1.0).around(method, pool, seed=0)
    >>> batch = sl.Feed(pool, term.views, 8, 0, seed=0)(sl.At(0, 100))
    >>> sorted(term(batch, sl.At(0, 100)).terms)
    ['deep_supervision', 'labeled']
    """

    name = "deep_supervision"
    paper = "Deeply-Supervised Nets"
    arxiv = "1409.5185"

    def __init__(self, layers: str | None = None, weight: Scalar = schedule.switch(1.0, 0.0, 5 / 12),  # noqa: B008
                 slack: Scalar = 0.0, loss: Kind = "softmax") -> None:
        super().__init__()
        if loss not in get_args(Kind):
            raise unknown("companion loss", loss, get_args(Kind))
        self.layers, self.weight, self.slack, self.loss = layers, weight, slack, loss

    def forward(self, batch: Batch, at: At) -> Loss:
        loss = super().forward(batch, at)
        weight = at.value(self.weight)
        loss.terms["deep_supervision"] = weight * self._companions(batch, at) if weight else self.nothing()
        return loss

    def _companions(self, batch: Batch, at: At) -> Tensor:
        maps = self.inside(batch, self._paths).maps
        slack, criterion = at.value(self.slack), squared_hinge if self.loss == "hinge" else losses.cross_entropy
        each = [criterion(scores, batch.labeled.targets) for scores in self.scores(maps)]
        return (torch.stack(each) - slack).relu().sum()


def squared_hinge(scores: Tensor, targets: Tensor) -> Tensor:
    """(1 / B) sum_b sum_c max(0, 1 - t_bc s_bc)^2, t_bc = 1 for the label, else -1. scores: float [B, C]; targets:
    int64 [B]. Scalar; scores of 0 give C."""
    signs = 2 * F.one_hot(targets, scores.shape[1]) - 1
    return (1 - signs * scores).relu().square().sum(dim=1).mean()
