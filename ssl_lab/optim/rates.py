"""Other learning rates for some parts of a method, or for its biases and norms, around any optimizer."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import nn

from ssl_lab.batch import At
from ssl_lab.errors import UsageError
from ssl_lab.optim.spec import Optimizer
from ssl_lab.schedule import Scalar


@dataclass(frozen=True, kw_only=True)
class _WithRates(Optimizer):
    base: Optimizer
    rates: Mapping[str, Scalar]
    biases: Scalar | None = None

    def build(self, module: nn.Module) -> torch.optim.Optimizer:
        optimizer = self.base.build(module)
        names = {parameter: re.sub(r"^(base\.)+", "", name) for name, parameter in module.named_parameters()}
        groups = []
        for group in optimizer.param_groups:
            for part in (None, *self.rates):
                parameters = [p for p in group["params"] if self._part(names[p]) == part]
                groups.append(group | {"params": parameters, "part": part})
        absent = [part for part in self.rates if not any(g["params"] for g in groups if g["part"] == part)]
        if absent:
            known = ", ".join(dict.fromkeys(name.partition(".")[0] for name in names.values()))
            raise UsageError(f"no parameter that learns is in {', '.join(absent)}; a part is a module's name, as "
                             f"{known}")
        optimizer.param_groups = [group for group in groups if group["params"]]
        return optimizer

    def set(self, optimizer: torch.optim.Optimizer, at: At) -> float:
        lr = self.base.set(optimizer, at)
        for group in optimizer.param_groups:
            if group["part"] is not None:
                group["lr"] = at.value(self.rates[group["part"]])
            elif self.biases is not None and not group["decay"]:
                group["lr"] = at.value(self.biases)
        return lr

    def _part(self, name: str) -> str | None:
        return next((part for part in self.rates if f"{name}.".startswith(f"{part}.")), None)


def with_rates(optimizer: Optimizer, rates: Mapping[str, Scalar], biases: Scalar | None = None) -> Optimizer:
    """`optimizer` with other learning rates for some parts: {"net.backbone": cosine(0.01)}.

    Building it raises UsageError where a part has no parameter that learns.

    Args:
        optimizer: whose rule it is.
        rates: part of the method (a module's name, as in `named_parameters`) -> learning rate. The first part that fits
            counts.
        biases: of the biases and the parameters of norms (fewer than 2 dimensions) of all other parts, as Barlow Twins
            has it; by default the optimizer's.

    >>> spec = sl.optim.with_rates(sl.SGD(lr=0.1), {"head": 0.5})
    >>> optimizer = spec.build(sl.net("tiny_4"))
    >>> spec.set(optimizer, sl.At(0, 100)), sorted({group["lr"] for group in optimizer.param_groups})
    (0.1, [0.1, 0.5])
    """
    return _WithRates(optimizer.lr, optimizer.weight_decay, base=optimizer, rates=rates, biases=biases)
