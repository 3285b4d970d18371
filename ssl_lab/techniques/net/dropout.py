"""Dropout (Srivastava et al. 2014): units are left out at random."""

from __future__ import annotations

from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from ssl_lab.data import Pool
from ssl_lab.errors import UsageError
from ssl_lab.methods import Method
from ssl_lab.nets import Net
from ssl_lab.nets.families import PreActivation
from ssl_lab.nets.residual import Residual, WideBlock
from ssl_lab.techniques.base import NetTechnique


class Dropout(NetTechnique):
    """y = m x / (1 - p),    m ~ Bernoulli(1 - p)    for each unit of each image; in evaluation y = x.

    The paper scales weights by 1 - p in evaluation; scaling in training is torch's form of the same mean.

    Weights have the names that they have without.

    Args:
        rate: p of the features that the head classifies, which the method itself sees whole.
        inputs: of the pixels, after the net's normalization (0.2 in the paper).
        blocks: of what enters the last convolution of each residual block, as wide ResNets have it (Zagoruyko and
            Komodakis 2016).

    >>> pool = sl.load("digits").split(labels=10)
    >>> net = sl.net("tiny_4", classes=10, style=pool.style)
    >>> changed = sl.Dropout(rate=0.5)(net, pool, seed=0)
    >>> x = torch.rand(4, 1, 8, 8)
    >>> torch.equal(changed.train()(x).logits, changed(x).logits)  # other features each time
    False
    """

    name = "dropout"
    paper = "Dropout: A Simple Way to Prevent Neural Networks from Overfitting"
    arxiv = ""

    def __init__(self, rate: float = 0.5, inputs: float = 0.0, blocks: float = 0.0) -> None:
        if not all(0 <= each < 1 for each in (rate, inputs, blocks)):
            raise UsageError(f"dropout: rate={rate}, inputs={inputs}, blocks={blocks}; expected 0 to below 1")
        self.rate, self.inputs, self.blocks = rate, inputs, blocks

    def check(self, method: Method, pool: Pool) -> None:
        if self.rate and not method.classifies and not (self.inputs or self.blocks):
            raise UsageError(f"dropout leaves out what the head classifies, and {method.name} trains none; give "
                             "inputs or blocks")

    def __call__(self, net: Net, pool: Pool, seed: int) -> Net:
        last = [block.conv2 if isinstance(block, WideBlock) else
                [layer for layer in block.branch if isinstance(layer, nn.Conv2d)][-1]
                for block in net.backbone.modules() if isinstance(block, Residual | PreActivation | WideBlock)]
        if self.blocks and not last:
            raise UsageError(f"dropout(blocks={self.blocks}): {net.name} has no residual blocks that it knows")
        for modules, rate in (([net.head], self.rate), ([net.backbone], self.inputs), (last, self.blocks)):
            for module in modules if rate else ():
                module.register_forward_pre_hook(LeavingOut(rate))
        return net


class LeavingOut:
    """What a module's input goes through. A hook, so that no module and no weight gets another name."""

    def __init__(self, rate: float) -> None:
        self.rate = rate

    def __call__(self, module: nn.Module, given: Any) -> tuple[Tensor, ...]:
        return (F.dropout(given[0], self.rate, module.training), *given[1:])
