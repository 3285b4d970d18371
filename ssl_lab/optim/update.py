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

    >>> def surest(closure, optimizer, at):  # a step only where the same views have the same loss again
    ...     if closure().total == closure().total:
    ...         return sl.optim.plain(closure, optimizer, at)
    ...     raise AssertionError("dropout, perhaps")
    >>> sl.Trainer(steps=100, update=surest).update.__name__
    'surest'
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
    """An update rule: calls the closure, steps the optimizer, returns the loss to report.

    >>> def uphill(closure, optimizer, at):  # a rule of one's own: gradient ascent
    ...     loss = closure()
    ...     for p in (p for group in optimizer.param_groups for p in group["params"]):
    ...         p.grad.neg_()
    ...     optimizer.step()
    ...     return loss
    >>> sl.Trainer(steps=100, update=uphill).update.__name__
    'uphill'
    """

    def __call__(self, closure: Closure, optimizer: torch.optim.Optimizer, at: At) -> Loss: ...


def forget(optimizer: torch.optim.Optimizer, parameter: nn.Parameter, where: Tensor | None = None) -> None:
    """Makes the optimizer forget what it keeps of a parameter: all of it, or the entries of its momenta where the mask
    is true.

    Args:
        optimizer: that forgets.
        parameter: one that it moves.
        where: bool, of the parameter's shape; None: all of it.

    >>> layer = torch.nn.Linear(2, 2)
    >>> optimizer = torch.optim.SGD(layer.parameters(), lr=0.1, momentum=0.9)
    >>> layer(torch.ones(1, 2)).sum().backward()
    >>> optimizer.step()
    >>> sl.optim.forget(optimizer, layer.weight)
    >>> layer.weight in optimizer.state, layer.bias in optimizer.state
    (False, True)
    """
    if where is None:
        optimizer.state.pop(parameter, None)
        return
    for kept in optimizer.state.get(parameter, {}).values():
        if isinstance(kept, Tensor) and kept.shape == parameter.shape:
            kept.masked_fill_(where, 0)


def plain(closure: Closure, optimizer: torch.optim.Optimizer, at: At) -> Loss:
    """One gradient, one step.

    Args:
        closure: evaluates the loss of the batch, with gradients.
        optimizer: that takes the step.
        at: where training is.

    Returns:
        The loss before the step.

    >>> def twice(closure, optimizer, at):  # an update rule of one's own: two steps on the same views
    ...     sl.optim.plain(closure, optimizer, at)
    ...     return sl.optim.plain(closure, optimizer, at)
    >>> sl.Trainer(steps=100, update=twice).update.__name__
    'twice'
    """
    loss = closure()
    optimizer.step()
    return loss
