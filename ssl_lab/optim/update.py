"""Update rules: how one step turns gradients into new weights."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor, nn

from ssl_lab.batch import At, Loss


class Closure(Protocol):
    """Computes the loss of the step's batch and leaves its gradients in `.grad` (cleared first).

    It may be called again, e.g. at perturbed weights: each call sees the same views, and from the second on
    BatchNorm's running statistics stay as the first call left them.
    """

    def __call__(self) -> Loss: ...

    def parts(self, count: int) -> Sequence[Closure]:
        """Closures for as many equal parts of the batch, each normalized and cleared by itself; itself for one part.
        UsageError where it does not divide."""
        ...

    def curvature(self, weights: Sequence[nn.Parameter], direction: Sequence[Tensor]) -> list[Tensor]:
        """H d, the product of a direction with the Hessian of the batch's loss, at the weights as they are now."""
        ...


class Update(Protocol):
    """An update rule: calls the closure, steps the optimizer, returns the loss to report."""

    def __call__(self, closure: Closure, optimizer: torch.optim.Optimizer, at: At) -> Loss: ...


def forget(optimizer: torch.optim.Optimizer, parameter: nn.Parameter, where: Tensor | None = None) -> None:
    """Makes the optimizer forget what it keeps of a parameter: all of it, or the entries of its momenta where the mask
    `where`, bool of the parameter's shape, is true."""
    if where is None:
        optimizer.state.pop(parameter, None)
        return
    for kept in optimizer.state.get(parameter, {}).values():
        if isinstance(kept, Tensor) and kept.shape == parameter.shape:
            kept.masked_fill_(where, 0)


def plain(closure: Closure, optimizer: torch.optim.Optimizer, at: At) -> Loss:
    """One gradient, one step."""
    loss = closure()
    optimizer.step()
    return loss
