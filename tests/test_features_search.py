"""Neighbors against a full sort in float64, and the approximate index against the exact search."""

import time

import numpy as np
import pytest

from ssl_lab.errors import UsageError
from ssl_lab.features import search
from ssl_lab.features.approximate import Approximate
from ssl_lab.features.search import neighbors, top_k, unit, within


def cosines(a, b):
    """The slow way: float64 [n, m]."""
    a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
    return np.array([[x @ y / (np.linalg.norm(x) * np.linalg.norm(y)) for y in b] for x in a])


def draw(*shape, seed=0):
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def clusters(rows, dim, seed=0):
    """Groups on a curved surface of few dimensions, as the features of nets are."""
    fixed, drawn = np.random.default_rng(0), np.random.default_rng(seed)
    centers, out = fixed.standard_normal((20, 8)), fixed.standard_normal((8, dim))
    inner = centers[drawn.integers(0, 20, rows)] + 0.5 * drawn.standard_normal((rows, 8))
    return np.maximum(inner @ out, 0).astype(np.float32)


@pytest.mark.parametrize("library", ["torch", "faiss"])
@pytest.mark.parametrize(("rows", "queries", "bank_rows", "query_rows", "k"), [
    (300, 7, 16384, 1024, 5),  # one block
    (300, 7, 64, 3, 5),        # several of both, the last ones shorter
    (300, 7, 64, 3, 100),      # more neighbors than a block has rows
    (1500, 7, 1400, 4, 4),     # group maxima, with columns left over
    (5, 2, 16384, 1024, 5),    # the whole bank
])
def test_exact_search_is_a_full_sort(monkeypatch, library, rows, queries, bank_rows, query_rows, k):
    monkeypatch.setattr(search, "BANK_ROWS", bank_rows)
    monkeypatch.setattr(search, "QUERY_ROWS", query_rows)
    if library == "faiss":
        monkeypatch.setattr(search, "WORTH_MEASURING", 0)
        monkeypatch.setattr(search, "_faster", lambda: search._nearest_by_faiss)
    bank, asked = draw(rows, 12), 3 * draw(queries, 12, seed=1)
    found, where = top_k(asked, bank, k)
    all_of_them = cosines(asked, bank)
    order = np.argsort(-all_of_them, axis=1)[:, :k]
    np.testing.assert_array_equal(where, order)
    np.testing.assert_allclose(found, np.take_along_axis(all_of_them, order, axis=1), atol=1e-6)
    assert found.dtype == np.float32
    assert where.dtype == np.int64


def test_group_maxima_lose_none_of_the_highest():
    """Also where they all lie in one group, or all columns are equal."""
    import torch

    scores = torch.zeros(3, 203)
    scores[0, 40:46] = torch.arange(6.0) + 1
    scores[1, 200:] = 5  # behind the last whole group
    values, places = search.top_columns(scores, 6)
    assert values.tolist() == [[6, 5, 4, 3, 2, 1], [5, 5, 5, 0, 0, 0], [0] * 6]
    assert places[0].tolist() == [45, 44, 43, 42, 41, 40]
    assert sorted(places[1, :3].tolist()) == [200, 201, 202]
    assert all(len(set(row)) == 6 for row in places.tolist())


@pytest.mark.parametrize(("slow", "fast"), [("_nearest", "_nearest_by_faiss"), ("_nearest_by_faiss", "_nearest")])
def test_the_faster_library_is_measured(monkeypatch, slow, fast):
    nearest = getattr(search, slow)
    now = [0.0]
    monkeypatch.setattr(time, "perf_counter", lambda: now[0])
    monkeypatch.setattr(search, slow, lambda *arguments: now.__setitem__(0, now[0] + 1) or nearest(*arguments))
    assert search._faster.__wrapped__() is getattr(search, fast)


def test_no_queries_have_no_neighbors():
    found, where = top_k(np.empty((0, 12), np.float32), draw(1500, 12), 4)
    assert found.shape == where.shape == (0, 4)


def test_neighbors_leave_a_row_itself_out():
    features = draw(60, 8)
    features[7] = 2 * features[3]  # twins, of which each is the other's nearest
    alike, rows = neighbors(features, 4)
    table = cosines(features, features)
    np.fill_diagonal(table, -np.inf)
    np.testing.assert_allclose(alike, -np.sort(-table, axis=1)[:, :4], atol=1e-6)
    assert (rows != np.arange(60)[:, None]).all()
    assert rows[7, 0] == 3
    assert rows[3, 0] == 7


def test_twins_that_crowd_a_row_out_do_not_misalign_the_rest():
    alike, rows = neighbors(np.tile(draw(1, 8), (30, 1)), 3)
    assert rows.shape == (30, 3)
    assert (rows != np.arange(30)[:, None]).all()
    np.testing.assert_allclose(alike, 1, atol=1e-6)


def test_range_search_finds_every_pair(monkeypatch):
    monkeypatch.setattr(search, "BANK_ROWS", 50)
    monkeypatch.setattr(search, "QUERY_ROWS", 4)
    bank, asked = draw(130, 6), draw(9, 6, seed=1)
    query, row, alike = within(asked, bank, 0.5)
    table = cosines(asked, bank)
    expected = np.nonzero(table >= 0.5)
    assert len(query) > 20
    np.testing.assert_array_equal(query, expected[0])
    np.testing.assert_array_equal(row, expected[1])
    np.testing.assert_allclose(alike, table[expected], atol=1e-6)
    assert [len(part) for part in within(asked, bank, 1.1)] == [0, 0, 0]


@pytest.mark.parametrize("dim", [32, 31])
def test_the_approximate_index_reaches_its_recall_on_new_queries(dim):
    bank, asked = clusters(4000, dim, seed=1), clusters(300, dim, seed=2)
    index = Approximate.build(bank, recall=0.95)
    assert index.codes.nprobe < index.codes.nlist  # it does not search everything
    alike, rows = index.search(asked, 10)
    _, truth = top_k(asked, bank, 10)
    recall = np.mean([np.isin(true, row).mean() for true, row in zip(truth, rows, strict=True)])
    assert recall >= 0.93
    for query in range(5):  # the cosines that it gives are exact, those of the rows that it gives
        np.testing.assert_allclose(alike[query], cosines(asked[query:query + 1], bank[rows[query]])[0], atol=1e-5)


def test_more_recall_asks_for_more():
    bank = clusters(3000, 32)
    low, high = Approximate.build(bank, recall=0.5), Approximate.build(bank, recall=0.99)
    assert low.codes.nprobe * low.factor < high.codes.nprobe * high.factor


def test_a_recall_out_of_reach_is_said(caplog, monkeypatch):
    monkeypatch.setattr(Approximate, "search", lambda self, queries, k: (
        np.zeros((len(queries), k), np.float32), np.tile(np.arange(k), (len(queries), 1))))
    Approximate.build(clusters(500, 8), recall=0.9)
    assert "of the nearest neighbors, not 90.0%" in caplog.text


def test_unit_rows():
    rows = unit([[3.0, 4.0], [0.0, 0.0]])
    np.testing.assert_allclose(rows, [[0.6, 0.8], [0, 0]])


@pytest.mark.parametrize(("act", "words"), [
    (lambda: top_k(draw(2, 3), draw(9, 4), 1), r"queries have shape \[2, 3\], expected \[n, 4\]"),
    (lambda: top_k(draw(2, 4), draw(9, 4), 10), "k=10 neighbors in a bank of 9 rows"),
    (lambda: top_k(draw(2, 4), draw(9, 4), 0), "k=0"),
    (lambda: top_k(draw(4), draw(9, 4), 1), r"queries have shape \[4\]"),
    (lambda: unit([[1.0, 2.0], [np.nan, 1.0]]), "row 1 holds NaN"),
    (lambda: Approximate.build(draw(50, 4), recall=1.0), "recall=1.0"),
    (lambda: Approximate.build(clusters(200, 8), 0.5).search(draw(2, 9), 3), r"queries \[2, 9\]"),
])
def test_errors(act, words):
    with pytest.raises(UsageError, match=words):
        act()
