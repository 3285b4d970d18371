"""What this machine has: device, precision, processors, memory."""

from __future__ import annotations

import contextlib
import ctypes
import functools
import os
import time
from collections.abc import Callable
from typing import Literal, get_args

import torch

from ssl_lab.errors import UsageError, unknown

Precision = Literal["auto", "fp32", "bf16", "fp16"]
Picked = Literal["fp32", "bf16", "fp16"]
M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4  # of malloc.h
TYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
"""What matrices are multiplied in."""
TENSOR_CORES = (7, 0)  # the compute capability that the first ones came with
SMALLEST = 128  # side of the matrices by which it is tried how long larger ones may take
BF16_WINS = 1.3  # bf16 must multiply this much faster than fp32 before `auto` picks it


def share_processors() -> None:
    """Gives each rank of this machine as many threads as there are processors for it.

    torchrun sets OMP_NUM_THREADS to 1, for which it cannot know better; any other number is the user's and stays. A
    process alone has as many threads as there are processors anyway.
    """
    ranks = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    if ranks > 1 and os.environ.get("OMP_NUM_THREADS", "1") == "1":
        allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        torch.set_num_threads(max(1, allowed // ranks))


def keep_freed_memory() -> None:
    """Tells glibc to keep what is freed for the next tensor; elsewhere it does nothing.

    By default it maps each large tensor anew and returns it to the system after use, so that every step on a CPU
    faults all its pages in again: a tenth of a step, and half of a view of 96 px.
    """
    with contextlib.suppress(OSError, AttributeError, TypeError):
        mallopt = ctypes.CDLL(None).mallopt
        mallopt(M_MMAP_MAX, 0)
        mallopt(M_TRIM_THRESHOLD, 2**31 - 1)


def set_up_gpu() -> None:
    """How this process computes on its GPU: by the same convolutions in every run, and fp32 is fp32: never TF32, whose
    products have 10 bits of fraction, and which `auto` has no need of, as GPUs that know it multiply bf16 faster.

    Where cuDNN times its convolutions and takes the fastest, two runs take other ones, and a resumed run is not the one
    that was never stopped: on an NVIDIA H200 weights differed by 0.04 to 0.2 after 40 steps. Now they do by nothing, at
    no cost that could be told. Operations of torch that add in any order (a user's own `index_add_`, say) still may.
    """
    torch.backends.cudnn.benchmark, torch.backends.cudnn.deterministic = False, True
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = False


def return_freed_memory() -> None:
    """Gives the system what `keep_freed_memory` kept so far, so that memory in use can be told from it."""
    with contextlib.suppress(OSError, AttributeError, TypeError):
        ctypes.CDLL(None).malloc_trim(0)


def resolve_device(device: str, local_rank: int = 0) -> torch.device:
    """`auto` is the rank's GPU, or the CPU. An absent device is a UsageError."""
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        where = torch.device(device)
        if where.type == "cuda":  # before its first use: without a number, every rank would take memory on GPU 0
            where = torch.device("cuda", where.index if where.index is not None else local_rank)
        torch.empty(1, device=where)
        if where.type == "cuda":
            torch.cuda.set_device(where)
    except Exception as error:  # torch raises RuntimeError, AssertionError or NotImplementedError by device
        reason = str(error).splitlines()[0]
        gpus = torch.cuda.device_count()
        advice = (f"start at most {gpus} processes here (--nproc-per-node {gpus}), or try --device cpu"
                  if 0 < gpus <= local_rank else "try --device cpu or auto")
        raise UsageError(f"device {device!r} cannot be used here ({reason}); {advice}") from None
    return where


def resolve_precision(device: torch.device, precision: Precision) -> tuple[Picked, str]:
    """The precision, and why: `auto` is bf16 where this device multiplies matrices faster in it, and fp16 on a GPU that
    has tensor cores for no other (V100, T4; not run there yet)."""
    if precision not in get_args(Precision):
        raise unknown("precision", precision, get_args(Precision))
    if precision != "auto":
        return precision, "as asked"
    if device.type == "cuda":
        if torch.cuda.is_bf16_supported(including_emulation=False):
            return "bf16", "the GPU multiplies bf16 natively"
        if torch.cuda.get_device_capability(device) >= TENSOR_CORES:
            return "fp16", "the GPU multiplies fp16 natively, but not bf16"
        return "fp32", "the GPU multiplies neither bf16 nor fp16 natively"
    if device.type != "cpu":
        return "fp32", f"bf16 is not measured on {device.type}"
    gain = bf16_gain()
    picked: Picked = "bf16" if gain > BF16_WINS else "fp32"
    return picked, f"matrix product: bf16 {gain:.1f} times as fast as fp32 (bf16 wins from {BF16_WINS})"


@functools.cache
def bf16_gain() -> float:
    """How many times as fast as in fp32 the CPU multiplies matrices in bf16. Measured once in a process: it takes a
    tenth of a second, and where there is no bf16 four."""
    fp32, bf16 = (matmul_tflops(torch.device("cpu"), dtype, size=512) for dtype in (torch.float32, torch.bfloat16))
    return bf16 / fp32


def matmul_tflops(device: torch.device, dtype: torch.dtype, size: int = 2048, seconds: float = 0.05) -> float:
    """The speed of a size x size matrix product in TFLOP/s: the best of repeats over about `seconds`.

    Of a smaller one, where one of that size would take longer: a CPU without bf16 needs a minute for one of 2048.
    """
    side = min(size, SMALLEST)
    while side < size and 8 * _seconds(device, dtype, side, seconds / 8) < seconds:
        side = min(2 * side, size)
    return 2 * side**3 / _seconds(device, dtype, side, seconds) / 1e12


def _seconds(device: torch.device, dtype: torch.dtype, size: int, seconds: float) -> float:
    a = torch.ones(size, size, dtype=dtype, device=device)
    synchronize: Callable[[], None] = torch.cuda.synchronize if device.type == "cuda" else lambda: None
    best = float("inf")
    end = time.perf_counter() + seconds
    for repeat in range(1000):
        start = time.perf_counter()
        torch.mm(a, a)
        synchronize()
        now = time.perf_counter()
        if repeat:  # the first call sets up the kernel
            best = min(best, now - start)
        if repeat >= 3 and now > end:
            break
    return best
