"""Coverage of the pool by balls (ProbCover, arXiv 2205.11320) or by a kernel (MaxHerding, arXiv 2407.12212)."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from ssl_lab.active.queries.base import Query, rng
from ssl_lab.active.queries.facility_location import MOST, FacilityLocation
from ssl_lab.active.queries.pairs import pairs_within
from ssl_lab.active.queries.rows import Rows
from ssl_lab.active.queries.view import IGNORED, UNLABELED, FloatArray, IntArray, PoolView
from ssl_lab.errors import UsageError
from ssl_lab.features.search import unit

SAMPLE = 2048  # rows, on which the radius is chosen
PER_BALL = 16  # rows of the sample for each ball at least: with fewer, a ball would hold little but its center
PAIRS = 2**27  # neighbors kept at most: about 1.5 GB
ROWS = 100_000  # compared with each other at most


def covering_radius(x: FloatArray | Rows, balls: int, share: float, seed: int) -> float:
    """The least delta with which `balls` balls {y: |x - y| <= delta}, chosen greedily, hold `share` of the rows.

    x: unit rows [N, D]. Of a sample of SAMPLE rows drawn from the seed, and to 1e-4. The sample is of balls too: of
    more than one for PER_BALL of its rows (but 16) it takes so many.
    """
    some = x[rng(seed, "radius").permutation(len(x))[:SAMPLE]]
    balls = min(balls, max(16, len(some) // PER_BALL))
    cosines = some @ some.T
    np.fill_diagonal(cosines, np.inf)
    low, high = 0.0, 2.0
    while high - low > 1e-4:
        middle = (low + high) / 2
        if _covered(cosines >= 1 - middle**2 / 2, balls) >= share:
            high = middle
        else:
            low = middle
    return high


def _covered(near: NDArray[np.bool_], balls: int) -> float:
    """The share of rows in the first greedy balls; near: [N, N], symmetric."""
    left, gains = np.ones(len(near), dtype=bool), near.sum(axis=1)
    for _ in range(balls):
        new = np.flatnonzero(near[gains.argmax()] & left)
        if not len(new):
            break
        left[new] = False
        gains -= near[new].sum(axis=0)
    return 1 - float(left.mean())


def compared(x: FloatArray | Rows, labels: IntArray, delta: float, budget: int, seed: int) -> IntArray:
    """The rows, sorted, that are compared with each other: all, or if these are more than ROWS or would have more than
    about PAIRS pairs within delta (a sample tells), the labeled ones and others drawn from the seed, `budget` at least.

    x: unit rows [N, D]; labels: int64 [N].
    """
    some = x[rng(seed, "density").permutation(len(x))[:SAMPLE]]
    density = max(float((some @ some.T >= 1 - delta**2 / 2).mean()) - 1 / len(some), 1e-12)  # without own pairs
    most = min(ROWS, int((2 * PAIRS / density) ** 0.5))
    if len(x) <= most:
        return np.arange(len(x))
    labeled, free = np.flatnonzero(labels != UNLABELED), np.flatnonzero(labels == UNLABELED)
    drawn = rng(seed, "compared").permutation(free)[: max(most - len(labeled), budget)]
    return np.sort(np.append(labeled, drawn))


class ProbCover(Query):
    """Greedy maximum of the rows within delta of a labeled or chosen row: |union_{j in L + S} ball(x_j, delta)|

    Rows are scaled to length 1. Each pick is the candidate whose ball holds most rows that no ball covers yet.
    When all are covered, no row is worth more than another, and the other picks are drawn from the seed.

    The rest is exact on up to 100,000 rows: all neighbors are found once, and a row's count falls as the rows around
    it are covered. Of more, and of rows with more than 2^27 pairs of neighbors, which bounds memory, the labeled ones
    and as many drawn from the seed stand for all. (Of 70,000 rows, where all can be compared: 100 balls chosen so among
    35,000 hold 48.0% of all, not 48.8; among 7,000, 44.3%. One seed.)

    Args:
        delta: the radius, up to 2. None: the least at which as many greedy balls as there will be labels hold
            `share` of 2,048 rows drawn from the seed; of more than 128 labels, as for 128 (see `covering_radius`).
            The paper has another rule: the largest delta at which 95% of the balls are pure under the labels of a
            k-means with one cluster for each class. Where such clusters touch each other, as they do in features of
            images, that is tiny, and pick after pick comes from the densest class. Accuracy (%) of a linear probe,
            10 picks of 4,000 rows (digits: 1,198), mean and standard deviation over seeds 0 to 2, by random, the
            paper's rule and this one: digits 34.0 ± 7.1, 51.7 ± 8.8, 70.6 ± 0.3; MNIST's pixels 33.9 ± 3.4, 14.7 ±
            1.4, 48.8 ± 4.4; SimCLR's features of it 44.4 ± 6.7, 36.0 ± 4.6, 66.8 ± 7.5; EfficientNet-Lite0's of
            CIFAR-10 20.6 ± 0.9, 26.4 ± 4.5, 40.5 ± 5.4. A share of 0.7 has 1 to 15 points less there, and with 40
            picks 1 to 4 more. Where half of the rows are of one class, 0.5 is better than random in five of six
            cases and 0.7 in all six, by up to 26 points more than 0.5: give share=0.7 there.
        share: of the rows to be covered, in (0, 1], where delta is None.

    >>> points = np.array([[1.0, 0.0], [1.0, 0.1], [1.0, -0.1], [0.0, 1.0], [0.1, 1.0]])
    >>> sl.active.ProbCover(delta=0.15)(sl.PoolView(np.full(5, -1), embeddings=points), budget=2)
    array([0, 3])
    """

    name = "prob_cover"
    family = "diversity"
    paper = "Active Learning Through a Covering Lens"
    arxiv = "2205.11320"
    needs = frozenset({"embeddings"})
    reads = "blocks"

    def __init__(self, delta: float | None = None, share: float = 0.5) -> None:
        if not 0 < share <= 1 or not 0 <= (delta or 0) <= 2:
            raise UsageError(f"share {share} and delta {delta} were given; expected a share in (0, 1] and a "
                             "delta in [0, 2], the distances of unit vectors")
        self.delta = delta
        self.share = share

    def select(self, view: PoolView, budget: int, seed: int) -> IntArray:
        rows = np.flatnonzero(view.labels != IGNORED)
        pool = Rows(view, "embeddings", rows, unit)
        balls = len(view.labeled) + budget
        delta = covering_radius(pool, balls, self.share, seed) if self.delta is None else self.delta
        kept = compared(pool, view.labels[rows], delta, budget, seed)
        rows, x = rows[kept], pool[kept]
        labels = view.labels[rows]
        upper = pairs_within(x, delta)
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


class MaxHerding(FacilityLocation):
    """Greedy maximum of the generalized coverage C(S) = mean_i max_{j in L + S} exp(-|x_i - x_j|^2 / sigma^2)

    over all rows i, scaled to length 1: facility location under a Gaussian kernel. Chosen over DCoM, which needs
    the classifier's margins and a radius for each labeled row: this one needs embeddings alone and no radius, and
    its gain does not run out. As exact and costly as `FacilityLocation`; the authors' code takes a subset of the rows
    as candidates.

    Args:
        sigma: of the kernel; rows have length 1.

    Args:
        sigma: of the kernel, above 0.
        most: unlabeled rows that are compared with each other.

    >>> points = np.array([[1.0, 0.0], [1.0, 0.1], [1.0, -0.1], [0.0, 1.0], [0.1, 1.0]])
    >>> sl.active.MaxHerding()(sl.PoolView(np.full(5, -1), embeddings=points), budget=2)
    array([1, 3])
    """

    name = "max_herding"
    paper = "Generalized Coverage for More Robust Low-Budget Active Learning"
    arxiv = "2407.12212"

    def __init__(self, sigma: float = 1.0, most: int = MOST) -> None:
        super().__init__(most)
        if sigma <= 0:
            raise UsageError(f"a sigma of {sigma} was given; expected one above 0")
        self.sigma = sigma

    def similarity(self, cosines: FloatArray) -> FloatArray:
        return gaussian(cosines, self.sigma)


def gaussian(cosines: FloatArray, sigma: float) -> FloatArray:
    """exp(-|x - y|^2 / sigma^2) of the cosines of unit vectors, to which it writes."""
    cosines -= 1
    cosines *= 2 / sigma**2
    return np.exp(cosines, out=cosines)
