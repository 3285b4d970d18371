"""Class weights: labeled images of rare classes count more."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import torch
from torch import Tensor

from ssl_lab.batch import At
from ssl_lab.data import Pool
from ssl_lab.errors import UsageError
from ssl_lab.methods import Method
from ssl_lab.methods.base import RowLosses
from ssl_lab.schedule import Scalar
from ssl_lab.techniques.term.labeled import LabeledTechnique, class_counts, of_targets

WHY = "both make up for rare classes, and together they overdo it"


class ClassWeights(LabeledTechnique):
    """L = (1 / B) sum_b w_(y_b) l_b,    w_k = n_k^-power / (mean of n^-power over the labeled images)

    with n_k the labeled images of class k (1 where there are none): with power 1 it is n / (C n_k), scikit-learn's
    `class_weight="balanced"`, and with 0 nothing changes. Unlike torch's weighted mean, which divides by the weights of
    the batch, it divides by the number of rows: micro-batches and ranks then take the step of the whole batch.

    Args:
        weights: "auto", as above, or a number for each class.
        power: of auto.

    >>> pool = sl.load("digits").split(labels=10)
    >>> method = sl.Supervised(sl.net("tiny_4", classes=10, style=pool.style))
    >>> term = sl.ClassWeights().around(method, pool, seed=0)
    >>> batch = sl.Feed(pool, term.views, 8, 0, seed=0)(sl.At(0, 100))
    >>> term.counts  # of the labeled images; all the same, so that all weights are 1
    tensor([1., 1., 1., 1., 1., 1., 1., 1., 1., 1.])
    >>> torch.allclose(term(batch, sl.At(0, 100)).total, method(batch, sl.At(0, 100)).total)
    True
    """

    name = "class_weights"
    paper = "Weights of classes by the inverse of their counts"
    arxiv = ""
    excludes: ClassVar = {"oversample": WHY, "undersample": WHY}
    counts: Tensor

    def __init__(self, weights: str | Sequence[float] = "auto", power: Scalar = 1.0) -> None:
        super().__init__()
        if weights != "auto" and (isinstance(weights, str) or not all(w >= 0 for w in weights)):
            raise UsageError(f'class_weights: weights={weights!r}; expected "auto", or a number for each class, 0 or '
                             "more")
        self.weights, self.power = weights, power

    def check(self, method: Method, pool: Pool) -> None:
        super().check(method, pool)
        if self.weights != "auto" and len(self.weights) != pool.classes:
            raise UsageError(f"class_weights: {len(self.weights)} weights are given, and {pool.name} has "
                             f"{pool.classes} classes ({', '.join(pool.class_names)})")

    def begin(self, pool: Pool, seed: int) -> None:
        self.register_buffer("counts", class_counts(pool), persistent=False)

    def idle(self, at: At) -> bool:
        return self.weights == "auto" and at.value(self.power) == 0

    def row_losses(self, logits: Tensor, targets: Tensor, at: At, then: RowLosses) -> Tensor:
        weights = (balanced(self.counts, at.value(self.power)) if isinstance(self.weights, str) else
                   torch.tensor(list(self.weights), dtype=torch.float32).to(logits.device, non_blocking=True))
        return of_targets(weights, targets) * then(logits, targets)


def balanced(counts: Tensor, power: float) -> Tensor:
    """float [C]: in proportion to counts^-power, so that the mean over all images is 1. counts: float [C], above 0."""
    weights = counts**-power
    return weights * counts.sum() / (weights * counts).sum()
