"""What techniques share that put another loss of the labeled rows in the place of cross-entropy."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ssl_lab.batch import At, Batch, Loss
from ssl_lab.data import Pool
from ssl_lab.errors import UsageError
from ssl_lab.methods import Method
from ssl_lab.methods.base import RowLosses
from ssl_lab.techniques.base import TermTechnique


class LabeledTechnique(TermTechnique):
    """The loss of labeled rows is `row_losses` instead, wherever the method has its labeled term. Of several, each is
    made from the next one, the last from cross-entropy: the first one given changes the logits first."""

    def check(self, method: Method, pool: Pool) -> None:
        if not method.classifies or not method.views.labeled:
            raise UsageError(f"{self.name} changes the loss of labeled images, and {method.name} has none")

    def row_losses(self, logits: Tensor, targets: Tensor, at: At, then: RowLosses) -> Tensor:
        """float [B]. logits: float [B, C], of 32 bits at least. targets: int64 [B], or probabilities [B, C] where the
        method mixes images. then: the losses that this one changes."""
        raise NotImplementedError

    def idle(self, at: At) -> bool:
        """Whether it changes nothing now. The method's own loss is then left alone, bit by bit."""
        return False

    def forward(self, batch: Batch, at: At) -> Loss:
        return super().forward(batch, at) if self.idle(at) else self.by(self.row_losses, batch, at)

    def by(self, row_losses: Callable[[Tensor, Tensor, At, RowLosses], Tensor], batch: Batch, at: At) -> Loss:
        """The loss of a batch with the losses of labeled rows by `row_losses`."""
        asked = []

        def wrap(then: RowLosses) -> RowLosses:
            def losses(logits: Tensor, targets: Tensor) -> Tensor:
                asked.append(True)
                return row_losses(full(logits), targets, at, then)
            return losses

        with self.base.labeled_by(wrap):
            loss = super().forward(batch, at)
        if not asked:
            raise UsageError(f"{self.name} changes the loss of labeled images, and {self.base.name} has none of its "
                             "own: a method asks for it by self.labeled_loss(logits, targets)")
        return loss


def full(logits: Tensor) -> Tensor:
    """In float32, or in the higher precision that they have."""
    return logits.to(torch.promote_types(logits.dtype, torch.float32))


def class_counts(pool: Pool) -> Tensor:
    """float32 [C]: the labeled training images of each class, as the pool has them; those without any count as 1."""
    counts = np.bincount(pool.labels[pool.labeled], minlength=pool.classes)
    return torch.from_numpy(counts).float().clamp(min=1)


def of_targets(values: Tensor, targets: Tensor) -> Tensor:
    """The value of each row's class, [B]; of several, their mean by the row's probabilities. values: [C] or [B, C]."""
    if targets.ndim == 1 and values.ndim == 1:
        return values[targets]
    shares = targets if targets.ndim == 2 else F.one_hot(targets, values.shape[-1])
    return (shares * values).sum(dim=1)
