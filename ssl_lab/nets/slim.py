"""Nets of fewer channels than their name says: {net}+slim, whose layers have the shapes of their stored weights."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from ssl_lab.errors import UsageError
from ssl_lab.nets.base import Net

SLIM = "+slim"
_PARTS = (nn.Conv1d, nn.Conv2d, nn.Linear, nn.modules.batchnorm._BatchNorm)


def slimmed(net: Net, state: Mapping[str, Tensor] | None) -> Net:
    """The net with layers of the shapes that the tensors of `state`, a whole `Net`'s, have; their values are for the
    caller to load. The head keeps its number of classes. UsageError where there is no state, or one of another net."""
    if state is None:
        raise UsageError(f"{net.name}{SLIM} has the channels that its weights say: start it from a run, or give "
                         "--weights")
    for name, part in net.named_modules():
        if isinstance(part, _PARTS) and part is not net.head:
            _resize(part, name, state, net.name)
    head = state.get("head.weight")
    if head is not None and head.ndim == 2:
        net.head.weight = nn.Parameter(net.head.weight.detach().new_zeros(net.classes, head.shape[1]))
        nn.init.xavier_normal_(net.head.weight)  # for other classes than those of the state
        net.head.in_features = net.features_dim = head.shape[1]
    net.name += SLIM
    return net


def _resize(part: nn.Module, name: str, state: Mapping[str, Tensor], net: str) -> None:
    for kind in (part._parameters, part._buffers):
        for key, value in kind.items():
            if value is None or not value.ndim:
                continue
            stored = state.get(f"{name}.{key}")
            if stored is None or stored.ndim != value.ndim or any(
                    few > many for few, many in zip(stored.shape, value.shape, strict=True)):
                raise UsageError(f"the weights are not those of a {net} with fewer channels: {name}.{key} is "
                                 f"{'missing' if stored is None else list(stored.shape)}, of {list(value.shape)}")
            empty = torch.zeros_like(stored, dtype=value.dtype, device=value.device)
            made = nn.Parameter(empty, value.requires_grad) if isinstance(value, nn.Parameter) else empty
            setattr(part, key, made)
    set_sizes(part)


def set_sizes(part: nn.Module) -> None:
    """What a layer says of its sizes, by its tensors."""
    if isinstance(part, nn.modules.batchnorm._BatchNorm):
        tensor = part.weight if part.affine else part.running_mean
        if tensor is not None:
            part.num_features = len(tensor)
    elif isinstance(part, nn.Linear):
        part.out_features, part.in_features = part.weight.shape
    elif isinstance(part, nn.Conv1d | nn.Conv2d):
        depthwise = part.groups > 1 and part.groups == part.in_channels
        part.out_channels = part.weight.shape[0]
        part.groups = part.out_channels if depthwise else part.groups
        part.in_channels = part.weight.shape[1] * part.groups
