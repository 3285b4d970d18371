"""`ssl-lab bench step`: what a training step costs, how near it is to the machine's peak, and where its time goes."""

from __future__ import annotations

import functools
import inspect
import itertools
import json as jsonlib
import runpy
import sys
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import torch
import tyro
from torch import Tensor, nn

import ssl_lab
from ssl_lab import build, methods, texts
from ssl_lab.batch import At, Draw, Loss
from ssl_lab.bench.measure import Clock, Spread, flops, in_turn, peak_memory, seconds, waiting
from ssl_lab.config import Texts
from ssl_lab.data import Pool
from ssl_lab.engine import Feed, Runtime
from ssl_lab.engine.closure import StepClosure
from ssl_lab.engine.compiled import as_graphs, compile_nets, mark_step
from ssl_lab.engine.meter import Meter
from ssl_lab.engine.timing import fastest_micro_batches
from ssl_lab.errors import UsageError
from ssl_lab.machine import TYPES, matmul_tflops
from ssl_lab.methods import Method
from ssl_lab.methods.base import Forward
from ssl_lab.nets import Net, net
from ssl_lab.optim import SGD, Closure
from ssl_lab.report import Column, Table, print_tables
from ssl_lab.techniques import TECHNIQUES, Techniques, together
from ssl_lab.views import View

CLASSES, LABELS = 10, 250
STEPS = 2**20  # of the run from whose beginning the steps are
NONE = Techniques(())
PARTS = ("sampling", "views", "forward without gradient", "forward and backward", "optimizer and EMA", "logging")


class Step:
    """One method's training step, as the trainer takes it: callable, each call is the next step.

    Returns the seconds of the whole step, and those of each of PARTS. On a GPU these are from a step of their own,
    because to time a part is to wait for the device.
    """

    def __init__(self, method: Method, pool: Pool, labeled: int, unlabeled: int, runtime: Runtime,
                 micro_batches: int | Literal["auto"], compile: bool, techniques: Techniques = NONE) -> None:
        techniques.check(method, pool, update=None, sharded=False)
        self.method, self.runtime = techniques.around(method, pool, seed=0).train(), runtime
        method = self.method
        feed = partial(Feed, techniques.pool(pool, seed=0), method.views, labeled, unlabeled, 0, runtime.device,
                       parts=1 if micro_batches == "auto" else micro_batches, compile=compile)
        self.feed = self.timed = feed()
        if runtime.device.type == "cuda":
            self.timed = feed(ahead=False)
        self.wait, self.clock, self.meter, self.steps = waiting(runtime.device), Clock(), Meter(), 0
        for stream in self.timed.streams.values():
            stream.views = {name: self._timed(view) for name, view in stream.views.items()}
        entered, left = map(torch.compiler.disable, (self._entered, self._left))
        for module in method.modules():
            if isinstance(module, Net):
                module.register_forward_pre_hook(entered)
                module.register_forward_hook(left)
        self.graphs = compile and as_graphs(runtime, method, pool.style, self.feed)
        self.forward = runtime.wrap(method)
        if compile:
            compile_nets(method, self.graphs)
        self.update = techniques.update(method, runtime.device, seed=0)
        self.spec = SGD()
        self.optimizer = self.spec.build(method)
        rows = [stream.rows for stream in self.feed.streams.values()]
        self.micro_batches = fastest_micro_batches(rows, runtime, self.take) if micro_batches == "auto" \
            else micro_batches

    def take(self, micro_batches: int, feed: Feed | None = None) -> Loss:
        """The next step, in so many micro-batches. feed: another one than usual."""
        at = At(self.steps, STEPS)
        self.steps += 1
        if self.graphs:
            mark_step()
        self.spec.set(self.optimizer, at)
        with self.clock.part("sampling"):
            parts = (feed or self.feed)(at).chunk(micro_batches)
        closure = StepClosure(self.forward, self.optimizer, self.runtime, parts, at, None)
        with self.clock.part("optimizer and EMA"):
            loss = self.update(_Timed(closure, self.clock), self.optimizer, at)
            self.method.after_step(at)
        with self.clock.part("logging"):  # the trainer reads the numbers once in a hundred steps or so
            self.meter.add(at.step, loss)
        return loss

    def __call__(self) -> tuple[float, dict[str, float]]:
        self.clock.seconds = dict.fromkeys(PARTS, 0.0)
        took = seconds(lambda: self.take(self.micro_batches), self.wait)
        if self.runtime.device.type == "cuda":
            self.clock.seconds, self.clock.wait = dict.fromkeys(PARTS, 0.0), self.wait
            self.take(self.micro_batches, self.timed)
            self.clock.wait = lambda: None
        self.meter.check()
        return took, self.clock.seconds

    def _timed(self, view: View) -> View:
        def timed(images: Tensor, draw: Draw) -> Tensor:
            with self.clock.part("views"):
                return view(images, draw)
        return timed

    def _entered(self, *_: object) -> None:
        if not torch.is_grad_enabled():
            self.clock.enter("forward without gradient")

    def _left(self, *_: object) -> None:
        if not torch.is_grad_enabled():
            self.clock.leave()


class _Timed:
    """A closure whose passes count as such within an update rule."""

    def __init__(self, closure: Closure, clock: Clock) -> None:
        self.closure, self.clock = closure, clock

    def __call__(self) -> Loss:
        with self.clock.part("forward and backward"):
            return self.closure()

    def parts(self, count: int) -> Sequence[Closure]:
        return [_Timed(part, self.clock) for part in self.closure.parts(count)]

    def curvature(self, weights: Sequence[nn.Parameter], direction: Sequence[Tensor]) -> list[Tensor]:
        with self.clock.part("forward and backward"):
            return self.closure.curvature(weights, direction)


def bench_step(method: str = "fixmatch", net: str = "wrn_28_2", labeled: int = 64, unlabeled: int = 448,
               size: int = 32, micro_batches: int | Literal["auto"] = "auto", forward: Forward = "joint",
               compile: bool = False, repeats: int = 5, reference: bool = False, teacher: str | None = None,
               techniques: Annotated[Texts, tyro.conf.arg(name="with")] = (), device: str = "auto",
               json: bool = False) -> list[dict[str, Any]]:
    """Times training steps on random images and prints what they cost; returns the rows of the JSON.

    tflops are those of matrix products and convolutions over the time of the whole step; peak_fraction is of the
    speed of a large matrix product, measured between the steps.

    Args:
        method: name, or several with commas: they take turns, and FixMatch's step is the unit.
        net: name.
        labeled: labeled images per step.
        unlabeled: unlabeled ones.
        size: their side.
        micro_batches: parts of a step, or auto for the fastest number.
        forward: joint or split, see `Method.set_forward`.
        compile: the nets.
        repeats: steps of each, in turn.
        reference: also FixMatch as it is usually written, in turn.
        teacher: the net of those that distill (default: the same as the student's); its share is the forward without
            gradient.
        techniques: also the step of each method with this, as often as you like, such as sam, or several joined by +;
            `all` is each technique alone, but for those that cannot act here, which a note names.
        device: cpu, cuda or auto.
        json: print JSON.
    """
    names = texts.split(method)
    if reference and "fixmatch" not in names:
        raise UsageError(f"--reference is FixMatch as it is usually written; it says nothing of {method}")
    runtime, pool = Runtime.start(device), random_pool(size, labeled + unlabeled)
    steps, rows = {}, {}
    tried = dict.fromkeys(text for given in techniques for text in (TECHNIQUES if given == "all" else [given]))
    for name, given in itertools.product(names, ("", *tried)):
        key = f"{name} with {given}" if given else name
        try:
            steps[key], rows[key] = _prepared(
                name, net, teacher or net, pool, labeled, unlabeled, runtime, micro_batches, forward, compile,
                together([each for each in given.split(" + ") if each]),
                begins=STEPS * 9 // 10 if techniques else 0)  # late, when those act that begin late
        except UsageError as error:
            if not given or given in techniques:
                raise
            print(f"note: {key} is left out: {error}", file=sys.stderr)
    actions: dict[str, Callable[[], Any]] = dict(steps)
    if reference:
        actions["reference"] = _reference(net, pool, labeled, unlabeled, runtime)
    actions["peak"] = functools.partial(matmul_tflops, runtime.device, TYPES[runtime.precision], size=1024, seconds=0.2)
    laps = in_turn(actions, repeats)

    peak = Spread.of(laps["peak"]).median
    other = Spread.of(laps["reference"]).median if reference else None
    unit = Spread.of([took for took, _ in laps["fixmatch"]]).median if "fixmatch" in names else None
    for name, row in rows.items():
        took = Spread.of([whole for whole, _ in laps[name]])
        tflops = row["flops"] / took.median / 1e12
        parts = {part: Spread.of([each[part] for _, each in laps[name]]).median for part in PARTS}
        plain = Spread.of([whole for whole, _ in laps[row["method"].partition(" with ")[0]]]).median
        row |= {"step_ms": 1e3 * took.median, "step_ms_least": 1e3 * took.least, "step_ms_most": 1e3 * took.most,
                "images_per_second": steps[name].feed.images_per_step / took.median, "tflops": tflops,
                "peak_tflops": peak, "peak_fraction": tflops / peak,
                "parts_ms": {part: 1e3 * value for part, value in parts.items()},
                "to_fixmatch": took.median / unit if unit else None,
                "to_plain": took.median / plain if techniques else None,
                "reference_step_ms": 1e3 * other if other and name == "fixmatch" else None,
                "ratio": other / took.median if other and name == "fixmatch" else None}
    found = list(rows.values())
    if json:
        print(jsonlib.dumps(found if len(found) > 1 else found[0], indent=2))
    else:
        _show(found)
    return found


def random_pool(size: int, batch: int) -> Pool:
    """Random images and labels: enough that a step does not find its bytes in the cache."""
    draw = np.random.default_rng(0)
    images = draw.integers(0, 256, (max(batch, LABELS, 2**24 // (3 * size * size)), 3, size, size), dtype=np.uint8)
    return Pool.from_arrays(images, np.arange(len(images)) % CLASSES).split(labels=LABELS)


def _prepared(name: str, net_name: str, teacher: str, pool: Pool, labeled: int, unlabeled: int, runtime: Runtime,
              micro_batches: int | Literal["auto"], forward: Forward, compile: bool,
              techniques: Techniques, begins: int) -> tuple[Step, dict[str, Any]]:
    """The step, and what is known of it before the laps."""
    new = functools.partial(net, classes=CLASSES, style=pool.style)
    needed: dict[str, Callable[[], Any]] = {"teacher": lambda: new(teacher),
                                            "parents": lambda: [[label // 2 for label in range(CLASSES)]]}
    known = inspect.signature(methods.get(name)).parameters
    made = techniques.net(new(net_name), pool, seed=0)
    method = build.method(name, made, pool, {key: make() for key, make in needed.items() if key in known})
    method.set_forward(forward)
    step = Step(method, pool, labeled, unlabeled, runtime, micro_batches, compile, techniques)
    step.steps = begins
    step()  # sets up kernels, and compiles
    memory = peak_memory(step, runtime)
    called = f"{name} with {' + '.join(techniques.texts)}" if techniques.given else name
    return step, {"method": called, "net": net_name, "labeled": labeled, "unlabeled": unlabeled,
                  "size": pool.style.height, "device": str(runtime.device), "precision": runtime.precision,
                  "threads": torch.get_num_threads(), "compile": compile,
                  "forward": forward, "micro_batches": step.micro_batches,
                  "flops": flops(lambda: step.take(step.micro_batches)), "peak_memory_bytes": memory}


def _reference(net_name: str, pool: Pool, labeled: int, unlabeled: int, runtime: Runtime) -> Callable[[], float]:
    """A timed step of tests/benchmarks/reference.py, which is there in a clone of the repository."""
    file = Path(ssl_lab.__file__).parent.parent / "tests" / "benchmarks" / "reference.py"
    if not file.exists():
        raise UsageError(f"--reference needs {file}, which is not installed; run it in a clone of the repository")
    reference = runpy.run_path(str(file))["Reference"]
    step = reference(net(net_name, classes=CLASSES, style=pool.style), pool, labeled, unlabeled, runtime.device)
    return functools.partial(seconds, step, waiting(runtime.device))


def _show(rows: list[dict[str, Any]]) -> None:
    first = rows[0]
    columns = [("ms", "step_ms", ".1f"), ("least", "step_ms_least", ".1f"), ("most", "step_ms_most", ".1f"),
               *([("of the plain", "to_plain", ".2f")] if first["to_plain"] else []),
               *([("of FixMatch", "to_fixmatch", ".2f")] if first["to_fixmatch"] and len(rows) > 1 else []),
               ("images/s", "images_per_second", ".0f"), ("TFLOP/s", "tflops", ".3f"),
               ("of peak", "peak_fraction", ".0%"), ("MB", "peak_memory_mb", ".0f"), ("parts", "micro_batches", "")]
    print_tables(Table(
        f"A step of {first['net']}: {first['labeled']} labeled and {first['unlabeled']} unlabeled images of "
        f"{first['size']} px, {first['forward']}, {first['precision']} on {first['threads']} threads of "
        f"{first['device']}{', compiled' * first['compile']}",
        [Column("method"), *(Column(name, "right", format) for name, _, format in columns)],
        [[_called(row), *((row | {"peak_memory_mb": row["peak_memory_bytes"] / 1e6})[key] for _, key, _ in columns)]
         for row in rows]))
    print_tables(Table("Where the time goes, in ms",
                       [Column("method"), *(Column(part, "right", ".1f") for part in PARTS)],
                       [[_called(row), *row["parts_ms"].values()] for row in rows]))
    for row in rows:
        if row["ratio"] is not None:
            print(f"FixMatch as it is usually written: {row['reference_step_ms']:.0f} ms a step, "
                  f"{row['ratio']:.1f} times as long")


def _called(row: dict[str, Any]) -> str:
    """The method; with techniques, what they add to the plain one above."""
    method, _, techniques = row["method"].partition(" with ")
    return f"+ {techniques}" if techniques else method
