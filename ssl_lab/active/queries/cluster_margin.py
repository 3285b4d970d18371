"""Cluster-Margin (Citovsky et al. 2021, arXiv 2107.14263): uncertain rows, in turn from their clusters."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import coo_array, csr_array
from scipy.sparse.csgraph import connected_components

from ssl_lab.active.queries.base import Query, check_counts, highest, rng
from ssl_lab.active.queries.neighbors import nearest_others
from ssl_lab.active.queries.rows import Rows, rows_of
from ssl_lab.active.queries.view import IGNORED, FloatArray, IntArray, PoolView
from ssl_lab.errors import UsageError
from ssl_lab.features.k_means import cells

ROWS = 8192  # at a time
WHOLE = 2**20  # rows, up to which all are clustered together
TRACE = 1e-280  # which changes no sum


class ClusterMargin(Query):
    """Clusters all rows that are not ignored, takes the `pool * budget` candidates of least margin p_(1) - p_(2), and
    then, in turn, a random one from each cluster among these, smallest cluster first (by how many of them it has),
    until the budget is met.

    The clustering is the paper's agglomerative one with average linkage, on the graph of each row's `neighbors` nearest
    others; a pair without an edge counts as being as far apart as the longest edge. With neighbors >= N - 1 that is
    average linkage itself. Above 20,000 rows neighbors are approximate: a row's are sought in the 16 nearest of 4
    sqrt(N) lists, the cells of k-means. The tree is cut at N / `size` clusters, where the paper has a threshold of
    distance, which depends on the scale of the features; parts of the graph with no edge between them stay apart. More
    than 2^20 rows are first parted by a k-means into cells of at most 2^19, each of which is clustered alone (of
    70,000 rows in parts of 20,000, 700 picks are from 684 of the clusters of all, not from 700). It is a function of
    the embeddings alone: frozen ones give the same clusters in every round, as the paper's one clustering does.

    Memory is O(min(N, 2^20) (D + neighbors)) beside the embeddings.

    Args:
        pool: k_m / k_t in the paper.
        neighbors: of each row in the graph.
        size: rows of a cluster, on average.

    >>> rng = np.random.default_rng(0)
    >>> points, p = np.repeat(np.eye(3), 20, axis=0), rng.uniform(size=60)
    >>> view = sl.PoolView(np.full(60, -1), embeddings=points, probs=np.stack([p, 1 - p], axis=1))
    >>> np.sort(sl.active.ClusterMargin(pool=10, size=20)(view, budget=3)) // 20  # one of each cluster
    array([0, 1, 2])
    """

    name = "cluster_margin"
    family = "hybrid"
    paper = "Batch Active Learning at Scale"
    arxiv = "2107.14263"
    needs = frozenset({"embeddings", "probs"})
    reads = "blocks"

    def __init__(self, pool: float = 10, neighbors: int = 10, size: float = 10) -> None:
        if pool < 1:
            raise UsageError(f"pool = {pool}; expected at least 1: rows of small margin for each row of the budget")
        if size <= 0:
            raise UsageError(f"size = {size}; expected rows of a cluster, above 0")
        check_counts(neighbors=neighbors)
        self.pool, self.neighbors, self.size = pool, neighbors, size

    def select(self, view: PoolView, budget: int, seed: int) -> IntArray:
        candidates = view.candidates
        margins = np.concatenate([_margins(view.read("probs", candidates[start : start + ROWS]))
                                  for start in range(0, len(candidates), ROWS)])
        unsure = candidates[highest(-margins, int(self.pool * budget), seed)]
        rows = np.flatnonzero(view.labels != IGNORED)
        clusters = self.clusters(rows_of(view, "embeddings", rows))[np.searchsorted(rows, unsure)]
        return unsure[in_turn(clusters, rng(seed, "cluster_margin"))[:budget]]

    def clusters(self, embeddings: FloatArray | Rows) -> IntArray:
        """The cluster of each row: int64 [N]."""
        rows = len(embeddings)
        if rows <= 1:
            return np.zeros(rows, dtype=np.int64)
        if rows <= WHOLE:
            return average_linkage(neighbor_graph(embeddings, self.neighbors), max(1, round(rows / self.size)))
        found, count = np.empty(rows, dtype=np.int64), 0
        for cell in cells(embeddings, WHOLE // 4)[0]:
            for part in np.array_split(cell, -(-len(cell) // WHOLE)):  # of more only where rows are equal
                found[part] = self.clusters(embeddings[part]) + count
                count += len(part)
        return found


def in_turn(clusters: IntArray, draws: np.random.Generator) -> IntArray:
    """Positions [M], in the order of taking a random one of each cluster in turn, smallest cluster first."""
    shuffled = draws.permutation(len(clusters))
    _, cluster, sizes = np.unique(clusters[shuffled], return_inverse=True, return_counts=True)
    place = np.empty(len(sizes), dtype=np.int64)
    place[np.lexsort((draws.random(len(sizes)), sizes))] = np.arange(len(sizes))  # equal sizes in a drawn order
    by_cluster = np.argsort(cluster, kind="stable")
    turn = np.empty_like(cluster)
    turn[by_cluster] = np.arange(len(cluster)) - np.repeat(np.cumsum(sizes) - sizes, sizes)
    order: IntArray = shuffled[np.lexsort((place[cluster], turn))]
    return order


def neighbor_graph(x: FloatArray | Rows, k: int) -> csr_array:
    """Distances [N, N] to the k nearest others, symmetric: an edge where either is near the other."""
    n, edges = len(x), []
    for members, distances, near in nearest_others(x, min(k, len(x) - 1)):
        row, column = np.repeat(members, near.shape[1]), near.ravel()
        edges.append((np.minimum(row, column), np.maximum(row, column), distances.ravel()))
    low, high, length = (np.concatenate(part) for part in zip(*edges, strict=True))
    _, once = np.unique(low * n + high, return_index=True)
    low, high, length = low[once], high[once], length[once]
    return csr_array((np.tile(length, 2), (np.append(low, high), np.append(high, low))), shape=(n, n))


def average_linkage(graph: csr_array, clusters: int) -> IntArray:
    """Agglomerative clustering of a symmetric graph [N, N] of distances, cut at `clusters` clusters: int64 [N].

    The linkage of two clusters is the mean distance of their pairs of rows; pairs without an edge count as being as
    far apart as the longest edge. No merge of two that are each other's nearest brings another one nearer (the
    linkage is a weighted mean of what it was), so all such pairs merge at once, and the tree is that of merging one
    by one (Sumengen et al. 2021, arXiv 2105.11653).
    """
    n = graph.shape[0]
    # Closer than the longest edge, in sum for two clusters; where by nothing a trace, as products drop zeros. `size`
    # rows are in each cluster, and `member` is one of them.
    closer = csr_array((np.maximum(graph.data.max(initial=0).astype(np.float64) - graph.data, TRACE), graph.indices,
                        graph.indptr), (n, n))
    member, size = np.arange(n), np.ones(n)
    merges: list[tuple[IntArray, IntArray, NDArray[np.float64]]] = []
    merged = np.empty(0)
    while closer.nnz and clusters < n:
        counts = np.diff(closer.indptr)
        near = closer.data / size[closer.indices]
        near /= np.repeat(size, counts)  # the longest edge less the linkage
        if len(merged) >= n - clusters and near.max() < -np.partition(-merged, n - clusters - 1)[n - clusters - 1]:
            break  # every merge to come is above the cut
        low, high, height, edges = _nearest_pairs(closer.indices, counts, near)
        merges.append((member[low], member[high], height))
        merged = np.append(merged, height)
        kept = np.ones(len(member), dtype=bool)
        kept[high] = False
        into = np.cumsum(kept, dtype=closer.indices.dtype) - 1
        into[high] = into[low]
        member, size = member[kept], np.bincount(into, size)
        closer.data[edges] = 0  # which products drop
        closer = _joined(closer, into, len(member))
    if not merges:
        return np.arange(n)
    left, right, heights = (np.concatenate(part) for part in zip(*merges, strict=True))
    lowest = np.argsort(-heights, kind="stable")[: n - clusters]
    links = coo_array((np.ones(len(lowest)), (left[lowest], right[lowest])), shape=(n, n))
    labels: IntArray = connected_components(links, directed=False)[1].astype(np.int64)
    return labels


def _nearest_pairs(others: NDArray[Any], counts: IntArray,
                   near: NDArray[np.float64]) -> tuple[IntArray, IntArray, NDArray[np.float64], IntArray]:
    """The pairs (low, high) of clusters that are each other's nearest, how near they are, and which edges are between
    them, in both directions.

    others, near [edges]: of each cluster `counts` of them, one cluster after the other. Of equally near pairs that of
    the lowest numbers counts as nearer, so that there always is one.
    """
    has = np.flatnonzero(counts)
    starts = np.cumsum(counts)[has] - counts[has]
    most = np.maximum.reduceat(near, starts)
    best = np.flatnonzero(near == np.repeat(most, counts[has]))  # of each cluster, one and its equals
    row, col = np.searchsorted(starts, best, side="right") - 1, others[best].astype(np.int64)
    first = np.searchsorted(best, starts)
    row = has[row]
    pairs = np.minimum(row, col) * len(counts) + np.maximum(row, col)
    nearest = np.full(len(counts), -1)
    nearest[has] = pair = np.minimum.reduceat(pairs, first)
    low, high = pair // len(counts), pair % len(counts)
    mutual = (low == has) & (nearest[high] == pair)
    edges = best[(pairs == nearest[row]) & (nearest[col] == pairs)]
    return low[mutual], high[mutual], most[mutual], edges


def _joined(closer: csr_array, into: NDArray[Any], count: int) -> csr_array:
    """The sums [count, count] of a symmetric matrix over what goes into the same number; without sums of 0."""
    n = len(into)
    members = csr_array((np.ones(n), into, np.arange(n + 1, dtype=into.dtype)), shape=(n, count))
    columns = csr_array((closer.data, into[closer.indices], closer.indptr), shape=(n, count))  # may hold an entry twice
    return members.T.tocsr() @ columns  # which sums these too


def _margins(p: FloatArray) -> FloatArray:
    """The highest probability less the second highest: [M]."""
    top = np.partition(p, -2, axis=1)[:, -2:] if p.shape[1] > 1 else np.pad(p, ((0, 0), (1, 0)))
    margins: FloatArray = top[:, 1] - top[:, 0]
    return margins
