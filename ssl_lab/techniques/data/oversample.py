"""Oversampling (Buda et al. 2018, arXiv 1710.05381): labeled images of rare classes are drawn more often."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch

from ssl_lab.data import IntArray, Pool
from ssl_lab.errors import UsageError
from ssl_lab.methods import Method
from ssl_lab.seeds import generator
from ssl_lab.techniques.base import DataTechnique


class Oversample(DataTechnique):
    """Labeled images of class c stand floor(N / n_c) times in each epoch, and N mod n_c of them once more

    where n_c is the number of labeled images of the class and N the largest of them: all classes are drawn equally
    often. Which ones stand there once more is drawn by the seed. Unlabeled images, whose classes nobody knows, are
    drawn as ever. Classes without a label stay without. Where all have as many, it is the plain run.

    The paper's equation; no code was read.

    >>> pool = sl.load("digits").split(labels=30, imbalance=5.0)
    >>> drawn = sl.Oversample()(pool, seed=0)
    >>> np.bincount(pool.labels[pool.labeled]), np.bincount(pool.labels[drawn.drawn])
    (array([6, 5, 4, 4, 3, 2, 2, 2, 1, 1]), array([6, 6, 6, 6, 6, 6, 6, 6, 6, 6]))
    """

    name = "oversample"
    paper = "A systematic study of the class imbalance problem in convolutional neural networks"
    arxiv = "1710.05381"

    def check(self, method: Method, pool: Pool) -> None:
        if not method.views.labeled:
            raise UsageError(f"oversample draws labeled images, and {method.name} takes none")

    def __call__(self, pool: Pool, seed: int) -> Pool:
        return replace(pool, drawn=balanced(pool.labeled, pool.labels, seed))


def balanced(rows: IntArray, labels: IntArray, seed: int) -> IntArray:
    """The rows, sorted, each as often as makes the counts of their classes equal. rows: int64 [n]. labels: int64 [N],
    those of all images."""
    counts = np.bincount(labels[rows])
    drawn = [rows[:0]]
    for label in np.flatnonzero(counts):
        members = rows[labels[rows] == label]
        times, rest = divmod(int(max(counts)), len(members))
        order = torch.randperm(len(members), generator=generator(seed, "oversample", int(label))).numpy()
        drawn += [np.repeat(members, times), members[order[:rest]]]
    return np.sort(np.concatenate(drawn))
