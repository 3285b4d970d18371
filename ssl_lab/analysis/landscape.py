"""The loss of some images as a function of a net's weights: values, gradients, products with its Hessian."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ssl_lab.batch import At
from ssl_lab.data import IntArray, Pool
from ssl_lab.nets import Net, evaluating
from ssl_lab.views import Eval

ROWS = 256  # images that pass at a time


@dataclass(frozen=True)
class Landscape:
    """L(w) = mean cross-entropy of images x, float [n, C, H, W] in [0, 1], by classes y, int64 [n].

    The net is in evaluation mode: BatchNorm normalizes by its running statistics, so that images do not depend on each
    other. Weights are those that learn, in the net's order. The net is left as it was.

    Attributes:
        net: whose weights are examined.
        x: float [n, C, H, W] in [0, 1].
        y: int64 [n].

    >>> pool = sl.load("digits")
    >>> net, rows = sl.net("tiny_4", classes=pool.class_names, style=pool.style), pool.train[:50]
    >>> land = sl.analysis.Landscape.of(net, pool, rows, pool.truth[rows])
    >>> land.loss() > 0, len(land.gradient()) == len(land.weights)
    (True, True)
    """

    net: Net
    x: Tensor
    y: Tensor

    @classmethod
    def of(cls, net: Net, pool: Pool, rows: IntArray, classes: IntArray) -> Landscape:
        """Of these rows of a pool, as they are.

        Args:
            classes: int64, of each row.
        """
        device = next(net.parameters()).device
        draw = At(0, 1).draw("landscape", len(rows), device)
        x = Eval(pool.style)(pool.images.take(rows).to(device), draw)
        return cls(net, x, torch.from_numpy(classes).to(device))

    @property
    def weights(self) -> list[nn.Parameter]:
        return [p for p in self.net.parameters() if p.requires_grad]

    def part(self, rows: Tensor) -> Landscape:
        """Of some of the images alone.

        Args:
            rows: int64, or bool [n].
        """
        return replace(self, x=self.x[rows], y=self.y[rows])

    def logits(self) -> Tensor:
        """float [n, C], without gradient."""
        with torch.no_grad():
            return torch.cat([self._logits(x) for x, _ in self._parts()])

    def loss(self) -> float:
        return F.cross_entropy(self.logits().double(), self.y).item()

    def error(self) -> float:
        """The share of images that are told wrong."""
        return (self.logits().argmax(dim=1) != self.y).double().mean().item()

    def gradient(self) -> list[Tensor]:
        """dL / dw, tensor by tensor."""
        return self._summed(lambda loss: torch.autograd.grad(loss, self.weights, materialize_grads=True))

    def product(self, direction: Sequence[Tensor]) -> list[Tensor]:
        """H d, H the Hessian of L.

        Args:
            direction: tensors like the weights.
        """
        def bent(loss: Tensor) -> Sequence[Tensor]:
            slopes = torch.autograd.grad(loss, self.weights, create_graph=True, materialize_grads=True)
            return torch.autograd.grad(slopes, self.weights, list(direction), materialize_grads=True)
        return self._summed(bent)

    @contextmanager
    def at(self, shifts: Sequence[Tensor]) -> Iterator[None]:
        """Within it the weights are w + shift; afterwards exactly what they were."""
        weights = self.weights
        before = [w.detach().clone() for w in weights]
        try:
            with torch.no_grad():
                for weight, shift in zip(weights, shifts, strict=True):
                    weight.add_(shift)
            yield
        finally:
            with torch.no_grad():
                for weight, old in zip(weights, before, strict=True):
                    weight.copy_(old)

    def _logits(self, x: Tensor) -> Tensor:
        with evaluating(self.net):
            logits: Tensor = self.net(x).logits
        return logits

    def _parts(self) -> Iterator[tuple[Tensor, Tensor]]:
        return zip(torch.split(self.x, ROWS), torch.split(self.y, ROWS), strict=True)

    def _summed(self, of: Callable[[Tensor], Sequence[Tensor]]) -> list[Tensor]:
        """The sum over parts of what `of` gives for each part's share of the loss."""
        total = [torch.zeros_like(w) for w in self.weights]
        for x, y in self._parts():
            share = F.cross_entropy(self._logits(x), y, reduction="sum") / len(self.y)
            torch._foreach_add_(total, list(of(share)))
        return total
