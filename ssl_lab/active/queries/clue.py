"""CLUE (Prabhu et al. 2021, arXiv 2010.08666): k-means weighted by uncertainty, then what is nearest to its centers."""

from __future__ import annotations

import numpy as np
from scipy.sparse import csr_array
from scipy.special import entr

from ssl_lab.active.queries.badge import spread
from ssl_lab.active.queries.base import Query, check_counts, rng
from ssl_lab.active.queries.distances import blocks, centered, squared_norms
from ssl_lab.active.queries.share import Share
from ssl_lab.active.queries.view import FloatArray, IntArray, PoolView


class Clue(Query):
    """Partitions the candidates into `budget` clusters that minimize sum_k sum_(x in X_k) H(p(x)) |h(x) - mu_k|^2,
    and picks the row nearest to each center mu_k.

    The minimum is a local one: Lloyd's algorithm, `iterations` passes at most, from a weighted k-means++ start. A row
    nearest to two centers goes to the heavier cluster, the other one takes its next nearest; heaviest first is also
    the order of selection. Labeled rows do not matter. The authors' temperature is left to whoever makes the probs.
    Time is O(N D budget iterations) in matrix products, memory O(N D).

    Args:
        iterations: of Lloyd's algorithm, at most.

    >>> points = np.array([[0.0], [0.2], [9.0], [9.2]])
    >>> probs = np.array([[1.0, 0.0], [0.5, 0.5], [0.5, 0.5], [1.0, 0.0]])
    >>> np.sort(sl.active.Clue()(sl.PoolView(np.full(4, -1), embeddings=points, probs=probs), budget=2))
    array([1, 2])
    """

    name = "clue"
    family = "hybrid"
    paper = "Active Domain Adaptation via Clustering Uncertainty-weighted Embeddings"
    arxiv = "2010.08666"
    needs = frozenset({"embeddings", "probs"})

    def __init__(self, iterations: int = 20) -> None:
        check_counts(iterations=iterations)
        self.iterations = iterations

    def select(self, view: PoolView, budget: int, seed: int) -> IntArray:
        candidates, p = rng(seed, "ties").permutation(view.candidates), view.need("probs")
        x = centered(view.need("embeddings")[candidates])
        entropy = np.concatenate([entr(p[candidates[part]]).sum(axis=1) for part in blocks(len(x), p.shape[1])])
        weight = (entropy + 1e-6).astype(np.float32)  # certain rows still have a place, if nothing else is left
        centers, weights = weighted_k_means(x, weight, budget, rng(seed, "clue"), self.iterations)
        return candidates[nearest_rows(x, centers[np.argsort(-weights, kind="stable")])]


def weighted_k_means(x: FloatArray, weight: FloatArray, k: int, draws: np.random.Generator,
                     iterations: int) -> tuple[FloatArray, FloatArray]:
    """Lloyd's algorithm on x [N, D] with weights [N] above 0, from a k-means++ start, until no row moves.

    Returns the centers [k, D], and the weight of the rows nearest to each [k]. A center that no row is nearest to
    stays where it is.
    """
    mass = np.cumsum(weight, dtype=np.float64)
    first = int(np.searchsorted(mass, (1 - draws.random()) * mass[-1]))
    ones = np.ones((len(x), 1), dtype=np.float32)
    centers = x[spread(Share(len(x)), lambda rows: (x[rows], ones[rows]), weight, first, k, draws)]
    nearest = _nearest_center(x, centers)
    for _ in range(iterations):
        members = csr_array((weight, nearest, np.arange(len(x) + 1)), shape=(len(x), k)).T
        total = members.sum(axis=1)[:, None]
        centers = np.where(total > 0, (members @ x) / np.where(total > 0, total, 1), centers)
        before, nearest = nearest, _nearest_center(x, centers)
        if np.array_equal(before, nearest):
            break
    return centers, np.bincount(nearest, weight, minlength=k).astype(np.float32)


def nearest_rows(x: FloatArray, centers: FloatArray) -> IntArray:
    """For each center [K, D] in turn, the nearest row of x [N, D] that no earlier one took: int64 [K]."""
    norms, taken = squared_norms(x), np.zeros(len(x), dtype=np.float32)
    rows: list[int] = []
    for part in blocks(len(centers), len(x)):
        for squares in norms - 2 * (centers[part] @ x.T):  # less the center's own norm
            rows.append(int((squares + taken).argmin()))
            taken[rows[-1]] = np.inf
    return np.array(rows)


def _nearest_center(x: FloatArray, centers: FloatArray) -> IntArray:
    norms = squared_norms(centers)
    return np.concatenate([(norms - 2 * (x[part] @ centers.T)).argmin(axis=1)
                           for part in blocks(len(x), len(centers))])
