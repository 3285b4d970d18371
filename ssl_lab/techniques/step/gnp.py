"""GNP (Zhao et al. 2022, arXiv 2202.03599): the norm of the gradient as a penalty, to first order."""

from __future__ import annotations

import torch

from ssl_lab.batch import At, Loss
from ssl_lab.errors import UsageError
from ssl_lab.optim import Closure, plain
from ssl_lab.schedule import Scalar
from ssl_lab.techniques.base import StepTechnique
from ssl_lab.techniques.step.nearby import along, gradients, learning, moved, set_gradients


class GNP(StepTechnique):
    """The optimizer's step by (1 - alpha) g + alpha grad L(w + radius g / ||g||_2),    g = grad L(w)

    which is the gradient of L + alpha radius ||grad L||, with the Hessian's product by a finite difference. alpha 1 is
    SAM, alpha 0 the plain step; in between it weighs both, and the paper finds neither end best. Both passes see the
    same views; BatchNorm's running statistics move in the first one alone. The reported loss is L(w).

    By the paper's equation; no code was read.

    Args:
        radius: r in the paper.
        alpha: lambda / r.

    >>> pool = sl.load("digits").split(labels=10)
    >>> def head(*rules):
    ...     method = sl.Supervised(sl.net("tiny_4", classes=10, style=pool.style))
    ...     trainer = sl.Trainer(steps=2, techniques=rules, device="cpu", callbacks=[])
    ...     return trainer.fit(method, pool, labeled=8, unlabeled=0).method.net.head.weight
    >>> torch.equal(head(sl.GNP(alpha=0.0)), head())  # the plain step
    True
    >>> torch.equal(head(sl.GNP(radius=0.05, alpha=1.0)), head(sl.SAM(rho=0.05)))
    True
    """

    name = "gnp"
    paper = "Penalizing Gradient Norm for Efficiently Improving Generalization in Deep Learning"
    arxiv = "2202.03599"

    def __init__(self, radius: Scalar = 0.05, alpha: Scalar = 0.8) -> None:
        super().__init__()
        if not callable(alpha) and not 0 <= alpha <= 1:
            raise UsageError(f"gnp: alpha={alpha}; expected 0 (plain steps) to 1 (SAM)")
        self.radius, self.alpha = radius, alpha

    def forward(self, closure: Closure, optimizer: torch.optim.Optimizer, at: At) -> Loss:
        alpha = at.value(self.alpha)
        if not alpha:
            return plain(closure, optimizer, at)
        loss = closure()
        weights = learning(optimizer)
        here = gradients(weights)
        with moved(weights, along(here, at.value(self.radius))):
            closure()
        if alpha < 1:
            set_gradients(weights, [g + alpha * (there - g) for g, there in zip(here, gradients(weights), strict=True)])
        optimizer.step()
        return loss
