"""Learners on frozen features against slow references in float64, scikit-learn, and the systems they solve."""

import functools
import tracemalloc

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression

from ssl_lab.errors import UsageError
from ssl_lab.features import (
    LEARNERS,
    ensemble,
    label_propagation,
    linear_probe,
    nearest_prototype,
    propagation,
    sgd_probe,
    weighted_knn,
)
from ssl_lab.features import probe as probing
from ssl_lab.features.propagation import affinity, diffuse, propagated
from ssl_lab.features.search import top_k, unit
from ssl_lab.features.self_training import balanced, self_training


def blobs(rows, classes=3, dim=12, spread=1.0, seed=0):
    """(features, truth): classes around points of their own."""
    draw = np.random.default_rng(seed)
    truth = np.arange(rows) % classes
    centers = np.random.default_rng(99).standard_normal((classes, dim))
    return (centers[truth] + spread * draw.standard_normal((rows, dim))).astype(np.float32), truth


def few(truth, per_class):
    """The first labels of each class; -1 for the others."""
    labels = np.full(len(truth), -1)
    for label in np.unique(truth):
        labels[np.flatnonzero(truth == label)[:per_class]] = label
    return labels


def cosine(a, b):
    a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
    return a @ b / (np.linalg.norm(a) * np.linalg.norm(b))


@pytest.mark.parametrize("name", LEARNERS)
def test_every_learner_gives_probabilities_and_learns(name):
    features, truth = blobs(150)
    queries, answers = blobs(90, seed=1)
    probs = LEARNERS[name](features, few(truth, 4), queries, 3)
    assert probs.dtype == np.float32
    assert probs.shape == (90, 3)
    assert (probs >= 0).all()
    np.testing.assert_allclose(probs.sum(axis=1), 1, atol=1e-5)
    assert (probs.argmax(axis=1) == answers).mean() > 0.6
    np.testing.assert_array_equal(probs, LEARNERS[name](features, few(truth, 4), queries, 3))


@pytest.mark.parametrize("name", LEARNERS)
def test_one_label_per_class_and_a_class_without_labels_are_enough(name):
    features, truth = blobs(60)
    labels = few(truth, 1)
    labels[labels == 2] = -1
    probs = LEARNERS[name](features, labels, features, 3)
    assert probs.shape == (60, 3)
    assert np.isfinite(probs).all()
    assert (probs.argmax(axis=1) != 2).all()


@pytest.mark.parametrize("name", LEARNERS)
def test_labels_that_make_no_sense(name):
    features, truth = blobs(30)
    for labels, words in [(np.full(30, -1), "no row has a label"), (truth + 1, "integers .* below 3"),
                          (truth[:-1], "29"), (truth.astype(float), "float64")]:
        with pytest.raises(UsageError, match=words):
            LEARNERS[name](features, labels, features, 3)


def test_knn_votes_as_written():
    features, truth = blobs(40)
    labels = few(truth, 6)
    queries, _ = blobs(10, seed=1)
    found = weighted_knn(features, labels, queries, 3, k=5, temperature=0.1)
    for query, probs in zip(queries, found, strict=True):
        near = sorted(((cosine(query, row), label) for row, label in zip(features, labels, strict=True) if label >= 0),
                      reverse=True)[:5]
        votes = [sum(np.exp(alike / 0.1) for alike, label in near if label == each) for each in range(3)]
        np.testing.assert_allclose(probs, np.array(votes) / sum(votes), atol=1e-5)


def test_knn_takes_all_labels_where_there_are_fewer_than_k_and_any_temperature():
    features, truth = blobs(30)
    few_votes, all_votes = (weighted_knn(features, few(truth, 2), features, 3, k=k) for k in (6, 200))
    np.testing.assert_array_equal(few_votes, all_votes)
    sharp = weighted_knn(features, truth, features, 3, temperature=1e-4)  # exp(cosine / T) alone would overflow
    np.testing.assert_allclose(sharp, np.eye(3)[truth], atol=1e-4)


def test_votes_are_the_mean_of_beliefs():
    (features, truth), (queries, _) = blobs(60), blobs(20, seed=1)
    labels = few(truth, 8)
    known = np.flatnonzero(labels >= 0)
    one_hot = np.eye(3, dtype=np.float32)[labels[known]]
    beliefs = propagated(affinity(features, 50), labels, 3)
    for found, bank, each, k in ((weighted_knn(features, labels, queries, 3), features[known], one_hot, 20),
                                 (label_propagation(features, labels, queries, 3), features, beliefs, 50)):
        cosines, rows = top_k(queries, bank, k)
        weights = np.exp(cosines / 0.07)
        expected = np.einsum("mk,mkc->mc", weights / weights.sum(axis=1, keepdims=True), each[rows])
        np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-6)


def test_votes_take_no_memory_by_neighbor_and_class():
    features, queries = np.ones((50, 2), np.float32), np.ones((1000, 2), np.float32)
    for learner in (weighted_knn, functools.partial(label_propagation, k=20)):
        tracemalloc.start()
        learner(features, np.arange(50) % 5, queries, 500)
        assert tracemalloc.get_traced_memory()[1] < 2e7  # 1000 x 20 x 500 numbers are 4e7 bytes
        tracemalloc.stop()


def test_prototypes_as_written():
    features, truth = blobs(40)
    labels = few(truth, 5)
    found = nearest_prototype(features, labels, features[:8], 3, temperature=0.2)
    means = [unit(features[labels == each]).astype(np.float64).mean(axis=0) for each in range(3)]
    for query, probs in zip(features, found, strict=False):
        logits = np.array([cosine(query, mean) for mean in means]) / 0.2
        np.testing.assert_allclose(probs, np.exp(logits) / np.exp(logits).sum(), atol=1e-5)


@pytest.mark.parametrize(("rows", "dim"), [(60, 12), (30, 80)])  # also in the span of fewer rows than dimensions
@pytest.mark.parametrize("spread", [2.0, 0.5])  # also where the classes are apart, and the minimum is far out
@pytest.mark.parametrize("l2", [10.0, 0.3, 0.01, 1e-4, 1e-6])
def test_the_probe_is_logistic_regression(rows, dim, l2, spread):
    features, truth = blobs(rows, dim=dim, spread=spread)
    queries, _ = blobs(20, dim=dim, seed=1, spread=spread)
    ours = linear_probe(features, truth, queries, 3, l2)
    theirs = LogisticRegression(C=1 / l2, tol=1e-10, max_iter=1000, solver="newton-cholesky")
    theirs.fit(unit(features).astype(np.float64), truth)
    np.testing.assert_allclose(ours, theirs.predict_proba(unit(queries)), atol=1e-3)


def test_of_many_classes_some_choose_the_strength_of_the_probe(monkeypatch):
    """As if there were no others; and a fit that is large ends near the minimum."""
    rng = np.random.default_rng(0)
    truth = np.repeat(np.arange(12), 6)
    rows = unit((rng.normal(size=(12, 30))[truth] + 2 * rng.normal(size=(72, 30))).astype(np.float32))
    folds = [np.arange(part, 72, 3) for part in range(3)]
    monkeypatch.setattr(probing, "L2_GRID", tuple(np.logspace(-4, 4, 9)))
    monkeypatch.setattr(probing, "CLASSES", 5)
    some = np.sort(np.random.default_rng(probing.seed_of("classes")).permutation(12)[:5])
    kept = np.flatnonzero(np.isin(truth, some))
    parts = [np.arange(part, 30, 3) for part in range(3)]
    alone = probing.choose_l2(rows[kept], np.searchsorted(some, truth[kept]), 5, parts)
    assert probing.choose_l2(rows, truth, 12, folds) == alone
    exact = probing.fit(rows, truth, 12, 1.0)
    monkeypatch.setattr(probing, "LARGE", 0)
    np.testing.assert_allclose(probing.fit(rows, truth, 12, 1.0), exact, atol=2e-3)


def test_the_sgd_probe_takes_the_optimizers_steps():
    (features, truth), (queries, _) = blobs(50), blobs(9, seed=1)
    labels = few(truth, 12)
    rows = torch.from_numpy(unit(features[labels >= 0])).double()
    center, known = rows.mean(dim=0), torch.from_numpy(labels[labels >= 0])
    scale = (rows - center).square().sum(dim=1).mean().sqrt()
    layer = torch.nn.Linear(12, 3).double()
    torch.nn.init.zeros_(layer.weight), torch.nn.init.zeros_(layer.bias)
    optimizer = torch.optim.SGD(layer.parameters(), lr=0.5, momentum=0.9)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 4 * 2)
    draw = np.random.default_rng(probing.seed_of("sgd probe"))
    for order in [draw.permutation(36) for _ in range(4)]:
        for part in (order[:20], order[20:]):
            optimizer.zero_grad()
            torch.nn.functional.cross_entropy(layer((rows[part] - center) / scale), known[part]).backward()
            optimizer.step()
            schedule.step()
    expected = layer((torch.from_numpy(unit(queries)).double() - center) / scale).softmax(dim=1).detach()
    found = sgd_probe(features, labels, queries, 3, epochs=4, lr=0.5, batch=20)
    np.testing.assert_allclose(found, expected, atol=1e-4)


def test_the_sgd_probe_nearly_is_the_probe():
    (features, truth), (queries, answers) = blobs(300, spread=1.5), blobs(300, spread=1.5, seed=1)
    ours, best = (learner(features, truth, queries, 3).argmax(axis=1) for learner in (sgd_probe, linear_probe))
    assert (ours == answers).mean() >= (best == answers).mean() - 0.02
    assert np.isfinite(sgd_probe(np.ones((4, 2)), [0, 0, 1, 1], np.ones((1, 2)), 2)).all()


def test_the_gradient_of_the_cross_entropy():
    draw = np.random.default_rng(0)
    logits, known = draw.standard_normal((4, 3)), np.array([0, 2, 1, 1])
    value, slope = probing._cross_entropy(logits, known)
    reference = -sum(np.log(np.exp(row[label]) / np.exp(row).sum()) for row, label in zip(logits, known, strict=True))
    assert value == pytest.approx(reference, rel=1e-9)
    for place in np.ndindex(4, 3):
        step = np.zeros((4, 3))
        step[place] = 1e-6
        up, down = (probing._cross_entropy(logits + sign * step, known)[0] for sign in (1, -1))
        assert slope[place] == pytest.approx((up - down) / 2e-6, abs=1e-5)


def test_the_grid_is_the_protocols():
    assert len(probing.L2_GRID) == 45
    assert probing.L2_GRID[0] == pytest.approx(1e-6)
    assert probing.L2_GRID[-1] == pytest.approx(1e5)


def test_l2_is_chosen_on_the_validation_rows_and_all_labels_fit():
    features, truth = blobs(90, spread=2.5)
    labels = few(truth, 12)
    valid = np.sort(np.random.default_rng(0).permutation(np.flatnonzero(labels >= 0))[:12])
    x, known = unit(features), np.setdiff1d(np.flatnonzero(labels >= 0), valid)
    scores = []
    for l2 in probing.L2_GRID:
        model = LogisticRegression(C=1 / l2, tol=1e-8, max_iter=10000).fit(x[known].astype(np.float64), labels[known])
        logs = model.predict_log_proba(x[valid])
        right = (logs.argmax(axis=1) == labels[valid]).sum()
        scores.append((right, logs[np.arange(len(valid)), labels[valid]].sum()))
    best = max(range(45), key=lambda place: scores[place])
    rows = np.flatnonzero(labels >= 0)
    ours = probing.choose_l2(x[rows], labels[rows], 3, [np.flatnonzero(np.isin(rows, valid))])
    assert scores[probing.L2_GRID.index(ours)][0] == scores[best][0]
    assert abs(probing.L2_GRID.index(ours) - best) <= 1
    np.testing.assert_allclose(linear_probe(features, labels, features, 3, valid=valid),
                               linear_probe(features, labels, features, 3, l2=ours), atol=1e-3)


def test_folds_hold_each_label_out_once_and_share_the_classes():
    known = np.array([0] * 10 + [1] * 5 + [2] * 23)
    folds = probing._folds(known)
    assert len(folds) == 5
    assert sorted(np.concatenate(folds).tolist()) == list(range(38))
    for fold in folds:
        counts = np.bincount(known[fold], minlength=3)
        assert counts[0] in (1, 2, 3)
        assert counts[1] in (1, 2)
        assert 4 <= counts[2] <= 6
    assert len(probing._folds(np.array([0, 0, 1, 1, 1]))) == 2
    assert probing._folds(np.array([0, 1, 1, 1])) == []
    assert len(probing._folds(np.arange(2000) % 10)) == 1


@pytest.mark.parametrize("valid", [None, np.arange(0, 400, 2)])
def test_of_many_labels_the_strength_is_chosen_on_some(monkeypatch, valid):
    features, truth = blobs(400)
    truth[:2] = 3  # rare, and kept
    fitted, fit = [], probing.fit

    def spy(rows, known, *arguments):
        fitted.append((len(known), len(np.unique(known))))
        return fit(rows, known, *arguments)

    monkeypatch.setattr(probing, "fit", spy)
    monkeypatch.setattr(probing, "L2_GRID", (0.1, 1.0))
    monkeypatch.setattr(probing, "MANY", 100)
    monkeypatch.setattr(probing, "ENOUGH", 100)
    linear_probe(features, truth, features, 4, valid=valid)
    assert fitted == [(80, 4), (80, 4), (400, 4)]
    fitted.clear()
    monkeypatch.setattr(probing, "ENOUGH", 400)
    linear_probe(features, truth, features, 4, valid=valid)
    assert {rows for rows, _ in fitted} == {200, 400}  # one of two rare rows is held out, and so half of all


@pytest.mark.parametrize(("valid", "words"), [([40], "valid names 1 rows, of which 0"), ([], "valid names 0")])
def test_validation_rows_must_be_labeled(valid, words):
    features, truth = blobs(60)
    with pytest.raises(UsageError, match=words):
        linear_probe(features, few(truth, 3), features, 3, valid=np.array(valid, dtype=np.int64))


def test_the_graph_as_written():
    features, _ = blobs(25)
    k, gamma = 4, 3.0
    table = np.array([[cosine(a, b) for b in features] for a in features])
    np.fill_diagonal(table, -np.inf)
    directed = np.zeros((25, 25))
    for row in range(25):
        for other in np.argsort(-table[row])[:k]:
            directed[row, other] = max(table[row, other], 0) ** gamma
    graph = directed + directed.T
    degrees = graph.sum(axis=1)
    expected = graph / np.sqrt(np.outer(degrees, degrees))
    found = affinity(features, k, gamma).toarray()
    np.testing.assert_allclose(found, expected, atol=1e-5)
    np.testing.assert_allclose(found, found.T, atol=1e-12)
    assert np.diag(found).max() == 0
    assert np.abs(np.linalg.eigvalsh(found)).max() <= 1 + 1e-9


@pytest.mark.parametrize("alpha", [0.0, 0.5, 0.99])
def test_the_diffusion_solves_its_system(alpha):
    features, truth = blobs(80)
    graph = affinity(features, 5)
    seeds = np.eye(3)[truth] * (np.arange(80) < 9)[:, None]
    seeds[:, 1] *= 1e-4  # columns of other sizes are solved as well
    exact = np.linalg.solve(np.eye(80) - alpha * graph.toarray(), seeds)
    np.testing.assert_allclose(diffuse(graph, seeds, alpha, tolerance=1e-10), exact, rtol=1e-6, atol=1e-9)
    np.testing.assert_array_equal(diffuse(graph, np.zeros((80, 2)), alpha), 0)


def test_propagation_as_written():
    features, truth = blobs(60)
    labels = few(truth, 2)
    labels[np.flatnonzero(truth == 0)[2:6]] = 0  # more labels of one class do not outweigh the others
    graph = affinity(features, 6)
    seeds = np.zeros((60, 3))
    for row, label in enumerate(labels):
        if label >= 0:
            seeds[row, label] = 1 / (labels == label).sum()
    reached = np.maximum(np.linalg.solve(np.eye(60) - 0.99 * graph.toarray(), seeds), 0)
    expected = reached / reached.sum(axis=1, keepdims=True)
    np.testing.assert_allclose(propagated(graph, labels, 3, 0.99), expected, atol=1e-4)


def test_labels_flow_along_the_data_where_neighbors_alone_are_wrong():
    """Two arcs with one label each at an end: the far end is nearer to the other arc's label."""
    angle = np.linspace(0, 2.2, 60)
    arcs = np.concatenate([np.stack([np.cos(angle), np.sin(angle), np.full(60, 0.25)], axis=1),
                           np.stack([np.cos(angle + 0.9), np.sin(angle + 0.9), np.full(60, -0.25)], axis=1)])
    truth = np.repeat([0, 1], 60)
    labels = np.full(120, -1)
    labels[0], labels[119] = 0, 1
    spread = label_propagation(arcs, labels, arcs, 2, k=4).argmax(axis=1)
    alone = weighted_knn(arcs, labels, arcs, 2).argmax(axis=1)
    assert (spread == truth).all()
    assert (alone == truth).mean() < 0.8


def test_a_kept_graph_gives_the_same_and_is_built_once_for_all_labels(monkeypatch):
    (features, truth), (queries, _) = blobs(60), blobs(20, seed=1)
    calls, kept, both = [], {}, ["affinity", "top_k"]

    def counted(function):
        @functools.wraps(function)
        def call(*arguments):
            calls.append(function.__name__)
            return function(*arguments)
        return call

    for function in (affinity, top_k):
        monkeypatch.setattr(propagation, function.__name__, counted(function))
    for rows, asked, k, built in ((features, queries, 6, both), (features, queries, 6, []),
                                  (features, queries[:9], 6, ["top_k"]), (features[1:], queries[:9], 6, both),
                                  (features[1:], queries[:9], 5, both)):
        for per_class in (1, 3):
            labels = few(truth, per_class)[-len(rows):]
            plain = label_propagation(rows, labels, asked, 3, k)
            calls.clear()
            np.testing.assert_array_equal(label_propagation(rows, labels, asked, 3, k, kept=kept), plain)
            assert calls == (built if per_class == 1 else [])


def test_rows_that_no_label_reaches_are_undecided():
    features = np.concatenate([np.eye(2, 6)[[0] * 8], np.eye(2, 6)[[1] * 8]]) + 1e-3 * np.eye(16, 6, k=-2)
    labels = np.full(16, -1)
    labels[0] = 0
    beliefs = propagated(affinity(features, 3), labels, 2)
    np.testing.assert_allclose(beliefs[:8, 0], 1, atol=1e-3)
    np.testing.assert_allclose(beliefs[8:], 0.5)


def test_balanced_takes_the_same_number_of_each_class():
    probs = np.array([[0.9, 0.1], [0.8, 0.2], [0.7, 0.3], [0.4, 0.6], [0.6, 0.4]], dtype=np.float32)
    rows, guess = balanced(probs, 2)
    assert rows.tolist() == [0, 1, 3]
    assert guess.tolist() == [0, 0, 1]


def test_self_training_uses_the_unlabeled_rows():
    features, truth = blobs(600, classes=4, dim=10, spread=1.0)
    queries, answers = blobs(400, classes=4, dim=10, spread=1.0, seed=1)
    better = []
    for seed in range(5):
        labels = np.full(600, -1)
        order = np.random.default_rng(seed).permutation(600)
        for label in range(4):
            labels[order[truth[order] == label][:2]] = label
        plain, ours = (learner(features, labels, queries, 4).argmax(axis=1) == answers
                       for learner in (linear_probe, self_training))
        better.append(ours.mean() - plain.mean())
    assert np.mean(better) > 0.02


def test_self_training_without_unlabeled_rows_is_the_first_learner():
    features, truth = blobs(30)
    plain = linear_probe(features, truth, features, 3)
    np.testing.assert_array_equal(self_training(features, truth, features, 3), plain)


def test_an_ensemble_is_the_mean_and_teaches_its_members():
    (a, truth), (b, _) = blobs(90, spread=2.0), blobs(90, spread=2.0, seed=5)
    labels = few(truth, 3)
    plain = ensemble([a, b], labels, [a, b], 3, weighted_knn, pseudo=False, k=3)
    np.testing.assert_allclose(plain, (weighted_knn(a, labels, a, 3, k=3) + weighted_knn(b, labels, b, 3, k=3)) / 2)
    rows = np.flatnonzero(labels == -1)
    taken, guess = balanced(plain[rows], len(rows) // 6)
    more = labels.copy()
    more[rows[taken]] = guess
    np.testing.assert_allclose(
        ensemble([a, b], labels, [a, b], 3, weighted_knn, k=3),
        (weighted_knn(a, more, a, 3, k=3) + weighted_knn(b, more, b, 3, k=3)) / 2)
    alone = [(weighted_knn(each, labels, each, 3).argmax(axis=1) == truth).mean() for each in (a, b)]
    assert (ensemble([a, b], labels, [a, b], 3).argmax(axis=1) == truth).mean() > max(alone)


@pytest.mark.parametrize(("act", "words"), [
    (lambda x, y: weighted_knn(x, y, x, 3, k=0), "k=0"),
    (lambda x, y: weighted_knn(x, y, x, 3, temperature=0), "temperature=0"),
    (lambda x, y: nearest_prototype(x, y, x, 3, temperature=-1), "temperature=-1"),
    (lambda x, y: linear_probe(x, y, x, 3, l2=0.0), "l2=0.0"),
    (lambda x, y: linear_probe(x, y, x[:, :3], 3), r"queries have shape \[30, 3\], expected \[n, 12\]"),
    (lambda x, y: label_propagation(x, y, x, 3, alpha=1.0), "alpha=1.0"),
    (lambda x, y: label_propagation(x, y, x, 3, gamma=0), "gamma=0"),
    (lambda x, y: affinity(x, 30), "k=30"),
    (lambda x, y: propagated(affinity(x, 3), y[:9], 3), "9 labels"),
    (lambda x, y: self_training(x, y, x, 3, rounds=0), "rounds=0"),
    (lambda x, y: self_training(x, y, x, 3, share=1.5), "share=1.5"),
    (lambda x, y: ensemble([x], y, [x, x], 3), "1 sets of features and 2 of queries"),
])
def test_errors(act, words):
    with pytest.raises(UsageError, match=words):
        act(*blobs(30))
