"""What a few timed steps decide: how many fit into some minutes, into how many micro-batches to cut a batch, and
whether to compile the nets."""

from __future__ import annotations

import statistics
import sys
import time
from bisect import bisect_left
from collections.abc import Callable, Sequence
from typing import Literal

import torch
from torch._dynamo.exc import TorchDynamoException

from ssl_lab.batch import Loss
from ssl_lab.data import Pool
from ssl_lab.engine.evaluate import monitored, predict, worth_measuring
from ssl_lab.engine.runtime import Runtime
from ssl_lab.methods import Method

LEAST_ROWS = 64  # images of a micro-batch, so that BatchNorm has enough to normalize by
WORTH_IT = 0.95  # of the time that fewer micro-batches take, or nets that are not compiled
LONG_RUN = 180.0  # seconds; shorter runs do not repay the compiler's time


def steps_within(seconds: float, begun: float, step: Callable[[], Loss], method: Method, pool: Pool,
                 runtime: Runtime, evaluations: int, images_per_step: int) -> int:
    """How many steps fit into `seconds`, of which the timing and `evaluations` evaluations of two nets are taken.

    begun: since when the seconds count. step: one step of training. All ranks run the same number of steps and
    agree on the answer, which is at least 1; a note on standard error says where measuring leaves less than half of
    the time to training.
    """
    step()  # the first one sets up kernels and compiles
    laps: list[float] = []
    while len(laps) < 3 or runtime.any(sum(laps) < min(15.0, seconds / 20) and len(laps) < 50)[0]:
        lap = time.perf_counter()
        step().total.item()
        laps.append(time.perf_counter() - lap)
    some = monitored(pool)[1][:256]
    predict(method.predictor(), pool, some, runtime)  # the first one sets up kernels and reads from a cold disk
    lap = time.perf_counter()
    predict(method.predictor(), pool, some, runtime)
    per_image = (time.perf_counter() - lap) / max(1, len(some))
    mine = [seconds - (time.perf_counter() - begun), statistics.median(laps), per_image]
    left, per_step, per_image = (total / runtime.world for total in runtime.totals(mine))

    def measuring(steps: int) -> float:
        curve = monitored(pool, worth_measuring(images_per_step * max(1, steps // evaluations)))[1]
        return 2 * per_image * (min(steps, evaluations) * len(curve) + len(pool.valid) + len(pool.test))

    most = range(1, 1 + int(max(0, left / per_step)))
    steps = max(1, bisect_left(most, True, key=lambda steps: steps * per_step + measuring(steps) > left))
    if runtime.main and measuring(steps) > max(0.0, left) / 2:
        print(f"note: of {seconds:.0f} s, measuring takes {measuring(steps):.0f} and leaves room for {steps} steps of "
              f"{1e3 * per_step:.0f} ms; give more --minutes, or --steps", file=sys.stderr)
    return steps


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


def compiling_pays(step: Callable[[], Loss], steps: int | None, seconds: float, runtime: Runtime) -> bool:
    """Whether compiled nets are faster by 5% in a run of `steps`, or else of `seconds`; says so on standard error.

    step: one step of training, of nets that compile when they are first called. They are timed in turn, but not in a
    run of less than 3 minutes. Where there is no compiler, or it fails, the answer is no. All ranks agree on it.
    """
    def lap(stance: Literal["default", "force_eager"]) -> float:
        begun = time.perf_counter()
        with torch.compiler.set_stance(stance):
            step().total.item()
        return time.perf_counter() - begun

    plain = [lap("force_eager") for _ in range(4)][1:]  # the first one sets up kernels
    length = runtime.totals([steps * statistics.median(plain) if steps else seconds])[0] / runtime.world
    failure, first, compiled = "", 0.0, [0.0]
    if length >= LONG_RUN:
        try:
            first = lap("default")
            laps = [(lap("force_eager"), lap("default")) for _ in range(4)][1:]
            plain, compiled = [eager for eager, _ in laps], [fast for _, fast in laps]
        except TorchDynamoException as error:
            failure = str(error).strip().partition("\n")[0]
    failed = runtime.any(bool(failure))[0]
    eager, fast = (value / runtime.world for value in runtime.totals([*map(statistics.median, (plain, compiled))]))
    pays = length >= LONG_RUN and not failed and fast <= WORTH_IT * eager
    if runtime.main:
        print(f"note: nets are {'' if pays else 'not '}compiled: " + (
            f"the run is short ({length:.0f} s)" if length < LONG_RUN else failure or "another rank could not" if failed
            else f"a step takes {1e3 * fast:.0f} ms compiled, else {1e3 * eager:.0f} ms; compiling took {first:.0f} s"),
            file=sys.stderr)
    return pays
