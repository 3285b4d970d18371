"""Queries around queries: prefilters, balance, costs, near-duplicates."""

from __future__ import annotations

import copy

import numpy as np
from numpy.typing import ArrayLike

from ssl_lab.active.queries.base import Query, ScoreQuery, Wrapper, check_counts, rng
from ssl_lab.active.queries.distances import max_cosines, take
from ssl_lab.active.queries.view import IGNORED, UNLABELED, IntArray, PoolView
from ssl_lab.errors import UsageError
from ssl_lab.features.search import unit


def only(view: PoolView, rows: IntArray) -> PoolView:
    """The view with no candidates but these rows; the others are ignored."""
    labels = np.where(view.labels == UNLABELED, IGNORED, view.labels)
    labels[rows] = UNLABELED
    narrowed = copy.copy(view)
    object.__setattr__(narrowed, "labels", labels)  # without looking at all of the arrays again
    return narrowed


class Prefilter(Wrapper):
    """`then` chooses among the `factor` * budget candidates that `first` would choose, as uncertainty then diversity.

    To `then`, the other candidates do not exist: they take no part in its clusters and coverage.

    Args:
        first: narrows the candidates down.
        then: chooses among them.
        factor: candidates for each pick.

    >>> points, p = np.array([[0.0], [5.0], [0.1], [9.0]]), np.array([0.5, 0.55, 0.6, 0.99])
    >>> view = sl.PoolView(np.full(4, -1), embeddings=points, probs=np.stack([p, 1 - p], axis=1))
    >>> query = sl.active.Prefilter(sl.active.Margin(), sl.active.KCenter(), factor=1)
    >>> np.sort(query(view, budget=2))  # of the two rows of least margin, whatever lies farther out
    array([0, 1])
    """

    name = "prefilter"
    family = "wrapper"
    paper = "Diverse mini-batch Active Learning"
    arxiv = "1901.05954"
    reads = "shares"

    def __init__(self, first: Query, then: Query, factor: int = 10) -> None:
        super().__init__(first, then)
        check_counts(factor=factor)
        self.first, self.then, self.factor = first, then, factor

    def select(self, view: PoolView, budget: int, seed: int) -> IntArray:
        kept = self.first.select(view, min(self.factor * budget, len(view.candidates)), seed)
        return self.then.select(only(view, kept), budget, seed)


class ClassBalanced(Wrapper):
    """Evens out the labels of the classes: each unit of the budget goes to the class with the fewest labels so far,
    counting the picks by their predicted class, argmax_c p_c, as long as it has candidates.

    Within each class `query` chooses; candidates of other classes do not exist to it. Equal counts in an order
    drawn from the seed.

    Args:
        query: chooses within each class.

    >>> labels, probs = np.array([0, 0, -1, -1]), np.array([[1, 0], [1, 0], [0.6, 0.4], [0.3, 0.7]])
    >>> query = sl.active.ClassBalanced(sl.active.Margin())
    >>> query(sl.PoolView(labels, probs=probs), budget=1)  # class 1 has no label yet
    array([3])
    """

    name = "class_balanced"
    family = "wrapper"
    paper = "Class-Balanced Active Learning for Image Classification"
    arxiv = "2110.04543"
    uses_classes = True

    def __init__(self, query: Query) -> None:
        super().__init__(query, needs={"probs"})
        self.query = query

    def select(self, view: PoolView, budget: int, seed: int) -> IntArray:
        rows = view.candidates
        predicted = view.need("probs").argmax(axis=1)[rows]
        classes = max(view.need("probs").shape[1], int(view.labels.max()) + 1)
        counts = np.bincount(view.labels[view.labeled], minlength=classes)
        left = np.bincount(predicted, minlength=classes)
        ties = rng(seed, "classes").permutation(classes)
        turns = []
        for _ in range(budget):
            open_ = np.flatnonzero(left)
            turns.append(open_[np.lexsort((ties[open_], counts[open_]))[0]])
            counts[turns[-1]] += 1
            left[turns[-1]] -= 1
        chosen = np.empty(budget, dtype=np.int64)
        for label in np.unique(turns):
            places = np.flatnonzero(turns == label)
            chosen[places] = self.query.select(only(view, rows[predicted == label]), len(places), seed)
        return chosen


class CostAware(Wrapper):
    """Rows of the highest score / cost, one after the other, that still fit into a total cost of `limit`; drawn by
    score / cost where the query draws its batches.

    The greedy order is not the optimum of the knapsack.

    Args:
        query: whose scores count.
        limit: of the total cost of a batch.
        cost: [ids], above 0, of the image with each global id. With a limit fewer rows than the budget may come
            back: as many as fit, and UsageError if none does.

    >>> view = sl.PoolView(np.full(3, -1), probs=[[0.5, 0.5], [0.6, 0.4], [0.9, 0.1]])
    >>> sl.active.CostAware(sl.active.Entropy(), cost=[10.0, 1.0, 1.0])(view, budget=1)  # nearly as unsure, and cheap
    array([1])
    """

    name = "cost_aware"
    family = "wrapper"
    paper = "Active Learning with Real Annotation Costs"
    arxiv = ""
    wraps = ScoreQuery

    def __init__(self, query: ScoreQuery, cost: ArrayLike, limit: float = np.inf) -> None:
        super().__init__(query)
        self.query, self.limit = query, limit
        self.fewer = bool(np.isfinite(limit))
        self.cost = np.asarray(cost, dtype=np.float64)
        if self.cost.ndim != 1 or not (np.isfinite(self.cost) & (self.cost > 0)).all():
            raise UsageError(f"costs have shape {list(self.cost.shape)} from {self.cost.min(initial=np.inf):g}; "
                             "expected one finite number above 0 for each id")

    def select(self, view: PoolView, budget: int, seed: int) -> IntArray:
        rows = view.candidates
        ids = view.ids_of(rows)
        if ids.min() < 0 or ids.max() >= len(self.cost):
            raise UsageError(f"there are costs of the ids 0 to {len(self.cost) - 1}; ids {ids.min()} to {ids.max()} "
                             "are in the pool")
        cost = self.cost[ids]
        order = self.query.first(self.query.scores(view, rows) / cost, len(rows), seed, several=budget > 1)
        left = self.limit
        chosen: list[int] = []
        for row in order.tolist():
            if len(chosen) < budget and cost[row] <= left + 1e-9 * self.limit:  # 0.3 - 0.1 - 0.1 is below 0.1
                chosen.append(row)
                left -= cost[row]
        if not chosen:
            raise UsageError(f"the cheapest candidate costs {cost.min():g}; expected a limit of at least that, "
                             f"not {self.limit:g}")
        return rows[chosen]


class WithoutDuplicates(Wrapper):
    """What `query` chooses when candidates with cosine >= `threshold` to a labeled or chosen row are left out.

    It chooses, the near-duplicates of its picks are taken out of the pool, and it chooses again until no two
    picks are near-duplicates. When nothing else is left, near-duplicates fill the budget, at the end.

    Args:
        query: chooses.
        threshold: a cosine, in [-1, 1].

    >>> points = np.array([[1.0, 0.0], [1.0, 0.001], [0.0, 1.0]])
    >>> probs = np.array([[0.5, 0.5], [0.51, 0.49], [0.9, 0.1]])
    >>> query = sl.active.WithoutDuplicates(sl.active.Margin())
    >>> query(sl.PoolView(np.full(3, -1), embeddings=points, probs=probs), budget=2)
    array([0, 2])
    """

    name = "without_duplicates"
    family = "wrapper"
    paper = "Near-duplicate filtering"
    arxiv = ""

    def __init__(self, query: Query, threshold: float = 0.98) -> None:
        super().__init__(query, needs={"embeddings"})
        self.query, self.threshold = query, threshold

    def select(self, view: PoolView, budget: int, seed: int) -> IntArray:
        rows = view.candidates
        x = unit(take(view.need("embeddings"), rows))
        least = self.threshold - 1e-6  # a cosine of equal rows may be that far below 1
        kept = max_cosines(x, unit(view.need("embeddings")[view.labeled])) < least
        chosen = np.empty(0, dtype=np.int64)
        while kept.any():
            picks = self.query.select(only(view, rows[kept]), min(budget, int(kept.sum())), seed)
            chosen = np.searchsorted(rows, picks)
            near = x[chosen] @ x[chosen].T >= least
            first: list[int] = []
            for place in range(len(chosen)):
                if not near[place, first].any():
                    first.append(place)
            if len(first) == len(chosen):
                break
            kept &= max_cosines(x, x[chosen[first]]) < least
            kept[chosen] = False  # the same cosine, computed with other rows, may lie on the other side
            kept[chosen[first]] = True
        filled = np.empty(0, dtype=np.int64)
        if len(chosen) < budget:
            filled = self.query.select(only(view, np.delete(rows, chosen)), budget - len(chosen), seed)
        return np.concatenate([rows[chosen], filled])
