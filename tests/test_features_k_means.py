"""Lloyd's k-means beside FAISS's, from the same rows, and what it does where FAISS does otherwise."""

import faiss
import numpy as np
import pytest

from ssl_lab.features import k_means
from ssl_lab.features.k_means import nearest_center, trained


def _rows(n=600, dim=7, seed=0):
    draw = np.random.default_rng(seed)
    return (draw.normal(size=(n, dim)) + 3 * draw.normal(size=(9, dim))[draw.integers(9, size=n)]).astype(np.float32)


@pytest.mark.parametrize("spherical", [False, True])
@pytest.mark.parametrize("iterations", [1, 3, 30])
def test_centers_are_those_of_faiss(spherical, iterations, monkeypatch):
    monkeypatch.setattr(k_means, "BLOCK", 1000)  # blocks of 100 rows
    x = _rows()
    x /= np.linalg.norm(x, axis=1, keepdims=True) if spherical else 1
    theirs = faiss.Kmeans(7, 10, niter=iterations, seed=5, spherical=spherical, max_points_per_centroid=600)
    theirs.train(x)
    np.testing.assert_allclose(trained(x, 10, 5, iterations, spherical=spherical), theirs.centroids, atol=1e-4)


def test_of_restarts_the_best_counts():
    x = _rows()

    losses = [nearest_center(x, trained(x, 9, 0, restarts=count))[1].sum() for count in range(1, 9)]
    assert losses == sorted(losses, reverse=True)
    assert losses[-1] < losses[0]


def test_nearest_centers_are_those_of_the_table_far_from_zero():
    x = _rows()
    centers = x[:20] + np.float32(0.5)
    table = ((x[:, None].astype(np.float64) - centers) ** 2).sum(axis=2)
    nearest, squares = nearest_center(x + np.float32(500), centers + np.float32(500))
    assert np.mean(nearest == table.argmin(axis=1)) > 0.99
    np.testing.assert_allclose(squares, table.min(axis=1), atol=2e-2)


def test_an_empty_cluster_starts_again_from_the_farthest_row(monkeypatch):
    x = np.repeat(np.array([[0.0], [1.0], [10.0]], dtype=np.float32), 20, axis=0)
    monkeypatch.setattr(k_means, "_drawn", lambda rows, seed: np.arange(rows))  # three equal rows
    assert np.sort(trained(x, 3, 0)[:, 0]) == pytest.approx([0, 1, 10], abs=1e-5)
    assert np.isfinite(trained(x, 5, 0)).all(), "more clusters than there are rows that differ"


def test_of_many_rows_some_are_drawn_from_the_seed(monkeypatch):
    x = _rows(3000)
    np.testing.assert_allclose(trained(x, 1, 1), x.mean(axis=0, keepdims=True), atol=1e-5)
    monkeypatch.setattr(k_means, "ROWS", 500)
    some = trained(x, 1, 1)
    assert np.array_equal(some, trained(x, 1, 1))
    assert 0.01 < np.abs(some - x.mean(axis=0)).max() < 1
    assert not np.array_equal(some, trained(x, 1, 2))
