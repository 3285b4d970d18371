"""Nets whose blocks' outputs pass a fixed normalization, channel by channel: {net}+normed."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn

from ssl_lab.batch import Style
from ssl_lab.nets.base import Net

NORMED = "+normed"


def blocks_of(net: Net) -> list[str]:
    """The names of the net's blocks that have weights, in order: members of `backbone.blocks`, or of the backbone."""
    parent = "backbone.blocks" if hasattr(net.backbone, "blocks") else "backbone"
    return [f"{parent}.{name}" for name, part in net.get_submodule(parent).named_children()
            if any(True for _ in part.parameters())]


def normed(net: Net, style: Style) -> Net:
    """The net, with an output (x - fixed_mean) / fixed_sd of each block, both buffers [channels] that do not learn: at
    first 0 and 1, which changes nothing. For images of this style."""
    sizes: dict[str, int] = {}
    shadow = copy.deepcopy(net).cpu().eval()
    for name in blocks_of(net):
        shadow.get_submodule(name).register_forward_hook(
            lambda _, __, output, name=name: sizes.update({name: output.shape[_channel(output)]}))
    with torch.no_grad():
        shadow(torch.zeros(1, style.channels, style.height, style.width))
    for name in blocks_of(net):
        block = net.get_submodule(name)
        block.register_buffer("fixed_mean", torch.zeros(sizes[name], device=net.mean.device))
        block.register_buffer("fixed_sd", torch.ones(sizes[name], device=net.mean.device))
        block.register_forward_hook(_normalizing)
    net.name += NORMED
    return net


def moments(output: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation of each channel of a block's output, float [channels]."""
    others = [axis for axis in range(output.ndim) if axis != _channel(output) % output.ndim]
    return output.float().mean(others), output.float().std(others, correction=0)


def _normalizing(block: nn.Module, given: Any, output: Tensor) -> Tensor:
    shape = [1] * output.ndim
    shape[_channel(output)] = -1
    mean, sd = (block.get_buffer(name).view(shape) for name in ("fixed_mean", "fixed_sd"))
    return ((output - mean) / sd).to(output.dtype)


def _channel(output: Tensor) -> int:
    """Maps have their channels first, tokens and vectors last."""
    return 1 if output.ndim == 4 else -1
