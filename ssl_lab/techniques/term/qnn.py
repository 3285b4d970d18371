"""QNN (Hubara et al. 2016, arXiv 1609.07061): training with weights and activations of few bits."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import torch
from torch import Tensor, nn

from ssl_lab.batch import At
from ssl_lab.nets.quantized import rounded_weight
from ssl_lab.techniques.term.quantizing import Quantizing


class QNN(Quantizing):
    """w_q = round(w) on a grid of 2^weights - 1 values,    dL/dw := dL/dw_q

    Of 1 bit, w_q = sign(w), and w <- clip(w, -1, 1) after each step. Inputs of layers are rounded to `inputs` bits; of
    1 bit they are signs, with the gradient where |x| <= 1. 32 bits are the float net. See `Quantizing` for what is left
    in more bits, and what comes out.

    The rules of 1 bit were checked against the authors' code by a summary (`BinaryNet`, `BinaryNet.pytorch`: the mask
    is on activations, not on weights; sign(0) = 1); updates scaled by the layer's size and stochastic signs are left
    out. Grids of more bits, with a scale for each output and ranges of inputs that are learned from batches, are those
    that integer hardware has today, and not the paper's fixed ones.

    Args:
        weights, inputs: bits, from 1 to 32.

    >>> pool = sl.load("digits").split(labels=10)
    >>> method = sl.Supervised(sl.net("tiny_4", classes=10, style=pool.style))
    >>> term = sl.QNN(weights=4).around(method, pool, seed=0)
    >>> batch = sl.Feed(pool, term.views, 8, 0, seed=0)(sl.At(0, 100))
    >>> term.predictor().name, sorted(term(batch, sl.At(0, 100)).terms)
    ('tiny_4+in8', ['labeled'])
    """

    name = "qnn"
    paper = "Quantized Neural Networks: Training Neural Networks with Low Precision Weights and Activations"
    arxiv = "1609.07061"
    serves = "size"

    def __init__(self, weights: int = 4, inputs: int = 8) -> None:
        super().__init__(inputs, weights=weights)
        self.weights = weights

    def quantizer(self, name: str, layer: nn.Module, edge: bool) -> nn.Module:
        return Rounded(max(self.weights, 8) if edge else self.weights)

    def after_step(self, at: At) -> None:
        if self.weights == 1:
            clip_signs(self.net.parameters(), rounded_of(self.net))
        super().after_step(at)


def rounded_of(net: nn.Module) -> dict[int, Rounded]:
    """What rounds each weight of the net, by the id of the float one."""
    return {id(part.original): part[0] for part in net.modules()
            if isinstance(part, nn.utils.parametrize.ParametrizationList) and isinstance(part[0], Rounded)}


@torch.no_grad()
def clip_signs(weights: Iterable[nn.Parameter], rounded: Mapping[int, Rounded]) -> None:
    """Clips those that are rounded to one bit, by id, to [-1, 1]."""
    for weight in weights:
        if id(weight) in rounded and rounded[id(weight)].bits == 1:
            weight.clamp_(-1, 1)


class Rounded(nn.Module):
    """w -> w in so many bits. offset: what `saq` adds after rounding; no part of what is saved."""

    def __init__(self, bits: int) -> None:
        super().__init__()
        self.bits, self.offset = bits, None

    offset: Tensor | None

    def forward(self, weight: Tensor) -> Tensor:
        rounded = rounded_weight(weight, self.bits)
        return rounded if self.offset is None else rounded + self.offset
