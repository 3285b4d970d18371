"""Batch-entropy regularization (Peer et al. 2022, arXiv 2208.01134): every layer keeps images apart."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from ssl_lab import losses
from ssl_lab.batch import At, Batch, Loss
from ssl_lab.data import Pool
from ssl_lab.errors import UsageError
from ssl_lab.methods import Method
from ssl_lab.methods.distillation.hooks import paths
from ssl_lab.nets import Net
from ssl_lab.nets.families import PreActivation
from ssl_lab.nets.residual import Residual, WideBlock
from ssl_lab.schedule import Scalar
from ssl_lab.techniques.term.companions import Inside

ACTIVATIONS = (nn.ReLU, nn.LeakyReLU, nn.PReLU, nn.Tanh, nn.Sigmoid, nn.GELU, nn.SiLU, nn.ELU, nn.Hardswish)


class BatchEntropy(Inside):
    """L + H(y, p(x)) * (1 / layers) sum_l weight (H_l - max(least, |a_l|))^2,

        H_l = mean over units j of 1/2 log(pi e var_j + 1),    var_j over the labeled images of the (micro-)batch

    with a_l learned, so that plain nets of hundreds of layers train. The gradient passes both factors.

    Checked against the authors' code (`batch_entropy.py`), whose least is 0.2 or 0.5 by experiment. There cross-entropy
    is the only loss; here, beside other terms, it is that of the labeled images.

    Args:
        layers: of the backbone, by path; by default the outputs of residual blocks, or where there are none of
            activations.
        weight: beta.
        target: what a_l begin with, alpha.
        least: alpha_min.

    >>> pool = sl.load("digits").split(labels=10)
    >>> method = sl.Supervised(sl.net("tiny_4", classes=10, style=pool.style))
    >>> term = sl.BatchEntropy().around(method, pool, seed=0)
    >>> batch = sl.Feed(pool, term.views, 8, 0, seed=0)(sl.At(0, 100))
    >>> sorted(term(batch, sl.At(0, 100)).terms)
    ['batch_entropy', 'labeled']
    """

    name = "batch_entropy"
    paper = "Improving the Trainability of Deep Neural Networks through Layerwise Batch-Entropy Regularization"
    arxiv = "2208.01134"

    def __init__(self, layers: str | None = None, weight: Scalar = 0.5, target: float = 0.5,
                 least: Scalar = 0.2) -> None:
        super().__init__()
        self.layers, self.weight, self.target, self.least = layers, weight, target, least

    def begin(self, pool: Pool, seed: int) -> None:
        self._paths = entropy_layers(self.net, self.layers)
        self.targets = nn.Parameter(torch.full((len(self._paths),), float(self.target)))

    def check_layers(self, method: Method) -> None:
        entropy_layers(method.net, self.layers)

    def forward(self, batch: Batch, at: At) -> Loss:
        loss = super().forward(batch, at)
        weight, x = at.value(self.weight), batch.labeled
        if not weight:
            loss.terms["batch_entropy"] = self.targets.sum() * 0.0
            return loss
        if len(x) < 2:
            raise UsageError("batch_entropy is of differences between images: give each micro-batch of each rank 2 "
                             "labeled ones or more (--labeled; labeled=)")
        seen = self.inside(batch, self._paths)
        found = torch.stack([batch_entropy(each) for each in seen.maps])
        gaps = weight * (found - self.targets.abs().clamp(min=at.value(self.least))).square().mean()
        loss.terms["batch_entropy"] = losses.cross_entropy(seen.logits, x.targets) * gaps
        loss.logs["entropy"] = found.detach().mean()
        return loss


def batch_entropy(values: Tensor) -> Tensor:
    """Mean over units of 1/2 log(pi e var + 1), var of the unit over the rows, unbiased. values: [B, ...]."""
    return (0.5 * (math.pi * math.e * values.flatten(1).var(dim=0) + 1).log()).mean()


def entropy_layers(net: Net, layers: str | Sequence[str] | None) -> tuple[str, ...]:
    """Paths in the backbone of those asked for, or of its residual blocks or activations. UsageError if it has none."""
    modules = dict(net.backbone.named_modules())
    if layers is not None:
        unknown = [each for each in paths(layers) if each not in modules]
        if unknown:
            raise UsageError(f"{net.name} has no layer {', '.join(unknown)} in its backbone")
        return paths(layers)
    for kinds in ((Residual, PreActivation, WideBlock), ACTIVATIONS):
        found = tuple(name for name, module in modules.items() if isinstance(module, kinds))
        if found:
            return found
    raise UsageError(f"{net.name} has no residual block and no activation that is a module; name layers=")
