"""Undersampling (Buda et al. 2018, arXiv 1710.05381): labeled images of frequent classes are left out."""

from __future__ import annotations

from dataclasses import replace
from typing import ClassVar

import numpy as np
import torch

from ssl_lab.data import IntArray, Pool
from ssl_lab.errors import UsageError
from ssl_lab.methods import Method
from ssl_lab.seeds import generator
from ssl_lab.techniques.base import DataTechnique


class Undersample(DataTechnique):
    """Of each class, n labeled images are drawn from, n being the number that the rarest has

    so that all classes are drawn equally often. Which ones stay is drawn by the seed, once for the run. The others
    stay among the unlabeled images, where the method has such. Classes without a label stay without. Where all have as
    many, it is the plain run.

    The paper's text; no code was read. Its authors find it worse than oversampling in all but extreme cases.

    >>> pool = sl.load("digits").split(labels=30, imbalance=5.0)
    >>> drawn = sl.Undersample()(pool, seed=0)
    >>> np.bincount(pool.labels[pool.labeled]), np.bincount(pool.labels[drawn.drawn])
    (array([6, 5, 4, 4, 3, 2, 2, 2, 1, 1]), array([1, 1, 1, 1, 1, 1, 1, 1, 1, 1]))
    """

    name = "undersample"
    paper = "A systematic study of the class imbalance problem in convolutional neural networks"
    arxiv = "1710.05381"
    excludes: ClassVar = {"oversample": "both even out the classes that are drawn"}

    def check(self, method: Method, pool: Pool) -> None:
        if not method.views.labeled:
            raise UsageError(f"undersample leaves out labeled images, and {method.name} takes none")

    def __call__(self, pool: Pool, seed: int) -> Pool:
        return replace(pool, drawn=fewest(pool.labeled, pool.labels, seed))


def fewest(rows: IntArray, labels: IntArray, seed: int) -> IntArray:
    """Of the rows as many of each class as the rarest has, sorted. rows: int64 [n]. labels: int64 [N], of all."""
    counts = np.bincount(labels[rows])
    kept = [rows[:0]]
    for label in np.flatnonzero(counts):
        members = rows[labels[rows] == label]
        order = torch.randperm(len(members), generator=generator(seed, "undersample", int(label))).numpy()
        kept.append(members[order[: min(counts[counts > 0])]])
    return np.sort(np.concatenate(kept))
