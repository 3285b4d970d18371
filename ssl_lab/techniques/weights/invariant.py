"""Weights whose length does not matter: those of layers that a norm follows. Found, and scaled."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ssl_lab.batch import Style
from ssl_lab.methods import Method
from ssl_lab.nets import Net
from ssl_lab.seeds import generator

TINY = 1e-12  # in place of a norm's epsilon, which is what keeps invariance from being exact
BatchNorm = nn.modules.batchnorm._BatchNorm


@dataclass(frozen=True)
class Free:
    """A layer whose output does not change with the length of its weights. name: within the net. norms: of those that
    take its output as it is, the ones that keep running statistics of it. rows: whether each filter is free, too."""

    name: str
    norms: tuple[str, ...]
    rows: bool

    def weight(self, net: nn.Module) -> nn.Parameter:
        weight = net.get_submodule(self.name).weight
        assert isinstance(weight, nn.Parameter)
        return weight

    @torch.no_grad()
    def scale(self, net: nn.Module, factor: Tensor) -> None:
        """Multiplies the weights by the factor, a scalar or one for each filter [out], and with them what the norms
        have seen of the outputs: W x + b has mean m and variance v, c W x + b has c (m - b) + b and c^2 v."""
        layer, weight = net.get_submodule(self.name), self.weight(net)
        weight.mul_(factor.view(-1, *[1] * (weight.ndim - 1)))
        for name in self.norms:
            norm = net.get_submodule(name)
            assert isinstance(norm, BatchNorm)
            assert norm.running_mean is not None
            assert norm.running_var is not None
            bias = layer.bias if isinstance(layer.bias, Tensor) else 0.0
            norm.running_mean.sub_(bias).mul_(factor).add_(bias)
            norm.running_var.mul_(factor.square())


def free_layers(net: Net, style: Style) -> list[Free]:
    """The layers of the net that learn and whose weights' length does not matter, in train mode.

    By Euler's theorem they are those with <w, g> = 0 for any loss: of one random loss of random images, in float64 and
    with tiny epsilons.
    """
    shadow = copy.deepcopy(net).cpu().double().requires_grad_(True).train()
    for part in shadow.modules():
        if isinstance(getattr(part, "eps", None), float):
            vars(part)["eps"] = TINY
    given: list[tuple[Tensor, str]] = []
    taken: list[tuple[Tensor, str]] = []
    layers = [name for name, part in net.named_modules() if isinstance(part, nn.Conv1d | nn.Conv2d | nn.Linear)
              and (weight := part._parameters.get("weight")) is not None and weight.requires_grad]
    for name, part in shadow.named_modules():
        if name in layers:
            part.register_forward_hook(lambda _, __, output, name=name: given.append((output, name)))
        elif isinstance(part, BatchNorm) and part.running_mean is not None:
            part.register_forward_pre_hook(lambda _, inputs, name=name: taken.append((inputs[0], name)))
    draw = generator(0, "free layers")
    output = shadow(torch.rand(8, style.channels, style.height, style.width, generator=draw, dtype=torch.float64))
    loss = sum(((each * torch.randn(each.shape, generator=draw, dtype=torch.float64)).sum() for each in output),
               torch.zeros((), dtype=torch.float64))
    weights = {name: shadow.get_parameter(f"{name}.weight") for name in layers}
    slopes: tuple[Tensor | None, ...] = torch.autograd.grad(loss, list(weights.values()), allow_unused=True)
    free = []
    for (name, weight), slope in zip(weights.items(), slopes, strict=True):
        if slope is None:
            continue
        w, g = weight.detach().flatten(1), slope.flatten(1)
        size = w.norm() * g.norm()
        if size == 0 or (w * g).sum().abs() > 1e-6 * size:
            continue
        outputs = [output for output, source in given if source == name]
        norms = dict.fromkeys(norm for seen, norm in taken if any(seen is output for output in outputs))
        free.append(Free(name, tuple(norms), bool(((w * g).sum(1).abs() <= 1e-6 * size).all())))
    return free


def nets_of(method: Method) -> Iterator[Net]:
    """The net that learns, and the moving average that is to stay an average of it."""
    yield method.net
    yield method.ema.net
