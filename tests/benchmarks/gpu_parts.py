"""The parts of `gpu.py`, those of `gpu_views.py` among them: each yields rows of what it measures."""

from __future__ import annotations

import json
import os
import platform
import runpy
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from gpu_views import Row, compiled_views, count_launches, views
from safetensors.torch import load_file
from usual import FixMatchStep, SimCLRStep

import ssl_lab as sl
from ssl_lab import build
from ssl_lab.bench.measure import Spread, flops, in_turn, seconds, waiting
from ssl_lab.bench.step import Step, random_pool
from ssl_lab.engine import compiled
from ssl_lab.machine import TYPES, matmul_tflops

if TYPE_CHECKING:
    from gpu import Bench

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent.parent
DATA = ROOT / "data"
GPU_TESTS = "tests/test_dense_views.py", "tests/test_bench.py", "tests/test_compiled.py"


def command(*arguments: object, limit: float) -> subprocess.CompletedProcess[str]:
    """A Python command in the checkout; RuntimeError has its last words."""
    done = subprocess.run([sys.executable, *map(str, arguments)], cwd=ROOT, timeout=limit, text=True,
                          capture_output=True, env=surroundings())
    if done.returncode:
        raise RuntimeError(f"exit status {done.returncode}: {(done.stdout + done.stderr)[-300:]}")
    return done


def surroundings() -> dict[str, str]:
    """The environment of a process that is to find this package, and what else this one finds."""
    return os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))}


def machine(bench: Bench) -> Iterator[Row]:
    runtime, tiny = bench.runtime, bench.tiny
    card = torch.cuda.get_device_name(runtime.device) if runtime.device.type == "cuda" else platform.processor()
    yield "device", card or str(runtime.device), f"torch {torch.__version__}, {os.cpu_count()} processors"
    yield "precision", runtime.precision, runtime.reason
    for name in dict.fromkeys(("fp32", "bf16", runtime.precision)):
        speed = matmul_tflops(runtime.device, TYPES[name], 128 if tiny else 8192, 0.01 if tiny else 1.0)
        yield f"matrix product, {name}, TFLOP/s", speed, "the peak that steps are compared with"


def tests(bench: Bench) -> Iterator[Row]:
    """Those that need a GPU, and the views' launches."""
    done = command("-m", "pytest", "-p", "no:cacheprovider", "-p", "no:benchmark", "-k",
                   "on_a_gpu or waits_for_the_gpu", *GPU_TESTS[: 1 if bench.tiny else None], limit=bench.left)
    yield "tests that need a GPU", done.stdout.strip().splitlines()[-1], "skipped where there is none"


def fixmatch(bench: Bench) -> Iterator[Row]:
    """WRN-28-2, 64 labeled and 448 unlabeled images of 32 px."""
    net, labeled, unlabeled, side = ("tiny_4", 4, 8, 8) if bench.tiny else ("wrn_28_2", 64, 448, 32)
    pool = random_pool(side, labeled + unlabeled)
    new = partial(sl.net, net, classes=10, style=pool.style)
    def usual(workers: int | None) -> FixMatchStep:
        return FixMatchStep(new(), pool, labeled, unlabeled, bench.runtime, workers)

    yield from measured(bench, "fixmatch", f"FixMatch, {net}", pool, labeled, unlabeled, new, {
        "as usual, Pillow in workers": partial(usual, workers(bench)),
        "as usual, torchvision v2 on the device": partial(usual, None)})


def simclr(bench: Bench) -> Iterator[Row]:
    """ResNet-18 and ResNet-50, images of 32 and of 224 px."""
    sizes = [("tiny_4", 8, 8)] if bench.tiny else [
        ("resnet18", 32, 512), ("timm/resnet18", 224, 256), ("resnet50", 32, 256), ("timm/resnet50", 224, 128)]
    for net, side, rows in sizes:
        pool = random_pool(side, 2 * rows)
        new = partial(sl.net, net, classes=10, style=pool.style)
        yield from measured(bench, "simclr", f"SimCLR, {net}, {side} px", pool, 0, rows, new, {
            "as usual, Pillow in workers": partial(lambda new, pool, rows: SimCLRStep(
                new(), pool, rows, bench.runtime, workers(bench)), new, pool, rows)})


def compiled_nets(bench: Bench) -> Iterator[Row]:
    """FixMatch with a small net, as it is, with its net and its views compiled, and the net as CUDA graphs; in small
    nets are only traced."""
    net, labeled, unlabeled, side = ("tiny_4", 4, 8, 8) if bench.tiny else ("tiny_16", 32, 224, 32)
    pool = random_pool(side, labeled + unlabeled)

    def step(graphs: bool | None) -> Step:
        method = build.method("fixmatch", sl.net(net, classes=10, style=pool.style), pool, {})
        made = Step(method, pool, labeled, unlabeled, bench.runtime, 1, graphs is not None and not bench.tiny)
        compiled.uncompile(made.method)
        made.graphs = graphs is True and bench.runtime.device.type == "cuda"
        if graphs is not None:
            compiled.compile_nets(made.method, graphs, "eager" if bench.tiny else "inductor")
        return made

    plain = 0.0
    for name, graphs in (("as it is", None), ("compiled", False), ("as CUDA graphs", True)):
        try:
            made = step(graphs)
            first = seconds(lambda made=made: made.take(1), waiting(bench.runtime.device))
            for _ in range(1 if bench.tiny else 3):
                made()
            took = Spread.of([made()[0] for _ in range(2 * bench.repeats)]).median
        except TimeoutError:
            raise
        except Exception as error:
            yield f"FixMatch, {net}, {name}", "failed", " ".join(str(error).split())[:200]
            continue
        plain = plain or took
        name += " (no GPU: none)" if graphs and not made.graphs else ""
        yield (f"FixMatch, {net}, {name}: images/s", made.feed.images_per_step / took,
               f"{1e3 * took:.2f} ms a step, {plain / took:.2f} times as fast; the first took {first:.1f} s")


def measured(bench: Bench, method: str, what: str, pool: sl.Pool, labeled: int, unlabeled: int,
             new: Callable[[], sl.Net], usual: dict[str, Callable[[], Callable[[], float]]]) -> Iterator[Row]:
    """Our step, and then the usual ones; what one of them cannot do is a row."""
    took, rows = ours(bench, method, pool, labeled, unlabeled, new)
    for name, value, note in rows:
        yield f"{what}: {name}", value, note
    images = rows[0][1] * took
    for name, make in usual.items():
        try:
            laps = in_turn({name: partial(seconds, make(), waiting(bench.runtime.device))}, bench.repeats,
                           1 if bench.tiny else 2)
        except TimeoutError:
            raise
        except Exception as error:
            yield f"{what}, {name}", "failed", " ".join(str(error).split())[:200]
            continue
        slow = Spread.of(laps[name]).median
        yield f"{what}, {name}: images/s", images / slow, f"ours is {slow / took:.1f} times as fast"


def ours(bench: Bench, method: str, pool: sl.Pool, labeled: int, unlabeled: int,
         new: Callable[[], sl.Net]) -> tuple[float, list[tuple[str, Any, str]]]:
    """The seconds of our step, and what is to be said of it, images per second first."""
    runtime = bench.runtime
    step = Step(build.method(method, new(), pool, {}), pool, labeled, unlabeled, runtime, 1, False)
    for _ in range(1 if bench.tiny else 3):
        step()
    laps = [step() for _ in range(2 * bench.repeats)]
    took = Spread.of([whole for whole, _ in laps]).median
    parts = {name: Spread.of([each[name] for _, each in laps]).median for name in laps[0][1]}
    work = flops(lambda: step.take(1))
    peak = matmul_tflops(runtime.device, TYPES[runtime.precision], 128 if bench.tiny else 8192)
    return took, [
        ("images/s", step.feed.images_per_step / took, f"{1e3 * took:.1f} ms a step, {runtime.precision}"),
        ("of the matrix product's peak", work / took / 1e12 / peak, f"{work / 1e12:.3g} TFLOP"),
        ("share of views", parts["views"] / sum(parts.values()), "each part waited for"),
        ("synchronisations in a step", *synchronisations(step, runtime.device))]


def synchronisations(step: Step, device: torch.device) -> tuple[float | str, str]:
    """How often the host waits for the GPU in a step."""
    if device.type != "cuda":
        return "-", "a GPU's"
    torch.cuda.set_sync_debug_mode("warn")
    try:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            step.take(1)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    said = [str(each.message) for each in caught if "synchroniz" in str(each.message)]
    return len(said), said[0][:120] if said else ""


def workers(bench: Bench) -> int:
    return 0 if bench.tiny else max(1, (os.cpu_count() or 1) - 1)


def child(out: Path, device: str, steps: int, resume: str | None = None) -> Any:
    """A run that writes a checkpoint after each step."""
    pool = sl.load("digits").split(labels=40, seed=0)
    method = sl.FixMatch(sl.net("tiny_8", classes=pool.class_names, style=pool.style, seed=0), threshold=0.5)
    return sl.Trainer(steps=steps, out=out, device=device, checkpoint_seconds=0, callbacks=[], resume=resume,
                      evaluations=1).fit(method, pool, labeled=16, unlabeled=48)


def apart(one: Path, other: Path) -> float:
    """The largest difference of two runs' weights."""
    here, there = (load_file(folder / "model.safetensors") for folder in (one, other))
    return max(float((here[name].double() - there[name].double()).abs().max()) for name in here)


def ranks(bench: Bench) -> Iterator[Row]:
    """A process alone, and one that torchrun starts."""
    steps = 3 if bench.tiny else 40
    with tempfile.TemporaryDirectory() as folder:
        alone, torchrun = Path(folder, "alone"), Path(folder, "torchrun")
        took = seconds(partial(child, alone, bench.device, steps))
        begun = time.monotonic()
        command("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", 1, HERE / "gpu.py", "--child",
                torchrun, "--steps", steps, "--device", bench.device, limit=bench.left)
        yield "largest difference of weights", apart(alone, torchrun), f"after {steps} steps, alone and by torchrun"
        yield "alone, seconds", took, f"by torchrun {time.monotonic() - begun:.1f}, with its start"


def resume(bench: Bench) -> Iterator[Row]:
    """A run that is killed between any two instructions, resumed, and one that nobody stopped."""
    steps = 200 if not bench.tiny else 12
    with tempfile.TemporaryDirectory() as folder:
        whole, cut = Path(folder, "whole"), Path(folder, "cut")
        process = subprocess.Popen([sys.executable, HERE / "gpu.py", "--child", cut, "--steps", str(steps), "--device",
                                    bench.device], cwd=ROOT, env=surroundings())
        try:
            while process.poll() is None and not (cut / "checkpoint.previous.pt").exists():
                time.sleep(0.005)
        finally:
            process.kill()
            process.wait()
        done = torch.load(cut / "checkpoint.pt", weights_only=True, map_location="cpu")["step"]
        child(cut, bench.device, steps, "auto")
        child(whole, bench.device, steps)
        yield f"killed after step {done} of {steps}", process.returncode, "-9 where it was killed in time"
        yield "largest difference of weights, resumed and whole", apart(cut, whole), "0 where it goes on exactly"


def mnist(bench: Bench) -> Iterator[Row]:
    """40 labels, a minute of training."""
    data, flip = ("digits", "auto") if bench.tiny else (packed("mnist"), "off")
    yield recipe(bench, "fixmatch", data, 40, flip=flip)


def rapid(bench: Bench) -> Iterator[Row]:
    """A step, by SGD in parts and by Muon, and three minutes on the part of CIFAR-10 that was taken along."""
    name, labeled, unlabeled, side = ("rapid_4_4_8", 4, 8, 8) if bench.tiny else ("rapid_64_128_256", 64, 256, 32)
    pool = random_pool(side, labeled + unlabeled)
    new = partial(sl.net, name, classes=10, style=pool.style)
    for what, value, note in ours(bench, "labeled_simclr", pool, labeled, unlabeled, new)[1]:
        yield f"{name} by SGD: {what}", value, note
    trainer = sl.Trainer(steps=1, optimizer=sl.optim.MuonNormed(), device=bench.device)
    step = trainer.seconds_of_step(sl.LabeledSimCLR(new()), pool, labeled, unlabeled)
    yield f"{name} by Muon: ms", 1e3 * step, "a step"
    minutes = min(3.0, (bench.left - 20) / 60)
    yield recipe(bench, "rapid", "digits" if bench.tiny else packed("cifar10"), 40 if bench.tiny else 250, minutes)


def recipe(bench: Bench, name: str, data: str, labels: int, minutes: float = 1.0, **settings: Any) -> Row:
    """A recipe's test accuracy."""
    script = runpy.run_path(str(ROOT / "recipes" / f"{name}.py"))
    small = {"steps": 6, "net": "tiny_4"} if bench.tiny else {"minutes": minutes}
    with tempfile.TemporaryDirectory() as folder:
        script["main"](script["Settings"](data=data, labels=labels, out=Path(folder, "run"), device=bench.device,
                                          **small, **settings))
        summary = json.loads(Path(folder, "run", "summary.json").read_text())
    return (f"{Path(data).stem}, {labels} labels: test accuracy", summary["test_accuracy"],
            f"{summary['steps']} steps in {summary['seconds']:.0f} s, {summary['images_per_second']:.0f} images/s")


def packed(name: str) -> str:
    """The data that were taken along, or those of this machine."""
    taken = DATA / f"{name}.npz"
    return str(taken) if taken.exists() else name


PARTS: dict[str, tuple[Callable[[Bench], Iterator[Row]], float]] = {
    "machine": (machine, 30), "launches": (count_launches, 20), "tests": (tests, 75), "fixmatch": (fixmatch, 50),
    "simclr": (simclr, 80), "views": (views, 40), "resume": (resume, 45), "ranks": (ranks, 45), "mnist": (mnist, 80),
    "compiled": (compiled_nets, 75), "rapid": (rapid, 200), "compiled views": (compiled_views, 75)}
"""In the order in which they are run, and for how many seconds at most."""
