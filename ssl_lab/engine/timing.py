"""What a few timed steps decide: how many fit into some minutes, and into how many micro-batches to cut a batch."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence

import torch

from ssl_lab.batch import Loss
from ssl_lab.data import Pool
from ssl_lab.engine.evaluate import monitored, predict
from ssl_lab.engine.runtime import Runtime
from ssl_lab.methods import Method

LEAST_ROWS = 64  # images of a micro-batch, so that BatchNorm has enough to normalize by
WORTH_IT = 0.95  # of the time that fewer micro-batches take


def steps_within(seconds: float, begun: float, step: Callable[[], Loss], method: Method, pool: Pool,
                 runtime: Runtime, evaluations: int) -> int:
    """How many steps fit into `seconds`, of which the timing and `evaluations` evaluations of two nets are taken.

    begun: since when the seconds count. step: one step of training. All ranks run the same number of steps and
    agree on the answer, which is at least 1.
    """
    step()  # the first one sets up kernels and compiles
    laps: list[float] = []
    while len(laps) < 3 or runtime.any(sum(laps) < min(15.0, seconds / 20) and len(laps) < 50)[0]:
        lap = time.perf_counter()
        step().total.item()
        laps.append(time.perf_counter() - lap)
    curve = monitored(pool)[1]
    lap = time.perf_counter()
    predict(method.predictor(), pool, curve[:256], runtime)
    per_image = (time.perf_counter() - lap) / max(1, len(curve[:256]))
    images = 2 * (evaluations * len(curve) + len(pool.valid) + len(pool.test))
    left = seconds - (time.perf_counter() - begun) - per_image * images
    steps: float = runtime.totals([left / statistics.median(laps)])[0] / runtime.world
    return max(1, int(steps))


def fastest_micro_batches(rows: Sequence[int], runtime: Runtime, step: Callable[[int], Loss]) -> int:
    """Into how many micro-batches to cut a batch: the least power of two that no other beats by 5%.

    rows: how many labeled and unlabeled images a rank's batch has; each must divide. step: one step of training in
    so many micro-batches. A micro-batch has at least 64 images. Nets are not compiled while they are timed, and
    all ranks agree on the answer.
    """
    counts = [1 << i for i in range(10)]
    counts = [k for k in counts if k == 1 or (sum(rows) >= LEAST_ROWS * k and not any(n % k for n in rows))]
    if len(counts) == 1:
        return 1
    laps: dict[int, list[float]] = {k: [] for k in counts}
    with torch.compiler.set_stance("force_eager"):
        for _ in range(4):
            for k in counts:  # in turn, because the machine may have other work to do
                lap = time.perf_counter()
                step(k).total.item()
                laps[k].append(time.perf_counter() - lap)
    took = runtime.totals([statistics.median(laps[k][1:]) for k in counts])  # the first ones set up kernels
    return next(k for k, seconds in zip(counts, took, strict=True) if WORTH_IT * seconds <= min(took))
