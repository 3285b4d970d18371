"""More families of residual and dense nets for small images, each as its paper has it for CIFAR: after one 3x3
convolution, without max-pooling. Backbones: float [B, C, H, W] -> pooled features [B, features_dim]."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ssl_lab.nets.residual import Residual, conv


class Pooled(nn.Module):
    """stem, blocks, end, and the mean over places."""

    def __init__(self, stem: nn.Module, blocks: list[nn.Module], end: nn.Module, features_dim: int) -> None:
        super().__init__()
        self.stem, self.blocks, self.end = stem, nn.Sequential(*blocks), end
        self.features_dim = features_dim

    def forward(self, x: Tensor) -> Tensor:
        features: Tensor = self.end(self.blocks(self.stem(x)))
        return features.mean((2, 3))


class Padded(nn.Module):
    """Every `stride`-th place, and zeros for channels that are new: the shortcut without parameters, option A of He et
    al. 2016."""

    def __init__(self, more: int, stride: int) -> None:
        super().__init__()
        self.more, self.stride = more, stride

    def forward(self, x: Tensor) -> Tensor:
        return F.pad(x[:, :, :: self.stride, :: self.stride], (0, 0, 0, 0, 0, self.more))


class PreActivation(nn.Module):
    """x + branch(x), in which each convolution follows BatchNorm and ReLU; nothing follows the sum. A shortcut that
    changes shape is a convolution of the first activation (He et al. 2016, arXiv 1603.05027)."""

    def __init__(self, inputs: int, sizes: list[tuple[int, int]], stride: int) -> None:
        """sizes: channels and side of each convolution; the first 3x3 one has the stride."""
        super().__init__()
        self.first = _norm_relu(inputs)
        layers, before, at = [], inputs, next(i for i, (_, side) in enumerate(sizes) if side == 3)
        for index, (channels, side) in enumerate(sizes):
            layers += ([_norm_relu(before)] if index else []) + [conv(before, channels, side,
                                                                      stride if index == at else 1)]
            before = channels
        self.branch = nn.Sequential(*layers)
        self.shortcut = nn.Identity() if inputs == before and stride == 1 else conv(inputs, before, 1, stride)

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.first(x)
        shortcut: Tensor = self.shortcut(x if isinstance(self.shortcut, nn.Identity) else hidden)
        branch: Tensor = self.branch(hidden)
        return shortcut + branch


class Dense(nn.Module):
    """[x, H(x)], H = BN, ReLU, 1x1 convolution to 4 `growth` channels, BN, ReLU, 3x3 convolution to `growth`."""

    def __init__(self, inputs: int, growth: int) -> None:
        super().__init__()
        self.branch = nn.Sequential(_norm_relu(inputs), conv(inputs, 4 * growth, 1),
                                    _norm_relu(4 * growth), conv(4 * growth, growth, 3))

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([x, self.branch(x)], dim=1)


def cifar_resnet(channels: int, depth: int, width: int) -> Pooled:
    """ResNet-depth of He et al. 2016 (arXiv 1512.03385, section 4.2): depth = 6n + 2, three stages of n basic blocks of
    16, 32 and 64 times `width` channels, with shortcuts that have no parameters."""
    def block(inputs: int, outputs: int, stride: int) -> nn.Module:
        branch = nn.Sequential(conv(inputs, outputs, 3, stride), nn.BatchNorm2d(outputs), nn.ReLU(inplace=True),
                               conv(outputs, outputs, 3), nn.BatchNorm2d(outputs))
        return Residual(branch, inputs, outputs, stride, Padded(outputs - inputs, stride))

    start = 16 * width
    blocks = _stages(block, start, [start, 2 * start, 4 * start], [(depth - 2) // 6] * 3)
    return Pooled(_conv_norm_relu(channels, start), blocks, nn.Identity(), 4 * start)


def preact_resnet(channels: int, depths: list[int], width: int, expansion: int) -> Pooled:
    """Pre-activation ResNet: `depths` blocks in each stage, the first of which leaves width * expansion channels. With
    expansion 1 blocks are basic, else bottlenecks. The stem has `width` channels (16 in the nets for CIFAR)."""
    def block(inputs: int, outputs: int, stride: int) -> nn.Module:
        inner = outputs // expansion
        sizes = [(outputs, 3), (outputs, 3)] if expansion == 1 else [(inner, 1), (inner, 3), (outputs, 1)]
        return PreActivation(inputs, sizes, stride)

    ends = [width * expansion * 2**stage for stage in range(len(depths))]
    return Pooled(conv(channels, width, 3), _stages(block, width, ends, depths), _norm_relu(ends[-1]), ends[-1])


def resnext(channels: int, depth: int, cardinality: int, width: int) -> Pooled:
    """ResNeXt-depth, cardinality x width d (Xie et al. 2016, arXiv 1611.05431, for CIFAR): depth = 9n + 2, three stages
    of n bottlenecks that leave 256, 512 and 1024 channels, with grouped 3x3 convolutions."""
    def block(inputs: int, outputs: int, stride: int) -> nn.Module:
        inner = cardinality * width * outputs // 256
        grouped = nn.Conv2d(inner, inner, 3, stride, padding=1, groups=cardinality, bias=False)
        nn.init.kaiming_normal_(grouped.weight, mode="fan_out", nonlinearity="relu")
        branch = nn.Sequential(conv(inputs, inner, 1), nn.BatchNorm2d(inner), nn.ReLU(inplace=True),
                               grouped, nn.BatchNorm2d(inner), nn.ReLU(inplace=True),
                               conv(inner, outputs, 1), nn.BatchNorm2d(outputs))
        return Residual(branch, inputs, outputs, stride)

    blocks = _stages(block, 64, [256, 512, 1024], [(depth - 2) // 9] * 3)
    return Pooled(_conv_norm_relu(channels, 64), blocks, nn.Identity(), 1024)


def densenet(channels: int, depth: int, growth: int) -> Pooled:
    """DenseNet-BC (Huang et al. 2017, arXiv 1608.06993): depth = 6n + 4, three blocks of n `Dense` layers, after the
    first two of which a transition halves the channels (and the map)."""
    inputs = 2 * growth
    stem = conv(channels, inputs, 3)
    blocks: list[nn.Module] = []
    for stage in range(3):
        for _ in range((depth - 4) // 6):
            blocks.append(Dense(inputs, growth))
            inputs += growth
        if stage < 2:
            blocks.append(nn.Sequential(_norm_relu(inputs), conv(inputs, inputs // 2, 1), nn.AvgPool2d(2)))
            inputs //= 2
    return Pooled(stem, blocks, _norm_relu(inputs), inputs)


def _stages(block: Callable[[int, int, int], nn.Module], inputs: int, ends: list[int],
            depths: list[int]) -> list[nn.Module]:
    """Blocks of each stage; the first of each but the first stage halves the map."""
    blocks = []
    for stage, (outputs, depth) in enumerate(zip(ends, depths, strict=True)):
        for index in range(depth):
            blocks.append(block(inputs, outputs, 2 if stage and not index else 1))
            inputs = outputs
    return blocks


def _norm_relu(channels: int) -> nn.Sequential:
    return nn.Sequential(nn.BatchNorm2d(channels), nn.ReLU(inplace=True))


def _conv_norm_relu(inputs: int, outputs: int) -> nn.Sequential:
    return nn.Sequential(conv(inputs, outputs, 3), nn.BatchNorm2d(outputs), nn.ReLU(inplace=True))
