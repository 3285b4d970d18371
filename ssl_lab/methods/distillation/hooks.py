"""What a net says of images, inside too: maps of layers by module path, and what it takes to compare two nets."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple
from weakref import WeakKeyDictionary

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ssl_lab.errors import UsageError, unknown
from ssl_lab.nets import Net
from ssl_lab.nets.stored import one_line


class Seen(NamedTuple):
    """logits: [B, C]. features: [B, D], pooled ([B, 0] of a teacher that has none). maps: of each layer that was
    asked for, [B, channels, height, width]. All in float32 at least."""

    logits: Tensor
    features: Tensor
    maps: tuple[Tensor, ...] = ()


def see(net: Net, images: Tensor, layers: Sequence[str] = ()) -> Seen:
    """One pass of the net over images [B, C, H, W], and the outputs of `layers`, submodules of its backbone by path.

    Maps are copies, for the next layer may be an activation that works in place. With layers, the net runs as it is
    and not compiled: a compiled graph does not see hooks that come and go.
    """
    if not layers:
        features, logits = net(images)
        return Seen(full(logits), full(features))
    maps: dict[str, Tensor] = {}

    def keep(layer: str) -> Callable[[nn.Module, object, Tensor], None]:
        return lambda module, given, output: maps.__setitem__(layer, full(output.clone()))

    handles = [net.backbone.get_submodule(layer).register_forward_hook(keep(layer)) for layer in dict.fromkeys(layers)]
    try:
        features, logits = net.forward(images)
    finally:
        for handle in handles:
            handle.remove()
    return Seen(full(logits), full(features), tuple(maps[layer] for layer in layers))


def full(values: Tensor) -> Tensor:
    """The values in float32, or in the higher precision that they have."""
    return values.to(torch.promote_types(values.dtype, torch.float32))


def pair_layers(student: Net, teacher: Net, layers: str | Sequence[str] | None,
                teacher_layers: str | Sequence[str] | None) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Which layer of the student learns from which of the teacher: two tuples of paths, of equal length.

    layers, teacher_layers: one path, or several, also in one string with commas. One of the two None: the same names
    as in the other. Both None: the coarsest `stages`, as many as both have. UsageError if the numbers differ.
    """
    given = teacher_layers if layers is None else layers
    if given is None:
        mine, theirs = stages(student), stages(teacher)
        both = min(len(mine), len(theirs))
        return mine[-both:], theirs[-both:]
    mine = paths(given)
    theirs = mine if teacher_layers is None else paths(teacher_layers)
    if len(mine) != len(theirs):
        raise UsageError(f"{len(mine)} layers of the student ({', '.join(mine)}) and {len(theirs)} of the teacher "
                         f"({', '.join(theirs)}): give as many of each")
    return mine, theirs


def stages(net: Net) -> tuple[str, ...]:
    """The last layer of each resolution, from the finest to the coarsest, among the backbone's children and theirs.

    What is pooled to one place is none of them. UsageError if there is none.
    """
    last: dict[int, str] = {}
    for layer, shape in _shapes(net, [name for name, _ in net.backbone.named_modules() if name.count(".") < 2]).items():
        if len(shape) == 3 and shape[1] > 1:
            last[shape[1]] = layer
    if not last:
        raise UsageError(f"{net.name} has no maps [channels, height, width] near the top of its backbone; name layers")
    return tuple(last[height] for height in sorted(last, reverse=True))


def channels(net: Net, layers: Sequence[str]) -> list[int]:
    """How many channels the map of each layer has, by a dry run. UsageError if a layer is unknown or has no map."""
    shapes = _shapes(net, layers)
    for layer in layers:
        if len(shapes.get(layer, ())) != 3:
            raise UsageError(f"layer {layer} of {net.name} gives {shapes.get(layer, 'nothing')} per image; "
                             "expected a map [channels, height, width]")
    return [shapes[layer][0] for layer in layers]


def paths(layers: str | Sequence[str]) -> tuple[str, ...]:
    """One path, or several, also in one string with commas."""
    return tuple(layers.split(",") if isinstance(layers, str) else layers)


def _shapes(net: Net, layers: Sequence[str]) -> dict[str, tuple[int, ...]]:
    """The output of each layer for one image, in the order in which they end."""
    modules = [name for name, _ in net.backbone.named_modules() if name]
    asked = {*filter(None, layers)}
    for layer in asked.difference(modules):
        raise unknown("layer", layer, modules, f"It is not in the backbone of {net.name}.")
    built = (modules, [parameter.shape for parameter in net.backbone.parameters()])
    known = _DRY_RUNS.get(net.backbone)
    if known is None or known[0] != built:
        known = _DRY_RUNS[net.backbone] = built, _dry_run(net)
    return {layer: shape for layer, shape in known[1].items() if layer in asked}


_DRY_RUNS: WeakKeyDictionary[nn.Module, tuple[object, dict[str, tuple[int, ...]]]] = WeakKeyDictionary()
"""What `_dry_run` found of each backbone, and what that was built of: it takes longer than a step of a small net."""


def _dry_run(net: Net) -> dict[str, tuple[int, ...]]:
    """The output of all layers of the backbone for one image, of a copy that computes nothing."""
    backbone = copy.deepcopy(net.backbone).to("meta").eval()
    shapes: dict[str, tuple[int, ...]] = {}

    def note(layer: str) -> Callable[[nn.Module, object, object], None]:
        def hook(module: nn.Module, given: object, output: object) -> None:
            if isinstance(output, Tensor):
                shapes[layer] = tuple(output.shape[1:])
        return hook

    for layer, module in backbone.named_modules():
        if layer:
            module.register_forward_hook(note(layer))
    # Transformers take one size; others any, and 64 pixels are enough to tell the resolutions apart.
    size = getattr(getattr(backbone, "patch_embed", None), "img_size", None) or (64, 64)
    try:
        with torch.no_grad():
            backbone(torch.empty(1, len(net.mean), *size, dtype=net.mean.dtype, device="meta"))
    except RuntimeError as error:
        raise UsageError(f"{net.name} does not run on {size[0]} x {size[1]} images ({one_line(error)}), "
                         "so the shapes of its layers are unknown") from error
    return shapes


def same_size(first: Tensor, second: Tensor) -> tuple[Tensor, Tensor]:
    """Two maps [B, c, h, w], [B, d, i, j], averaged down to the smaller height and width of the two."""
    size = min(first.shape[2], second.shape[2]), min(first.shape[3], second.shape[3])
    return F.adaptive_avg_pool2d(first, size), F.adaptive_avg_pool2d(second, size)


def adapters(build: Callable[[int, int], nn.Module], sizes: Iterable[tuple[int, int]]) -> nn.ModuleList:
    """build(student's size, teacher's size) for each pair, e.g. of channels; always with the same initial weights."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return nn.ModuleList([build(mine, theirs) for mine, theirs in sizes])
