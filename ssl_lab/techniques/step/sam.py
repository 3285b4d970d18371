"""SAM (Foret et al. 2021, arXiv 2010.01412): the gradient at the worst weights nearby."""

from __future__ import annotations

import torch

from ssl_lab.batch import At, Loss, mean_loss
from ssl_lab.errors import UsageError
from ssl_lab.optim import Closure, plain
from ssl_lab.schedule import Scalar
from ssl_lab.techniques.base import StepTechnique
from ssl_lab.techniques.step.nearby import along, gradients, learning, mean_of, moved, set_gradients


class SAM(StepTechnique):
    """The optimizer's step at w by grad L(w + e),    e = rho g / (||g||_2 + 1e-12),    g = grad L(w)

    with one norm of all parameters together. Both passes see the same views, and only the first one moves BatchNorm's
    running statistics. The reported loss is L(w).

    Checked against copies of its usual form in PyTorch (davda54/sam), which leaves BatchNorm to its caller; parts and
    after are by the definitions of the second paper, of which no code was read.

    Args:
        rho: the radius.
        parts: cuts the batch into so many equal parts, each with an e of its own, and averages their gradients:
            m-sharpness, m = batch / parts (Andriushchenko and Flammarion 2022, arXiv 2206.06232). Each part is
            normalized by its own statistics, as a micro-batch is; of micro-batches and ranks, each is cut.
        after: plain steps until this fraction of training (the same paper: the last epochs suffice).

    >>> pool = sl.load("digits").split(labels=10)
    >>> def head(*rules):
    ...     method = sl.Supervised(sl.net("tiny_4", classes=10, style=pool.style))
    ...     trainer = sl.Trainer(steps=2, techniques=rules, device="cpu", callbacks=[])
    ...     return trainer.fit(method, pool, labeled=8, unlabeled=0).method.net.head.weight
    >>> plain = head()
    >>> torch.equal(head(sl.SAM(rho=0.0)), plain), torch.equal(head(sl.SAM(rho=0.05)), plain)  # 0: the plain step
    (True, False)
    """

    name = "sam"
    paper = "Sharpness-Aware Minimization for Efficiently Improving Generalization"
    arxiv = "2010.01412"

    def __init__(self, rho: Scalar = 0.05, parts: int = 1, after: float = 0.0) -> None:
        super().__init__()
        if parts < 1 or not 0 <= after <= 1:
            raise UsageError(f"sam: parts={parts}, after={after}; expected 1 part or more, and after from 0 to 1")
        self.rho, self.parts, self.after = rho, parts, after

    def forward(self, closure: Closure, optimizer: torch.optim.Optimizer, at: At) -> Loss:
        if at.frac < self.after:
            return plain(closure, optimizer, at)
        losses, found = [], []
        for part in closure.parts(self.parts):
            losses.append(part())
            weights = learning(optimizer)
            with moved(weights, along(gradients(weights), at.value(self.rho))):
                part()
            found.append(gradients(weights))
        if len(found) > 1:
            set_gradients(weights, mean_of(found))
        optimizer.step()
        return mean_loss(losses)
