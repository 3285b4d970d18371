"""Nets whose rectifiers have a slope of their own for each channel below 0: {net}+prelu."""

from __future__ import annotations

import copy

import torch
from torch import nn

from ssl_lab.batch import Style
from ssl_lab.errors import UsageError
from ssl_lab.nets.base import Net
from ssl_lab.nets.residual import Residual

PRELU = "+prelu"


def with_slopes(net: Net, style: Style) -> Net:
    """The net with max(x, 0) + a min(x, 0) for each rectifier, a [channels] at first 0, which changes nothing. For
    images of this style. UsageError where rectifiers are no modules of the net."""
    places = {name: part for name, part in net.backbone.named_modules() if isinstance(part, nn.ReLU)}
    ends = [name for name, part in net.backbone.named_modules() if isinstance(part, Residual) and part.after is None]
    if not places and not ends:
        raise UsageError(f"{net.name} has no rectifier that it could have slopes in the place of; take a net such as "
                         "tiny_16, resnet18 or preact_29")
    sizes, shadow = dict[str, int](), copy.deepcopy(net.backbone).cpu().eval()
    for name in (*places, *ends):
        shadow.get_submodule(name).register_forward_hook(
            lambda _, __, output, name=name: sizes.update({name: output.shape[1]}))
    with torch.no_grad():
        shadow(torch.zeros(1, style.channels, style.height, style.width))
    device = net.mean.device
    for name in places:
        parent, _, child = name.rpartition(".")
        setattr(net.backbone.get_submodule(parent), child, nn.PReLU(sizes[name], 0.0, device=device))
    for name in ends:
        net.backbone.get_submodule(name).after = nn.PReLU(sizes[name], 0.0, device=device)
    net.name += PRELU
    return net


def slopes_of(net: nn.Module) -> list[nn.Parameter]:
    """a of each."""
    return [part.weight for part in net.modules() if isinstance(part, nn.PReLU)]
