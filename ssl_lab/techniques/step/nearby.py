"""What update rules that look at nearby weights share: the weights that learn, moved for a while and put back."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn

EPSILON = 1e-12  # keeps a gradient of zeros from being divided by zero


def learning(optimizer: torch.optim.Optimizer) -> list[nn.Parameter]:
    """The parameters to which the last backward pass has given a gradient."""
    return [p for group in optimizer.param_groups for p in group["params"] if p.grad is not None]


def gradients(weights: Sequence[nn.Parameter]) -> list[Tensor]:
    """Their gradients, which the next backward pass leaves alone."""
    return [w.grad for w in weights if w.grad is not None]


def set_gradients(weights: Sequence[nn.Parameter], values: Sequence[Tensor]) -> None:
    """What the optimizer's step is to go by."""
    for weight, value in zip(weights, values, strict=True):
        weight.grad = value


def mean_of(lists: Sequence[Sequence[Tensor]]) -> list[Tensor]:
    """The mean of several lists of tensors, tensor by tensor."""
    return [torch.stack(each).mean(dim=0) for each in zip(*lists, strict=True)]


def along(direction: Sequence[Tensor], length: float) -> list[Tensor]:
    """length * d / (||d||_2 + 1e-12), with one norm of all tensors together, whose length stays on the device."""
    norm = nn.utils.get_total_norm(direction) + EPSILON
    return [each * (length / norm) for each in direction]


@contextmanager
def moved(weights: Sequence[nn.Parameter], shifts: Sequence[Tensor]) -> Iterator[None]:
    """Within it the weights are w + shift; afterwards exactly what they were."""
    with torch.no_grad():
        before = [w.clone() for w in weights]
        torch._foreach_add_(list(weights), list(shifts))
    try:
        yield
    finally:
        with torch.no_grad():
            torch._foreach_copy_(list(weights), before)


def copies(weights: Sequence[nn.Parameter], learn: bool) -> nn.ParameterList:
    """Parameters of the same values, which learn or not."""
    return nn.ParameterList(nn.Parameter(w.detach().clone(), requires_grad=learn) for w in weights)
