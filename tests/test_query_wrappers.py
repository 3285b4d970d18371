"""Queries around queries, and the contract suite: what each promises, and that the suite catches what breaks it."""

import numpy as np
import pytest

from ssl_lab.active.queries.base import Query, ScoreQuery, rng
from ssl_lab.active.queries.checks import check_query
from ssl_lab.active.queries.k_center import KCenter
from ssl_lab.active.queries.k_means import KMeans
from ssl_lab.active.queries.power import Gibbs, Power, SoftRank
from ssl_lab.active.queries.uncertainty import BALD, Entropy, LeastConfidence, Margin, Random
from ssl_lab.active.queries.view import PoolView
from ssl_lab.active.queries.wrappers import ClassBalanced, CostAware, Prefilter, WithoutDuplicates
from ssl_lab.errors import UsageError

SUITE = [
    Power(), Power(Margin(), beta=8), Gibbs(), SoftRank(Entropy()), Prefilter(Margin(), KMeans()),
    Prefilter(Entropy(), KCenter(), factor=2), ClassBalanced(Margin()), ClassBalanced(KCenter()),
    CostAware(Entropy(), np.ones(601)), ClassBalanced(CostAware(Margin(), np.ones(601))), WithoutDuplicates(Margin()),
    WithoutDuplicates(KCenter(), threshold=0.3),
    Prefilter(Random(), ClassBalanced(Margin()), factor=3),
]


@pytest.mark.parametrize("query", SUITE, ids=lambda query: query.name)
def test_contract(query):
    check_query(query)


def _probs(confidences):
    """Two classes; the first has these probabilities."""
    first = np.asarray(confidences, dtype=np.float64)
    return np.stack([first, 1 - first], axis=1)


class _Score(ScoreQuery):
    name, family, paper, arxiv = "score", "uncertainty", "", ""
    needs = frozenset({"predicted_loss"})

    def scores(self, view, rows):
        return view.need("predicted_loss")[rows]


SCORES = np.array([1.0, 2.0, 4.0, 0.0])


def _frequencies(query, draws=4000):
    view = PoolView(np.full(4, -1), predicted_loss=SCORES)
    firsts = np.array([query(view, 1, seed)[0] for seed in range(draws)])
    return np.bincount(firsts, minlength=4) / draws


@pytest.mark.parametrize(("query", "weights"), [
    (Power(_Score()), SCORES),
    (Power(_Score(), beta=2), SCORES**2),
    (Gibbs(_Score()), np.exp(SCORES)),
    (Gibbs(_Score(), beta=0.5), np.exp(SCORES / 2)),
    (SoftRank(_Score()), 1 / np.array([3.0, 2, 1, 4])),
    (SoftRank(_Score(), beta=2), 1 / np.array([3.0, 2, 1, 4]) ** 2),
    (Power(_Score(), beta=0), np.ones(4)),
], ids=lambda value: getattr(value, "name", None))
def test_stochastic_queries_draw_in_proportion_to_their_weights(query, weights):
    assert np.abs(_frequencies(query) - weights / weights.sum()).max() < 0.03


@pytest.mark.parametrize("kind", [Power, Gibbs, SoftRank])
def test_stochastic_queries_respect_direction_and_come_to_the_highest(kind):
    """A small margin is a high score: a high beta gives what margin sampling gives."""
    view = PoolView(np.full(30, -1), probs=_probs(np.random.default_rng(0).permutation(np.linspace(0.5, 0.95, 30))))
    assert kind(Margin(), beta=3e4)(view, 5, seed=2).tolist() == Margin()(view, 5).tolist()
    counts = np.mean([view.probs[kind(Margin(), beta=4)(view, 5, seed), 0].mean() for seed in range(100)])
    assert counts < view.probs[:, 0].mean() - 0.02


def test_power_is_of_bald_unless_told_and_takes_rows_of_no_score_last():
    view = PoolView(np.full(3, -1), mc_probs=[[[1, 0], [0, 1]], [[0.5, 0.5]] * 2, [[0.9, 0.1], [0.2, 0.8]]])
    assert isinstance(Power().query, BALD)
    assert all(Power()(view, 3, seed)[-1] == 1 for seed in range(20))


def test_scores_below_zero_are_refused():
    view = PoolView(np.full(2, -1), predicted_loss=np.array([-1.0, 1.0]))
    with pytest.raises(UsageError, match="scores below 0"):
        Power(_Score())(view, 1)


def test_prefilter_chooses_among_what_the_first_would():
    draw = np.random.default_rng(0)
    view = PoolView(np.full(200, -1), embeddings=draw.normal(size=(200, 4)), probs=_probs(draw.random(200)))
    chosen = Prefilter(Margin(), KCenter(), factor=5)(view, 8, seed=3)
    kept = Margin()(view, 40, seed=3)
    assert set(chosen) <= set(kept)
    assert set(chosen) != set(Margin()(view, 8, seed=3))
    smaller = PoolView(np.full(40, -1), ids=np.sort(kept), embeddings=view.embeddings[np.sort(kept)])
    assert KCenter()(smaller, 8, seed=3).tolist() == chosen.tolist()
    assert set(Prefilter(Margin(), KCenter(), factor=1)(view, 8)) == set(Margin()(view, 8))
    with pytest.raises(UsageError, match="at least 1"):
        Prefilter(Margin(), KCenter(), factor=0)


def test_class_balance_evens_out_the_labels():
    labels = np.array([0] * 5 + [1] * 2 + [-1] * 60)
    probs = np.full((67, 3), 0.1)
    predicted = np.array([0] * 7 + [0] * 30 + [1] * 28 + [2] * 2)
    probs[np.arange(67), predicted] = np.linspace(0.8, 0.7, 67)
    probs /= probs.sum(axis=1, keepdims=True)
    view = PoolView(labels, probs=probs)
    chosen = ClassBalanced(Margin())(view, 8, seed=0)
    # class 2 has two candidates; then class 1, up to the five of class 0; then 0 and 1 in turn
    assert np.bincount(predicted[chosen], minlength=3).tolist() in ([1, 5, 2], [2, 4, 2])
    assert predicted[chosen][:2].tolist() == [2, 2]
    for label in range(3):
        own = [row for row in chosen.tolist() if predicted[row] == label]
        best = [row for row in Margin()(view, 60).tolist() if predicted[row] == label]
        assert own == best[: len(own)]


def test_cost_counts_score_per_cost_and_stops_at_the_limit():
    view = PoolView(np.full(4, -1), ids=np.array([3, 1, 0, 2]), predicted_loss=np.array([6.0, 4.0, 3.0, 1.0]))
    cost = np.array([1.0, 2.0, 4.0, 6.0])  # by id: rows cost 6, 2, 1, 4; score / cost is 1, 2, 3, 1/4
    assert CostAware(_Score(), cost)(view, 4).tolist() == [0, 1, 3, 2]
    assert CostAware(_Score(), cost)(view, 2).tolist() == [0, 1]
    assert CostAware(_Score(), cost, limit=7.5)(view, 4).tolist() == [0, 1, 2], "what does not fit is passed over"
    assert CostAware(_Score(), cost, limit=1)(view, 4).tolist() == [0]
    with pytest.raises(UsageError, match="cheapest candidate costs 1"):
        CostAware(_Score(), cost, limit=0.5)(view, 1)


def test_costs_that_just_fit_are_taken():
    view = PoolView(np.full(4, -1), predicted_loss=np.arange(1.0, 5))
    assert len(CostAware(_Score(), np.full(4, 0.1), limit=0.3)(view, 4)) == 3  # 0.3 - 0.1 - 0.1 is below 0.1


@pytest.mark.parametrize("outer", [ClassBalanced, WithoutDuplicates, lambda query: Prefilter(query, KCenter()),
                                   lambda query: Prefilter(KCenter(), query)])
def test_a_limit_of_costs_must_be_outermost(outer):
    outer(CostAware(_Score(), np.ones(9)))
    with pytest.raises(UsageError, match="put cost_aware outermost"):
        outer(CostAware(_Score(), np.ones(9), limit=3))


@pytest.mark.parametrize("outer", [Power, lambda query: CostAware(query, np.ones(9))])
def test_what_needs_scores_wraps_no_query_without_them(outer):
    with pytest.raises(UsageError, match="wraps a query that scores rows; k_center is none"):
        outer(KCenter())


def test_wrappers_pass_on_that_classes_of_labeled_rows_are_used():
    assert not Prefilter(Margin(), KCenter()).uses_classes
    assert Prefilter(ClassBalanced(Margin()), KCenter()).uses_classes


@pytest.mark.parametrize("cost", [[1, 0, 1, 1], [1, np.nan, 1, 1], [[1, 1, 1, 1]], [-1]])
def test_costs_that_cannot_be_are_refused(cost):
    with pytest.raises(UsageError, match="finite number above 0"):
        CostAware(_Score(), cost)


def test_costs_must_cover_the_ids():
    view = PoolView(np.full(2, -1), ids=np.array([0, 9]), predicted_loss=np.ones(2))
    with pytest.raises(UsageError, match="ids 0 to 9"):
        CostAware(_Score(), [1, 1])(view, 1)


def test_near_duplicates_are_left_out():
    """Six directions, three rows each; the labeled row takes one direction, the score prefers copies."""
    directions = np.repeat(np.arange(6), 3)
    x = np.eye(6)[directions] + 1e-3 * np.random.default_rng(0).normal(size=(18, 6))
    labels = np.full(18, -1)
    labels[0] = 0
    loss = 10.0 - directions
    view = PoolView(labels, embeddings=x * np.linspace(1, 5, 18)[:, None], predicted_loss=loss)
    assert directions[_Score()(view, 5)].tolist() == [0, 0, 1, 1, 1]
    assert directions[WithoutDuplicates(_Score())(view, 5)].tolist() == [1, 2, 3, 4, 5]
    more = directions[WithoutDuplicates(_Score())(view, 9)].tolist()
    assert more == [1, 2, 3, 4, 5, 0, 0, 1, 1], "near-duplicates fill the budget, at the end"
    assert WithoutDuplicates(_Score(), threshold=1.1)(view, 5, 3).tolist() == _Score()(view, 5, 3).tolist()


@pytest.mark.parametrize("seed", range(8))
def test_exact_copies_are_near_duplicates_at_any_threshold(seed):
    """Cosines of equal rows lie on both sides of 1, and by how much depends on what else is multiplied with them."""
    x = np.random.default_rng(seed).normal(size=(40, 5 + 101 * seed)).repeat(2, axis=0)
    view = PoolView(np.full(80, -1), embeddings=x, predicted_loss=1 + np.arange(80) // 2)
    chosen = WithoutDuplicates(_Score(), threshold=1.0)(view, 30)
    assert len(np.unique(chosen // 2)) == 30


def test_a_pool_of_copies_of_a_labeled_row_still_fills_the_budget():
    view = PoolView(np.array([0, -1, -1, -1]), embeddings=np.ones((4, 2)), predicted_loss=np.arange(4.0))
    assert WithoutDuplicates(_Score())(view, 2).tolist() == [3, 2]


# The suite catches what it says

class _Base(Query):
    name, family, paper, arxiv = "base", "uncertainty", "", ""
    needs = frozenset({"probs"})

    def select(self, view, budget, seed):
        return LeastConfidence().select(view, budget, seed)


class _NoName(_Base):
    name = None


class _UndeclaredArray(_Base):
    def select(self, view, budget, seed):
        view.need("embeddings")
        return super().select(view, budget, seed)


class _UnknownArray(_Base):
    needs = frozenset({"gradients"})


class _Twice(_Base):
    def select(self, view, budget, seed):
        return np.repeat(super().select(view, budget, seed)[:1], budget)


class _Labeled(_Base):
    def select(self, view, budget, seed):
        return rng(seed, "x").permutation(len(view))[:budget]


class _Short(_Base):
    def select(self, view, budget, seed):
        return super().select(view, min(budget, 30), seed)


class _GlobalRandom(_Base):
    def select(self, view, budget, seed):
        return np.random.permutation(view.candidates)[:budget]


class _ByNumber(_Base):
    def select(self, view, budget, seed):
        return view.candidates[np.argsort(view.need("probs")[view.candidates].max(axis=1), kind="stable")[:budget]]


class _ById(_Base):
    def select(self, view, budget, seed):
        return view.candidates[(view.ids[view.candidates] * 7919 + seed).argsort()[:budget]]


class _SeesIgnored(_Base):
    def select(self, view, budget, seed):
        offset = int(1e6 * view.need("probs").sum(axis=0)[0])
        return rng(offset + seed, "x").permutation(view.candidates)[:budget]


class _Writes(_Base):
    def select(self, view, budget, seed):
        view.need("probs")[0] = 1
        return super().select(view, budget, seed)


class _NeedsLabels(_Base):
    def select(self, view, budget, seed):
        view.labels[view.labeled].max()
        return super().select(view, budget, seed)


class _AnyBudget(_Base):
    def __call__(self, view, budget, seed=0):
        return view.ids_of(self.select(view, min(budget, len(view.candidates)), seed))


@pytest.mark.parametrize(("query", "message"), [
    (_NoName, "no `name`"),
    (_UnknownArray, "gradients"),
    (_Twice, "chooses a row twice"),
    (_Labeled, "labeled or ignored"),
    (_Short, "rows for a budget"),
    (_GlobalRandom, "give other ids|global random state"),
    (_ByNumber, "chosen by their number"),
    (_ById, "depends on their ids"),
    (_SeesIgnored, "ignored rows hold"),
    (_AnyBudget, "not refused"),
])
def test_the_suite_catches(query, message):
    check_query(_Base())
    with pytest.raises(AssertionError, match=message):
        check_query(query())


@pytest.mark.parametrize(("query", "error"), [(_UndeclaredArray, UsageError), (_Writes, ValueError),
                                              (_NeedsLabels, ValueError)])
def test_the_suite_lets_errors_of_the_query_through(query, error):
    with pytest.raises(error):
        check_query(query())
