"""Runs of a second or less, and what to compare them by. Also imported by the scripts that tests start."""

import io
import json
import os
import resource
import subprocess
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from PIL import Image
from torch import nn

from ssl_lab.batch import Style
from ssl_lab.data import Pool, load
from ssl_lab.engine import Callback, Result, Trainer
from ssl_lab.methods import FixMatch, Method
from ssl_lab.nets import Net, net

ROOT = Path(__file__).parent.parent
# Arguments of methods: the papers' heads and queues take seconds to minutes, and what is promised holds of any size.
SMALL_PARTS = {
    "vicreg": {"hidden": 32, "dim": 32}, "barlow_twins": {"hidden": 32, "dim": 32}, "byol": {"hidden": 32, "dim": 32},
    "moco_v2": {"queue": 64}, "moco_v3": {"hidden": 32, "dim": 32}, "dino": {"hidden": 32, "outputs": 64},
    "simsiam": {"dim": 32, "bottleneck": 16}, "swav": {"hidden": 32, "dim": 32, "prototypes": 30},
    "nnclr": {"queue": 64, "hidden": 32, "dim": 32, "predictor_hidden": 32},
}

# A header of an .npy file at which NumPy raises neither OSError nor ValueError.
BAD_NPY = b"\x93NUMPY\x01\x00\x76\x00" + b"{'descr': (".ljust(118)


def digits(labels: int = 100) -> Pool:
    return load("digits").split(labels=labels, seed=0)


def digit_files(count: int) -> list[tuple[bytes, str]]:
    """The first digits as PNG files, and their labels."""
    pool = load("digits")
    found = []
    for row in range(count):
        buffer = io.BytesIO()
        Image.fromarray(pool.images.pixels[row, 0]).save(buffer, "PNG")
        found.append((buffer.getvalue(), str(pool.truth[row])))
    return found


@contextmanager
def nothing_waits_for_the_gpu() -> Iterator[None]:
    """Within it an operation that waits for the GPU raises RuntimeError."""
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Synchronization debug mode")  # which torch says once; it sees not all
            torch.cuda.set_sync_debug_mode("error")
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")


class Flat(nn.Module):
    """Without BatchNorm, so that a row's gradient does not depend on its neighbors."""

    def __init__(self, dropout: float = 0.0) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Flatten(), nn.Linear(64, 16), nn.Tanh(), nn.Dropout(dropout))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.layers(x)


def flat_net(dropout: float = 0.0) -> Net:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return Net(Flat(dropout), nn.Linear(16, 10), mean=(0.3,), std=(0.4,))


def tiny_net(pool: Pool) -> Net:
    return net("tiny_8", classes=10, style=pool.style, seed=0)


def train(out: Path, method: Method | None = None, pool: Pool | None = None, labeled: int = 8, unlabeled: int = 16,
          **settings: object) -> Result:
    """FixMatch on a tiny net, or `method`; on the CPU in fp32, without a progress bar."""
    pool = pool or digits()
    method = method or FixMatch(tiny_net(pool), threshold=0.5)
    settings = {"steps": 12, "device": "cpu", "precision": "fp32", "callbacks": []} | settings
    return Trainer(out=out, **settings).fit(method, pool, labeled, unlabeled)


def with_teacher(method, **arguments):
    """What `check_method` calls: the distillation method around a net, with a teacher for the same images."""
    def build(student: Net) -> Method:
        channels = len(student.mean)
        style = Style(channels, 16, 16, mean=(0.5,) * channels, std=(0.25,) * channels)
        return method(student, net("tiny_6", classes=student.classes, style=style, seed=9), **arguments)
    return build


class At(Callback):
    """Calls `action` when `done` steps are done."""

    def __init__(self, done: int, action) -> None:
        self.done, self.action = done, action

    def step(self, done: int) -> None:
        if done == self.done:
            self.action()


def signal_at(done: int, number: int) -> At:
    return At(done, lambda: os.kill(os.getpid(), number))


def rows(out: Path) -> list[dict[str, float]]:
    """The metrics without the clock."""
    lines = (out / "metrics.jsonl").read_text().splitlines()
    return [{key: value for key, value in json.loads(line).items() if key != "seconds"} for line in lines]


def summary(out: Path) -> dict[str, object]:
    """The summary without the clock and the memory."""
    content = json.loads((out / "summary.json").read_text())
    return {key: value for key, value in content.items()
            if key not in ("seconds", "images_per_second", "peak_memory_bytes")}


def assert_same_run(one: Path, other: Path) -> None:
    """Bit-identical weights, optimizer, metrics and accuracies."""
    states = [torch.load(out / "checkpoint.pt", weights_only=True) for out in (one, other)]
    for part in ("method", "optimizer"):
        assert_equal(states[0][part], states[1][part], part)
    assert (one / "model.safetensors").read_bytes() == (other / "model.safetensors").read_bytes()
    assert rows(one) == rows(other)
    assert summary(one) == summary(other)


def assert_equal(one: object, other: object, where: str) -> None:
    if isinstance(one, dict):
        assert one.keys() == other.keys()
        for key in one:
            assert_equal(one[key], other[key], f"{where}.{key}")
    elif isinstance(one, list):
        assert len(one) == len(other)
        for i, (a, b) in enumerate(zip(one, other, strict=True)):
            assert_equal(a, b, f"{where}[{i}]")
    else:
        assert torch.equal(one, other) if isinstance(one, torch.Tensor) else one == other, where


def start(*arguments: object, **environment: str) -> subprocess.Popen:
    """This interpreter on the arguments, in the repository's root, with this folder importable."""
    variables = os.environ | {"PYTHONPATH": os.pathsep.join([str(ROOT), str(Path(__file__).parent)])} | environment
    return subprocess.Popen([sys.executable, *map(str, arguments)], cwd=ROOT, env=variables, text=True,
                            stdout=subprocess.PIPE, stderr=subprocess.PIPE)


def finish(process: subprocess.Popen) -> tuple[int, str, str]:
    """Exit status, stdout, stderr."""
    with process:
        try:
            out, err = process.communicate(timeout=300)
        finally:
            process.terminate()  # torchrun hands it on to its ranks
    return process.returncode, out, err


@contextmanager
def room_for(size: int):
    """No file can grow beyond `size` bytes."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def keeping(file: Path):
    """The plain update rule; the gradients of each step go to `file`."""
    kept = []

    def update(closure, optimizer, at):
        loss = closure()
        kept.append([p.grad.clone() for group in optimizer.param_groups for p in group["params"]])
        torch.save(kept, file)
        optimizer.step()
        return loss

    return update
