"""NSGD and INSGD (Aktas et al. 2022, arXiv 2212.09921): steps that are normalized by what a layer is given."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
import torch.distributed as dist
from torch import Tensor, nn

from ssl_lab.optim.spec import Optimizer, parameter_groups
from ssl_lab.schedule import Scalar

LEAST = 0.01  # of a divisor and of a standard deviation
FORGETS = 0.9


@dataclass(frozen=True)
class NSGD(Optimizer):
    """NSGD (Aktas et al. 2022, arXiv 2212.09921): SGD whose steps are normalized by what a layer is given.

    With momentum; the step of a layer's weights is divided by 0.01 + ||x||_1, x the layer's input.

    Of a convolution x is an input channel: the largest sum of absolute values in a column of its map, and its weights
    are divided each by their input channel's; of a linear layer x is the row of features. Means over the batch. Biases
    and norms take plain steps. Weight decay is added to the gradient.

    Checked against the authors' code (SalihFurkan/Normalized-SGD, normalized_lms_sgd.py), where a linear layer's batch
    is taken for one map.

    Attributes:
        momentum: share of the last step's direction that is kept, in [0, 1).

    >>> sl.optimizer("nsgd(lr=cosine(0.1))", usual=sl.SGD()).lr(1.0)
    0.0
    """

    lr: Scalar = 0.3
    weight_decay: Scalar = 1e-4
    momentum: float = 0.9

    def build(self, module: nn.Module) -> torch.optim.Optimizer:
        return _ByInput(module, self.momentum, "sum")


@dataclass(frozen=True)
class INSGD(NSGD):
    """INSGD (Aktas et al. 2022, arXiv 2212.09921): NSGD that averages the sizes of inputs over steps.

    As NSGD with P <- 0.9 P + 0.1 ||x||_2^2 and the divisor max(log P, 0.01), x standardized first.

    Standardized over the features of a row in a linear layer, and over the map of a channel in a convolution, where a
    standard deviation counts as 0.01 at least; P of each input channel, from 0.

    Checked against the authors' code (SalihFurkan/INSGD, insgd.py; Normalized-SGD, nisgd.py).

    Attributes:
        momentum: share of the last step's direction that is kept, in [0, 1).

    >>> sl.optimizer("insgd(lr=0.1, momentum=0.8)", usual=sl.SGD()).momentum
    0.8
    """

    lr: Scalar = 0.1

    def build(self, module: nn.Module) -> torch.optim.Optimizer:
        return _ByInput(module, self.momentum, "log")


class _Watch:
    """Keeps a size of what a layer is given where gradients are taken: [in channels], or [1] for a linear layer."""

    def __init__(self, kind: Literal["sum", "log"]) -> None:
        self.kind = kind
        self.seen: list[Tensor] = []

    def __call__(self, layer: nn.Module, given: tuple[Tensor, ...]) -> None:
        if torch.is_grad_enabled() and layer.training:
            self.seen.append(size_of_input(given[0].detach().float(), self.kind))

    def taken(self) -> Tensor:
        """The mean over the passes since it was last asked."""
        size = torch.stack(self.seen).mean(dim=0)
        self.seen.clear()
        return size


def size_of_input(x: Tensor, kind: Literal["sum", "log"]) -> Tensor:
    """The mean over the batch of the norm of each input channel's map (x [B, C, H, W]: [C]) or of a row ([B, D]: [1]).

    "sum": ||x||_1 (of a map the largest column's). "log": ||x||_2^2 of standardized values.
    """
    parts = x if x.ndim == 4 else x.flatten(0, -2).unsqueeze(1)
    if kind == "sum":
        sums = parts.abs().sum(dim=-2).amax(dim=-1) if x.ndim == 4 else parts.abs().sum(dim=-1)
        return sums.mean(dim=0)
    parts = parts.flatten(2)
    spread = torch.nan_to_num(parts.std(dim=-1, keepdim=True), nan=0.99).clamp(min=LEAST)
    return ((parts - parts.mean(dim=-1, keepdim=True)) / spread).square().sum(dim=-1).mean(dim=0)


class _ByInput(torch.optim.Optimizer):
    def __init__(self, module: nn.Module, momentum: float, kind: Literal["sum", "log"]) -> None:
        super().__init__(parameter_groups(module), {"lr": 0.0, "weight_decay": 0.0, "momentum": momentum})
        self.kind: Literal["sum", "log"] = kind
        self.watches: dict[Tensor, _Watch] = {}
        for layer in module.modules():
            for number, hook in [*layer._forward_pre_hooks.items()]:
                if isinstance(hook, _Watch):  # of an optimizer that this one takes the place of
                    del layer._forward_pre_hooks[number]
            if isinstance(layer, nn.Conv2d | nn.Linear) and layer.weight.requires_grad:
                self.watches[layer.weight] = _Watch(kind)
                layer.register_forward_pre_hook(self.watches[layer.weight])

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        sizes = self._sizes()
        for group in self.param_groups:
            for w in (w for w in group["params"] if w.grad is not None):
                state = self.state[w]
                if "velocity" not in state:
                    state["velocity"] = torch.zeros_like(w)
                state["velocity"].mul_(group["momentum"]).add_(w.grad + group["weight_decay"] * w)
                w.sub_(group["lr"] * state["velocity"] / self._divisor(w, sizes[w])
                       if w in sizes else group["lr"] * state["velocity"])

    def _sizes(self) -> dict[Tensor, Tensor]:
        """What each layer was given, the mean over ranks."""
        sizes = {w: watch.taken() for w, watch in self.watches.items() if watch.seen}
        if sizes and dist.is_available() and dist.is_initialized():
            flat = torch.cat([*sizes.values()])
            dist.all_reduce(flat)
            parts = torch.split(flat / dist.get_world_size(), [len(size) for size in sizes.values()])
            sizes = dict(zip(sizes, parts, strict=True))
        return sizes

    def _divisor(self, w: nn.Parameter, size: Tensor) -> Tensor:
        """[1, in channels, 1, 1] or [1, 1]."""
        if self.kind == "sum":
            found = LEAST + size
        else:
            state = self.state[w]
            state["power"] = FORGETS * state.get("power", torch.zeros_like(size)) + (1 - FORGETS) * size
            found = state["power"].log().clamp(min=LEAST)
        if w.ndim == 4 and w.shape[1] != len(found):  # groups: each weight of a group sees some of the channels
            each = found.view(-1, w.shape[1]).repeat_interleave(len(w) * w.shape[1] // len(found), dim=0)
            return each.view(*each.shape, 1, 1)
        return found.view(1, -1, *[1] * (w.ndim - 2))
