"""BAIT (Ash et al. 2021, arXiv 2106.09675): the batch that bounds the Fisher information of the whole pool."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from ssl_lab.active.queries.base import Query, rng
from ssl_lab.active.queries.view import IGNORED, FloatArray, IntArray, PoolView
from ssl_lab.errors import UsageError

Matrix = NDArray[np.float64]
ROWS = 8192  # at a time
LIMIT = 2**27  # numbers in a Fisher matrix: 1 GB


class Bait(Query):
    """Seeks the batch S of least trace((ridge * I + sum over labeled and S of I(x))^-1 I_U), greedily.

    Forward: adds the row that lowers the trace most, 2 * budget times (or until all are in). Backward: removes the
    row whose loss raises it least, until `budget` are left, in the order in which they were added. I_U is the sum of
    I(x) over all rows that are not ignored.

    I(x) is the Fisher information of the last layer's weights, *approximated* by its blocks on the diagonal, one a
    class: p_c (1 - p_c) h h^T, of D^2 numbers, where the whole has (C D)^2. That drops the covariance of two classes'
    gradients, -p_c p_k h h^T; it is the information of C logistic classifiers, each class against the others. For
    C = 2 it is as good as the whole, with a ridge of 2 * `ridge`. The greedy steps are exact for it: each is a rank-1
    update (Woodbury) of every block, and of h^T M^-1 h and h^T M^-1 I_U M^-1 h for all rows by one matrix product.

    Time is O(N D C budget), memory O(N (D + C) + C D^2). C * D^2 may be 2^27 at most (UsageError above): 100 classes of
    1,024 features.

    Args:
        ridge: above 0.

    >>> rng = np.random.default_rng(0)
    >>> view = sl.PoolView(np.full(30, -1), embeddings=rng.normal(size=(30, 4)), probs=rng.dirichlet([1, 1], size=30))
    >>> len(sl.active.Bait(ridge=1.0)(view, budget=3))
    3
    """

    name = "bait"
    family = "hybrid"
    paper = "Gone Fishing: Neural Active Learning with Fisher Embeddings"
    arxiv = "2106.09675"
    needs = frozenset({"embeddings", "probs"})

    def __init__(self, ridge: float = 1.0) -> None:
        if ridge <= 0:
            raise UsageError(f"ridge = {ridge}; expected above 0, or the first inverse does not exist")
        self.ridge = ridge

    def select(self, view: PoolView, budget: int, seed: int) -> IntArray:
        h, p = view.need("embeddings"), view.need("probs")
        if (size := p.shape[1] * h.shape[1] ** 2) > LIMIT:
            raise UsageError(f"bait needs a matrix of {h.shape[1]} x {h.shape[1]} for each of {p.shape[1]} classes, "
                             f"{size} numbers; expected at most {LIMIT}. Reduce the features (PCA), or use badge")
        candidates = view.candidates
        weight = p * (1 - p)
        known = self.ridge * np.eye(h.shape[1]) + information(h, weight, view.labeled)
        inverse = np.linalg.inv(known).astype(np.float64, copy=False)
        bounded = inverse @ information(h, weight, np.flatnonzero(view.labels != IGNORED)) @ inverse
        trace = Trace(h[candidates], weight[candidates], inverse, bounded)
        order = rng(seed, "bait").permutation(len(candidates))  # the first of equals is added
        added: list[int] = []
        for _ in range(min(2 * budget, len(candidates))):
            gain = trace.gain()
            gain[added] = -np.inf
            added.append(int(order[gain[order].argmax()]))
            trace.change(added[-1], 1)
        kept = candidates[added]
        trace = Trace(h[kept], weight[kept], trace.inverse, trace.bounded)
        inside = np.ones(len(kept), dtype=bool)
        while inside.sum() > budget:
            last = int(np.where(inside, trace.cost(), np.inf).argmin())
            inside[last] = False
            trace.change(last, -1)
        return kept[inside]


class Trace:
    """How trace(sum_c M_c^-1 F_c) changes with the rows in M_c = ridge * I + sum w_c h h^T.

    h: [N, D] and weight: w [N, C], of the rows that may come or go. inverse: M^-1, and bounded: M^-1 F M^-1, both
    [C, D, D], and updated in place. Kept for every row and class: a = w h^T M^-1 h and b = w h^T M^-1 F M^-1 h.
    """

    def __init__(self, h: FloatArray, weight: FloatArray, inverse: Matrix, bounded: Matrix) -> None:
        self.h, self.w, self.inverse, self.bounded = h, weight, inverse, bounded
        self.a, self.b = np.empty((2, *weight.shape))
        for start in range(0, len(h), ROWS):
            part = slice(start, start + ROWS)
            x = h[part]
            for c, w in enumerate(weight[part].T):
                self.a[part, c] = w * np.einsum("nd,nd->n", x @ inverse[c].astype(h.dtype), x)
                self.b[part, c] = w * np.einsum("nd,nd->n", x @ bounded[c].astype(h.dtype), x)

    def gain(self) -> Matrix:
        """By how much the trace falls when a row comes in: [R]."""
        fall: Matrix = (self.b / (1 + self.a)).sum(axis=1)
        return fall

    def cost(self) -> Matrix:
        """By how much it rises when a row that is in goes: [R]."""
        rise: Matrix = (self.b / np.maximum(1 - self.a, 1e-12)).sum(axis=1)
        return rise

    def change(self, row: int, sign: int) -> None:
        """Lets a row in (sign = 1) or out (-1): M^-1 <- M^-1 - k u u^T with u = M^-1 h, k = sign w / (1 + sign a)."""
        x, w = self.h[row].astype(np.float64), self.w[row].astype(np.float64)
        k = sign * w / (1 + sign * self.a[row])
        u, v = self.inverse @ x, self.bounded @ x  # [C, D]
        v = (k * k * (v @ x) / 2)[:, None] * u - k[:, None] * v  # so that M^-1 F M^-1 grows by u v^T + v u^T
        both = np.concatenate([u, v]).astype(self.h.dtype).T
        for start in range(0, len(self.h), ROWS):
            part = slice(start, start + ROWS)
            along_u, along_v = np.split(self.h[part] @ both, 2, axis=1)
            self.a[part] -= self.w[part] * k * along_u**2
            self.b[part] += self.w[part] * 2 * along_u * along_v
        self.inverse -= (k[:, None] * u)[:, :, None] @ u[:, None]
        self.bounded += np.stack([u, v], axis=2) @ np.stack([v, u], axis=1)


def information(h: FloatArray, weight: FloatArray, rows: IntArray) -> NDArray[np.float64]:
    """sum over rows of w_c h h^T: [C, D, D]."""
    total = np.zeros((weight.shape[1], h.shape[1], h.shape[1]))
    for start in range(0, len(rows), ROWS):
        part = rows[start : start + ROWS]
        for c in range(len(total)):
            total[c] += (h[part] * weight[part, c, None]).T @ h[part]
    return total
