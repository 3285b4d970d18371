"""EPIG (Bickford Smith et al. 2023, arXiv 2304.08151): rows whose labels tell most about predictions on the pool."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from ssl_lab.active.queries.base import ScoreQuery, check_counts, rng
from ssl_lab.active.queries.distances import BLOCK
from ssl_lab.active.queries.uncertainty import entropy
from ssl_lab.active.queries.view import IGNORED, FloatArray, IntArray, PoolView


class Epig(ScoreQuery):
    """score(x) = E_x* I(y; y* | x, x*) = H(p(y | x)) + E_x* [H(p(y* | x*)) - H(p(y, y* | x, x*))],

    p(y, y* | x, x*) = mean_s p_s(y | x) p_s(y* | x*), over S samples of the model and inputs x* to be predicted.
    BALD asks what a label tells about the model; this asks what it tells about predictions, so that rows far from all
    others, which are informative of nothing but themselves, are not chosen for it. The x* are `targets` rows of the
    pool that are not ignored, drawn once and for all, or all of these if there are fewer. Exact for those; time is
    O(N targets S C^2) in matrix products, so with many classes put a `prefilter` around it; memory O(block).

    The paper asks for one label at a time. Of several, the highest scores are alike, and far worse than random; so a
    batch is drawn, p(i) ~ score_i (see tests/benchmarks/README.md).

    Args:
        targets: how many x* there are.

    >>> rng = np.random.default_rng(0)
    >>> view = sl.PoolView(np.full(20, -1), mc_probs=rng.dirichlet([1, 1], size=(20, 5)))
    >>> sl.active.Epig()(view, budget=1)
    array([1])
    """

    name = "epig"
    family = "uncertainty"
    paper = "Prediction-Oriented Bayesian Active Learning"
    arxiv = "2304.08151"
    needs = frozenset({"mc_probs"})
    drawn = True

    def __init__(self, targets: int = 200) -> None:
        check_counts(targets=targets)
        self.targets = targets

    def scores(self, view: PoolView, rows: IntArray) -> NDArray[np.float64]:
        known = np.flatnonzero(view.labels != IGNORED)
        drawn = np.sort(rng(0, "epig targets").permutation(known)[: self.targets])
        probs = view.need("mc_probs")
        return predictive_information(probs[rows], probs[drawn])


def predictive_information(pool: FloatArray, targets: FloatArray) -> NDArray[np.float64]:
    """float64 [N] >= 0, in nats: the mean mutual information of the label of each row of the pool [N, S, C] with those
    of the targets [T, S, C], by S samples of the model."""
    count, samples, classes = targets.shape
    known = np.concatenate([entropy(part.astype(np.float64).mean(axis=1)) for part in (pool, targets)])
    joint = np.zeros(len(pool))
    wide = max(1, BLOCK // classes**2)  # targets at a time
    for start in range(0, count, wide):
        some = targets[start : start + wide]
        columns = some.transpose(1, 0, 2).reshape(samples, -1)  # [S, T C]
        high = max(1, BLOCK // (classes * columns.shape[1]))
        for first in range(0, len(pool), high):
            part = slice(first, first + high)
            both = pool[part].transpose(0, 2, 1) @ columns / np.float32(samples)  # [n, C, T C]
            joint[part] += entropy(both.reshape(len(both), -1)).astype(np.float64)
    information: NDArray[np.float64] = known[: len(pool)] + known[len(pool) :].mean() - joint / count
    return np.maximum(information, 0)
