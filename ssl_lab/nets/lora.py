"""LoRA (Hu et al. 2021, arXiv 2106.09685) by the peft library: a pretrained net learns by updates of low rank."""

from __future__ import annotations

import copy
import importlib
import re
from typing import Any

import torch
from torch import nn

from ssl_lab.batch import Style
from ssl_lab.errors import UsageError
from ssl_lab.nets.base import Net
from ssl_lab.nets.start import freeze
from ssl_lab.seeds import seeded

ALPHA = 16


def add_lora(net: Net, rank: int, style: Style, seed: int = 0) -> None:
    """Freezes the backbone, and adds to the weights of its layers what learns, in place:

        W + (16 / rank) B A,    A [rank, inputs] random by the seed, B [outputs, rank] zero at first

    Layers are the linear ones and the convolutions without groups (there A is a convolution to `rank` channels of the
    same size and stride, B one of 1x1). BatchNorm normalizes by its running statistics, which do not move; the head
    learns. style: of the images. UsageError without peft, or where there is no such layer.
    """
    peft = _peft("peft")
    if rank < 1:
        raise UsageError(f"rank={rank}: expected 1 or more")
    names = _layers(net.backbone, torch.zeros(1, style.channels, style.height, style.width, device=net.mean.device))
    if not names:
        raise UsageError(f"{net.name} has no linear layer and no convolution that LoRA can add to")
    freeze(net, 0)
    config = peft.LoraConfig(r=rank, lora_alpha=ALPHA, target_modules="|".join(map(re.escape, names)))
    with seeded(seed, "lora"):
        peft.inject_adapter_in_model(config, net.backbone)


def merged(net: Net) -> Net:
    """A copy of the net in which each layer's weight is W + (16 / rank) B A: as if it had never had LoRA."""
    lora = _peft("peft.tuners.lora.layer").LoraLayer
    plain = copy.deepcopy(net)
    for name, module in [*plain.backbone.named_modules()]:
        if isinstance(module, lora):
            module.merge()
            place, _, last = name.rpartition(".")
            setattr(plain.backbone.get_submodule(place), last, module.get_base_layer())
    return plain


def _layers(backbone: nn.Module, image: torch.Tensor) -> list[str]:
    """The names of the layers that LoRA can add to, of those that pass an image.

    Not so a layer whose weight alone is used, by the module around it; nor one that changes its weight before use.
    """
    found: dict[str, None] = {}
    hooks = [module.register_forward_hook(lambda *_, name=name: found.update({name: None}))
             for name, module in backbone.named_modules() if _fits(module)]
    was_training = backbone.training
    with torch.no_grad():
        backbone.eval()(image)
    backbone.train(was_training)
    for hook in hooks:
        hook.remove()
    return list(found)


def _fits(module: nn.Module) -> bool:
    if isinstance(module, nn.Conv2d):  # peft's has neither groups nor dilation
        usual = type(module) is nn.Conv2d or type(module).__name__ == "Conv2dSame"  # timm's, which pads as TensorFlow
        return usual and module.groups == 1 and module.dilation == (1, 1) and module.padding_mode == "zeros"
    return type(module) is nn.Linear


def _peft(name: str) -> Any:
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise UsageError('LoRA needs peft: pip install "ssl_lab[peft]"') from error
