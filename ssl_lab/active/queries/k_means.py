"""One k-means with a cluster for each pick, as in batch mode clustering (Zhdanov 2019, arXiv 1901.05954)."""

from __future__ import annotations

import numpy as np

from ssl_lab.active.queries.base import Query, check_counts, rng
from ssl_lab.active.queries.distances import centered, k_means, take
from ssl_lab.active.queries.view import FloatArray, IntArray, PoolView


class KMeans(Query):
    """Cluster the candidates into `budget` clusters; choose the row of each that is nearest to its center.

    Largest cluster first. Lloyd's algorithm finds a local optimum (on all rows up to 262,144, of more on so many
    drawn from the seed); the rest is exact. Where rows are equal a cluster may stay empty: its pick is drawn from the
    rows left. The labeled set plays no part. Unlike the paper, rows weigh the same; see `Prefilter` for its prefilter.

    Args:
        iterations, restarts: of k-means, of which the best restart counts.

    >>> points = np.array([[0.0], [0.1], [0.2], [9.0], [9.1], [9.2]])
    >>> np.sort(sl.active.KMeans()(sl.PoolView(np.full(6, -1), embeddings=points), budget=2))  # the middle of each
    array([1, 4])
    """

    name = "k_means"
    family = "diversity"
    paper = "Diverse mini-batch Active Learning"
    arxiv = "1901.05954"
    needs = frozenset({"embeddings"})

    def __init__(self, iterations: int = 25, restarts: int = 1) -> None:
        check_counts(iterations=iterations, restarts=restarts)
        self.iterations = iterations
        self.restarts = restarts

    def select(self, view: PoolView, budget: int, seed: int) -> IntArray:
        rows = view.candidates
        x = take(view.need("embeddings"), rows)
        return rows[nearest_to_centers(x, budget, seed, self.iterations, self.restarts)]


def nearest_to_centers(x: FloatArray, budget: int, seed: int, iterations: int = 25, restarts: int = 1) -> IntArray:
    """int64 [budget]: of a k-means of x [N, D] with so many clusters, the row of each that is nearest to its center,
    largest cluster first; then rows drawn from those left, where clusters are empty."""
    clusters, squared = k_means(centered(x), budget, seed, iterations, restarts)
    ties = rng(seed, "ties").permutation(len(x))
    order = np.lexsort((ties, squared, clusters))
    found, first, sizes = np.unique(clusters[order], return_index=True, return_counts=True)
    nearest = order[first][np.lexsort((ties[found], -sizes))]
    left = np.setdiff1d(np.arange(len(x)), nearest)
    extra = rng(seed, "empty").permutation(left)[: budget - len(nearest)]
    return np.concatenate([nearest, extra])
