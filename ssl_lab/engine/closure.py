"""The closure that an update rule calls: forward and backward over one step's micro-batches."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import replace

import torch
from torch import nn

from ssl_lab.batch import At, Batch, Loss, seed_of
from ssl_lab.engine.runtime import Runtime
from ssl_lab.nets import frozen_statistics


class StepClosure:
    """Leaves the mean gradient of the micro-batches `parts` in `.grad`; see `optim.Closure`.

    Each call draws the same random numbers, other ones for each micro-batch: it draws as a rank of its own.
    module: the method, or DDP around it. clip: largest norm of the gradient, None for no limit.
    """

    def __init__(self, module: nn.Module, optimizer: torch.optim.Optimizer, runtime: Runtime,
                 parts: Sequence[Batch], at: At, clip: float | None) -> None:
        self.module, self.optimizer, self.runtime = module, optimizer, runtime
        self.parts, self.at, self.clip = parts, at, clip
        self._called = False

    def __call__(self) -> Loss:
        self.optimizer.zero_grad(set_to_none=True)
        losses = []
        with frozen_statistics(self.module) if self._called else nullcontext():
            for i, part in enumerate(self.parts):
                at = replace(self.at, rank=self.at.rank * len(self.parts) + i, world=self.at.world * len(self.parts))
                torch.manual_seed(seed_of(at.seed, "step", at.step, at.rank))  # for dropout and the like in the nets
                with self.runtime.no_sync(self.module, last=i + 1 == len(self.parts)):
                    with self.runtime.autocast():
                        loss: Loss = self.module(part, at)
                    (loss.total / len(self.parts)).backward()  # type: ignore[no-untyped-call]
                losses.append(loss)
        if self.clip is not None:
            nn.utils.clip_grad_norm_(self.module.parameters(), self.clip)
        self._called = True
        return losses[0] if len(losses) == 1 else _mean(losses)


def _mean(losses: list[Loss]) -> Loss:
    """What a step with these micro-batches reports."""
    terms = {name: torch.stack([loss.terms[name].detach() for loss in losses]).mean() for name in losses[0].terms}
    logs = {name: torch.stack([loss.logs[name] for loss in losses]).nanmean() for name in losses[0].logs}
    return Loss(terms, logs)
