"""Logit standardization (Sun et al. 2024, arXiv 2403.01427): KD of z-scores, for a student need not copy sizes."""

from __future__ import annotations

from torch import Tensor

from ssl_lab.batch import At, Rows
from ssl_lab.methods.distillation.hooks import Seen
from ssl_lab.methods.distillation.kd import KD, kd_loss
from ssl_lab.methods.distillation.teacher import Teacher
from ssl_lab.nets import Net
from ssl_lab.schedule import Scalar
from ssl_lab.views import ViewFactory, Weak


class LogitStd(KD):
    """L = labeled * H(y, p(x)) + weight * T^2 (1/N) sum_n KL(softmax(Z(z_t) / T) || softmax(Z(z_s) / T))

    with Z(z) = (z - mean z) / std z over the classes of each image. The standard deviation is the paper's, divided by
    C; its code divides by C - 1.

    Args:
        temperature: T.

    >>> pool = sl.load("digits").split(labels=10)
    >>> teacher = sl.net("tiny_6", classes=10, style=pool.style, seed=9)
    >>> method = sl.LogitStd(sl.net("tiny_4", classes=10, style=pool.style), teacher)
    >>> batch = sl.Feed(pool, method.views, 4, 12, seed=0)(sl.At(0, 100))
    >>> loss = method(batch, sl.At(0, 100))
    >>> sorted(loss.terms)
    ['distilled', 'labeled']
    """

    name = "logit_std"
    paper = "Logit Standardization in Knowledge Distillation"
    arxiv = "2403.01427"

    def __init__(self, net: Net, teacher: Net | Teacher, temperature: Scalar = 2.0, weight: Scalar = 9.0,
                 labeled: Scalar = 0.1, view: ViewFactory = Weak, ema: Scalar = 0.999) -> None:
        super().__init__(net, teacher, temperature, weight, labeled, view, ema)

    def distance(self, student: Seen, teacher: Seen, rows: Rows, at: At) -> Tensor:
        return kd_loss(standardize(student.logits), standardize(teacher.logits), at.value(self.temperature))


def standardize(logits: Tensor) -> Tensor:
    """(z - mean) / std of each row of [B, C]: the same for u z + v, u > 0; 0 for a constant row."""
    centered = logits - logits.mean(dim=1, keepdim=True)
    return centered / (centered.square().mean(dim=1, keepdim=True) + 1e-12).sqrt()
