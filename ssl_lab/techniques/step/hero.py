"""HERO (Yang et al. 2022, arXiv 2111.11986): a small gradient nearby, and little curvature there."""

from __future__ import annotations

import torch

from ssl_lab.batch import At, Loss
from ssl_lab.optim import Closure
from ssl_lab.schedule import Scalar
from ssl_lab.techniques.base import StepTechnique
from ssl_lab.techniques.step.nearby import EPSILON, gradients, learning, moved, set_gradients


class HERO(StepTechnique):
    """The optimizer's step at w by g' + dR/dw',    g' = grad L(w + e),    R = weight sum_t mean_t (g' - g)^2

    with g = grad L(w), w' = w + e and e = radius w^2 g / (|| |w| g ||_2 + 1e-12), element by element and with one norm
    of all parameters, as in adaptive SAM. g and e are constants where R is differentiated, so that dR/dw' is the
    product of the Hessian at w' with 2 weight / n_t (g' - g), n_t the size of tensor t; biases and norms (fewer than 2
    dimensions) are left out of R. It differentiates twice: a step passes the net three times forward. The reported loss
    is L(w).

    Checked against the authors' code (Xiaoxuan-Yang/HERO at 6a94c47, `cifar_hero.py` and `sam.py`), which has these
    defaults, and 0.5 and 5 in its README. There BatchNorm's statistics move in both passes, and the first epoch, which
    leaves out R, takes steps of momentum and decay alone.

    Args:
        radius: h in the paper.
        weight: l, gamma in the paper; 0 is adaptive SAM, and both 0 the plain step.

    >>> pool = sl.load("digits").split(labels=10)
    >>> def head(*rules):
    ...     method = sl.Supervised(sl.net("tiny_4", classes=10, style=pool.style))
    ...     trainer = sl.Trainer(steps=2, techniques=rules, device="cpu", callbacks=[])
    ...     return trainer.fit(method, pool, labeled=8, unlabeled=0).method.net.head.weight
    >>> plain, adaptive = head(), head(sl.HERO(radius=0.01, weight=0.0))
    >>> torch.equal(head(sl.HERO(radius=0.0, weight=0.0)), plain)  # the plain step
    True
    >>> bent = head(sl.HERO(radius=0.01, weight=1.0))
    >>> bool((adaptive - plain).norm() > 0), bool((bent - adaptive).norm() > 0)  # and what curvature adds
    (True, True)
    """

    name = "hero"
    paper = "HERO: Hessian-Enhanced Robust Optimization for Unifying and Improving Generalization and Quantization"
    arxiv = "2111.11986"

    def __init__(self, radius: Scalar = 0.01, weight: Scalar = 1.0) -> None:
        super().__init__()
        self.radius, self.weight = radius, weight

    def forward(self, closure: Closure, optimizer: torch.optim.Optimizer, at: At) -> Loss:
        loss = closure()
        weights, strength = learning(optimizer), at.value(self.weight)
        here = gradients(weights)
        with torch.no_grad():
            scaled = torch.nn.utils.get_total_norm([w.abs() * g for w, g in zip(weights, here, strict=True)])
            length = at.value(self.radius) / (scaled + EPSILON)
            shifts = [length * w.square() * g for w, g in zip(weights, here, strict=True)]
        with moved(weights, shifts):
            closure()
            there = gradients(weights)
            if strength:
                changes = [2 * strength / w.numel() * (b - a) if w.ndim >= 2 else torch.zeros_like(b)
                           for w, a, b in zip(weights, here, there, strict=True)]
                bent = closure.curvature(weights, changes)
                there = [slope + bend for slope, bend in zip(there, bent, strict=True)]
        set_gradients(weights, there)
        optimizer.step()
        return loss
