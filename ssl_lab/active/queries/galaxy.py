"""GALAXY (Zhang et al. 2022, arXiv 2202.01402): bisection for each class's threshold on the pool, sorted."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from ssl_lab.active.queries.base import Query, rng
from ssl_lab.active.queries.view import IGNORED, IntArray, PoolView


class Galaxy(Query):
    """Pick by pick, on the line of a class k drawn at random, on which all rows are sorted by p_k - max_c p_c, equals
    by p_k, and are known to be of k, known not to be, or unknown:

    1. bisect: the middle of the shortest run of unknown rows that lies between one of k and one not of k;
    2. if there is no such run: the unknown row nearest to a cut, where one of k stands next to one not of k;
    3. if there is no cut either: a random unknown row.

    In the paper every answer comes before the next pick. Here a batch is chosen at once, and a pick whose answer is
    awaited counts as of its predicted class; so a budget of 1 is the paper's algorithm, and larger ones approximate
    it. Equals are chosen among by the seed. Without labeled rows the first picks are random. Time is O(C N log N + L)
    a pick for L labeled rows, memory O(N C).

    >>> labels = np.array([0, -1, -1, -1, 1])
    >>> p = np.array([0.9, 0.7, 0.52, 0.2, 0.1])
    >>> view = sl.PoolView(labels, probs=np.stack([p, 1 - p], axis=1))
    >>> sl.active.Galaxy()(view, budget=1)  # the middle of the unknown rows between the two classes
    array([2])
    """

    name = "galaxy"
    family = "hybrid"
    paper = "GALAXY: Graph-based Active Learning at the Extreme"
    arxiv = "2202.01402"
    needs = frozenset({"probs"})
    uses_classes = True

    def select(self, view: PoolView, budget: int, seed: int) -> IntArray:
        draws = rng(seed, "galaxy")
        rows = draws.permutation(np.flatnonzero(view.labels != IGNORED))
        p, labels = view.need("probs")[rows], view.labels[rows]
        predicted, top = p.argmax(axis=1), p.max(axis=1)
        known = np.flatnonzero(labels >= 0).tolist()
        label = np.where(labels >= 0, labels, predicted)
        lines: dict[int, tuple[NDArray[np.int32], NDArray[np.int32]]] = {}
        chosen: list[int] = []
        for k in draws.integers(p.shape[1], size=budget).tolist():
            if k not in lines:
                order = np.lexsort((p[:, k], p[:, k] - top)).astype(np.int32)
                lines[k] = order, np.argsort(order).astype(np.int32)
            order, place = lines[k]
            standing = np.sort(place[known]).astype(np.int64)
            spot = next_spot(standing, label[order[standing]] == k, len(rows), draws)
            chosen.append(int(order[spot]))
            known.append(chosen[-1])
        return rows[chosen]


def next_spot(known: IntArray, positive: NDArray[np.bool_], size: int, draws: np.random.Generator) -> int:
    """The place to ask about on a line of places 0..size-1, of which `known` (sorted) are, `positive` or not."""
    gap, differ = np.diff(known), np.diff(positive)
    if (differ & (gap > 1)).any():
        left = _drawn(np.where(differ & (gap > 1), gap, size + 1), draws)
        return int(known[left] + known[left + 1]) // 2
    cuts = np.flatnonzero(differ)
    starts = np.flatnonzero(np.append(True, gap > 1))  # of the runs of known places that touch
    ends = np.append(starts[1:] - 1, len(known) - 1)
    run = np.searchsorted(starts, cuts, side="right") - 1
    below, above = known[starts[run]] - 1, known[ends[run]] + 1
    spots = np.append(below, above)
    far = np.append(known[cuts] - below, above - known[cuts + 1])
    inside = (spots >= 0) & (spots < size)
    if inside.any():
        return int(spots[_drawn(np.where(inside, far, size + 1), draws)])
    return int(draws.choice(np.setdiff1d(np.arange(size), known, assume_unique=True)))


def _drawn(lengths: IntArray, draws: np.random.Generator) -> int:
    """The position of one of the least lengths."""
    return int(draws.choice(np.flatnonzero(lengths == lengths.min())))
