"""From minutes to steps: a few steps and a little evaluation are timed."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable

from ssl_lab.batch import Loss
from ssl_lab.engine.evaluate import IntArray
from ssl_lab.engine.runtime import Runtime


def steps_within(seconds: float, runtime: Runtime, step: Callable[[], Loss], evaluate: Callable[[IntArray], object],
                 sample: IntArray, images: int) -> int:
    """How many steps fit into `seconds`, of which the timing and the evaluation of `images` images are taken.

    step: one step of training. evaluate: evaluates one net on the rows of `sample`. All ranks run the same
    number of steps and agree on the answer, which is at least 1.
    """
    begun = time.perf_counter()
    step()  # the first one sets up kernels and compiles
    laps: list[float] = []
    while len(laps) < 3 or runtime.any(sum(laps) < min(15.0, seconds / 20) and len(laps) < 50)[0]:
        lap = time.perf_counter()
        step().total.item()
        laps.append(time.perf_counter() - lap)
    lap = time.perf_counter()
    evaluate(sample)
    per_image = (time.perf_counter() - lap) / max(1, len(sample))
    left = seconds - (time.perf_counter() - begun) - per_image * images
    steps = runtime.totals([left / statistics.median(laps)])[0] / runtime.world
    return max(1, int(steps))
