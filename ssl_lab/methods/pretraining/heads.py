"""Projectors and predictors: multilayer perceptrons on the pooled features."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

from torch import Tensor, nn

from ssl_lab.seeds import seeded


class Head(nn.Sequential):
    """Layers whose result has the precision of their weights, also under autocast: losses are computed from it."""

    def forward(self, x: Tensor) -> Tensor:
        for layer in self:
            x = layer(x)
        return x.to(next(self.parameters()).dtype)


def mlp(sizes: Sequence[int], norm: bool = True, last_norm: bool = False, seed: int = 0, name: str = "head") -> Head:
    """Linear layers from sizes[0] to sizes[-1] values, with ReLU between them; a pure function of (seed, name).

    norm: BatchNorm before each ReLU. last_norm: BatchNorm without scale and shift at the end. A linear layer before a
    BatchNorm has no bias.
    """
    layers: list[nn.Module] = []
    with seeded(seed, name):
        for inputs, outputs in pairwise(sizes[:-1]):
            layers.append(nn.Linear(inputs, outputs, bias=not norm))
            layers += [nn.BatchNorm1d(outputs), nn.ReLU(inplace=True)] if norm else [nn.ReLU(inplace=True)]
        layers.append(nn.Linear(sizes[-2], sizes[-1], bias=not last_norm))
    if last_norm:
        layers.append(nn.BatchNorm1d(sizes[-1], affine=False))
    return Head(*layers)
