"""LDAM (Cao et al. 2019) with deferred re-weighting, as in Rangwani et al. 2022 (arXiv 2212.13827)."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from ssl_lab.batch import At
from ssl_lab.schedule import Scalar
from ssl_lab.techniques.term.deferred import DEFERRED, Deferred


class LDAM(Deferred):
    """H(y, softmax(z - scale m_y e_y)),    m_k = margin (n_min / n_k)^(1/4)

    with n_k the labeled images of class k: rare classes are to win by more. Rows weigh as `Deferred` says. With SAM
    (`--with "sam(rho=0.8)"`, 0.5 for VS) it is the paper's recipe for long tails.

    margin: that of the rarest class. scale: of the logits z. In the authors' code (`losses.py`), which this was checked
    against, they are 30 cosines, so that scale is 30; here they are the net's own, of which the margin is taken as it
    is. beta: of the weights.
    """

    name = "ldam"
    paper = "Escaping Saddle Points for Effective Generalization on Class-Imbalanced Data"
    arxiv = "2212.13827"

    def __init__(self, margin: Scalar = 0.5, scale: Scalar = 1.0, beta: Scalar = DEFERRED) -> None:
        super().__init__()
        self.margin, self.scale, self.beta = margin, scale, beta

    def idle(self, at: At) -> bool:
        return at.value(self.margin) == at.value(self.beta) == 0

    def adjusted(self, logits: Tensor, targets: Tensor, at: At) -> Tensor:
        return logits - at.value(self.scale) * margins(self.counts, targets, at.value(self.margin))


def margins(counts: Tensor, targets: Tensor, margin: float) -> Tensor:
    """margin (n_min / n_k)^(1/4) in the column of a row's label, 0 in the others, float [B, C]; by shares of targets
    that are mixed. counts: float [C], above 0."""
    shares = targets if targets.ndim == 2 else F.one_hot(targets, len(counts))
    return shares * (margin * (counts.min() / counts) ** 0.25)
