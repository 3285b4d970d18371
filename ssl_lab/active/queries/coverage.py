"""Coverage of the pool by balls (ProbCover, arXiv 2205.11320) or by a kernel (MaxHerding, arXiv 2407.12212)."""

from __future__ import annotations

from typing import Any

import numpy as np
from scipy.sparse import csr_matrix

from ssl_lab.active.distances import BLOCK, blocks, k_means, take, unit
from ssl_lab.active.queries.facility_location import FacilityLocation
from ssl_lab.active.query import IGNORED, UNLABELED, FloatArray, IntArray, PoolView, Query, rng
from ssl_lab.errors import UsageError

ANCHORS = 2048
PAIRS = 2**27  # neighbors kept at most: about 1.5 GB


def radius(x: FloatArray, clusters: IntArray, purity: float, seed: int) -> float:
    """The largest delta of which `purity` of the balls {y: |x - y| <= delta} hold rows of one cluster alone.

    x: unit rows [N, D]; clusters [N]. Exact for N <= ANCHORS; else over the balls of ANCHORS rows drawn from the
    seed. A ball is pure up to the nearest row of another cluster, so delta is a quantile of these distances.
    """
    anchors = rng(seed, "anchors").permutation(len(x))[:ANCHORS]
    other = np.empty(len(anchors), dtype=np.float32)
    for part in blocks(len(anchors), len(x)):
        cosines = x[anchors[part]] @ x.T
        cosines[clusters[anchors[part], None] == clusters] = -1
        other[part] = cosines.max(axis=1)
    impure = int((1 - purity) * len(anchors) + 1e-9)
    distances = np.sort(np.sqrt(np.maximum(2 - 2 * other, 0)))
    return float(np.nextafter(distances[impure], np.float32(0)))


def densest(x: FloatArray, seed: int) -> float:
    """The delta at which about PAIRS pairs of the unit rows x [N, D] are neighbors (2 if all pairs may be)."""
    if len(x) * (len(x) - 1) / 2 <= PAIRS:
        return 2.0
    anchors = rng(seed, "density").permutation(len(x))[: max(1, BLOCK // len(x))]
    cosines = (x[anchors] @ x.T).ravel()
    kept = int(PAIRS / (len(x) ** 2 / 2) * len(cosines))
    return float(np.sqrt(max(0.0, 2 - 2 * float(np.partition(cosines, len(cosines) - kept)[len(cosines) - kept]))))


def pairs_within(x: FloatArray, delta: float) -> Any:
    """The pairs i < j of unit rows x [N, D] with |x_i - x_j| <= delta: an upper triangular csr_matrix [N, N]."""
    counts = np.zeros(len(x) + 1, dtype=np.int64)
    found = []
    for part in blocks(len(x), len(x)):
        near = x[part] @ x[part.start :].T >= 1 - delta**2 / 2
        near &= np.arange(near.shape[1]) > np.arange(len(near))[:, None]
        counts[part.start + 1 : part.stop + 1] = near.sum(axis=1)
        found.append((np.flatnonzero(near) % near.shape[1] + part.start).astype(np.int32))
    columns = np.concatenate(found)
    return csr_matrix((np.ones(len(columns), dtype=np.int8), columns, np.cumsum(counts)), shape=(len(x), len(x)))


class ProbCover(Query):
    """Greedy maximum of the rows within delta of a labeled or chosen row: |union_{j in L + S} ball(x_j, delta)|

    Rows are scaled to length 1. Each pick is the candidate whose ball holds most rows that no ball covers yet.
    When all are covered, no row is worth more than another, and the other picks are drawn from the seed.

    delta: the radius, up to 2. None: the largest at which `purity` of the balls are pure under the labels of a
    k-means with one cluster for each class, measured on at most 2,048 balls (see `radius`). classes: how many;
    None: the highest label + 1, and at least 10. On large pools of dense balls delta is lowered to what gives 2^27
    pairs of neighbors (a sample tells), which bounds memory; a given delta that needs more is an error. The
    rest is exact: all neighbors are found once, and a row's count falls as the rows around it are covered.
    """

    name = "prob_cover"
    family = "diversity"
    paper = "Active Learning Through a Covering Lens"
    arxiv = "2205.11320"
    needs = frozenset({"embeddings"})

    def __init__(self, delta: float | None = None, purity: float = 0.95, classes: int | None = None) -> None:
        if not 0 < purity <= 1 or not 0 <= (delta or 0) <= 2:
            raise UsageError(f"purity {purity} and delta {delta} were given; expected a purity in (0, 1] and a "
                             "delta in [0, 2], the distances of unit vectors")
        self.delta = delta
        self.purity = purity
        self.classes = classes

    def select(self, view: PoolView, budget: int, seed: int) -> IntArray:
        rows = np.flatnonzero(view.labels != IGNORED)
        x = unit(take(view.need("embeddings"), rows))
        labels = view.labels[rows]
        upper = pairs_within(x, self._delta(x, labels, seed))
        lower = upper.T.tocsr()

        def ball(row: int) -> IntArray:
            return np.concatenate([[row], *(half.indices[half.indptr[row] : half.indptr[row + 1]]
                                            for half in (upper, lower))])

        gains = 1 + np.diff(upper.indptr) + np.diff(lower.indptr)  # uncovered rows in the ball of each row
        covered = np.zeros(len(x), dtype=bool)

        def cover(row: int) -> None:
            new = ball(row)
            new = new[~covered[new]]
            covered[new] = True
            for each in new:
                gains[ball(each)] -= 1

        for row in np.flatnonzero(labels != UNLABELED).tolist():
            cover(row)
        order = rng(seed, "ties").permutation(np.flatnonzero(labels == UNLABELED))
        left = np.ones(len(order), dtype=bool)
        chosen = np.empty(budget, dtype=np.int64)
        for turn in range(budget):
            best = int(np.where(left, gains[order], -1).argmax())
            left[best] = False
            chosen[turn] = order[best]
            cover(int(order[best]))
        return rows[chosen]

    def _delta(self, x: FloatArray, labels: IntArray, seed: int) -> float:
        most = densest(x, seed)
        if self.delta is None:
            classes = min(self.classes or max(int(labels.max()) + 1, 10), len(x))
            return min(radius(x, k_means(x, classes, seed)[0], self.purity, seed), most)
        if self.delta > most:
            raise UsageError(f"delta {self.delta:g} makes more than {PAIRS:,} pairs of neighbors among {len(x):,} rows;"
                             f" expected at most {most:.3g}")
        return self.delta


class MaxHerding(FacilityLocation):
    """Greedy maximum of the generalized coverage C(S) = mean_i max_{j in L + S} exp(-|x_i - x_j|^2 / sigma^2)

    over all rows i, scaled to length 1: facility location under a Gaussian kernel. Chosen over DCoM, which needs
    the classifier's margins and a radius for each labeled row: this one needs embeddings alone and no radius, and
    its gain does not run out. Exact, and as costly as `FacilityLocation`; the authors' code takes a subset of the
    rows as candidates.
    """

    name = "max_herding"
    paper = "Generalized Coverage for More Robust Low-Budget Active Learning"
    arxiv = "2407.12212"

    def __init__(self, sigma: float = 1.0) -> None:
        if sigma <= 0:
            raise UsageError(f"a sigma of {sigma} was given; expected one above 0")
        self.sigma = sigma

    def similarity(self, cosines: FloatArray) -> FloatArray:
        cosines -= 1
        cosines *= 2 / self.sigma**2
        return np.exp(cosines, out=cosines)
