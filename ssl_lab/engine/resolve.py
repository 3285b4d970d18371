"""What a run leaves to be timed: how many steps fit into its minutes, how many micro-batches, whether to compile."""

from __future__ import annotations

import copy
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ssl_lab.batch import At, Loss
from ssl_lab.data import Pool
from ssl_lab.engine.checks import explaining_single_images
from ssl_lab.engine.compiled import uncompile
from ssl_lab.engine.feed import Feed
from ssl_lab.engine.runtime import Compile, Runtime
from ssl_lab.engine.timing import compiling_pays, fastest_micro_batches, steps_within
from ssl_lab.methods import Method

if TYPE_CHECKING:
    from ssl_lab.engine.trainer import Trainer


@dataclass
class Timed:
    """Decides what a trainer's settings leave open, by timing some steps. plain: the method, as it was given; method:
    with techniques around it. step: one step at a moment, in so many micro-batches. compile: whether the nets are.

    After `settle`, micro_batches and steps are those of the run.
    """

    trainer: Trainer
    runtime: Runtime
    plain: Method
    method: Method
    pool: Pool
    feed: Feed
    step: Callable[[At, int], Loss]
    compile: Compile
    micro_batches: int = 1
    steps: int = 0

    def settle(self, saved: dict[str, Any] | None) -> bool:
        """From what was recorded or asked for, else by timing. Returns whether steps were taken: the method's state is
        then what it was before, and the optimizer has to be built anew."""
        trainer, runtime, begun = self.trainer, self.runtime, time.perf_counter()
        parts, steps = trainer.micro_batches, trainer.steps
        if saved:
            self.micro_batches = int(saved["config"]["micro_batches"] if parts == "auto" else parts)
            self.steps = int(saved["steps"])
            return False
        rows = [stream.rows for stream in self.feed.streams.values()]
        single = (1 if parts == "auto" else parts) in rows
        if parts != "auto" and steps and self.compile != "auto" and not single:
            self.micro_batches, self.steps = parts, steps
            return False
        before = copy.deepcopy(self.method.state_dict())
        at = At(799, 1000, trainer.seed, runtime.rank, runtime.world)  # late: some methods begin with cheaper steps
        if single:
            with explaining_single_images(self.plain):
                self.step(at, 1 if parts == "auto" else parts)
        if parts == "auto":
            parts = fastest_micro_batches(rows, runtime, lambda parts: self.step(at, parts))
        if self.compile == "auto":
            pays = compiling_pays(lambda: self.step(at, parts), steps, 60 * (trainer.minutes or 0), runtime)
            self.compile = "on" if pays else "off"
            if not pays:
                uncompile(self.method)
                self.feed.uncompile()
        self.micro_batches = parts
        self.steps = steps or steps_within(
            60 * (trainer.minutes or 0), begun, lambda: self.step(at, parts), self.method, self.pool, runtime,
            trainer.evaluations, self.feed.images_per_step)
        self.method.load_state_dict(before)
        return True
