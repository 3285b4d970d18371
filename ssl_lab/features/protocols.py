"""Protocols of evaluation on frozen features: accuracy by the number of labels, small data, and health at a glance."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from ssl_lab.data import IntArray
from ssl_lab.data.split import draw_labeled, hold_out
from ssl_lab.engine.evaluate import rates, tallies
from ssl_lab.errors import UsageError
from ssl_lab.features.health import Health, alignment, effective_rank, embedding_std, uniformity
from ssl_lab.features.knn import check_labels
from ssl_lab.features.probe import L2_GRID, linear_probe
from ssl_lab.features.search import FloatArray, matrix
from ssl_lab.features.self_training import Learner
from ssl_lab.intervals import half_width

PER_CLASS, SHARES = (1, 4, 25), (0.01, 0.1)


@dataclass(frozen=True)
class Scores:
    """Accuracies, in [0, 1], of the same experiment on several draws of the labels.

    Attributes:
        name: e.g. "4 per class".
        labels: how many each draw has.
        accuracies: one of each draw.

    >>> scores = sl.features.Scores("4 per class", 40, (0.81, 0.85, 0.83))
    >>> round(scores.mean, 3), round(scores.half_width, 3)
    (0.83, 0.05)
    """

    name: str
    labels: int
    accuracies: tuple[float, ...]

    @property
    def mean(self) -> float:
        return float(np.mean(self.accuracies))

    @property
    def half_width(self) -> float:
        """Half of Student's 95% interval of the mean over draws of the labels; the queries are the same in all, so it
        says nothing about other queries. NaN for a single draw."""
        return float(half_width(self.accuracies))


def label_counts(truth: ArrayLike, classes: int) -> dict[str, int]:
    """The label counts of the few-label curve that the data allow, rising: 1, 4 and 25 "per class", "1%" and "10%".

    So many per class need a class count that large in each; shares are of the images whose label is known, and need one
    label for each class at least. Of two equal counts the first remains.

    Args:
        truth: int [N], of the training images, -1 where unknown.
        classes: how many there are.

    >>> sl.features.label_counts(sl.load("digits").truth, classes=10)
    {'1 per class': 10, '1%': 18, '4 per class': 40, '10%': 180, '25 per class': 250}
    """
    sizes = np.bincount(_known(truth, classes), minlength=classes)
    total = int(sizes.sum())
    found = {f"{each} per class": each * classes for each in PER_CLASS if each <= sizes.min()}
    for share in SHARES:
        count = round(share * total)
        if count >= classes and sizes.all() and count not in found.values():
            found[f"{share:.0%}"] = count
    return dict(sorted(found.items(), key=lambda item: item[1]))


def few_label_curve(features: ArrayLike, truth: ArrayLike, queries: ArrayLike, answers: ArrayLike, classes: int,
                    learner: Learner = linear_probe, seeds: Sequence[int] = range(5),
                    counts: Mapping[str, int] | None = None) -> list[Scores]:
    """The accuracy of a learner on frozen features by the number of labels, over several draws of them.

    With the same seed a smaller draw is part of a larger one of the same kind.

    Args:
        features: [N, D], of training images.
        truth: int [N], -1 where unknown.
        queries: [M, D], features of the images that accuracy is measured on.
        answers: int [M], their classes, which are only counted, never chosen by: what the learner tunes, it tunes on
            the labels drawn. The other rows are there as unlabeled ones.
        classes: how many there are.
        learner: that is fitted to each draw.
        seeds: of the draws.
        counts: by default `label_counts`. Counts "... per class" draw as many from each class, others each class by its
            size, at least one.

    Raises:
        UsageError: for an answer that is not known, and as the learner raises it.

    >>> rng = np.random.default_rng(0)
    >>> truth = np.arange(60) % 2
    >>> features = rng.normal(size=(60, 4)) + truth[:, None]
    >>> knn = sl.features.weighted_knn
    >>> curve = sl.features.few_label_curve(features, truth, features, truth, 2, knn, seeds=range(3))
    >>> [(scores.name, scores.labels) for scores in curve]
    [('1 per class', 2), ('10%', 6), ('4 per class', 8), ('25 per class', 50)]
    """
    rows, known, asked = matrix(features, "features"), check_labels(truth, classes), matrix(queries, "queries")
    right = _answers(answers, asked, classes)
    curve = []
    for name, count in (label_counts(known, classes) if counts is None else counts).items():
        accuracies = []
        for seed in seeds:
            chosen = _draw(known, count, classes, seed, balanced=name.endswith("per class"))
            probs = learner(rows, _only(known, chosen), asked, classes)
            accuracies.append(float((probs.argmax(axis=1) == right).mean()))
        curve.append(Scores(name, count, tuple(accuracies)))
    return curve


def small_data(features: ArrayLike, truth: ArrayLike, queries: ArrayLike, answers: ArrayLike, classes: int, labels: int,
               learner: Learner = linear_probe, candidates: Sequence[Mapping[str, Any]] | None = None,
               valid: float = 0.2, seeds: Sequence[int] = range(5)) -> Scores:
    """The protocol for small data of Brigato et al. 2021 (arXiv 2108.13122; 2022, arXiv 2212.12478): tune on
    validation images, fit again on training and validation images, repeat on other draws; balanced accuracy.

    For each seed, of the candidates the one with the highest balanced accuracy on what is held out (of equals the
    first) is fitted again on all labels that were drawn.

    Args:
        features: [N, D], of training images.
        truth: int [N], -1 where unknown.
        queries: [M, D], features of the images that accuracy is measured on.
        answers: int [M], their classes, which are only counted.
        classes: how many there are.
        labels: how many are drawn for each seed, equally many of each class.
        learner: that is fitted.
        candidates: its arguments, to choose from (default: strengths of the linear probe's L2).
        valid: the fraction of each class that is held out to choose by.
        seeds: of the draws.

    Raises:
        UsageError: where no class has two labels, or there is no candidate.

    >>> rng = np.random.default_rng(0)
    >>> truth = np.arange(60) % 2
    >>> features = rng.normal(size=(60, 4)) + 2 * truth[:, None]
    >>> tried = [{"l2": 0.1}, {"l2": 1.0}]
    >>> scores = sl.features.small_data(features, truth, features, truth, 2, labels=20, candidates=tried)
    >>> len(scores.accuracies), scores.mean > 0.9
    (5, True)
    """
    rows, known, asked = matrix(features, "features"), check_labels(truth, classes), matrix(queries, "queries")
    right = _answers(answers, asked, classes)
    tried = [{"l2": l2} for l2 in L2_GRID[::4]] if candidates is None else list(candidates)
    accuracies = []
    for seed in seeds:
        drawn = _draw(known, labels, classes, seed, balanced=True)
        held = hold_out(drawn, known, valid, seed)
        if not len(held) or not tried:
            raise UsageError(f"{labels} labels of {classes} classes and {len(tried)} candidates: tuning needs a class "
                             "with two labels, and a candidate")
        fitted = _only(known, np.setdiff1d(drawn, held))
        scores = [_balanced(learner(rows, fitted, rows[held], classes, **candidate), known[held])
                  for candidate in tried]
        probs = learner(rows, _only(known, drawn), asked, classes, **tried[int(np.argmax(scores))])
        accuracies.append(_balanced(probs, right))
    return Scores("small data", labels, tuple(accuracies))


def label_free(features: ArrayLike, pairs: tuple[ArrayLike, ArrayLike] | None = None) -> dict[str, float]:
    """The health of features, by name, without labels; the limits are those of `Health`.

    embedding_std, effective_rank (of centered features), uniformity; alignment, if pairs are given; collapsed: 1 or 0.
    All but the last are NaN if features are not finite.

    Args:
        features: [n, D], of plain images.
        pairs: the features [m, D] of two random views of the same images.

    >>> rng = np.random.default_rng(0)
    >>> [sl.features.label_free(x)["collapsed"] for x in (rng.normal(size=(200, 16)), np.ones((200, 16)))]
    [0.0, 1.0]
    """
    rows = matrix(features, "features")
    names = ["embedding_std", "effective_rank", "uniformity", *(["alignment"] if pairs else [])]
    if not np.isfinite(rows).all():
        return dict.fromkeys(names, float("nan")) | {"collapsed": 1.0}
    found = {"embedding_std": embedding_std(rows), "effective_rank": effective_rank(rows - rows.mean(axis=0)),
             "uniformity": uniformity(rows)}
    if pairs:
        found["alignment"] = alignment(*pairs)
    collapsed = found["embedding_std"] < Health.least_std or found["effective_rank"] < Health.least_rank
    return found | {"collapsed": float(collapsed)}


def _balanced(probs: FloatArray, truth: IntArray) -> float:
    return rates(tallies(probs, truth))["balanced_accuracy"]


def _known(truth: ArrayLike, classes: int) -> IntArray:
    labels = check_labels(truth, classes)
    known: IntArray = labels[labels >= 0]
    return known


def _draw(known: IntArray, count: int, classes: int, seed: int, balanced: bool) -> IntArray:
    names = [str(label) for label in range(classes)]
    return draw_labeled(np.flatnonzero(known >= 0), known, count, names, seed, "class", long_tailed=not balanced)


def _only(known: IntArray, chosen: IntArray) -> IntArray:
    """The labels of the chosen rows; the others are unlabeled."""
    labels = np.full_like(known, -1)
    labels[chosen] = known[chosen]
    return labels


def _answers(answers: ArrayLike, queries: FloatArray, classes: int) -> IntArray:
    right = check_labels(answers, classes)
    if len(right) != len(queries) or right.min() < 0:
        raise UsageError(f"{len(right)} answers for {len(queries)} queries; expected a known class of each")
    return right
