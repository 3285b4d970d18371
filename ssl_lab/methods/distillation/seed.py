"""SEED (Fang et al. 2021, arXiv 2101.04731): be as near to what a teacher saw before as the teacher is, without labels.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ssl_lab import losses
from ssl_lab.batch import At, Rows
from ssl_lab.errors import UsageError
from ssl_lab.methods.distillation.base import Distillation
from ssl_lab.methods.distillation.hooks import Seen, adapters
from ssl_lab.methods.distillation.teacher import Teacher
from ssl_lab.methods.queues import push
from ssl_lab.methods.ranks import Notes
from ssl_lab.nets import Net
from ssl_lab.schedule import Scalar
from ssl_lab.seeds import generator
from ssl_lab.views import ViewFactory, Weak


class SEED(Distillation):
    """L = labeled * H(y, p(x)) + weight * (1/b) sum_i H(p_t(i), p_s(i))

    p_t(i) = softmax(t_i . [t_i, d_1 ... d_K] / T_t),    p_s(i) = softmax(s_i . [t_i, d_1 ... d_K] / T_s)

    t are the teacher's pooled features, s the student's after two linear layers with a ReLU between them, which learn
    and then are no more needed; both are scaled to length 1. The queue d holds the teacher's features of the last
    images, of all ranks; at first, random directions.

    The paper has no labels, and so no first term. Its queue has 65,536 places, for teachers whose heads embed in 128
    numbers; here they are as wide as the teacher's features.

    Args:
        temperature: T_s.
        teacher_temperature: T_t.
        queue: K.

    >>> pool = sl.load("digits").split(labels=10)
    >>> teacher = sl.net("tiny_6", classes=10, style=pool.style, seed=9)
    >>> method = sl.SEED(sl.net("tiny_4", classes=10, style=pool.style), teacher, queue=64)
    >>> at = sl.At(0, 100)
    >>> loss = method(sl.Feed(pool, method.views, 4, 12, seed=0)(at), at)
    >>> 0 < loss.terms["distilled"].item()
    True
    >>> before = method.queue.clone()
    >>> method.after_step(at)
    >>> int((method.queue != before).any(dim=1).sum())  # the teacher's features of this step came in
    16
    """

    name = "seed"
    paper = "SEED: Self-supervised Distillation For Visual Representation"
    arxiv = "2101.04731"
    reads = "features"
    queue: Tensor

    def __init__(self, net: Net, teacher: Net | Teacher, temperature: Scalar = 0.2, teacher_temperature: Scalar = 0.01,
                 queue: int = 4096, weight: Scalar = 1.0, labeled: Scalar = 1.0, view: ViewFactory = Weak,
                 ema: Scalar = 0.999) -> None:
        super().__init__(net, teacher, weight, labeled, view, ema)
        if queue < 1:
            raise UsageError(f"SEED with queue={queue}: expected at least 1 place")
        self.temperature, self.teacher_temperature = temperature, teacher_temperature
        dim = self.teacher.net.features_dim
        (self.projector,) = adapters(_mlp, [(net.features_dim, dim)])
        self.register_buffer("queue", F.normalize(torch.randn(queue, dim, generator=generator("seed", "queue")), dim=1))
        self.notes = Notes()

    def distance(self, student: Seen, teacher: Seen, rows: Rows, at: At) -> Tensor:
        s, t = F.normalize(self.projector(student.features), dim=1), F.normalize(teacher.features, dim=1)
        self.notes.put(at, rows.indices, t)
        return seed_loss(s, t, self.queue, at.value(self.temperature), at.value(self.teacher_temperature))

    @torch.no_grad()
    def after_step(self, at: At) -> None:
        super().after_step(at)
        indices, embeddings = self.notes.rows()
        push(self.queue, embeddings[indices.argsort()].to(self.queue.dtype), at.step)  # in one order on any ranks


def seed_loss(student: Tensor, teacher: Tensor, queue: Tensor, temperature: float,
              teacher_temperature: float) -> Tensor:
    """The equation in SEED's docstring, a scalar. student, teacher: [B, D], and queue: [K, D], of length 1."""
    own_s, own_t = ((each * teacher).sum(dim=1, keepdim=True) for each in (student, teacher))
    scores = torch.cat([own_s, student @ queue.T], dim=1) / temperature
    target = torch.cat([own_t, teacher @ queue.T], dim=1) / teacher_temperature
    return losses.cross_entropy(scores, target.softmax(dim=1))


def _mlp(inputs: int, outputs: int) -> nn.Module:
    return nn.Sequential(nn.Linear(inputs, inputs), nn.ReLU(), nn.Linear(inputs, outputs))
