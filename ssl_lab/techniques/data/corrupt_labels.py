"""Corrupted labels (Zhang et al. 2017, arXiv 1611.03530): does a net learn, or learn by heart?"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from ssl_lab.data import IntArray, Pool
from ssl_lab.data.ledger import Ledger
from ssl_lab.errors import UsageError
from ssl_lab.methods import Method
from ssl_lab.seeds import seed_of
from ssl_lab.techniques.base import DataTechnique


class CorruptLabels(DataTechnique):
    """Each label that training has is replaced, with probability `share`, by a class drawn uniformly from all

    so that 1 - 1 / C of those drawn are wrong. Which, and by what, is drawn by the run's seed: `corrupted` has them
    again, and `recipes/analyze.py` says how many the net learned by heart. For measuring alone: the run's split, its
    test images and its summary keep the true labels.

    The paper's first kind of corruption; random pixels, its others, are left out. No code was read.

    Args:
        share: the probability, in [0, 1].

    >>> pool = sl.load("digits").split(labels=1000)
    >>> wrong = sl.CorruptLabels(share=0.4)(pool, seed=0)
    >>> round(float((wrong.labels[pool.labeled] != pool.truth[pool.labeled]).mean()), 2)  # about 0.4 * 9 / 10
    0.38
    """

    name = "corrupt_labels"
    paper = "Understanding deep learning requires rethinking generalization"
    arxiv = "1611.03530"
    serves = "insight"

    def __init__(self, share: float = 0.4) -> None:
        if not 0 <= share <= 1:
            raise UsageError(f"corrupt_labels: share={share}; expected the share of labels to draw anew, 0 to 1")
        self.share = share

    def check(self, method: Method, pool: Pool) -> None:
        if not method.views.labeled:
            raise UsageError(f"corrupt_labels changes labels, and {method.name} takes none")

    def __call__(self, pool: Pool, seed: int) -> Pool:
        rows = pool.labeled
        ledger = Ledger()
        ledger.append(np.arange(len(pool)), pool.labels, "corrupt_labels")
        ledger.append(rows, corrupted(pool.labels[rows], pool.classes, self.share, seed), "corrupt_labels")
        return replace(pool, ledger=ledger)


def corrupted(labels: IntArray, classes: int, share: float, seed: int) -> IntArray:
    """int64 [n]: the labels, of which a share was drawn anew; a function of the arguments alone. labels: int64 [n]."""
    draw = np.random.default_rng(seed_of(seed, "corrupt_labels"))
    hit, fresh = draw.random(len(labels)) < share, draw.integers(0, classes, len(labels))
    changed: IntArray = np.where(hit, fresh, labels)
    return changed
