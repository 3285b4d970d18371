"""Residual networks for small images: wide ResNets, ResNets with a small-image stem, and a tiny one for CPUs.

Each is a backbone: float [B, C, H, W] -> pooled features [B, features_dim], any H and W of at least 4.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn


def conv(inputs: int, outputs: int, size: int, stride: int = 1) -> nn.Conv2d:
    """A convolution without bias that keeps the map's size (stride 1), in He initialization, fan-out."""
    layer = nn.Conv2d(inputs, outputs, size, stride, padding=size // 2, bias=False)
    nn.init.kaiming_normal_(layer.weight, mode="fan_out", nonlinearity="relu")
    return layer


class WideBlock(nn.Module):
    """The pre-activation basic block. `activate_shortcut`: the shortcut, too, starts after the activation."""

    def __init__(self, inputs: int, outputs: int, stride: int, activate_shortcut: bool) -> None:
        super().__init__()
        self.activate_shortcut = activate_shortcut
        self.norm1, self.norm2 = _wide_norm(inputs), _wide_norm(outputs)
        self.conv1, self.conv2 = conv(inputs, outputs, 3, stride), conv(outputs, outputs, 3)
        self.shortcut = nn.Identity() if inputs == outputs else conv(inputs, outputs, 1, stride)

    def forward(self, x: Tensor) -> Tensor:
        hidden = _leaky(self.norm1(x))
        shortcut: Tensor = self.shortcut(hidden if self.activate_shortcut else x)
        branch: Tensor = self.conv2(_leaky(self.norm2(self.conv1(hidden))))
        return shortcut + branch


class WideResNet(nn.Module):
    """WRN-depth-width (Zagoruyko and Komodakis 2016, arXiv 1605.07146) as MixMatch and FixMatch have it.

    depth = 6n + 4: three groups of n blocks of 16, 32 and 64 times `width` channels. LeakyReLU(0.1) and
    BatchNorm eps 0.001; only the first block's shortcut is taken after the activation.
    """

    def __init__(self, depth: int, width: int, channels: int) -> None:
        super().__init__()
        blocks: list[nn.Module] = []
        inputs = 16
        for group in range(3):
            outputs = 16 * width * 2**group
            for index in range((depth - 4) // 6):
                stride = 2 if group and not index else 1
                blocks.append(WideBlock(inputs, outputs, stride, activate_shortcut=not blocks))
                inputs = outputs
        self.stem = conv(channels, 16, 3)
        self.blocks = nn.Sequential(*blocks)
        self.norm = _wide_norm(inputs)
        self.features_dim = inputs

    def forward(self, x: Tensor) -> Tensor:
        return _leaky(self.norm(self.blocks(self.stem(x)))).mean((2, 3))


def _wide_norm(channels: int) -> nn.BatchNorm2d:
    return nn.BatchNorm2d(channels, eps=1e-3)


def _leaky(x: Tensor) -> Tensor:
    return F.leaky_relu(x, 0.1, inplace=True)


class Residual(nn.Module):
    """relu(branch(x) + shortcut(x)); a shortcut that changes shape is a projection (He et al. 2016), or `shortcut`."""

    def __init__(self, branch: nn.Sequential, inputs: int, outputs: int, stride: int,
                 shortcut: nn.Module | None = None) -> None:
        super().__init__()
        self.branch = branch
        self.register_module("after", None)  # in the place of the last rectifier: see `nets.slopes`
        self.shortcut = (nn.Identity() if inputs == outputs and stride == 1 else shortcut or
                         nn.Sequential(conv(inputs, outputs, 1, stride), nn.BatchNorm2d(outputs)))

    def forward(self, x: Tensor) -> Tensor:
        added: Tensor = self.branch(x) + self.shortcut(x)
        out: Tensor = self.after(added) if isinstance(self.after, nn.Module) else F.relu(added, inplace=True)
        return out


def basic(inputs: int, width: int, stride: int) -> Residual:
    """Two 3x3 convolutions."""
    branch = nn.Sequential(*_conv_norm_relu(inputs, width, 3, stride),
                           conv(width, width, 3), nn.BatchNorm2d(width))
    return Residual(branch, inputs, width, stride)


def bottleneck(inputs: int, width: int, stride: int) -> Residual:
    """1x1, 3x3 (with the stride) and 1x1 convolutions; 4 * width channels leave it."""
    branch = nn.Sequential(*_conv_norm_relu(inputs, width, 1), *_conv_norm_relu(width, width, 3, stride),
                           conv(width, 4 * width, 1), nn.BatchNorm2d(4 * width))
    return Residual(branch, inputs, 4 * width, stride)


def _conv_norm_relu(inputs: int, outputs: int, size: int, stride: int = 1) -> list[nn.Module]:
    return [conv(inputs, outputs, size, stride), nn.BatchNorm2d(outputs), nn.ReLU(inplace=True)]


class ResNet(nn.Module):
    """Stages of residual blocks after one 3x3 convolution, without max-pooling (He et al. 2016, for CIFAR).

    depths: blocks per stage. Stage i has width * 2^i channels (four times that with `bottlenecks`) and, but
    for the first, halves the map. stem_stride: the stride of the first convolution.
    """

    def __init__(self, depths: tuple[int, ...], width: int, channels: int, *, bottlenecks: bool = False,
                 stem_stride: int = 1) -> None:
        super().__init__()
        block, expansion = (bottleneck, 4) if bottlenecks else (basic, 1)
        blocks: list[nn.Module] = []
        inputs = width
        for stage, depth in enumerate(depths):
            for index in range(depth):
                blocks.append(block(inputs, width * 2**stage, 2 if stage and not index else 1))
                inputs = width * 2**stage * expansion
        self.stem = nn.Sequential(*_conv_norm_relu(channels, width, 3, stem_stride))
        self.blocks = nn.Sequential(*blocks)
        self.features_dim = inputs

    def forward(self, x: Tensor) -> Tensor:
        features: Tensor = self.blocks(self.stem(x))
        return features.mean((2, 3))
