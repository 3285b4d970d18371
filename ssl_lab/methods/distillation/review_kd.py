"""ReviewKD (Chen et al. 2021, arXiv 2104.09044): the teacher's early layers review the student's later ones."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ssl_lab.batch import At, Rows
from ssl_lab.methods.distillation.base import MapDistillation
from ssl_lab.methods.distillation.hooks import Seen, adapters
from ssl_lab.methods.distillation.teacher import Teacher
from ssl_lab.nets import Net
from ssl_lab.schedule import Scalar, linear
from ssl_lab.views import ViewFactory, Weak

WARM_UP = linear(0.0, 1.0, until=20 / 240)
"""The paper's, of 20 of 240 epochs. Its weights are 0.6 to 8, by pair of nets."""


class ReviewKD(MapDistillation):
    """L = labeled * H(y, p(x)) + weight * sum over levels i of hcl(F_i, T_i)

    T_i are the teacher's maps, from the finest to the coarsest, and at last its pooled features, a map of one place.
    F_i, of T_i's channels and size, comes from the student's map S_i and all later ones ("review"), from last to first:
        R_i = a S'_i + b up(R_i+1),    S'_i = norm(conv1x1(S_i)),    (a, b) = sigmoid(conv1x1([S'_i, up(R_i+1)]))
        F_i = norm(conv3x3(R_i))
    R_i is brought to T_i's size; the last level has R_i = S'_i alone. hcl compares maps at several sizes.

    Layers should be those before an activation, as in the paper. By default they are the last of each resolution: sums
    before the activation in wide ResNets, after it in the other nets written here.

    Args:
        width: channels of all R_i (default: as many as the student has features, at most 512).

    >>> pool = sl.load("digits").split(labels=10)
    >>> teacher = sl.net("tiny_6", classes=10, style=pool.style, seed=9)
    >>> method = sl.ReviewKD(sl.net("tiny_4", classes=10, style=pool.style), teacher, weight=1.0, width=8)
    >>> batch = sl.Feed(pool, method.views, 4, 12, seed=0)(sl.At(0, 100))
    >>> loss = method(batch, sl.At(0, 100))
    >>> bool(loss.terms["distilled"] > 0)
    True
    """

    name = "review_kd"
    paper = "Distilling Knowledge via Knowledge Review"
    arxiv = "2104.09044"

    def __init__(self, net: Net, teacher: Net | Teacher, layers: str | Sequence[str] | None = None,
                 teacher_layers: str | Sequence[str] | None = None, width: int | None = None,
                 weight: Scalar = WARM_UP, labeled: Scalar = 1.0, view: ViewFactory = Weak,
                 ema: Scalar = 0.999) -> None:
        super().__init__(net, teacher, weight, layers, teacher_layers, labeled, view, ema)
        width = width or min(512, net.features_dim)
        levels = [*self.channels, (net.features_dim, self.teacher.net.features_dim)]
        self.fusions = adapters(lambda mine, theirs: Fusion(mine, width, theirs), levels[:-1])
        self.last = adapters(lambda mine, theirs: Fusion(mine, width, theirs, alone=True), levels[-1:])

    def distance(self, student: Seen, teacher: Seen, rows: Rows, at: At) -> Tensor:
        mine, theirs = ((*seen.maps, seen.features[:, :, None, None]) for seen in (student, teacher))
        review: Tensor | None = None
        parts = []
        for fuse, own, target in zip((*self.last, *reversed(self.fusions)), mine[::-1], theirs[::-1], strict=True):
            review, output = fuse(own, review, target.shape[2:])
            parts.append(hcl(output, target))
        return torch.stack(parts).sum()


class Fusion(nn.Module):
    """Attention-based fusion: (S_i, R_i+1) -> (R_i, F_i). alone: there is no R_i+1."""

    def __init__(self, inputs: int, width: int, outputs: int, alone: bool = False) -> None:
        super().__init__()
        self.enter = nn.Sequential(nn.Conv2d(inputs, width, 1, bias=False), nn.BatchNorm2d(width))
        self.attend = None if alone else nn.Sequential(nn.Conv2d(2 * width, 2, 1), nn.Sigmoid())
        self.leave = nn.Sequential(nn.Conv2d(width, outputs, 3, padding=1, bias=False), nn.BatchNorm2d(outputs))

    def forward(self, own: Tensor, review: Tensor | None, size: Sequence[int]) -> tuple[Tensor, Tensor]:
        """own: [B, inputs, h, w]. review: [B, width, k, l]. Returns maps [B, width, *size], [B, outputs, *size]."""
        fused: Tensor = self.enter(own)
        if self.attend is not None and review is not None:
            review = F.interpolate(review, fused.shape[2:], mode="nearest")
            a, b = self.attend(torch.cat([fused, review], dim=1)).split(1, dim=1)
            fused = a * fused + b * review
        fused = F.interpolate(fused, tuple(size), mode="nearest")
        return fused, self.leave(fused)


def hcl(student: Tensor, teacher: Tensor) -> Tensor:
    """Hierarchical context loss: the mean squared difference of two maps [B, C, h, w], and of both averaged down to
    4x4, 2x2 and 1x1 where they are larger; a weighted mean whose weights are 1, 1/2, 1/4, 1/8."""
    loss, weight, total = F.mse_loss(student, teacher), 1.0, 1.0
    for size in (4, 2, 1):
        if size < student.shape[2]:
            weight /= 2
            total += weight
            mine, theirs = (F.adaptive_avg_pool2d(maps, size) for maps in (student, teacher))
            loss = loss + weight * F.mse_loss(mine, theirs)
    return loss / total
