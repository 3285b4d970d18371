"""Nets whose weights are computed from other parameters (torch.nn.utils.parametrize), and what comes out of them."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable

from torch import nn
from torch.nn.utils import parametrize

from ssl_lab.nets.base import Net


def layers_of(net: nn.Module) -> dict[str, nn.Conv1d | nn.Conv2d | nn.Linear]:
    """Its convolutions and linear layers, by name."""
    return {name: part for name, part in net.named_modules() if isinstance(part, nn.Conv1d | nn.Conv2d | nn.Linear)}


def reparametrize(nets: Iterable[Net], make: Callable[[str, nn.Module], nn.Module | None]) -> None:
    """In each net, the weight of each layer is from now on what make(name, layer) computes from it; None leaves it. Of
    a net that does not learn, what is made does not learn either."""
    for net in nets:
        for name, layer in layers_of(net).items():
            made = make(name, layer)
            if made is not None:
                made.requires_grad_(layer.weight.requires_grad)
                made.train(layer.training)
                parametrize.register_parametrization(layer, "weight", made)


def baked(net: Net) -> Net:
    """A copy with plain weights, of the values that they have in `net`."""
    copied = copy.deepcopy(net)
    for layer in copied.modules():
        if parametrize.is_parametrized(layer):  # torch would take the property from the class, which `net` shares
            values = {name: getattr(layer, name).detach() for name in layer.parametrizations}  # type: ignore[union-attr]
            learns = any(parameter.requires_grad for parameter in layer.parameters())
            layer.__class__ = type(layer).__bases__[0]
            del layer.parametrizations
            for name, value in values.items():
                layer.register_parameter(name, nn.Parameter(value, learns))
    return copied
