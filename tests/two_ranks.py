"""Two ranks of one job, forked from a process that has imported what they need: that takes longer than what they do."""

import multiprocessing
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

_CONTEXT = multiprocessing.get_context("forkserver")
_CONTEXT.set_forkserver_preload(["torch.distributed", "ssl_lab.testing"])


def two_ranks(work: Callable[[int], Any], folder: Path) -> list[Any]:
    """What work(rank), a function of a test file, returns on each of two ranks."""
    ranks = [_CONTEXT.Process(target=_rank, args=(work, folder / "store", rank)) for rank in range(2)]
    for each in ranks:
        each.start()
    for each in ranks:
        each.join(120)
        each.kill()
        each.join()
    assert [each.exitcode for each in ranks] == [0, 0]
    return [torch.load(f"{folder / 'store'}{rank}") for rank in range(2)]


def _rank(work: Callable[[int], Any], store: Path, rank: int) -> None:
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=2)
    torch.save(work(rank), f"{store}{rank}")
    dist.destroy_process_group()
