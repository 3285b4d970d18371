"""Pseudo-label ensembles (Zhang et al. 2025, arXiv 2503.09707): one net learns what several said of each image."""

from __future__ import annotations

from pathlib import Path

import torch

from ssl_lab import losses
from ssl_lab.batch import At, Batch, Loss
from ssl_lab.errors import UsageError
from ssl_lab.methods.base import Method, Views
from ssl_lab.methods.distillation.teacher import StoredLogits, read_logits
from ssl_lab.nets import Net
from ssl_lab.schedule import Scalar
from ssl_lab.views import Strong, Weak

LEAST = -20.0  # of a log probability: a label that was certain leaves the net a say


class SoftLabels(Method):
    """L = H(y, p(strong(x))) + weight * (1/U) sum_b H(t_b, p(strong(u_b))),  t_b ~ q_b^(1 - own) p(weak(u_b))^own

    with q_b the soft label that image b was given once and for all, by whomever: a label of the image, not an answer
    about a view of it, so that any view learns it. In the paper it is the mean of several nets, and own = 0. With own
    above 0 the label is mixed with what the net itself says of the weak view, without gradient (Reed et al. 2015, arXiv
    1412.6596, mix arithmetically): where neighbors taught it otherwise, a wrong label gives way.

    Args:
        teacher: logits of each image of the pool, a row of NaN where there is no label; or the file that they lie
            in, with the one tensor `logits` (see `load_teacher`).
        own: the net's say, in [0, 1).
        weight: of the second term.
        images: how many the pool has, to check the file by.

    >>> pool = sl.load("digits").split(labels=10)
    >>> said = torch.zeros(len(pool), 10)  # somebody found all classes as likely
    >>> method = sl.SoftLabels(sl.net("tiny_4", classes=10, style=pool.style), sl.methods.StoredLogits(said, None))
    >>> batch = sl.Feed(pool, method.views, 4, 12, seed=0)(sl.At(0, 100))
    >>> loss = method(batch, sl.At(0, 100))
    >>> round(loss.terms["unlabeled"].item(), 1) > 0
    True
    """

    name = "soft_labels"
    family = "distillation"
    paper = "Revisiting Semi-Supervised Learning in the Era of Foundation Models"
    arxiv = "2503.09707"
    recipe = "recipes/ensemble.py"
    splits = True

    def __init__(self, net: Net, teacher: StoredLogits | str | Path, own: Scalar = 0.0, weight: Scalar = 1.0,
                 images: int | None = None, ema: Scalar = 0.999) -> None:
        super().__init__(net, ema)
        names = net.class_names
        self.teacher = teacher if isinstance(teacher, StoredLogits) else read_logits(teacher, names, images)
        if self.teacher.classes != net.classes:
            raise UsageError(f"the soft labels are of {self.teacher.classes} classes; the net tells {net.classes} "
                             "apart")
        if names is not None:
            self.teacher.bring_into_order(names)
        self.own, self.weight = own, weight
        self.asks = callable(own) or own > 0
        self.views = Views(labeled={"strong": Strong},
                           unlabeled={"weak": Weak, "strong": Strong} if self.asks else {"strong": Strong})

    def forward(self, batch: Batch, at: At) -> Loss:
        x, u = batch.labeled, batch.unlabeled
        said = self.teacher.logits[u.indices]
        known = ~said.isnan().any(dim=1)
        target = said.nan_to_num(0.0).log_softmax(dim=1).clamp(min=LEAST)
        if self.asks:
            labeled, weak, strong = (each.logits for each in
                                     self.joint(x["strong"], u["weak"], u["strong"], constant=1))
            own = at.value(self.own)
            target = (1 - own) * target + own * losses.probabilities(weak.detach()).log().clamp(min=LEAST)
        else:
            labeled, strong = (each.logits for each in self.joint(x["strong"], u["strong"]))
        target = target.softmax(dim=1)
        guess = target.argmax(dim=1)
        return Loss(
            {
                "labeled": self.labeled_loss(labeled, x.targets),
                "unlabeled": at.value(self.weight) * losses.masked_cross_entropy(strong, target, known),
            },
            logs={
                "train_accuracy": losses.accuracy(labeled.detach().argmax(dim=1), x.targets),
                "agreement": torch.where(known, strong.detach().argmax(dim=1) == guess, torch.nan).nanmean(),
                "pseudo_label_accuracy": losses.accuracy(guess, u.truth, known),
            },
        )
