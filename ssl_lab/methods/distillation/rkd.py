"""Relational KD (Park et al. 2019, arXiv 1904.05068): match distances and angles among the images of a batch."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from ssl_lab.batch import At, Rows
from ssl_lab.methods.distillation.base import Distillation
from ssl_lab.methods.distillation.hooks import Seen
from ssl_lab.methods.distillation.teacher import Teacher
from ssl_lab.nets import Net
from ssl_lab.schedule import Scalar
from ssl_lab.views import ViewFactory, Weak


class RKD(Distillation):
    """L = labeled * H(y, p(x)) + weight * [distances * huber(d_s, d_t) + angles * huber(a_s, a_t)]

    d_ij = ||f_i - f_j|| / the mean of all of them, a_ijk = the cosine at j between f_i - f_j and f_k - f_j, of pooled
    features; huber is the mean of the smooth L1 difference. Angles grow with the cube of the batch, so that they are
    taken within groups of rows.

    Args:
        distances, angles: weights.
        group: rows among which angles are compared, 64 being the batch of the comparisons.

    >>> pool = sl.load("digits").split(labels=10)
    >>> teacher = sl.net("tiny_6", classes=10, style=pool.style, seed=9)
    >>> method = sl.RKD(sl.net("tiny_4", classes=10, style=pool.style), teacher)
    >>> batch = sl.Feed(pool, method.views, 4, 12, seed=0)(sl.At(0, 100))
    >>> loss = method(batch, sl.At(0, 100))
    >>> bool(loss.terms["distilled"] > 0)
    True
    """

    name = "rkd"
    paper = "Relational Knowledge Distillation"
    arxiv = "1904.05068"
    reads = "features"

    def __init__(self, net: Net, teacher: Net | Teacher, distances: Scalar = 25.0, angles: Scalar = 50.0,
                 group: int = 64, weight: Scalar = 1.0, labeled: Scalar = 1.0, view: ViewFactory = Weak,
                 ema: Scalar = 0.999) -> None:
        super().__init__(net, teacher, weight, labeled, view, ema)
        self.distances, self.angles, self.group = distances, angles, group

    def distance(self, student: Seen, teacher: Seen, rows: Rows, at: At) -> Tensor:
        mine, theirs = student.features, teacher.features
        return (at.value(self.distances) * distance_loss(mine, theirs)
                + at.value(self.angles) * angle_loss(mine, theirs, self.group))


def distance_loss(student: Tensor, teacher: Tensor) -> Tensor:
    """Smooth L1 between the mean-normalized distances of features [b, D] and [b, E], mean over all b^2 pairs.

    Invariant to scale, rotation and translation of either. Its gradient is finite where rows coincide.
    """
    return F.smooth_l1_loss(distances(student), distances(teacher))


def distances(features: Tensor) -> Tensor:
    """[b, b]: ||f_i - f_j||, divided by its mean over i != j; 0 on the diagonal."""
    squared = (features[:, None] - features[None]).square().sum(dim=2)
    apart = 1 - torch.eye(len(features), dtype=squared.dtype, device=squared.device)
    lengths = squared.clamp(min=1e-12).sqrt() * apart  # the square root of 0 has no gradient
    return lengths / (lengths.sum() / apart.sum().clamp(min=1)).clamp(min=1e-12)


def angle_loss(student: Tensor, teacher: Tensor, group: int = 64) -> Tensor:
    """Smooth L1 between the angles of features [b, D] and [b, E], mean over the triples within groups of rows."""
    parts = [(cosines(mine), cosines(theirs)) for mine, theirs in
             zip(torch.split(student, group), torch.split(teacher, group), strict=True)]
    total = torch.stack([F.smooth_l1_loss(mine, theirs, reduction="sum") for mine, theirs in parts]).sum()
    return total / sum(mine.numel() for mine, _ in parts)


def cosines(features: Tensor) -> Tensor:
    """[b, b, b]: at [j, i, k] the cosine of the angle at f_j between f_i and f_k; 0 if one of these is f_j."""
    toward = F.normalize(features[None] - features[:, None], dim=2)
    return toward @ toward.transpose(1, 2)
