"""NST (Huang and Wang 2017, arXiv 1707.01219): match the distribution of the neurons' spatial patterns."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from ssl_lab.batch import At, Rows
from ssl_lab.methods.distillation.base import MapDistillation
from ssl_lab.methods.distillation.hooks import Seen, same_size
from ssl_lab.methods.distillation.teacher import Teacher
from ssl_lab.nets import Net
from ssl_lab.schedule import Scalar
from ssl_lab.views import ViewFactory, Weak


class NST(MapDistillation):
    """L = labeled * H(y, p(x)) + weight * sum over layers of MMD^2(F_s, F_t)

    the squared maximum mean discrepancy, under k(f, g) = (f . g)^2, between the channels of the two maps, each a
    vector over places scaled to length 1; mean over images. Of two maps the larger is averaged down to the size of
    the smaller.

    >>> pool = sl.load("digits").split(labels=10)
    >>> teacher = sl.net("tiny_6", classes=10, style=pool.style, seed=9)
    >>> method = sl.NST(sl.net("tiny_4", classes=10, style=pool.style), teacher, weight=1.0)
    >>> batch = sl.Feed(pool, method.views, 4, 12, seed=0)(sl.At(0, 100))
    >>> loss = method(batch, sl.At(0, 100))
    >>> 0 <= loss.terms["distilled"].item()  # a squared discrepancy
    True
    """

    name = "nst"
    paper = "Like What You Like: Knowledge Distill via Neuron Selectivity Transfer"
    arxiv = "1707.01219"

    def __init__(self, net: Net, teacher: Net | Teacher, layers: str | Sequence[str] | None = None,
                 teacher_layers: str | Sequence[str] | None = None, weight: Scalar = 50.0, labeled: Scalar = 1.0,
                 view: ViewFactory = Weak, ema: Scalar = 0.999) -> None:
        super().__init__(net, teacher, weight, layers, teacher_layers, labeled, view, ema)

    def distance(self, student: Seen, teacher: Seen, rows: Rows, at: At) -> Tensor:
        pairs = zip(student.maps, teacher.maps, strict=True)
        return torch.stack([nst_loss(mine, theirs) for mine, theirs in pairs]).sum()


def nst_loss(student: Tensor, teacher: Tensor) -> Tensor:
    """MMD^2 of two maps [B, c, h, w] and [B, d, i, j]: mean k(s, s) + mean k(t, t) - 2 mean k(s, t), never negative.

    The same for any order and positive factors of the channels.
    """
    s, t = (F.normalize(maps.flatten(2), dim=2) for maps in same_size(student, teacher))
    return _kernel(s, s) + _kernel(t, t) - 2 * _kernel(s, t)


def _kernel(a: Tensor, b: Tensor) -> Tensor:
    """Mean of (a_i . b_j)^2 over images and pairs of channels, of [B, c, n] and [B, d, n]."""
    return (a @ b.transpose(1, 2)).square().mean()
