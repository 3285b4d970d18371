"""Nets by name: `net("wrn_28_2", classes=10)`, `net("timm/vit_tiny_patch16_224", style=style)`."""

from __future__ import annotations

import re
from collections import OrderedDict
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from torch import nn

from ssl_lab.at_hand import PRETRAINED
from ssl_lab.batch import Style
from ssl_lab.errors import UsageError
from ssl_lab.nets.base import Net, linear_head
from ssl_lab.nets.group_norm import group_norms
from ssl_lab.nets.normed import NORMED, normed
from ssl_lab.nets.pretrained import timm_trunk
from ssl_lab.nets.quantized import MARK, check_bits, round_inputs
from ssl_lab.nets.saturated import SAT, saturate
from ssl_lab.nets.slim import SLIM, slimmed
from ssl_lab.nets.slopes import PRELU, with_slopes
from ssl_lab.nets.stored import Weights, read_weights
from ssl_lab.nets.weights import load_net, whole_net
from ssl_lab.nets.zoo import trunk_of
from ssl_lab.notes import once
from ssl_lab.seeds import seeded

CHANGED = re.compile(rf"(.+)({'|'.join(map(re.escape, (SLIM, SAT, PRELU)))}|{re.escape(MARK)}\d+)")
"""What a name has at its end that says how a net was changed after it was trained as another one."""
NO_CLASSES = ("a classifier needs classes, and there are none: no image has a label. Label some (a folder for each "
              "class, lines of path,label in a CSV, or `ssl-lab label`, a page that asks for them), or learn features "
              "without (a method of pretraining)")


class Deeper(nn.Sequential):
    """A backbone, `trunk`, and one more layer, relu(W h + b), of its features h."""

    def __init__(self, trunk: nn.Module, features_dim: int, width: int) -> None:
        super().__init__(OrderedDict(trunk=trunk, layer=nn.Linear(features_dim, width), relu=nn.ReLU()))


def net(name: str, classes: int | Sequence[str] = 10, style: Style = Style(), pretrained: bool = False,
        weights: str | Path | None = None, seed: int = 0, bn_momentum: float | None = None,
        **options: Any) -> Net:
    """The net `name` for images of this style, initialized as a pure function of `seed`.

    Args:
        name: one of `NETS`.
        classes: their names (`pool.class_names`), or how many.
        style: of the images (`pool.style`): size, channels and normalization.
        pretrained: timm's own weights (timm nets only; lite0 and the like have theirs, fetched before).
        weights: a file with the weights of a whole `Net` (a run's model.safetensors or checkpoint.pt; they bring their
            normalization along, and the head goes by the names of its classes: see `load_net`) or of its backbone, in
            the backbone's own keys, under whatever prefix (see `fitting`).
        seed: of the first weights.
        bn_momentum: of every BatchNorm, as the weight of the *new* statistics; None keeps the architecture's (0.1 for
            the nets written here).
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
    with seeded(seed, "init"):
        if base.startswith("timm/"):
            trunk = timm_trunk(base.removeprefix("timm/"), style, pretrained, of_backbone, source, options)
        elif pretrained or options:
            what = "pretrained weights" if pretrained else f"options ({', '.join(options)})"
            raise UsageError(f"{name} has no {what}: only timm/... nets have")
        else:
            trunk = trunk_of(base, style, of_backbone, source)
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
