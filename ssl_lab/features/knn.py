"""Classifiers without training: weighted nearest neighbors and nearest class prototype."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import ArrayLike
from torch import Tensor

from ssl_lab.data import IntArray
from ssl_lab.errors import UsageError
from ssl_lab.features.search import FloatArray, matrix, top_k, unit


def weighted_knn(features: ArrayLike, labels: ArrayLike, queries: ArrayLike, classes: int, k: int = 20,
                 temperature: float = 0.07) -> FloatArray:
    """Votes of the k nearest labeled rows, each of weight exp(cosine / temperature) (Wu et al. 2018, arXiv 1805.01978).

    Args:
        features: [N, D].
        labels: int [N], -1 = unlabeled.
        queries: [M, D].
        classes: how many there are.
        k: at most as many as there are labels.
        temperature: above 0; the lower, the more the nearest count.

    Returns:
        Probabilities float32 [M, classes].

    Raises:
        UsageError: for a k or temperature that is not positive, labels that are not one for each row and below
            `classes`, no label at all, and features that are not finite.

    >>> features, labels = np.array([[1, 0], [0, 1], [1, 1]]), np.array([0, 1, -1])
    >>> sl.features.weighted_knn(features, labels, queries=[[2, 1]], classes=2, temperature=1.0).round(3)
    array([[0.61, 0.39]], dtype=float32)
    """
    bank, known = labeled_rows(features, labels, classes)
    if k < 1 or temperature <= 0:
        raise UsageError(f"k={k}, temperature={temperature}: both must be positive")
    cosines, rows = top_k(queries, bank, min(k, len(bank)))
    votes, each = np.zeros((len(rows), classes), dtype=np.float32), np.arange(len(rows))
    for weight, labels_of in zip(shares(cosines, temperature).T, known[rows].T, strict=True):
        votes[each, labels_of] += weight
    return votes


def shares(cosines: FloatArray, temperature: float) -> FloatArray:
    """float32 [M, k]: how much each neighbor counts, the softmax of cosines [M, k] / temperature."""
    weights = np.exp((cosines - cosines.max(axis=1, keepdims=True)) / temperature)  # no overflow; the factor cancels
    found: FloatArray = (weights / weights.sum(axis=1, keepdims=True)).astype(np.float32)
    return found


def nearest_prototype(features: ArrayLike, labels: ArrayLike, queries: ArrayLike, classes: int,
                      temperature: float = 0.07) -> FloatArray:
    """softmax(cosine(query, mean of the class's unit features) / temperature), after Snell et al. 2017 (arXiv
    1703.05175), with cosines in place of distances.

    Args:
        features: [N, D].
        labels: int [N], -1 = unlabeled.
        queries: [M, D].
        classes: how many there are.
        temperature: above 0; the lower, the surer.

    Returns:
        Probabilities float32 [M, classes]; a class without a label has 0.

    Raises:
        UsageError: as in `weighted_knn`.

    >>> features, labels = np.array([[1, 0], [0, 1], [1, 1]]), np.array([0, 1, -1])
    >>> sl.features.nearest_prototype(features, labels, queries=[[2, 1], [1, 2]], classes=2).argmax(axis=1)
    array([0, 1])
    """
    bank, known = labeled_rows(features, labels, classes)
    if temperature <= 0:
        raise UsageError(f"temperature={temperature}: it must be positive")
    sums = np.zeros((classes, bank.shape[1]), dtype=np.float32)
    np.add.at(sums, known, unit(bank))
    cosines = unit(matrix(queries, "queries", bank.shape[1])) @ unit(sums).T
    absent = np.bincount(known, minlength=classes) == 0
    return softmax(np.where(absent, -np.inf, cosines / temperature))


def softmax(logits: ArrayLike | Tensor) -> FloatArray:
    """float32 [M, C]: probabilities of logits [M, C]."""
    return torch.softmax(torch.as_tensor(logits), dim=1).float().numpy()


def labeled_rows(features: ArrayLike, labels: ArrayLike, classes: int) -> tuple[FloatArray, IntArray]:
    """The features float32 [n, D] and classes int64 [n] of the rows whose label is not negative.

    UsageError unless there is a label for each row, all below `classes`, and at least one that is known.
    """
    bank, known = matrix(features, "features"), check_labels(labels, classes)
    if len(bank) != len(known):
        raise UsageError(f"{len(known)} labels for {len(bank)} rows of features; expected one each, -1 = unlabeled")
    return bank[known >= 0], known[known >= 0]


def check_labels(labels: ArrayLike, classes: int) -> IntArray:
    """int64 [N]. UsageError unless they are integers below `classes`, of which at least one is not negative."""
    known = np.asarray(labels)
    if known.ndim != 1 or not np.issubdtype(known.dtype, np.integer) or not known.size or known.max() >= classes:
        raise UsageError(f"labels are {known.dtype} of shape {known.shape}, up to {known.max(initial=-1)}; expected "
                         f"integers [N] below {classes}, -1 = unlabeled")
    if known.max() < 0:
        raise UsageError("no row has a label; give at least one per class")
    return known.astype(np.int64)
