"""The net of speed-runs on CIFAR-10, wide and shallow (Jordan 2024, arXiv 2404.00498): runs near a machine's peak."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

SIDE_BY_SIDE = 16  # images, of maps of up to
SMALL = 12  # pixels


class Rapid(nn.Module):
    """Float [B, C, H, W] -> pooled features [B, widths[-1]]:

        2x2 convolution to 8 C channels that does not learn; ReLU
        for each width:  3x3 convolution, max-pooling by 2, BN, ReLU, 3x3 convolution, BN, ReLU
        mean over places

    BN has a bias that learns and no scale. The first filters come in pairs, v and -v; v are random and orthogonal until
    the technique `whiten` has looked at images. A group does not pool where images of this size have nothing left to
    pool. The paper's net has GELU, 64, 256 and 256 channels, at the end max-pooling, and a bias of the first layer that
    learns at first: without it a step on crops of 20 px has 6% less to do, and is as good (recipes/rapid.py).

    size: the shorter side of the images.
    """

    def __init__(self, channels: int, size: int, widths: Sequence[int]) -> None:
        super().__init__()
        self.whitening = nn.Conv2d(channels, 8 * channels, 2, bias=False)
        self.whitening.weight.requires_grad_(False)
        half = nn.init.orthogonal_(torch.empty(4 * channels, 4 * channels)).view(4 * channels, channels, 2, 2)
        self.set_filters(half)
        inputs, left, groups = 8 * channels, size - 1, list[nn.Module]()
        for width in widths:
            pool = nn.MaxPool2d(2) if left >= 2 else nn.Identity()
            groups += [_conv(inputs, width), pool, _norm(width), nn.ReLU(inplace=True),
                       _conv(width, width), _norm(width), nn.ReLU(inplace=True)]
            inputs, left = width, max(1, left // 2)
        self.relu, self.groups, self.features_dim = nn.ReLU(inplace=True), nn.Sequential(*groups), inputs

    @torch.no_grad()
    def set_filters(self, half: Tensor) -> None:
        """Gives the first convolution these filters, [4 C, C, 2, 2], and their negatives."""
        self.whitening.weight.copy_(torch.cat([half, -half]))

    def forward(self, x: Tensor) -> Tensor:
        features: Tensor = self.groups(self.relu(self.whitening(x)))
        return features.mean((2, 3))


class Conv(nn.Conv2d):
    """A 3x3 convolution, stride 1, padding 1, no bias, whose gradient is quick on a CPU too where maps are small.

    oneDNN's gradient of the weights reaches a tenth of the speed of the other two products on maps of 4 pixels, a
    twentieth on maps of 2. So images are laid beside each other, with a column of zeros between them: the same sum, 2
    to 14 times as fast (bf16, 576 images, 64 to 256 channels, one core of an Intel Xeon with AMX that had other work).
    """

    def forward(self, input: Tensor) -> Tensor:
        if (input.device.type != "cpu" or not torch.is_grad_enabled() or not self.weight.requires_grad
                or input.shape[3] > SMALL or torch.compiler.is_compiling()):
            return super().forward(input)
        weight = self.weight
        if torch.is_autocast_enabled("cpu"):
            dtype = torch.get_autocast_dtype("cpu")
            input, weight = input.to(dtype), weight.to(dtype)
        result: Tensor = dense(input, weight) if input.shape[2:] == (2, 2) else _Convolved.apply(input, weight)
        return result


def dense(x: Tensor, weight: Tensor) -> Tensor:
    """The convolution of x [N, C, 2, 2] by a filter [O, C, 3, 3] with padding 1, as one product: [N, O, 2, 2]."""
    filters = weight.permute(2, 3, 1, 0)
    seen = [filters[1 - y:3 - y, 1 - x:3 - x] for y in (0, 1) for x in (0, 1)]  # what each place sees of the four
    matrix = torch.stack(seen, 3).reshape(4 * weight.shape[1], 4 * weight.shape[0])
    result = x.permute(0, 2, 3, 1).reshape(len(x), -1) @ matrix
    return result.view(len(x), 2, 2, -1).permute(0, 3, 1, 2)


class _Convolved(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor) -> Tensor:
        ctx.save_for_backward(x, weight)
        return F.conv2d(x, weight, padding=1)

    @staticmethod
    def backward(ctx: Any, slope: Tensor) -> tuple[Tensor | None, Tensor]:
        x, weight = ctx.saved_tensors
        count = math.gcd(len(x), SIDE_BY_SIDE)
        of_weight = _gradients(beside(slope, count), beside(x, count), weight, (False, True))[1]
        of_input = _gradients(slope, x, weight, (True, False))[0] if ctx.needs_input_grad[0] else None
        return of_input, of_weight


def _gradients(slope: Tensor, x: Tensor, weight: Tensor, wanted: tuple[bool, bool]) -> tuple[Tensor, Tensor]:
    """Of a convolution's input and of its weights, as far as wanted."""
    found: tuple[Tensor, Tensor, Tensor] = torch.ops.aten.convolution_backward(
        slope, x, weight, None, [1, 1], [1, 1], [1, 1], False, [0, 0], 1, [*wanted, False])
    return found[:2]


def beside(x: Tensor, count: int) -> Tensor:
    """[N, C, H, W] -> [N / count, C, H, count * (W + 1)]: so many images beside each other, zeros after each."""
    rows, channels, height, width = x.shape
    lines = x.new_zeros(rows // count, height, count, width + 1, channels)
    lines[..., :width, :] = x.movedim(1, 3).reshape(rows // count, count, height, width, channels).transpose(1, 2)
    return lines.view(rows // count, height, count * (width + 1), channels).movedim(3, 1)


def _conv(inputs: int, outputs: int) -> Conv:
    layer = Conv(inputs, outputs, 3, padding=1, bias=False)
    nn.init.kaiming_normal_(layer.weight, mode="fan_out", nonlinearity="relu")
    return layer


def _norm(channels: int) -> nn.BatchNorm2d:
    layer = nn.BatchNorm2d(channels)
    layer.weight.requires_grad_(False)
    return layer
