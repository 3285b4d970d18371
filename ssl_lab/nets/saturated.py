"""Nets whose layers see their inputs through a saturating function: {net}+sat."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from ssl_lab.nets.base import Net
from ssl_lab.nets.parametrized import layers_of

SAT = "+sat"


def saturate(net: Net) -> Net:
    """From now on the layers of the net, but for the first, see limit * tanh(x / limit), `input_limit` a buffer of
    each: at first infinite, where it is x."""
    for layer in list(layers_of(net).values())[1:]:
        layer.register_buffer("input_limit", torch.full((), torch.inf, device=layer.weight.device))
        layer.register_forward_pre_hook(_saturating)
    net.name += SAT
    return net


def saturated(x: Tensor, limit: Tensor) -> Tensor:
    """limit * tanh(x / limit); x itself where the limit is infinite."""
    finite = limit.where(limit.isfinite(), 1.0).to(x.dtype)
    return torch.where(limit.isfinite(), finite * torch.tanh(x / finite), x)


def _saturating(layer: nn.Module, given: tuple[Any, ...]) -> tuple[Any, ...]:
    return saturated(given[0], layer.get_buffer("input_limit")), *given[1:]
