"""What the learners on frozen features have learned, as things that answer for new images."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from ssl_lab.data import IntArray
from ssl_lab.errors import unknown
from ssl_lab.features.anchored import anchored_weights
from ssl_lab.features.knn import check_labels, labeled_rows, shares, softmax
from ssl_lab.features.probe import probe_weights
from ssl_lab.features.propagation import affinity, propagated
from ssl_lab.features.search import FloatArray, matrix, top_k, unit
from ssl_lab.features.self_training import pseudo_labels

TEMPERATURE = 0.07  # of all learners that vote by cosines


@dataclass(frozen=True)
class Linear:
    """Logits W x + b of unit features x. weight: float32 [C, D]. bias: float32 [C]."""

    weight: FloatArray
    bias: FloatArray

    def __call__(self, features: ArrayLike) -> FloatArray:
        """Probabilities float32 [M, C] of features [M, D]."""
        return softmax(unit(matrix(features, "features", self.weight.shape[1])) @ self.weight.T + self.bias)


@dataclass(frozen=True)
class Neighbors:
    """The k nearest of `rows` vote, each with the weight exp(cosine / temperature) and what it believes.

    rows: float32 [N, D]. beliefs: float32 [N, C], probabilities.
    """

    rows: FloatArray
    beliefs: FloatArray
    k: int
    temperature: float = TEMPERATURE

    def __call__(self, features: ArrayLike) -> FloatArray:
        """Probabilities float32 [M, C] of features [M, D]."""
        cosines, near = top_k(matrix(features, "features", self.rows.shape[1]), self.rows, self.k)
        probs = np.zeros((len(near), self.beliefs.shape[1]), dtype=np.float32)
        for weight, row in zip(shares(cosines, self.temperature).T, near.T, strict=True):
            probs += weight[:, None] * self.beliefs[row]
        return probs


Head = Linear | Neighbors


def _linear(weights: FloatArray) -> Linear:
    return Linear(np.ascontiguousarray(weights[:, :-1]), weights[:, -1].copy())


def _probe(features: ArrayLike, labels: IntArray, classes: int) -> Head:
    return _linear(probe_weights(features, labels, classes))


def _self_training(features: ArrayLike, labels: IntArray, classes: int) -> Head:
    guessed = pseudo_labels(features, labels, classes)
    return _linear(probe_weights(features, guessed, classes, None if np.array_equal(guessed, labels) else 1.0))


def _anchored(features: ArrayLike, labels: IntArray, classes: int) -> Head:
    return _linear(anchored_weights(features, labels, classes))


def _prototype(features: ArrayLike, labels: IntArray, classes: int) -> Head:
    rows, known = labeled_rows(features, labels, classes)
    sums = np.zeros((classes, rows.shape[1]), dtype=np.float32)
    np.add.at(sums, known, unit(rows))
    absent = np.bincount(known, minlength=classes) == 0
    return Linear(unit(sums) / np.float32(TEMPERATURE), np.where(absent, -1e4, 0).astype(np.float32))


def _knn(features: ArrayLike, labels: IntArray, classes: int) -> Head:
    rows, known = labeled_rows(features, labels, classes)
    return Neighbors(rows, np.eye(classes, dtype=np.float32)[known], min(20, len(rows)))


def _propagation(features: ArrayLike, labels: IntArray, classes: int) -> Head:
    rows = matrix(features, "features")
    k = min(50, len(rows) - 1)
    return Neighbors(rows, propagated(affinity(rows, k), labels, classes), k)


_HEADS: Mapping[str, Any] = {"knn": _knn, "prototype": _prototype, "probe": _probe, "propagation": _propagation,
                             "self_training": _self_training, "anchored": _anchored}


def fitted(learner: str, features: ArrayLike, labels: ArrayLike, classes: int) -> Head:
    """What answers for any queries as `LEARNERS[learner](features, labels, queries, classes)` does for some.

    features: [N, D]. labels: int [N], -1 = unlabeled.
    """
    if learner not in _HEADS:
        raise unknown("learner", learner, _HEADS)
    head: Head = _HEADS[learner](features, check_labels(labels, classes), classes)
    return head
