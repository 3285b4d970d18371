"""KD (Hinton et al. 2015, arXiv 1503.02531): the student learns the teacher's softened probabilities."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from ssl_lab.batch import At, Rows
from ssl_lab.methods.distillation.base import Distillation
from ssl_lab.methods.distillation.hooks import Seen
from ssl_lab.methods.distillation.teacher import Teacher
from ssl_lab.nets import Net
from ssl_lab.schedule import Scalar
from ssl_lab.views import ViewFactory, Weak


class KD(Distillation):
    """L = labeled * H(y, p(x)) + weight * T^2 (1/N) sum_n KL(softmax(z_t / T) || softmax(z_s / T))

    over all N images of the batch, labeled or not. The defaults are those of the comparisons on CIFAR-100 (CRD, Tian
    et al. 2020, arXiv 1910.10699).

    Args:
        temperature: T.

    >>> pool = sl.load("digits").split(labels=10)
    >>> teacher = sl.net("tiny_6", classes=10, style=pool.style, seed=9)
    >>> method = sl.KD(sl.net("tiny_4", classes=10, style=pool.style), teacher, temperature=4.0)
    >>> batch = sl.Feed(pool, method.views, 4, 12, seed=0)(sl.At(0, 100))
    >>> loss = method(batch, sl.At(0, 100))
    >>> sorted(loss.terms), loss.logs["agreement"].item() <= 1  # of the two nets
    (['distilled', 'labeled'], True)
    """

    name = "kd"
    paper = "Distilling the Knowledge in a Neural Network"
    arxiv = "1503.02531"

    def __init__(self, net: Net, teacher: Net | Teacher, temperature: Scalar = 4.0, weight: Scalar = 0.9,
                 labeled: Scalar = 0.1, view: ViewFactory = Weak, ema: Scalar = 0.999) -> None:
        super().__init__(net, teacher, weight, labeled, view, ema)
        self.temperature = temperature

    def distance(self, student: Seen, teacher: Seen, rows: Rows, at: At) -> Tensor:
        return kd_loss(student.logits, teacher.logits, at.value(self.temperature))


def kd_loss(student: Tensor, teacher: Tensor, temperature: float = 1.0) -> Tensor:
    """T^2 KL(softmax(teacher / T) || softmax(student / T)), summed over the classes, mean over the rows.

    student, teacher: logits [B, C]. T^2 keeps the gradient's size: as T grows, the loss tends to
    ||z_t - z_s||^2 / (2 C) of logits whose mean over the classes is taken away.
    """
    p, q = ((logits / temperature).log_softmax(dim=1) for logits in (teacher, student))
    return temperature**2 * F.kl_div(q, p, reduction="batchmean", log_target=True)
