"""Queries by what the model does not know of each row alone. All are exact; equal scores are ordered by the seed.

The definitions take the highest scores. Rows of high scores may be alike, so that a batch of them asks one thing many
times: `power(margin)` draws by score, `prefilter(margin, k_means)` spreads, `without_duplicates(margin)` passes over
what is alike. Where the highest were far worse than random (`bald`, `committee`, `epig`, `view_disagreement`), the
query itself draws.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.special import entr

from ssl_lab.active.queries.base import Query, ScoreQuery, rng
from ssl_lab.active.queries.distances import blocks
from ssl_lab.active.queries.view import FloatArray, IntArray, PoolView


def entropy(probs: NDArray[Any], axis: int = -1) -> NDArray[Any]:
    """H(p) = -sum_c p_c log p_c along an axis, in nats; 0 log 0 = 0."""
    result: NDArray[Any] = entr(probs).sum(axis=axis)
    return result


def bald_scores(mc_probs: FloatArray) -> NDArray[np.float64]:
    """[N], H(mean_s p_s) - mean_s H(p_s) >= 0, the mutual information of label and model, of mc_probs [N, S, C]."""
    probs = mc_probs.astype(np.float64)
    information: NDArray[np.float64] = np.maximum(entropy(probs.mean(axis=1)) - entropy(probs).mean(axis=1), 0)
    return information


class Random(Query):
    """Rows drawn uniformly: the baseline of every comparison.

    >>> sl.active.Random()(sl.PoolView(np.full(100, -1)), budget=5, seed=0)
    array([ 9, 66, 90, 63, 16])
    """

    name = "random"
    family = "baseline"
    paper = "Uniform sampling"
    arxiv = ""
    reads = "shares"

    def select(self, view: PoolView, budget: int, seed: int) -> IntArray:
        return rng(seed, "random").permutation(view.candidates)[:budget]


class LeastConfidence(ScoreQuery):
    """score = 1 - max_c p_c

    >>> probs = [[0.9, 0.1, 0.0], [0.5, 0.3, 0.2], [0.6, 0.2, 0.2]]
    >>> sl.active.LeastConfidence()(sl.PoolView(np.full(3, -1), probs=probs), budget=2)
    array([1, 2])
    """

    name = "least_confidence"
    family = "uncertainty"
    paper = "A Sequential Algorithm for Training Text Classifiers"
    arxiv = "cmp-lg/9407020"
    needs = frozenset({"probs"})
    reads = "shares"

    def scores(self, view: PoolView, rows: IntArray) -> NDArray[Any]:
        most = np.empty(len(rows), dtype=np.float32)
        for part in blocks(len(rows), view.need("probs").shape[1]):
            most[part] = view.read("probs", rows[part]).max(axis=1)
        return np.maximum(1 - most, 0)


class Margin(ScoreQuery):
    """score = 1 - (p_1 - p_2), of the two most probable classes: the smallest margin first

    >>> probs = [[0.6, 0.2, 0.2], [0.45, 0.45, 0.1], [0.5, 0.3, 0.2]]
    >>> sl.active.Margin()(sl.PoolView(np.full(3, -1), probs=probs), budget=2)  # of the smallest p_(1) - p_(2)
    array([1, 2])
    """

    name = "margin"
    family = "uncertainty"
    paper = "Active Hidden Markov Models for Information Extraction"
    arxiv = ""
    needs = frozenset({"probs"})
    reads = "shares"

    def scores(self, view: PoolView, rows: IntArray) -> NDArray[Any]:
        scores = np.empty(len(rows), dtype=np.float32)
        for part in blocks(len(rows), view.need("probs").shape[1]):
            block = view.read("probs", rows[part])
            which = (np.arange(len(block)), block.argmax(axis=1))
            first = block[which]
            block[which] = 0  # at least as low as the second
            scores[part] = 1 - (first - block.max(axis=1))
        return np.maximum(scores, 0, out=scores)


class Entropy(ScoreQuery):
    """score = H(p) = -sum_c p_c log p_c. For MC dropout, give the mean of the samples' probabilities.

    >>> probs = [[0.5, 0.5, 0.0], [0.5, 0.25, 0.25], [1.0, 0.0, 0.0]]
    >>> query, view = sl.active.Entropy(), sl.PoolView(np.full(3, -1), probs=probs)
    >>> query.scores(view, view.candidates) / np.log(2), query(view, budget=1)
    (array([1. , 1.5, 0. ]), array([1]))
    """

    name = "entropy"
    family = "uncertainty"
    paper = "A Mathematical Theory of Communication"
    arxiv = ""
    needs = frozenset({"probs"})
    reads = "shares"

    def scores(self, view: PoolView, rows: IntArray) -> NDArray[Any]:
        return np.concatenate([np.empty(0, dtype=np.float32),
                               *(entropy(view.read("probs", rows[part]))
                                 for part in blocks(len(rows), view.need("probs").shape[1]))])


class Samples(ScoreQuery):
    """A score of the samples [S, C] of each row, of the one array that it needs, in blocks of rows."""

    needs = frozenset({"mc_probs"})
    reads = "shares"

    def scores(self, view: PoolView, rows: IntArray) -> NDArray[Any]:
        (name,) = self.needs
        scores = np.empty(len(rows))
        for part in blocks(len(rows), view.need(name)[:1].size):
            scores[part] = self.of_samples(view.read(name, rows[part]))
        return scores

    def of_samples(self, samples: FloatArray) -> NDArray[Any]:
        """[n], of samples [n, S, C]."""
        raise NotImplementedError


class BALD(Samples):
    """score = H(mean_s p_s) - mean_s H(p_s): what the label would tell about the model

    The highest scores are of rows that tell the same, so a batch is drawn, p(i) ~ score_i (PowerBALD, Kirsch et al.
    2023, arXiv 2106.12059; see tests/benchmarks/README.md). `batch_bald` chooses rows that tell most together.

    >>> agree, differ = [[0.5, 0.5], [0.5, 0.5]], [[1.0, 0.0], [0.0, 1.0]]  # two members, the same mean
    >>> view = sl.PoolView(np.full(2, -1), mc_probs=[agree, differ])
    >>> sl.active.BALD().scores(view, view.candidates).round(4)
    array([0.    , 0.6931])
    """

    name = "bald"
    family = "uncertainty"
    paper = "Bayesian Active Learning for Classification and Preference Learning"
    arxiv = "1112.5745"
    drawn = True

    def of_samples(self, samples: FloatArray) -> NDArray[Any]:
        return bald_scores(samples)


class MeanStd(Samples):
    """score = mean_c std_s p_sc, with the standard deviation over the S samples (not S - 1)

    >>> view = sl.PoolView(np.full(2, -1), mc_probs=[[[0.5, 0.5], [0.5, 0.5]], [[1.0, 0.0], [0.0, 1.0]]])
    >>> sl.active.MeanStd().scores(view, view.candidates).round(3)
    array([0. , 0.5])
    """

    name = "mean_std"
    family = "uncertainty"
    paper = "Deep Bayesian Active Learning with Image Data"
    arxiv = "1703.02910"

    def of_samples(self, samples: FloatArray) -> NDArray[Any]:
        scores: NDArray[Any] = samples.std(axis=1, dtype=np.float64).mean(axis=1)
        return scores


class VariationRatio(Samples):
    """score = 1 - (votes of the class with most votes) / S, where each sample votes for its most probable class

    Freeman's ratio of votes, not 1 - max_c mean_s p_sc, which is `least_confidence` on the mean. Equal
    probabilities vote for the lower class.

    >>> votes = [[[0.9, 0.1], [0.6, 0.4], [0.4, 0.6]], [[0.9, 0.1], [0.8, 0.2], [0.7, 0.3]]]
    >>> view = sl.PoolView(np.full(2, -1), mc_probs=votes)
    >>> sl.active.VariationRatio().scores(view, view.candidates).round(3)  # one of three votes otherwise, none
    array([0.333, 0.   ])
    """

    name = "variation_ratio"
    family = "uncertainty"
    paper = "Deep Bayesian Active Learning with Image Data"
    arxiv = "1703.02910"

    def of_samples(self, samples: FloatArray) -> NDArray[Any]:
        count, members, classes = samples.shape
        votes = samples.argmax(axis=2) + classes * np.arange(count)[:, None]
        modes = np.bincount(votes.ravel(), minlength=count * classes).reshape(count, classes).max(axis=1)
        scores: NDArray[Any] = 1 - modes / members
        return scores
