"""What techniques share that hold weights at zero: masks of all convolutions and linear layers, as buffers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import ClassVar

import torch
from torch import Tensor, nn

from ssl_lab.batch import At
from ssl_lab.data import Pool
from ssl_lab.errors import UsageError
from ssl_lab.methods import Method
from ssl_lab.methods.base import Edit
from ssl_lab.nets import Net
from ssl_lab.techniques.base import WeightsTechnique
from ssl_lab.techniques.weights.invariant import nets_of

RENEWED = dict.fromkeys(("reinit", "shrink_perturb", "layerwise_reinit", "gradmax", "lookahead", "sphere", "swa"),
                        "it writes weights where others are held at zero")


class Masked(WeightsTechnique):
    """Weights of convolutions and linear layers, the head's too, are zero where a mask is 0: in the net that learns, in
    its moving average and so in what is reported. Gradients are masked before the optimizer sees them.

    What comes out is a net of the usual kind with zeros in it: it has fewer bits to keep, but a dense kernel computes
    it no faster.
    """

    excludes: ClassVar[Mapping[str, str]] = RENEWED

    def __init__(self) -> None:
        super().__init__()
        self._edits: Sequence[Edit] = ()

    def check(self, method: Method, pool: Pool) -> None:
        parametrized = any(nn.utils.parametrize.is_parametrized(part) for part in method.net.modules())
        if parametrized or not sparse_weights(method.net):
            why = "are made of other parameters" if parametrized else "are no convolutions or linear layers"
            raise UsageError(f"{self.name} holds weights at zero, and those of {method.net.name} {why}")

    def begin(self, pool: Pool, seed: int) -> None:
        self._names = list(sparse_weights(self.net))
        self.masks = nn.Module()
        for number, weight in enumerate(self.weights()):
            self.masks.register_buffer(str(number), torch.ones_like(weight, dtype=torch.bool))
            hook = partial(self.seen, number)
            weight.register_hook(hook)  # type: ignore[no-untyped-call]

    def weights(self) -> list[nn.Parameter]:
        """Those of the net that learns."""
        return [self.net.get_parameter(name) for name in self._names]

    def mask(self, number: int) -> Tensor:
        """bool, of the shape of that weight: where it may be other than zero."""
        return self.masks.get_buffer(str(number))

    def seen(self, number: int, slope: Tensor) -> Tensor:
        """The gradient of that weight as the optimizer gets it, from that of the whole tensor."""
        return slope * self.mask(number)

    @torch.no_grad()
    def after_step(self, at: At) -> None:
        super().after_step(at)
        self._edits = self.edit(at)
        self.apply_masks()

    def edit(self, at: At) -> Sequence[Edit]:
        """After the step at `at`: changes masks and weights; returns what was written into."""
        raise NotImplementedError

    @torch.no_grad()
    def apply_masks(self) -> None:
        """Zeros where the masks are 0."""
        for net in nets_of(self):
            for number, name in enumerate(self._names):
                net.get_parameter(name).mul_(self.mask(number))

    def edited(self) -> Sequence[Edit]:
        return [*super().edited(), *self._edits]


def sparse_weights(net: Net) -> dict[str, nn.Parameter]:
    """The weights that masks are for, by name in the net: those of its convolutions and linear layers that learn."""
    found = {f"{name}.weight": part._parameters["weight"] for name, part in net.named_modules()
             if isinstance(part, nn.Conv1d | nn.Conv2d | nn.Linear) and "weight" in part._parameters}
    return {name: weight for name, weight in found.items() if weight is not None and weight.requires_grad}


def largest(values: Tensor, count: int) -> Tensor:
    """bool, of the shape of `values`: the `count` largest, exactly, of equal ones the first."""
    chosen = torch.zeros(values.numel(), dtype=torch.bool, device=values.device)
    chosen[values.flatten().sort(descending=True, stable=True).indices[:count]] = True
    return chosen.view_as(values)
