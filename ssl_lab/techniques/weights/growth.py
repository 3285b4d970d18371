"""Channels between two convolutions that sleep, and are woken where gradients will be largest: see `GradMax`."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.grad import conv2d_weight

from ssl_lab.losses import full_precision
from ssl_lab.nets.residual import Residual, WideBlock

ENTRIES = 2**24  # of the gradients of one part of a growth matrix


class Pair(NamedTuple):
    """Two convolutions of a residual block, with BatchNorm and a rectifier between."""

    first: nn.Conv2d
    second: nn.Conv2d


def pairs(net: nn.Module) -> Iterator[Pair]:
    """The first two convolutions of each residual block."""
    for block in net.modules():
        if isinstance(block, Residual | WideBlock):
            two: Any = (block.branch[0], block.branch[3]) if isinstance(block, Residual) else (block.conv1, block.conv2)
            yield Pair(*two)


class SteepReLU(nn.Module):
    """max(x, 0), with slope 1 at 0, where torch's has 0."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.where(x >= 0, x, 0)


@torch.no_grad()
def sleep(pair: Pair, count: int) -> None:
    """Sets the fan-in and the fan-out of the last `count` channels between the two to 0."""
    start = pair.first.out_channels - count
    pair.first.weight[start:] = 0
    pair.second.weight[:, start:] = 0


def growth_matrix(pair: Pair, x: Tensor, slope: Tensor) -> Tensor:
    """dL/d(fan-in) of a new channel is u'M, up to a factor, for the fan-out u.

    M: [out * kernel of the second, in * kernel of the first].

    x: the input of the first convolution [B, in, H, W]. slope: dL/d(output of the second) [B, out, H2, W2].
    """
    first, second = pair
    (high, wide), (down, right) = second.kernel_size, second.stride
    taps, outputs = high * wide, slope.shape[1]
    size = [(x.shape[2 + i] + 2 * int(first.padding[i]) - first.kernel_size[i]) // first.stride[i] + 1 for i in (0, 1)]
    rest = [size[0] - (slope.shape[2] - 1) * down + 2 * int(second.padding[0]) - high,
            size[1] - (slope.shape[3] - 1) * right + 2 * int(second.padding[1]) - wide]
    parts = []
    with full_precision(x.device):
        for some in torch.split(slope, max(1, ENTRIES // (len(x) * taps * size[0] * size[1])), dim=1):
            count = some.shape[1]
            one_tap = torch.eye(taps, device=x.device, dtype=x.dtype).view(taps, high, wide).repeat(count, 1, 1, 1)
            hidden = F.conv_transpose2d(some, one_tap.view(count, taps, high, wide), stride=second.stride,
                                        padding=[int(p) for p in second.padding], output_padding=rest, groups=count)
            hidden = hidden - hidden.mean((0, 2, 3), keepdim=True)  # as BatchNorm passes it back
            shape = (count * taps, x.shape[1], *first.kernel_size)
            found: Tensor = conv2d_weight(x, shape, hidden, first.stride, first.padding)  # type: ignore[no-untyped-call]
            parts.append(found.flatten(1))
    matrix = torch.cat(parts)
    assert len(matrix) == outputs * taps
    return matrix


@torch.no_grad()
def wake(pair: Pair, channels: slice, matrix: Tensor, scale: float) -> None:
    """Sets the fan-outs of these channels, before which all are awake, by their growth matrix."""
    count, weight = channels.stop - channels.start, pair.second.weight
    if not count:
        return
    directions = torch.linalg.svd(matrix, full_matrices=False).U[:, :count]
    most = directions.gather(0, directions.abs().argmax(dim=0, keepdim=True))
    directions = directions * most.sign()  # which singular vectors leave open
    length = scale * weight[:, : channels.start].transpose(0, 1).flatten(1).norm(dim=1).mean()
    fan_outs = length * directions.T.reshape(count, len(weight), *weight.shape[2:])
    weight[:, channels] = fan_outs.transpose(0, 1).to(weight.dtype)
