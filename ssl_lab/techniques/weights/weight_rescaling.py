"""Weight rescaling (Liu et al. 2021, arXiv 2102.03497): weights that BatchNorm follows are kept at length 1."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar, Literal, get_args

import torch

from ssl_lab.batch import At
from ssl_lab.data import Pool
from ssl_lab.errors import UsageError, unknown
from ssl_lab.methods import Method
from ssl_lab.techniques.base import WeightsTechnique
from ssl_lab.techniques.weights.invariant import Free, free_layers, nets_of

Per = Literal["filter", "layer"]


class WeightRescaling(WeightsTechnique):
    """w <- c w,    c = 1 / ||w||,    after every so many steps, of each filter (or layer) that BatchNorm follows

    in place of weight decay, of which none is needed for these weights then. BatchNorm takes c away again: outputs in
    train mode stay. So do those in evaluation, because running means and variances are multiplied by c and c^2. The
    moving average of the weights, and its statistics, are scaled by the same c. Momenta are kept: c is close to 1.

    Ours in detail: of the paper only abstracts were read, which leave filter or layer, and the frequency, open. Which
    layers these are is found by trying (see `free_layers`).

    Args:
        per: what has length 1.
        every: steps between; with more than it has, a run is the plain run.

    >>> pool = sl.load("digits").split(labels=10)
    >>> method = sl.Supervised(sl.net("tiny_4", classes=10, style=pool.style))
    >>> whole, images = sl.WeightRescaling().around(method, pool, seed=0), torch.rand(4, 1, 8, 8)
    >>> before = method.net(images).logits
    >>> whole.after_step(sl.At(0, 100))
    >>> {round(p.flatten(1).norm(dim=1).max().item(), 3) for p in method.net.parameters() if p.ndim == 4}
    {1.0}
    >>> torch.allclose(method.net(images).logits, before, atol=1e-2)  # BatchNorm takes it away again
    True
    """

    name = "weight_rescaling"
    paper = "Weight Rescaling: Effective and Robust Regularization for Deep Neural Networks with Batch Normalization"
    arxiv = "2102.03497"
    excludes: ClassVar[Mapping[str, str]] = {
        "weight_norm": "both say how long the weights of a filter are",
        "sphere": "both say how long the weights before BatchNorm are"}

    def __init__(self, per: Per = "filter", every: int = 1) -> None:
        super().__init__()
        if per not in get_args(Per):
            raise unknown("weight_rescaling: per", per, get_args(Per))
        if every < 1:
            raise UsageError(f"weight_rescaling: every={every}; expected 1 step or more")
        self.per, self.every = per, every

    def check(self, method: Method, pool: Pool) -> None:
        if not _before_batch_norm(method, pool, self.per):
            raise UsageError(f"weight_rescaling scales weights that BatchNorm follows, and {method.net.name} has none")

    def begin(self, pool: Pool, seed: int) -> None:
        self._layers = _before_batch_norm(self.base, pool, self.per)

    @torch.no_grad()
    def after_step(self, at: At) -> None:
        super().after_step(at)
        if (at.step + 1) % self.every:
            return
        for layer in self._layers:
            weight = layer.weight(self.net)
            lengths = weight.flatten(1).norm(dim=1) if self.per == "filter" else weight.norm()
            factor = torch.where(lengths > 0, 1 / lengths, 1)
            for net in nets_of(self):
                layer.scale(net, factor)


def _before_batch_norm(method: Method, pool: Pool, per: str) -> list[Free]:
    return [layer for layer in free_layers(method.net, pool.style) if layer.norms and (layer.rows or per == "layer")]
