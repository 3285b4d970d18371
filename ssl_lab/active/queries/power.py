"""Stochastic batches (Kirsch et al. 2023, arXiv 2106.12059): draw by score instead of taking the highest scores."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from ssl_lab.active.queries.base import Reads, ScoreQuery, Wrapper, highest, log_scores, rng
from ssl_lab.active.queries.share import Share
from ssl_lab.active.queries.uncertainty import BALD
from ssl_lab.active.queries.view import IntArray, PoolView
from ssl_lab.errors import UsageError


class _Stochastic(Wrapper):
    """Rows drawn without replacement, p(i) proportional to a weight w_i: the highest log w_i + Gumbel noise."""

    family = "uncertainty"
    paper = "Stochastic Batch Acquisition: A Simple Baseline for Deep Active Learning"
    arxiv = "2106.12059"
    wraps = ScoreQuery
    reads: Reads = "shares"

    def __init__(self, query: ScoreQuery | None = None, beta: float = 1.0) -> None:
        self.query = BALD() if query is None else query
        self.beta = beta
        super().__init__(self.query)

    def log_weights(self, scores: NDArray[np.float64], seed: int) -> NDArray[np.float64]:
        """log w [M] of the scores [M], which are at least 0."""
        raise NotImplementedError

    def select(self, view: PoolView, budget: int, seed: int) -> IntArray:
        rows = view.candidates
        share = Share(len(rows), view.ranks)
        own = slice(share.start, share.stop)
        scores = np.asarray(self.query.scores(view, rows[own]), dtype=np.float64)
        if not (scores >= 0).all():
            raise UsageError(f"{self.query.name} gives scores below 0 or NaN; expected at least 0, and higher = sooner")
        noise = rng(seed, self.name).gumbel(size=len(rows))[own]
        return rows[highest(self.log_weights(scores, seed) + noise, budget, seed, share)]


class Power(_Stochastic):
    """p(i) ~ score_i^beta: PowerBALD by default. Rows of score 0 come last.

    Args:
        query: whose scores count; None is BALD.
        beta: 0 or more; the larger, the closer to the highest scores.

    >>> probs = np.random.default_rng(0).dirichlet([1, 1, 1], size=50)
    >>> query = sl.active.Power(sl.active.Entropy(), beta=1.0)
    >>> query(sl.PoolView(np.full(50, -1), probs=probs), budget=3, seed=0)
    array([25, 32,  4])
    """

    name = "power"

    def log_weights(self, scores: NDArray[np.float64], seed: int) -> NDArray[np.float64]:
        return self.beta * log_scores(scores) if self.beta else np.zeros(len(scores))


class Gibbs(_Stochastic):
    """p(i) ~ exp(beta score_i); "softmax" in the paper.

    Args:
        query: whose scores count; None is BALD.
        beta: 0 or more; the larger, the closer to the highest scores.

    >>> probs = np.random.default_rng(0).dirichlet([1, 1, 1], size=50)
    >>> sharp = sl.active.Gibbs(sl.active.Entropy(), beta=1e6)  # so high that it takes the highest scores
    >>> view = sl.PoolView(np.full(50, -1), probs=probs)
    >>> set(sharp(view, budget=3)) == set(sl.active.Entropy()(view, budget=3))
    True
    """

    name = "gibbs"

    def log_weights(self, scores: NDArray[np.float64], seed: int) -> NDArray[np.float64]:
        return self.beta * scores


class SoftRank(_Stochastic):
    """p(i) ~ rank_i^-beta, where the highest score has rank 1.

    Args:
        query: whose scores count; None is BALD.
        beta: 0 or more; the larger, the closer to the highest scores.

    >>> probs = np.random.default_rng(0).dirichlet([1, 1, 1], size=50)
    >>> sl.active.SoftRank(sl.active.Margin())(sl.PoolView(np.full(50, -1), probs=probs), budget=3)
    array([17, 47,  6])
    """

    name = "soft_rank"
    reads = "blocks"  # ranks among all rows

    def log_weights(self, scores: NDArray[np.float64], seed: int) -> NDArray[np.float64]:
        ranks = np.empty(len(scores))
        ranks[highest(scores, len(scores), seed)] = np.arange(1, len(scores) + 1)
        return -self.beta * np.log(ranks)
