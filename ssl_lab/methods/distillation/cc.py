"""Correlation congruence (Peng et al. 2019, arXiv 1904.01802): match the kernel of a batch of features."""

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


class CC(Distillation):
    """L = labeled * H(y, p(x)) + weight * (1/b^2) sum_ij (k(f_i, f_j) of the student - the same of the teacher)^2

    with k(f, g) = exp(-gamma ||f - g||^2) of pooled features scaled to length 1. The paper takes the
    second-order Taylor expansion of this kernel in f . g; here it is exact.

    Args:
        weight: the published ones (0.02 in the comparisons of CRD) belong to another loss, of products of
            consecutive differences; this one was chosen to act.
        gamma: of the kernel.

    >>> pool = sl.load("digits").split(labels=10)
    >>> teacher = sl.net("tiny_6", classes=10, style=pool.style, seed=9)
    >>> method = sl.CC(sl.net("tiny_4", classes=10, style=pool.style), teacher, weight=1.0)
    >>> batch = sl.Feed(pool, method.views, 4, 12, seed=0)(sl.At(0, 100))
    >>> loss = method(batch, sl.At(0, 100))
    >>> 0 <= loss.terms["distilled"].item() <= 1  # of kernels in (0, 1]
    True
    """

    name = "cc"
    paper = "Correlation Congruence for Knowledge Distillation"
    arxiv = "1904.01802"
    reads = "features"

    def __init__(self, net: Net, teacher: Net | Teacher, gamma: float = 0.4, weight: Scalar = 100.0,
                 labeled: Scalar = 1.0, view: ViewFactory = Weak, ema: Scalar = 0.999) -> None:
        super().__init__(net, teacher, weight, labeled, view, ema)
        self.gamma = gamma

    def distance(self, student: Seen, teacher: Seen, rows: Rows, at: At) -> Tensor:
        return cc_loss(student.features, teacher.features, self.gamma)


def cc_loss(student: Tensor, teacher: Tensor, gamma: float = 0.4) -> Tensor:
    """Mean squared difference of the kernels of features [b, D] and [b, E]; invariant to scale and rotation."""
    return F.mse_loss(rbf(student, gamma), rbf(teacher, gamma))


def rbf(features: Tensor, gamma: float) -> Tensor:
    """[b, b]: exp(-gamma ||f_i - f_j||^2) of rows scaled to length 1, so exp(-2 gamma (1 - cos))."""
    unit = F.normalize(features, dim=1)
    return (2 * gamma * (unit @ unit.T - 1)).exp()
