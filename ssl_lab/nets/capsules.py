"""Momentum capsule nets (Gugglberger et al. 2022, arXiv 2201.11091): residual capsule layers that can be run backwards.

Each is a backbone: float [B, C, H, W] -> features [B, features_dim].
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

CAPSULES, SIZE, ROUNDS, MOMENTUM = 32, 8, 3, 0.9


def squash(s: Tensor) -> Tensor:
    """|s|^2 / (1 + |s|^2) s / |s| of the last dimension: a length below 1."""
    square = s.square().sum(-1, keepdim=True)
    return square / (1 + square) * s / (square + 1e-12).sqrt()


def routed(votes: Tensor, rounds: int = ROUNDS) -> Tensor:
    """Capsules [B, out, d] by dynamic routing of votes [B, in, out, d] (Sabour et al. 2017, arXiv 1710.09829)."""
    agreement = votes.new_zeros(votes.shape[:3])
    for number in range(rounds):
        out = squash((agreement.softmax(2).unsqueeze(-1) * votes).sum(1))
        if number + 1 < rounds:
            agreement = agreement + (votes * out.unsqueeze(1)).sum(-1)
    return out


class Routing(nn.Module):
    """Capsules [B, inputs, size] -> [B, outputs, size], by dynamic routing."""

    def __init__(self, inputs: int, outputs: int = CAPSULES, size: int = SIZE) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(inputs, outputs, size, size) / size**0.5)

    def forward(self, x: Tensor) -> Tensor:
        return routed(torch.einsum("bid,iode->bioe", x, self.weight))


class Momentum(nn.Module):
    """v' = g v + (1 - g) f(x), x' = x + v' for each layer f, v = 0 at first; gives the last x.

    Backwards, x = x' - v', v = (v' - (1 - g) f(x)) / g: nothing but the last x and v is kept for the gradient, however
    many layers there are, which computes each layer twice. In floating point each step back multiplies rounding errors
    of v by 1 / g; the authors also keep the bits that the product by g loses, which makes it exact. g = 0 is x' = x +
    f(x), which cannot be run backwards: activations are then kept.
    """

    def __init__(self, layers: Sequence[nn.Module], momentum: float = MOMENTUM) -> None:
        super().__init__()
        self.layers, self.momentum = nn.ModuleList(layers), momentum

    def forward(self, x: Tensor) -> Tensor:
        if not self.momentum:
            return self.plainly(x)
        out: Tensor = _Reversible.apply(x, self.momentum, list(self.layers), *self.parameters())
        return out

    def plainly(self, x: Tensor) -> Tensor:
        """The same with all activations kept: what `forward` is compared with."""
        v = torch.zeros_like(x)
        for layer in self.layers:
            x, v = step(layer, x, v, self.momentum)
        return x


def step(layer: nn.Module, x: Tensor, v: Tensor, momentum: float) -> tuple[Tensor, Tensor]:
    """(x', v')."""
    v = momentum * v + (1 - momentum) * layer(x)
    return x + v, v


def step_back(layer: nn.Module, x: Tensor, v: Tensor, momentum: float) -> tuple[Tensor, Tensor]:
    """(x, v) before the step that gave these, momentum > 0."""
    x = x - v
    return x, (v - (1 - momentum) * layer(x)) / momentum


class _Reversible(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, momentum: float, layers: list[nn.Module], *parameters: Tensor) -> Tensor:
        v = torch.zeros_like(x)
        for layer in layers:
            x, v = step(layer, x, v, momentum)
        ctx.momentum, ctx.layers = momentum, layers
        ctx.save_for_backward(x, v)
        return x

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, slope: Tensor) -> tuple[Tensor | None, ...]:
        x, v = ctx.saved_tensors
        of_v, found = torch.zeros_like(slope), dict[Tensor, Tensor]()
        for layer in reversed(ctx.layers):
            x, v = (each.detach() for each in step_back(layer, x, v, ctx.momentum))
            with torch.enable_grad():
                before = x.requires_grad_()
                out = layer(before)
            of_v = of_v + slope  # x' = x + v'
            weights = [p for p in layer.parameters() if p.requires_grad]
            given = torch.autograd.grad(out, [before, *weights], (1 - ctx.momentum) * of_v)
            slope, of_v, x = slope + given[0], ctx.momentum * of_v, before.detach()
            found |= dict(zip(weights, given[1:], strict=True))
        everything = [p for layer in ctx.layers for p in layer.parameters()]
        return slope, None, None, *(found.get(p) for p in everything)


class MoCapsNet(nn.Module):
    """Two strided convolutions, 64 capsules of 8 numbers from a 4x4 grid of places, routed to 32 capsules, and `depth`
    momentum residual layers of them; the features are all numbers of the last capsules.

    Routing is done in float32. Under the net's linear head any method trains it: the paper's margin loss of capsules'
    lengths and its reconstruction are left out. Checked against the authors' code (`model.py`, `trainer.py`) by a
    summary.
    """

    features_dim = CAPSULES * SIZE

    def __init__(self, depth: int, channels: int) -> None:
        super().__init__()
        self.stem = nn.Sequential(*_conv_norm_relu(channels, 32), *_conv_norm_relu(32, 4 * SIZE))
        self.first = Routing(64)
        self.blocks = Momentum([Routing(CAPSULES) for _ in range(depth)])

    def forward(self, x: Tensor) -> Tensor:
        maps = F.adaptive_avg_pool2d(self.stem(x), 4)
        with torch.autocast(x.device.type, enabled=False):
            primary = maps.float().view(len(x), 4, SIZE, 4, 4).permute(0, 1, 3, 4, 2).flatten(1, 3)
            capsules: Tensor = self.blocks(self.first(squash(primary.to(self.first.weight.dtype))))
        return capsules.flatten(1)


def _conv_norm_relu(inputs: int, outputs: int) -> list[nn.Module]:
    return [nn.Conv2d(inputs, outputs, 3, 2, padding=1, bias=False), nn.BatchNorm2d(outputs), nn.ReLU(inplace=True)]
