"""Noise tempering (Wang et al. 2022, arXiv 2212.05603): noise of the size of rounding errors, which fades."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ssl_lab.errors import UsageError
from ssl_lab.nets.quantized import FLOAT, rounded_weight
from ssl_lab.techniques.term.quantizing import Quantizing, Tempered


class NoiseTempering(Quantizing):
    """w_eff = round(w) + u exp(-decay t / T) |w - round(w)|,    u ~ U(-1, 1) for each weight; dL/dw := c dL/dw_eff

    in training; without noise in evaluation. c, a learned number of each layer, begins at 1 and has the gradient
    <dL/dw_eff, w - round(w)>, that of c in round(w) + c (w - round(w)).

    Of the paper only the abstract was read: that noise is aware of the error and decays exponentially, and that the
    scale of the task's gradient is learned; the formulas are ours.

    Args:
        weights, inputs: bits, as in `qnn`.
        decay: how fast noise fades: by exp(-decay) over the run.

    >>> pool = sl.load("digits").split(labels=10)
    >>> method = sl.Supervised(sl.net("tiny_4", classes=10, style=pool.style))
    >>> term = sl.NoiseTempering(weights=4).around(method, pool, seed=0)
    >>> batch = sl.Feed(pool, term.views, 8, 0, seed=0)(sl.At(0, 100))
    >>> sorted(term(batch, sl.At(0, 100)).terms)
    ['labeled']
    """

    name = "noise_tempering"
    paper = "Error-aware Quantization through Noise Tempering"
    arxiv = "2212.05603"
    serves = "size"

    def __init__(self, weights: int = 4, inputs: int = 8, decay: float = 5.0) -> None:
        super().__init__(inputs, weights=weights)
        if decay < 0:
            raise UsageError(f"noise_tempering: decay={decay}; expected 0 or more")
        self.weights, self.decay = weights, decay

    def quantizer(self, name: str, layer: nn.Module, edge: bool) -> nn.Module:
        return Noisy(max(self.weights, 8) if edge else self.weights, self.decay)


class Noisy(Tempered):
    """A weight in few bits, with noise while it trains."""

    def __init__(self, bits: int, decay: float) -> None:
        super().__init__()
        self.bits, self.decay, self.c = bits, decay, nn.Parameter(torch.ones(()))

    def forward(self, weight: Tensor) -> Tensor:
        if self.bits >= FLOAT:
            return weight + (self.c - self.c.detach()) * 0
        value = rounded_weight(weight.detach(), self.bits)
        mixed = self.c * (weight - value)
        if self.training:
            draw = 2 * torch.rand_like(value) - 1
            value = value + draw * torch.exp(-self.decay * self.now) * (weight.detach() - value).abs()
        return value + (mixed - mixed.detach())
