"""Images that belong to no topic of a data set: far from everything, and from their own class."""

from __future__ import annotations

import itertools
import math

import numpy as np
from numpy.typing import ArrayLike

from ssl_lab.data import IntArray
from ssl_lab.errors import UsageError
from ssl_lab.features.search import FloatArray, matrix, top_k
from ssl_lab.seeds import seed_of

SAMPLE = 1000
SHARE = 0.02
"""Of all images: a group that is larger is a topic of its own."""
_ROWS = 8192


def off_topic(features: ArrayLike, labels: ArrayLike | None = None, seed: int = 0) -> FloatArray:
    """float32 [N], from 0 to 2: how far each image must look, as cosine distance, to have seen 2% of all images or a
    quarter of its class, whichever is nearer. Higher is further off.

    Images are held against 1,000 of all, and of each class; an image does not see itself. The nearest few alone would
    say nothing of a group of foreign images, which are near each other; and without the class a rare one would be
    foreign.

    Args:
        features: [N, D].
        labels: int [N], -1 = unlabeled.
        seed: of the images that others are held against.

    Raises:
        UsageError: unless there is a label for each row.

    >>> rng = np.random.default_rng(0)
    >>> features = np.concatenate([rng.normal([5, 0, 0], 1, (200, 3)), rng.normal([-5, 0, 0], 1, (2, 3))])
    >>> np.sort(np.argsort(sl.features.off_topic(features))[-2:])  # the last two are others
    array([200, 201])
    """
    rows = matrix(features, "features")
    everything = np.arange(len(rows))
    found = _distance(rows, everything, everything, SHARE, seed)
    if labels is None:
        return found
    known = np.asarray(labels)
    if known.shape != (len(rows),):
        raise UsageError(f"{known.size} labels for {len(rows)} rows of features; expected one each, -1 = unlabeled")
    order = np.argsort(known, kind="stable")
    starts = np.searchsorted(known[order], np.arange(known.max(initial=-1) + 2))
    for first, last in itertools.pairwise(starts.tolist()):
        if last - first > 1:
            mine = order[first:last]
            found[mine] = np.minimum(found[mine], _distance(rows, mine, mine, 0.25, seed))
    return found


def _distance(rows: FloatArray, asking: IntArray, bank: IntArray, share: float, seed: int) -> FloatArray:
    """float32 [n]: the cosine distance of rows `asking` to that one of (at most 1,000 of) `bank` which closes the share
    of it that is nearest. 0 where there is no other."""
    if len(bank) > SAMPLE:
        bank = np.sort(np.random.default_rng(seed_of(seed, "off topic")).choice(bank, SAMPLE, replace=False))
    found = np.zeros(len(asking), dtype=np.float32)
    if len(bank) < 2:
        return found
    k = min(len(bank) - 1, max(1, math.ceil(share * len(bank))))
    others = rows[bank]
    for start in range(0, len(asking), _ROWS):
        mine = asking[start:start + _ROWS]
        cosines, places = top_k(rows[mine], others, k + 1)
        own = bank[places] == mine[:, None]
        seen = own[:, :-1].cumsum(axis=1)[:, -1] > 0  # itself, before the last place
        found[start:start + _ROWS] = 1 - np.where(seen, cosines[:, k], cosines[:, k - 1])
    return np.maximum(found, 0)
