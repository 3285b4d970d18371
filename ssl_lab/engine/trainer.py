"""The loop. Every method, every update rule, any number of ranks:

    for step in start .. steps:
        set learning rate and weight decay of this step
        batch = feed(step)                          # indices -> bytes -> device -> views
        closure = forward and backward of the method over the batch, in micro-batches
        loss = update(closure)                      # plain: closure(), optimizer.step()
        method.after_step(step)                     # averages, queues, thresholds
        every log_every steps:     a row of metrics, means over the steps since the last
        every evaluate_every:      accuracy of the averaged and of the plain weights
        now and then, and at the end or a signal: a checkpoint
    test the predictor once, write the summary

All randomness is a function of (seed, purpose, step), so a run resumed from a checkpoint is the run that was
never stopped.
"""

from __future__ import annotations

import copy
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch

from ssl_lab.batch import At, Loss, generator, seed_of
from ssl_lab.data import Pool
from ssl_lab.engine import checkpoint, evaluate
from ssl_lab.engine.callbacks import Callback, ShowProgress, TensorBoard
from ssl_lab.engine.closure import StepClosure
from ssl_lab.engine.feed import Feed
from ssl_lab.engine.folder import RunFolder, check_same
from ssl_lab.engine.meter import Meter
from ssl_lab.engine.runtime import Precision, Runtime
from ssl_lab.engine.signals import StopRequest
from ssl_lab.errors import Interrupted, NonFiniteLossError, UsageError
from ssl_lab.methods import Method
from ssl_lab.nets import Net
from ssl_lab.optim import SGD, Optimizer, Update, plain

SELECTION = "weights of the last step, averaged by the method's EMA; fixed before the run"
MONITORED = 2000  # test images that a curve is drawn from where there is no validation split


@dataclass(frozen=True)
class Result:
    """What a run gave. summary: what summary.json holds. out: the run's folder."""

    summary: Mapping[str, Any]
    method: Method
    out: Path

    @property
    def test_accuracy(self) -> float:
        """Share of correct predictions on the test split, in [0, 1]; NaN without one."""
        value = self.summary["test_accuracy"]
        return float("nan") if value is None else float(value)

    def __str__(self) -> str:
        accuracies = "  ".join(f"{split} {self.summary[f'{split}_accuracy']:.2%}" for split in ("valid", "test")
                               if self.summary[f"{split}_accuracy"] is not None)
        return (f"{self.summary['method']} on {self.summary['data']} with {self.summary['labels']} labels: "
                f"{accuracies}  ({self.summary['steps']} steps, {self.summary['seconds']:.0f} s; {self.out})")


@dataclass
class Trainer:
    """Trains a method on a pool; one object is good for one or many runs.

    steps or minutes: how long; minutes are turned into steps by timing a few, so that schedules complete.
    out: folder of the run. seed: of everything drawn in training. resume: None starts afresh, "auto" goes on
    if `out` has a checkpoint, a folder continues that run. micro_batches: parts of a step that pass the net
    one after another, each with its own batch statistics, their gradients averaged. clip: largest norm of the
    gradient. compile: "on" compiles the method's nets. evaluations: points of the accuracy curve.
    config: settings to record, in place of the trainer's own.
    """

    steps: int | None = None
    minutes: float | None = None
    out: str | Path = "runs/latest"
    seed: int = 0
    optimizer: Optimizer = field(default_factory=SGD)
    update: Update = plain
    device: str = "auto"
    precision: Precision = "auto"
    compile: Literal["off", "on"] = "off"
    micro_batches: int = 1
    clip: float | None = None
    resume: str | Path | None = None
    evaluations: int = 10
    checkpoint_seconds: float = 60.0
    tensorboard: bool = False
    callbacks: Sequence[Callback] | None = None
    config: Mapping[str, Any] | None = None

    def fit(self, method: Method, pool: Pool, labeled: int = 64, unlabeled: int = 448) -> Result:
        """Trains `method` in place with batches of `labeled` and `unlabeled` images (over all ranks).

        Raises UsageError for bad settings, NonFiniteLossError when the loss is NaN or infinite, Interrupted
        after a signal, once the checkpoint is saved.
        """
        if (self.steps is None) == (self.minutes is None):
            raise UsageError(f"give either steps or minutes, not steps={self.steps} and minutes={self.minutes}")
        if (self.steps is not None and self.steps < 1) or (self.minutes is not None and self.minutes <= 0):
            raise UsageError(f"steps={self.steps}, minutes={self.minutes}: a run needs a positive length")
        saved = self._saved()
        precision = saved["precision"] if saved and self.precision == "auto" else self.precision
        runtime = Runtime.start(self.device, precision)
        try:
            return _Run(self, runtime, method, pool, labeled, unlabeled, saved).train()
        finally:
            runtime.stop()

    def _saved(self) -> dict[str, Any] | None:
        """The checkpoint to go on from, if any."""
        if self.resume is None:
            return None
        if self.resume == "auto":
            path = Path(self.out) / "checkpoint.pt"
            return checkpoint.load(path) if path.exists() else None
        return checkpoint.load(Path(self.resume) / "checkpoint.pt")


class _Run:
    """One run of a trainer: everything that `fit` sets up, and the loop."""

    def __init__(self, trainer: Trainer, runtime: Runtime, method: Method, pool: Pool, labeled: int,
                 unlabeled: int, saved: dict[str, Any] | None) -> None:
        self.trainer, self.runtime, self.method, self.pool = trainer, runtime, method, pool
        self.folder = RunFolder(Path(trainer.out), writes=runtime.main)
        self.feed = Feed(pool, method.views, labeled, unlabeled, trainer.seed, runtime.device, runtime.world)
        for stream in self.feed.streams.values():
            if stream.rows % trainer.micro_batches:
                raise UsageError(f"{stream.rows} {stream.kind} images on each of {runtime.world} ranks do not divide "
                                 f"into {trainer.micro_batches} micro-batches")
        method.to(runtime.device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        if trainer.compile == "on":
            for net in method.modules():
                if isinstance(net, Net):
                    net.compile()
        self.forward = runtime.wrap(method)
        self.optimizer = trainer.optimizer.build(method)
        self.meter = Meter()
        self.start, self.seconds = 0, 0.0
        if saved:
            self.steps = int(saved["steps"])
        elif trainer.steps is not None:
            self.steps = trainer.steps
        else:
            self.steps = self._steps_for(60 * float(trainer.minutes or 0))
        self.config = self._config(labeled, unlabeled)
        self.manifest = pool.manifest()
        if saved:
            self._restore(saved)
        self.log_every = -(-self.steps // 200)
        self.evaluate_every = self.log_every * max(1, self.steps // (self.log_every * trainer.evaluations))

    def _config(self, labeled: int, unlabeled: int) -> dict[str, Any]:
        """The settings as they were resolved: the same ones repeat the run."""
        own = {"method": self.method.name, "seed": self.trainer.seed, "labeled": labeled, "unlabeled": unlabeled,
               "micro_batches": self.trainer.micro_batches, "optimizer": repr(self.trainer.optimizer),
               "compile": self.trainer.compile}
        given = dict(self.trainer.config) if self.trainer.config is not None else own
        return given | {"steps": self.steps, "minutes": None, "precision": self.runtime.precision}

    def _restore(self, saved: dict[str, Any]) -> None:
        where = Path(self.trainer.out if self.trainer.resume == "auto" else str(self.trainer.resume))
        if self.trainer.steps not in (None, self.steps):
            check_same({"steps": self.steps}, {"steps": self.trainer.steps}, where)
        check_same(saved["config"], self.config, where)
        check_same({"data": saved["manifest"]}, {"data": self.manifest["hash"]}, where)
        self.method.load_state_dict(saved["method"])
        self.optimizer.load_state_dict(saved["optimizer"])
        self.meter.load(saved["meter"])
        self.start, self.seconds = int(saved["step"]), float(saved["seconds"])

    def _steps_for(self, seconds: float) -> int:
        """How many steps fit into `seconds`, evaluations included; leaves the method as it was."""
        before = copy.deepcopy(self.method.state_dict())
        at, begun = At(0, 1, self.trainer.seed, self.runtime.rank, self.runtime.world), time.perf_counter()
        self._step(at)  # the first step sets up kernels and compiles
        laps: list[float] = []
        while len(laps) < 3 or (sum(laps) < min(5.0, seconds / 20) and len(laps) < 50):
            lap = time.perf_counter()
            self._step(at).total.item()
            laps.append(time.perf_counter() - lap)
        sample = self.pool.test[:256]
        lap = time.perf_counter()
        evaluate.accuracy(self.method.predictor(), self.pool, sample, self.runtime)
        per_image = (time.perf_counter() - lap) / max(1, len(sample))
        images = 2 * len(self._monitored()[1]) * self.trainer.evaluations + 2 * len(self.pool.test)
        self.method.load_state_dict(before)
        self.optimizer = self.trainer.optimizer.build(self.method)
        left = seconds - (time.perf_counter() - begun) - per_image * images
        steps = torch.tensor(int(left / (sum(laps) / len(laps))), device=self.runtime.device)
        return max(1, int(self.runtime.total(steps) // self.runtime.world))

    def train(self) -> Result:
        trainer, runtime = self.trainer, self.runtime
        self.folder.begin(self.config, self.start)
        if runtime.main:
            self.pool.write_manifest(self.folder.path / "split.json")
        callbacks = list(trainer.callbacks if trainer.callbacks is not None else [ShowProgress()])
        if trainer.tensorboard:
            callbacks.append(TensorBoard())
        with ExitStack() as stack:
            stop = stack.enter_context(StopRequest())
            watching = [stack.enter_context(callback) for callback in callbacks] if runtime.main else []
            for callback in watching:
                callback.start(self.method.name, self.folder.path, self.start, self.steps)
            begun, saved_at = time.perf_counter() - self.seconds, time.perf_counter()
            self.method.train()
            for step in range(self.start, self.steps):
                at = At(step, self.steps, trainer.seed, runtime.rank, runtime.world)
                loss = self._step(at)
                self.meter.add(step, loss.detached())
                done = step + 1
                for callback in watching:
                    callback.step(done)
                row = self._row(done, at)
                self.seconds = time.perf_counter() - begun
                if row:
                    row |= {"step": done, "seconds": self.seconds}
                    self.folder.append(row)
                    for callback in watching:
                        callback.row(row)
                asked = stop.asked if runtime.world == 1 else bool(row) and runtime.any(stop.asked)
                if asked or done == self.steps or time.perf_counter() - saved_at > trainer.checkpoint_seconds:
                    self._save(done)
                    saved_at = time.perf_counter()
                if asked and done < self.steps:
                    raise Interrupted(f"stopped at step {done} of {self.steps}; {self.folder.checkpoint} is saved, "
                                      "go on with --resume auto")
            return self._finish()

    def _step(self, at: At) -> Loss:
        """One step of training."""
        torch.manual_seed(seed_of(at.seed, "step", at.step, at.rank))  # for dropout and the like inside the nets
        self.trainer.optimizer.set(self.optimizer, at)
        parts = self.feed(at).chunk(self.trainer.micro_batches)
        closure = StepClosure(self.forward, self.optimizer, self.runtime, parts, at, self.trainer.clip)
        loss = self.trainer.update(closure, self.optimizer, at)
        self.method.after_step(at)
        return loss

    def _row(self, done: int, at: At) -> dict[str, float]:
        """The metrics that are due after `done` steps, perhaps none."""
        last = done == self.steps
        if done % self.log_every and not last:
            return {}
        with self._saying_where():
            row = {"step": done, "seconds": 0.0} | self.meter.mean()
        row["lr"] = at.value(self.trainer.optimizer.lr)
        if done % self.evaluate_every == 0 or last:
            split, indices = self._monitored()
            if len(indices):
                row[f"{split}_accuracy"] = self._accuracy(self.method.predictor(), indices)
                row[f"{split}_accuracy_plain"] = self._accuracy(self.method.net, indices)
        return row

    def _monitored(self) -> tuple[str, evaluate.IntArray]:
        """The split that the accuracy curve shows. It chooses nothing."""
        if len(self.pool.valid):
            return "valid", self.pool.valid
        test = self.pool.test
        chosen = torch.randperm(len(test), generator=generator("monitored"))[:MONITORED].sort().values
        return "test", test[chosen.numpy()]

    def _accuracy(self, net: Net, indices: evaluate.IntArray) -> float:
        return evaluate.accuracy(net, self.pool, indices, self.runtime)

    def _save(self, done: int) -> None:
        with self._saying_where():
            state = {"meter": self.meter.state()}
            finite = torch.stack(torch._foreach_norm(list(self.method.parameters()))).isfinite().all()
            if not finite:
                raise NonFiniteLossError(f"weights are not finite after step {done - 1}")
        self.folder.save(state | {"method": self.method.state_dict(), "optimizer": self.optimizer.state_dict(),
                                  "step": done, "steps": self.steps, "seconds": self.seconds, "config": self.config,
                                  "precision": self.runtime.precision, "manifest": self.manifest["hash"]})

    @contextmanager
    def _saying_where(self) -> Iterator[None]:
        try:
            yield
        except NonFiniteLossError as error:
            path = self.folder.checkpoint
            good = f"the last good checkpoint is {path}" if path.exists() else "no checkpoint had been saved yet"
            raise NonFiniteLossError(f"{error}; {good}; a lower learning rate or --precision fp32 may help") from None

    def _finish(self) -> Result:
        pool, predictor = self.pool, self.method.predictor()
        accuracies = {f"{split}_accuracy{suffix}": self._accuracy(net, indices) if len(indices) else None
                      for suffix, net in (("", predictor), ("_plain", self.method.net))
                      for split, indices in (("valid", pool.valid), ("test", pool.test))}
        images = self.feed.images_per_step * self.steps
        summary = {"method": self.method.name, "data": pool.name, "labels": len(pool.labeled),
                   "seed": self.trainer.seed, "steps": self.steps, "seconds": round(self.seconds, 2),
                   "images_per_second": round(images / self.seconds, 1),
                   "peak_memory_bytes": self.runtime.peak_memory_bytes(), **accuracies,
                   "selection": SELECTION, "precision": self.runtime.precision,
                   "device": str(self.runtime.device), "ranks": self.runtime.world, "split": self.manifest["hash"]}
        self.folder.finish(predictor, summary)
        return Result(summary, self.method, self.folder.path)
