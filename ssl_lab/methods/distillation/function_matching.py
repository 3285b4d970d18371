"""Function matching (Beyer et al. 2021, arXiv 2106.05237): a good teacher is patient and consistent."""

from __future__ import annotations

from dataclasses import replace

import torch

from ssl_lab.batch import At, Batch, Rows
from ssl_lab.methods.base import Views
from ssl_lab.methods.distillation.kd import KD
from ssl_lab.methods.distillation.teacher import Teacher
from ssl_lab.methods.mixture import Mix, beta_shares, check_mix, larger, mixture
from ssl_lab.nets import Net
from ssl_lab.schedule import Scalar
from ssl_lab.views import ViewFactory, Weak


class FunctionMatching(KD):
    """L = T^2 (1/N) sum_n KL(softmax(z_t(u'_n) / T) || softmax(z_s(u'_n) / T)),  u'_n = s_n u_n + (1 - s_n) u_m

    No labels: the teacher's function is matched on as many images as there can be, mixtures of two whose shares are
    drawn from Beta(alpha, alpha), and both nets see the same crop and the same mixture. It takes patience: the paper's
    best students take ten times the epochs of ordinary training.

    The paper's crops are Inception's; give such a view where images are large. It draws a share for each batch, here
    each image has one.

    Args:
        temperature: T, 1 to 10 in the paper, by data set.
        alpha: 1 draws shares uniformly, 0 mixes nothing.
        mix: "cutmix" pastes a rectangle of the other image, which the paper has not.

    >>> pool = sl.load("digits").split(labels=10)
    >>> teacher = sl.net("tiny_6", classes=10, style=pool.style, seed=9)
    >>> method = sl.FunctionMatching(sl.net("tiny_4", classes=10, style=pool.style), teacher)
    >>> batch = sl.Feed(pool, method.views, 4, 12, seed=0)(sl.At(0, 100))
    >>> loss = method(batch, sl.At(0, 100))
    >>> list(loss.terms), list(method.views.labeled)  # no label is used
    (['distilled'], [])
    """

    name = "function_matching"
    paper = "Knowledge distillation: A good teacher is patient and consistent"
    arxiv = "2106.05237"
    reads = "nets"

    def __init__(self, net: Net, teacher: Net | Teacher, temperature: Scalar = 1.0, alpha: float = 1.0,
                 view: ViewFactory = Weak, ema: Scalar = 0.999, mix: Mix = "mixup") -> None:
        super().__init__(net, teacher, temperature, weight=1.0, view=view, ema=ema)
        check_mix(mix)
        self.alpha, self.mix = alpha, mix
        self.views = Views(unlabeled={"view": view})

    def rows(self, batch: Batch, at: At) -> Rows:
        rows = super().rows(batch, at)
        images, draw = rows["view"], at.draw("function matching", len(rows))
        height, width = images.shape[2:]
        mixed = mixture([(draw, larger(beta_shares(draw, self.alpha))[:, None])], draw.child("partner"), self.mix,
                        (height, width), images.device)
        no_one = torch.full_like(rows.truth, -1)
        return replace(rows, views={"view": mixed.images(images)}, truth=no_one)  # a mixture has no one truth
