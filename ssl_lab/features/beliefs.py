"""What a net's features say of unlabeled images, by way of a probe and of neighbors: a table to train on."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from ssl_lab.batch import Draw, Style
from ssl_lab.data import IntArray, Pool
from ssl_lab.engine import Runtime
from ssl_lab.errors import UsageError
from ssl_lab.features.embed import embed
from ssl_lab.features.knn import check_labels
from ssl_lab.features.probe import linear_probe, set_head
from ssl_lab.features.propagation import affinity, propagated
from ssl_lab.features.search import FloatArray, matrix
from ssl_lab.nets import Net
from ssl_lab.views.base import check_images, to_unit

NEIGHBORS, ALPHA, SHRINK = 20, 0.99, 0.1
L2 = 0.1  # of the head's last fit


@dataclass(frozen=True)
class _Mirror:
    """The image, mirrored left-right."""

    style: Style
    mirrors = True

    def __call__(self, images: Tensor, draw: Draw) -> Tensor:
        check_images(images, draw)
        return to_unit(images.flip(3))


def both_sides(net: Net, pool: Pool, rows: IntArray, runtime: Runtime) -> FloatArray:
    """float32 [n, D]: the mean of the features of images and of their mirror images; of the images alone where a
    mirrored one may be of another class (`style.flip`)."""
    features = embed(net, pool, rows, runtime)
    if pool.style.flip:
        features += embed(net, pool, rows, runtime, _Mirror)
        features /= 2
    return features


def spread(features: ArrayLike, labels: ArrayLike, classes: int, device: torch.device | str = "cpu") -> FloatArray:
    """float32 [N, classes]: labels that were propagated where directions count less in which a class spreads.

        r_ic = p_ic s_c / m_c / sum,  m_c = mean_j p_jc,  p of x_i S^(-1/2)

    p: `propagated` labels over the graph of 20 nearest neighbors, alpha 0.99 (Iscen et al. 2019, arXiv 1904.04717), of
    centered features x, whitened within classes (relevant component analysis, Bar-Hillel et al. 2003). S: their
    covariance around the means of the classes that `linear_probe` gives them, and a tenth of its mean variance in each
    direction. s: the classes' shares among the labels; m, and the sum over classes, bring p to them. The head that was
    trained with the features is not asked: it has learned what was believed before, wrong or right.

    Args:
        features: [N, D].
        labels: int [N], -1 = unlabeled.
        classes: their number.
        device: that finds the neighbors.

    Raises:
        UsageError: for shapes that do not fit.
    """
    rows, known = matrix(features, "features"), check_labels(labels, classes)
    if len(rows) != len(known):
        raise UsageError(f"{len(rows)} rows of features and {len(known)} labels; expected one each")
    shares = np.bincount(known[known >= 0], minlength=classes) / (known >= 0).sum()
    guess = np.where(known >= 0, known, _shared(linear_probe(rows, known, rows, classes), shares).argmax(axis=1))
    x = rows - rows.mean(axis=0)
    graph = affinity(x @ _within(x, guess), min(NEIGHBORS, len(rows) - 1), device=device)
    return _shared(propagated(graph, known, classes, ALPHA), shares)


def _shared(probs: FloatArray, shares: NDArray[np.float64]) -> FloatArray:
    """float32 [N, classes]: probabilities, brought to these shares of the classes."""
    p = probs * shares / np.maximum(probs.mean(axis=0, dtype=np.float64), 1e-12) + 1e-12
    found: FloatArray = (p / p.sum(axis=1, keepdims=True)).astype(np.float32)
    return found


def _within(x: FloatArray, classes: IntArray) -> FloatArray:
    """float32 [D, D], symmetric: S^(-1/2) of `spread`."""
    around = x.copy()
    for each in np.unique(classes):
        around[classes == each] -= x[classes == each].mean(axis=0)
    values, vectors = np.linalg.eigh(around.T @ around / len(x))
    scale = np.sqrt(np.maximum(values, 0) + SHRINK * values.mean() + 1e-12)
    found: FloatArray = ((vectors / scale) @ vectors.T).astype(np.float32)
    return found


def surest(probs: ArrayLike, share: float) -> FloatArray:
    """float32 [N, C]: 1 for the class of the surest `share` of the rows of each predicted class, else 0.

    probs: [N, C]. share: in [0, 1], rounded to whole rows of each class.
    """
    if not 0 <= share <= 1:
        raise UsageError(f"share={share}: expected a number from 0 to 1")
    p = matrix(probs, "probabilities")
    guess, confidence = p.argmax(axis=1), p.max(axis=1)
    table = np.zeros(p.shape, dtype=np.float32)
    for each in range(p.shape[1]):
        rows = np.flatnonzero(guess == each)
        order = rows[np.argsort(-confidence[rows], kind="stable")]
        table[order[: round(share * len(order))], each] = 1
    return table


def believed(net: Net, pool: Pool, runtime: Runtime, share: float) -> FloatArray:
    """float32 [images of the pool, classes]: the surest share of what `spread` says, one 1 in the row of each unlabeled
    training image that is believed, zeros elsewhere. Labels are the pool's; truth is not looked at.
    """
    features = both_sides(net, pool, pool.train, runtime)
    table = surest(spread(features, pool.labels[pool.train], pool.classes, runtime.device), share)
    table[pool.labels[pool.train] >= 0] = 0
    whole = np.zeros((len(pool), pool.classes), dtype=np.float32)
    whole[pool.train] = table
    return whole


def refit(net: Net, pool: Pool, runtime: Runtime) -> None:
    """Lets the head begin anew as a probe of what `spread` says of all training images, from their features."""
    features, known = both_sides(net, pool, pool.train, runtime), pool.labels[pool.train]
    guess = spread(features, known, pool.classes, runtime.device).argmax(axis=1)
    set_head(net, features, np.where(known >= 0, known, guess), np.arange(len(known)), L2)
