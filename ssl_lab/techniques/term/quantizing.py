"""What techniques share that train a net in few bits: weights by a parametrization of their own, inputs on a grid."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import ClassVar

import torch
from torch import nn

from ssl_lab.batch import At, Batch, Loss
from ssl_lab.data import Pool
from ssl_lab.errors import UsageError
from ssl_lab.methods import Method
from ssl_lab.methods.ranks import mean_over_ranks, world
from ssl_lab.nets import Net
from ssl_lab.nets.parametrized import baked, layers_of, reparametrize
from ssl_lab.nets.quantized import check_bits, ranges_of, round_inputs
from ssl_lab.techniques.base import TermTechnique
from ssl_lab.techniques.images import as_seen
from ssl_lab.techniques.term.scl import REWRITES, check_plain
from ssl_lab.techniques.weights.invariant import nets_of


class Quantizing(TermTechnique):
    """Each weight of convolutions and linear layers is what `quantizer` makes of a float one, which learns, and inputs
    of layers are rounded to `inputs` bits (see `nets.quantized`). What is evaluated and exported has the quantized
    values as plain weights; with rounded inputs it is called {net}+in{bits}. The first layer and the head have 8 bits
    at least, and the image is not rounded.

    A float net is not smaller for having few values; `recipes/compress.py --int8` is what runs in bytes.
    """

    excludes: ClassVar[Mapping[str, str]] = REWRITES | dict.fromkeys(
        ("qnn", "csq", "noise_tempering", "bitat", "saq", "scl", "taylor", "slimming"),
        "both say what the net's weights are")

    def __init__(self, inputs: int, **bits: int) -> None:
        super().__init__()
        check_bits(self.name, inputs=inputs, **bits)
        self.inputs = inputs

    def check(self, method: Method, pool: Pool) -> None:
        check_quantized(self.name, method, pool, self.inputs)

    def begin(self, pool: Pool, seed: int) -> None:
        quantize(nets_of(self), self.quantizer, self.inputs)

    def quantizer(self, name: str, layer: nn.Module, edge: bool) -> nn.Module | None:
        """What makes the weight of this layer; None leaves it. Of equal nets it must be equal. edge: the first layer,
        or the head."""
        raise NotImplementedError

    def forward(self, batch: Batch, at: At) -> Loss:
        for part in self.modules():
            if isinstance(part, Tempered):
                part.at(at.frac)
        return super().forward(batch, at)

    def after_step(self, at: At) -> None:
        if world() > 1:
            for values in ranges_of(self.net):
                values.copy_(mean_over_ranks(values))
        super().after_step(at)

    def predictor(self) -> Net:
        return baked(super().predictor())


class Tempered(nn.Module):
    """A quantizer that changes with the fraction of training that is over, in [0, 1]: a buffer, so that it is saved."""

    now: torch.Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("now", torch.zeros(()))

    def at(self, frac: float) -> None:
        self.now.fill_(frac)


def quantize(nets: Iterable[Net], make: Callable[[str, nn.Module, bool], nn.Module | None], inputs: int) -> None:
    """In each net, weights are what make(name, layer, edge) makes of them, and layers see their inputs in so many bits.
    edge: whether it is the first layer, or the head."""
    for net in nets:
        edges = {next(iter(layers_of(net))), "head"}
        reparametrize([net], lambda name, layer, edges=edges: make(name, layer, name in edges))  # type: ignore[misc]
        round_inputs(net, inputs)


def check_quantized(name: str, method: Method, pool: Pool, inputs: int) -> None:
    """UsageError where the net has no plain weights, or signs of inputs would all be the same."""
    check_plain(name, method.net)
    if inputs == 1 and not any(value < 0 for value in _least_inputs(method, pool)):
        raise UsageError(f"{name}: inputs=1 takes signs, and what the layers of {method.net.name} see is never "
                         "negative (rectifiers); take 2 bits or more, or a net such as wrn_10_1")


@torch.no_grad()
def _least_inputs(method: Method, pool: Pool) -> list[float]:
    """The least value that each layer but the first sees of some images."""
    net, found, images = method.net, list[float](), as_seen(method, pool, 16, 0, "inputs")
    layers = [layer for name, layer in list(layers_of(net).items())[1:] if name != "head"]
    handles = [layer.register_forward_pre_hook(lambda _, given: found.append(float(given[0].min())))
               for layer in layers]
    training = net.training
    net.eval()(images)
    net.train(training)
    for handle in handles:
        handle.remove()
    return found
