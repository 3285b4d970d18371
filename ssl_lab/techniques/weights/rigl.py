"""RigL (Evci et al. 2020, arXiv 1911.11134): a net that is sparse from the start, and grows where gradients are."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor

from ssl_lab.batch import At, Batch, Loss
from ssl_lab.data import Pool
from ssl_lab.errors import UsageError
from ssl_lab.methods.base import Edit
from ssl_lab.methods.ranks import Notes
from ssl_lab.seeds import generator
from ssl_lab.techniques.weights.masks import Masked, largest


class RigL(Masked):
    """Every so many steps each layer drops its k smallest weights and grows k where |dL/dw| of all is largest

    k = share / 2 (1 + cos(pi t / T_end)) n,  n the layer's nonzero weights, T_end = until * T. Grown weights begin at
    0, without momenta; the number of nonzeros stays. A weight that is dropped may be grown again at once, and then
    keeps its value. Layers have Erdos-Renyi-kernel densities (see `erk`), the net's density is `density`.

    Of several backward passes in a step the last one's gradient counts. Checked against the authors' code
    (`sparse_utils.py`, `sparse_optimizers_base.py`), where a step that edits does not also move the weights, as it does
    here.

    Args:
        density: share of weights that are not 0, in (0, 1].
        share: of a layer's nonzero weights that the first edit drops, in [0, 1].
        until: fraction of training after which nothing is edited, in [0, 1].
        every: steps between edits.
        first: which weights begin: "random" ones, as in the paper, or the largest ones of each layer, which is what
            a trained net can be started from.

    >>> pool = sl.load("digits").split(labels=10)
    >>> method = sl.Supervised(sl.net("tiny_4", classes=10, style=pool.style))
    >>> whole = sl.RigL(density=0.1).around(method, pool, seed=0)
    >>> weights = [p for p in method.net.parameters() if p.ndim > 1]
    >>> round(sum(int((p == 0).sum()) for p in weights) / sum(p.numel() for p in weights), 2)
    0.9
    """

    name = "rigl"
    paper = "Rigging the Lottery: Making All Tickets Winners"
    arxiv = "1911.11134"
    serves = "size"

    def __init__(self, density: float = 0.1, every: int = 100, share: float = 0.3, until: float = 0.75,
                 first: Literal["largest", "random"] = "largest") -> None:
        super().__init__()
        if not (0 < density <= 1 and every >= 1 and 0 <= share <= 1 and 0 <= until <= 1):
            raise UsageError(f"rigl: density={density}, every={every}, share={share}, until={until}; expected a density"
                             " above 0 to 1, 1 step or more, and share and until from 0 to 1")
        if first not in ("largest", "random"):
            raise UsageError(f"rigl: first={first!r}; expected 'largest' or 'random'")
        self.density, self.every, self.share, self.until, self.first = density, every, share, until, first

    def begin(self, pool: Pool, seed: int) -> None:
        super().begin(pool, seed)
        weights = self.weights()
        self._notes, self._at = [Notes() for _ in weights], At(0, 1)
        for number, density in enumerate(erk([tuple(weight.shape) for weight in weights], self.density)):
            weight = weights[number].detach()
            draw = generator(seed, "rigl", self._names[number])
            score = weight.abs() if self.first == "largest" else torch.rand(weight.shape, generator=draw)
            self.mask(number).copy_(largest(score, max(1, round(density * weight.numel()))))
        self.apply_masks()

    def _edits_at(self, at: At) -> bool:
        return (at.step + 1) % self.every == 0 and at.step + 1 < self.until * at.total

    def forward(self, batch: Batch, at: At) -> Loss:
        self._at = at
        return super().forward(batch, at)

    def seen(self, number: int, slope: Tensor) -> Tensor:
        if self._edits_at(self._at):
            self._notes[number].put(self._at, slope)
        return super().seen(number, slope)

    def edit(self, at: At) -> Sequence[Edit]:
        if not self._edits_at(at):
            return ()
        share, edits = self.share / 2 * (1 + math.cos(math.pi * (at.step + 1) / (self.until * at.total))), list[Edit]()
        for number, weight in enumerate(self.weights()):
            before, seen = self.mask(number).clone(), self._notes[number].mean()
            after = rewired(weight.detach(), seen[0], before, share) if seen else before  # none of a head without loss
            self.mask(number).copy_(after)
            weight.masked_fill_(after & ~before, 0)
            edits.append((weight, after ^ before))
        return edits


def rewired(weight: Tensor, slope: Tensor, mask: Tensor, share: float) -> Tensor:
    """The mask after one edit of a layer: as many ones as before. weight, slope: its weights and dL/dw of all of them.
    share: of the ones that are dropped, of smallest |w|; as many are grown, of largest |slope|, among the others."""
    nonzero = int(mask.sum())
    kept = largest(torch.where(mask, weight.abs(), -1.0), nonzero - int(share * nonzero))
    return kept | largest(torch.where(kept, -1.0, slope.abs()), nonzero - int(kept.sum()))


def erk(shapes: Sequence[tuple[int, ...]], density: float) -> list[float]:
    """The density of each layer [out, in, kernel ...]: e * sum(shape) / prod(shape), at most 1, with the e by which all
    together have this density."""
    sizes, dense = [math.prod(shape) for shape in shapes], set[int]()
    raw = [sum(shape) / math.prod(shape) for shape in shapes]
    while True:
        others = [i for i in range(len(shapes)) if i not in dense]
        left = density * sum(sizes) - sum(sizes[i] for i in dense)
        scale = left / sum(raw[i] * sizes[i] for i in others) if others else 0.0
        full = {i for i in others if scale * raw[i] > 1}
        if not full:
            return [1.0 if i in dense else scale * raw[i] for i in range(len(shapes))]
        dense |= {i for i in full if raw[i] == max(raw[j] for j in full)}
