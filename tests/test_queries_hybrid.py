"""Queries of uncertainty and diversity at once, against slow float64 references and the identities of their papers."""

import numpy as np
import pytest
from scipy.cluster.hierarchy import fcluster, linkage
from scipy.spatial.distance import squareform
from scipy.stats import chisquare

from ssl_lab.active.queries import badge, cluster_margin, neighbors
from ssl_lab.active.queries.alfa_mix import AlfaMix, changes_at
from ssl_lab.active.queries.badge import Badge, spread
from ssl_lab.active.queries.bait import Bait
from ssl_lab.active.queries.cal import Cal, contrast
from ssl_lab.active.queries.checks import check_query
from ssl_lab.active.queries.clue import Clue, nearest_rows, weighted_k_means
from ssl_lab.active.queries.cluster_margin import ClusterMargin, average_linkage, in_turn, neighbor_graph
from ssl_lab.active.queries.galaxy import Galaxy, next_spot
from ssl_lab.active.queries.share import Share
from ssl_lab.active.queries.view import PoolView
from ssl_lab.errors import UsageError

ALL = [Badge, ClusterMargin, Clue, AlfaMix, Bait, Galaxy, Cal]
NEED_LABELS = [AlfaMix, Cal]


def _pool(rows=60, dim=5, classes=3, labeled=6, seed=0, **changes):
    draws = np.random.default_rng(seed)
    weight = draws.standard_normal((classes, dim))
    h = draws.standard_normal((rows, dim)).astype(np.float32)
    logits = h @ weight.T
    p = np.exp(logits - logits.max(axis=1, keepdims=True))
    labels = np.full(rows, -1)
    labels[draws.permutation(rows)[:labeled]] = np.arange(labeled) % classes
    arrays = {"embeddings": h, "probs": p / p.sum(axis=1, keepdims=True), "head_weight": weight,
              "head_bias": np.zeros(classes)}
    return PoolView(labels, **{**arrays, **changes})


def _without_labels(view):
    return PoolView(np.where(view.labels >= 0, -1, view.labels), **_arrays(view))


def _arrays(view):
    return {name: getattr(view, name) for name in ("embeddings", "probs", "head_weight", "head_bias")}


# --- All of them ---------------------------------------------------------------------------------


@pytest.mark.parametrize("query", ALL)
def test_contract(query):
    check_query(query())


@pytest.mark.parametrize("query", ALL)
def test_certain_predictions_give_a_full_budget(query):
    view = _pool()
    arrays = _arrays(view)
    arrays["probs"][:] = np.eye(3)[np.arange(60) % 3]
    arrays["head_weight"][:] *= 1000
    assert len(set(query()(PoolView(view.labels, **arrays), 20).tolist())) == 20


@pytest.mark.parametrize("query", ALL)
def test_no_labels(query):
    view = _without_labels(_pool())
    if query in NEED_LABELS:
        with pytest.raises(UsageError, match="none is labeled"):
            query()(view, 5)
    else:
        assert len(set(query()(view, 60).tolist())) == 60


# --- BADGE ---------------------------------------------------------------------------------------


def _gradients(view):
    p = view.probs.astype(np.float64)
    residual = p - np.eye(p.shape[1])[p.argmax(axis=1)]
    return (residual[:, :, None] * view.embeddings.astype(np.float64)[:, None, :]).reshape(len(p), -1)


def _sequences(points, weight, first, count):
    """The probability of each sequence of k-means++ after `first`, by definition."""
    found = {(first,): 1.0}
    for _ in range(count - 1):
        longer = {}
        for chosen, probability in found.items():
            squares = ((points[:, None] - points[list(chosen)]) ** 2).sum(axis=2).min(axis=1) * weight
            for x in np.flatnonzero(squares > 0):
                longer[*chosen, int(x)] = probability * squares[x] / squares.sum()
        found = longer
    return found


def _assert_drawn_from(expected, observed):
    """Chi-square over the outcomes; rare ones together."""
    assert set(observed) <= set(expected)
    total = sum(observed.values())
    common = [key for key, probability in expected.items() if probability * total >= 10]
    counts = [observed.get(key, 0) for key in common]
    wanted = [expected[key] * total for key in common]
    if sum(wanted) < total * (1 - 1e-9):
        counts.append(total - sum(counts))
        wanted.append(total - sum(wanted))
    assert len(counts) > 10
    assert chisquare(counts, wanted).pvalue > 0.001


@pytest.mark.parametrize("block", [1, 3, 128])
def test_blocked_sampling_has_the_distribution_of_plain_k_means_plus_plus(monkeypatch, block):
    """With 128 proposals between passes nearly all picks of so small a pool are from stale distances."""
    monkeypatch.setattr(badge, "BLOCK", block)
    view = _pool(rows=7, dim=2, labeled=0, seed=3)
    weight = np.array([1, 1, 0, 1, 1, 2, 1], dtype=np.float32)
    p = view.probs
    residual = p - np.eye(3, dtype=np.float32)[p.argmax(axis=1)]
    draws = np.random.default_rng(0)

    def gradients(rows):
        return view.embeddings[rows], residual[rows]

    observed = {}
    for _ in range(3000):
        picks = tuple(spread(Share(7), gradients, weight, 0, 4, draws).tolist())
        observed[picks] = observed.get(picks, 0) + 1
    _assert_drawn_from(_sequences(_gradients(view), weight, 0, 4), observed)


def test_badge_begins_with_the_longest_gradient_and_ignores_what_is_labeled():
    view = _pool()
    norms = np.where(view.labels == -1, (_gradients(view) ** 2).sum(axis=1), -1)
    assert {int(Badge()(view, 3, seed)[0]) for seed in range(5)} == {int(norms.argmax())}


def test_badge_takes_equal_rows_only_when_nothing_else_is_left():
    view = _pool(rows=40, labeled=0)
    arrays = {name: np.tile(getattr(view, name), (4, 1)) for name in ("embeddings", "probs")}
    picks = Badge()(PoolView(np.full(160, -1), **arrays), 160)
    assert sorted((picks[:40] % 40).tolist()) == list(range(40))
    assert sorted(picks.tolist()) == list(range(160))


# --- Cluster-Margin ------------------------------------------------------------------------------


def _partition(labels):
    return {frozenset(np.flatnonzero(labels == label).tolist()) for label in np.unique(labels)}


@pytest.mark.parametrize("clusters", [1, 4, 13, 60])
def test_with_all_neighbors_the_clusters_are_those_of_average_linkage(clusters):
    h = _pool(rows=60).embeddings
    tree = linkage(h.astype(np.float64), method="average")
    expected = _partition(fcluster(tree, clusters, criterion="maxclust"))
    assert _partition(average_linkage(neighbor_graph(h, 59), clusters)) == expected


def test_pairs_without_an_edge_count_as_the_longest_edge():
    """On a sparse graph, too, merging all mutual pairs at once is merging one by one."""
    h = _pool(rows=60).embeddings
    graph = neighbor_graph(h, 4).astype(np.float64)
    full = np.where(graph.toarray() > 0, graph.toarray(), graph.max())
    np.fill_diagonal(full, 0)
    tree = linkage(squareform(full, checks=False), method="average")
    assert _partition(average_linkage(graph, 12)) == _partition(fcluster(tree, 12, criterion="maxclust"))


def test_neighbor_graph_is_that_of_the_distances():
    h = _pool(rows=40).embeddings.astype(np.float64)
    far = np.sqrt(((h[:, None] - h) ** 2).sum(axis=2))
    near = np.argsort(far, axis=1)[:, 1:4]
    expected = np.zeros((40, 40), dtype=bool)
    expected[np.arange(40)[:, None], near] = True
    graph = neighbor_graph(h.astype(np.float32), 3).toarray()
    assert np.array_equal(graph > 0, expected | expected.T)
    assert np.allclose(graph[graph > 0], far[graph > 0], atol=1e-5)


def test_approximate_neighbors_are_mostly_the_nearest(monkeypatch):
    h = _pool(rows=3000, dim=4).embeddings
    exact = neighbor_graph(h, 5)
    monkeypatch.setattr(neighbors, "ALL", 1000)
    found = neighbor_graph(h, 5)
    assert (exact != 0).multiply(found != 0).sum() / exact.nnz > 0.9


def test_very_many_rows_are_clustered_in_parts(monkeypatch):
    """Clumps lie in one part each, so that the clusters are those of all; equal rows are parted as they come."""
    draws = np.random.default_rng(0)
    clump = np.repeat(np.arange(40), 25)
    x = (20 * draws.standard_normal((40, 6))[clump] + draws.standard_normal((1000, 6))).astype(np.float32)
    query = ClusterMargin(neighbors=24, size=25)
    whole = query.clusters(x)
    assert _partition(whole) == _partition(clump)
    monkeypatch.setattr(cluster_margin, "WHOLE", 400)
    parts = query.clusters(x)
    assert np.mean([len(np.unique(clump[parts == cluster])) for cluster in np.unique(parts)]) < 1.1
    assert len(query.clusters(np.ones((1000, 3), dtype=np.float32))) == 1000


def test_equal_rows_and_parts_without_an_edge_are_clustered():
    twins = np.repeat(np.eye(4, dtype=np.float32), 5, axis=0)
    assert _partition(average_linkage(neighbor_graph(twins, 4), 4)) == {frozenset(range(5 * i, 5 * i + 5))
                                                                       for i in range(4)}
    apart = np.repeat(np.array([[0.0], [100.0]], dtype=np.float32), 4, axis=0) + np.arange(8)[:, None] / 10
    assert len(_partition(average_linkage(neighbor_graph(apart.astype(np.float32), 2), 1))) == 2


def test_turns_go_round_the_clusters_smallest_first():
    clusters = np.array([5, 5, 5, 5, 2, 9, 9])
    order = in_turn(clusters, np.random.default_rng(0))
    assert clusters[order].tolist() == [2, 9, 5, 9, 5, 5, 5]
    assert sorted(order.tolist()) == list(range(7))
    firsts = {int(in_turn(clusters, np.random.default_rng(seed))[2]) for seed in range(40)}
    assert firsts == {0, 1, 2, 3}


def test_cluster_margin_chooses_among_the_least_margins():
    view = _pool(labeled=0)
    top = np.sort(view.probs, axis=1)
    unsure = np.argsort(top[:, -1] - top[:, -2])
    picks = ClusterMargin(pool=2)(view, 6)
    assert set(picks.tolist()) <= set(unsure[:12].tolist())
    assert set(ClusterMargin(pool=1)(view, 6).tolist()) == set(unsure[:6].tolist())
    with pytest.raises(UsageError, match="pool"):
        ClusterMargin(pool=0.5)


# --- CLUE ----------------------------------------------------------------------------------------


def test_weighted_k_means_is_at_a_fixed_point_of_its_definition():
    view = _pool(rows=80, labeled=0)
    x, weight = view.embeddings, np.random.default_rng(1).random(80).astype(np.float32) + 0.1
    centers, mass = weighted_k_means(x, weight, 6, np.random.default_rng(0), iterations=100)
    nearest = ((x[:, None].astype(np.float64) - centers) ** 2).sum(axis=2).argmin(axis=1)
    for k in range(6):
        inside = nearest == k
        assert np.allclose(centers[k], (weight[inside, None] * x[inside]).sum(axis=0) / weight[inside].sum(), atol=1e-5)
        assert mass[k] == pytest.approx(weight[inside].sum(), rel=1e-5)


def test_each_center_takes_the_nearest_row_that_is_left():
    x = np.array([[0.0], [1.0], [5.0], [9.0]], dtype=np.float32)
    centers = np.array([[0.4], [0.3], [0.2], [8.0]], dtype=np.float32)
    assert nearest_rows(x, centers).tolist() == [0, 1, 2, 3]


def test_clue_weighs_by_entropy_and_begins_with_the_heaviest_cluster():
    h = np.array([[0.0], [0.1], [10.0], [10.1], [10.2]], dtype=np.float32)
    p = np.array([[0.5, 0.5], [1, 0], [1, 0], [0.9, 0.1], [1, 0]])
    assert Clue()(PoolView(np.full(5, -1), embeddings=h, probs=p), 2).tolist() == [0, 3]


# --- ALFA-Mix ------------------------------------------------------------------------------------


def _mixed_predictions(z, anchor, weight, bias, eps):
    """By the paper: the gradient, alpha element by element, the mix, its class."""
    logits = weight @ z + bias
    p = np.exp(logits - logits.max())
    p /= p.sum()
    gradient = weight.T @ (p - np.eye(len(p))[logits.argmax()])
    alpha = eps * np.linalg.norm(anchor - z) * gradient / (np.linalg.norm(gradient) * (anchor - z))
    return int((weight @ (alpha * anchor + (1 - alpha) * z) + bias).argmax())


def test_predictions_change_where_the_mix_says():
    view = _pool(rows=30)
    z, weight = view.embeddings.astype(np.float64), view.head_weight.astype(np.float64)
    bias = np.array([0.1, -0.2, 0.3])
    anchors = np.random.default_rng(5).standard_normal((2, 5))
    eps = changes_at(view.embeddings, anchors.astype(np.float32), view.head_weight, bias.astype(np.float32))
    assert np.isfinite(eps).sum() > 20
    for row, at in zip(z, eps, strict=True):
        label = int((weight @ row + bias).argmax())
        for factor, changes in ((0.99, False), (1.01, True)):
            mixed = {_mixed_predictions(row, anchor, weight, bias, min(at * factor, 1e3)) for anchor in anchors}
            assert (mixed != {label}) == (changes and np.isfinite(at))


def test_alfa_mix_takes_all_that_change_at_the_least_cap_that_is_enough():
    view = _pool(rows=200, labeled=12)
    anchors = np.stack([view.embeddings[view.labels == c].astype(np.float64).mean(axis=0) for c in range(3)])
    z, weight = view.embeddings.astype(np.float64), view.head_weight.astype(np.float64)
    for budget in (1, 15):
        for cap in range(1, 33):
            eps = cap / 32 / 5**0.5
            changing = {int(row) for row in view.candidates
                        if any(_mixed_predictions(z[row], anchor, weight, 0, eps) != (weight @ z[row]).argmax()
                               for anchor in anchors)}
            if len(changing) >= budget:
                break
        assert set(AlfaMix()(view, budget).tolist()) <= changing
        assert len(changing) < 60


def test_alfa_mix_fills_up_at_random_where_too_few_change():
    view = _pool(rows=50)
    arrays = _arrays(view)
    arrays["head_bias"] = np.array([1e4, 0, 0], dtype=np.float32)
    sure = PoolView(view.labels, **arrays)
    picks = [tuple(AlfaMix()(sure, 5, seed).tolist()) for seed in range(5)]
    assert len(set(picks)) == 5


# --- BAIT ----------------------------------------------------------------------------------------


def _block(h, p):
    """Diagonal blocks, one a class, of the Fisher information: [C, D, D]."""
    return (p * (1 - p))[:, None, None] * np.outer(h, h)


def _whole(h, p):
    """The Fisher information of softmax: [1, C D, C D]."""
    return np.kron(np.diag(p) - np.outer(p, p), np.outer(h, h))[None]


def _greedy(view, budget, ridge, fisher):
    """Forward and backward by inverting the whole matrix for each row of each step."""
    parts = [fisher(h, p) for h, p in zip(view.embeddings.astype(np.float64), view.probs.astype(np.float64),
                                          strict=True)]
    pool = sum(parts)
    start = ridge * np.eye(pool.shape[1]) + sum((parts[i] for i in view.labeled), start=np.zeros_like(pool))

    def trace(rows):
        inside = start + sum((parts[i] for i in rows), start=np.zeros_like(pool))
        return np.trace(np.linalg.inv(inside) @ pool, axis1=1, axis2=2).sum()

    chosen = []
    for _ in range(2 * budget):
        chosen.append(min(set(view.candidates.tolist()) - set(chosen), key=lambda row: trace([*chosen, row])))
    while len(chosen) > budget:
        chosen.remove(min(chosen, key=lambda row: trace([i for i in chosen if i != row])))
    return chosen


@pytest.mark.parametrize("ridge", [0.1, 1.0])
def test_bait_picks_what_inverting_every_matrix_picks(ridge):
    view = _pool(rows=25, dim=3, labeled=4)
    assert Bait(ridge)(view, 5).tolist() == _greedy(view, 5, ridge, _block)


def test_bait_of_two_classes_is_that_of_the_whole_information():
    view = _pool(rows=25, dim=3, classes=2, labeled=4)
    assert Bait(0.5)(view, 5).tolist() == _greedy(view, 5, 1.0, _whole)


def test_bait_says_what_is_too_large():
    view = PoolView(np.full(2, -1), embeddings=np.zeros((2, 4096)), probs=np.full((2, 10), 0.1))
    with pytest.raises(UsageError, match="at most"):
        Bait()(view, 1)
    with pytest.raises(UsageError, match="ridge"):
        Bait(ridge=0)


# --- GALAXY --------------------------------------------------------------------------------------


def _spot(line):
    """next_spot on a line such as "1..0..": what may be drawn."""
    known = np.array([i for i, mark in enumerate(line) if mark != "."])
    positive = np.array([line[i] == "1" for i in known])
    return {next_spot(known, positive, len(line), np.random.default_rng(seed)) for seed in range(30)}


@pytest.mark.parametrize(("line", "spots"), [
    ("1.......0", {4}),  # bisect
    ("1...0...1..0", {9}),  # the shortest run between opposites: places 8 to 11
    ("0.0...1", {4}),  # a run between equals is none
    ("..10...", {1, 4}),  # next to the cut, either side
    ("..1110...", {6}),  # the nearer side
    (".110", {0}),
    ("10.....01", {2, 6}),
    ("1.1.", {1, 3}),  # no cut: any
])
def test_where_galaxy_asks(line, spots):
    assert _spot(line) == spots


def test_galaxy_bisects_the_sorted_pool():
    """Two classes, known at the ends: halves the run, as long as answers are as predicted."""
    p = np.linspace(0.0, 1.0, 65)
    labels = np.full(65, -1)
    labels[0], labels[64] = 1, 0
    picks = Galaxy()(PoolView(labels, probs=np.stack([p, 1 - p], axis=1)), 4, seed=0)
    predicted_cut = 32
    assert picks[0] == 32
    assert np.abs(picks[1:] - predicted_cut).max() <= 16
    assert sorted(np.abs(picks - predicted_cut).tolist()) == [0, 4, 8, 16]


def test_galaxy_sorts_by_the_probability_less_the_highest():
    p = np.array([[0.5, 0.3, 0.2], [0.4, 0.35, 0.25], [0.2, 0.45, 0.35], [0.1, 0.3, 0.6], [0.05, 0.9, 0.05]])
    orders = {0: [4, 3, 2, 1, 0], 1: [3, 0, 1, 2, 4], 2: [4, 0, 1, 2, 3]}
    for k, order in orders.items():
        labels = np.full(5, -1)
        labels[order[0]], labels[order[-1]] = (k + 1) % 3, k  # only on line k is there a run between opposites
        seen = {int(Galaxy()(PoolView(labels, probs=p), 1, seed)[0]) for seed in range(40)}
        assert order[2] in seen


# --- CAL -----------------------------------------------------------------------------------------


def test_cal_is_the_mean_divergence_from_the_labeled_neighbors():
    view = _pool(rows=50, labeled=14)
    h, p = view.embeddings.astype(np.float64), view.probs.astype(np.float64)
    scores = []
    for x in view.candidates:
        near = view.labeled[np.argsort(((h[view.labeled] - h[x]) ** 2).sum(axis=1))[:4]]
        scores.append(sum((p[i] * np.log(p[i] / p[x])).sum() for i in near) / 4)
    assert np.allclose(Cal(4).scores(view, view.candidates), scores, atol=1e-5)
    expected = view.candidates[np.argsort(scores)[::-1][:10]]
    assert Cal(4)(view, 10).tolist() == expected.tolist()


def test_contrast_is_zero_for_equals_and_finite_where_a_class_is_ruled_out():
    p = np.array([[1, 0], [0.5, 0.5], [0, 1]], dtype=np.float32)
    near = np.array([[0], [1], [0]])
    scores = contrast(p, p, near)
    assert scores[:2].tolist() == pytest.approx([0, 0], abs=1e-6)
    assert np.isfinite(scores[2])
    assert scores[2] > 50


def test_fewer_labeled_rows_than_neighbors():
    view = _pool(labeled=3)
    assert np.array_equal(Cal(10)(view, 5), Cal(3)(view, 5))


# --- One pool, whatever the order of its rows ------------------------------------------------------


@pytest.mark.parametrize(("query", "other"), [(Bait, 1), (Bait, 2), (Cal, 1)])
def test_the_order_of_rows_does_not_matter(query, other):
    view = _pool()
    order = np.random.default_rng(other).permutation(60)
    arrays = {name: getattr(view, name)[order] for name in ("embeddings", "probs")}
    shuffled = PoolView(view.labels[order], ids=order, **arrays)
    assert query()(view, 8).tolist() == query()(shuffled, 8).tolist()
