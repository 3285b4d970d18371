"""A slowly moving copy of a net: the exponential moving average of its weights."""

from __future__ import annotations

import copy
from typing import Generic, Self, TypeVar

import torch
from torch import Tensor, nn

from ssl_lab.batch import At
from ssl_lab.schedule import Scalar

M = TypeVar("M", bound=nn.Module)


class Ema(nn.Module, Generic[M]):
    """The exponential moving average of a net's parameters (Mean Teacher, Tarvainen and Valpola 2017).

    After the step at `at`, `net` <- d * net + (1 - d) * source, d = min(1 - 1 / (step + 1), decay), so that
    the first update copies the source and early averages forget the initialization. Buffers (BatchNorm's
    statistics) are copied, not averaged. `net` needs no gradient and always stays in eval mode.
    """

    def __init__(self, net: M, decay: Scalar) -> None:
        super().__init__()
        self.net = copy.deepcopy(net).requires_grad_(False).eval()
        self.decay = decay

    def train(self, mode: bool = True) -> Self:
        super().train(mode)
        self.net.eval()
        return self

    @torch.no_grad()
    def update(self, source: M, at: At) -> None:
        """Move towards `source`, a net of the same structure; call it after the optimizer's step."""
        decay = min(1 - 1 / (at.step + 1), at.value(self.decay))
        parameters: list[Tensor] = list(self.net.parameters())
        buffers = list(self.net.buffers())
        if parameters:
            torch._foreach_lerp_(parameters, list(source.parameters()), 1 - decay)
        if buffers:
            torch._foreach_copy_(buffers, list(source.buffers()))
