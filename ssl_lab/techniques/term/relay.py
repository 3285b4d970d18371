"""Relay backpropagation (Shen et al. 2015, arXiv 1512.05830): each loss updates its own stretch of the net alone."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import ClassVar

import torch
from torch import Tensor, nn

from ssl_lab import losses
from ssl_lab.batch import At, Batch, Loss
from ssl_lab.data import Pool
from ssl_lab.errors import UsageError
from ssl_lab.methods.distillation.hooks import see
from ssl_lab.nets import Net
from ssl_lab.schedule import Scalar
from ssl_lab.techniques.term.companions import Companions
from ssl_lab.techniques.term.labeled import full


class Relay(Companions):
    """L and weight * H(y, companion m), of which each reaches only the `reach` stages of the net that lie below it

    so that what it sends down does not fade, nor disturb layers far away. With stages 1 ... K, companion m on the end
    of stage m < K has its gradient for stages m - reach + 1 ... m, and the method's own loss for K - reach + 1 ... K
    and what else the method learns; where stretches overlap the sum counts. With reach K it is deep supervision (with
    loss "softmax" and the same weight).

    The equation is from recall and a summary: no code was found, and where companions are and their weight are ours.

    The gradient of each loss is taken for its own parameters alone, which one detached map cannot do.

    Args:
        layers: ends of stages, of the backbone, by path (by default as in `Companions`). The parameters of a stage
            are those that its end depends on and the ends before it do not.
        reach: 1 or more; the paper's stretches overlap.
        weight: of the companions.

    >>> pool = sl.load("digits").split(labels=10)
    >>> method = sl.Supervised(sl.net("tiny_4", classes=10, style=pool.style))
    >>> term = sl.Relay(weight=0.3).around(method, pool, seed=0)
    >>> batch = sl.Feed(pool, term.views, 8, 0, seed=0)(sl.At(0, 100))
    >>> sorted(term(batch, sl.At(0, 100)).terms)
    ['labeled', 'relay']
    """

    name = "relay"
    paper = "Relay Backpropagation for Effective Learning of Deep Convolutional Neural Networks"
    arxiv = "1512.05830"

    excludes: ClassVar = {"hero": "it differentiates twice, and relay hands on slopes that cannot be"}

    def __init__(self, layers: str | None = None, reach: int = 2, weight: Scalar = 0.3) -> None:
        super().__init__()
        if reach < 1:
            raise UsageError(f"relay: reach={reach}; expected 1 stage or more")
        self.layers, self.reach, self.weight = layers, reach, weight

    def begin(self, pool: Pool, seed: int) -> None:
        super().begin(pool, seed)
        style = pool.style
        x = torch.rand(2, style.channels, style.height, style.width, generator=torch.Generator().manual_seed(0))
        self._stages = stages_of(self.net, self._paths, x)

    def forward(self, batch: Batch, at: At) -> Loss:
        loss = super().forward(batch, at)
        weight, last = at.value(self.weight), len(self._paths)
        stage = dict(zip(self.net.backbone.parameters(), self._stages, strict=True))
        own = [p for p in self.base.parameters() if stage.get(p, last) > last - self.reach]
        relayed = [carrier(loss.total, own)]
        loss.terms = {name: term.detach() for name, term in loss.terms.items()}
        maps = self.inside(batch, self._paths).maps
        for number, (head, scores) in enumerate(zip(self.heads, self.scores(maps), strict=True)):
            near = [p for p, place in stage.items() if number - self.reach < place <= number]
            companion = weight * losses.cross_entropy(scores, batch.labeled.targets)
            relayed += [carrier(companion, [*near, *head.parameters()], keep=True), companion.detach()]
        loss.terms["relay"] = torch.stack(relayed).sum()
        return loss


def carrier(loss: Tensor, parameters: Sequence[nn.Parameter], keep: bool = False) -> Tensor:
    """A scalar 0 whose gradient for these parameters is that of `loss`, and for all others none. keep: the graph of the
    loss serves others too."""
    learning = [p for p in parameters if p.requires_grad]
    slopes = torch.autograd.grad(loss, learning, retain_graph=keep, allow_unused=True)
    found = [(p * slope).sum() for p, slope in zip(learning, slopes, strict=True) if slope is not None]
    total = torch.stack([full(each) for each in found]).sum()
    return total - total.detach()


def stages_of(net: Net, layers: Sequence[str], x: Tensor) -> list[int]:
    """For each parameter of the backbone the number of the first of `layers`, from 0, whose output for x depends on it,
    or their number if none does. x: float [B, C, H, W]."""
    shadow = copy.deepcopy(net).cpu().eval().requires_grad_()
    maps = see(shadow, x.to(shadow.mean.dtype), layers).maps
    parameters = list(shadow.backbone.parameters())
    number: dict[int, int] = {}
    for place, each in reversed(list(enumerate(maps))):
        slopes = torch.autograd.grad(each.sum(), parameters, retain_graph=True, allow_unused=True)
        number |= {i: place for i, slope in enumerate(slopes) if slope is not None}
    return [number.get(i, len(layers)) for i in range(len(parameters))]
