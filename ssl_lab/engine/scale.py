"""Loss scaling (Micikevicius et al. 2018, arXiv 1710.03740): in fp16, gradients that are small would be 0."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from ssl_lab.engine.runtime import Runtime
from ssl_lab.errors import NonFiniteLossError, UsageError

FIRST, LEAST = 2.0**16, 2.0**-10
PATIENCE = 2000
"""Steps without an overflow after which the scale is doubled, as torch's GradScaler has it."""


class LossScale:
    """The loss is multiplied by a power of two before it is differentiated, and gradients are divided by it.

    Where one of them is not finite, the optimizer's step is left out and the scale halved. For that it is read back to
    the host, once in each step; torch's fused SGD, which could look by itself, would begin with momenta of no value
    where its first step is left out. torch's GradScaler takes one gradient a step; update rules may take several.
    """

    def __init__(self) -> None:
        self.scale, self.good, self.overflowed = FIRST, 0, False

    def unscale(self, module: nn.Module) -> None:
        """Divides the gradients that are there, in place, and notes whether all are finite."""
        gradients = [p.grad for p in module.parameters() if p.grad is not None]
        if gradients:
            torch._foreach_mul_(gradients, 1 / self.scale)
            largest = torch.stack(torch._foreach_norm(gradients, torch.inf))
            self.overflowed |= not bool(largest.isfinite().all())

    def guard(self, optimizer: torch.optim.Optimizer) -> None:
        """From now on it takes no step by gradients that are not finite."""
        step = optimizer.step

        def guarded(*arguments: Any) -> Any:
            return None if self.overflowed else step(*arguments)

        optimizer.step = guarded  # type: ignore[method-assign, assignment]

    def update(self) -> None:
        """After each step of training. NonFiniteLossError where even small scales do not help."""
        self.good = 0 if self.overflowed else self.good + 1
        if self.overflowed:
            self.scale /= 2
        elif self.good == PATIENCE:
            self.scale, self.good = 2 * self.scale, 0
        self.overflowed = False
        if self.scale < LEAST:
            raise NonFiniteLossError("the gradients are not finite in fp16, however the loss is scaled")

    def state_dict(self) -> dict[str, float]:
        return {"scale": self.scale, "good": self.good}

    def load_state_dict(self, state: dict[str, float]) -> None:
        self.scale, self.good = float(state["scale"]), int(state["good"])


def scaling(runtime: Runtime, optimizer: torch.optim.Optimizer) -> LossScale | None:
    """What a run in fp16 needs, around its optimizer; None in another precision. UsageError for sharded runs."""
    if runtime.precision != "fp16":
        return None
    if runtime.shard and runtime.world > 1:
        raise UsageError("fp16 looks at all gradients, of which a rank of a sharded run has a part; take --precision "
                         "fp32 or bf16, or leave out --shard")
    scale = LossScale()
    scale.guard(optimizer)
    return scale
