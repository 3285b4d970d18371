"""The contract of a query, to be run on your own queries too. Raises AssertionError."""

from __future__ import annotations

import contextlib
import random
from dataclasses import fields, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from ssl_lab.active.queries.base import Query
from ssl_lab.active.queries.inputs import ARRAYS
from ssl_lab.active.queries.view import IGNORED, UNLABELED, IntArray, PoolView
from ssl_lab.errors import UsageError

ROWS = 60
CLASSES = 4
FEATURES = 8
SAMPLES = 5
BUDGET = 7


def check_query(query: Query, *, rows: int = ROWS) -> None:
    """Hold a query to the contract of `ssl_lab.active.queries.base.Query`, on small random pools.

    Checked: that it names itself; that it reads no array beside those that it `needs`, and asks for those; that
    it returns `budget` different ids of candidates, for a budget of 1, some and all, and refuses more; that the
    ids are a function of (view, budget, seed) alone, of no global random state, and leave the view as it was; that
    what ignored rows hold changes nothing; that it works with nothing labeled or says that it cannot (UsageError);
    that rows which are all equal are told apart by the seed, not by their number, and that a pool of repeated rows is
    chosen to its end. Ids run from 0 to 10 * rows. Example: `check_query(MyQuery(factor=3))`.

    Args:
        query: an instance of it.
        rows: of the pools, 40 or more.

    Raises:
        AssertionError: where it breaks the contract; the message says how.

    >>> sl.testing.check_query(sl.active.Margin())  # it holds
    """
    name = type(query).__name__
    for attribute in ("name", "family", "paper", "arxiv"):
        assert isinstance(getattr(query, attribute, None), str), f"{name}: it has no `{attribute}`, a str"
    assert query.needs <= ARRAYS.keys(), f"{name}: it needs {set(query.needs - ARRAYS.keys())}; known: {set(ARRAYS)}"

    view = _pool(query, rows, seed=0)
    some = _check_answer(query, view, BUDGET, name)
    _check_answer(query, view, 1, name)
    _check_answer(query, view, len(view.candidates), name)
    for budget in (0, len(view.candidates) + 1):
        _check_refused(query, view, budget, f"{name}: a budget of {budget} of {len(view.candidates)} candidates")
    for array in sorted(query.needs):
        without: dict[str, Any] = {array: None}
        _check_refused(query, replace(view, **without), BUDGET, f"{name}: a view without the {array} it needs")

    before = _global_random_state()
    assert np.array_equal(query(view, BUDGET, 0), some), f"{name}: the same view, budget and seed give other ids"
    assert _global_random_state() == before, (
        f"{name}: it draws from the global random state; take numbers from `rng(seed, purpose)`"
    )
    other = _pool(query, rows, seed=0, ignored=3.0)
    assert np.array_equal(query(other, BUDGET, 0), some), f"{name}: what ignored rows hold changes the ids"
    _check_renamed(query, view, some, name)

    with contextlib.suppress(UsageError):
        _check_answer(query, replace(view, labels=np.full(rows, UNLABELED)), BUDGET, f"{name} with nothing labeled")
    equal = _repeated(view, np.zeros(rows, dtype=np.int64))
    chosen = [tuple(_check_answer(query, equal, BUDGET, f"{name} on equal rows", seed)) for seed in range(4)]
    assert len(set(chosen)) > 1, f"{name}: rows that are all equal are chosen by their number; order ties by the seed"
    _check_answer(query, equal, len(equal.candidates), f"{name} on equal rows")
    thrice = _repeated(view, np.repeat(np.arange(rows // 3 + 1), 3)[:rows])
    for budget in (BUDGET, len(thrice.candidates) // 2, len(thrice.candidates)):
        _check_answer(query, thrice, budget, f"{name} on rows of which there are three each")


def _check_answer(query: Query, view: PoolView, budget: int, name: str, seed: int = 0) -> IntArray:
    ids = query(view, budget, seed)
    assert getattr(ids, "dtype", None) == np.int64, f"{name}: the result is not an int64 array"
    assert len(ids) == budget, f"{name}: it chooses {len(ids)} rows for a budget of {budget}"
    return ids


def _check_refused(query: Query, view: PoolView, budget: int, what: str) -> None:
    try:
        query(view, budget, 0)
    except UsageError:
        return
    raise AssertionError(f"{what} is not refused with UsageError")


def _global_random_state() -> tuple[object, ...]:
    state: Any = np.random.get_state()
    return random.getstate(), state[1].tobytes(), state[2:], torch.get_rng_state().numpy().tobytes()


def _check_renamed(query: Query, view: PoolView, some: IntArray, name: str) -> None:
    """Other ids for the same rows: the same rows are chosen. Ids are reversed, so that all stay known to the query."""
    assert view.ids is not None
    places = {int(number): place for place, number in enumerate(view.ids)}
    renamed = query(replace(view, ids=view.ids[::-1].copy()), BUDGET, 0)
    expected = view.ids[::-1][[places[int(number)] for number in some]]
    assert np.array_equal(renamed, expected), f"{name}: which rows are chosen depends on their ids"


def _pool(query: Query, rows: int, seed: int, ignored: float = 1.0) -> PoolView:
    """A pool with labeled, ignored and unlabeled rows, and read-only arrays: those needed. `ignored`: scales the
    features of ignored rows and tempers their probabilities."""
    draw = np.random.default_rng(seed)
    labels = np.full(rows, UNLABELED)
    order = draw.permutation(rows)
    labels[order[: 2 * CLASSES]] = np.arange(2 * CLASSES) % CLASSES
    labels[order[2 * CLASSES : 2 * CLASSES + 5]] = IGNORED
    temper = np.where(labels == IGNORED, ignored, 1.0)

    def softmax(logits: NDArray[Any]) -> NDArray[Any]:
        powers = np.exp(logits * temper.reshape(-1, *[1] * (logits.ndim - 1)))
        normalized: NDArray[Any] = powers / powers.sum(axis=-1, keepdims=True)
        return normalized

    weight = draw.normal(size=(CLASSES, FEATURES))
    embeddings = draw.normal(size=(rows, FEATURES)) + 2 * weight[draw.integers(CLASSES, size=rows)]
    logits = embeddings @ weight.T / 3
    arrays: dict[str, NDArray[Any]] = {
        "embeddings": embeddings * temper[:, None],
        "probs": softmax(logits),
        "mc_probs": softmax(logits[:, None] + draw.normal(size=(rows, SAMPLES, CLASSES))),
        "view_probs": softmax(logits[:, None] + draw.normal(size=(rows, SAMPLES, CLASSES))),
        "predicted_loss": draw.random(rows) * temper,
        "head_weight": weight / 3,
        "head_bias": np.zeros(CLASSES),
    }
    given: dict[str, Any] = {name: arrays[name].astype(np.float32) for name in query.needs}
    ids = draw.permutation(10 * rows)[:rows]
    for array in (labels, ids, *given.values()):
        array.flags.writeable = False
    return PoolView(labels, ids, **given)


def _repeated(view: PoolView, rows: IntArray) -> PoolView:
    """The same labels, but each row holds what the one of this number does."""
    same = {field.name: array[rows] for field in fields(view)
            if ARRAYS.get(field.name, "").startswith("[N") and (array := getattr(view, field.name)) is not None}
    return replace(view, **same)
