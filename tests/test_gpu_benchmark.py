"""`tests/benchmarks/gpu.py` on a CPU, in small: what is not known to work there would fail on the first GPU."""

import importlib
import json
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from forked import Forked

import ssl_lab as sl

ROOT = Path(__file__).parent.parent
BENCHMARKS = ROOT / "tests" / "benchmarks"
ELSEWHERE = {"tests", "ranks"}  # parts that start this suite and torchrun: run them by hand


@pytest.fixture(scope="module")
def gpu():
    before = [*sys.path]
    sys.path.insert(0, str(BENCHMARKS))
    yield importlib.import_module("gpu")
    sys.path[:] = before


def test_every_part_runs_on_a_cpu(gpu, tmp_path, monkeypatch):
    monkeypatch.setattr(importlib.import_module("gpu_parts"), "subprocess", SimpleNamespace(Popen=Forked))
    parts = [name for name in gpu.PARTS if name not in ELSEWHERE]
    rows = gpu.main(["--device", "cpu", "--tiny", "--out", str(tmp_path), "--parts", ",".join(parts)])
    assert json.loads((tmp_path / "results.json").read_text()) == rows
    assert [row for row in rows if "failed" in (row["what"], row["value"])] == []
    found = {(row["part"], row["what"]): row["value"] for row in rows}
    assert found["launches", "strong, 32 px: operations"] <= 60
    assert found["resume", "largest difference of weights, resumed and whole"] == 0
    assert found["fixmatch", "FixMatch, tiny_4: images/s"] > 0
    assert found["compiled", "FixMatch, tiny_4, as CUDA graphs (no GPU: none): images/s"] > 0
    assert found["compiled views", "simclr, compiled, 16 x 8 px: images/s"] > 0
    assert {row["part"] for row in rows} == {*parts}


def test_it_fits_into_eight_minutes(gpu):
    """What is left to a part is what the others left, whatever it may take; and none is worth less than its limit."""
    assert gpu.SECONDS <= 450
    assert all(gpu.LEAST < limit <= 200 for _, limit in gpu.PARTS.values())


def test_the_tests_that_it_starts_are_there(gpu):
    """By the names that it selects; each file has one that needs a GPU."""
    named = "on_a_gpu", "waits_for_the_gpu"
    for file in gpu.GPU_TESTS:
        text = (ROOT / file).read_text()
        found = [line for line in text.splitlines() if line.startswith("def test_") and any(n in line for n in named)]
        assert found, file
    others = [path for path in (ROOT / "tests").glob("test_*.py") if 'reason="needs a GPU"' in path.read_text()]
    assert {f"tests/{path.name}" for path in others} == {*gpu.GPU_TESTS, "tests/test_gpu_benchmark.py"}


def test_a_part_that_fails_or_takes_too_long_is_a_row(gpu, tmp_path):
    def wrong(bench):
        yield "before", 1.0, ""
        raise SystemExit("out of memory")

    def slow(bench):
        time.sleep(60)
        yield "after", 1.0, ""

    bench = gpu.Bench("cpu", False, tmp_path, 30.0)
    bench.take("wrong", wrong, 10)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(gpu, "LEAST", 0.0)
        bench.take("slow", slow, 0.1)
    bench.begun -= 30
    bench.take("late", wrong, 10)
    rows = [(row["part"], row["what"], row["value"], row["note"]) for row in bench.rows if row["what"] != "seconds"]
    assert rows == [("wrong", "before", 1.0, ""), ("wrong", "failed", "SystemExit", "out of memory"),
                    ("slow", "failed", "TimeoutError", "it took longer than 0 seconds"),
                    ("late", "failed", "TimeoutError", "left out: the time was over")]


def test_what_is_taken_along_is_code_and_small_data(gpu, tmp_path, monkeypatch, capsys):
    draw = np.random.default_rng(0)
    pool = sl.Pool.from_arrays(draw.integers(0, 256, (60, 3, 4, 4), dtype=np.uint8), np.arange(60) % 3,
                               draw.integers(0, 256, (30, 3, 4, 4), dtype=np.uint8), np.arange(30) % 3, ["a", "b", "c"])
    monkeypatch.setattr(sl, "load", lambda name: pool)
    monkeypatch.setattr(gpu, "CIFAR", {"train": 5, "test": 2})
    monkeypatch.setattr(subprocess, "run", lambda *_, **__: subprocess.CompletedProcess([], 0, "pyproject.toml\n"))
    gpu.main(["--pack", str(tmp_path)])
    monkeypatch.undo()
    assert (tmp_path / "pyproject.toml").exists()
    assert "0.0 MB" in capsys.readouterr().out
    whole, some = (sl.load(tmp_path / "data" / f"{name}.npz") for name in ("mnist", "cifar10"))
    assert (len(whole.train), len(whole.test), len(some.train), len(some.test)) == (60, 30, 15, 6)
    assert np.bincount(some.truth[some.test]).tolist() == [2, 2, 2]
    assert some.class_names == ("a", "b", "c")
