"""Diversity queries: the contract, picks of slow float64 loops, bounds that the papers prove, memory, fallbacks."""

import itertools
import math
import tracemalloc

import numpy as np
import pytest

from ssl_lab.active.queries import coverage, distances, neighbors, pairs, typiclust
from ssl_lab.active.queries.base import rng
from ssl_lab.active.queries.checks import check_query
from ssl_lab.active.queries.coverage import MaxHerding, ProbCover, compared, covering_radius
from ssl_lab.active.queries.facility_location import FacilityLocation
from ssl_lab.active.queries.k_center import KCenter
from ssl_lab.active.queries.k_means import KMeans
from ssl_lab.active.queries.pairs import pairs_within
from ssl_lab.active.queries.typiclust import TypiClust, mean_neighbor_distances
from ssl_lab.active.queries.view import PoolView
from ssl_lab.errors import UsageError
from ssl_lab.features.search import unit

ALL = [KCenter(), KMeans(), TypiClust(), ProbCover(), ProbCover(delta=0.5), FacilityLocation(), MaxHerding()]


def _view(rows=60, features=5, labeled=4, seed=0):
    draw = np.random.default_rng(seed)
    x = draw.normal(size=(rows, features)) + 2 * draw.normal(size=(4, features))[draw.integers(4, size=rows)]
    labels = np.full(rows, -1)
    some = draw.permutation(rows)
    labels[some[:labeled]] = np.arange(labeled) % 3
    labels[some[labeled : labeled + 3]] = -2
    return PoolView(labels, embeddings=x)


def _blobs(sizes, gap=50.0, seed=0):
    """Blobs so far apart that k-means finds them if it starts in each; the blob of each row."""
    draw = np.random.default_rng(seed)
    blob = np.repeat(np.arange(len(sizes)), sizes)
    x = draw.normal(size=(len(blob), 3)) + gap * np.eye(len(sizes), 3)[blob] * (1 + blob[:, None])
    order = draw.permutation(len(blob))
    return x[order].astype(np.float32), blob[order]


def _d(a, b):
    return math.sqrt(sum((float(u) - float(v)) ** 2 for u, v in zip(a, b, strict=True)))


def _table(x):
    return np.array([[_d(a, b) for b in x] for a in x])


def _unit(x):
    x = np.asarray(x, dtype=np.float64)
    return x / np.linalg.norm(x, axis=1, keepdims=True)


@pytest.mark.parametrize("query", ALL, ids=lambda query: query.name)
def test_contract(query):
    check_query(query)


# k-center

def _slow_k_center(view, budget, first=None):
    d = _table(view.embeddings)
    centers, chosen = view.labeled.tolist(), []
    for _ in range(budget):
        left = [row for row in view.candidates.tolist() if row not in chosen]
        best = max(left, key=lambda row: min(d[row, j] for j in centers)) if centers else first
        chosen.append(best)
        centers.append(best)
    return chosen


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("labeled", [0, 1, 6])
def test_k_center_is_the_slow_one(seed, labeled):
    view = _view(labeled=labeled, seed=seed)
    chosen = KCenter()(view, 20, seed).tolist()
    assert chosen == _slow_k_center(view, 20, chosen[0])


def test_k_center_with_many_rows_is_the_slow_one(monkeypatch):
    monkeypatch.setattr("ssl_lab.active.queries.greedy.HOT", 16)
    draw = np.random.default_rng(0)
    x = draw.normal(size=(700, 6)).astype(np.float32)
    chosen = KCenter()(PoolView(np.full(700, -1), embeddings=x), 120).tolist()
    nearest, slow = np.full(700, np.inf), [chosen[0]]
    for _ in range(119):
        nearest = np.minimum(nearest, ((x.astype(np.float64) - x[slow[-1]].astype(np.float64)) ** 2).sum(axis=1))
        slow.append(int(nearest.argmax()))
    assert chosen == slow


def test_k_center_covers_within_twice_the_smallest_radius():
    view = _view(rows=14, labeled=0, seed=3)
    rows, d = view.candidates, _table(view.embeddings)

    def widest(centers):
        return max(min(d[row, j] for j in centers) for row in rows)

    best = min(widest(centers) for centers in itertools.combinations(rows, 3))
    assert all(widest(KCenter()(view, 3, seed)) <= 2 * best + 1e-9 for seed in range(5))


def test_k_center_is_not_misled_by_a_far_mean():
    """Embeddings after a ReLU are far from 0; squares of 1e3 would leave nothing of distances of 1."""
    view = _view(rows=40)
    moved = PoolView(view.labels, embeddings=view.embeddings.astype(np.float64) + 1000)
    assert KCenter()(moved, 15).tolist() == _slow_k_center(moved, 15)


def test_first_pick_with_nothing_labeled_is_drawn_from_the_seed():
    view = _view(labeled=0)
    firsts = {int(KCenter()(view, 1, seed)[0]) for seed in range(40)}
    assert len(firsts) > 15


# k-means

def test_k_means_takes_the_row_next_to_each_mean_largest_cluster_first():
    x, blob = _blobs([30, 12, 21])
    view = PoolView(np.full(63, -1), embeddings=x)
    seed = next(seed for seed in range(50)
                if len({tuple(np.unique(blob[distances.k_means(x, 3, seed)[0] == c])) for c in range(3)}) == 3)
    expected = []
    for each in (0, 2, 1):
        members = np.flatnonzero(blob == each)
        mean = x[members].astype(np.float64).mean(axis=0)
        expected.append(min(members.tolist(), key=lambda row: _d(x[row], mean)))
    assert KMeans(restarts=10)(view, 3, seed).tolist() == expected


def test_k_means_uses_all_rows():
    """FAISS would train on 256 rows of a cluster: then its center is not the mean of all."""
    x = np.random.default_rng(0).normal(size=(3000, 2)).astype(np.float32)
    clusters, squared = distances.k_means(x, 1, seed=0)
    assert not clusters.any()
    assert np.allclose(squared, ((x - x.mean(axis=0)) ** 2).sum(axis=1), atol=1e-5)


def test_k_means_is_a_fixed_point_and_reports_its_distances():
    x = np.random.default_rng(1).normal(size=(200, 3)).astype(np.float32)
    clusters, squared = distances.k_means(x, 5, seed=1, iterations=200)
    means = np.stack([x[clusters == c].mean(axis=0) for c in range(5)])
    table = ((x[:, None].astype(np.float64) - means) ** 2).sum(axis=2)
    assert np.array_equal(table.argmin(axis=1), clusters)
    assert np.allclose(squared, table.min(axis=1), atol=1e-5)


def test_k_means_fills_up_when_rows_are_equal():
    x = np.repeat(np.eye(3), 10, axis=0)
    picks = KMeans()(PoolView(np.full(30, -1), embeddings=x), 8)
    assert {int(row) // 10 for row in picks[:3]} == {0, 1, 2}
    assert len(set(picks)) == 8


# TypiClust

def _slow_typiclust(view, budget, seed, max_clusters=500):
    rows = np.flatnonzero(view.labels != -2)
    x = view.embeddings[rows] if len(rows) < len(view) else view.embeddings
    count = min(len(view.labeled) + budget, max_clusters)
    clusters, _ = distances.k_means(x, count, seed)
    groups = []
    for c in range(count):
        members = rows[clusters == c].tolist()
        k = min(20, len(members) // 2)
        typicality = {}
        for row in members:
            near = sorted(_d(view.embeddings[row], view.embeddings[o]) for o in members if o != row)[:k]
            typicality[row] = k / sum(near) if near else 0
        free = sorted((row for row in members if view.labels[row] == -1), key=lambda row: -typicality[row])
        groups.append((len(members), sum(view.labels[row] >= 0 for row in members), free))
    large = sorted((group for group in groups if group[0] > 5), key=lambda group: (group[1], -group[0]))
    chosen, turn = [], 0
    while any(turn < len(group[2]) for group in large):
        chosen += [group[2][turn] for group in large if turn < len(group[2])]
        turn += 1
    return chosen[:budget], large


def _sizes_differ(large):
    return len({group[:2] for group in large}) == len(large)


@pytest.mark.parametrize(("labeled", "budget", "limit"), [(0, 3, 500), (2, 4, 500), (3, 9, 4)])
def test_typiclust_is_the_slow_one(labeled, budget, limit):
    compared = 0
    for seed in range(8):
        view = _view(rows=150, labeled=labeled, seed=seed)
        expected, large = _slow_typiclust(view, budget, seed, limit)
        if _sizes_differ(large) and len(expected) == budget:
            assert TypiClust(max_clusters=limit)(view, budget, seed).tolist() == expected
            compared += 1
    assert compared >= 3


def test_typiclust_asks_where_there_is_no_label_and_leaves_small_clusters_out():
    for seed in range(100):
        x, blob = _blobs([40, 30, 4], seed=1)
        if len({tuple(np.unique(blob[distances.k_means(x, 3, seed)[0] == c]))
                for c in range(3)}) == 3:
            break
    labels = np.full(74, -1)
    labels[np.flatnonzero(blob == 0)[0]] = 0  # the largest has a label
    view = PoolView(labels, embeddings=x)
    assert blob[TypiClust()(view, 2, seed)].tolist() == [1, 0]
    everything = blob[TypiClust(max_clusters=3)(view, 73, seed)]
    assert set(everything[-4:]) == {2}, "the small cluster comes last"
    assert everything[:4].tolist() == [1, 0, 1, 0], "round robin"


def test_typicality_is_one_over_the_mean_distance_not_its_square():
    x = np.array([[0.0], [1.0], [4.0], [9.0]], dtype=np.float32)
    assert mean_neighbor_distances(x, 2) == pytest.approx([(1 + 4) / 2, (1 + 3) / 2, (3 + 4) / 2, (5 + 8) / 2])


@pytest.mark.parametrize("k", [1, 20])
def test_neighbors_of_many_rows_are_sought_nearby(k, monkeypatch):
    draw = np.random.default_rng(0)
    x = (draw.normal(size=(3000, 5)) + 4 * draw.normal(size=(8, 5))[draw.integers(8, size=3000)]).astype(np.float32)
    x[:40] = x[0]  # equal rows have neighbors at distance 0
    exact = mean_neighbor_distances(x, k)
    d = np.sqrt(((x[:, None].astype(np.float64) - x) ** 2).sum(axis=2))
    np.testing.assert_allclose(exact, np.sort(d, axis=1)[:, 1 : k + 1].mean(axis=1), atol=3e-3)
    monkeypatch.setattr(typiclust, "EXACT", 1000)
    order, groups = neighbors.neighborhoods(x, k + 1, 1000)
    groups = [(members, others, sum(each.stop - each.start for each in others)) for members, others in groups]
    assert sorted(order.tolist()) == list(range(3000))
    assert sorted(place for members, *_ in groups for place in range(members.start, members.stop)) == list(range(3000))
    assert all(others[0].start <= members.start < members.stop <= others[0].stop for members, others, _ in groups)
    assert all(len(set(map(str, others))) == len(others) and count > k for _, others, count in groups)
    pairs = sum((members.stop - members.start) * count for members, _, count in groups)
    assert pairs < 3000**2 / 4, "not quadratic"
    for members, apart, near in neighbors.nearest_others(x, k, 1000):
        assert (near != members[:, None]).all()
        np.testing.assert_allclose(apart, d[members[:, None], near], atol=3e-3)
    found = mean_neighbor_distances(x, k)
    assert (found >= exact - 3e-3).all(), "others are farther, never nearer"
    assert np.mean(found <= 1.05 * exact + 3e-3) > 0.9
    assert exact[found.argmin()] <= exact.min() + 3e-3, "the most typical row is the same"


def test_typiclust_of_large_clusters_takes_the_exact_picks_mostly(monkeypatch):
    draw = np.random.default_rng(1)
    x = (draw.normal(size=(6000, 4)) + 6 * draw.normal(size=(5, 4))[draw.integers(5, size=6000)]).astype(np.float32)
    view = PoolView(np.full(6000, -1), embeddings=x)
    exact = TypiClust()(view, 5, 0)
    monkeypatch.setattr(typiclust, "EXACT", 500)
    assert len(np.intersect1d(TypiClust()(view, 5, 0), exact)) >= 4


def test_rows_that_are_all_equal_have_neighborhoods(monkeypatch):
    monkeypatch.setattr(typiclust, "EXACT", 10)
    x = np.ones((300, 3), dtype=np.float32)
    order, groups = neighbors.neighborhoods(x, 21, 10)
    assert sorted(order.tolist()) == list(range(300))
    assert all(sum(each.stop - each.start for each in others) >= 21 for _, others in groups)
    assert not mean_neighbor_distances(x, 20).any()


# ProbCover

def _covers(view, picks, delta):
    """For each pick, in turn: how many rows it newly covers, and the most that any candidate would."""
    rows = np.flatnonzero(view.labels != -2).tolist()
    d = _table(_unit(view.embeddings))
    covered = {i for i in rows if any(d[i, j] <= delta for j in view.labeled)}
    left = view.candidates.tolist()
    for pick in picks.tolist():
        gains = {row: sum(d[row, i] <= delta for i in rows if i not in covered) for row in left}
        yield gains[pick], max(gains.values())
        left.remove(pick)
        covered |= {i for i in rows if d[pick, i] <= delta}


@pytest.mark.parametrize("delta", [0.2, 0.6, 1.1])
@pytest.mark.parametrize("labeled", [0, 5])
def test_every_pick_of_prob_cover_covers_most(delta, labeled):
    view = _view(labeled=labeled)
    gains = list(_covers(view, ProbCover(delta)(view, 25, seed=1), delta))
    assert all(own == most for own, most in gains)
    assert gains[0][0] > gains[-1][0]


def test_prob_cover_goes_on_by_chance_when_all_is_covered():
    view = _view(labeled=0)
    orders = {tuple(ProbCover(delta=2.0)(view, 10, seed)) for seed in range(5)}
    assert len(orders) == 5
    assert all(len(set(order)) == 10 for order in orders)


def test_neighbors_are_those_of_the_table(monkeypatch):
    x = _unit(_view().embeddings).astype(np.float32)
    table = np.triu(_table(x) <= 0.7, 1)
    whole = pairs_within(x, 0.7)
    assert np.array_equal(whole.toarray(), table)
    monkeypatch.setattr(pairs, "SIDE", 7)
    assert np.array_equal(pairs_within(x, 0.7).toarray(), table)


@pytest.mark.parametrize("delta", [0.05, 0.6, 0.9, 1.2, 1.5])
@pytest.mark.parametrize("side", [2048, 70])
def test_pairs_that_rounded_products_leave_open_are_computed(delta, side, monkeypatch):
    """Many products lie as near to the bound as roundings are, or on it."""
    draw = np.random.default_rng(0)
    x = draw.normal(size=(5, 40))[draw.integers(5, size=300)] + 0.6 * draw.normal(size=(300, 40))
    x[:50] = x[draw.integers(300, size=50)]
    x = unit(x.astype(np.float32))
    monkeypatch.setattr(pairs, "SIDE", side)
    expected = pairs_within(x, delta).toarray()
    monkeypatch.setattr(pairs, "WORTH", 0)
    monkeypatch.setattr(pairs, "_bf16_is_faster", lambda: True)
    products = x.astype(np.float64) @ x.T
    differs = pairs_within(x, delta).toarray() != expected
    assert np.allclose(products[differs], 1 - delta**2 / 2, atol=1e-6)
    exact = np.triu(products >= 1 - delta**2 / 2, 1) != expected
    assert np.allclose(products[exact], 1 - delta**2 / 2, atol=1e-6)
    assert expected.any()
    assert not expected.all()


def _greedily_covered(d, delta, balls):
    left, covered = set(range(len(d))), set()
    for _ in range(balls):
        best = max(range(len(d)), key=lambda i: sum(d[i, j] <= delta for j in left))
        covered |= {j for j in left if d[best, j] <= delta}
        left -= covered
    return len(covered) / len(d)


@pytest.mark.parametrize(("share", "balls"), [(0.5, 3), (0.5, 12), (0.8, 3)])
def test_delta_is_the_least_with_which_greedy_balls_hold_the_share(share, balls):
    x = _unit(_view(rows=60).embeddings).astype(np.float32)
    d = _table(x[rng(0, "radius").permutation(60)])  # of equal gains the first counts
    delta = covering_radius(x, balls, share, seed=0)
    assert _greedily_covered(d, delta + 1e-6, balls) >= share
    assert _greedily_covered(d, delta - 2 / 2**15, balls) < share, "the last that was found too small"


def test_many_balls_do_not_make_delta_tiny():
    """With more balls than one for 16 rows of the sample, each would hold little but its center."""
    x = _unit(np.random.default_rng(0).normal(size=(3000, 4))).astype(np.float32)
    assert covering_radius(x, 1500, 0.5, 0) == covering_radius(x, 128, 0.5, 0) > 0.1
    assert covering_radius(x[:40], 30, 0.5, 0) == covering_radius(x[:40], 16, 0.5, 0)


def test_a_dense_class_does_not_get_all_picks():
    """One class is narrow among wide ones that touch. Small balls, as those that are pure under k-means' clusters would
    be, hold most rows there, again and again."""
    draw = np.random.default_rng(0)
    classes = np.repeat(np.arange(10), 150)
    x = 3 * np.eye(10)[classes] + draw.normal(size=(1500, 10)) * np.where(classes == 0, 0.3, 1)[:, None]
    view = PoolView(np.full(1500, -1), embeddings=x)
    assert len(np.unique(classes[ProbCover()(view, 10)])) >= 7
    assert len(np.unique(classes[ProbCover(delta=0.2)(view, 10)])) <= 3


def test_rows_with_too_many_neighbors_are_drawn(monkeypatch):
    x = _unit(np.random.default_rng(0).normal(size=(400, 4))).astype(np.float32)
    labels = np.where(np.arange(400) % 40, -1, 0)
    assert np.array_equal(compared(x, labels, 0.5, 9, 0), np.arange(400))
    monkeypatch.setattr(coverage, "PAIRS", 4000)
    kept = compared(x, labels, 1.0, 9, 0)
    assert pairs_within(x[kept], 1.0).nnz == pytest.approx(4000, rel=0.2)
    assert set(np.flatnonzero(labels == 0)) <= set(kept)
    assert len(compared(x, labels, 1.0, 300, 0)) == 310, "at least the budget"
    view = PoolView(labels, embeddings=x)
    for query in (ProbCover(), ProbCover(delta=1.0)):
        assert len(set(query(view, 300))) == 300
    monkeypatch.setattr(coverage, "ROWS", 60)
    kept = compared(x, labels, 0.01, 9, 0)
    assert len(kept) == 60
    assert all(own == most for own, most in _covers(PoolView(labels[kept], embeddings=x[kept]),
                                                    np.searchsorted(kept, ProbCover(delta=0.6)(view, 9)), 0.6))


@pytest.mark.parametrize("build", [lambda: ProbCover(share=0), lambda: ProbCover(delta=3), lambda: MaxHerding(0)])
def test_parameters_that_cannot_be_are_refused(build):
    with pytest.raises(UsageError, match="expected"):
        build()


def test_prob_cover_takes_one_row_of_each_direction():
    draw = np.random.default_rng(0)
    direction = np.repeat(np.arange(10), [9, 8, 7, 6, 5, 5, 4, 3, 2, 2])
    x = (np.eye(10)[direction] + 0.01 * draw.normal(size=(51, 10))) * draw.uniform(0.1, 9, size=(51, 1))
    picks = ProbCover(share=1.0)(PoolView(np.full(51, -1), embeddings=x), 10)
    assert sorted(direction[picks]) == list(range(10))
    assert direction[picks[:4]].tolist() == [0, 1, 2, 3]


# Facility location and MaxHerding

def _kernel(query, x):
    x = _unit(x)
    d = _table(x)
    return (1 + x @ x.T) / 2 if type(query) is FacilityLocation else np.exp(-(d**2) / query.sigma**2)


@pytest.mark.parametrize("query", [FacilityLocation(), MaxHerding(), MaxHerding(sigma=0.4)])
@pytest.mark.parametrize("labeled", [0, 5])
@pytest.mark.parametrize("block", [2**24, 150])
def test_greedy_coverage_is_the_slow_one(query, labeled, block, monkeypatch):
    monkeypatch.setattr(distances, "BLOCK", block)
    view = _view(labeled=labeled)
    kernel, rows = _kernel(query, view.embeddings), np.flatnonzero(view.labels != -2)
    centers, left = view.labeled.tolist(), view.candidates.tolist()
    for row in query(view, 15).tolist():
        values = {each: sum(max(kernel[i, j] for j in [*centers, each]) for i in rows) for each in left}
        assert values[row] == pytest.approx(max(values.values()), abs=1e-5)  # two rows may be each other's only gain
        assert min(values.values()) < values[row] - 1e-2
        centers.append(row)
        left.remove(row)


@pytest.mark.parametrize("query", [FacilityLocation(), MaxHerding()])
def test_greedy_coverage_reaches_the_share_of_the_optimum_that_submodularity_promises(query):
    view = _view(rows=15, labeled=0, seed=2)
    kernel, rows = _kernel(query, view.embeddings), view.candidates

    def value(centers):
        return sum(max(kernel[i, j] for j in centers) for i in rows)

    best = max(value(centers) for centers in itertools.combinations(rows, 3))
    assert best >= value(query(view, 3)) >= (1 - 1 / math.e) * best


# All

@pytest.mark.parametrize("query", ALL, ids=lambda query: query.name)
def test_memory_is_of_the_size_of_the_embeddings(query, monkeypatch):
    """A table of all distances would take 100 MB here."""
    monkeypatch.setattr(distances, "BLOCK", 2**17)
    x = np.random.default_rng(0).normal(size=(5000, 16)).astype(np.float32)
    view = PoolView(np.full(5000, -1), embeddings=x)
    tracemalloc.start()
    query(view, 20)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < (60e6 if query.name == "prob_cover" else 12e6)


@pytest.mark.parametrize("query", [KCenter(), ProbCover(delta=0.5), FacilityLocation(), MaxHerding()])
def test_copies_of_a_row_do_not_fill_the_batch(query):
    """30 copies of one row and 6 other rows: the first 7 picks are of the 7 kinds."""
    x = np.concatenate([np.ones((30, 7)), 3 * np.eye(7)[:6] - 1])
    picks = query(PoolView(np.full(36, -1), embeddings=x), 7)
    assert len({0 if row < 30 else int(row) for row in picks}) == 7


def test_distances_are_exact_and_never_negative():
    draw = np.random.default_rng(0)
    x, y = (draw.normal(size=(size, 6)).astype(np.float32) for size in (30, 20))
    table = ((x[:, None].astype(np.float64) - y) ** 2).sum(axis=2)
    assert np.allclose(distances.squared_distances(x, y), table, atol=1e-5)
    assert (distances.squared_distances(x, x) >= 0).all()
    assert np.allclose(distances.min_squared_distances(x, y), table.min(axis=1), atol=1e-5)
    assert np.isinf(distances.min_squared_distances(x, y[:0])).all()
    u, v = unit(x), unit(y)
    assert np.allclose(distances.max_cosines(u, v), (u.astype(np.float64) @ v.T).max(axis=1), atol=1e-6)
    assert not unit(np.zeros((1, 3), np.float32)).any()
    assert [part.stop - part.start for part in distances.blocks(5, distances.BLOCK // 2)] == [2, 2, 1]


def test_random_numbers_depend_on_seed_and_purpose():
    assert rng(0, "a").random() == rng(0, "a").random() != rng(0, "b").random() != rng(1, "b").random()


def test_cells_part_the_rows_and_none_is_large():
    """In more clumps than cells, a center that no clump is near to draws many of them."""
    draw = np.random.default_rng(0)
    x = (draw.normal(size=(4000, 64)) + 8 * draw.normal(size=(300, 64))[draw.integers(300, size=4000)])
    found, centers = neighbors.cells(x.astype(np.float32), 20)
    assert sorted(np.concatenate(found).tolist()) == list(range(4000))
    assert len(found) == len(centers)
    assert max(map(len, found)) < 60
    assert [rows.tolist() for rows in neighbors.cells(np.ones((90, 3), np.float32), 10)[0]] == [list(range(90))]
