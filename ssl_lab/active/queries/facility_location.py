"""Facility location: every row of the pool is to have a chosen row that is like it."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from ssl_lab.active.queries.base import IGNORED, UNLABELED, FloatArray, IntArray, PoolView, Query
from ssl_lab.active.queries.distances import blocks, take
from ssl_lab.active.queries.greedy import lazy_greedy
from ssl_lab.features.search import unit


class FacilityLocation(Query):
    """Greedy maximum of F(S) = sum_i max_{j in L + S} s(i, j),    s(i, j) = (1 + cos(x_i, x_j)) / 2 in [0, 1]

    over all rows i, labeled or not. Exact up to float32: gains only fall (submodularity), so lazy greedy. It
    takes O(N^2 D) time for the first gains, O(N D) for each gain computed again, and O(N D) memory.

    >>> points = np.array([[1.0, 0.0], [1.0, 0.1], [1.0, -0.1], [0.0, 1.0], [0.1, 1.0]])
    >>> sl.active.FacilityLocation()(sl.PoolView(np.full(5, -1), embeddings=points), budget=2)
    array([1, 3])
    """

    name = "facility_location"
    family = "diversity"
    paper = "Submodularity in Data Subset Selection and Active Learning"
    arxiv = ""
    needs = frozenset({"embeddings"})

    def similarity(self, cosines: FloatArray) -> FloatArray:
        """s of cosines of any shape, at least 0; may write to them."""
        cosines += 1
        cosines *= 0.5
        return np.maximum(cosines, 0, out=cosines)

    def select(self, view: PoolView, budget: int, seed: int) -> IntArray:
        rows = np.flatnonzero(view.labels != IGNORED)
        x = unit(take(view.need("embeddings"), rows))
        free = view.labels[rows] == UNLABELED
        return rows[greedy_coverage(x, free, self.similarity, budget, seed)]


def greedy_coverage(x: FloatArray, free: NDArray[np.bool_], similarity: Callable[[FloatArray], FloatArray], budget: int,
                    seed: int, weight: FloatArray | None = None) -> IntArray:
    """int64 [budget], the greedy maximum of sum_i w_i max_{j in L + S} s(i, j) over sets S of free rows, L the others.

    x: unit rows [N, D]. free: bool [N]. similarity: s of a cosine, at least 0; may write to it. weight: [N], at least
    0 (default: ones).
    """
    covered = np.zeros(len(x), dtype=np.float32)  # max_{j in L + S} s(i, j)

    def choose(some: int | NDArray[np.bool_]) -> None:
        centers = np.atleast_2d(x[some])
        for part in blocks(len(x), len(centers)):
            if len(centers):
                nearest = similarity(x[part] @ centers.T).max(axis=1)
                covered[part] = np.maximum(covered[part], nearest)

    def now(some: IntArray) -> NDArray[np.float64]:
        gains = np.empty(len(some))
        for part in blocks(len(some), len(x)):
            similar = similarity(x[some[part]] @ x.T)
            similar -= covered
            np.maximum(similar, 0, out=similar)
            if weight is not None:
                similar *= weight
            gains[part] = similar.sum(axis=1, dtype=np.float64)
        return gains

    choose(~free)
    bounds = np.full(len(x), -np.inf)
    bounds[free] = now(np.flatnonzero(free))
    return lazy_greedy(bounds, now, choose, budget, seed, batch=8)
