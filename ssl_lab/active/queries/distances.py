"""Distances between many rows: float32 matrix products in blocks, so that memory is O(N D + block)."""

from __future__ import annotations

from collections.abc import Iterator

import faiss
import numpy as np
from numpy.typing import NDArray

from ssl_lab.active.queries.base import FloatArray, IntArray
from ssl_lab.features.k_means import trained

BLOCK = 2**24  # numbers in a block of distances: 64 MiB
ALL = 20_000  # rows, up to which each is compared with all
LISTS, PROBES = 4, 16  # lists, in sqrt(N), of the rows of larger pools; those that are searched for a row's neighbors


def blocks(rows: int, columns: int) -> Iterator[slice]:
    """Slices that cover `rows`, each of at most BLOCK numbers if a row has `columns` (but of one row at least)."""
    size = max(1, BLOCK // max(columns, 1))
    return (slice(start, min(start + size, rows)) for start in range(0, rows, size))


def take(array: FloatArray, rows: IntArray) -> FloatArray:
    """`array[rows]` for increasing rows; no copy if these are all rows."""
    return array if len(rows) == len(array) else array[rows]


def centered(x: FloatArray) -> FloatArray:
    """x [N, D] minus its mean: the same distances, with more digits left after the squares cancel."""
    result: FloatArray = x - x.mean(axis=0, dtype=np.float64).astype(np.float32)
    return result


def squared_norms(x: FloatArray) -> FloatArray:
    """[N], of x [N, D]."""
    norms: FloatArray = np.einsum("nd,nd->n", x, x)
    return norms


def squared_distances(x: FloatArray, y: FloatArray) -> FloatArray:
    """[N, M], |x_i - y_j|^2 of x [N, D] and y [M, D], by one matrix product; never below 0.

    The error is about 1e-7 of the squared norms: give `centered` rows. Equal rows may be at a distance above 0.
    """
    products: FloatArray = x @ y.T
    products *= -2
    products += squared_norms(x)[:, None]
    products += squared_norms(y)
    return np.maximum(products, 0, out=products)


def precise_squared_distances(x: NDArray[np.float64], y: NDArray[np.float64]) -> FloatArray:
    """[N, M], |x_i - y_j|^2 of x [N, D] and y [M, D], computed in float64 and then rounded: the same number in
    whatever company a pair is computed, and 0 for equal rows (and those within 1e-6 of their lengths)."""
    lengths = np.einsum("nd,nd->n", x, x)[:, None] + np.einsum("nd,nd->n", y, y)
    squares = lengths - 2 * (x @ y.T)
    squares[squares < 1e-12 * lengths] = 0
    rounded: FloatArray = squares.astype(np.float32)
    return rounded


def min_squared_distances(x: FloatArray, y: FloatArray) -> FloatArray:
    """[N], from each row of x [N, D] to the nearest of y [M, D]; infinity if M = 0."""
    nearest = np.full(len(x), np.inf, dtype=np.float32)
    if len(y):
        for part in blocks(len(x), len(y)):
            nearest[part] = squared_distances(x[part], y).min(axis=1)
    return nearest


def max_cosines(x: FloatArray, y: FloatArray) -> FloatArray:
    """[N], from each unit row of x [N, D] to the nearest unit row of y [M, D]; -infinity if M = 0."""
    nearest = np.full(len(x), -np.inf, dtype=np.float32)
    if len(y):
        for part in blocks(len(x), len(y)):
            nearest[part] = (x[part] @ y.T).max(axis=1)
    return nearest


def k_means(x: FloatArray, k: int, seed: int, iterations: int = 25, restarts: int = 1) -> tuple[IntArray, FloatArray]:
    """Lloyd's k-means on all rows of x [N, D], N >= k: the cluster of each row [N], its squared distance to it [N].

    Starts from k rows drawn from the seed; the best of `restarts`. Clusters may be empty where rows are equal.
    """
    x = np.ascontiguousarray(x)
    squared, clusters = trained(x, k, seed, iterations, restarts).index.search(x, 1)
    return clusters[:, 0], squared[:, 0]


def neighborhoods(x: FloatArray, least: int, exact: int | None = None) -> Iterator[tuple[IntArray, IntArray]]:
    """Every row of x [N, D] once, in groups, each with the rows among which its neighbors are sought.

    Up to `exact` rows (default: ALL), these are all. Of more, they are approximate: rows are in LISTS * sqrt(N) lists,
    the cells of a k-means on a sample, and those of a list are sought in the PROBES lists of the nearest centers, or in
    more until these hold `least` rows. A pure function of x; time and pairs are O(N^1.5).
    """
    n = len(x)
    if n <= (ALL if exact is None else exact):
        for part in blocks(n, n):
            yield np.arange(part.start, part.stop), np.arange(n)
        return
    x = np.ascontiguousarray(x)
    means = faiss.Kmeans(x.shape[1], int(LISTS * n**0.5), niter=6, max_points_per_centroid=32, seed=0,
                         min_points_per_centroid=1)
    means.train(x)
    lists = np.concatenate([means.index.search(x[part], 1)[1][:, 0] for part in blocks(n, x.shape[1])])
    order = np.argsort(lists, kind="stable")
    used, starts, sizes = np.unique(lists[order], return_index=True, return_counts=True)
    centers = np.array(means.centroids)[used]
    index = faiss.IndexFlatL2(x.shape[1])
    index.add(centers)
    _, nearest = index.search(centers, len(used))
    enough = np.maximum((np.cumsum(sizes[nearest], axis=1) < least).sum(axis=1) + 1, PROBES)
    rows = np.split(order, starts[1:])
    for own, some in enumerate(enough.tolist()):
        others = np.concatenate([rows[each] for each in nearest[own, :some]])
        for part in blocks(len(rows[own]), len(others)):
            yield rows[own][part], others
