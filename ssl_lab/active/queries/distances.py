"""Distances between many rows: float32 matrix products in blocks, so that memory is O(N D + block)."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from ssl_lab.active.queries.view import FloatArray, IntArray
from ssl_lab.features.k_means import Matrix, nearest_center, trained

BLOCK = 2**24  # numbers in a block of distances: 64 MiB


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
    with np.errstate(invalid="ignore"):  # OpenBLAS was seen to raise the flag of finite numbers
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


def k_means(x: Matrix, k: int, seed: int, iterations: int = 25, restarts: int = 1) -> tuple[IntArray, FloatArray]:
    """Lloyd's k-means of x [N, D], N >= k: the cluster of each row [N], its squared distance to the center of it [N].

    The centers are those of `features.k_means.trained`: on all rows up to 262,144, from k rows drawn from the seed, the
    best of `restarts`. Clusters may be empty where rows are equal.
    """
    return nearest_center(x, trained(x, k, seed, iterations, restarts))
