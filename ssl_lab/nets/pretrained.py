"""Backbones from timm. The import of timm takes seconds, so it happens only when one is asked for."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import nn

from ssl_lab.batch import Style
from ssl_lab.errors import UsageError, unknown
from ssl_lab.nets.stored import Weights, one_line
from ssl_lab.nets.weights import fitting


class Trunk(NamedTuple):
    """A backbone, the size of its pooled features, and the normalization that its input needs."""

    backbone: nn.Module
    features_dim: int
    mean: tuple[float, ...]
    std: tuple[float, ...]


def timm_trunk(model: str, style: Style, pretrained: bool, state: Weights | None, source: str | Path,
               options: Mapping[str, Any]) -> Trunk:
    """timm's `model` without its classifier.

    pretrained: with timm's own weights, from its cache or the network. state: weights with timm's own keys,
    read from `source`. With either, timm adapts the first convolution to the channels and position embeddings
    to the image size, and the normalization is the one that the weights were trained with; else it is the
    style's. options: arguments of the model, e.g. `drop_path_rate=0.1`.
    """
    import timm

    if not timm.is_model(model):
        raise unknown("timm model", model, timm.list_models(), "`timm.list_models()` gives all names.")
    arguments = {"num_classes": 0, "in_chans": style.channels, **options}
    try:
        config = timm.get_pretrained_cfg(model)
        if config and config.fixed_input_size:  # transformers are built for one size, others take any
            arguments.setdefault("img_size", (style.height, style.width))
        backbone = timm.create_model(model, **arguments)
        features_dim = _features_dim(backbone, style)
    except (TypeError, ValueError, RuntimeError, AssertionError) as error:
        raise UsageError(f"timm/{model} does not take {style.channels}-channel images of {style.height}x"
                         f"{style.width} with options {options}: {one_line(error)}. "
                         "Choose another model, image size or options") from error
    if state is not None:
        state = fitting(state, backbone, source, f"timm/{model}", shapes=False,
                        ignore=_classifier(backbone.pretrained_cfg))
        arguments["pretrained_cfg_overlay"] = {"state_dict": state, "custom_load": False}
    elif not pretrained:
        return Trunk(backbone, features_dim, style.mean, style.std)
    try:
        backbone = timm.create_model(model, pretrained=True, **arguments)
    except Exception as error:  # the hub's client raises whatever its transport does
        if state is not None:
            raise UsageError(f"weights {source} do not fit timm/{model}: {one_line(error)}") from error
        raise UsageError(f"timm's weights for {model} could not be had ({one_line(error)}). Without a "
                         "network, fetch the file elsewhere and pass it with --weights FILE") from error
    config = backbone.pretrained_cfg
    config.pop("state_dict", None)  # else every copy of the backbone would carry the file along
    return Trunk(backbone, features_dim, _per_channel(config["mean"], style.channels),
                 _per_channel(config["std"], style.channels))


def _features_dim(backbone: nn.Module, style: Style) -> int:
    backbone.eval()
    with torch.no_grad():
        features = backbone(torch.zeros(1, style.channels, style.height, style.width))
    backbone.train()
    if not isinstance(features, torch.Tensor) or features.ndim != 2:
        raise ValueError("it gives no pooled features [B, D]")
    return features.shape[1]


def _classifier(config: Mapping[str, Any]) -> tuple[str, ...]:
    names = config.get("classifier") or ()
    return (names,) if isinstance(names, str) else tuple(names)


def _per_channel(values: tuple[float, ...], channels: int) -> tuple[float, ...]:
    """As trained; the mean over the trained channels where there are more or fewer now."""
    return tuple(values) if len(values) == channels else (sum(values) / len(values),) * channels
