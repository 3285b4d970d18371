"""A slowly moving copy of a net: the exponential moving average of its weights."""

from __future__ import annotations

import copy
from collections.abc import Iterable
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
    the last 1/k of the steps so far. k = 1, the paper's rule, is then the mean of all steps; with k = 0 it goes on from
    what `net` was.

    BatchNorm's running statistics are averaged alike. With those of the source, averaged weights can fail altogether
    (weights that decay are smaller now than in the average), unless BatchNorm's own momentum spans as many steps.
    Integer buffers are copied. `net` needs no gradient and always stays in eval mode.

    Args:
        net: the net that holds the average; its first weights are where it begins.
        decay: the largest d, in [0, 1].
        warm_up: k.
        teacher: `net` gives targets during training, as in the paper: it is in train mode while its parent is, and
            its buffers are left alone, for its own passes move them.

    >>> net = sl.net("tiny_4")
    >>> average = sl.Ema(net, decay=0.999)
    >>> for step in range(3):
    ...     net.head.bias = torch.nn.Parameter(torch.full((10,), float(step)))
    ...     average.update(net, sl.At(step, 100))
    >>> average.net.head.bias[0].item()  # at first the mean of all steps so far
    1.0
    """

    def __init__(self, net: M, decay: Scalar, warm_up: int = 1, teacher: bool = False) -> None:
        super().__init__()
        self.net = copy.deepcopy(net).requires_grad_(False).train(teacher)
        self.decay, self.warm_up, self.teacher = decay, warm_up, teacher

    def train(self, mode: bool = True) -> Self:
        super().train(mode)
        self.net.train(mode and self.teacher)
        return self

    @torch.no_grad()
    def update(self, source: M, at: At) -> None:
        """Move towards `source`, a net of the same structure; call it after the optimizer's step."""
        decay = min(1 - self.warm_up / max(1, at.step + self.warm_up), at.value(self.decay))
        parts: list[Iterable[tuple[Tensor, Tensor]]] = [zip(self.net.parameters(), source.parameters(), strict=True)]
        if not self.teacher:
            parts.append(zip(self.net.buffers(), source.buffers(), strict=True))
        for pairs in map(list, parts):  # apart: of a sharded net, parameters are spread over ranks and buffers are not
            floats = [pair for pair in pairs if pair[0].is_floating_point()]
            others = [pair for pair in pairs if not pair[0].is_floating_point()]
            if floats:
                averages, sources = map(list, zip(*floats, strict=True))
                torch._foreach_lerp_(averages, sources, 1 - decay)
            if others:
                averages, sources = map(list, zip(*others, strict=True))
                torch._foreach_copy_(averages, sources)
