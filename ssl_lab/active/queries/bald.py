"""BatchBALD (Kirsch et al. 2019, arXiv 1906.08158): rows whose labels *together* tell most about the model."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from ssl_lab.active.queries.base import Query, check_counts, highest, rng
from ssl_lab.active.queries.distances import BLOCK
from ssl_lab.active.queries.greedy import lazy_greedy
from ssl_lab.active.queries.uncertainty import BALD, entropy
from ssl_lab.active.queries.view import IntArray, PoolView


class BatchBALD(Query):
    """Greedy maximum of I(y_1 ... y_b; model) = H(y_1 ... y_b) - sum_i mean_s H(p_is)

    The gain of row i after the rows B is H(y_i | y_B) - mean_s H(p_is), where

        H(y_i | y_B) = sum_y p(y) H(sum_s p(s | y) p_is),    y = the labels of B.

    All labels y are kept while there are at most `configurations` of them: until then the choice is exact, among
    the candidates of the `prefilter` highest BALD scores (at least the budget; None = all). After that,
    `configurations` samples y ~ p(y), each lengthened by a label drawn given the rest, stand for them. Gains only
    fall (submodularity), so lazy greedy does not change the choice; with samples it takes an earlier estimate as
    the bound. The paper samples y anew for each pick.

    Args:
        configurations: of labels that are kept, or sampled.
        prefilter: candidates by BALD alone; None takes all.

    >>> split, less = [[1, 0], [0, 1]], [[0.8, 0.2], [0.3, 0.7]]
    >>> members = np.array([split, split, less])  # rows 0 and 1 tell the same
    >>> sl.active.BatchBALD()(sl.PoolView(np.full(3, -1), mc_probs=members), budget=2)
    array([0, 2])
    """

    name = "batch_bald"
    family = "uncertainty"
    paper = "BatchBALD: Efficient and Diverse Batch Acquisition for Deep Bayesian Active Learning"
    arxiv = "1906.08158"
    needs = frozenset({"mc_probs"})

    def __init__(self, configurations: int = 10_000, prefilter: int | None = 2_000) -> None:
        check_counts(configurations=configurations, prefilter=1 if prefilter is None else prefilter)
        self.configurations = configurations
        self.prefilter = prefilter

    def select(self, view: PoolView, budget: int, seed: int) -> IntArray:
        rows = view.candidates
        bald = BALD().scores(view, rows)
        kept = highest(bald, max(budget, len(rows) if self.prefilter is None else self.prefilter), seed)
        rows, bald = rows[kept], bald[kept]
        probs = view.need("mc_probs")[rows].astype(np.float64)
        _, samples, classes = probs.shape
        noise = entropy(probs).mean(axis=1)
        weights = np.ones(1)  # p(y) of each configuration y
        posterior = np.full((1, samples), 1 / samples)  # p(s | y)
        draw = rng(seed, "configurations")
        sampled = False

        def now(some: IntArray) -> NDArray[np.float64]:
            size = max(1, BLOCK // (len(weights) * classes))
            gains = []
            for start in range(0, len(some), size):
                part = probs[some[start : start + size]]
                labels = posterior @ part.transpose(1, 0, 2).reshape(samples, -1)
                gains.append(weights @ entropy(labels.reshape(len(weights), -1, classes)))
            total: NDArray[np.float64] = np.concatenate(gains) - noise[some]
            return total

        def choose(row: int) -> None:
            nonlocal weights, posterior, sampled
            if sampled or len(weights) * classes > self.configurations:
                if not sampled:
                    which = draw.choice(len(weights), self.configurations, p=weights / weights.sum())
                    posterior = posterior[which]
                    weights = np.full(len(which), 1 / len(which))
                    sampled = True
                chances = np.cumsum(posterior @ probs[row], axis=1)
                labels = (draw.random((len(weights), 1)) * chances[:, -1:] >= chances[:, :-1]).sum(axis=1)
                posterior = posterior * probs[row][:, labels].T
            else:
                joint = posterior[:, None, :] * probs[row].T  # p(s, y_i | y)
                weights = (weights[:, None] * joint.sum(axis=2)).ravel()
                posterior = joint.reshape(-1, samples)[weights > 0]
                weights = weights[weights > 0]
            posterior /= posterior.sum(axis=1, keepdims=True)

        return rows[lazy_greedy(bald, now, choose, budget, seed, batch=16)]
