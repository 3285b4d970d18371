"""Discriminative active learning (Gissin and Shalev-Shwartz 2019, arXiv 1907.06347): what looks least labeled."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import minimize
from scipy.special import expit

from ssl_lab.active.queries.base import Query, highest
from ssl_lab.active.queries.view import FloatArray, IntArray, PoolView
from ssl_lab.errors import UsageError


class Discriminative(Query):
    """Fits a classifier of labeled against unlabeled rows on their features and picks the candidates that it calls
    unlabeled most surely, in `batches` parts: what a part picked counts as labeled in the next.

    The classifier is a logistic one, exact for its convex loss (the paper has a small network on the same features):

        (1/2) mean over the labeled of log(1 + e^z) + (1/2) mean over the unlabeled of log(1 + e^-z) + ridge/2 |w|^2

    with z(h) = <w, h standardized> + b. Either side weighs the same, as in the authors' code, however few are
    labeled. Without any labeled row, UsageError. Time is O(N D) for each step of L-BFGS, memory O(N D).

    Args:
        batches: parts of a selection.
        ridge: above 0.

    >>> points = np.array([[0.0], [0.1], [0.2], [5.0]])
    >>> sl.active.Discriminative(batches=1)(sl.PoolView(np.array([0, 1, -1, -1]), embeddings=points), budget=1)
    array([3])
    """

    name = "discriminative"
    family = "training"
    paper = "Discriminative Active Learning"
    arxiv = "1907.06347"
    needs = frozenset({"embeddings"})

    def __init__(self, batches: int = 10, ridge: float = 1e-3) -> None:
        if batches < 1 or ridge <= 0:
            raise UsageError(f"batches = {batches}, ridge = {ridge}; expected 1 or more, and above 0")
        self.batches, self.ridge = batches, ridge

    def select(self, view: PoolView, budget: int, seed: int) -> IntArray:
        known, candidates = view.labeled, view.candidates
        if not len(known):
            raise UsageError("discriminative tells unlabeled rows from labeled ones, and none is labeled; begin with "
                             "random, typiclust or another query that needs no labels")
        h = view.need("embeddings")[np.append(known, candidates)]  # a copy
        h -= h.mean(axis=0)
        scale = np.sqrt(np.einsum("nd,nd->d", h, h) / len(h))
        h /= np.where(scale > 0, scale, 1)
        labeled = np.arange(len(h)) < len(known)
        weights = np.zeros(h.shape[1] + 1)
        chosen: list[int] = []
        for part, size in enumerate(np.diff(np.linspace(0, budget, self.batches + 1).round().astype(int))):
            if size:
                weights, scores = fit(h, labeled, self.ridge, weights)
                left = np.flatnonzero(~labeled)
                picked = left[highest(scores[left], size, seed + part)]
                labeled[picked] = True
                chosen += (picked - len(known)).tolist()
        return candidates[chosen]


def fit(h: FloatArray, labeled: NDArray[np.bool_], ridge: float,
        start: NDArray[np.float64]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """The minimum of the loss of `Discriminative`, from `start`: w and b [D + 1], and z [N]. h: standardized."""
    side = np.where(labeled, 1.0, -1.0)
    share = np.where(labeled, 0.5 / labeled.sum(), 0.5 / (~labeled).sum())

    def logits(weights: NDArray[np.float64]) -> NDArray[np.float64]:
        z: NDArray[np.float64] = h @ weights[:-1].astype(h.dtype) + weights[-1]
        return z

    def loss(weights: NDArray[np.float64]) -> tuple[float, NDArray[np.float64]]:
        z, w = side * logits(weights), weights[:-1]
        slope = share * side * expit(z)
        gradient = slope.astype(h.dtype) @ h + ridge * w
        return float(share @ np.logaddexp(0, z) + ridge / 2 * w @ w), np.append(gradient, slope.sum())

    weights = minimize(loss, start, jac=True, method="L-BFGS-B").x
    return weights, logits(weights)
