"""DIST (Huang et al. 2022, arXiv 2205.10536): match how classes, and images, relate, not each probability."""

from __future__ import annotations

from torch import Tensor

from ssl_lab.batch import At, Rows
from ssl_lab.methods.distillation.base import Distillation
from ssl_lab.methods.distillation.hooks import Seen
from ssl_lab.methods.distillation.teacher import Teacher
from ssl_lab.nets import Net
from ssl_lab.schedule import Scalar
from ssl_lab.views import ViewFactory, Weak


class DIST(Distillation):
    """L = labeled * H(y, p(x)) + weight * T^2 [beta (1 - mean_n rho(p_s, p_t)_n) + gamma (1 - mean_c rho(p_s, p_t)_c)]

    with p = softmax(z / T) [N, C] and rho the Pearson correlation: of each row n over the classes, and of each column
    c over the images of the batch (of a rank or micro-batch). The defaults are those for CIFAR-100.

    Args:
        beta, gamma: weights of rows and columns.
        temperature: T.

    >>> pool = sl.load("digits").split(labels=10)
    >>> teacher = sl.net("tiny_6", classes=10, style=pool.style, seed=9)
    >>> net = sl.net("tiny_4", classes=10, style=pool.style)
    >>> method = sl.DIST(net, teacher, beta=1.0, gamma=0.0, temperature=1.0)
    >>> batch = sl.Feed(pool, method.views, 4, 12, seed=0)(sl.At(0, 100))
    >>> loss = method(batch, sl.At(0, 100))
    >>> 0 <= loss.terms["distilled"].item() <= 2  # 1 - a correlation
    True
    """

    name = "dist"
    paper = "Knowledge Distillation from A Stronger Teacher"
    arxiv = "2205.10536"

    def __init__(self, net: Net, teacher: Net | Teacher, beta: Scalar = 2.0, gamma: Scalar = 2.0,
                 temperature: Scalar = 4.0, weight: Scalar = 1.0, labeled: Scalar = 1.0, view: ViewFactory = Weak,
                 ema: Scalar = 0.999) -> None:
        super().__init__(net, teacher, weight, labeled, view, ema)
        self.beta, self.gamma, self.temperature = beta, gamma, temperature

    def distance(self, student: Seen, teacher: Seen, rows: Rows, at: At) -> Tensor:
        temperature = at.value(self.temperature)
        p, q = ((seen.logits / temperature).softmax(dim=1) for seen in (student, teacher))
        among_classes, among_images = 1 - pearson(p, q).mean(), 1 - pearson(p.T, q.T).mean()
        return temperature**2 * (at.value(self.beta) * among_classes + at.value(self.gamma) * among_images)


def pearson(a: Tensor, b: Tensor) -> Tensor:
    """float [B]: the correlation of each row of a with the same row of b, both [B, C]; 0 where a row is constant.

    The same for u a + v, u > 0, but for deviations so small (1e-6) that the gradient would explode.
    """
    a, b = (rows - rows.mean(dim=1, keepdim=True) for rows in (a, b))
    a, b = (rows / (rows.square().sum(dim=1, keepdim=True) + 1e-12).sqrt() for rows in (a, b))
    return (a * b).sum(dim=1)
