"""Core-set selection (Sener and Savarese 2018, arXiv 1708.00489): cover the pool by the smallest balls."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from ssl_lab.active.queries.base import Query, rng
from ssl_lab.active.queries.distances import min_squared_distances, precise_squared_distances
from ssl_lab.active.queries.greedy import lazy_greedy
from ssl_lab.active.queries.share import Share
from ssl_lab.active.queries.view import IGNORED, UNLABELED, FloatArray, IntArray, PoolView

SOME = 1024  # rows, evenly spaced, whose mean is near that of all


class KCenter(Query):
    """Each pick is the row farthest from all that is labeled or chosen: argmax_i min_{j in L + S} |x_i - x_j|

    Exact up to float32: a distance to the nearest center only falls, so it is computed again only for rows whose
    last known distance is the highest (greedy.py). Embeddings are read once, in blocks, and then those rows. The
    paper's k-center greedy, without its integer program for outliers. With nothing labeled, the first pick is drawn
    from the seed.

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
    reads = "shares"

    def select(self, view: PoolView, budget: int, seed: int) -> IntArray:
        rows = np.flatnonzero(view.labels != IGNORED)
        share = Share(len(rows), view.ranks)
        own = rows[share.start : share.stop]
        middle = view.read("embeddings", rows[:: -(-len(rows) // SOME)]).mean(axis=0, dtype=np.float64)

        def moved(some: IntArray) -> FloatArray:
            """With more digits left after the squares cancel."""
            x = view.read("embeddings", some)
            x -= middle.astype(np.float32)
            return x

        free = view.labels[rows] == UNLABELED
        first = [int(rng(seed, "first").integers(len(rows)))] if free.all() else []
        known = moved(rows[first] if first else view.labeled)
        nearest = np.empty(len(own), dtype=np.float32)
        for part in share:
            nearest[share.own(part)] = min_squared_distances(moved(rows[part]), known)
        centers = np.empty((budget, known.shape[1]))
        count = 0
        seen = np.zeros(len(own), dtype=np.int32)  # how many of the centers `nearest` accounts for

        def choose(position: int) -> None:
            nonlocal count
            centers[count] = moved(rows[[position]])
            count += 1

        def now(some: IntArray) -> NDArray[np.float32]:
            since = int(seen[some].min())
            if since < count:
                distances = precise_squared_distances(moved(own[some]).astype(np.float64), centers[since:count])
                nearest[some] = np.minimum(nearest[some], distances.min(axis=1))
                seen[some] = count
            return nearest[some]

        free[first] = False
        bounds = np.where(free[share.start : share.stop], nearest, -np.inf)
        found = lazy_greedy(bounds, now, choose, budget - len(first), seed, share=share)
        return rows[np.append(first, found).astype(np.int64)]
