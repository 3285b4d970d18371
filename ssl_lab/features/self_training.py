"""Learning from one's own confident predictions, and from the agreement of several sets of features."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from ssl_lab.data import IntArray
from ssl_lab.errors import UsageError
from ssl_lab.features.knn import check_labels
from ssl_lab.features.probe import linear_probe
from ssl_lab.features.search import FloatArray, matrix

Learner = Callable[..., FloatArray]
"""(features [N, D], labels int [N] with -1 = unlabeled, queries [M, D], classes) -> probabilities [M, classes]."""


def self_training(features: ArrayLike, labels: ArrayLike, queries: ArrayLike, classes: int, rounds: int = 5,
                  share: float = 0.8, l2: float = 1.0, first: Learner = linear_probe) -> FloatArray:
    """Logistic regression on the labels and on class-balanced confident pseudo-labels, over some rounds.

    Each round takes for every class the unlabeled rows that the last round predicts as it most confidently, the same
    number for each class, so that no class crowds out another: in round r of R, r / R of `share` of the unlabeled rows
    divided by the classes; those it predicts itself only. Then it fits to labels and pseudo-labels alike, with this l2.

    Args:
        features: [N, D].
        labels: int [N], -1 = unlabeled.
        queries: [M, D].
        classes: how many there are.
        rounds: 1 or more.
        share: of the unlabeled rows that the last round may take, in (0, 1].
        l2: of the fits to pseudo-labels, as in `linear_probe`.
        first: who predicts before the first round.

    Returns:
        Probabilities float32 [M, classes].

    Raises:
        UsageError: as in `weighted_knn`, and for other rounds or shares.

    >>> rng, truth = np.random.default_rng(0), np.arange(100) % 2
    >>> features = rng.normal(size=(100, 3)) + np.where(truth[:, None], [4, 0, 1], [0, 4, 1])
    >>> labels = np.where(np.arange(100) < 2, truth, -1)  # one label each
    >>> probs = sl.features.self_training(features, labels, features, classes=2)
    >>> bool((probs.argmax(axis=1) == truth).mean() > 0.9)
    True
    """
    known = check_labels(labels, classes)
    guessed = pseudo_labels(features, known, classes, rounds, share, l2, first)
    if np.array_equal(guessed, known):
        return first(features, known, queries, classes)
    return linear_probe(features, guessed, queries, classes, l2)


def pseudo_labels(features: ArrayLike, labels: ArrayLike, classes: int, rounds: int = 5, share: float = 0.8,
                  l2: float = 1.0, first: Learner = linear_probe) -> IntArray:
    """int64 [N]: the labels and pseudo-labels that the last round of `self_training` fits to, -1 = neither.

    Args:
        features: [N, D].
        labels: int [N], -1 = unlabeled.
        classes: how many there are.
        rounds: 1 or more.
        share: of the unlabeled rows that the last round may take, in (0, 1].
        l2: of the fits to pseudo-labels, as in `linear_probe`.
        first: who predicts before the first round.

    Raises:
        UsageError: as in `weighted_knn`, and for other rounds or shares.

    >>> features = np.array([[4, 0], [5, 1], [0, 4], [1, 5], [3, 3]])
    >>> sl.features.pseudo_labels(features, [0, -1, 1, -1, -1], classes=2, share=0.7)  # of the row between, nothing
    array([ 0,  0,  1,  1, -1])
    """
    rows, known = matrix(features, "features"), check_labels(labels, classes)
    if rounds < 1 or not 0 < share <= 1:
        raise UsageError(f"rounds={rounds}, share={share}: expected 1 or more rounds, and a share in (0, 1]")
    unlabeled = np.flatnonzero(known == -1)
    guessed = known
    if len(unlabeled):
        probs = first(rows, known, rows[unlabeled], classes)
    for number in range(1, rounds + 1 if len(unlabeled) else 1):
        if number > 1:
            probs = linear_probe(rows, guessed, rows[unlabeled], classes, l2)
        quota = max(1, int(share * number / rounds * len(unlabeled) / classes))
        taken, guess = balanced(probs, quota)
        guessed = known.copy()
        guessed[unlabeled[taken]] = guess
    return guessed


def balanced(probs: FloatArray, quota: int) -> tuple[IntArray, IntArray]:
    """Row numbers int64 [n] and classes int64 [n]: of each class the `quota` rows that are predicted as it with the
    highest probability (all, if there are fewer). probs: [N, C]."""
    predicted = probs.argmax(axis=1)
    confidence = probs.max(axis=1)
    taken = []
    for label in range(probs.shape[1]):
        mine = np.flatnonzero(predicted == label)
        taken.append(mine[np.argsort(-confidence[mine], kind="stable")[:quota]])
    chosen = np.concatenate(taken)
    return chosen, predicted[chosen]


def ensemble(views: Sequence[ArrayLike], labels: ArrayLike, queries: Sequence[ArrayLike], classes: int,
             learner: Learner = linear_probe, pseudo: bool = True, **arguments: Any) -> FloatArray:
    """Several backbones (or variants of one) as one: the mean of what `learner` says on each's features, after Zhang
    et al. 2025 (arXiv 2503.09707).

    Args:
        views, queries: for each backbone the features [N, D_b] of all rows and [M, D_b] of the queries.
        labels: int [N], -1 = unlabeled.
        classes: how many there are.
        learner: that is fitted to each backbone's features.
        pseudo: with True, the mean's most confident rows, equally many of each class and half of the unlabeled ones at
            most, become pseudo-labels from which each learns again: backbones teach each other what none says alone.
        arguments: of the learner.

    Returns:
        Probabilities float32 [M, classes].

    Raises:
        UsageError: unless there is one set of queries for each backbone, and as the learner raises it.

    >>> rng = np.random.default_rng(0)
    >>> views = [rng.normal(size=(40, 4)) + np.repeat([0, 2], 20)[:, None] for _ in range(2)]
    >>> labels = np.where(np.arange(40) % 20 < 2, np.arange(40) // 20, -1)
    >>> sl.features.ensemble(views, labels, views, classes=2).shape
    (40, 2)
    """
    if not views or len(views) != len(queries):
        raise UsageError(f"{len(views)} sets of features and {len(queries)} of queries; expected one each per backbone")
    known = check_labels(labels, classes)
    unlabeled = np.flatnonzero(known == -1)

    def mean(of: Sequence[ArrayLike], given: IntArray) -> FloatArray:
        each = [learner(view, given, asked, classes, **arguments) for view, asked in zip(views, of, strict=True)]
        agreed: FloatArray = np.mean(each, axis=0, dtype=np.float32)
        return agreed

    if pseudo and len(unlabeled):
        agreed = mean([matrix(view, "features")[unlabeled] for view in views], known)
        taken, guess = balanced(agreed, max(1, len(unlabeled) // (2 * classes)))
        known = known.copy()
        known[unlabeled[taken]] = guess
    return mean(queries, known)
