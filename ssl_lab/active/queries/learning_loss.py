"""Learning loss (Yoo and Kweon 2019, arXiv 1905.03677): rows whose loss a head predicts to be highest."""

from __future__ import annotations

import numpy as np

from ssl_lab.active.queries.base import ScoreQuery
from ssl_lab.active.queries.view import FloatArray, IntArray, PoolView


class LearningLoss(ScoreQuery):
    """Highest `predicted_loss`, which a net trained by `ssl_lab.methods.learning_loss.LearningLoss` gives.

    Exact; labeled rows do not matter. The paper draws 10,000 candidates at random and chooses among these; here all
    are compared.

    >>> view = sl.PoolView(np.full(3, -1), predicted_loss=[0.1, 2.0, 0.7])
    >>> sl.active.LearningLoss()(view, budget=2)
    array([1, 2])
    """

    name = "learning_loss"
    family = "training"
    paper = "Learning Loss for Active Learning"
    arxiv = "1905.03677"
    needs = frozenset({"predicted_loss"})

    def scores(self, view: PoolView, rows: IntArray) -> FloatArray:
        scores: FloatArray = view.need("predicted_loss")[rows]
        least = view.need("predicted_loss")[view.candidates].min(initial=np.inf)
        scores -= least  # the head only ranks: what it predicts may be below 0
        return scores
