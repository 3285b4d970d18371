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

    After the step at `at`, `net` <- d * net + (1 - d) * source, d = min(1 - k / (step + k), decay) with
    k = `warm_up`: the first update copies the source, and until `decay` is reached the average spans about
    the last 1/k of the steps so far. k = 1, the paper's rule, is then the mean of all steps. Buffers
    (BatchNorm's statistics) are copied, not averaged. `net` needs no gradient and always stays in eval mode.
    """

    def __init__(self, net: M, decay: Scalar, warm_up: int = 1) -> None:
        super().__init__()
        self.net = copy.deepcopy(net).requires_grad_(False).eval()
        self.decay, self.warm_up = decay, warm_up

    def train(self, mode: bool = True) -> Self:
        super().train(mode)
        self.net.eval()
        return self

    @torch.no_grad()
    def update(self, source: M, at: At) -> None:
        """Move towards `source`, a net of the same structure; call it after the optimizer's step."""
        decay = min(1 - self.warm_up / (at.step + self.warm_up), at.value(self.decay))
        parameters: list[Tensor] = list(self.net.parameters())
        buffers = list(self.net.buffers())
        if parameters:
            torch._foreach_lerp_(parameters, list(source.parameters()), 1 - decay)
        if buffers:
            torch._foreach_copy_(buffers, list(source.buffers()))
