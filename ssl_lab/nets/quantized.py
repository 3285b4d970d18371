"""Nets whose layers see their inputs in few bits: {net}+in{bits}; and the roundings, whose gradients pass straight."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from ssl_lab.errors import UsageError
from ssl_lab.nets.base import MOVING, Net
from ssl_lab.nets.parametrized import layers_of

MARK = "+in"
MOVE = 0.05  # how far the range of a layer's inputs moves towards that of a batch
FLOAT = 24  # bits from which float32 is no coarser


def straight(x: Tensor, value: Tensor) -> Tensor:
    """`value`, exactly, with the gradient of x."""
    return value.detach() + (x - x.detach())


def rounded_weight(weight: Tensor, bits: int) -> Tensor:
    """A weight [out, ...] on the symmetric grid of 2^bits - 1 values between -max |w| and max |w| of each output; of 1
    bit its signs, sign(0) = 1. The gradient passes unmasked. From 24 bits on, the weight itself."""
    if bits >= FLOAT:
        return weight
    if bits == 1:
        return straight(weight, torch.where(weight >= 0, 1.0, -1.0).to(weight.dtype))
    most = 2 ** (bits - 1) - 1
    scale = weight.detach().flatten(1).abs().amax(1).clamp(min=1e-12).view(-1, *[1] * (weight.ndim - 1)) / most
    return straight(weight, (weight / scale).round().clamp(-most, most) * scale)


def rounded_input(x: Tensor, low: Tensor, high: Tensor, bits: int) -> Tensor:
    """x on the grid of 2^bits values from low to high, scalars; of 1 bit its signs. The gradient passes where x lies
    between them: for signs, where |x| <= 1. From 24 bits on, x itself."""
    if bits >= FLOAT:
        return x
    if bits == 1:
        return straight(x.clamp(-1, 1), torch.where(x >= 0, 1.0, -1.0).to(x.dtype))
    # not by minimum and maximum: onnxscript names their bounds by x alone, which several layers may see
    inside = torch.where(x < low, low, torch.where(x > high, high, x))
    scale = ((high - low) / (2**bits - 1)).clamp(min=1e-12)
    return straight(inside, ((inside - low) / scale).round() * scale + low)


def round_inputs(net: Net, bits: int) -> Net:
    """From now on the layers of the net, but for the first, see their inputs in so many bits (the head in 8 at least),
    between a moving average of least and largest values of batches in training: buffers `input_low`, `input_high`."""
    if bits >= FLOAT:
        return net
    layers = layers_of(net)
    for name, layer in list(layers.items())[1:]:
        for key in ("input_low", "input_high"):
            layer.register_buffer(key, torch.zeros((), device=layer.weight.device))
        setattr(layer, MOVING, True)
        layer.register_forward_pre_hook(_Rounding(max(bits, 8) if name == "head" else bits))
    net.name += f"{MARK}{bits}"
    return net


class _Rounding:
    def __init__(self, bits: int) -> None:
        self.bits = bits

    def __call__(self, layer: nn.Module, given: tuple[Any, ...]) -> tuple[Tensor, ...]:
        x, low, high = given[0], layer.get_buffer("input_low"), layer.get_buffer("input_high")
        if layer.training and getattr(layer, MOVING):
            with torch.no_grad():
                seen, known = torch.aminmax(x.detach().float()), high > low
                low.copy_(torch.where(known, low.lerp(seen.min, MOVE), seen.min))
                high.copy_(torch.where(known, high.lerp(seen.max, MOVE), seen.max))
        return rounded_input(x, low.to(x.dtype), high.to(x.dtype), self.bits), *given[1:]


def level_of(net: Net) -> float:
    """The distance of two values of its layers' inputs, as a share of their range; 0 where none is rounded."""
    _, marked, bits = net.name.partition(MARK)
    return 1 / (2 ** int(bits.partition("+")[0]) - 1) if marked else 0.0


def ranges_of(net: nn.Module) -> list[Tensor]:
    """The buffers that `round_inputs` made."""
    return [buffer for name, buffer in net.named_buffers() if name.endswith(("input_low", "input_high"))]


def with_float_inputs(net: Net) -> Net:
    """The net, in place, without what `round_inputs` did; its weights stay."""
    for layer in layers_of(net).values():
        for number, hook in list(layer._forward_pre_hooks.items()):
            if isinstance(hook, _Rounding):
                del layer._forward_pre_hooks[number]
        for key in ("input_low", "input_high"):
            layer._buffers.pop(key, None)
    net.name = net.name.partition(MARK)[0]
    return net


def check_bits(name: str, **given: int) -> None:
    """UsageError unless each is from 1 to 32."""
    for word, bits in given.items():
        if not 1 <= bits <= 32:
            raise UsageError(f"{name}: {word}={bits}; expected 1 to 32 bits")
