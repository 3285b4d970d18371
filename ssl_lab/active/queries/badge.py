"""BADGE (Ash et al. 2020, arXiv 1906.03671): k-means++ on the gradients that the head would get."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from ssl_lab.active.queries.base import Query, highest, rng
from ssl_lab.active.queries.distances import squared_norms
from ssl_lab.active.queries.share import Share
from ssl_lab.active.queries.view import UNLABELED, FloatArray, IntArray, PoolView

BLOCK = 128  # proposals between two passes over the pool
EQUAL = 2e-6  # of a row's squared length: what rounding leaves of the distance of equal rows

Gradients = tuple[FloatArray, FloatArray]
"""h [n, D] and r [n, C] of some rows, whose gradients are g(x) = r(x) h(x)^T."""
Reader = Callable[[slice | IntArray], Gradients]


class Badge(Query):
    """k-means++ seeding on g(x) = (p - onehot(argmax p)) h^T, the gradient of the cross-entropy of the predicted label.

    The first pick has the longest g; each next one is x with probability ~ min over the chosen s of |g(x) - g(s)|^2,
    *squared*, as in the authors' code. g is of the head's weights alone; that code leaves the bias out too. g, of
    C * D numbers, is never made: <g(x), g(s)> = <r(x), r(s)> <h(x), h(s)> with r = p - onehot(argmax p). The
    distribution of the picks is exact, up to float32 (see `spread`). Labeled rows do not matter. Time is O(N (D + C)
    budget) in matrix products. The arrays are read in blocks, once and then again for about every 100 picks; memory is
    O(N).

    >>> rng = np.random.default_rng(0)
    >>> points, sure, unsure = rng.normal(size=(40, 4)), [0.999, 0.001], [0.5, 0.5]
    >>> view = sl.PoolView(np.full(40, -1), embeddings=points, probs=np.repeat([sure, unsure], 20, axis=0))
    >>> int((sl.active.Badge()(view, budget=10) < 20).sum())  # sure rows are nearly one point: one stands for all
    1
    """

    name = "badge"
    family = "hybrid"
    paper = "Deep Batch Active Learning by Diverse, Uncertain Gradient Lower Bounds"
    arxiv = "1906.03671"
    needs = frozenset({"embeddings", "probs"})
    reads = "shares"

    def select(self, view: PoolView, budget: int, seed: int) -> IntArray:
        def gradients(rows: slice | IntArray) -> Gradients:
            h, r = view.read("embeddings", rows), view.read("probs", rows)
            r[np.arange(len(r)), r.argmax(axis=1)] -= 1
            return h, r

        share, free = Share(len(view), view.ranks), view.labels == UNLABELED
        own = free[share.start : share.stop]
        longest = highest(np.where(own, lengths(share, gradients), -1), 1, seed, share)[0]
        return spread(share, gradients, free.astype(np.float32), int(longest), budget, rng(seed, "badge"))


def spread(share: Share, gradients: Reader, weight: FloatArray, first: int, count: int,
           draws: np.random.Generator) -> IntArray:
    """k-means++: `first`, then rows x with probability ~ weight_x * min_s |g(x) - g(s)|^2, where g(x) = r(x) h(x)^T.

    share: of N rows. gradients: h and r of some of them; r of ones [n, 1] makes g = h. weight: [N], at least `count` of
    them above 0. Returns int64 [count], different rows in the order of drawing. Rows no farther from the chosen than
    rounding count as equal to them; when only such are left, the rest is drawn evenly from those with weight.

    Between two passes over the pool, each of one matrix product, distances are stale: D = min over the chosen of
    that time. So x is proposed with probability D(x) / sum D, and accepted with D'(x) / D(x) <= 1, where D' also
    counts the rows chosen since. Then P(x is proposed and accepted) ~ D(x) * D'(x) / D(x) = D'(x), as it has to be;
    and since that holds for every proposal, whatever was refused before, so it does for the one accepted, however
    often D is brought up to date.

    A proposal is a block of rows, drawn by the blocks' masses, which all ranks know, and then a row of it, which the
    rank whose block it is tells them.
    """
    mine = _Mass(share, weight)
    chosen, new = [first], gradients(np.array([first]))
    while len(chosen) < count:
        mine.bring_up_to_date(gradients, new, chosen)
        edges = np.cumsum(share.of_all(mine.of_blocks()))
        if edges[-1] <= 0:
            rest = np.setdiff1d(np.flatnonzero(weight > 0), chosen)
            chosen += draws.permutation(rest)[: count - len(chosen)].tolist()
            break
        fresh: list[int] = []
        new = new[0][:0], new[1][:0]
        for _ in range(BLOCK):
            at = (1 - draws.random()) * edges[-1]  # (0, 1]: never a row without mass
            block = int(np.searchsorted(edges, at))
            x, stale = mine.proposed(block, at - (edges[block - 1] if block else 0))
            h, r = gradients(np.array([x]))
            length = _lengths(h, r)[0]
            apart = length + _lengths(*new) - 2 * (new[0] @ h[0]) * (new[1] @ r[0])
            now = min(apart.min(initial=stale), stale)
            if x not in fresh and now > EQUAL * length and draws.random() * stale < now:
                fresh.append(x)
                new = np.concatenate([new[0], h]), np.concatenate([new[1], r])
                if len(chosen) + len(fresh) == count:
                    break
        chosen += fresh
    return np.array(chosen)


class _Mass:
    """Of this rank's rows: weight * stale, the least squared distance to the chosen."""

    def __init__(self, share: Share, weight: FloatArray) -> None:
        self.share, self.weight = share, weight[share.start : share.stop]
        self.stale = np.full(len(share), np.inf, dtype=np.float32)
        self.summed = np.empty(len(share))  # within each block

    def bring_up_to_date(self, gradients: Reader, new: Gradients, chosen: list[int]) -> None:
        """Counts the rows `new`, which are the last of the chosen."""
        h_new, r_new, lengths = new[0].T, new[1].T, _lengths(*new)
        for block in self.share:
            h, r = gradients(block)
            own, part = _lengths(h, r), self.share.own(block)
            products = h @ h_new
            products *= r @ r_new
            products *= -2
            products += lengths
            least = products.min(axis=1, initial=np.inf) + own
            least[least <= EQUAL * own] = 0  # of equal rows, rounding alone is left
            np.minimum(self.stale[part], least, out=self.stale[part])
        mine = np.array(chosen) - self.share.start
        self.stale[mine[(mine >= 0) & (mine < len(self.share))]] = 0

    def of_blocks(self) -> list[float]:
        """The mass of each block."""
        for block in self.share:
            part = self.share.own(block)
            np.cumsum(self.weight[part] * self.stale[part], dtype=np.float64, out=self.summed[part])
        return [float(self.summed[self.share.own(block)][-1]) for block in self.share]

    def proposed(self, block: int, at: float) -> tuple[int, float]:
        """The row of a block up to which the mass is `at`, and what is stale of it, from the rank that has it."""
        found, start = None, block * self.share.size - self.share.start
        if 0 <= start < len(self.share):
            summed = self.summed[start : start + self.share.size]
            row = start + int(np.searchsorted(summed, min(at, summed[-1])))
            found = row + self.share.start, self.stale[row]
        return next(each for each in self.share.ranks.of_all(found) if each is not None)


def lengths(share: Share, gradients: Reader) -> FloatArray:
    """|g(x)|^2 of this rank's rows."""
    return np.concatenate([np.empty(0, dtype=np.float32), *(_lengths(*gradients(block)) for block in share)])


def _lengths(h: FloatArray, r: FloatArray) -> FloatArray:
    """|g(x)|^2 = |r(x)|^2 |h(x)|^2: [n]."""
    return squared_norms(r) * squared_norms(h)
