"""Core-set selection (Sener and Savarese 2018, arXiv 1708.00489): cover the pool by the smallest balls."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from ssl_lab.active.queries.base import IGNORED, UNLABELED, IntArray, PoolView, Query, rng
from ssl_lab.active.queries.distances import centered, min_squared_distances, squared_distances, take
from ssl_lab.active.queries.greedy import lazy_greedy


class KCenter(Query):
    """Each pick is the row farthest from all that is labeled or chosen: argmax_i min_{j in L + S} |x_i - x_j|

    Exact up to float32: a distance to the nearest center only falls, so it is computed again only for rows whose
    last known distance is the highest (greedy.py). The paper's k-center greedy, without its integer program for
    outliers. With nothing labeled, the first pick is drawn from the seed.

    >>> points = np.array([[0.0], [1.0], [5.0], [9.0]])
    >>> view = sl.PoolView(np.array([0, -1, -1, -1]), embeddings=points)
    >>> sl.active.KCenter()(view, budget=2)  # the farthest from all so far
    array([3, 2])
    """

    name = "k_center"
    family = "diversity"
    paper = "Active Learning for Convolutional Neural Networks: A Core-Set Approach"
    arxiv = "1708.00489"
    needs = frozenset({"embeddings"})

    def select(self, view: PoolView, budget: int, seed: int) -> IntArray:
        rows = np.flatnonzero(view.labels != IGNORED)
        x = centered(take(view.need("embeddings"), rows))
        free = view.labels[rows] == UNLABELED
        centers = np.empty((budget, x.shape[1]), dtype=np.float32)
        count = 0
        nearest = min_squared_distances(x, x[~free])
        seen = np.zeros(len(x), dtype=np.int64)  # how many of the centers `nearest` accounts for

        def choose(row: int) -> None:
            nonlocal count
            centers[count] = x[row]
            count += 1

        def now(some: IntArray) -> NDArray[np.float32]:
            since = int(seen[some].min())
            if since < count:
                distances = squared_distances(x[some], centers[since:count]).min(axis=1)
                nearest[some] = np.minimum(nearest[some], distances)
                seen[some] = count
            return nearest[some]

        first = []
        if free.all():
            first = [int(rng(seed, "first").integers(len(x)))]
            choose(first[0])
            nearest = min_squared_distances(x, centers[:1])
            seen[:] = 1
        bounds = np.where(free, nearest, -np.inf)
        bounds[first] = -np.inf
        return rows[np.append(first, lazy_greedy(bounds, now, choose, budget - len(first), seed)).astype(np.int64)]
