"""DKD (Zhao et al. 2022, arXiv 2203.08679): what the teacher says of the target, and of the other classes, apart."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from ssl_lab.batch import At, Rows
from ssl_lab.errors import UsageError
from ssl_lab.methods.distillation.base import Distillation
from ssl_lab.methods.distillation.hooks import Seen
from ssl_lab.methods.distillation.teacher import Teacher
from ssl_lab.nets import Net
from ssl_lab.schedule import Scalar, linear
from ssl_lab.views import ViewFactory, Weak

WARM_UP = linear(0.0, 1.0, until=20 / 240)
"""The paper's, of 20 of 240 epochs."""


class DKD(Distillation):
    """L = labeled * H(y, p(x)) + weight * T^2 (1/N) sum_n [alpha TCKD_n + beta NCKD_n]

    TCKD = KL of (p_y, 1 - p_y), NCKD = KL of the probabilities among the other classes, p_c / (1 - p_y), both at
    temperature T from teacher to student; KL(p_t || p_s) = TCKD + (1 - p_t,y) NCKD. y is the label, and *on an image
    without one the teacher's prediction*; the paper has labels only.

    Args:
        alpha, beta: weights of the two (beta 6 to 8 in the paper, by pair of nets).
        temperature: T.

    Raises:
        UsageError: fewer than 3 classes, where there is only one other class and NCKD is always 0.

    >>> pool = sl.load("digits").split(labels=10)
    >>> teacher = sl.net("tiny_6", classes=10, style=pool.style, seed=9)
    >>> method = sl.DKD(sl.net("tiny_4", classes=10, style=pool.style), teacher, beta=8.0)
    >>> batch = sl.Feed(pool, method.views, 4, 12, seed=0)(sl.At(0, 100))
    >>> loss = method(batch, sl.At(0, 100))
    >>> loss.terms["distilled"].item()  # the weight warms up from 0
    0.0
    """

    name = "dkd"
    paper = "Decoupled Knowledge Distillation"
    arxiv = "2203.08679"

    def __init__(self, net: Net, teacher: Net | Teacher, alpha: Scalar = 1.0, beta: Scalar = 8.0,
                 temperature: Scalar = 4.0, weight: Scalar = WARM_UP, labeled: Scalar = 1.0,
                 view: ViewFactory = Weak, ema: Scalar = 0.999) -> None:
        super().__init__(net, teacher, weight, labeled, view, ema)
        _check_classes(net.classes)
        self.alpha, self.beta, self.temperature = alpha, beta, temperature

    def distance(self, student: Seen, teacher: Seen, rows: Rows, at: At) -> Tensor:
        targets = torch.where(rows.targets >= 0, rows.targets, teacher.logits.argmax(dim=1))
        temperature = at.value(self.temperature)
        target, others = decoupled(student.logits, teacher.logits, targets, temperature)
        return temperature**2 * (at.value(self.alpha) * target + at.value(self.beta) * others).mean()


class Decoupled(NamedTuple):
    """tckd, nckd: float [B]."""

    tckd: Tensor
    nckd: Tensor


def decoupled(student: Tensor, teacher: Tensor, targets: Tensor, temperature: float = 1.0) -> Decoupled:
    """TCKD and NCKD of each row, without T^2.

    student, teacher: logits [B, C]. targets: int64 [B], 0..C-1. Computed by logsumexp, so that a target's probability
    of nearly 1 leaves the others' intact. UsageError: C < 3, targets that are not class numbers.
    """
    _check_classes(student.shape[1])
    if targets.is_floating_point() or targets.ndim != 1:
        raise UsageError(f"DKD got {targets.dtype} targets of shape {list(targets.shape)}; expected one class number "
                         "for each row: it knows no soft labels")
    (p, not_p, rest_p), (q, not_q, rest_q) = (_parts(z / temperature, targets) for z in (teacher, student))
    tckd = p.exp() * (p - q) + not_p.exp() * (not_p - not_q)
    return Decoupled(tckd, (rest_p.exp() * (rest_p - rest_q)).sum(dim=1))


def _parts(logits: Tensor, targets: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """log p_y [B], log(1 - p_y) [B], and log of the probabilities among the C - 1 other classes [B, C - 1]."""
    places = torch.arange(logits.shape[1] - 1, device=logits.device)
    others = logits.gather(1, places + (places >= targets[:, None]).long())
    total = logits.logsumexp(dim=1)
    target = logits.gather(1, targets[:, None])[:, 0]
    return target - total, others.logsumexp(dim=1) - total, others.log_softmax(dim=1)


def _check_classes(classes: int) -> None:
    if classes < 3:
        raise UsageError(f"DKD with {classes} classes: with fewer than 3 the classes other than the target have "
                         "nothing to tell apart; use kd")
