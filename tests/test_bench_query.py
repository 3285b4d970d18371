"""`ssl-lab bench query`: what it measures, prints and refuses."""

import importlib.util
import json
import multiprocessing
import os

import numpy as np
import pytest
from forked import CONTEXT

from ssl_lab.active.queries.base import Query
from ssl_lab.bench import query as bench
from ssl_lab.bench.query import Made, Size, bench_query, costs, inputs
from ssl_lab.errors import UsageError

SMALL = Size(n=300, dim=16, classes=3, budget=5)
KEYS = ["query", "n", "dim", "classes", "budget", "seconds", "cpu_seconds", "peak_memory_bytes", "resident_bytes"]
BADGE = "ssl_lab.active.queries.badge:Badge"


class Hungry(Query):
    """Takes about 64 MB, but not on the small pool of the first run."""

    name = "hungry"
    needs = frozenset({"embeddings"})

    def select(self, view, budget, seed):
        if len(view) > 400:
            assert np.ones(8_000_000).sum() == 8_000_000
        return view.candidates[:budget]


class Picky(Query):
    name = "picky"

    def select(self, view, budget, seed):
        raise UsageError("cannot do this")


class Dying(Query):
    name = "dying"

    def select(self, view, budget, seed):
        os._exit(3)


def test_inputs_are_a_function_of_the_seed_and_hold_together():
    a, b, c = (inputs(Made(SMALL, seed), frozenset({"mc_probs"})) for seed in (0, 0, 1))
    for name in ("embeddings", "probs", "mc_probs", "labels"):
        assert np.array_equal(getattr(a, name), getattr(b, name))
    assert not np.array_equal(a.embeddings, c.embeddings)
    logits = a.embeddings.astype(np.float64) @ a.head_weight.T + a.head_bias
    p = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    assert np.allclose(a.probs, p, atol=1e-5)
    assert np.allclose(a.mc_probs.sum(axis=2), 1, atol=1e-5)
    assert len(a.labeled) == 30
    assert (a.probs[a.labeled].argmax(axis=1) == a.labels[a.labeled]).mean() > 0.5
    assert inputs(Made(SMALL)).mc_probs is None


@pytest.mark.parametrize("half", [False, True])
def test_inputs_in_files_are_the_same(half, tmp_path):
    needs = frozenset({"view_probs"})
    first, again = (inputs(Made(SMALL, 1, tmp_path, half), needs) for _ in range(2))
    inside = inputs(Made(SMALL, 1, half=half), needs)
    for view in (first, again):
        assert isinstance(view.embeddings, np.memmap)
        assert view.embeddings.dtype == (np.float16 if half else np.float32)
        for name in ("embeddings", "probs", "mc_probs", "view_probs", "predicted_loss", "labels", "head_weight"):
            assert np.array_equal(getattr(view, name), getattr(inside, name)), name


def test_table(capsys, monkeypatch):
    monkeypatch.setattr(bench, "costs", lambda *_: [
        dict(zip([*KEYS, "peer", "peer_seconds"], values, strict=True)) for values in (
            ("badge", 300, 16, 3, 5, 0.5, 0.25, 2_000_000, 9_000_000, "Badge", 10.0),
            ("bait", 300, 16, 3, 5, *[None] * 6))])
    bench_query(300, 16, 3, 5, queries="badge,bait", peers=True)
    lines = capsys.readouterr().out.splitlines()
    assert "300 rows, 16 features, 3 classes, budget 5" in lines[0]
    assert next(line for line in lines if "badge" in line).split() == ["badge", "0.50", "0.25", "2", "Badge", "10.00",
                                                                         "20.0"]
    assert next(line for line in lines if "bait" in line).split() == ["bait"] + ["\N{EN DASH}"] * 6


@pytest.mark.skipif(not os.path.exists("/proc/self/clear_refs"), reason="only Linux tells a process's peak of memory")
def test_json_of_one_that_takes_memory_and_one_that_dies(capsys, monkeypatch, tmp_path):
    monkeypatch.setattr(multiprocessing, "get_context", lambda method: CONTEXT)
    bench_query(2000, 16, 3, 5, queries=f"{__name__}:Hungry, {__name__}:Dying", json=True, files=tmp_path, half=True)
    assert not list(tmp_path.iterdir())
    output = capsys.readouterr()
    hungry, dying = json.loads(output.out)
    assert list(hungry) == list(dying) == KEYS
    assert (hungry["query"], *(hungry[key] for key in KEYS[1:5])) == ("hungry", 2000, 16, 3, 5)
    assert hungry["seconds"] > 0
    assert hungry["cpu_seconds"] > 0
    assert 60e6 < hungry["peak_memory_bytes"] < 90e6
    assert hungry["resident_bytes"] > hungry["peak_memory_bytes"]
    assert (dying["query"], dying["seconds"], dying["peak_memory_bytes"]) == ("dying", None, None)
    assert "status 3" in output.err


def test_what_a_query_cannot_do_is_said():
    here, there = multiprocessing.Pipe()
    bench._run(there, f"{__name__}:Picky", Made(SMALL), peer=False)
    assert here.recv() == "cannot do this"
    bench._run(there, BADGE, Made(SMALL), peer=False)
    assert here.recv().seconds > 0


@pytest.mark.skipif(importlib.util.find_spec("skactiveml") is not None, reason="scikit-activeml is installed")
def test_peers_say_how_to_get_them():
    with pytest.raises(UsageError, match="pip install scikit-activeml"):
        costs(SMALL, [BADGE], peers=True, seed=0)


@pytest.mark.skipif(importlib.util.find_spec("skactiveml") is None, reason="scikit-activeml is not installed")
@pytest.mark.parametrize("name", sorted(bench.PEERS))
def test_peers_run(name):
    assert bench._peer(name, inputs(Made(SMALL)), 5, 0).seconds > 0


def test_sizes_that_cannot_be():
    with pytest.raises(UsageError, match="cannot choose 300 of 300 rows"):
        costs(Size(300, 16, 3, 300), [BADGE], peers=False, seed=0)
    with pytest.raises(UsageError, match="at least 1"):
        costs(Size(300, 0, 3, 5), [BADGE], peers=False, seed=0)


def test_a_query_alone_is_one_that_needs_no_arguments():
    assert bench._needs_nothing(BADGE)
    assert not bench._needs_nothing(f"{__name__}:Argued")


class Argued(Query):
    def __init__(self, inner):
        self.inner = inner
