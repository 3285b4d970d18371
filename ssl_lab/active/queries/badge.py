"""BADGE (Ash et al. 2020, arXiv 1906.03671): k-means++ on the gradients that the head would get."""

from __future__ import annotations

import numpy as np

from ssl_lab.active.queries.base import UNLABELED, FloatArray, IntArray, PoolView, Query, highest, rng
from ssl_lab.active.queries.distances import squared_norms

ROWS, BLOCK = 8192, 128  # rows at a time; proposals between two passes over the pool


class Badge(Query):
    """k-means++ seeding on g(x) = (p - onehot(argmax p)) h^T, the gradient of the cross-entropy of the predicted label.

    The first pick has the longest g; each next one is x with probability ~ min over the chosen s of |g(x) - g(s)|^2,
    *squared*, as in the authors' code. g is of the head's weights alone; that code leaves the bias out too. g, of
    C * D numbers, is never made: <g(x), g(s)> = <r(x), r(s)> <h(x), h(s)> with r = p - onehot(argmax p). The
    distribution of the picks is exact, up to float32 (see `spread`). Labeled rows do not matter. Time is O(N (D + C)
    budget) in matrix products, memory O(N C).

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

    def select(self, view: PoolView, budget: int, seed: int) -> IntArray:
        h, p = view.need("embeddings"), view.need("probs")
        residual = np.array(p)
        residual[np.arange(len(p)), p.argmax(axis=1)] -= 1
        candidates = view.candidates
        longest = highest(_norms(h, residual)[candidates], 1, seed)[0]
        weight = (view.labels == UNLABELED).astype(np.float32)
        return spread(h, residual, weight, int(candidates[longest]), budget, rng(seed, "badge"))


def spread(h: FloatArray, r: FloatArray, weight: FloatArray, first: int, count: int,
           draws: np.random.Generator) -> IntArray:
    """k-means++: `first`, then rows x with probability ~ weight_x * min_s |g(x) - g(s)|^2, where g(x) = r(x) h(x)^T.

    h: [N, D]; r: [N, C] (ones [N, 1] make g = h); weight: [N], at least `count` of them above 0. Returns int64
    [count], different rows in the order of drawing. Rows no farther from the chosen than rounding count as equal to
    them; when only such are left, the rest is drawn evenly from those with weight.

    Between two passes over the pool, each of one matrix product, distances are stale: D = min over the chosen of
    that time. So x is proposed with probability D(x) / sum D, and accepted with D'(x) / D(x) <= 1, where D' also
    counts the rows chosen since. Then P(x is proposed and accepted) ~ D(x) * D'(x) / D(x) = D'(x), as it has to be;
    and since that holds for every proposal, whatever was refused before, so it does for the one accepted, however
    often D is brought up to date.
    """
    norms = _norms(h, r)
    stale = np.full(len(h), np.inf, dtype=np.float32)
    chosen, counted = [first], 0
    while len(chosen) < count:
        _bring_up_to_date(stale, h, r, norms, np.array(chosen[counted:], dtype=np.int64))
        stale[chosen] = 0
        counted = len(chosen)
        mass = np.cumsum(weight * stale, dtype=np.float64)
        if mass[-1] <= 0:
            rest = np.setdiff1d(np.flatnonzero(weight > 0), chosen)
            chosen += draws.permutation(rest)[: count - len(chosen)].tolist()
            break
        for _ in range(BLOCK):
            x = int(np.searchsorted(mass, (1 - draws.random()) * mass[-1]))  # (0, 1]: never a row without mass
            since = chosen[counted:]
            apart = norms[x] + norms[since] - 2 * (h[since] @ h[x]) * (r[since] @ r[x])
            now = min(apart.min(initial=stale[x]), stale[x])
            if x not in since and now > 2e-6 * norms[x] and draws.random() * stale[x] < now:
                chosen.append(x)
                if len(chosen) == count:
                    break
    return np.array(chosen)


def _norms(h: FloatArray, r: FloatArray) -> FloatArray:
    """|g(x)|^2 = |r(x)|^2 |h(x)|^2: [N]."""
    return squared_norms(r) * squared_norms(h)


def _bring_up_to_date(stale: FloatArray, h: FloatArray, r: FloatArray, norms: FloatArray, new: IntArray) -> None:
    """stale <- min(stale, the least squared distance to the rows `new`), in place."""
    h_new, r_new = h[new].T, r[new].T
    for start in range(0, len(h), ROWS):
        rows = slice(start, start + ROWS)
        products = h[rows] @ h_new
        products *= r[rows] @ r_new
        products *= -2
        products += norms[new]
        least = products.min(axis=1, initial=np.inf) + norms[rows]
        least[least <= 2e-6 * norms[rows]] = 0  # of equal rows, rounding alone is left
        np.minimum(stale[rows], least, out=stale[rows])
