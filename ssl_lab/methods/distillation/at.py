"""Attention transfer (Zagoruyko and Komodakis 2017, arXiv 1612.03928): look where the teacher looks."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor

from ssl_lab.batch import At, Rows
from ssl_lab.errors import unknown
from ssl_lab.methods.distillation.base import MapDistillation
from ssl_lab.methods.distillation.hooks import Seen, same_size
from ssl_lab.methods.distillation.teacher import Teacher
from ssl_lab.nets import Net
from ssl_lab.schedule import Scalar
from ssl_lab.views import ViewFactory, Weak

Mode = Literal["code", "paper"]


class AttentionTransfer(MapDistillation):
    """L = labeled * H(y, p(x)) + weight * sum over layers of d(Q_s, Q_t),  Q = vec(sum_c F_c^2) / ||vec(sum_c F_c^2)||

    The paper's equation 2 and its code differ: mode "code" has d = mean over images and places of (Q_s - Q_t)^2, to
    which the weight of 1000 belongs; mode "paper" d = 1/2 ||Q_s - Q_t||, mean over images, and wants a far smaller one.

    Args:
        mode: "code" or "paper", as above.

    >>> pool = sl.load("digits").split(labels=10)
    >>> teacher = sl.net("tiny_6", classes=10, style=pool.style, seed=9)
    >>> net = sl.net("tiny_4", classes=10, style=pool.style)
    >>> method = sl.AttentionTransfer(net, teacher, mode="paper", weight=1.0)
    >>> batch = sl.Feed(pool, method.views, 4, 12, seed=0)(sl.At(0, 100))
    >>> loss = method(batch, sl.At(0, 100))
    >>> 0 < loss.terms["distilled"].item() < 3  # half the distance of unit vectors, for three layers
    True
    """

    name = "at"
    paper = "Paying More Attention to Attention"
    arxiv = "1612.03928"

    def __init__(self, net: Net, teacher: Net | Teacher, layers: str | Sequence[str] | None = None,
                 teacher_layers: str | Sequence[str] | None = None, mode: Mode = "code", weight: Scalar = 1000.0,
                 labeled: Scalar = 1.0, view: ViewFactory = Weak, ema: Scalar = 0.999) -> None:
        super().__init__(net, teacher, weight, layers, teacher_layers, labeled, view, ema)
        if mode not in get_args(Mode):
            raise unknown("mode of attention transfer", mode, get_args(Mode))
        self.mode = mode

    def distance(self, student: Seen, teacher: Seen, rows: Rows, at: At) -> Tensor:
        pairs = zip(student.maps, teacher.maps, strict=True)
        return torch.stack([at_loss(mine, theirs, self.mode) for mine, theirs in pairs]).sum()


def at_loss(student: Tensor, teacher: Tensor, mode: Mode = "code") -> Tensor:
    """d of two maps [B, c, h, w] and [B, d, i, j], the larger averaged down to the size of the smaller."""
    difference = torch.sub(*map(attention, same_size(student, teacher)))
    if mode == "paper":
        lengths: Tensor = difference.norm(dim=1)
        return lengths.mean() / 2
    return difference.square().mean()


def attention(maps: Tensor) -> Tensor:
    """Q [B, h w], rows of length 1, of maps [B, c, h, w]; the same for any factor of the maps."""
    return F.normalize(maps.square().mean(dim=1).flatten(1), dim=1)
