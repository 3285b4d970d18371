"""DropQuery (Gupte et al. 2024, arXiv 2401.14555): rows whose class changes as features drop out, one per cluster."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from ssl_lab.active.queries.base import Query, check_counts, rng
from ssl_lab.active.queries.distances import blocks
from ssl_lab.active.queries.k_means import nearest_to_centers
from ssl_lab.active.queries.view import FloatArray, IntArray, PoolView
from ssl_lab.errors import UsageError
from ssl_lab.features.search import unit


class DropQuery(Query):
    """Candidates {x: sum_m [argmax f(dropout_m(x)) != argmax f(x)] > M / 2} of M dropouts of the features of a linear
    head f; of a k-means of these, on features of length 1, with a cluster for each pick the row nearest to each center.

    Masks are drawn anew for each row and dropout, as the authors' layer does; what is kept is scaled by 1 / (1 - rate).
    M = 3 and a rate of 0.75 are the paper's. While there are fewer than `spare` times the budget of such rows, ever
    fewer changes suffice (their code's rule, with 25 there), down to one; if even those are too few, all of them are
    chosen and the rest is drawn evenly from the others. With nothing labeled there is no head to go by: all rows are
    candidates, and the picks are those nearest to the centers, the paper's cold start.

    Args:
        samples: dropouts, M.
        rate: of the features that each drops, in (0, 1).
        spare: rows wanted for each pick.

    >>> points = np.array([[4.0, 0.0], [0.0, 4.0], [3.0, 0.0], [2.0, 1.9]])  # the last lies near the border
    >>> view = sl.PoolView(np.array([0, 1, -1, -1]), embeddings=points, head_weight=np.eye(2), head_bias=np.zeros(2))
    >>> sl.active.DropQuery()(view, budget=1)
    array([3])
    """

    name = "drop_query"
    family = "hybrid"
    paper = "Revisiting Active Learning in the Era of Vision Foundation Models"
    arxiv = "2401.14555"
    needs = frozenset({"embeddings", "head_weight", "head_bias"})

    def __init__(self, samples: int = 3, rate: float = 0.75, spare: int = 25) -> None:
        check_counts(samples=samples, spare=spare)
        if not 0 < rate < 1:
            raise UsageError(f"a dropout rate of {rate} was given; expected one between 0 and 1")
        self.samples = samples
        self.rate = rate
        self.spare = spare

    def select(self, view: PoolView, budget: int, seed: int) -> IntArray:
        rows = view.candidates
        x = view.need("embeddings")[rows]
        changes = np.full(len(rows), self.samples)
        if len(view.labeled):
            draws = rng(seed, "drop_query").random((self.samples, *x.shape), dtype=np.float32)
            changes = changed(x, view.need("head_weight"), view.need("head_bias"), draws >= self.rate)
        least = self.samples // 2
        while least > 0 and (changes > least).sum() < self.spare * budget:
            least -= 1
        kept = np.flatnonzero(changes > least)
        if len(kept) <= budget:
            others = rng(seed, "others").permutation(np.setdiff1d(np.arange(len(rows)), kept))
            kept = np.concatenate([kept, others[: budget - len(kept)]])
        else:
            kept = kept[nearest_to_centers(unit(x[kept]), budget, seed)]
        return rows[kept]


def changed(x: FloatArray, weight: FloatArray, bias: FloatArray, keep: NDArray[np.bool_]) -> IntArray:
    """int64 [N], in how many of M dropouts the class of a row of x [N, D] is another one than without: the linear head
    (weight [C, D], bias [C]) sees x * keep[m] / (share of all that is kept), keep: bool [M, N, D]."""
    scale = np.float32(1 / max(keep.mean(), 1e-12))
    counts = np.zeros(len(x), dtype=np.int64)
    for part in blocks(len(x), max(x.shape[1], len(weight))):
        before = (x[part] @ weight.T + bias).argmax(axis=1)
        for mask in keep:
            counts[part] += ((x[part] * mask[part] * scale) @ weight.T + bias).argmax(axis=1) != before
    return counts
