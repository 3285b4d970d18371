"""AdaMatch (Berthelot et al. 2022, arXiv 2106.04732): the labeled images set the threshold and the class shares."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ssl_lab import losses
from ssl_lab.batch import At, Batch, Loss
from ssl_lab.methods.base import Method, Views
from ssl_lab.methods.ranks import Notes
from ssl_lab.nets import Net, frozen_statistics
from ssl_lab.schedule import Scalar, Schedule
from ssl_lab.views import Strong, Weak

RISE = Schedule("adamatch_rise", lambda t: 0.5 - math.cos(min(math.pi, 2 * math.pi * t)) / 2)
"""The paper's weight of the unlabeled loss: half a wave from 0 to 1 over the first half of training."""


class AdaMatch(Method):
    """L = (H(y, p(weak(x))) + H(y, p(strong(x)))) / 2
        + weight * (1 / mu B) sum_b 1[max A(q_b) >= c] H(argmax A(q_b), p(strong(u_b)))

    with q_b = p(weak(u_b)), c = confidence * mean over the labeled rows (of a rank or micro-batch, as in the paper's
    code) of max p(weak(x)), and A(q) in proportion to q * (mean labeled prediction) / (mean unlabeled prediction).
    The labeled logits are z' + r (z - z'), r uniform in [0, 1) for each: z from a batch with the unlabeled rows and
    z' from one without them, whose BatchNorm statistics differ. The means, of the last 128 steps for unlabeled and
    a moving average for labeled predictions, begin uniform and move after the step (in the paper's code, just
    before they are used), so that micro-batches and ranks see the same ones.

    Args:
        confidence: tau, relative.
        momentum: of the mean labeled prediction.
        weight: of the unlabeled loss.

    >>> pool = sl.load("digits").split(labels=10)
    >>> method = sl.AdaMatch(sl.net("tiny_4", classes=10, style=pool.style), confidence=0.9)
    >>> batch = sl.Feed(pool, method.views, 4, 12, seed=0)(sl.At(0, 100))
    >>> loss = method(batch, sl.At(0, 100))
    >>> 0.1 < loss.logs["threshold"].item() < 0.9  # relative to the labeled rows
    True
    """

    name = "adamatch"
    family = "consistency"
    paper = "AdaMatch: A Unified Approach to Semi-Supervised Learning and Domain Adaptation"
    arxiv = "2106.04732"
    recipe = "recipes/consistency.py"
    views = Views(labeled={"weak": Weak, "strong": Strong}, unlabeled={"weak": Weak, "strong": Strong})
    labeled_prediction: Tensor
    unlabeled_predictions: Tensor

    def __init__(self, net: Net, confidence: Scalar = 0.9, momentum: Scalar = 0.999, weight: Scalar = RISE,
                 ema: Scalar = 0.999) -> None:
        super().__init__(net, ema)
        self.confidence = confidence
        self.momentum = momentum
        self.weight = weight
        self.register_buffer("labeled_prediction", torch.full((net.classes,), 1 / net.classes))
        self.register_buffer("unlabeled_predictions", torch.full((128, net.classes), 1 / net.classes))
        self.notes = Notes()

    def forward(self, batch: Batch, at: At) -> Loss:
        x, u = batch.labeled, batch.unlabeled
        with frozen_statistics(self.net):
            alone = self.net(torch.cat([x["weak"], x["strong"]])).logits
        together, weak, strong = (out.logits for out in self.joint(torch.cat([x["weak"], x["strong"]]),
                                                                   u["weak"], u["strong"]))
        draw = at.draw("adamatch", len(x), alone.device)
        r = draw.to_device(torch.cat([draw.uniform(self.net.classes), draw.uniform(self.net.classes)]))
        labeled = together + (alone - together) * r
        p = losses.probabilities(labeled[: len(x)].detach())
        q = losses.probabilities(weak.detach())
        aligned = losses.align(q, self.labeled_prediction, self.unlabeled_predictions.mean(dim=0))
        confidence, pseudo = aligned.max(dim=1)
        threshold = at.value(self.confidence) * p.amax(dim=1).mean()
        mask = confidence >= threshold
        self.notes.put(at, p.mean(dim=0), q.mean(dim=0))
        return Loss(
            {
                "labeled": self.labeled_loss(labeled, x.targets.repeat(2)),
                "unlabeled": at.value(self.weight) * losses.masked_cross_entropy(strong, pseudo, mask),
            },
            logs={
                "train_accuracy": losses.accuracy(labeled[:len(x)].detach().argmax(dim=1), x.targets),
                "mask_rate": mask.float().mean(),
                "pseudo_label_accuracy": losses.accuracy(pseudo, u.truth, mask),
                "threshold": threshold,
            },
        )

    def after_step(self, at: At) -> None:
        super().after_step(at)
        p, q = (mean.to(self.labeled_prediction.dtype) for mean in self.notes.mean())
        self.labeled_prediction.lerp_(p, 1 - at.value(self.momentum))
        self.unlabeled_predictions[at.step % len(self.unlabeled_predictions)] = q
