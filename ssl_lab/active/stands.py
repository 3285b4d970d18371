"""What each pick stands for: the unlabeled rows that are more like it than like another pick."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from ssl_lab.active.queries.distances import blocks
from ssl_lab.active.queries.view import FloatArray, IntArray
from ssl_lab.features.search import unit

EXAMPLES = 5


class Stands(NamedTuple):
    """What each pick stands for.

    Attributes:
        counts: of the rows.
        examples: up to 5 of them each, the nearest first.

    >>> sl.active.Stands(counts=(3, 1), examples=((5, 6, 7), (8,))).counts
    (3, 1)
    """

    counts: tuple[int, ...]
    examples: tuple[tuple[int, ...], ...]


def stands_for(embeddings: FloatArray, picks: IntArray, others: IntArray, examples: int = EXAMPLES) -> Stands:
    """Each of `others` belongs to the pick that it is most like by the cosine; of equal picks to the first.

    Exact, O(others * picks * D) in matrix products.

    Args:
        embeddings: [N, D].
        picks, others: int64 row numbers, none in both.
        examples: so many of a pick's others are named, those that are most like it.

    >>> points = np.array([[1.0, 0.0], [0.0, 1.0], [1.0, 0.1], [1.0, 0.2], [0.1, 1.0]])
    >>> sl.active.stands_for(points, picks=np.array([0, 1]), others=np.array([2, 3, 4]))
    Stands(counts=(2, 1), examples=((2, 3), (4,)))
    """
    if not len(picks):
        return Stands((), ())
    centers, nearest = unit(embeddings[picks]), np.empty(len(others), dtype=np.int64)
    cosine = np.empty(len(others), dtype=np.float32)
    for part in blocks(len(others), max(len(picks), embeddings.shape[1])):
        alike = unit(embeddings[others[part]]) @ centers.T
        nearest[part] = alike.argmax(axis=1)
        cosine[part] = alike.max(axis=1)
    order = np.lexsort((-cosine, nearest))
    counts = np.bincount(nearest, minlength=len(picks))
    groups = np.split(others[order], np.cumsum(counts)[:-1])
    return Stands(tuple(counts.tolist()), tuple(tuple(group[:examples].tolist()) for group in groups))
