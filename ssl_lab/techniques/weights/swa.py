"""SWA (Izmailov et al. 2018) and Gadam (Granziol et al. 2020, arXiv 2003.01247): the mean of the last weights."""

from __future__ import annotations

import copy
import math
from typing import Self

import torch
from torch import Tensor, nn

from ssl_lab.batch import At
from ssl_lab.data import Pool
from ssl_lab.errors import UsageError
from ssl_lab.nets import Net
from ssl_lab.nets.start import are_frozen
from ssl_lab.techniques.base import WeightsTechnique
from ssl_lab.techniques.images import as_seen

IMAGES, BATCH = 2048, 256  # that BatchNorm's statistics are of, at most


class SWA(WeightsTechnique):
    """average <- (n average + w) / (n + 1),    from the fraction `start` of training on, every so many steps

    The average, and no longer the method's moving average, is what is evaluated and exported. BatchNorm's statistics
    are made anew for it, from up to 2048 training images under the method's first view, whenever it is asked for: they
    are a function of weights, pool and seed alone. With start 1 nothing is averaged: it is the plain run.

    With AdamW it is the paper's Gadam, with Padam GadamX. The paper keeps the learning rate high while it averages:
    give a constant or slowly falling one. Checked against torch.optim.swa_utils.

    Args:
        start: in [0, 1]; 1 averages nothing.
        every: steps between two that are averaged.

    >>> pool = sl.load("digits").split(labels=10)
    >>> method = sl.Supervised(sl.net("tiny_4", classes=10, style=pool.style))
    >>> whole = sl.SWA(start=0.5).around(method, pool, seed=0)
    >>> for step in range(4):
    ...     _ = method.net.head.bias.data.fill_(step)
    ...     whole.after_step(sl.At(step, 4))
    >>> int(whole.points), whole.predictor().head.bias[0].item()  # the mean of 2 and 3, of the second half
    (2, 2.5)
    """

    name = "swa"
    paper = "Iterate Averaging in the Quest for Best Test Error"
    arxiv = "2003.01247"
    writes = False
    points: Tensor  # how many weights the average is of

    def __init__(self, start: float = 0.75, every: int = 1) -> None:
        super().__init__()
        if not 0 <= start <= 1 or every < 1:
            raise UsageError(f"swa: start={start}, every={every}; expected a start from 0 to 1, and 1 step or more")
        self.start, self.every = start, every

    def begin(self, pool: Pool, seed: int) -> None:
        self.average = copy.deepcopy(self.net).requires_grad_(False).eval()
        self.register_buffer("points", torch.zeros((), dtype=torch.int64))
        self._pool, self._seed, self._stale = pool, seed, True

    def train(self, mode: bool = True) -> Self:
        super().train(mode)
        self.average.eval()
        return self

    @torch.no_grad()
    def after_step(self, at: At) -> None:
        super().after_step(at)
        points, rest = divmod(at.step - math.ceil(self.start * at.total), self.every)
        if points < 0 or rest:
            return
        averages, sources = ([p.data for p in net.parameters()] for net in (self.average, self.net))
        torch._foreach_lerp_(averages, sources, 1 / (points + 1))
        for ours, theirs in zip(self.average.buffers(), self.net.buffers(), strict=True):
            ours.copy_(theirs)
        self.points.fill_(points + 1)
        self._stale = True

    def predictor(self) -> Net:
        if not int(self.points):
            return super().predictor()
        if self._stale:
            images = as_seen(self, self._pool, IMAGES, self._seed, "swa")
            renew_statistics(self.average, list(images.chunk(math.ceil(len(images) / BATCH))))
            self._stale = False
        return self.average


@torch.no_grad()
def renew_statistics(net: Net, batches: list[Tensor]) -> None:
    """Sets the running statistics of BatchNorm to the mean over these batches, as the net's weights now have them.

    Those that are frozen stay. All other layers act as in evaluation.
    """
    norms = [m for m in net.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm) and m.track_running_stats
             and not are_frozen(m)]
    if not norms:
        return
    momenta, training = [norm.momentum for norm in norms], net.training
    net.eval()
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None  # the mean of all batches
        norm.train()
    with torch.compiler.set_stance("force_eager"):  # compiled code would be made anew for these few passes
        for batch in batches:
            net(batch)
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum
    net.train(training)
