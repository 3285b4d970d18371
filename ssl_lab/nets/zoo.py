"""The families of nets that are built by name: their patterns, what they are, and how each is made of a name."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from torch import nn

from ssl_lab.at_hand import PRETRAINED
from ssl_lab.batch import Style
from ssl_lab.errors import UsageError, unknown
from ssl_lab.nets.capsules import MoCapsNet
from ssl_lab.nets.families import Pooled, cifar_resnet, densenet, preact_resnet, resnext
from ssl_lab.nets.pretrained import Trunk
from ssl_lab.nets.rapid import Rapid
from ssl_lab.nets.residual import ResNet, WideResNet
from ssl_lab.nets.stored import Weights
from ssl_lab.nets.weights import load


@dataclass(frozen=True)
class Family:
    """Nets whose names match `pattern`; its groups are the integers that `build` takes after the style."""

    description: str
    examples: tuple[str, ...]
    pattern: str
    build: Callable[..., ResNet | WideResNet | Pooled | Pixels | MoCapsNet | Rapid]


class Pixels(nn.Sequential):
    """The features of an image are its normalized values: what every backbone should beat."""

    def __init__(self, style: Style) -> None:
        super().__init__(nn.Flatten())
        self.features_dim = style.channels * style.height * style.width


def _wrn(style: Style, depth: int, width: int) -> WideResNet:
    if depth < 10 or depth % 6 != 4 or width < 1:
        raise UsageError(f"unknown net 'wrn_{depth}_{width}': the depth must be 6n + 4 (10, 16, 22, 28, ...) "
                         "and the width at least 1. Try wrn_28_2")
    return WideResNet(depth, width, style.channels)


def _resnet(style: Style, depth: int) -> ResNet:
    depths = {18: (2, 2, 2, 2), 34: (3, 4, 6, 3), 50: (3, 4, 6, 3)}[depth]
    return ResNet(depths, 64, style.channels, bottlenecks=depth >= 50)


def _cifar_resnet(style: Style, depth: int, width: int) -> Pooled:
    if depth < 8 or depth % 6 != 2 or width < 1:
        raise UsageError(f"unknown net 'resnet_{depth}_{width}': the depth must be 6n + 2 (8, 14, 20, 26, 32, ...) and "
                         "the width at least 1. Try resnet_20_1")
    return cifar_resnet(style.channels, depth, width)


def _preact(style: Style, depth: int) -> Pooled:
    if depth < 11 or depth % 9 != 2:
        raise UsageError(f"unknown net 'preact_{depth}': the depth must be 9n + 2 (11, 20, 29, ...). Try "
                         "preact_29")
    return preact_resnet(style.channels, [(depth - 2) // 9] * 3, 16, expansion=4)


def _preact_resnet(style: Style, depth: int) -> Pooled:
    depths = {18: [2, 2, 2, 2], 34: [3, 4, 6, 3], 50: [3, 4, 6, 3]}[depth]
    return preact_resnet(style.channels, depths, 64, expansion=4 if depth >= 50 else 1)


def _resnext(style: Style, depth: int, cardinality: int, width: int) -> Pooled:
    if depth < 11 or depth % 9 != 2 or cardinality < 1 or width < 1:
        raise UsageError(f"unknown net 'resnext_{depth}_{cardinality}_{width}': the depth must be 9n + 2 (11, 20, 29, "
                         "...), cardinality and width at least 1. Try resnext_29_8_64")
    return resnext(style.channels, depth, cardinality, width)


def _densenet(style: Style, depth: int, growth: int) -> Pooled:
    if depth < 10 or depth % 6 != 4 or growth < 1:
        raise UsageError(f"unknown net 'densenet_{depth}_{growth}': the depth must be 6n + 4 (10, 16, 22, ...) and the "
                         "growth at least 1. Try densenet_100_12")
    return densenet(style.channels, depth, growth)


def _tiny(style: Style, width: int) -> ResNet:
    if width < 1:
        raise UsageError(f"unknown net 'tiny_{width}': the width must be at least 1. Try tiny_16")
    # A CPU spends most of its time on the full-size maps; images of 16 pixels or more can do without them.
    stem_stride = 2 if min(style.height, style.width) >= 16 else 1
    return ResNet((1, 1, 1), width, style.channels, stem_stride=stem_stride)


def _rapid(style: Style, *widths: int) -> Rapid:
    if min(widths) < 1 or min(style.height, style.width) < 2:
        raise UsageError(f"no net rapid_{'_'.join(map(str, widths))} for images of {style.height} x {style.width}: its "
                         "widths must be at least 1, and the images 2 pixels a side. Try rapid_64_128_256")
    return Rapid(style.channels, min(style.height, style.width), widths)


_FAMILIES = {
    "tiny_{width}": Family(
        "residual net of 7 convolutions for CPUs, in three stages of 1, 2 and 4 times width channels",
        ("tiny_16", "tiny_32", "tiny_64"), r"tiny_(\d+)", _tiny),
    "rapid_{a}_{b}_{c}": Family(
        "wide and shallow net of 7 convolutions, as in speed-runs on CIFAR-10 (Jordan 2024), in three groups of so "
        "many channels; --with whiten fits its first filters to the images", ("rapid_64_128_256",),
        r"rapid_(\d+)_(\d+)_(\d+)", _rapid),
    "wrn_{depth}_{width}": Family(
        "wide ResNet as in FixMatch (Zagoruyko and Komodakis 2016); depth = 6n + 4",
        ("wrn_16_2", "wrn_28_2", "wrn_28_8", "wrn_28_10"), r"wrn_(\d+)_(\d+)", _wrn),
    "resnet{depth}": Family(
        "ResNet-18, -34 or -50 (He et al. 2016) with a 3x3 stem for small images",
        ("resnet18", "resnet34", "resnet50"), r"resnet(18|34|50)", _resnet),
    "resnet_{depth}_{width}": Family(
        "ResNet for CIFAR (He et al. 2016), times width; depth = 6n + 2",
        ("resnet_20_1", "resnet_56_1", "resnet_110_1", "resnet_8_4", "resnet_32_4"), r"resnet_(\d+)_(\d+)",
        _cifar_resnet),
    "preact_resnet{depth}": Family(
        "pre-activation ResNet-18, -34 or -50 (He et al. 2016) with a 3x3 stem for small images",
        ("preact_resnet18", "preact_resnet34", "preact_resnet50"), r"preact_resnet(18|34|50)", _preact_resnet),
    "preact_{depth}": Family(
        "pre-activation ResNet for CIFAR, of bottlenecks; depth = 9n + 2", ("preact_29", "preact_164"),
        r"preact_(\d+)", _preact),
    "resnext_{depth}_{cardinality}_{width}": Family(
        "ResNeXt for CIFAR (Xie et al. 2016); depth = 9n + 2", ("resnext_29_8_64", "resnext_29_16_64"),
        r"resnext_(\d+)_(\d+)_(\d+)", _resnext),
    "densenet_{depth}_{growth}": Family(
        "DenseNet-BC for small images (Huang et al. 2017); depth = 6n + 4", ("densenet_100_12", "densenet_190_40"),
        r"densenet_(\d+)_(\d+)", _densenet),
    "mocapsnet": Family(
        "momentum capsule net (Gugglberger et al. 2022) of 4 reversible residual layers", ("mocapsnet",), "mocapsnet",
        lambda style: MoCapsNet(4, style.channels)),
    "mocapsnet_{depth}": Family(
        "momentum capsule net of so many layers, whose activations are not kept for the gradient", ("mocapsnet_8",),
        r"mocapsnet_([1-9]\d*)", lambda style, depth: MoCapsNet(depth, style.channels)),
    "pixels": Family(
        "no net: the features are the image's values, the baseline of every backbone; its head is softmax regression",
        ("pixels",), "pixels", Pixels),
}

NETS = {name: family.description for name, family in _FAMILIES.items()} | {
    name: f"timm/{known.model} with ImageNet weights, for images of {known.size} px"
    for name, known in PRETRAINED.items()
} | {
    "timm/{model}": "any model of timm, e.g. timm/vit_tiny_patch16_224; with pretrained weights if wanted",
    "{net}+{width}": "any of these and one more layer of ReLUs, e.g. tiny_16+64, as after `finetune.py --projector`",
    "{net}+gn": "any of these with GroupNorm for BatchNorm, as private training by `--with dp(...)` needs it",
    "{net}+unit": "any of these with features of length 1, as after `features.py` or `--with ldam`",
    "{net}+normed": "any of these with fixed normalizations of its blocks' outputs, as after `--with layerwise_reinit`",
    "{net}+in{bits}": "any of these whose layers see their inputs in so many bits, as after `--with qnn`",
    "{net}+prelu": "any of these with slopes in the place of rectifiers, as after `--with linearize`",
    "{net}+sat": "any of these whose layers see their inputs saturated, as after `--with satnl`",
    "{net}+slim": "any of these with the fewer channels that its weights have, as after `--with taylor`",
}
"""The families of nets, name pattern -> what they are."""


def trunk_of(name: str, style: Style, state: Weights | None, source: str | Path) -> Trunk:
    """The backbone of this name, with these weights, if any. UsageError for a name of no family."""
    for family in _FAMILIES.values():
        if match := re.fullmatch(family.pattern, name):
            backbone = family.build(style, *map(int, match.groups()))
            if state is not None:
                load(backbone, state, source, name)
            return Trunk(backbone, backbone.features_dim, style.mean, style.std)
    examples = [*PRETRAINED, *(example for family in _FAMILIES.values() for example in family.examples)]
    raise unknown("net", name, examples, f"Families: {', '.join(NETS)}.")
