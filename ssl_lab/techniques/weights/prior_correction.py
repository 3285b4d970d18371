"""Prior correction (Buda et al. 2018, arXiv 1710.05381): predictions as if all classes were equally frequent."""

from __future__ import annotations

import copy

import torch
from torch import Tensor

from ssl_lab.data import Pool
from ssl_lab.errors import UsageError
from ssl_lab.methods import Method
from ssl_lab.nets import Net
from ssl_lab.techniques.base import WeightsTechnique
from ssl_lab.techniques.term.labeled import class_counts


class PriorCorrection(WeightsTechnique):
    """softmax(z - strength log pi) ~ p_k / pi_k^strength,    pi_k = n_k / n

    by the bias of the head of the net that is evaluated and exported ("thresholding" in the paper); training is as
    ever. n_k are the labeled images of class k before any sampling (1 where there are none). Where the method itself
    evens out the classes, it corrects too much.

    The paper's text; no code was read.

    Args:
        strength: 1 is the paper's, 0 changes nothing.

    >>> pool = sl.load("digits").split(labels=30, imbalance=5.0)  # six zeros, one nine
    >>> method = sl.Supervised(sl.net("tiny_4", classes=10, style=pool.style))
    >>> whole = sl.PriorCorrection(strength=1.0).around(method, pool, seed=0)
    >>> moved = whole.predictor().head.bias - method.net.head.bias
    >>> round((moved[9] - moved[0]).exp().item(), 2)  # so much likelier is a nine beside a zero
    6.0
    """

    name = "prior_correction"
    paper = "A systematic study of the class imbalance problem in convolutional neural networks"
    arxiv = "1710.05381"
    writes = False
    counts: Tensor

    def __init__(self, strength: float = 1.0) -> None:
        super().__init__()
        self.strength = strength

    def check(self, method: Method, pool: Pool) -> None:
        if not method.classifies:
            raise UsageError(f"prior_correction changes predictions of classes, and {method.name} trains no classifier")

    def begin(self, pool: Pool, seed: int) -> None:
        self.register_buffer("counts", class_counts(pool), persistent=False)

    @torch.no_grad()
    def predictor(self) -> Net:
        net = copy.deepcopy(super().predictor())
        if self.strength:
            net.head.bias.sub_(self.strength * log_priors(self.counts))
        return net


def log_priors(counts: Tensor) -> Tensor:
    """log(n_k / n) less its mean, float [C]: exactly 0 where all counts are equal. counts: float [C], above 0."""
    logs = (counts / counts.max()).log()
    return logs - logs.mean()
