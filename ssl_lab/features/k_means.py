"""Lloyd's k-means: blocks of rows by matrix products, so that memory is that of the centers and a block."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csc_array

from ssl_lab.data import IntArray
from ssl_lab.features.search import FloatArray, unit

BLOCK = 2**22  # products at a time: 16 MiB
ROWS, PER_CLUSTER = 2**18, 256  # trained on: all up to ROWS or PER_CLUSTER for each cluster; of more, so many drawn
BRANCHES, PER_BRANCH, ITERATIONS = 64, 64, 8  # parts of a cell that is too large; k-means on so many rows for each part


class Matrix(Protocol):
    """[N, D], of which some rows at a time are read as float32: an array, or what is still to be read from a file."""

    @property
    def shape(self) -> tuple[int, ...]: ...

    def __len__(self) -> int: ...

    def __getitem__(self, which: Any, /) -> Any: ...


def trained(x: Matrix, k: int, seed: int, iterations: int = 25, restarts: int = 1,
            spherical: bool = False) -> FloatArray:
    """The centers, float32 [k, D], of the rows of x [N, D], N >= k.

    Starts from k rows drawn from the seed, as FAISS does, and ends when no row changes its cluster or after
    `iterations`; the best of `restarts`. Of more than 262,144 rows (more than 256 for each cluster, if these are more
    still), so many drawn from the seed stand for all. An empty cluster starts again from the row that is farthest from
    its center. spherical: of rows of length 1, as are the centers.
    """
    seed %= 2**31
    most = max(ROWS, PER_CLUSTER * k)
    if len(x) > most:
        x = x[np.sort(np.random.default_rng(seed).choice(len(x), most, replace=False))]
    rows: FloatArray = x[:]
    runs = [_lloyd(rows, rows[_drawn(len(rows), seed + 1 + 15486557 * restart)[:k]], iterations, spherical)
            for restart in range(restarts)]
    return min(runs, key=lambda run: run[1])[0]


def nearest_center(x: Matrix, centers: FloatArray) -> tuple[IntArray, FloatArray]:
    """Of each row of x [N, D] the nearest of the centers [k, D], int64 [N], and its squared distance, float32 [N].

    The error is about 1e-7 of the squared norms of rows and centers, from which the centers' mean is taken before.
    """
    nearest, squares = np.empty(len(x), dtype=np.int64), np.empty(len(x), dtype=np.float32)
    for part, _, found, squared in _assigned(x, centers):
        nearest[part], squares[part] = found, squared
    return nearest, squares


def cells(x: Matrix, size: int) -> tuple[list[IntArray], FloatArray]:
    """Cells of at most 2 `size` rows of x [N, D] (but for rows that are equal): the rows of each, and their centers.

    By k-means of at most BRANCHES clusters on a sample of the rows, of whose cells those that are larger are parted
    again: so a row is compared with few centers, and no cell has most rows, as happens where rows are in more clumps
    than there are cells.
    """
    draws = np.random.default_rng(0)
    found, centers = [], []
    left = [(np.arange(len(x)), np.zeros((1, x.shape[1]), dtype=np.float32))]
    while left:
        rows, center = left.pop()
        parts = min(BRANCHES, len(rows) // size)
        if parts > 1:
            inside = x if len(rows) == len(x) else x[rows]
            sample = inside[np.sort(draws.choice(len(rows), min(len(rows), PER_BRANCH * parts), replace=False))]
            some = trained(sample, parts, 0, ITERATIONS)
            part, _ = nearest_center(inside, some)
            sizes = np.bincount(part, minlength=parts)
        if parts > 1 and sizes.max() < len(rows):
            each = np.split(rows[np.argsort(part, kind="stable")], np.cumsum(sizes)[:-1])
            left += [(each[i], some[i : i + 1]) for i in np.flatnonzero(sizes)]
        else:
            found.append(rows)
            centers.append(center)
    return found, np.concatenate(centers)


def _assigned(x: Matrix, centers: FloatArray) -> Iterator[tuple[slice, FloatArray, IntArray, FloatArray]]:
    """For each block of rows: which, the rows less the mean of the centers, the nearest centers, squared distances."""
    origin = _origin(centers)
    y = np.ascontiguousarray((centers - origin).T)
    lengths = np.einsum("dk,dk->k", y, y)
    size = max(64, BLOCK // len(centers))
    products = np.empty((min(size, len(x)), len(centers)), dtype=np.float32)
    for start in range(0, len(x), size):
        rows = x[start : start + size] - origin
        apart = np.matmul(rows, y, out=products[: len(rows)])
        apart *= -2
        apart += lengths
        found = apart.argmin(axis=1)
        squared = apart[np.arange(len(rows)), found] + np.einsum("nd,nd->n", rows, rows)
        yield slice(start, start + len(rows)), rows, found, np.maximum(squared, 0, out=squared)


def _origin(centers: FloatArray) -> FloatArray:
    origin: FloatArray = centers.mean(axis=0, dtype=np.float64).astype(np.float32)
    return origin


def _lloyd(x: FloatArray, centers: FloatArray, iterations: int, spherical: bool) -> tuple[FloatArray, float]:
    """The centers after Lloyd's algorithm, and the sum of squared distances before they moved last."""
    k, clusters, squares = len(centers), np.full(len(x), -1), np.full(len(x), np.inf, dtype=np.float32)
    for _ in range(iterations):
        sums, sizes, moved, origin = np.zeros(centers.shape), np.zeros(k, dtype=np.int64), False, _origin(centers)
        for part, rows, found, squared in _assigned(x, centers):
            members = csc_array((np.ones(len(rows), dtype=np.float32), found, np.arange(len(rows) + 1)),
                                shape=(k, len(rows)))
            sums += members @ rows
            sizes += np.bincount(found, minlength=k)
            moved |= not np.array_equal(clusters[part], found)
            clusters[part], squares[part] = found, squared
        if not moved:
            break
        full, empty = sizes > 0, np.flatnonzero(sizes == 0)
        means = np.where(full[:, None], sums / np.maximum(sizes, 1)[:, None] + origin, centers)
        if len(empty):
            far = np.argsort(-squares, kind="stable")[: len(empty)]
            far = far[squares[far] > 0]
            means[empty[: len(far)]] = x[far]
        centers = unit(means) if spherical else means.astype(np.float32)
    return centers, float(squares.sum(dtype=np.float64))


def _drawn(rows: int, seed: int) -> NDArray[np.int32]:
    """FAISS's permutation of rows for a seed."""
    import faiss

    library: Any = faiss  # whose types do not name it
    order = np.empty(rows, dtype=np.int32)
    library.rand_perm(library.swig_ptr(order), rows, seed)
    return order
