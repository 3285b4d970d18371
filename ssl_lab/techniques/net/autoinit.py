"""AutoInit (Bingham and Miikkulainen 2021, arXiv 2109.08958): weights by which every layer's output has variance 1."""

from __future__ import annotations

import math

import torch
from torch import nn

from ssl_lab.data import Pool
from ssl_lab.errors import UsageError
from ssl_lab.nets import Net
from ssl_lab.seeds import generator
from ssl_lab.techniques.base import NetTechnique
from ssl_lab.techniques.net.moments import WEIGHTED, Following, Moments

CUT = 0.87962566103423978  # standard deviation of a standard normal that is cut at +-2


class AutoInit(NetTechnique):
    """w ~ N(0, 1 / (fan_in (nu + mu^2))), cut at two standard deviations, biases 0: the output has mean 0, variance 1

    mu and nu the mean and variance of a layer's input, which follow from what is before it: activations by
    integration over a normal variable, sums add, concatenations weigh by size, a norm gives (0, 1), dropout in training
    (mu, (nu + mu^2) / (1 - p) - mu^2), pooling by sampling; an image enters with (0, 1). Data are not looked at. All
    weights start afresh: no argument turns it off.

    Checked against the authors' code (`estimators/*.py`), which has nu / (1 - p) for dropout, right where mu = 0.

    >>> pool = sl.load("digits").split(labels=10)
    >>> net = sl.net("tiny_4", classes=10, style=pool.style)
    >>> changed = sl.AutoInit()(net, pool, seed=0)
    >>> list(changed.state_dict()) == list(net.state_dict()), changed.head.bias.abs().max().item()
    (True, 0.0)
    """

    name = "autoinit"
    paper = "AutoInit: Analytic Signal-Preserving Weight Initialization for Neural Networks"
    arxiv = "2109.08958"
    fresh_only = True

    @property
    def overwrites(self) -> str:
        return "draws all weights anew"

    @torch.no_grad()
    def __call__(self, net: Net, pool: Pool, seed: int) -> Net:
        draw, training, style = generator(seed, "autoinit"), net.training, pool.style
        enter = lambda layer, given: initialize(layer, given, draw)  # noqa: E731
        device = net.mean.device
        try:
            following = Following(net.cpu().eval().backbone, enter, draw)
            following.run(torch.zeros(1, style.channels, style.height, style.width))
        except UsageError as error:
            raise UsageError(f"autoinit cannot follow {net.name}: {error}") from error
        except Exception as error:  # tracing raises what Python code does that looks at a stand-in for a tensor
            raise UsageError(f"autoinit cannot follow {net.name}, whose code depends on more than operations of "
                             f"layers ({type(error).__name__})") from error
        initialize(net.head, following.last, draw)
        return net.to(device).train(training)


def initialize(layer: nn.Module, given: Moments, draw: torch.Generator) -> Moments:
    """Draws the layer's weights for inputs of these moments; returns those of its output."""
    assert isinstance(layer, WEIGHTED)
    fan_in = layer.weight[0].numel()
    sd = 1 / math.sqrt(fan_in * (given.var + given.mean**2)) / CUT
    nn.init.trunc_normal_(layer.weight, std=sd, a=-2 * sd, b=2 * sd, generator=draw)
    if layer.bias is not None:
        nn.init.zeros_(layer.bias)
    return Moments(0, 1)
