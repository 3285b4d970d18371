"""Channels that can be taken out of a net together, with what reads and writes them: by torch-pruning's graph."""

from __future__ import annotations

import copy
import importlib
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ssl_lab.batch import Style
from ssl_lab.errors import UsageError
from ssl_lab.nets import Net
from ssl_lab.nets.slim import SLIM
from ssl_lab.seeds import generator

NORMS = (nn.modules.batchnorm._BatchNorm, nn.LayerNorm, nn.GroupNorm)


@dataclass(frozen=True)
class Member:
    """A layer that a group's channels pass: channel `roots[i]` of the group is row `rows[i]` of its weight (and
    bias). norm: whether it is a BatchNorm, after which a channel's gate stands."""

    name: str
    rows: Tensor
    roots: Tensor
    norm: bool


@dataclass(frozen=True)
class Group:
    """Channels that live and die together in several layers, `size` of them: those that residual connections add up,
    say. root: the layer that names them."""

    root: str
    size: int
    members: tuple[Member, ...]

    @property
    def gates(self) -> tuple[Member, ...]:
        """Where a channel's gate stands: after its BatchNorms, or after its layers where there are none."""
        return tuple(each for each in self.members if each.norm) or self.members


def groups_of(net: Net, style: Style) -> list[Group]:
    """All groups of channels of the net, but for its inputs and classes. UsageError where there are none, or
    torch-pruning is missing."""
    return [each for each, _ in _groups(_copy(net), style)]


def slim(net: Net, style: Style, groups: Sequence[Group], alive: Sequence[Tensor]) -> Net:
    """A copy of the net without the channels that are not `alive`, bool [size] of each group."""
    copied = _copy(net)
    for group, keep in zip(groups, alive, strict=True):
        dead = (~keep).nonzero().flatten().tolist()
        if dead:
            root, graph = copied.get_submodule(group.root), _graph(copied, style)
            graph.get_pruning_group(root, graph.get_pruner_of_module(root).prune_out_channels, dead).prune()
    copied.features_dim = copied.head.in_features
    if not copied.name.endswith(SLIM):
        copied.name += SLIM
    for ours, theirs in zip(copied.parameters(), net.parameters(), strict=True):
        ours.requires_grad_(theirs.requires_grad)
    return copied.train(net.training)


@torch.no_grad()
def silence(net: Net, groups: Sequence[Group], alive: Sequence[Tensor]) -> None:
    """Sets weights and biases of the channels that are not alive to 0, so that they are 0 wherever they pass."""
    for group, keep in zip(groups, alive, strict=True):
        for member in group.members:
            rows = member.rows[~keep.cpu()[member.roots]]
            for parameter in net.get_submodule(member.name)._parameters.values():
                if parameter is not None:
                    parameter[rows.to(parameter.device)] = 0


def check_slim(net: Net, style: Style, name: str) -> None:
    """UsageError unless the net without some channels gives what it gives with them silenced."""
    shadow = _copy(net).double()
    groups = groups_of(net, style)
    alive = [torch.rand(group.size, generator=generator("check_slim", i)) < 0.5 for i, group in enumerate(groups)]
    for keep in alive:
        keep[0] = True
    silence(shadow, groups, alive)
    x = torch.linspace(0, 1, 2 * style.channels * style.height * style.width, dtype=torch.float64)
    x = x.view(2, style.channels, style.height, style.width)
    try:
        with torch.no_grad():
            masked, small = shadow.eval()(x).logits, slim(shadow, style, groups, alive).eval()(x).logits
    except (RuntimeError, IndexError, ValueError) as error:
        raise _cannot(net, name) from error
    if not torch.allclose(masked, small, rtol=1e-6, atol=1e-6 * float(masked.abs().max())):
        raise _cannot(net, name)


def _cannot(net: Net, name: str) -> UsageError:
    return UsageError(f"{name} takes channels out, and in {net.name} others depend on a channel's being there (groups "
                      "of convolutions, LayerNorm); take a residual net such as tiny_16, wrn_28_2 or resnet18")


def _copy(net: Net) -> Net:
    shadow = copy.deepcopy(net).cpu().requires_grad_(True)
    for part in shadow.modules():
        part._compiled_call_impl = None
    return shadow


def _groups(net: Net, style: Style) -> list[tuple[Group, Any]]:
    graph, names = _graph(net, style), {part: name for name, part in net.named_modules()}
    found = []
    for each in graph.get_all_groups(ignored_layers=[net.head]):
        members: dict[str, Member] = {}
        for item in each:
            part = item.dep.target.module
            if part in names and part._parameters and graph.is_out_channel_pruning_fn(item.dep.handler):
                members.setdefault(names[part], Member(names[part], torch.tensor(item.idxs),
                                                       torch.tensor(item.root_idxs), isinstance(part, NORMS)))
        root = each[0].dep.target.module
        found.append((Group(names[root], len(each[0].idxs), tuple(members.values())), each))
    if not found:
        raise UsageError(f"{net.name} has no channels that could be taken out")
    return found


def _graph(net: Net, style: Style) -> Any:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            pruning: Any = importlib.import_module("torch_pruning")
    except ImportError as error:
        raise UsageError('taking out channels needs torch-pruning: pip install "ssl_lab[compress]"') from error
    parameter = next(net.parameters())
    x = torch.zeros(2, style.channels, style.height, style.width, dtype=parameter.dtype)
    with torch.enable_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        graph = pruning.DependencyGraph()
        return graph.build_dependency(net.eval(), x, output_transform=lambda out: out.logits, verbose=False)
