"""The closure that an update rule calls: forward and backward over one step's micro-batches."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from dataclasses import replace

import torch
from torch import Tensor, nn

from ssl_lab.batch import At, Batch, Loss, mean_loss
from ssl_lab.engine.runtime import Runtime
from ssl_lab.engine.scale import LossScale
from ssl_lab.errors import UsageError
from ssl_lab.methods.ranks import mean_over_ranks
from ssl_lab.nets import frozen_statistics
from ssl_lab.seeds import seed_of


class StepClosure:
    """Leaves the mean gradient of the micro-batches `batches` in `.grad`; see `optim.Closure`.

    Each call draws the same random numbers, other ones for each micro-batch: it draws as a rank of its own.
    module: the method, or DDP around it. clip: largest norm of the gradient, None for no limit.
    part: which of how many parts of a step this is. scale: of the loss, in fp16.
    """

    def __init__(self, module: nn.Module, optimizer: torch.optim.Optimizer, runtime: Runtime,
                 batches: Sequence[Batch], at: At, clip: float | None, part: tuple[int, int] = (0, 1),
                 scale: LossScale | None = None) -> None:
        self.module, self.optimizer, self.runtime = module, optimizer, runtime
        self.at, self.clip, self.scale = at, clip, scale
        self._batches, self._part, self._parts = batches, *part
        self._called = False

    def __call__(self) -> Loss:
        self.optimizer.zero_grad(set_to_none=True)
        losses = []
        with frozen_statistics(self.module) if self._called else nullcontext():
            for i, (at, batch) in enumerate(self._passes()):
                with self.runtime.no_sync(self.module, last=i + 1 == len(self._batches)):
                    with self.runtime.autocast():
                        loss: Loss = returned(self.module(batch, at), getattr(self.module, "name", "the method"))
                    share = loss.total / len(self._batches)
                    (share if self.scale is None else share * self.scale.scale).backward()  # type: ignore[no-untyped-call]
                losses.append(loss)
        if self.scale is not None:
            self.scale.unscale(self.module)
        if self.clip is not None:
            nn.utils.clip_grad_norm_(self.module.parameters(), self.clip)
        self._called = True
        loss = mean_loss(losses)
        if observe := getattr(self.optimizer, "observe", None):  # of an optimizer that goes by the loss, too
            observe(mean_over_ranks(loss.total.detach()))
        return loss

    def _passes(self) -> Iterator[tuple[At, Batch]]:
        """Where each micro-batch draws from, and the micro-batch; seeds what nets draw themselves."""
        for i, batch in enumerate(self._batches):
            at = as_rank(as_rank(self.at, i, len(self._batches)), self._part, self._parts)
            torch.manual_seed(seed_of(at.seed, "step", at.step, at.rank))  # for dropout and the like in the nets
            yield at, batch

    def curvature(self, weights: Sequence[nn.Parameter], direction: Sequence[Tensor]) -> list[Tensor]:
        """See `optim.Closure`; by differentiating twice, and the mean over micro-batches and ranks."""
        method = self.module.module if isinstance(self.module, nn.parallel.DistributedDataParallel) else self.module
        products = [torch.zeros_like(w) for w in weights]
        eager = torch.compiler.set_stance("force_eager")  # compiled code has no second gradient
        with frozen_statistics(method), eager:
            for at, batch in self._passes():
                with self.runtime.autocast():
                    loss: Loss = method(batch, at)
                share = loss.total / len(self._batches)
                slopes = torch.autograd.grad(share, weights, create_graph=True, materialize_grads=True)
                found = torch.autograd.grad(slopes, weights, direction, materialize_grads=True)
                torch._foreach_add_(products, list(found))
        return [mean_over_ranks(each) for each in products]

    def parts(self, count: int) -> Sequence[StepClosure]:
        """See `optim.Closure`. Part i has the i-th part of each micro-batch."""
        if count == 1:
            return [self]
        sizes = {len(rows) for batch in self._batches for rows in (batch.labeled, batch.unlabeled)}
        if any(size % count for size in sizes):
            raise UsageError(f"a micro-batch of {' and '.join(map(str, sorted(sizes - {0})))} images does not divide "
                             f"into {count} parts")
        cut = [batch.chunk(count) for batch in self._batches]
        return [StepClosure(self.module, self.optimizer, self.runtime, [each[i] for each in cut], self.at, self.clip,
                            (i, count), self.scale) for i in range(count)]


def returned(loss: object, whose: str) -> Loss:
    """The loss that this method or technique returns. UsageError where it returns something else."""
    if not isinstance(loss, Loss):
        raise UsageError(f"{whose} returns {type(loss).__name__}; expected sl.Loss({{name: term, ...}})")
    return loss


def as_rank(at: At, number: int, parts: int) -> At:
    """Where a part of a rank's rows is: it draws as one of so many more ranks."""
    return replace(at, rank=at.rank * parts + number, world=at.world * parts)
