"""TypiClust (Hacohen et al. 2022, arXiv 2202.02794): with few labels, ask for typical rows of unlabeled clusters."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from ssl_lab.active.queries.base import Query, check_counts, rng
from ssl_lab.active.queries.distances import k_means
from ssl_lab.active.queries.neighbors import nearest_others
from ssl_lab.active.queries.rows import Rows, rows_of
from ssl_lab.active.queries.view import IGNORED, UNLABELED, FloatArray, IntArray, PoolView

EXACT = 10_000  # rows of a cluster, up to which each is compared with all


def mean_neighbor_distances(x: FloatArray, k: int) -> FloatArray:
    """[n], the mean Euclidean distance of each row of x [n, D] to its k nearest other rows, 1 <= k < n.

    Of more than 10,000 rows, to the k nearest that are found in the nearest cells of k-means (see `neighborhoods`).
    """
    means = np.empty(len(x), dtype=np.float32)
    for members, distances, _ in nearest_others(x, k, EXACT):
        means[members] = distances.mean(axis=1)
    return means


class TypiClust(Query):
    """Clusters of the labeled and unlabeled rows: min(labeled + budget, max_clusters) by k-means. Then, in turn,
    from the clusters with the fewest labels, the largest of them first, the row of highest

        typicality(x) = 1 / mean_{y in KNN(x)} |x - y|,    K = min(neighbors, |cluster| / 2) within its cluster.

    Clusters of `least` rows or fewer are left out while others have candidates. If there are more picks than
    clusters, the turns start again. Lloyd's algorithm finds a local optimum (on all rows up to 262,144, of more on
    so many drawn from the seed); the rest is exact in clusters of up to 10,000 rows. In larger ones a row's neighbors
    are sought in the cells of a k-means that are nearest to its own, 16 of 4 sqrt(n) (see `neighborhoods`): O(n^1.5)
    pairs, not n^2. (Of 70,000 rows and 50 picks, 41 or 42 are then the same, as typical within 0.2%. Of clusters found
    on 256 rows each, the mean squared distance to the center is 1% higher, and half of the picks are others. Three
    seeds.)

    The paper does not say whether a labeled row is a neighbor. Here it is one, and counts in |cluster|; in the authors'
    code it is neither, so that once a dense spot is labeled, what is left of it is a little less typical there. They
    also scale features to length 1, which are taken here as they are, square the distances, and leave out the first
    pick of a cluster from the typicality of its second; here distances are the paper's, and each row's typicality is
    computed once.

    Args:
        max_clusters: at most so many.
        neighbors: K, at most.
        least: rows that a cluster should have more of.

    >>> rng = np.random.default_rng(0)
    >>> points = np.concatenate([rng.normal(0, 1, (20, 2)), rng.normal(9, 1, (20, 2))])
    >>> np.sort(sl.active.TypiClust()(sl.PoolView(np.full(40, -1), embeddings=points), budget=2)) // 20  # one of each
    array([0, 1])
    """

    name = "typiclust"
    family = "diversity"
    paper = "Active Learning on a Budget: Opposite Strategies Suit High and Low Budgets"
    arxiv = "2202.02794"
    needs = frozenset({"embeddings"})
    reads = "blocks"

    def __init__(self, max_clusters: int = 500, neighbors: int = 20, least: int = 5) -> None:
        check_counts(max_clusters=max_clusters, neighbors=neighbors)
        self.max_clusters = max_clusters
        self.neighbors = neighbors
        self.least = least

    def select(self, view: PoolView, budget: int, seed: int) -> IntArray:
        rows = np.flatnonzero(view.labels != IGNORED)
        x = rows_of(view, "embeddings", rows)
        free = view.labels[rows] == UNLABELED
        count = min(int((~free).sum()) + budget, self.max_clusters)
        clusters, _ = k_means(x, count, seed)
        sizes = np.bincount(clusters, minlength=count)
        labels = np.bincount(clusters[~free], minlength=count)
        ties = rng(seed, "ties").permutation(len(rows))

        large, open_ = sizes > self.least, np.bincount(clusters[free], minlength=count) > 0
        chosen: list[int] = []
        for group in (large & open_, ~large & open_):
            order = np.lexsort((ties[:count], -sizes, labels))
            queues = [self._typical_first(x, np.flatnonzero(clusters == cluster), free, ties)
                      for cluster in order[group[order]][: budget - len(chosen)]] if len(chosen) < budget else []
            turn = 0
            while len(chosen) < budget and any(turn < len(queue) for queue in queues):
                chosen += [int(queue[turn]) for queue in queues if turn < len(queue)][: budget - len(chosen)]
                turn += 1
        return rows[chosen]

    def _typical_first(self, x: FloatArray | Rows, members: IntArray, free: NDArray[np.bool_],
                       ties: IntArray) -> IntArray:
        """The candidates among the members of a cluster, the most typical first."""
        k = min(self.neighbors, len(members) // 2)
        distances = mean_neighbor_distances(x[members], k) if k else np.zeros(len(members))
        typical: IntArray = members[np.lexsort((ties[members], distances))]
        candidates: IntArray = typical[free[typical]]
        return candidates
