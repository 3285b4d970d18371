"""Nearest neighbors within a pool by Euclidean distance: of all rows, or of the nearest lists of an inverted file."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch

from ssl_lab.active.queries.distances import blocks, squared_distances, squared_norms
from ssl_lab.active.queries.rows import Rows
from ssl_lab.active.queries.view import FloatArray, IntArray
from ssl_lab.features.k_means import cells
from ssl_lab.features.search import top_columns

ALL = 20_000  # rows, up to which each is compared with all
LISTS, PROBES = 4, 16  # lists, in sqrt(N), of the rows of larger pools; those that are searched for a row's neighbors
SOME = 1024  # rows, evenly spaced, whose mean is near that of all


def nearest_others(x: FloatArray | Rows, k: int,
                   exact: int | None = None) -> Iterator[tuple[IntArray, FloatArray, IntArray]]:
    """Every row of x [N, D] once, in groups of M: their rows [M], the distances to the k nearest others, rising, and
    which these are, both [M, k], 1 <= k < N. Sought as `neighborhoods` says.

    Of rows less the mean of some; the error of squared distances is about 1e-7 of their squared norms.
    """
    origin = x[np.arange(0, len(x), -(-len(x) // SOME))].mean(axis=0, dtype=np.float64).astype(np.float32)
    norms = np.concatenate([squared_norms(x[part] - origin) for part in blocks(len(x), x.shape[1])])
    scores, y = np.empty(0, dtype=np.float32), np.empty((0, x.shape[1]), dtype=np.float32)  # fresh memory costs time
    for members, others in neighborhoods(x, k + 1, exact):
        if scores.size < len(members) * len(others):
            scores = np.empty(len(members) * len(others), dtype=np.float32)
        if isinstance(x, np.ndarray):
            if len(y) < len(others):
                y = np.empty((len(others), x.shape[1]), dtype=np.float32)
            near = np.take(x, others, axis=0, out=y[: len(others)], mode="clip")  # with "raise" it would be copied
        else:
            near = x[others]
        near -= origin
        rows = x[members] - origin
        rows *= 2
        products = scores[: len(rows) * len(near)].reshape(len(rows), -1)
        torch.mm(torch.from_numpy(rows), torch.from_numpy(near).T, out=torch.from_numpy(products))
        products -= norms[others]  # the row's squared norm less the squared distance
        products[np.arange(len(rows)), np.searchsorted(others, members)] = -np.inf
        best, places = top_columns(torch.from_numpy(products), k)
        squares = norms[members, None] - best.numpy()
        yield members, np.sqrt(np.maximum(squares, 0)), others[places.numpy()]


def neighborhoods(x: FloatArray | Rows, least: int, exact: int | None = None) -> Iterator[tuple[IntArray, IntArray]]:
    """Every row of x [N, D] once, in groups, each with the rows among which its neighbors are sought.

    Up to `exact` rows (default: ALL), these are all. Of more, they are approximate: rows are in LISTS * sqrt(N) lists,
    and the neighbors of those of a list are sought in the PROBES lists of the nearest centers, or in more until these
    hold `least` rows.
    A pure function of x; time and pairs are O(N^1.5).
    """
    n = len(x)
    if n <= (ALL if exact is None else exact):
        for part in blocks(n, n):
            yield np.arange(part.start, part.stop), np.arange(n)
        return
    lists, centers = cells(x, max(1, int(n**0.5 / LISTS)))
    sizes = np.array([len(rows) for rows in lists])
    for near in blocks(len(lists), len(lists)):
        for own, apart in zip(range(near.start, near.stop), squared_distances(centers[near], centers), strict=True):
            apart[own] = -1
            nearest = np.argpartition(apart, PROBES)[:PROBES] if len(apart) > PROBES else np.arange(len(apart))
            if sizes[nearest].sum() < least:
                nearest = np.argsort(apart, kind="stable")
                nearest = nearest[: int((np.cumsum(sizes[nearest]) < least).sum()) + 1]
            others = np.sort(np.concatenate([lists[each] for each in nearest]))
            for part in blocks(len(lists[own]), len(others)):
                yield lists[own][part], others
