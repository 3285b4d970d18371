"""The loop. Every method, every technique, any number of ranks:

    pool = data techniques(pool); method = terms and weights techniques around the method
    for step in start .. steps:
        set learning rate and weight decay of this step
        batch = feed(step)                          # indices -> bytes -> device -> views
        closure = forward and backward of the method over the batch, in micro-batches
        loss = update(closure)                      # plain: closure(), optimizer.step()
        method.after_step(step)                     # averages, queues, thresholds; what it edits has no momenta
        every log_every steps:     a row of metrics, means over the steps since the last
        every evaluate_every:      accuracy of the averaged and of the plain weights
        now and then, and at the end or a signal: a checkpoint
    test the predictor once, write the summary

All randomness is a function of (seed, purpose, step), so a run resumed from a checkpoint is the run that was
never stopped.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from ssl_lab.batch import At, Loss
from ssl_lab.data import Pool
from ssl_lab.engine import checkpoint, evaluate, records
from ssl_lab.engine.callbacks import Callback, Together
from ssl_lab.engine.checks import check_classes, check_settings
from ssl_lab.engine.closure import StepClosure, returned
from ssl_lab.engine.compiled import as_graphs, compile_nets, mark_step
from ssl_lab.engine.feed import Feed
from ssl_lab.engine.folder import LATEST, RunFolder, alone_in, make_way, writes_behind
from ssl_lab.engine.meter import Meter
from ssl_lab.engine.resolve import Timed
from ssl_lab.engine.result import Result
from ssl_lab.engine.runtime import Compile, Runtime
from ssl_lab.engine.scale import scaling
from ssl_lab.engine.signals import StopRequest
from ssl_lab.engine.trackers import Track, chosen
from ssl_lab.errors import Interrupted
from ssl_lab.machine import Precision
from ssl_lab.methods import Method
from ssl_lab.methods.base import Forward
from ssl_lab.optim import SGD, Optimizer, Update, forget
from ssl_lab.schedule import Scalar
from ssl_lab.techniques import Technique, Techniques, together

ROWS = 200  # of metrics in a run, at most


@dataclass
class Trainer:
    """Trains a method on a pool; one object is good for one or many runs.

    Attributes:
        steps, minutes: how long it trains; minutes become steps by timing a few, so that schedules complete.
        out, seed: the folder of the run, and what decides everything that is drawn in it.
        optimizer: what turns gradients into steps, see `ssl_lab.optim`.
        update: a rule of your own for a step, see `ssl_lab.optim.Update`.
        techniques: what else changes how methods train, as objects or as texts, see `ssl_lab.techniques`.
        device, precision: "auto", or e.g. "cuda" and "bf16"; weights and losses stay in float32.
        compile: "on" compiles the nets and, except on a CPU, the views; "auto" does so if it is faster; "off".
        shard: whether each of several ranks holds only a part of every weight, during the run and after it.
        micro_batches: in how many parts a batch passes the net, each normalized by itself; "auto" takes the fastest.
        forward: "split" passes the views that only make targets apart from the others, without gradient; "joint".
        clip: the largest norm that a gradient may have; larger ones are scaled to it.
        batch: which share of the batch a step uses, in (0, 1].
        resume: None starts afresh; "auto" goes on if `out` has a checkpoint; the folder of a run goes on with it.
        evaluations: at how many points of the run accuracy is measured.
        checkpoint_seconds: the time between two checkpoints.
        track: "tensorboard", "mlflow" or "wandb" also gets settings, metrics and summary.
        callbacks: what watches the run; by default a progress bar, and report.html at the end.
        monitors: what else is measured at each evaluation.
        config: the settings to record, in place of the trainer's own.
    """

    steps: int | None = None
    minutes: float | None = None
    out: str | Path = LATEST
    seed: int = 0
    optimizer: Optimizer = field(default_factory=SGD)
    update: Update | None = None
    techniques: Sequence[Technique | str] = ()
    device: str = "auto"
    precision: Precision = "auto"
    compile: Compile = "off"
    shard: bool = False
    micro_batches: int | Literal["auto"] = 1
    forward: Forward = "joint"
    clip: Scalar | None = None
    batch: Scalar = 1.0
    resume: str | Path | None = None
    evaluations: int = 10
    checkpoint_seconds: float = 60.0
    track: Track | None = None
    callbacks: Sequence[Callback] | None = None
    monitors: Sequence[evaluate.Monitor] = ()
    config: Mapping[str, Any] | None = None

    def fit(self, method: Method, pool: Pool, labeled: int = 64, unlabeled: int = 448) -> Result:
        """Trains `method` in place with batches of `labeled` and `unlabeled` images (over all ranks).

        Raises UsageError for bad settings, NonFiniteLossError when the loss is NaN or infinite, Interrupted
        after a signal, once the checkpoint is saved.
        """
        techniques, runtime = self.begun(method, pool)
        style = pool.style
        work = f" in steps of {labeled} labeled and {unlabeled} unlabeled images of {style.height} x {style.width}"
        explaining = runtime.explaining_failures(work, min(style.height, style.width))
        with explaining, ExitStack() as until_the_end:
            saved = runtime.from_first(lambda: checkpoint.saved(self.folder / "checkpoint.pt", self.resume))
            if self.resume is None:
                runtime.from_first(lambda: make_way(self.folder))
            runtime.from_first(lambda: until_the_end.enter_context(alone_in(self.folder)))
            if saved and self.precision == "auto":
                runtime = replace(runtime, precision=saved["precision"])
            return Run(self, techniques, runtime, method, pool, labeled, unlabeled, saved).train()

    def begun(self, method: Method, pool: Pool) -> tuple[Techniques, Runtime]:
        """What trains, and where, once settings, method, pool and techniques are known to fit each other."""
        check_settings(self)
        techniques = together(self.techniques)
        if method.classifies:
            check_classes(method, pool)
        runtime = Runtime.start(self.device, self.precision, self.shard)
        techniques.check(method, pool, self.update, self.shard and runtime.world > 1)
        for each in techniques.given:
            each.check_optimizer(self.optimizer)
        return techniques, runtime

    def seconds_of_step(self, method: Method, pool: Pool, labeled: int, unlabeled: int) -> float:
        """Seconds of a step of `fit` here, after one that sets up kernels: the least of two, or of up to nine within a
        second. It writes no file, but trains the method by all of them. Arguments and UsageError as of `fit`."""
        trainer, laps = replace(self, steps=1, minutes=None), list[float]()
        run = Run(trainer, *trainer.begun(method, pool), method, pool, labeled, unlabeled, None)
        method.train()
        while len(laps) < 3 or (len(laps) < 10 and sum(laps[1:]) < 1):
            begun = time.perf_counter()
            run.step(At(799 + len(laps), 1000, self.seed), run.micro_batches).total.item()  # late, as `Timed` has it
            laps.append(time.perf_counter() - begun)
        return min(laps[1:])

    @property
    def folder(self) -> Path:
        """Where this run reads and writes."""
        return Path(self.out if self.resume in (None, "auto") else str(self.resume))


class Run:
    """One run of a trainer: everything that `fit` sets up, and the loop."""

    def __init__(self, trainer: Trainer, techniques: Techniques, runtime: Runtime, method: Method, pool: Pool,
                 labeled: int, unlabeled: int, saved: dict[str, Any] | None) -> None:
        self.trainer, self.techniques, self.runtime, self.pool = trainer, techniques, runtime, pool
        self.folder = RunFolder(trainer.folder, writes=runtime.main, behind=writes_behind(runtime.device))
        parts = 1 if trainer.micro_batches == "auto" else trainer.micro_batches
        self.plain, self.method = method, techniques.around(method, pool, trainer.seed)
        compile = saved["config"]["compile"] if saved and trainer.compile == "auto" else trainer.compile
        self.feed = Feed(techniques.pool(pool, trainer.seed), self.method.views, labeled, unlabeled, trainer.seed,
                         runtime.device, runtime.world, parts, trainer.batch, compile != "off")
        self.method.set_forward(trainer.forward)
        self.graphs = compile != "off" and as_graphs(runtime, self.method, pool.style, self.feed)
        self.forward = runtime.wrap(self.method)
        if compile != "off":
            compile_nets(self.method, self.graphs)
        self.update = trainer.update or techniques.update(self.method, runtime.device, trainer.seed)
        self._begin_optimizer()
        self.meter, self.start, self.seconds = Meter(), 0, 0.0
        timed = Timed(trainer, runtime, self.plain, self.method, pool, self.feed, self.step, compile)
        if timed.settle(saved):
            self._begin_optimizer()
        self.micro_batches, self.steps, self.compile = timed.micro_batches, timed.steps, timed.compile
        self.config = records.config_of(self, labeled, unlabeled)
        self.manifest = pool.manifest()
        self.learned = pool.class_names if method.classifies else ()
        if saved:
            records.restore(self, saved)
        self.log_every = -(-self.steps // ROWS)
        self.evaluate_every = self.log_every * max(1, self.steps // (self.log_every * trainer.evaluations))

    def _begin_optimizer(self) -> None:
        self.optimizer = self.trainer.optimizer.build(self.method)
        self.scale = scaling(self.runtime, self.optimizer)

    def train(self) -> Result:
        """All steps that are left, and what the run leaves."""
        trainer, runtime = self.trainer, self.runtime
        records.begin(self)
        callbacks = Together(chosen(trainer.callbacks, trainer.track) if runtime.main else [])
        with StopRequest() as stop, callbacks as watching, self.folder.naming_last_checkpoint():
            watching.start(self.plain.name, self.folder.path, self.start, self.steps)
            begun, saved_at = time.perf_counter() - self.seconds, time.perf_counter()
            self.method.train()
            for step in range(self.start, self.steps):
                at = At(step, self.steps, trainer.seed, runtime.rank, runtime.world)
                loss = self.step(at, self.micro_batches)
                self.meter.add(step, loss)
                done = step + 1
                watching.step(done)
                row = self._row(done, at)
                self.seconds = time.perf_counter() - begun
                if row:
                    row |= {"step": done, "seconds": self.seconds}
                    self.folder.append(row)
                    watching.row(row)
                asked, due = runtime.any(stop.asked, time.perf_counter() - saved_at > trainer.checkpoint_seconds)
                if asked or due or done == self.steps:
                    records.save(self, done)
                    saved_at = time.perf_counter()
                if asked:
                    self.folder.written()
                if asked and done < self.steps:
                    raise Interrupted(f"stopped at step {done} of {self.steps}; {self.folder.checkpoint} is saved, "
                                      "go on with --resume auto")
            result = records.finish(self)
            watching.finish(result.out, self.pool)
            return result

    def step(self, at: At, micro_batches: int) -> Loss:
        """One step of training."""
        if self.graphs:
            mark_step()
        self.trainer.optimizer.set(self.optimizer, at)
        parts = self.feed(at).chunk(micro_batches)
        clip = None if self.trainer.clip is None else at.value(self.trainer.clip)
        closure = StepClosure(self.forward, self.optimizer, self.runtime, parts, at, clip, scale=self.scale)
        loss = returned(self.update(closure, self.optimizer, at), getattr(self.update, "name", "update"))
        if self.scale is not None:
            self.scale.update()
        self.runtime.share_statistics(self.method)  # before averages and teachers take them over
        self.method.after_step(at)
        for edit in self.method.edited():
            forget(self.optimizer, *(edit if isinstance(edit, tuple) else (edit,)))
        return loss

    def _row(self, done: int, at: At) -> dict[str, float]:
        """The metrics that are due after `done` steps, perhaps none."""
        last = done == self.steps
        if done % self.log_every and not last:
            return {}
        row = {"step": done, "seconds": 0.0, **self.meter.mean(self.runtime), "lr": at.value(self.trainer.optimizer.lr)}
        if done % self.evaluate_every == 0 or last:
            most = evaluate.worth_measuring(self.feed.images_per_step * self.evaluate_every)
            row |= evaluate.measure(self.method, self.pool, self.runtime, dict([evaluate.monitored(self.pool, most)]),
                                    self.trainer.monitors)
        return row
