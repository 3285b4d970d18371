"""Update rules: how one step turns gradients into new weights."""

from __future__ import annotations

from typing import Protocol

import torch

from ssl_lab.batch import At, Loss


class Closure(Protocol):
    """Computes the loss of the step's batch and leaves its gradients in `.grad` (cleared first).

    It may be called again, e.g. at perturbed weights: each call sees the same views, and from the second on
    BatchNorm's running statistics stay as the first call left them.
    """

    def __call__(self) -> Loss: ...


class Update(Protocol):
    """An update rule: calls the closure, steps the optimizer, returns the loss to report."""

    def __call__(self, closure: Closure, optimizer: torch.optim.Optimizer, at: At) -> Loss: ...


def plain(closure: Closure, optimizer: torch.optim.Optimizer, at: At) -> Loss:
    """One gradient, one step."""
    loss = closure()
    optimizer.step()
    return loss
