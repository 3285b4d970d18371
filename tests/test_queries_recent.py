"""EPIG, disagreement of views, DropQuery and uncertainty herding, against slow float64 references."""

import math

import numpy as np
import pytest

from ssl_lab.active.arrays import VIEWS, arrays_of
from ssl_lab.active.queries import distances
from ssl_lab.active.queries.checks import check_query
from ssl_lab.active.queries.committee import Committee
from ssl_lab.active.queries.coverage import MaxHerding
from ssl_lab.active.queries.drop_query import DropQuery, changed
from ssl_lab.active.queries.epig import Epig, predictive_information
from ssl_lab.active.queries.k_means import KMeans
from ssl_lab.active.queries.uncertainty import BALD, Margin
from ssl_lab.active.queries.uncertainty_herding import (
    UncertaintyHerding,
    adapted_radius,
    adapted_temperature,
    margins,
)
from ssl_lab.active.queries.view import PoolView
from ssl_lab.active.queries.view_disagreement import ViewDisagreement
from ssl_lab.active.queries.wrappers import CostAware
from ssl_lab.engine import Runtime
from ssl_lab.errors import UsageError
from ssl_lab.nets import net


def _softmax(logits):
    powers = np.exp(logits - logits.max(axis=-1, keepdims=True))
    return powers / powers.sum(axis=-1, keepdims=True)


def _samples(rows=12, samples=4, classes=3, seed=0):
    draw = np.random.default_rng(seed)
    return _softmax(draw.normal(size=(rows, 1, classes)) + draw.normal(size=(rows, samples, classes))).astype("f4")


def _pool(rows=50, dim=6, classes=3, labeled=12, seed=0):
    draw = np.random.default_rng(seed)
    kind = draw.integers(classes, size=rows)
    x = draw.normal(size=(rows, dim)) + 1.5 * np.eye(dim)[kind]
    labels = np.full(rows, -1)
    labels[:labeled] = kind[:labeled]
    labels[labeled : labeled + 2] = -2
    weight = np.eye(classes, dim)
    return PoolView(labels, embeddings=x, probs=_softmax(2 * x @ weight.T), head_weight=weight,
                    head_bias=np.zeros(classes))


@pytest.mark.parametrize("query", [Epig(), Epig(targets=7), ViewDisagreement(), DropQuery(), DropQuery(1, 0.5, 1),
                                   UncertaintyHerding(), UncertaintyHerding(0.5, 2.0)])
def test_contract(query):
    check_query(query)


@pytest.mark.parametrize("build", [
    lambda: Epig(0), lambda: DropQuery(rate=1), lambda: DropQuery(samples=0), lambda: DropQuery(spare=0),
    lambda: UncertaintyHerding(sigma=0), lambda: UncertaintyHerding(temperature=-1)])
def test_arguments_that_cannot_be_are_refused(build):
    with pytest.raises(UsageError):
        build()


# EPIG

def _mutual_information(p, q):
    """I(y; y*) of two rows [S, C], by the definition: KL of the joint from the product of the marginals."""
    p, q = p.astype(np.float64), q.astype(np.float64)
    total = 0.0
    for a in range(p.shape[1]):
        for b in range(q.shape[1]):
            joint = sum(p[s, a] * q[s, b] for s in range(len(p))) / len(p)
            total += joint * math.log(joint / (p[:, a].mean() * q[:, b].mean()))
    return total


@pytest.mark.parametrize("block", [2**24, 20, 1])
def test_epig_is_the_mean_mutual_information_with_the_targets(block, monkeypatch):
    monkeypatch.setattr("ssl_lab.active.queries.epig.BLOCK", block)
    pool, targets = _samples(), _samples(5, seed=1)
    slow = [sum(_mutual_information(p, q) for q in targets) / 5 for p in pool]
    np.testing.assert_allclose(predictive_information(pool, targets), slow, atol=2e-6)


def test_epig_is_not_drawn_to_rows_that_tell_of_themselves_alone():
    """Ten rows share one question; an outlier's samples disagree more, but about nothing that others ask."""
    shared, own = [0.1, 0.9, 0.1, 0.9], [0.0, 0.0, 1.0, 1.0]
    mc = np.array([[[s, 1 - s] for s in shared]] * 10 + [[[s, 1 - s] for s in own]])
    view = PoolView(np.full(11, -1), mc_probs=mc)
    assert BALD()(view, 1)[0] == 10
    assert Epig()(view, 1)[0] < 10


def test_epig_of_samples_that_agree_is_zero():
    view = PoolView(np.full(6, -1), mc_probs=np.repeat(_samples(6, 1), 3, axis=1))
    np.testing.assert_allclose(Epig().scores(view, np.arange(6)), 0, atol=1e-6)


# Views

def test_view_disagreement_is_the_summed_variance():
    probs = _samples(20, 6)
    view = PoolView(np.full(20, -1), view_probs=probs)
    slow = [sum(sum((float(p) - sum(map(float, column)) / 6) ** 2 for p in column) / 6 for column in row.T)
            for row in probs]
    np.testing.assert_allclose(ViewDisagreement().scores(view, np.arange(20)), slow, rtol=1e-5)
    assert ViewDisagreement()(view, 1).tolist() == [np.argmax(slow)]


def test_batches_are_drawn_by_score():
    scores = np.array([0.0, 1, 2, 5])
    views = np.stack([[0.5 - each, 0.5 + each] for each in np.sqrt(scores / 40)])  # of two, +- around a half
    probs = np.stack([np.stack([views, 1 - views], axis=-1)[:, k] for k in range(2)], axis=1)
    view = PoolView(np.full(4, -1), view_probs=probs)
    np.testing.assert_allclose(ViewDisagreement().scores(view, np.arange(4)), scores / 20, atol=1e-6)
    picks = np.array([ViewDisagreement()(view, 2, seed) for seed in range(3000)])
    np.testing.assert_allclose(np.bincount(picks[:, 0], minlength=4) / 3000, scores / 8, atol=0.03)
    assert not (picks == 0).any()  # of score 0: last
    assert (picks == [ViewDisagreement()(view, 2, seed) for seed in range(3000)]).all()


@pytest.mark.parametrize("query", [BALD(), Committee(), Committee("vote_entropy"), Epig(),
                                   CostAware(BALD(), np.ones(4))], ids=lambda query: query.name)
def test_batches_of_what_samples_say_are_drawn_by_score(query):
    """Of equal rows too, a batch is no longer the first of them; a single row is the one of the highest score."""
    mc = np.array([[[1, 0], [1, 0], [1, 0]], *[[[1, 0], [1, 0], [0, 1]]] * 2, [[0.9, 0.1], [0.5, 0.5], [0.1, 0.9]]])
    view = PoolView(np.full(4, -1), mc_probs=mc)
    scores = getattr(query, "query", query).scores(view, np.arange(4))
    assert all(scores[query(view, 1, seed)[0]] == scores.max() for seed in range(5))
    picks = np.array([query(view, 2, seed) for seed in range(400)])
    np.testing.assert_allclose(np.bincount(picks[:, 0], minlength=4) / 400, scores / scores.sum(), atol=0.09)


@pytest.fixture
def runtime():
    return Runtime.start("cpu")


def test_view_probs_are_of_the_image_and_of_views_that_differ(digits, runtime):
    made, rows = net("tiny_4", classes=10, style=digits.style, seed=0), np.arange(30)
    found = arrays_of(made, digits, rows, ("probs", "view_probs"), runtime, seed=3, batch=8)
    assert found["view_probs"].shape == (30, 1 + VIEWS, 10)
    np.testing.assert_array_equal(found["view_probs"][:, 0], found["probs"])
    np.testing.assert_allclose(found["view_probs"].sum(axis=2), 1, atol=1e-5)
    apart = np.abs(found["view_probs"][:, None] - found["view_probs"][:, :, None]).max(axis=(0, 3))
    assert (apart[~np.eye(1 + VIEWS, dtype=bool)] > 0).all()
    again, other = (arrays_of(made, digits, rows, ("view_probs",), runtime, seed=seed, batch=8) for seed in (3, 4))
    np.testing.assert_array_equal(found["view_probs"], again["view_probs"])
    assert (found["view_probs"] != other["view_probs"]).any()


def test_too_many_view_probs_are_refused_before_the_net_runs(digits, runtime, monkeypatch):
    monkeypatch.setattr("ssl_lab.active.arrays.LIMIT", 1000)
    made = net("tiny_4", classes=10, style=digits.style, seed=0)
    with pytest.raises(UsageError, match="view_probs of 30 rows, 6 views and 10 classes are 1800 numbers"):
        arrays_of(made, digits, np.arange(30), ("view_probs",), runtime)


# DropQuery

@pytest.mark.parametrize("block", [2**24, 13])
def test_changes_under_dropout_are_those_of_slow_loops(block, monkeypatch):
    monkeypatch.setattr(distances, "BLOCK", block)
    view, keep = _pool(), np.random.default_rng(1).random((3, 50, 6)) > 0.4
    x, w, scale = view.embeddings.astype(np.float64), view.head_weight.astype(np.float64), 1 / keep.mean()
    slow = [sum(int(np.argmax(w @ (x[i] * keep[m, i] * scale))) != int(np.argmax(w @ x[i])) for m in range(3))
            for i in range(50)]
    assert changed(view.embeddings, view.head_weight, view.head_bias, keep).tolist() == slow
    assert len(set(slow)) > 2


def test_drop_query_takes_rows_that_change_and_the_centers_of_all_when_cold():
    view = _pool(rows=300, dim=30, labeled=20)
    masks = np.random.default_rng(0).random((200, 300, 30)) >= 0.75
    often = changed(view.embeddings, view.head_weight, view.head_bias, masks) / 200
    chosen = DropQuery(spare=1)(view, 20)
    assert often[chosen].mean() > often[view.candidates].mean() + 0.03
    cold = PoolView(np.full(300, -1), embeddings=view.embeddings, head_weight=view.head_weight,
                    head_bias=view.head_bias)
    lengths = np.linalg.norm(view.embeddings, axis=1, keepdims=True)
    same = KMeans()(PoolView(np.full(300, -1), embeddings=view.embeddings / lengths), 8)
    assert DropQuery()(cold, 8).tolist() == same.tolist()


def test_drop_query_fills_up_when_nothing_changes():
    x = np.abs(np.random.default_rng(0).normal(size=(30, 4)))
    labels = np.full(30, -1)
    labels[:2] = 0, 1
    view = PoolView(labels, embeddings=x, head_weight=np.zeros((2, 4)), head_bias=np.array([1.0, 0]))
    assert len(DropQuery()(view, 10)) == 10


# Uncertainty herding

def test_uncertainty_herding_is_the_slow_greedy():
    view = _pool()
    sigma, temperature = 0.7, 3.0
    x = view.embeddings.astype(np.float64)
    x /= np.linalg.norm(x, axis=1, keepdims=True)
    kernel = np.exp(-((x[:, None] - x[None]) ** 2).sum(axis=2) / sigma**2)
    p = view.probs.astype(np.float64) ** (1 / temperature)
    p = np.sort(p / p.sum(axis=1, keepdims=True), axis=1)
    u = np.where(view.labels == -1, 1 - (p[:, -1] - p[:, -2]), 0)
    centers, left = view.labeled.tolist(), view.candidates.tolist()
    for row in UncertaintyHerding(sigma, temperature)(view, 12).tolist():
        values = {i: sum(u[k] * max(kernel[k, j] for j in [*centers, i]) for k in view.candidates) for i in left}
        assert values[row] == pytest.approx(max(values.values()), abs=1e-5)
        centers.append(row)
        left.remove(row)


def test_uncertainty_herding_goes_from_max_herding_to_margin():
    """The paper's two ends: all equally uncertain is the coverage, a radius that holds a row alone the margin."""
    view = _pool(rows=40)
    cold = PoolView(np.where(view.labels >= 0, -1, view.labels), embeddings=view.embeddings, probs=view.probs)
    assert UncertaintyHerding()(cold, 8).tolist() == MaxHerding()(cold, 8).tolist()
    assert UncertaintyHerding(sigma=0.01, temperature=1.0)(view, 10).tolist() == Margin()(view, 10).tolist()


def test_temperature_makes_the_confidence_the_accuracy_and_the_radius_is_of_the_labels():
    view = _pool(rows=200, labeled=60)
    sure = (view.probs.astype(np.float64) ** 5)
    sure = (sure / sure.sum(axis=1, keepdims=True)).astype(np.float32)
    known = view.labeled
    temperature = adapted_temperature(view.embeddings[known], view.labels[known], sure[view.labels == -1])
    assert 1 < temperature < 20
    assert margins(sure, temperature).mean() > margins(sure, 1.0).mean() + 0.05
    assert adapted_temperature(view.embeddings[:0], view.labels[:0], sure) is None
    x = np.array([[1, 0], [1, 0], [0.6, 0.8], [0, 1]], dtype=np.float32)
    assert adapted_radius(x, 0) == pytest.approx(math.hypot(0.6, 0.2))  # copies of a row are no distance
    assert adapted_radius(x[:2], 0) == adapted_radius(x[:0], 0) == 1
