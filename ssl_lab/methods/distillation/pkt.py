"""PKT (Passalis and Tefas 2018, arXiv 1803.10837): match how likely images are to be neighbors."""

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

EPS = 1e-7


class PKT(Distillation):
    """L = labeled * H(y, p(x)) + weight * (1/b^2) sum_ij p_t(i | j) log(p_t(i | j) / p_s(i | j))

    with p(i | j) ~ (1 + cos(f_i, f_j)) / 2 over the b images of the batch, of pooled features.

    >>> pool = sl.load("digits").split(labels=10)
    >>> teacher = sl.net("tiny_6", classes=10, style=pool.style, seed=9)
    >>> method = sl.PKT(sl.net("tiny_4", classes=10, style=pool.style), teacher, weight=1.0)
    >>> batch = sl.Feed(pool, method.views, 4, 12, seed=0)(sl.At(0, 100))
    >>> loss = method(batch, sl.At(0, 100))
    >>> 0 <= loss.terms["distilled"].item() < 0.01  # a divergence
    True
    """

    name = "pkt"
    paper = "Learning Deep Representations with Probabilistic Knowledge Transfer"
    arxiv = "1803.10837"
    reads = "features"

    def __init__(self, net: Net, teacher: Net | Teacher, weight: Scalar = 3e4, labeled: Scalar = 1.0,
                 view: ViewFactory = Weak, ema: Scalar = 0.999) -> None:
        super().__init__(net, teacher, weight, labeled, view, ema)

    def distance(self, student: Seen, teacher: Seen, rows: Rows, at: At) -> Tensor:
        return pkt_loss(student.features, teacher.features)


def pkt_loss(student: Tensor, teacher: Tensor) -> Tensor:
    """(1/b^2) sum_ij of p_t log(p_t / p_s) of features [b, D] and [b, E]; invariant to scale and rotation."""
    q, p = map(neighbor_probabilities, (student, teacher))
    return (p * ((p + EPS) / (q + EPS)).log()).mean()


def neighbor_probabilities(features: Tensor) -> Tensor:
    """[b, b], rows sum to 1: proportional to the cosine similarity, moved to [0, 1]."""
    unit = F.normalize(features, dim=1)
    similar = (1 + unit @ unit.T) / 2
    return similar / similar.sum(dim=1, keepdim=True)
