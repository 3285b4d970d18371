"""Anchored transduction, after StatA (Zanella et al. 2025, arXiv 2501.03729): a mixture of Gaussians over all rows,
whose classes are held at what the labels say of them, so that one that is missing among the rows takes no others."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ssl_lab.errors import UsageError
from ssl_lab.features.knn import check_labels, labeled_rows, softmax
from ssl_lab.features.probe import probe_weights
from ssl_lab.features.search import FloatArray, matrix, unit

Double = NDArray[np.float64]
NEVER = -1e4
"""Of a logit: a class without a label has no anchor."""


def anchored(features: ArrayLike, labels: ArrayLike, queries: ArrayLike, classes: int, alpha: float = 10.0,
             steps: int = 10) -> FloatArray:
    """Probabilities of the queries by the linear probe and a mixture of Gaussians that is held at what labels say,
    after StatA (Zanella et al. 2025, arXiv 2501.03729); see `anchored_weights`.

    Args:
        features: [N, D].
        labels: int [N], -1 = unlabeled.
        queries: [M, D].
        classes: how many there are.
        alpha: how many rows the anchor of a class weighs, at least 0; the paper has 1.
        steps: of the mixture, at least 1.

    Returns:
        Probabilities float32 [M, classes].

    Raises:
        UsageError: as in `weighted_knn`, and for other alpha or steps.

    >>> rng, truth = np.random.default_rng(0), np.arange(100) % 2
    >>> features = rng.normal(size=(100, 3)) + np.where(truth[:, None], [4, 0, 1], [0, 4, 1])
    >>> labels = np.where(np.arange(100) < 2, truth, -1)  # one label each
    >>> probs = sl.features.anchored(features, labels, features, classes=2)
    >>> bool((probs.argmax(axis=1) == truth).mean() > 0.9)
    True
    """
    weights = anchored_weights(features, labels, classes, alpha, steps)
    asked = unit(matrix(queries, "queries", weights.shape[1] - 1))
    return softmax(asked @ weights[:, :-1].T + weights[:, -1])


def anchored_weights(features: ArrayLike, labels: ArrayLike, classes: int, alpha: float = 10.0,
                     steps: int = 10) -> FloatArray:
    """float32 [classes, D + 1]: W and, last, b, for unit features. By turns, `steps` times,

        mu_k = (sum_i u_ik x_i + alpha m_k) / (n_k + alpha),  n_k = sum_i u_ik
        s    = (sum_ik u_ik (x_i - mu_k)^2 + alpha sum_k (s_0 + (m_k - mu_k)^2)) / (N + alpha K)
        u_ik ~ p_ik N(x_i; mu_k, diag(s)),  or the label of row i

    which climbs  sum_ik u_ik log(p_ik N(x_i; mu_k, diag(s)) / u_ik) - alpha sum_k KL(N(m_k, s_0) || N(mu_k, diag(s))).
    p is the linear probe of the labels, from which u begins; m_k is the mean of the rows that are labeled k, and s_0
    the variance about these by p. Of a row, p N is a softmax of linear logits, which are the answer. alpha: how many
    rows the anchor of a class weighs: 1 in the paper; 10 leaves missing classes alone more often, as in its test, and
    those that are there lose nothing. UsageError for a negative one, and as in `linear_probe`. The paper's term for
    neighbors is left out.
    """
    if alpha < 0 or steps < 1:
        raise UsageError(f"alpha={alpha}, steps={steps}: expected 0 or more, and at least one step")
    few, of = labeled_rows(features, labels, classes)
    rows, known = unit(matrix(features, "features")), check_labels(labels, classes)
    weights = probe_weights(rows, known, classes).astype(np.float64)
    logits = rows @ weights[:, :-1].T.astype(np.float32) + weights[:, -1]
    truth = np.eye(classes)[of]
    counts = truth.sum(axis=0)
    means = np.where(counts[:, None] > 0, truth.T @ unit(few) / np.maximum(counts, 1)[:, None], rows.mean(axis=0))
    squares = np.einsum("nd,nd->d", rows, rows, dtype=np.float64)

    def beliefs(extra: NDArray[Any]) -> Double:
        found: Double = softmax((logits + extra).astype(np.float32)).astype(np.float64)
        found[known >= 0] = truth
        return found

    def spread(u: Double, sums: Double, centers: Double) -> Double:
        """sum_ik u_ik (x_i - mu_k)^2, [D]; sums: u' x."""
        total: Double = squares - 2 * (centers * sums).sum(axis=0) + (u.sum(axis=0) @ centers**2)
        return total

    u = beliefs(np.where(counts > 0, 0.0, NEVER))
    start = spread(u, _sums(u, rows), means) / len(rows)
    slope, offset = np.zeros_like(means), np.zeros(classes)
    for _ in range(steps):
        sums, sizes = _sums(u, rows), u.sum(axis=0)[:, None]
        centers = (sums + alpha * means) / np.maximum(sizes + alpha, 1e-12)
        anchors = alpha * (classes * start + ((means - centers) ** 2).sum(axis=0))
        variance = np.maximum((spread(u, sums, centers) + anchors) / (len(rows) + alpha * classes), 1e-12)
        slope, offset = centers / variance, -0.5 * (centers**2 / variance).sum(axis=1)
        offset[counts == 0] = NEVER
        u = beliefs(rows @ slope.T.astype(np.float32) + offset)
    found: FloatArray = np.column_stack([weights[:, :-1] + slope, weights[:, -1] + offset]).astype(np.float32)
    return found


def _sums(u: Double, rows: FloatArray) -> Double:
    """u' x, float64 [K, D]."""
    found: Double = (u.T.astype(np.float32) @ rows).astype(np.float64)
    return found
