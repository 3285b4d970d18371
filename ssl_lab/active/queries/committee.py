"""Query by committee (Seung et al. 1992): where members of an ensemble, checkpoints or dropout samples disagree."""

from __future__ import annotations

from typing import Literal

import numpy as np
from scipy.special import entr

from ssl_lab.active.queries.base import ScoreQuery
from ssl_lab.active.queries.view import FloatArray, IntArray, PoolView
from ssl_lab.errors import unknown

ROWS = 8192  # at a time
MEASURES = ("vote_entropy", "consensus_kl")


class Committee(ScoreQuery):
    """Highest disagreement of the S members, each a slice of mc_probs [N, S, C].

    vote_entropy (Dagan and Engelson 1995): the entropy of the shares v_c / S of members whose argmax is c.
    consensus_kl (McCallum and Nigam 1998): (1/S) sum_s KL(p_s || mean p), which is BALD's mutual information,
    H(mean p) - mean H(p_s). Exact; memory O(N). One member never disagrees: then all rows are equal, and the order
    is drawn. A batch is drawn, p(i) ~ score_i, as `bald` does: the highest scores are of rows that are alike.

    Args:
        measure: "vote_entropy" or "consensus_kl".

    >>> view = sl.PoolView(np.full(2, -1), mc_probs=[[[0.9, 0.1], [0.2, 0.8]], [[0.9, 0.1], [0.8, 0.2]]])
    >>> (sl.active.Committee("vote_entropy").scores(view, view.candidates) / np.log(2)).round(4)
    array([1., 0.])
    """

    name = "committee"
    family = "hybrid"
    paper = "Query by Committee"
    arxiv = ""
    needs = frozenset({"mc_probs"})
    drawn = True
    reads = "shares"

    def __init__(self, measure: Literal["vote_entropy", "consensus_kl"] = "consensus_kl") -> None:
        if measure not in MEASURES:
            raise unknown("measure of disagreement", measure, MEASURES)
        self.measure = measure

    def scores(self, view: PoolView, rows: IntArray) -> FloatArray:
        score = vote_entropy if self.measure == "vote_entropy" else consensus_kl
        return np.concatenate([np.empty(0, np.float32), *(score(view.read("mc_probs", rows[start : start + ROWS]))
                                                          for start in range(0, len(rows), ROWS))])


def vote_entropy(p: FloatArray) -> FloatArray:
    """[M, S, C] -> [M]."""
    votes = p.argmax(axis=2)
    shares = np.stack([(votes == label).mean(axis=1) for label in range(p.shape[2])], axis=1)
    entropy: FloatArray = entr(shares).sum(axis=1)
    return entropy


def consensus_kl(p: FloatArray) -> FloatArray:
    """[M, S, C] -> [M]."""
    gained: FloatArray = entr(p.mean(axis=1)).sum(axis=1) - entr(p).sum(axis=2).mean(axis=1)
    return np.maximum(gained, 0)
