"""Cyclical focal loss (Smith 2022, arXiv 2202.08978): confident images first, hard ones in the middle, then back."""

from __future__ import annotations

from torch import Tensor

from ssl_lab import schedule
from ssl_lab.batch import At
from ssl_lab.errors import UsageError
from ssl_lab.methods.base import RowLosses
from ssl_lab.schedule import Scalar
from ssl_lab.techniques.term.labeled import LabeledTechnique, full, of_targets


class CyclicalFocal(LabeledTechnique):
    """L = -(1 / B) sum_b [eta (1 + p_b)^confident + (1 - eta) (1 - p_b)^hard] log p_b

    with p_b the probability of the label, through which the gradient passes everywhere, and eta = 1 - factor t while
    factor t < 1, then (factor t - 1) / (factor - 1), at the fraction t of training; with factor 1 it only falls.
    With both exponents 0 it is cross-entropy.

    Checked against the authors' code (`asl_focal_loss.py`), whose t is epoch / (epochs - 1), and whose label smoothing
    (0.1) and exponent of the other classes are left out. Targets that are mixed, which it does not take, have the mean
    of their classes' weights.

    Args:
        factor: 1 / factor of training goes from confident to hard.
        confident, hard: gamma_hc and gamma_lc in the paper.

    >>> pool = sl.load("digits").split(labels=10)
    >>> method = sl.Supervised(sl.net("tiny_4", classes=10, style=pool.style))
    >>> term = sl.CyclicalFocal(confident=0.0, hard=0.0).around(method, pool, seed=0)
    >>> batch = sl.Feed(pool, term.views, 8, 0, seed=0)(sl.At(0, 100))
    >>> both = [each(batch, sl.At(0, 100)).total for each in (term, method)]
    >>> torch.equal(*both)  # without exponents it is cross-entropy
    True
    """

    name = "cyclical_focal"
    paper = "Cyclical Focal Loss"
    arxiv = "2202.08978"

    def __init__(self, factor: float = 4.0, confident: Scalar = 3.0, hard: Scalar = 2.0) -> None:
        super().__init__()
        if factor < 1:
            raise UsageError(f"cyclical_focal: factor={factor}; expected 1 or more")
        self.factor, self.confident, self.hard = factor, confident, hard

    def idle(self, at: At) -> bool:
        return at.value(self.confident) == at.value(self.hard) == 0

    def row_losses(self, logits: Tensor, targets: Tensor, at: At, then: RowLosses) -> Tensor:
        eta = schedule.cyclical(1.0, 0.0, factor=self.factor)(at.frac)
        weights = focal_weights(logits, targets, eta, at.value(self.confident), at.value(self.hard))
        return weights * then(logits, targets)


def focal_weights(logits: Tensor, targets: Tensor, eta: float, confident: float, hard: float) -> Tensor:
    """eta (1 + p)^confident + (1 - eta) (1 - p)^hard of each row's label, float [B], with gradient.

    logits: float [B, C]. targets: int64 [B], or probabilities [B, C].
    """
    p = full(logits).softmax(dim=1).clamp(max=1 - 1e-7)  # at 1 the slope of (1 - p)^hard can be infinite
    return of_targets(eta * (1 + p) ** confident + (1 - eta) * (1 - p) ** hard, targets)
