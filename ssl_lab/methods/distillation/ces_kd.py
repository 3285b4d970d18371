"""CES-KD (Amara et al. 2022, arXiv 2209.07606): easy images are taught by small teachers, hard ones by large ones."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ssl_lab.methods.distillation.hooks import Seen, see
from ssl_lab.methods.distillation.kd import KD
from ssl_lab.methods.distillation.teacher import Teacher
from ssl_lab.nets import Net
from ssl_lab.schedule import Scalar
from ssl_lab.views import ViewFactory, Weak


class CESKD(KD):
    """L = labeled * H(y, p(x)) + weight * T^2 (1/N) sum_n KL(softmax(z_k(n) / T) || softmax(z_s / T))

    with one teacher k(n) for each image: k(n) = 1 .. K, the place of image n's difficulty among the K quantiles of the
    (micro-)batch. Difficulty is here 1 - max_c p_c of the last teacher, so that it needs no label and
    no pass over the pool. Only the last teacher sees all images. With one teacher this is KD.

    Args:
        teacher: Teacher(first, ..., last), from the smallest net (a teacher's assistant) to the largest.
        temperature: T.

    >>> pool = sl.load("digits").split(labels=10)
    >>> style = pool.style
    >>> ladder = sl.methods.Teacher(*(sl.net(name, classes=10, style=style) for name in ("tiny_4", "tiny_8")))
    >>> method = sl.CESKD(sl.net("tiny_4", classes=10, style=pool.style), ladder)
    >>> batch = sl.Feed(pool, method.views, 4, 12, seed=0)(sl.At(0, 100))
    >>> loss = method(batch, sl.At(0, 100))
    >>> len(ladder.members)
    2
    """

    name = "ces_kd"
    paper = "CES-KD: Curriculum-based Expert Selection for Guided Knowledge Distillation"
    arxiv = "2209.07606"
    reads = "nets"

    def __init__(self, net: Net, teacher: Net | Teacher, temperature: Scalar = 4.0, weight: Scalar = 0.9,
                 labeled: Scalar = 0.1, view: ViewFactory = Weak, ema: Scalar = 0.999) -> None:
        teacher = teacher if isinstance(teacher, Teacher) else Teacher(teacher)
        if not teacher.fixed:
            teacher = Ladder(*teacher.members, image_size=teacher.image_size, classifies=teacher.classifies)
        super().__init__(net, teacher, temperature, weight, labeled, view, ema)


class Ladder(Teacher):
    """Nets of which one answers for each image: the first for the easiest 1/K of a batch, the last for the hardest."""

    @torch.no_grad()
    def forward(self, images: Tensor, indices: Tensor, layers: Sequence[str] = ()) -> Seen:
        images = self.resized(images)
        *others, last = self.members
        logits = see(last, images).logits
        easiest_first = logits.softmax(dim=1).amax(dim=1).argsort(descending=True, stable=True)
        for each, rows in zip(others, easiest_first.tensor_split(len(self.members)), strict=False):
            if len(rows):
                logits = logits.index_copy(0, rows, see(each, images[rows]).logits)
        return Seen(logits, images.new_empty(len(images), 0))
