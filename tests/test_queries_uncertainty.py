"""Uncertainty queries: the contract, float64 references row by row, the papers' identities, numerical traps."""

import itertools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ssl_lab.active.queries.bald import BatchBALD
from ssl_lab.active.queries.base import highest
from ssl_lab.active.queries.checks import check_query
from ssl_lab.active.queries.greedy import lazy_greedy
from ssl_lab.active.queries.uncertainty import (
    BALD,
    Entropy,
    LeastConfidence,
    Margin,
    MeanStd,
    Random,
    VariationRatio,
)
from ssl_lab.active.queries.view import PoolView
from ssl_lab.errors import UsageError

SCORES = [LeastConfidence, Margin, Entropy, BALD, MeanStd, VariationRatio]


def _view(rows=40, samples=5, classes=3, seed=0, sharp=2.0):
    draw = np.random.default_rng(seed)
    powers = np.exp(sharp * draw.normal(size=(rows, samples, classes)) + sharp * draw.normal(size=(rows, 1, classes)))
    mc = (powers / powers.sum(axis=2, keepdims=True)).astype(np.float32)
    labels = np.full(rows, -1)
    labels[[3, 5, 8]] = [0, 1, 0]
    labels[[1, 2]] = -2
    return PoolView(labels, ids=1000 + np.arange(rows), probs=mc.mean(axis=1), mc_probs=mc)


def _h(p):
    return -sum(float(x) * math.log(float(x)) for x in p if x > 0)


def _slow(query, view, row):
    if query is LeastConfidence:
        return 1 - max(float(x) for x in view.probs[row])
    if query is Margin:
        first, second = sorted((float(x) for x in view.probs[row]), reverse=True)[:2]
        return 1 - (first - second)
    if query is Entropy:
        return _h(view.probs[row])
    mc = view.mc_probs[row].astype(np.float64)
    if query is BALD:
        return _h(mc.mean(axis=0)) - sum(_h(p) for p in mc) / len(mc)
    if query is MeanStd:
        return sum(math.sqrt(sum((x - sum(column) / len(column)) ** 2 for x in column) / len(column))
                   for column in mc.T.tolist()) / mc.shape[1]
    votes = [max(range(len(p)), key=lambda c: p[c]) for p in mc.tolist()]
    return 1 - max(votes.count(c) for c in votes) / len(votes)


@pytest.mark.parametrize("query", [Random(), *(each() for each in SCORES), BatchBALD(50), BatchBALD(300, prefilter=9)],
                         ids=lambda query: query.name)
def test_contract(query):
    check_query(query)


@pytest.mark.parametrize("query", SCORES)
def test_scores_and_picks_are_those_of_slow_loops(query):
    view = _view()
    slow = np.array([_slow(query, view, row) for row in view.candidates])
    assert np.allclose(query().scores(view, view.candidates), slow, atol=1e-6)
    if query.drawn:  # see test_queries_recent
        return
    chosen = [int(number) - 1000 for number in query()(view, 10, seed=4)]
    values = slow[np.searchsorted(view.candidates, chosen)]
    assert np.allclose(values, sorted(slow, reverse=True)[:10], atol=1e-6)
    if query is not VariationRatio:  # votes tie
        assert chosen == view.candidates[np.argsort(-slow)[:10]].tolist()


def test_random_is_uniform_over_candidates():
    view = _view(rows=12)
    counts = np.zeros(12)
    for seed in range(3000):
        counts[Random()(view, 2, seed) - 1000] += 1
    expected = 3000 * 2 / len(view.candidates)
    assert np.abs(counts[view.candidates] - expected).max() < 5 * math.sqrt(expected)
    assert counts.sum() == 6000 == counts[view.candidates].sum()


def test_probabilities_of_zero_and_denormals_score_as_certain():
    tiny = np.float32(1e-45)
    probs = np.array([[1, 0, 0], [1, tiny, 0], [0.4, 0.3, 0.3], [1 / 3, 1 / 3, 1 / 3], [0.5, 0.5, 0]], np.float32)
    view = PoolView(np.full(5, -1), probs=probs, mc_probs=np.repeat(probs[:, None], 2, axis=1))
    assert Entropy()(view, 5)[:3].tolist() == [3, 2, 4]
    assert np.allclose(Entropy().scores(view, np.arange(5))[[0, 1, 3]], [0, 0, math.log(3)])
    assert np.allclose(BALD().scores(view, np.arange(5)), 0)
    assert (BALD().scores(view, np.arange(5)) >= 0).all()
    assert Margin().scores(view, np.arange(5))[3:].tolist() == [1, 1]


def test_the_three_agree_for_two_classes():
    """With two classes, confidence, margin and entropy are monotone in each other."""
    p = np.random.default_rng(0).permutation(np.linspace(0.501, 0.999, 30))
    view = PoolView(np.full(30, -1), probs=np.stack([p, 1 - p], axis=1))
    picks = [query()(view, 30).tolist() for query in (LeastConfidence, Margin, Entropy)]
    assert picks[0] == picks[1] == picks[2] == np.argsort(p).tolist()


def test_bald_ignores_noise_that_samples_agree_on():
    agree = [[0.5, 0.5], [0.5, 0.5]]
    disagree = [[1, 0], [0, 1]]
    view = PoolView(np.full(2, -1), probs=np.full((2, 2), 0.5), mc_probs=np.array([agree, disagree]))
    assert np.allclose(BALD().scores(view, np.arange(2)), [0, math.log(2)])
    assert np.ptp(Entropy().scores(view, np.arange(2))) == 0
    assert np.allclose(VariationRatio().scores(view, np.arange(2)), [0, 0.5])
    assert np.allclose(MeanStd().scores(view, np.arange(2)), [0, 0.5])


@pytest.mark.parametrize("classes", [2, 3, 10])
def test_margin_leaves_the_view_alone(classes):
    view = _view(classes=classes)
    before = view.probs.copy()
    Margin()(view, 5)
    assert np.array_equal(view.probs, before)


def test_ties_are_a_fair_draw_and_labeled_rows_do_not_move_them():
    view = PoolView(np.array([-1, 0, -1, -1, -2, -1]), probs=np.full((6, 2), 0.5))
    firsts = [int(Margin()(view, 1, seed)[0]) for seed in range(800)]
    counts = [firsts.count(row) for row in view.candidates]
    assert min(counts) > 150
    assert sum(counts) == 800


def test_nan_is_an_error_that_names_the_id():
    probs = np.full((3, 2), 0.5)
    probs[1, 0] = np.nan
    with pytest.raises(UsageError, match="id 77"):
        PoolView(np.full(3, -1), ids=np.array([5, 77, 9]), probs=probs)


# BatchBALD

def _highest_bald(view, budget):
    """Global ids."""
    rows = view.candidates
    return view.ids_of(rows[highest(BALD().scores(view, rows), budget, 0)])


def _joint_information(mc, rows):
    """I(y_rows; sample), by the definition: all label tuples, loops, float64."""
    mc = mc.astype(np.float64)
    samples = mc.shape[1]
    total = 0.0
    for labels in itertools.product(range(mc.shape[2]), repeat=len(rows)):
        p = sum(math.prod(mc[row, s, label] for row, label in zip(rows, labels, strict=True))
                for s in range(samples)) / samples
        total -= p * math.log(p) if p > 0 else 0.0
    return total - sum(_h(mc[row, s]) for row in rows for s in range(samples)) / samples


def _slow_batch_bald(view, budget):
    chosen = []
    for _ in range(budget):
        left = [row for row in view.candidates.tolist() if row not in chosen]
        chosen.append(max(left, key=lambda row: _joint_information(view.mc_probs, [*chosen, row])))
    return chosen


@pytest.mark.parametrize("seed", range(3))
def test_batch_bald_is_the_greedy_of_the_joint_information(seed):
    view = _view(rows=14, samples=4, seed=seed)
    assert (BatchBALD(prefilter=None)(view, 4, seed) - 1000).tolist() == _slow_batch_bald(view, 4)


def test_batch_bald_starts_as_bald_does_and_its_gains_are_not_bald():
    view = _view(rows=60, samples=8)
    assert BatchBALD()(view, 1)[0] == BALD()(view, 1)[0]
    batch = (BatchBALD()(view, 5) - 1000).tolist()
    top = (_highest_bald(view, 5) - 1000).tolist()
    assert _joint_information(view.mc_probs, batch) > _joint_information(view.mc_probs, top) + 1e-3


def test_batch_bald_does_not_ask_twice_what_one_answer_tells():
    """Two copies of the best row and one of a second question: the copies have the highest scores; BatchBALD takes one
    of each."""
    first = [[0.99, 0.01], [0.99, 0.01], [0.01, 0.99], [0.01, 0.99]]
    second = [[0.95, 0.05], [0.05, 0.95], [0.95, 0.05], [0.05, 0.95]]
    view = PoolView(np.full(3, -1), mc_probs=np.array([first, first, second]))
    assert set(_highest_bald(view, 2)) == {0, 1}
    assert 2 in BatchBALD()(view, 2)


def test_batch_bald_by_samples_comes_near_the_exact_choice():
    view = _view(rows=30, samples=6, classes=3)
    exact = BatchBALD(configurations=10**5)(view, 6) - 1000
    sampled = BatchBALD(configurations=2000 - 1)
    many = [sampled(view, 8, seed)[:6] - 1000 for seed in range(3)]
    best = _joint_information(view.mc_probs, exact.tolist())
    assert all(_joint_information(view.mc_probs, rows.tolist()) > 0.98 * best for rows in many)
    few = [BatchBALD(configurations=3)(view, 6, seed) for seed in range(5)]
    assert len({tuple(rows) for rows in few}) > 1
    assert all(rows[0] - 1000 == exact[0] for rows in few)


def test_batch_bald_does_not_underflow_in_long_batches():
    view = _view(rows=420, samples=3, classes=10, sharp=3.0)
    rows = BatchBALD(configurations=100)(view, 400)
    assert len(np.unique(rows)) == 400


def test_prefilter_keeps_the_highest_bald_scores():
    view = _view(rows=40)
    assert set(BatchBALD(prefilter=6)(view, 6)) == set(_highest_bald(view, 6))
    assert set(BatchBALD(prefilter=9)(view, 6)) <= set(_highest_bald(view, 9))


# The lazy greedy beneath BatchBALD, k-center and facility location

@settings(max_examples=60)
@given(st.integers(0, 10**6), st.integers(1, 30), st.integers(1, 70))
def test_lazy_greedy_is_greedy(seed, sets, rows):
    """Weighted cover: row i covers items; its gain, the weight of items not covered, only falls."""
    draw = np.random.default_rng(seed)
    covers = draw.random((rows, sets)) < 0.3
    weights = draw.random(sets)
    covered = np.zeros(sets, dtype=bool)
    gains = []

    def now(some):
        return covers[some] @ (weights * ~covered)

    def choose(row):
        gains.append(float(now(np.array([row]))[0]))
        covered[:] |= covers[row]

    budget = int(draw.integers(1, rows + 1))
    chosen = lazy_greedy(now(np.arange(rows)), now, choose, budget, seed, batch=2)
    slow, done = [], np.zeros(sets, dtype=bool)
    left = set(range(rows))
    for row in chosen:
        values = {each: float(covers[each] @ (weights * ~done)) for each in left}
        slow.append(max(values.values()))
        left.remove(int(row))
        done |= covers[row]
    assert gains == pytest.approx(slow, abs=1e-12)


@pytest.mark.parametrize(("arrays", "words"), [
    ({"probs": np.full((3, 4), [0.1, 0.2, 0.3, 0.5])}, r"probs of id 5 do not sum to 1; .* not logits \(3 such rows\)"),
    ({"probs": [[0.5, 0.5], [1.5, -0.5], [1, 0]]}, "probs of id 7 are below 0"),
    ({"mc_probs": np.ones((3, 2, 4))}, "mc_probs of id 5 do not sum to 1"),
    ({"embeddings": [[1, 2], [3, 4], [1e20, -1e20]]}, r"id 9 hold numbers beyond 1e\+15; has the net diverged"),
    ({"embeddings": np.ones((3, 4)), "head_weight": np.ones((2, 5))},
     r"head_weight have shape \[2, 5\], so that D is 5, but 4 in embeddings; expected \[C, D\]"),
    ({"probs": np.full((3, 2), 0.5), "head_bias": np.ones(3)}, "C is 3, but 2 in probs"),
    ({"embeddings": np.empty((0, 4))}, r"embeddings have shape \[0, 4\] for 3 rows"),
])
def test_arrays_that_cannot_be_are_refused(arrays, words):
    with pytest.raises(UsageError, match=words):
        PoolView(np.full(3, -1), ids=np.array([5, 7, 9]), **arrays)


def test_lazy_greedy_looks_beyond_its_hot_set(monkeypatch):
    monkeypatch.setattr("ssl_lab.active.queries.greedy.HOT", 4)
    values = np.random.default_rng(0).random(50)
    chosen = lazy_greedy(np.ones(50), lambda some: values[some], lambda row: None, 20, seed=1, batch=1)
    assert chosen.tolist() == np.argsort(-values)[:20].tolist()
    bounds = np.where(np.arange(50) < 30, -np.inf, 1.0)
    assert sorted(lazy_greedy(bounds, lambda some: values[some], lambda row: None, 20, seed=1)) == list(range(30, 50))


def test_highest_orders_and_breaks_ties_by_seed():
    assert highest(np.array([1.0, 3.0, 2.0]), 2, 0).tolist() == [1, 2]
    orders = {tuple(highest(np.zeros(4), 4, seed)) for seed in range(100)}
    assert len(orders) > 12
