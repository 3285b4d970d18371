"""All that is to be measured on a GPU, in one script of at most eight minutes that needs no network.

    python tests/benchmarks/gpu.py --pack FOLDER         # here: the code and small data, at most 50 MB, to take along
    python tests/benchmarks/gpu.py --out RESULTS         # there, in FOLDER, where the packages of pyproject.toml are
    python tests/benchmarks/gpu.py --device cpu --tiny   # everything on a CPU in small, to know that it works

Prints a table, and writes results.json into --out after each part, so that what was measured outlives a run that is
cut off. A part that fails, or takes longer than it may, is a row that says so, and the others go on; when the seconds
are over, what is left says that it was left out. README.md, "On a GPU", has what it measured on an NVIDIA H200.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

ROOT = Path(__file__).resolve().parent.parent.parent
sys.path.insert(0, str(ROOT))  # the package may not be installed where this runs

from gpu_parts import GPU_TESTS, PARTS, child  # noqa: E402, F401
from gpu_views import Row  # noqa: E402

import ssl_lab as sl  # noqa: E402

SECONDS = 450.0  # of all parts together, below eight minutes
LEAST = 5.0  # seconds that a part is worth beginning for
PACKED = 50e6  # bytes
CIFAR = {"train": 1000, "test": 150}  # images of each class that are taken along


@dataclass
class Bench:
    """What is measured, and what it gave."""

    device: str
    tiny: bool
    out: Path
    seconds: float
    begun: float = field(default_factory=time.monotonic)
    rows: list[dict[str, Any]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.runtime = sl.Runtime.start(self.device)
        self.repeats = 1 if self.tiny else 3

    @property
    def left(self) -> float:
        return self.seconds - (time.monotonic() - self.begun)

    def take(self, name: str, part: Callable[[Bench], Iterator[Row]], limit: float) -> None:
        """Runs one part; its failure is a row."""
        began = time.monotonic()
        limit = self.left if self.tiny else min(limit, self.left)  # a CPU's start alone may take as long
        try:
            if limit < LEAST:
                raise TimeoutError("left out: the time was over")
            with within(limit):
                for what, value, note in part(self):
                    self.add(name, what, value, note)
        except KeyboardInterrupt:
            raise
        except BaseException as error:  # SystemExit of a recipe too
            self.add(name, "failed", type(error).__name__, " ".join(str(error).split())[:300])
        self.add(name, "seconds", round(time.monotonic() - began, 1), "")
        with contextlib.suppress(Exception):
            torch.cuda.empty_cache()

    def add(self, part: str, what: str, value: float | str, note: str) -> None:
        row = {"part": part, "what": what, "value": value, "note": note}
        self.rows.append(row)
        shown = f"{value:,.4g}" if isinstance(value, float) else str(value)
        print(f"{part:14}  {what:58}  {shown:>14}  {note}", flush=True)
        self.out.mkdir(parents=True, exist_ok=True)
        (self.out / "results.json").write_text(json.dumps(self.rows, indent=1) + "\n")


@contextlib.contextmanager
def within(limit: float) -> Iterator[None]:
    """TimeoutError where it takes longer."""
    def over(*_: object) -> None:
        raise TimeoutError(f"it took longer than {limit:.0f} seconds")

    before = signal.signal(signal.SIGALRM, over)
    signal.setitimer(signal.ITIMER_REAL, limit)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def pack(folder: Path) -> None:
    """Writes code and data for a machine without a network."""
    listed = subprocess.run(["git", "ls-files"], cwd=ROOT, check=True, capture_output=True, text=True).stdout
    for file in listed.splitlines():
        if (ROOT / file).is_file():
            (folder / file).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / file, folder / file)
    (folder / "data").mkdir(exist_ok=True)
    for name, counts in (("mnist", {}), ("cifar10", CIFAR)):
        pool, arrays = sl.load(name), {}
        rows = {"train": pool.train, "test": pool.test}
        for part, among in rows.items():
            if part in counts:
                among = np.concatenate([among[pool.truth[among] == label][: counts[part]]
                                        for label in range(len(pool.class_names))])
            before = "" if part == "train" else "test_"
            arrays |= {f"{before}images": pool.images.take(among).numpy(), f"{before}labels": pool.truth[among]}
        np.savez_compressed(folder / "data" / f"{name}.npz", class_names=np.array(pool.class_names), **arrays)
    size = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
    print(f"{folder}: {size / 1e6:.1f} MB")
    if size > PACKED:
        raise SystemExit(f"that is more than {PACKED / 1e6:.0f} MB")


def main(arguments: list[str] | None = None) -> list[dict[str, Any]]:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--tiny", action="store_true")
    parser.add_argument("--seconds", type=float, default=SECONDS, help="of all parts together")
    parser.add_argument("--parts", default=",".join(PARTS))
    parser.add_argument("--out", type=Path, default=Path(os.environ.get("OUT", "runs/gpu")))
    parser.add_argument("--pack", type=Path)
    parser.add_argument("--child", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--steps", type=int, help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.pack:
        pack(options.pack)
        return []
    if options.child:
        child(options.child, options.device, options.steps)
        return []
    bench = Bench(options.device, options.tiny, options.out, options.seconds)
    for name in options.parts.split(","):
        bench.take(name, *PARTS[name])
    print(f"\n{'':14}  all in {bench.seconds - bench.left:.0f} seconds; {options.out / 'results.json'}")
    return bench.rows


if __name__ == "__main__":
    main()
