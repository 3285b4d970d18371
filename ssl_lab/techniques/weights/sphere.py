"""Training on the sphere (Kodryan et al. 2022, arXiv 2209.03695): scale-invariant weights of one fixed length."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import ClassVar

import torch
from torch import Tensor, nn

from ssl_lab.batch import At
from ssl_lab.data import Pool
from ssl_lab.errors import UsageError
from ssl_lab.methods import Method
from ssl_lab.techniques.base import WeightsTechnique
from ssl_lab.techniques.weights.invariant import free_layers, nets_of


class Sphere(WeightsTechnique):
    """w <- r w / ||w||    after each step, w all scale-invariant weights of the net together

    Their direction then moves by the effective learning rate, lr / r^2, alone: at r and lr = ELR r^2 it takes the same
    path for all r. The paper's three regimes (convergence, chaotic equilibrium, divergence) are those of small, middle
    and large ELR under plain SGD: a constant learning rate, no momentum, no weight decay. Running statistics of
    BatchNorm and the moving average are scaled along.

    Checked against the authors' code (`train.py`, `training_utils.py`), which sets lr = ELR r^2; here --lr is that
    product.

    Args:
        radius: r; 0 takes the length that the weights start with: no radius turns it off.
        alone: the other parameters do not learn, as in the paper's experiments.

    >>> pool = sl.load("digits").split(labels=10)
    >>> method = sl.Supervised(sl.net("tiny_4", classes=10, style=pool.style))
    >>> whole, images = sl.Sphere(radius=1.0).around(method, pool, seed=0), torch.rand(4, 1, 8, 8)
    >>> before = method.net(images).logits
    >>> whole.after_step(sl.At(0, 100))
    >>> whole.length, torch.allclose(method.net(images).logits, before, atol=1e-2)  # the same function, nearly
    (tensor(1.), True)
    """

    name = "sphere"
    paper = "Training Scale-Invariant Neural Networks on the Sphere Can Happen in Three Regimes"
    arxiv = "2209.03695"
    excludes: ClassVar[Mapping[str, str]] = {"weight_norm": "both say how long weights are"}
    length: Tensor

    def __init__(self, radius: float = 0.0, alone: bool = False) -> None:
        super().__init__()
        if radius < 0:
            raise UsageError(f"sphere: radius={radius}; expected a positive one, or 0 for that of the first weights")
        self.radius, self.alone = radius, alone

    def check(self, method: Method, pool: Pool) -> None:
        if not free_layers(method.net, pool.style):
            raise UsageError(f"sphere holds the length of weights that a norm follows, and {method.net.name} has none")

    def begin(self, pool: Pool, seed: int) -> None:
        self._layers = free_layers(self.net, pool.style)
        weights = self._weights()
        self.register_buffer("length", torch.tensor(self.radius) if self.radius else _norm(weights))
        self._project()
        if self.alone:
            for parameter in self.base.parameters():
                parameter.requires_grad_(parameter.requires_grad and any(parameter is w for w in weights))

    def after_step(self, at: At) -> None:
        super().after_step(at)
        self._project()

    def _weights(self) -> list[nn.Parameter]:
        return [layer.weight(self.net) for layer in self._layers]

    @torch.no_grad()
    def _project(self) -> None:
        factor = self.length / _norm(self._weights())
        for layer in self._layers:
            for net in nets_of(self):
                layer.scale(net, factor)


def _norm(weights: Sequence[nn.Parameter]) -> Tensor:
    """The length of all of them together."""
    return nn.utils.get_total_norm([w.detach() for w in weights])
