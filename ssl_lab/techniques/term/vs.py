"""The VS loss (Kini et al. 2021) with deferred re-weighting, as in Rangwani et al. 2022 (arXiv 2212.13827)."""

from __future__ import annotations

from torch import Tensor

from ssl_lab.batch import At
from ssl_lab.schedule import Scalar
from ssl_lab.techniques.term.deferred import DEFERRED, Deferred


class VS(Deferred):
    """H(y, softmax(z_k (n_k / n_max)^gamma + tau log pi_k)),    pi_k = n_k / n

    with n_k the labeled images of class k (1 where there are none). With gamma = tau = 0 it is cross-entropy. Rows
    weigh as `Deferred` says.

    Checked against the authors' code (`losses.py`).

    Args:
        gamma: of the factors.
        tau: of the offsets.
        beta: of the weights.

    >>> pool = sl.load("digits").split(labels=10)
    >>> method = sl.Supervised(sl.net("tiny_4", classes=10, style=pool.style))
    >>> term = sl.VS(gamma=0.0, tau=0.0, beta=0.0).around(method, pool, seed=0)
    >>> batch = sl.Feed(pool, term.views, 8, 0, seed=0)(sl.At(0, 100))
    >>> both = [each(batch, sl.At(0, 100)).total for each in (term, method)]
    >>> torch.allclose(*both)  # it is cross-entropy then
    True
    """

    name = "vs"
    paper = "Escaping Saddle Points for Effective Generalization on Class-Imbalanced Data"
    arxiv = "2212.13827"

    def __init__(self, gamma: Scalar = 0.3, tau: Scalar = 1.0, beta: Scalar = DEFERRED) -> None:
        super().__init__()
        self.gamma, self.tau, self.beta = gamma, tau, beta

    def idle(self, at: At) -> bool:
        return at.value(self.gamma) == at.value(self.tau) == at.value(self.beta) == 0

    def adjusted(self, logits: Tensor, targets: Tensor, at: At) -> Tensor:
        return vector_scaled(logits, self.counts, at.value(self.gamma), at.value(self.tau))


def vector_scaled(logits: Tensor, counts: Tensor, gamma: float, tau: float) -> Tensor:
    """logits [B, C] times (n_k / n_max)^gamma, plus tau log(n_k / n). counts: float [C], above 0."""
    return logits * (counts / counts.max()) ** gamma + tau * (counts / counts.sum()).log()
