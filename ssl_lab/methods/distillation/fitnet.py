"""FitNets (Romero et al. 2015, arXiv 1412.6550): a hint from the teacher's middle layer."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ssl_lab.batch import At, Rows
from ssl_lab.methods.distillation.base import MapDistillation
from ssl_lab.methods.distillation.hooks import Seen, adapters, same_size
from ssl_lab.methods.distillation.teacher import Teacher
from ssl_lab.nets import Net
from ssl_lab.schedule import Scalar
from ssl_lab.views import ViewFactory, Weak


class FitNet(MapDistillation):
    """L = labeled * H(y, p(x)) + weight * sum over layers of mean((r(F_s) - F_t)^2)

    r is a 1x1 convolution to the teacher's channels, which learns too; of two maps the larger is averaged down to the
    size of the smaller. Trained in one stage, as in later comparisons, where the paper trains by the hint first.

    >>> pool = sl.load("digits").split(labels=10)
    >>> teacher = sl.net("tiny_6", classes=10, style=pool.style, seed=9)
    >>> method = sl.FitNet(sl.net("tiny_4", classes=10, style=pool.style), teacher)
    >>> batch = sl.Feed(pool, method.views, 4, 12, seed=0)(sl.At(0, 100))
    >>> loss = method(batch, sl.At(0, 100))
    >>> [name for name, _ in method.named_children()]  # adapters learn too
    ['net', 'ema', 'teacher', 'regressors']
    """

    name = "fitnet"
    paper = "FitNets: Hints for Thin Deep Nets"
    arxiv = "1412.6550"
    stage = "middle"

    def __init__(self, net: Net, teacher: Net | Teacher, layers: str | Sequence[str] | None = None,
                 teacher_layers: str | Sequence[str] | None = None, weight: Scalar = 100.0, labeled: Scalar = 1.0,
                 view: ViewFactory = Weak, ema: Scalar = 0.999) -> None:
        super().__init__(net, teacher, weight, layers, teacher_layers, labeled, view, ema)
        self.regressors = adapters(partial(nn.Conv2d, kernel_size=1), self.channels)

    def distance(self, student: Seen, teacher: Seen, rows: Rows, at: At) -> Tensor:
        triples = zip(self.regressors, student.maps, teacher.maps, strict=True)
        return torch.stack([hint_loss(regress(mine), theirs) for regress, mine, theirs in triples]).sum()


def hint_loss(student: Tensor, teacher: Tensor) -> Tensor:
    """Mean of the squared difference of two maps [B, c, h, w] and [B, c, i, j], at the smaller size."""
    return F.mse_loss(*same_size(student, teacher))
