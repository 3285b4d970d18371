"""The contract of techniques, to be run on your own too: `check_technique`."""

from __future__ import annotations

import functools
import json
import math
import tempfile
import traceback
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from ssl_lab.batch import At
from ssl_lab.data import Pool
from ssl_lab.engine.callbacks import Callback
from ssl_lab.engine.compiled import compile_as_others
from ssl_lab.engine.trainer import Run, Trainer
from ssl_lab.errors import UsageError
from ssl_lab.methods import KD, FixMatch, Method, SimCLR
from ssl_lab.nets import Net, net
from ssl_lab.techniques import Technique, WeightsTechnique, prepared

STEPS = 4


@functools.cache
def _pool() -> Pool:
    """64 random images of 4 classes, of which some have more labels than others."""
    pixels = np.random.default_rng(0).integers(0, 256, (64, 8, 8), dtype=np.uint8)
    labels = np.arange(64) % 4
    pool = Pool.from_arrays(pixels, labels, test_images=pixels[:8], test_labels=labels[:8], name="contract")
    return pool.split(labeled=[0, 1, 2, 3, 4, 8, 12, 5])


METHODS: Mapping[str, Callable[[Net], Method]] = {
    "fixmatch": lambda net: FixMatch(net, threshold=0.3),
    "simclr": lambda net: SimCLR(net, hidden=8, dim=4),
    "kd": lambda student: KD(student, net("tiny_4", 4, _pool().style, seed=9)),
}


def check_technique(technique: Technique, off: Technique | None = None, *, compile: bool = True,
                    net: str = "tiny_4") -> None:
    """Hold a technique to the contract of `ssl_lab.techniques`.

    Checked in runs of four steps on small random images: it trains FixMatch, SimCLR and KD, or says by UsageError, with
    its name, why not; losses are finite, also in micro-batches and under bf16 autocast; a run that ends in its middle
    and is resumed is the run that was not, weights and all; the object itself is good for many runs; one that keeps
    weights as they are (`writes`) does.

    Example: `check_technique(MySharpness(rho=0.1), off=MySharpness(rho=0))`.

    Args:
        technique: an instance of it.
        off: the technique with arguments that turn it off: it is then the plain run, bit by bit.
        compile: also with compiled nets losses are the same, which takes seconds.
        net: the name of one that it can act on.

    Raises:
        AssertionError: where it breaks the contract; the message says how.

    >>> sl.testing.check_technique(sl.Temperature(2.0), off=sl.Temperature(1.0), compile=False)  # it holds
    """
    name = type(technique).__name__
    for attribute in ("kind", "name", "paper", "arxiv"):
        assert hasattr(technique, attribute), f"{name}: it has no `{attribute}`, which `ssl-lab list` prints"
    with tempfile.TemporaryDirectory() as folder:
        method = _check(technique, off, name, net, Path(folder))
    if compile:
        _check_compiled(method, technique, name)


class _Trains(NamedTuple):
    """What is trained: the name of a method, and that of its net."""

    method: str
    net: str

    def __str__(self) -> str:
        return self.method

    def __call__(self, techniques: Sequence[Technique]) -> Method:
        pool = _pool()
        return METHODS[self.method](prepared(net(self.net, 4, pool.style), techniques, pool))


def _check(technique: Technique, off: Technique | None, name: str, net: str, out: Path) -> _Trains:
    """Returns a method that it trains."""
    before = vars(technique).keys() | set()
    refused, said = {}, ""
    for method in (_Trains(each, net) for each in METHODS):
        try:
            _last_step(method, technique)
        except UsageError as error:
            refused[method] = str(error)
        except AssertionError:
            raise
        except Exception as error:
            place = traceback.extract_tb(error.__traceback__)[-1]
            what = f"{type(error).__name__} {error}, {place.filename}, line {place.lineno}"
            raise AssertionError(f"{name}: with {method} it fails ({what}). "
                                 "A technique is for any method: SimCLR has no labeled images, KD a teacher. Where it "
                                 "cannot act, its `check` says so by UsageError") from error
    for method, said in refused.items():
        assert technique.name in said or name in said, f"{name}: with {method} it fails without its name: {said}"
    trained = [method for each in METHODS if (method := _Trains(each, net)) not in refused]
    assert trained, f"{name}: it trains none of {', '.join(METHODS)}: {said}"
    method = trained[0]
    _last_step(method, technique, micro_batches=2)
    _last_step(method, technique, precision="bf16")
    whole = _run(out / "whole", method, technique)
    with suppress(_StoppedError):
        _run(out / "cut", method, technique, checkpoint_seconds=0, callbacks=[_Stop()])
    resumed = _run(out / "cut", method, technique, resume="auto")
    if resumed != whole:
        again = _run(out / "again", method, technique)
        assert again == whole, (f"{name}: two runs of {method} with one seed differ: draw by the seed that is given, "
                                "generator(seed, ...) of ssl_lab.seeds or np.random.default_rng(seed), or by at.draw")
        raise AssertionError(f"{name}: resumed in its middle, a run of {method} is another; state outside state_dict?")
    assert vars(technique).keys() == before, f"{name}: a run leaves something in the technique that it was given"
    if isinstance(technique, WeightsTechnique) and not technique.writes:
        assert whole.learned == _plain(method).learned, f"{name}: weights that learn are others, and it has no `writes`"
    if off is not None:
        plain, found = _plain(method), _run(out / "off", method, off)
        for ours, theirs in zip(found.losses, plain.losses, strict=True):
            assert {key: ours[key] for key in theirs} == theirs, f"{name}: turned off ({off.text}), losses are others"
        assert found.weights == plain.weights, f"{name}: turned off ({off.text}), the weights of {method} are others"
    return method


def _check_compiled(method: _Trains, technique: Technique, name: str) -> None:
    """The last two steps: after the first one whatever changes in the net has changed. By aot_eager, which traces
    forward and backward as the default does, and leaves out the slow part, machine code."""
    losses: list[list[float]] = []
    for compiled in (False, True):
        run = _begun(method, technique)
        for part in run.method.modules() if compiled else ():
            if isinstance(part, Net):
                compile_as_others(part, "aot_eager")
        try:
            steps = [run.step(At(step, STEPS), 1).total for step in (STEPS - 2, STEPS - 1)]
        except RuntimeError as error:
            raise AssertionError(f"{name}: with compiled nets it fails ({str(error).splitlines()[0]})") from error
        losses.append([float(loss.detach()) for loss in steps])
    assert np.allclose(losses[0], losses[1], rtol=1e-3), f"{name}: with compiled nets, losses are others: {losses}"


class _Trained(NamedTuple):
    """The losses of a run's steps, the bytes of the weights that it reports, and those of the net that learned."""

    losses: list[dict[str, float]]
    weights: bytes
    learned: bytes


def _run(out: Path, method: _Trains, *techniques: Technique, **settings: Any) -> _Trained:
    trainer = _trainer(techniques, **{"out": out, "checkpoint_seconds": 60, "callbacks": []} | settings)
    net = trainer.fit(method(techniques), _pool(), labeled=4, unlabeled=4).method.net
    rows = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    return _Trained([{key: value for key, value in row.items() if key.startswith("loss")} for row in rows],
                    (out / "model.safetensors").read_bytes(),
                    b"".join(weight.detach().numpy().tobytes() for weight in net.parameters()))


@functools.cache
def _plain(method: _Trains) -> _Trained:
    with tempfile.TemporaryDirectory() as folder:
        return _run(Path(folder), method)


def _last_step(method: _Trains, technique: Technique, micro_batches: int = 1, **settings: Any) -> None:
    """The last of the steps, when all of it acts; nothing is left on the disk. AssertionError for a loss not finite."""
    run = _begun(method, technique, **settings)
    losses = run.step(At(STEPS - 1, STEPS), micro_batches).detached()
    assert all(math.isfinite(value) for key, value in losses.items() if key.startswith("loss")), (
        f"{technique.text}: {method}, micro_batches={micro_batches}, {settings}: {losses}")
    run.method.predictor()


def _begun(method: _Trains, technique: Technique, **settings: Any) -> Run:
    trainer, learner = _trainer([technique], **settings), method([technique])
    return Run(trainer, *trainer.begun(learner, _pool()), learner, _pool(), labeled=4, unlabeled=4, saved=None)


def _trainer(techniques: Sequence[Technique], **settings: Any) -> Trainer:
    given: dict[str, Any] = {"precision": "fp32"} | settings
    return Trainer(steps=STEPS, device="cpu", techniques=techniques, evaluations=1, **given)


class _StoppedError(Exception):
    pass


class _Stop(Callback):
    """Ends a run as a kill would, after the checkpoint of its second step."""

    def step(self, done: int) -> None:
        if done == 3:
            raise _StoppedError
