"""Consistency-based selection (Gao et al. 2020, arXiv 1910.07153): images whose augmented views are predicted apart."""

from __future__ import annotations

from typing import Any

from numpy.typing import NDArray

from ssl_lab.active.queries.uncertainty import Samples
from ssl_lab.active.queries.view import FloatArray


class ViewDisagreement(Samples):
    """score = sum_c Var_v p_vc, over V views of an image: itself and augmented ones

    The variance is of V values, not V - 1, as in the paper. It fits nets that were trained to be consistent under the
    same views (fixmatch, mixmatch): what is still inconsistent is what they could not learn without a label. The paper
    takes the highest scores; as these are alike, a batch is drawn here, p(i) ~ score_i, which was better by far (see
    tests/benchmarks/README.md).

    >>> view = sl.PoolView(np.full(2, -1), view_probs=[[[0.9, 0.1], [0.1, 0.9]], [[0.8, 0.2], [0.8, 0.2]]])
    >>> sl.active.ViewDisagreement().scores(view, view.candidates).round(3)
    array([0.32, 0.  ])
    """

    name = "view_disagreement"
    family = "uncertainty"
    paper = "Consistency-based Semi-supervised Active Learning: Towards Minimizing Labeling Cost"
    arxiv = "1910.07153"
    needs = frozenset({"view_probs"})
    drawn = True

    def of_samples(self, samples: FloatArray) -> NDArray[Any]:
        scores: NDArray[Any] = samples.var(axis=1, dtype="float64").sum(axis=1)
        return scores
