"""The lottery ticket hypothesis (Frankle and Carbin 2019, arXiv 1803.03635): prune, rewind, train again."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ssl_lab.batch import At
from ssl_lab.data import Pool
from ssl_lab.errors import UsageError
from ssl_lab.methods.base import Edit
from ssl_lab.nets import Ema
from ssl_lab.techniques.weights.invariant import nets_of
from ssl_lab.techniques.weights.masks import Masked, largest
from ssl_lab.techniques.weights.renewal import generations_done


class Lottery(Masked):
    """train; of the weights that are left, prune the smallest; put the others back where they were; train again

    Training is cut into rounds + 1 parts of equal length, between which the share `prune` of the weights that are left
    goes, by |w| over all layers: (1 - prune)^rounds of them are left in the end. What is left goes back to its value,
    and BatchNorm to its statistics, of the start or, with `rewind`, of this fraction of the first part (Frankle et al.
    2020, arXiv 1912.05671: tickets of larger nets need it). A schedule of the learning rate goes on as it is; for one
    that starts again with each round give a cyclical one.

    Equations from memory, no code was read. The papers prune the output layer at half the rate; here it is one of all.
    No argument turns it off: with prune 0, too, weights go back.

    Args:
        rounds: how often is pruned, 1 or more.
        prune: share of the weights left that goes each time, in [0, 1).
        rewind: fraction of the first part to whose weights the rest goes back, in [0, 1).

    >>> pool = sl.load("digits").split(labels=10)
    >>> method = sl.Supervised(sl.net("tiny_4", classes=10, style=pool.style))
    >>> whole = sl.Lottery(rounds=1, prune=0.5).around(method, pool, seed=0)
    >>> for step in range(4):
    ...     whole.after_step(sl.At(step, 4))
    >>> weights = [p for p in method.net.parameters() if p.ndim > 1]
    >>> round(sum(int((p == 0).sum()) for p in weights) / sum(p.numel() for p in weights), 2)
    0.5
    """

    name = "lottery"
    paper = "The Lottery Ticket Hypothesis: Finding Sparse, Trainable Neural Networks"
    arxiv = "1803.03635"
    serves = "size"

    def __init__(self, rounds: int = 4, prune: float = 0.4, rewind: float = 0.0) -> None:
        super().__init__()
        if rounds < 1 or not 0 <= prune < 1 or not 0 <= rewind < 1:
            raise UsageError(f"lottery: rounds={rounds}, prune={prune}, rewind={rewind}; expected 1 round or more, and "
                             "prune and rewind from 0 to below 1")
        self.rounds, self.prune, self.rewind = rounds, prune, rewind

    def begin(self, pool: Pool, seed: int) -> None:
        super().begin(pool, seed)
        self.first = Ema(self.net, 1.0)  # that is never updated: what is gone back to

    def edit(self, at: At) -> Sequence[Edit]:
        if self.rewind and at.step + 1 == int(self.rewind * at.total / (self.rounds + 1)):
            self.first.net.load_state_dict(self.net.state_dict())
        done = generations_done(at, self.rounds + 1)
        if not done:
            return ()
        weights = [weight.detach() for weight in self.weights()]
        masks = [self.mask(number) for number in range(len(weights))]
        for mask, winner in zip(masks, tickets(weights, masks, (1 - self.prune) ** done), strict=True):
            mask.copy_(winner)
        for net in nets_of(self):
            net.load_state_dict(self.first.net.state_dict())
        return list(self.net.parameters())


def tickets(weights: Sequence[Tensor], masks: Sequence[Tensor], density: float) -> list[Tensor]:
    """The masks that leave this share of all weights, rounded: those of largest |w| where the masks are 1."""
    scores = torch.cat([torch.where(mask, w.abs(), -1.0).flatten() for w, mask in zip(weights, masks, strict=True)])
    chosen = largest(scores, round(density * scores.numel()))
    return [part.view_as(w) for part, w in zip(torch.split(chosen, [w.numel() for w in weights]), weights, strict=True)]
