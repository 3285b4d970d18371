"""Nets by name: `net("wrn_28_2", classes=10)`, `net("timm/vit_tiny_patch16_224", style=style)`."""

from __future__ import annotations

import re
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ssl_lab.at_hand import PRETRAINED
from ssl_lab.batch import Style, seed_of
from ssl_lab.errors import UsageError, unknown
from ssl_lab.nets.base import Net, linear_head
from ssl_lab.nets.capsules import MoCapsNet
from ssl_lab.nets.families import Pooled, cifar_resnet, densenet, preact_resnet, resnext
from ssl_lab.nets.group_norm import group_norms
from ssl_lab.nets.normed import NORMED, normed
from ssl_lab.nets.pretrained import Trunk, timm_trunk
from ssl_lab.nets.quantized import MARK, check_bits, round_inputs
from ssl_lab.nets.rapid import Rapid
from ssl_lab.nets.residual import ResNet, WideResNet
from ssl_lab.nets.saturated import SAT, saturate
from ssl_lab.nets.slim import SLIM, slimmed
from ssl_lab.nets.slopes import PRELU, with_slopes
from ssl_lab.nets.stored import Weights, read_weights
from ssl_lab.nets.weights import load, load_net, whole_net
from ssl_lab.notes import once

CHANGED = re.compile(rf"(.+)({'|'.join(map(re.escape, (SLIM, SAT, PRELU)))}|{re.escape(MARK)}\d+)")
"""What a name has at its end that says how a net was changed after it was trained as another one."""
NO_CLASSES = ("a classifier needs classes, and there are none: no image has a label. Label some (a folder for each "
              "class, lines of path,label in a CSV, or `ssl-lab label`, a page that asks for them), or learn features "
              "without (a method of pretraining)")


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


class Deeper(nn.Sequential):
    """A backbone, `trunk`, and one more layer, relu(W h + b), of its features h."""

    def __init__(self, trunk: nn.Module, features_dim: int, width: int) -> None:
        super().__init__(OrderedDict(trunk=trunk, layer=nn.Linear(features_dim, width), relu=nn.ReLU()))


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


def net(name: str, classes: int | Sequence[str] = 10, style: Style = Style(), pretrained: bool = False,
        weights: str | Path | None = None, seed: int = 0, bn_momentum: float | None = None,
        **options: Any) -> Net:
    """The net `name` for images of this style, initialized as a pure function of `seed`.

    Args:
        name: one of `NETS`.
        classes: their names (`pool.class_names`), or how many.
        pretrained: timm's own weights (timm nets only; lite0 and the like have theirs, fetched before).
        weights: a file with the weights of a whole `Net` (a run's model.safetensors or checkpoint.pt; they bring
            their normalization along, and the head goes by the names of its classes: see `load_net`) or of its
            backbone, in the backbone's own keys, under whatever prefix (see `fitting`).
        bn_momentum: of every BatchNorm, as the weight of the *new* statistics; None keeps the architecture's (0.1
            for the nets written here).
        options: arguments of a timm model.

    Raises:
        UsageError: unknown name or option, images that the net cannot take, weights that do not fit.

    >>> one, same = sl.net("tiny_8", classes=("cat", "dog"), seed=7), sl.net("tiny_8", classes=("cat", "dog"), seed=7)
    >>> one.class_names, torch.equal(one.head.weight, same.head.weight)
    (('cat', 'dog'), True)
    """
    names, count = (tuple(classes), len(classes)) if isinstance(classes, Sequence) else (None, classes)
    if count < 1:
        raise UsageError(NO_CLASSES)
    if not len(style.mean) == len(style.std) == style.channels:
        raise UsageError(f"the style has {style.channels} channels, but {len(style.mean)} means and "
                         f"{len(style.std)} standard deviations: give one of each per channel")
    if pretrained and weights is not None:
        raise UsageError("pretrained and weights exclude each other: choose one")
    if CHANGED.fullmatch(name):
        state = None if weights is None else read_weights(weights)
        whole = None if state is None else whole_net(state)
        if state is not None and whole is None:
            raise UsageError(f"weights {weights} are of a backbone alone; {name} takes a run's model.safetensors")
        built = _changed(name, style, whole, lambda base: net(base, classes, style, pretrained, None, seed,
                                                              bn_momentum, **options))
        if whole is not None:
            load_net(built, whole, weights or "")
        built.origin = str(weights or built.origin)
        return built
    found = re.fullmatch(r"([^+]+)((?:\+(?:unit|normed|gn|[1-9]\d*))*)", name)
    base, *added = name.split("+") if found else [name]
    if known := PRETRAINED.get(base):  # its file is needed only here: the net has timm's name from now on
        weights, pretrained = weights or known.weights(), False
        base, name = f"timm/{known.model}", f"timm/{known.model}{name.removeprefix(base)}"
    state = None if weights is None else read_weights(weights)
    if known and state is not None:  # of ImageNet's classes, which nobody asks for
        for key in [key for key in state if key.startswith("classifier.")]:
            del state[key]
    whole = None if state is None else whole_net(state)
    of_backbone, source = state if whole is None else None, weights or ""
    with _seeded(seed):
        if base.startswith("timm/"):
            trunk = timm_trunk(base.removeprefix("timm/"), style, pretrained, of_backbone, source, options)
        elif pretrained or options:
            what = "pretrained weights" if pretrained else f"options ({', '.join(options)})"
            raise UsageError(f"{name} has no {what}: only timm/... nets have")
        else:
            trunk = _trunk(base, style, of_backbone, source)
        for width in map(int, filter(str.isdigit, added)):
            trunk = trunk._replace(backbone=Deeper(trunk.backbone, trunk.features_dim, width), features_dim=width)
        built = Net(trunk.backbone, linear_head(trunk.features_dim, count), trunk.mean, trunk.std,
                    name.replace(NORMED, ""), names, unit="unit" in added)
    if "gn" in added:
        group_norms(built)
    if NORMED[1:] in added:
        normed(built, style)
    if whole is not None:
        load_net(built, whole, source)
    built.origin = "timm's published weights" if pretrained else "" if state is None else str(source)
    norms = [module for module in built.modules() if isinstance(module, nn.modules.batchnorm._BatchNorm)]
    if bn_momentum is not None and norms:
        if built.origin and base.startswith("timm/"):
            once(f"note: {base} learned from other images, and is trained by the statistics of each batch here, by "
                 "which it may forget that at once; recipes/finetune.py --from it lets it keep its own, for any method")
        for module in norms:
            module.momentum = bn_momentum
    return built


def _changed(name: str, style: Style, state: Weights | None, plain: Callable[[str], Net]) -> Net:
    """The net of a name with +slim, +in8, +sat or +prelu at its end; `plain` makes those without, `state` has the
    weights."""
    match = CHANGED.fullmatch(name)
    if match is None:
        return plain(name)
    base = _changed(match[1], style, state, plain)
    if match[2] == SLIM:
        return slimmed(base, state)
    if match[2] == SAT:
        return saturate(base)
    if match[2] == PRELU:
        return with_slopes(base, style)
    bits = int(match[2].removeprefix(MARK))
    check_bits(name, inputs=bits)
    return round_inputs(base, bits)


def _trunk(name: str, style: Style, state: Weights | None, source: str | Path) -> Trunk:
    for family in _FAMILIES.values():
        if match := re.fullmatch(family.pattern, name):
            backbone = family.build(style, *map(int, match.groups()))
            if state is not None:
                load(backbone, state, source, name)
            return Trunk(backbone, backbone.features_dim, style.mean, style.std)
    examples = [*PRETRAINED, *(example for family in _FAMILIES.values() for example in family.examples)]
    raise unknown("net", name, examples, f"Families: {', '.join(NETS)}.")


@contextmanager
def _seeded(seed: int) -> Iterator[None]:
    """Initializers draw from the global generator: lend it to them, and put it back as it was."""
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed_of(seed, "init"))
        yield
