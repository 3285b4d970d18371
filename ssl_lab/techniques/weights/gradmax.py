"""GradMax (Evci et al. 2022, arXiv 2201.05125): a net grows in mid-run, where its gradient will be largest."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

import torch
from torch import Tensor

from ssl_lab.batch import At, Batch, Loss
from ssl_lab.data import Pool
from ssl_lab.errors import UsageError
from ssl_lab.methods import Method
from ssl_lab.methods.ranks import Notes
from ssl_lab.nets import frozen_statistics
from ssl_lab.nets.residual import Residual
from ssl_lab.techniques.base import WeightsTechnique
from ssl_lab.techniques.weights.growth import Pair, SteepReLU, growth_matrix, pairs, sleep, wake
from ssl_lab.techniques.weights.renewal import generations_done


class GradMax(WeightsTechnique):
    """New neurons with fan-in 0 and fan-out c u_1, c u_2, ...,    u the first left singular vectors of dL/dz' h'

    z' the next layer's output and h the input of theirs: the function stays, and of all fan-outs of norm c these give
    fan-ins the largest gradients. Neurons are channels between the first two convolutions of residual blocks. A share
    of them sleeps at first, with weights 0 whose gradients are 0, and is woken up in equal parts: so the net has its
    shapes from the start, and a small net's function, but not its cost.

    The matrix is of one batch, over all ranks and micro-batches, by a pass of its own. It is exact: patches follow
    strides and padding, and BatchNorm, which passes no gradient's mean back, is part of it; the authors' code
    (`growers.py`, against which the rest was checked) has one convolution in place of two. As there, rectifiers between
    have slope 1 at 0. BatchNorm of a channel that is 0 multiplies gradients by 1 / sqrt(eps): a first step is long.

    Args:
        share: of each block's channels that sleep.
        times: how often some are woken, between generations of equal length.
        scale: c in mean norms of the fan-outs that are awake.

    >>> pool = sl.load("digits").split(labels=10)
    >>> method = sl.Supervised(sl.net("tiny_4", classes=10, style=pool.style))
    >>> whole = sl.GradMax(share=0.5).around(method, pool, seed=0)
    >>> weight = method.net.backbone.blocks[0].branch[0].weight
    >>> int((weight == 0).flatten(1).all(dim=1).sum()), len(weight)  # channels that sleep, of all
    (2, 4)
    """

    name = "gradmax"
    paper = "GradMax: Growing Neural Networks using Gradient Information"
    arxiv = "2201.05125"
    excludes: ClassVar[Mapping[str, str]] = dict.fromkeys(("reinit", "shrink_perturb", "layerwise_reinit"),
                                                          "what is drawn anew does not sleep")

    def __init__(self, share: float = 0.5, times: int = 4, scale: float = 1.0) -> None:
        super().__init__()
        if not 0 <= share < 1 or times < 1 or scale <= 0:
            raise UsageError(f"gradmax: share={share}, times={times}, scale={scale}; expected a share from 0 to below "
                             "1, 1 time or more, and a positive scale")
        self.share, self.times, self.scale = share, times, scale

    @property
    def overwrites(self) -> str:
        return "sets a share of each block's channels to 0 until it wakes them" if self.share else ""

    def check(self, method: Method, pool: Pool) -> None:
        if not list(pairs(method.net)):
            raise UsageError(f"gradmax grows residual blocks, and {method.net.name} has none that it knows")

    def begin(self, pool: Pool, seed: int) -> None:
        self._notes, backbone = Notes(), self.net.backbone
        first = [weight.detach().clone() for weight in backbone.parameters()]
        for part in list(self.base.modules()):  # averages and targets are copies of the net
            if type(part) is type(backbone) and all(map(torch.equal, part.parameters(), first)):
                for pair in pairs(part):
                    sleep(pair, self._asleep(pair))
        for block in self.net.modules():
            if isinstance(block, Residual) and self.share:
                block.branch[2] = SteepReLU()

    def forward(self, batch: Batch, at: At) -> Loss:
        loss = super().forward(batch, at)
        if self.share and self.training and generations_done(at, self.times + 1):
            with torch.enable_grad(), frozen_statistics(self.net), torch.compiler.set_stance("force_eager"):
                self._notes.put(at, *self._matrices(batch, at))
        return loss

    @torch.no_grad()
    def after_step(self, at: At) -> None:
        super().after_step(at)
        done = generations_done(at, self.times + 1)
        if not (self.share and done):
            return
        for pair, matrix in zip(pairs(self.net), self._notes.mean(), strict=True):
            asleep, width = self._asleep(pair), pair.first.out_channels
            start, end = (width - asleep + asleep * part // self.times for part in (done - 1, done))
            wake(pair, slice(start, end), matrix, self.scale)

    def _asleep(self, pair: Pair) -> int:
        return int(self.share * pair.first.out_channels)

    def _matrices(self, batch: Batch, at: At) -> list[Tensor]:
        """The growth matrix of each block, by a pass of its own."""
        inputs, seen, found = {}, list[tuple[int, Tensor, Tensor]](), list(pairs(self.net))
        handles = []
        for i, pair in enumerate(found):
            handles += [
                pair.first.register_forward_pre_hook(lambda _, given, i=i: inputs.update({i: given[0].detach()})),
                pair.second.register_forward_hook(lambda _, __, output, i=i: seen.append((i, inputs[i], output)))]
        total = self.base(batch, at).total
        for handle in handles:
            handle.remove()
        learning = [each for each in seen if each[2].requires_grad]
        slopes = torch.autograd.grad(total, [output for _, _, output in learning], allow_unused=True)
        sizes = [(pair.second.weight[:, 0].numel(), pair.first.weight[0].numel()) for pair in found]
        matrices = [torch.zeros(size, device=total.device) for size in sizes]
        for (i, x, _), slope in zip(learning, slopes, strict=True):
            if slope is not None:
                matrices[i] += growth_matrix(found[i], x.float(), slope.float())
        return matrices
