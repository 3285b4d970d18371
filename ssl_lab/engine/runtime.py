"""Where a run computes: alone, or as one of several ranks. The only file that knows whether there are many."""

from __future__ import annotations

import atexit
import gc
import inspect
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, replace
from datetime import timedelta
from typing import Any, Literal, TypeVar

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.rendezvous import rendezvous

from ssl_lab.engine.placed import MIXED, place
from ssl_lab.errors import RunFailedError, UsageError
from ssl_lab.machine import (
    Picked,
    Precision,
    keep_freed_memory,
    resolve_device,
    resolve_precision,
    set_up_gpu,
    share_processors,
)
from ssl_lab.processes import out_of_memory

Compile = Literal["off", "on", "auto"]
T = TypeVar("T")
PATIENCE = timedelta(minutes=5)
"""How long a rank waits for one that is silent: longer than the first takes to write a checkpoint. A rank that ended
is noticed at once, as its connections close."""
LOST = ("gloo", "NCCL", "Connection closed", "Connection reset", "Broken pipe", "Timed out")
"""What the backends' errors say of a rank that is gone; they are plain RuntimeErrors."""


@dataclass
class Runtime:
    """Where a run computes: made by `Runtime.start`, which also joins the ranks that `torchrun` started.

    Attributes:
        device: where tensors lie.
        rank, world: which of how many processes this is.
        precision: "fp32", "bf16" or "fp16" (autocast; weights and losses stay float32).
        reason: why it was picked.
        shard: each of several ranks holds a part of every weight, where it would else hold all of them; see
            `sharded`.

    >>> runtime = sl.Runtime.start("cpu", precision="fp32")
    >>> runtime.device, runtime.precision, runtime.main
    (device(type='cpu'), 'fp32', True)
    """

    device: torch.device
    precision: Picked
    reason: str
    rank: int = 0
    world: int = 1
    shard: bool = False

    @classmethod
    def start(cls, device: str = "auto", precision: Precision = "auto", shard: bool = False) -> Runtime:
        """Resolves `auto`; under torchrun (WORLD_SIZE > 1) joins the process group, one device per rank.

        RunFailedError if another rank does not come.
        """
        world = int(os.environ.get("WORLD_SIZE", "1"))
        rank = int(os.environ.get("RANK", "0"))
        where = resolve_device(device, int(os.environ.get("LOCAL_RANK", "0")))
        keep_freed_memory()
        if where.type == "cuda":
            set_up_gpu()
        share_processors()
        runtime = cls(where, "fp32", "not picked yet", rank, world, shard)
        with runtime.explaining_failures():
            if world > 1 and not dist.is_initialized():
                gpu = where.type == "cuda"  # what ranks tell each other from host to host goes through gloo there too
                dist.init_process_group("cpu:gloo,cuda:nccl" if gpu else "gloo", timeout=PATIENCE,
                                        store=meeting_place(), rank=rank, world_size=world)
                atexit.register(part_for_good)  # ranks that part cannot meet again in the next run
            picked, reason = resolve_precision(where, precision)
            if world > 1:  # each rank measures; rank 0 decides
                choice = [picked]
                dist.broadcast_object_list(choice, src=0)
                picked = choice[0]
        return replace(runtime, precision=picked, reason=reason)

    @property
    def main(self) -> bool:
        """Whether this process writes files and prints."""
        return self.rank == 0

    def autocast(self) -> AbstractContextManager[Any]:
        """bf16 or fp16 autocast, or nothing."""
        if self.precision == "bf16":
            return torch.autocast(self.device.type, dtype=torch.bfloat16)
        if self.precision == "fp16":
            return torch.autocast(self.device.type, dtype=torch.float16)
        return nullcontext()

    def wrap(self, method: nn.Module) -> nn.Module:
        """Moves the method to the device; DDP around it, or shards, where there are ranks.

        Returns the module to call for a differentiated forward. BatchNorm stays local to a rank (each
        normalizes by its own rows).
        """
        sharded = self.shard and self.world > 1
        if sharded:
            from ssl_lab.engine.sharded import shard  # FSDP takes a second to import

            shard(method, self.device)
        else:
            place(method, self.device)
        if self.world == 1 or sharded:
            return method
        ddp = nn.parallel.DistributedDataParallel
        renamed = "forward_sync_buffers" in inspect.signature(ddp).parameters  # torch 2.14
        local: dict[str, Any] = {"forward_sync_buffers" if renamed else "broadcast_buffers": False}
        return ddp(method, **local)

    def no_sync(self, wrapped: nn.Module, last: bool) -> AbstractContextManager[Any]:
        """Keeps DDP from reducing gradients before the last micro-batch of a step."""
        if last or not isinstance(wrapped, nn.parallel.DistributedDataParallel):
            return nullcontext()
        return wrapped.no_sync()

    def totals(self, numbers: Sequence[float]) -> list[float]:
        """The sum of each number over ranks, in double precision; waits for all of them, but for no GPU."""
        if self.world == 1:
            return list(numbers)
        values = torch.tensor(numbers, dtype=torch.float64)
        dist.all_reduce(values)
        sums: list[float] = values.tolist()
        return sums

    def any(self, *flags: bool) -> list[bool]:
        """For each flag, whether any rank says yes; waits for all of them."""
        return [count > 0 for count in self.totals(flags)]

    def wait(self) -> None:
        """Until all ranks are here: what rank 0 wrote before is then there for all of them."""
        self.totals([0])

    def from_first(self, make: Callable[[], T]) -> T:
        """What `make` returns on the first rank, on all of them; its UsageError is raised on all of them too."""
        if self.world == 1:
            return make()
        outcome: list[Any] = [None]
        if self.main:
            try:
                outcome = [make()]
            except UsageError as error:
                outcome = [error]
        dist.broadcast_object_list(outcome, src=0)
        if isinstance(outcome[0], UsageError):
            raise outcome[0]
        made: T = outcome[0]
        return made

    def of_all(self, value: T) -> list[T]:
        """Each rank's value, on all of them."""
        values: list[Any] = [value] * self.world
        if self.world > 1:
            dist.all_gather_object(values, value)
        return values

    @contextmanager
    def explaining_failures(self, work: str = "", side: int | None = None) -> Iterator[None]:
        """Within it, the loss of another rank and a lack of memory are RunFailedErrors that say so, and a method that
        cannot be sharded a UsageError.

        Args:
            work, side: what is being done, to images of which size.
        """
        try:
            yield
        except (MemoryError, RuntimeError) as error:
            if lacking := out_of_memory(error, work, side):
                raise RunFailedError(lacking) from error
            text = " ".join(str(error).split())
            if self.shard and MIXED in text:
                raise UsageError("this method reads weights of a net otherwise than by passing images through the net, "
                                 "and finds only a part of them in a sharded run; leave out --shard") from error
            if self.world == 1 or not (isinstance(error, dist.DistError) or any(word in text for word in LOST)):
                raise
            raise RunFailedError(f"rank {self.rank} lost another rank, which ended or was silent for {PATIENCE}; its "
                                 f"message says why ({text[:200]}). Go on from the last checkpoint with --resume auto, "
                                 "as `torchrun --max-restarts 3` does by itself") from error

    def share_statistics(self, module: nn.Module) -> None:
        """Gives all ranks the running statistics of rank 0, which are the ones that are evaluated and saved.

        A rank moves those of BatchNorms in train mode by its own rows. Methods read them, in a loss or for a teacher:
        after a step they must be the same on all ranks, as they are in a run that is resumed there.
        """
        if self.world == 1:
            return
        norms = [m for m in module.modules() if isinstance(m, nn.modules.batchnorm._NormBase) and m.training]
        found = [each for norm in norms for each in (norm.running_mean, norm.running_var) if each is not None]
        if found:  # all of them at once; counts of batches are the same anyway
            flat = torch.cat(found)
            dist.broadcast(flat, src=0)
            torch._foreach_copy_(found, list(torch.split(flat, [len(each) for each in found])))

    def peak_memory_bytes(self) -> int:
        """Peak device memory on a GPU; on a CPU the peak resident memory of this process."""
        if self.device.type == "cuda":
            return torch.cuda.max_memory_allocated(self.device)
        import resource
        import sys

        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return peak if sys.platform == "darwin" else peak * 1024


def meeting_place() -> Any:
    """Where the ranks that `torchrun` started tell each other their addresses.

    torchrun keeps one store over its restarts: a rank could find there the address of one that is dead, and did. On
    one machine, where all ranks know the number of the restart, each therefore has names of its own.
    """
    store = next(rendezvous("env://", timeout=PATIENCE))[0]
    if os.environ.get("LOCAL_WORLD_SIZE") != os.environ.get("WORLD_SIZE"):
        return store  # a node counts only the failures of its own ranks
    restart = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
    return dist.PrefixStore(f"restart {restart}", store)  # type: ignore[attr-defined]


def part_for_good() -> None:
    """Ends the process group; first what still holds it, in cycles of references too: gloo's threads have to end before
    the interpreter does, or now and then abort the process."""
    gc.collect()
    dist.destroy_process_group()
