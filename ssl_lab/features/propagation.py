"""Label propagation by diffusion over the graph of nearest neighbors."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from scipy import sparse

from ssl_lab.errors import UsageError
from ssl_lab.features.knn import check_labels, shares
from ssl_lab.features.search import FloatArray, matrix, neighbors, top_k


def affinity(features: ArrayLike, k: int = 50, gamma: float = 3.0,
             device: torch.device | str = "cpu") -> sparse.csr_array:
    """float64 [N, N], symmetric, zero diagonal: the normalized graph S = D^-1/2 W D^-1/2.

    W = A + A', A_ij = max(cosine_ij, 0)^gamma where j is one of the k nearest other rows of i, else 0; D holds the
    sums of the rows of W. The eigenvalues of S lie in [-1, 1]. A row without neighbors stays empty. device: that finds
    the neighbors.
    """
    size = len(matrix(features, "features"))
    if not 1 <= k < size or gamma <= 0:
        raise UsageError(f"k={k}, gamma={gamma}: expected 1 to {size - 1} neighbors and a positive exponent")
    cosines, rows = neighbors(features, k, device)
    weights = np.maximum(cosines.astype(np.float64), 0) ** gamma
    directed = sparse.csr_array((weights.ravel(), rows.ravel(), np.arange(0, size * k + 1, k)), shape=(size, size))
    graph = directed + directed.T
    degrees = graph.sum(axis=1)
    scale = sparse.diags_array(np.where(degrees > 0, 1 / np.sqrt(np.maximum(degrees, 1e-300)), 0.0))
    return sparse.csr_array(scale @ graph @ scale)


def diffuse(graph: sparse.csr_array, seeds: NDArray[np.float64], alpha: float = 0.99, tolerance: float = 1e-6,
            steps: int = 200) -> NDArray[np.float64]:
    """float64 [N, C]: Z with (I - alpha S) Z = seeds, by conjugate gradients, one system per column, all at once.

    graph: S [N, N], symmetric, eigenvalues in [-1, 1]; so the matrix is positive definite for 0 <= alpha < 1. A column
    is done when its residual is below `tolerance` times its seeds' length; all are left after `steps`.
    """
    if not 0 <= alpha < 1:
        raise UsageError(f"alpha={alpha}: expected a number from 0 to below 1")
    found = np.zeros_like(seeds)
    residual = seeds.copy()
    direction = residual.copy()
    power = np.square(residual).sum(axis=0)
    enough = tolerance**2 * power
    for _ in range(steps):
        active = power > enough
        if not active.any():
            break
        image = direction - alpha * (graph @ direction)
        curvature = (direction * image).sum(axis=0)
        length = np.divide(power, curvature, out=np.zeros_like(power), where=active)
        found += length * direction
        residual -= length * image
        before, power = power, np.square(residual).sum(axis=0)
        direction = residual + np.divide(power, before, out=np.zeros_like(power), where=active) * direction
    return found


Kept = dict[str, tuple[str, Any]]
"""What was computed of some arrays: name -> (hash of the arrays, result)."""


def label_propagation(features: ArrayLike, labels: ArrayLike, queries: ArrayLike, classes: int, k: int = 50,
                      gamma: float = 3.0, alpha: float = 0.99, temperature: float = 0.07,
                      kept: Kept | None = None) -> FloatArray:
    """Diffuses the labels over all rows, labeled or not, and lets each query's k neighbors vote
    (Iscen et al. 2019, arXiv 1904.04717).

        (I - alpha S) Z = Y,  p_i = max(Z_i, 0) / sum max(Z_i, 0)

    Y has a 1 for each label, divided by the number of labels of its class, as in the authors' code, so that classes
    with more labels do not win by number. The paper then trains a net on p; here a query takes the mean of p over its k
    nearest rows, weighted by exp(cosine / temperature). A row (and a query all of whose neighbors are such) that no
    label reaches gets equal probabilities.

    Args:
        features: [N, D].
        labels: int [N], -1 = unlabeled.
        queries: [M, D].
        classes: how many there are.
        k: neighbors of a row in the graph, and of a query; fewer than there are rows.
        gamma: the power of a cosine that is the weight of an edge; above 0.
        alpha: how far labels go, in [0, 1).
        temperature: of the queries' neighbors; above 0.
        kept: where the graph and the queries' neighbors, which take nearly all of the time, stay for the next call:
            `partial(label_propagation, kept={})` is a learner for many sets of labels on the same rows.

    Returns:
        Probabilities float32 [M, classes].

    Raises:
        UsageError: as in `weighted_knn`, and for other k, gamma or alpha.

    >>> line = np.linspace(0, 1, 50)
    >>> features = np.stack([np.cos(line), np.sin(line)], axis=1)
    >>> labels = np.where(line == 0, 0, np.where(line == 1, 1, -1))  # the two ends have labels
    >>> sl.features.label_propagation(features, labels, features[[5, 45]], classes=2, k=3).argmax(axis=1)
    array([0, 1])
    """
    rows, known = matrix(features, "features"), check_labels(labels, classes)
    k, kept = min(k, len(rows) - 1), {} if kept is None else kept
    graph = _once(kept, affinity, rows, k, gamma)
    cosines, near = _once(kept, top_k, matrix(queries, "queries", rows.shape[1]), rows, k)
    beliefs, probs = propagated(graph, known, classes, alpha), np.zeros((len(near), classes), dtype=np.float32)
    for weight, row in zip(shares(cosines, temperature).T, near.T, strict=True):  # [M, k, classes] may not fit
        probs += weight[:, None] * beliefs[row]
    return probs


def _once(kept: Kept, function: Callable[..., Any], *arguments: Any) -> Any:
    """function(*arguments), from `kept` if these were its last arguments."""
    digest = hashlib.sha256()
    for part in arguments:
        digest.update(f"{np.shape(part)}".encode())
        digest.update(np.ascontiguousarray(part).data)
    name, key = function.__name__, digest.hexdigest()
    if kept.get(name, ("", None))[0] != key:
        kept[name] = key, function(*arguments)
    return kept[name][1]


def propagated(graph: sparse.csr_array, labels: ArrayLike, classes: int, alpha: float = 0.99) -> FloatArray:
    """float32 [N, classes]: the rows' own probabilities after the diffusion; graph as from `affinity`."""
    known = check_labels(labels, classes)
    if graph.shape != (len(known), len(known)):
        raise UsageError(f"a graph of shape {graph.shape} for {len(known)} labels")
    labeled = np.flatnonzero(known >= 0)
    counts = np.bincount(known[labeled], minlength=classes)
    seeds = np.zeros((len(known), classes))
    seeds[labeled, known[labeled]] = 1 / counts[known[labeled]]
    reached = np.maximum(diffuse(graph, seeds, alpha), 0)
    sums = reached.sum(axis=1, keepdims=True)
    beliefs: FloatArray = np.where(sums > 0, reached / np.maximum(sums, 1e-300), 1 / classes).astype(np.float32)
    return beliefs
