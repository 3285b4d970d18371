"""ALFA-Mix (Parvaneh et al. 2022, arXiv 2203.07034): rows whose prediction changes when mixed with labeled features."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from ssl_lab.active.queries.base import Query, highest, rng
from ssl_lab.active.queries.k_means import KMeans
from ssl_lab.active.queries.view import UNLABELED, FloatArray, IntArray, PoolView
from ssl_lab.errors import UsageError
from ssl_lab.features.search import unit

ROWS = 8192  # at a time
CAPS = 32  # the authors' code tries caps 1/32, 2/32 ... 1


class AlfaMix(Query):
    """k-means, `budget` clusters, among the candidates whose predicted class changes for the mix

        alpha * z_c + (1 - alpha) * z(x),    alpha = eps |z_c - z| grad / (|grad| (z_c - z)), element by element

    with some anchor z_c, the mean feature of the rows labeled c. This alpha is the paper's closed form: of |alpha| <=
    eps the one that most raises the cross-entropy of x's own prediction, whose gradient in z is grad. eps = cap /
    sqrt(D), with the least cap of 1/32, 2/32 ... 1 that gives `budget` such candidates or more. k-means is that of
    `KMeans`, on their features scaled to length 1. If cap = 1 gives too few, it is all of them, those that change at
    the least eps first, and then random others.

    Exact but for k-means, without a mix being made: the mix is z + eps |z_c - z| grad / |grad|, so every logit is
    linear in eps, a prediction changes at one eps and for the farthest anchor first, and W z, W W^T and the distances
    to the anchors tell all. Predictions are those of the head. Classes without a labeled row have no anchor; without
    any, UsageError. Memory is O(N (D + C)).

    >>> points = np.array([[4.0, 0.0], [0.0, 4.0], [3.0, 0.0], [1.1, 1.0]])  # the last lies near the border
    >>> view = sl.PoolView(np.array([0, 1, -1, -1]), embeddings=points, head_weight=np.eye(2), head_bias=np.zeros(2))
    >>> sl.active.AlfaMix()(view, budget=1)
    array([3])
    """

    name = "alfa_mix"
    family = "hybrid"
    paper = "Active Learning by Feature Mixing"
    arxiv = "2203.07034"
    needs = frozenset({"embeddings", "head_weight", "head_bias"})
    uses_classes = True

    def select(self, view: PoolView, budget: int, seed: int) -> IntArray:
        z, weight, bias = view.need("embeddings"), view.need("head_weight"), view.need("head_bias")
        candidates, labeled = view.candidates, view.labeled
        if not len(labeled):
            raise UsageError("alfa_mix mixes candidates with labeled rows, and none is labeled; begin with random, "
                             "typiclust or another query that needs no labels")
        classes = view.labels[labeled]
        anchors = np.stack([z[labeled[classes == label]].mean(axis=0) for label in np.unique(classes)])
        eps = np.concatenate([changes_at(z[candidates[start : start + ROWS]], anchors, weight, bias)
                              for start in range(0, len(candidates), ROWS)])
        needed = np.floor(eps * z.shape[1] ** 0.5 * CAPS) + 1  # the least cap above it, in 1/32
        cap = min(np.partition(needed, budget - 1)[budget - 1], CAPS)
        order = highest(-eps, len(eps), seed)  # those that change first are first
        changing = order[needed[order] <= cap]
        if len(changing) <= budget:
            others = rng(seed, "alfa_mix/fill").permutation(order[len(changing) :])
            picked: IntArray = candidates[np.append(changing, others)[:budget]]
            return picked
        mixed = PoolView(np.full(len(changing), UNLABELED), embeddings=unit(z[candidates[changing]]))
        picked = candidates[changing[KMeans().select(mixed, budget, seed)]]
        return picked


def changes_at(z: FloatArray, anchors: FloatArray, weight: FloatArray, bias: FloatArray) -> NDArray[np.float64]:
    """The eps [M] above which the mix with some anchor [A, D] changes the prediction of a row [M, D]; inf if none."""
    logits = (z @ weight.T + bias).astype(np.float64)
    rows, label = np.arange(len(z)), logits.argmax(axis=1)
    residual = np.exp(logits - logits.max(axis=1, keepdims=True))
    residual /= residual.sum(axis=1, keepdims=True)
    residual[rows, label] = 0
    residual[rows, label] = -residual.sum(axis=1)  # p - onehot; grad = residual @ W
    rise = residual @ (weight.astype(np.float64) @ weight.T)  # of the logits, along grad
    length = np.sqrt(np.maximum((rise * residual).sum(axis=1), 0))
    gap = logits[rows, label][:, None] - logits
    closing = rise - rise[rows, label][:, None]
    with np.errstate(divide="ignore", invalid="ignore"):  # no gradient, no change
        step = np.where(closing > 0, gap / closing, np.inf).min(axis=1) * length
        squares = (np.einsum("nd,nd->n", z, z)[:, None] - 2 * z @ anchors.T + np.einsum("ad,ad->a", anchors, anchors))
        eps: NDArray[np.float64] = step / np.sqrt(np.maximum(squares.max(axis=1), 0))
    return np.where((length > 0) & np.isfinite(eps), eps, np.inf)
