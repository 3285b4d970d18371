"""VID (Ahn et al. 2019, arXiv 1904.05835): keep what the student's maps tell about the teacher's."""

from __future__ import annotations

import math
from collections.abc import Sequence

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


class VID(MapDistillation):
    """L = labeled * H(y, p(x)) + weight * sum over layers of mean [(t - mu(s))^2 / (2 v_c) + log(v_c) / 2]

    the negative log-likelihood of the teacher's map t, up to a constant, under a Gaussian with mean mu(s), three 1x1
    convolutions of the student's map, and one variance v_c = softplus(a_c) + 1e-5 for each channel; mu and a learn.
    Of two maps the larger is averaged down to the size of the smaller.

    >>> pool = sl.load("digits").split(labels=10)
    >>> teacher = sl.net("tiny_6", classes=10, style=pool.style, seed=9)
    >>> method = sl.VID(sl.net("tiny_4", classes=10, style=pool.style), teacher)
    >>> batch = sl.Feed(pool, method.views, 4, 12, seed=0)(sl.At(0, 100))
    >>> loss = method(batch, sl.At(0, 100))
    >>> sorted(loss.terms)
    ['distilled', 'labeled']
    """

    name = "vid"
    paper = "Variational Information Distillation for Knowledge Transfer"
    arxiv = "1904.05835"

    def __init__(self, net: Net, teacher: Net | Teacher, layers: str | Sequence[str] | None = None,
                 teacher_layers: str | Sequence[str] | None = None, weight: Scalar = 1.0, labeled: Scalar = 1.0,
                 view: ViewFactory = Weak, ema: Scalar = 0.999) -> None:
        super().__init__(net, teacher, weight, layers, teacher_layers, labeled, view, ema)
        self.guesses = adapters(Guess, self.channels)

    def distance(self, student: Seen, teacher: Seen, rows: Rows, at: At) -> Tensor:
        terms = [gaussian_nll(*guess(*same_size(mine, theirs))) for guess, mine, theirs in
                 zip(self.guesses, student.maps, teacher.maps, strict=True)]
        return torch.stack(terms).sum()


class Guess(nn.Module):
    """From the student's map [B, c, h, w] to the teacher's [B, d, h, w]: (mean, variance [d, 1, 1], the teacher's)."""

    def __init__(self, inputs: int, outputs: int, variance: float = 5.0) -> None:
        super().__init__()
        self.mean = nn.Sequential(nn.Conv2d(inputs, outputs, 1), nn.ReLU(), nn.Conv2d(outputs, outputs, 1), nn.ReLU(),
                                  nn.Conv2d(outputs, outputs, 1))
        self.scale = nn.Parameter(torch.full((outputs,), math.log(math.expm1(variance - 1e-5))))

    def forward(self, student: Tensor, teacher: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        return self.mean(student), F.softplus(self.scale)[:, None, None] + 1e-5, teacher


def gaussian_nll(mean: Tensor, variance: Tensor, target: Tensor) -> Tensor:
    """Mean of (target - mean)^2 / (2 variance) + log(variance) / 2; least at variance = the mean squared error."""
    return ((target - mean).square() / variance + variance.log()).mean() / 2
