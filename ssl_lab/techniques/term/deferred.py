"""Deferred re-weighting (Cao et al. 2019, as in Rangwani et al. 2022, arXiv 2212.13827), which LDAM and VS share."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ssl_lab import schedule
from ssl_lab.batch import At
from ssl_lab.data import Pool
from ssl_lab.methods.base import RowLosses
from ssl_lab.schedule import Scalar
from ssl_lab.techniques.term.labeled import LabeledTechnique, class_counts, of_targets

DEFERRED = schedule.switch(0.0, 0.9999, 0.8)
"""No weights, and from epoch 160 of the paper's 200 on those of beta 0.9999."""


class Deferred(LabeledTechnique):
    """w_(y_b) l(logits, y_b),    w_k ~ (1 - beta) / (1 - beta^n_k),    sum_k w_k = C

    with n_k the labeled images of class k (1 where there are none); the mean is over rows, so that micro-batches and
    ranks take the step of the whole batch, where the authors' code divides by the weights of the batch.
    """

    beta: Scalar
    counts: Tensor

    def begin(self, pool: Pool, seed: int) -> None:
        self.register_buffer("counts", class_counts(pool), persistent=False)

    def adjusted(self, logits: Tensor, targets: Tensor, at: At) -> Tensor:
        """The logits of which the loss is made, float [B, C]."""
        raise NotImplementedError

    def row_losses(self, logits: Tensor, targets: Tensor, at: At, then: RowLosses) -> Tensor:
        losses = then(self.adjusted(logits, targets, at), targets)
        beta = at.value(self.beta)
        return of_targets(effective(self.counts, beta), targets) * losses if beta else losses


def effective(counts: Tensor, beta: float) -> Tensor:
    """(1 - beta) / (1 - beta^n_k), scaled to the sum C, float [C]: by the effective number of samples (Cui et al. 2019,
    arXiv 1901.05555). beta: 0 to below 1; 0 gives 1 to all. counts: float [C], of 1 or more."""
    log = math.log(beta) if beta else -math.inf
    weights = (1 - beta) / -torch.expm1(counts.double() * log)
    return (weights * len(counts) / weights.sum()).to(counts.dtype)
