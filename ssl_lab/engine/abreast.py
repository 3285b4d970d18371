"""Batches that pass a net side by side: on a processor, each on a thread of its own, several are done sooner than one
after another on all threads, which wait for each other at each operation: longest where other processes take turns on
the same cores."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import torch

from ssl_lab.data.ahead import in_order
from ssl_lab.engine.runtime import Runtime

T = TypeVar("T")
R = TypeVar("R")
MOST = 8
"""Batches at a time: bounds the memory. Where there are more processors, each batch has several."""


def lanes(runtime: Runtime) -> int:
    """How many batches pass at once: 1 on an accelerator, which one fills, and among several ranks."""
    return min(MOST, torch.get_num_threads()) if runtime.device.type == "cpu" and runtime.world == 1 else 1


def abreast(count: int, work: Callable[[T], R], items: Iterable[T]) -> Iterator[R]:
    """What `work` makes of each item, in their order, by `count` threads, over which torch's are spread evenly."""
    if count == 1:
        yield from map(work, items)
        return
    every = torch.get_num_threads()
    share = max(1, every // count)
    # Each thread has a number of its own; the last one that is set holds for threads that are made later.
    threads = ThreadPoolExecutor(count, "abreast", initializer=torch.set_num_threads, initargs=(share,))
    try:
        yield from in_order(threads, work, items, ahead=count)
    finally:
        threads.shutdown(cancel_futures=True)
        torch.set_num_threads(every)
