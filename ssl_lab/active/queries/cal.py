"""CAL (Margatina et al. 2021, arXiv 2109.03764): candidates whose prediction differs from their labeled neighbors'."""

from __future__ import annotations

import faiss
import numpy as np
from scipy.special import entr

from ssl_lab.active.queries.base import ScoreQuery, check_counts
from ssl_lab.active.queries.view import FloatArray, IntArray, PoolView
from ssl_lab.errors import UsageError

ROWS = 8192  # at a time
TINY = np.finfo(np.float32).tiny  # for log p of a class that is ruled out


class Cal(ScoreQuery):
    """Highest (1/k) sum_l KL(p(l) || p(x)) over the `neighbors` = k labeled rows l nearest to x in the features.

    Nearest by Euclidean distance of the features as they are; the authors' code scales them to length 1 before. Give
    unit rows for that: of nets whose features differ much in length, neighbors are others.

    Exact: all labeled rows are searched. With fewer than k of them, all are neighbors; with none, UsageError. Time is
    O(N L D) for L labeled rows, memory O(L D + N).

    Args:
        neighbors: k, 1 or more.

    >>> points = np.array([[0.0, 1.0], [0.1, 1.0], [0.2, 1.0]])
    >>> probs = np.array([[0.9, 0.1], [0.9, 0.1], [0.2, 0.8]])  # row 2 lies near row 0, and is predicted otherwise
    >>> sl.active.Cal(neighbors=1)(sl.PoolView(np.array([0, -1, -1]), embeddings=points, probs=probs), budget=1)
    array([2])
    """

    name = "cal"
    family = "hybrid"
    paper = "Active Learning by Acquiring Contrastive Examples"
    arxiv = "2109.03764"
    needs = frozenset({"embeddings", "probs"})

    def __init__(self, neighbors: int = 10) -> None:
        check_counts(neighbors=neighbors)
        self.neighbors = neighbors

    def scores(self, view: PoolView, rows: IntArray) -> FloatArray:
        h, p, labeled = view.need("embeddings"), view.need("probs"), view.labeled
        if not len(labeled):
            raise UsageError("cal compares candidates with labeled rows, and none is labeled; begin with random, "
                             "typiclust or another query that needs no labels")
        index = faiss.IndexFlatL2(h.shape[1])
        index.add(h[labeled])
        scores = []
        for start in range(0, len(rows), ROWS):
            some = rows[start : start + ROWS]
            _, near = index.search(h[some], min(self.neighbors, len(labeled)))
            scores.append(contrast(p[some], p[labeled], near))
        return np.concatenate(scores)


def contrast(p: FloatArray, labeled: FloatArray, near: IntArray) -> FloatArray:
    """Mean over k of KL(labeled[near_k] || p): [M]. p: [M, C]; labeled: [L, C]; near: [M, k], rows of labeled.

    By sum_c q_c log q_c - q_c log p_c the mean needs that of the neighbors' entropies and q alone, not M * k * C.
    """
    mean = np.zeros_like(p)
    for column in near.T:
        mean += labeled[column] / near.shape[1]
    entropy = entr(labeled).sum(axis=1)[near].mean(axis=1)
    scores: FloatArray = -entropy - (mean * np.log(np.maximum(p, TINY))).sum(axis=1)
    return np.maximum(scores, 0)
