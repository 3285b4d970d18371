"""Similarity-preserving distillation (Tung and Mori 2019, arXiv 1907.09682): which images are alike for the teacher."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from ssl_lab.batch import At, Rows
from ssl_lab.methods.distillation.base import MapDistillation
from ssl_lab.methods.distillation.hooks import Seen
from ssl_lab.methods.distillation.teacher import Teacher
from ssl_lab.nets import Net
from ssl_lab.schedule import Scalar
from ssl_lab.views import ViewFactory, Weak


class SP(MapDistillation):
    """L = labeled * H(y, p(x)) + weight * sum over layers of ||G_s - G_t||_F^2 / b^2

    with the b x b similarities G = F F' of the batch, each row scaled to length 1, of maps flattened to F [b, c h w].

    >>> pool = sl.load("digits").split(labels=10)
    >>> teacher = sl.net("tiny_6", classes=10, style=pool.style, seed=9)
    >>> method = sl.SP(sl.net("tiny_4", classes=10, style=pool.style), teacher)
    >>> batch = sl.Feed(pool, method.views, 4, 12, seed=0)(sl.At(0, 100))
    >>> loss = method(batch, sl.At(0, 100))
    >>> bool(loss.terms["distilled"] > 0)
    True
    """

    name = "sp"
    paper = "Similarity-Preserving Knowledge Distillation"
    arxiv = "1907.09682"
    stage = "last"

    def __init__(self, net: Net, teacher: Net | Teacher, layers: str | Sequence[str] | None = None,
                 teacher_layers: str | Sequence[str] | None = None, weight: Scalar = 3000.0, labeled: Scalar = 1.0,
                 view: ViewFactory = Weak, ema: Scalar = 0.999) -> None:
        super().__init__(net, teacher, weight, layers, teacher_layers, labeled, view, ema)

    def distance(self, student: Seen, teacher: Seen, rows: Rows, at: At) -> Tensor:
        pairs = zip(student.maps, teacher.maps, strict=True)
        return torch.stack([sp_loss(mine, theirs) for mine, theirs in pairs]).sum()


def sp_loss(student: Tensor, teacher: Tensor) -> Tensor:
    """||G_s - G_t||_F^2 / b^2 of two maps or features [b, ...] of any shapes; 0 if one is a rotated multiple of the
    other, as flattened."""
    mine, theirs = (F.normalize(f @ f.T, dim=1) for f in (student.flatten(1), teacher.flatten(1)))
    return (mine - theirs).square().mean()
