"""Where training starts: from a run, from a file of weights or from a timm model; and how much of it learns."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import yaml
from torch import nn

from ssl_lab.at_hand import PRETRAINED
from ssl_lab.batch import Style
from ssl_lab.errors import UsageError
from ssl_lab.nets.base import Net
from ssl_lab.nets.named import net


def start_net(start: str, classes: int | Sequence[str], style: Style, name: str = "tiny_16", pretrained: bool = False,
              weights: str | Path | None = None, seed: int = 0, bn_momentum: float | None = None) -> Net:
    """The net that `start` says: a run's folder, a file of weights, timm/MODEL, or a name of `PRETRAINED`.

    A run knows its net, and so does a file that lies in a run's folder; of another file, `name` says the net. A timm
    model has its published weights if `pretrained`, those of the file `weights` if given, or fresh ones. classes: their
    names, or how many; the head is the file's if it tells the same apart, else fresh by the seed (see `load_net`).
    UsageError where the net cannot be had.
    """
    if start.startswith("timm/"):
        return net(start, classes, style, pretrained, weights, seed, bn_momentum)
    if weights is not None or (pretrained and start not in PRETRAINED):
        raise UsageError(f"{start} brings its own weights; --pretrained and --weights are for timm/MODEL")
    if start in PRETRAINED:
        return net(start, classes, style, seed=seed, bn_momentum=bn_momentum)
    path = Path(start)
    file = path / "model.safetensors" if path.is_dir() else path
    if not file.is_file():
        raise UsageError(f"there is no {file} to start from; give the folder of a finished run, a .safetensors file, "
                         f"timm/MODEL, or {', '.join(PRETRAINED)}")
    return net(net_of_run(file.parent) or name, classes, style, False, file, seed, bn_momentum)


def net_of_run(run: Path) -> str | None:
    """The name of the net that the run in this folder has left, or begun with; None if there is no run."""
    for file in (run / "model.json", run / "config.yaml"):
        try:
            content = yaml.safe_load(file.read_text(encoding="utf-8")) if file.is_file() else None  # reads JSON too
        except (OSError, ValueError, yaml.YAMLError):  # damaged: the other one may say it
            content = None
        if isinstance(content, dict) and "net" in content:
            return str(content["net"])
    return None


def learned_classes(run: Path) -> bool:
    """Whether the run in this folder trained a classifier; True if its summary.json does not say."""
    summary = run / "summary.json"
    return bool(json.loads(summary.read_text()).get("class_names", True)) if summary.is_file() else True


def is_foreign(net: Net) -> bool:
    """Whether the net is one of timm's, trained on further or not: what it knows, and its statistics, are of other
    images than those of this project's runs."""
    return net.name.startswith("timm/")


def freeze(net: Net, blocks: int) -> None:
    """Lets the last `blocks` blocks of the backbone learn, with what comes after them, and the head; 0: the head alone.

    Blocks are the members of `backbone.blocks`, or else of the backbone itself (`layer1` ... of timm's ResNets). The
    BatchNorm of the others normalizes by its running statistics, which do not move. UsageError if there are too few.
    """
    from timm.utils.model import freeze_batch_norm_2d  # the import of timm takes seconds

    backbone = net.backbone
    parent = getattr(backbone, "blocks", backbone)
    members = [name for name, child in parent.named_children() if any(True for _ in child.parameters())]
    if not 0 <= blocks <= len(members):
        raise UsageError(f"{net.name} has {len(members)} blocks; {blocks} cannot be trained")
    learning = {id(p) for p in _after(backbone, parent, members[len(members) - blocks:])} if blocks else set()
    for parameter in backbone.parameters():
        parameter.requires_grad_(id(parameter) in learning)
    for owner in {backbone, parent}:
        for name, child in list(owner.named_children()):
            if not any(p.requires_grad for p in child.parameters()):
                setattr(owner, name, freeze_batch_norm_2d(child))


def freeze_weights(net: Net) -> None:
    """Lets the biases of the backbone learn, those of BatchNorm too, and the head (BitFit, Zaken et al. 2021, arXiv
    2106.10199). UsageError if there are none."""
    biases = [name for name, _ in net.backbone.named_parameters() if name.endswith("bias")]
    if not biases:
        raise UsageError(f"{net.name} has no biases that could learn")
    for name, parameter in net.backbone.named_parameters():
        parameter.requires_grad_(name in biases)


def freeze_statistics(net: Net) -> None:
    """BatchNorm of the backbone normalizes by its running statistics from now on, in training too; they do not move."""
    for module in net.backbone.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            module.register_forward_pre_hook(_evaluating)


def are_frozen(norm: nn.Module) -> bool:
    """Whether `freeze_statistics` froze the running statistics of this BatchNorm."""
    return _evaluating in norm._forward_pre_hooks.values()


def _evaluating(module: nn.Module, given: object) -> None:
    module.training = False


def _after(backbone: nn.Module, parent: nn.Module, members: list[str]) -> list[nn.Parameter]:
    """The backbone's parameters from those of the first of the members on, in the order of registration."""
    first = next(parent.get_submodule(members[0]).parameters())
    everything = list(backbone.parameters())
    return everything[next(i for i, p in enumerate(everything) if p is first):]
