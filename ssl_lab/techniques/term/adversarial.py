"""Adversarial training (Madry et al. 2018), with a curriculum (SAT, Sitawarin et al. 2020), and of second order."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import ClassVar

from torch import Tensor

from ssl_lab import schedule
from ssl_lab.batch import At, Batch, Loss
from ssl_lab.data import Pool
from ssl_lab.errors import UsageError
from ssl_lab.methods import Method
from ssl_lab.schedule import Scalar, extremes
from ssl_lab.techniques.attack import pgd, second_order
from ssl_lab.techniques.base import TermTechnique

NAMES = ("adversarial", "sat", "second_order")
CURRICULUM = schedule.warm_up(0.3, schedule.linear(0.0, 0.4, until=4 / 7))


class Attacked(TermTechnique):
    """The method sees attacked images in place of its labeled ones, under each of their views, and is attacked with
    their labels. Unlabeled images stay as they are. The attack is on the net that learns, in evaluation mode, in
    float32, and the same in each pass of a step."""

    radius: Scalar
    excludes: ClassVar[Mapping[str, str]] = dict.fromkeys(NAMES, "images are attacked once")

    def check(self, method: Method, pool: Pool) -> None:
        if not method.classifies or not method.views.labeled:
            raise UsageError(f"{self.name} attacks labeled images, and {method.name} has none")

    def forward(self, batch: Batch, at: At) -> Loss:
        if at.value(self.radius) == 0:
            return super().forward(batch, at)
        rows = batch.labeled
        views = {name: self.attack(x, rows.targets, at, name) for name, x in rows.views.items()}
        return super().forward(replace(batch, labeled=replace(rows, views=views)), at)

    def attack(self, x: Tensor, targets: Tensor, at: At, view: str) -> Tensor:
        """Like x, float [B, C, H, W] in [0, 1], in which it stays. targets: int64 [B]."""
        raise NotImplementedError


class Adversarial(Attacked):
    """L at x' for x, x' the worst image that `pgd` finds in the box |x' - x| <= radius from a random start in it.

    By the paper's equation, beside the authors' code of SAT (`adv_model.py`), which has both.

    Each step passes the labeled images `steps` times more, forward and backward.

    Args:
        radius: in pixels of [0, 1]; 8/255 is usual for photographs, 0.3 for MNIST.
        gap: rows move only while the likeliest other class leads by at most so much; 1 is plain adversarial
            training, and `sat` has a curriculum of it.
        size, steps: of ascent: the length of each step, in pixels of [0, 1], and their number.

    >>> pool = sl.load("digits").split(labels=10)
    >>> method = sl.Supervised(sl.net("tiny_4", classes=10, style=pool.style))
    >>> term = sl.Adversarial(radius=0.1, size=0.05, steps=3).around(method, pool, seed=0)
    >>> batch = sl.Feed(pool, term.views, 8, 0, seed=0)(sl.At(0, 100))
    >>> bool(term(batch, sl.At(0, 100)).total > method(batch, sl.At(0, 100)).total)  # of the worst images nearby
    True
    """

    name = "adversarial"
    paper = "Towards Deep Learning Models Resistant to Adversarial Attacks"
    arxiv = "1706.06083"
    serves = "robustness"

    def __init__(self, radius: Scalar = 8 / 255, size: Scalar = 2 / 255, steps: int = 10, gap: Scalar = 1.0) -> None:
        super().__init__()
        if steps < 1 or extremes(radius)[0] < 0 or extremes(size)[0] < 0:
            raise UsageError(f"{self.name}: radius={radius}, size={size}, steps={steps}; expected 0 or more, and 1 "
                             "step or more")
        self.radius, self.size, self.steps, self.gap = radius, size, steps, gap

    def attack(self, x: Tensor, targets: Tensor, at: At, view: str) -> Tensor:
        draw = at.draw(f"attack/{view}", len(x), x.device)
        noise = draw.to_device(draw.uniform(*x.shape[1:], low=-1.0)).to(x.dtype)
        return pgd(self.net, x, targets, at.value(self.radius), self.steps, at.value(self.size), noise,
                   at.value(self.gap))


class SAT(Adversarial):
    """Adversarial training in which `gap`, how wrong attacked images may become, grows: easy ones first.

    Args:
        gap: 0 until 30% of training, then linearly to 0.4 at 70%, as in the authors' code (`adv_model.py`: epochs
            30 to 70 of 100), whose variant by confidence this is; the paper's other one, by the curvature of the
            loss, is left out.

    >>> pool = sl.load("digits").split(labels=10)
    >>> method = sl.Supervised(sl.net("tiny_4", classes=10, style=pool.style))
    >>> term = sl.SAT(radius=0.1, size=0.05, steps=3).around(method, pool, seed=0)
    >>> batch = sl.Feed(pool, term.views, 8, 0, seed=0)(sl.At(0, 100))
    >>> [round(sl.At(step, 100).value(term.gap), 2) for step in (0, 30, 50, 70)]  # easy ones first
    [0.0, 0.0, 0.2, 0.4]
    """

    name = "sat"
    paper = "SAT: Improving Adversarial Training via Curriculum-Based Loss Smoothing"
    arxiv = "2003.09347"
    serves = "robustness"

    def __init__(self, radius: Scalar = 8 / 255, size: Scalar = 2 / 255, steps: int = 10,
                 gap: Scalar = CURRICULUM) -> None:
        super().__init__(radius, size, steps, gap)


class SecondOrder(Attacked):
    """L at x' for x, x' one step of length `radius` along what a Krylov space of gradient and Hessian holds best.

    `ssl_lab.techniques.attack.second_order` has the equations. They are ours: of the paper only the abstract and that
    it solves in a Krylov space in place of inverting the Hessian are known, and no code was read.

    Args:
        radius: L2, in pixels of [0, 1]: 0.5 is usual for CIFAR, 1.5 for MNIST.
        size: of the Krylov space; 1 is the step along the gradient.

    >>> pool = sl.load("digits").split(labels=10)
    >>> method = sl.Supervised(sl.net("tiny_4", classes=10, style=pool.style))
    >>> term = sl.SecondOrder(radius=0.5).around(method, pool, seed=0)
    >>> batch = sl.Feed(pool, term.views, 8, 0, seed=0)(sl.At(0, 100))
    >>> bool(term(batch, sl.At(0, 100)).total > method(batch, sl.At(0, 100)).total)
    True
    """

    name = "second_order"
    paper = "Hessian-Free Second-Order Adversarial Examples for Adversarial Learning"
    arxiv = "2207.01396"
    serves = "robustness"

    def __init__(self, radius: Scalar = 0.5, size: int = 3) -> None:
        super().__init__()
        if size < 1 or extremes(radius)[0] < 0:
            raise UsageError(f"second_order: radius={radius}, size={size}; expected a radius of 0 or more, and a "
                             "space of 1 dimension or more")
        self.radius, self.size = radius, size

    def attack(self, x: Tensor, targets: Tensor, at: At, view: str) -> Tensor:
        return second_order(self.net, x, targets, at.value(self.radius), self.size)
