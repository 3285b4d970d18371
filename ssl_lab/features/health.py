"""Is a representation alive, without labels and with: numbers, and monitors for the trainer."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray

from ssl_lab.data import IntArray, Pool
from ssl_lab.engine import Runtime
from ssl_lab.engine.evaluate import monitored
from ssl_lab.errors import UsageError
from ssl_lab.features.embed import embed
from ssl_lab.features.knn import labeled_rows, weighted_knn
from ssl_lab.features.probe import sgd_probe
from ssl_lab.features.search import unit
from ssl_lab.features.self_training import Learner
from ssl_lab.methods import Method
from ssl_lab.seeds import generator


def embedding_std(features: ArrayLike) -> float:
    """sqrt(D) times the mean over dimensions of the standard deviation of unit features [n, D] (Chen and He 2020,
    arXiv 2011.10566). About 1 if they fill the sphere, 0 if all are the same.

    >>> rng = np.random.default_rng(0)
    >>> spread, collapsed = rng.normal(size=(500, 32)), np.ones((500, 32))
    >>> round(sl.features.embedding_std(spread), 1), round(sl.features.embedding_std(collapsed), 1)
    (1.0, 0.0)
    """
    rows = unit(features).astype(np.float64)
    return float(rows.std(axis=0).mean() * rows.shape[1] ** 0.5)


def effective_rank(features: ArrayLike) -> float:
    """RankMe (Garrido et al. 2022, arXiv 2210.02885): exp of the entropy of the singular values of features [n, D].

        p_k = sigma_k / sum sigma + 1e-7,  exp(-sum p_k log p_k)

    From 1 to min(n, D), and for n rows only comparable with n rows; as in the paper, the mean is not taken away.

    >>> x = np.zeros((100, 8))
    >>> x[np.arange(100), np.arange(100) % 3] = 1.0  # three directions alike
    >>> round(sl.features.effective_rank(x), 2)
    3.0
    """
    sizes = np.linalg.svd(np.asarray(features, dtype=np.float64), compute_uv=False)
    shares = sizes / max(sizes.sum(), 1e-300) + 1e-7
    return float(np.exp(-(shares * np.log(shares)).sum()))


def alignment(first: ArrayLike, second: ArrayLike, alpha: float = 2.0) -> float:
    """Mean of ||f(x) - f(y)||^alpha over positive pairs (Wang and Isola 2020, arXiv 2005.10242); the lower the better.

    Args:
        first, second: [n, D], the features of two views of the same images; scaled to unit length here.
        alpha: the power of the distance.

    Raises:
        UsageError: for shapes that differ.

    >>> right, same = [[1, 0], [0, 1]], [[0, 1], [0, 1]]  # a pair at a right angle, and one of equals
    >>> round(sl.features.alignment(right, same), 4)
    1.0
    """
    a, b = unit(first).astype(np.float64), unit(second).astype(np.float64)
    if a.shape != b.shape:
        raise UsageError(f"pairs of shapes {list(a.shape)} and {list(b.shape)}: expected the same")
    return float((np.linalg.norm(a - b, axis=1) ** alpha).mean())


def uniformity(features: ArrayLike, t: float = 2.0) -> float:
    """log of the mean of exp(-t ||f(x) - f(y)||^2) over pairs of different rows (Wang and Isola 2020, arXiv
    2005.10242); from 0 (all the same) down to about -2t in high dimensions; the lower the better.

    Args:
        features: [n, D], n >= 2; scaled to unit length here.
        t: how fast the potential falls with the squared distance.

    Raises:
        UsageError: with fewer than 2 rows.

    >>> sl.features.uniformity([[1, 0], [1, 0]]), round(sl.features.uniformity([[1, 0], [-1, 0]]), 4)
    (0.0, -8.0)
    """
    rows = unit(features).astype(np.float64)
    if len(rows) < 2:
        raise UsageError("uniformity needs 2 rows or more")
    distances = np.maximum(2 - 2 * rows @ rows.T, 0)[np.triu_indices(len(rows), 1)]
    return float(np.log(np.exp(-t * distances).mean()))


def class_separation(features: ArrayLike, labels: ArrayLike) -> float:
    """R2 = 1 - mean cosine distance within classes / mean cosine distance overall (Kornblith et al. 2020,
    arXiv 2010.16402); 1 if each class is one point, 0 if classes play no part.

    Each class counts the same: its mean is over all pairs of its rows, each row with itself included, and the overall
    mean over all pairs of classes, so that sums of unit rows suffice. NaN if all rows are equal.

    Args:
        features: [n, D].
        labels: int [n]; rows with a negative one are left out.

    >>> labels = np.arange(40) % 2
    >>> points = np.stack([labels, 1 - labels], axis=1)
    >>> round(sl.features.class_separation(points, labels), 6)  # each class is one point
    1.0
    """
    rows, known = labeled_rows(features, labels, int(np.max(labels, initial=0)) + 1)
    means = np.stack([unit(rows[known == label]).astype(np.float64).mean(axis=0) for label in np.unique(known)])
    cosines: NDArray[np.float64] = means @ means.T
    overall = 1 - cosines.mean()
    return float(1 - (1 - np.diag(cosines).mean()) / overall) if overall > 1e-6 else float("nan")


@dataclass(frozen=True)
class OnlineAccuracy:
    """Monitor: how well learners on the features, given the labeled train images, tell the classes of validation (else
    test) images.

    Gives {"knn_accuracy", "probe_accuracy"}, shares in [0, 1], by `learners`; nothing while no train image has a label.

    Attributes:
        learners: name -> learner, see `Learner`.
        rows: at most so many images on either side, always the same ones.

    >>> pool = sl.load("digits").split(labels=100)
    >>> method = sl.SimCLR(sl.net("tiny_4", style=pool.style), hidden=16, dim=8)
    >>> sl.features.OnlineAccuracy(rows=200)(method, pool, sl.Runtime.start("cpu")).keys()
    dict_keys(['knn_accuracy', 'probe_accuracy'])
    """

    learners: Mapping[str, Learner] = field(default_factory=lambda: {"knn": weighted_knn, "probe": sgd_probe})
    rows: int = 2000

    def __call__(self, method: Method, pool: Pool, runtime: Runtime) -> Mapping[str, float]:
        bank, (_, queries) = some(pool.labeled, self.rows), monitored(pool)
        queries = some(queries[pool.truth[queries] >= 0], self.rows)
        if not len(bank) or not len(queries):
            return {}
        mine = queries[runtime.rank::runtime.world]
        net = method.predictor()
        known, asked = embed(net, pool, bank, runtime), embed(net, pool, mine, runtime)
        right = [float("nan")] * len(self.learners)
        if np.isfinite(known).all() and np.isfinite(asked).all():
            labels = pool.labels[bank]
            probs = [learner(known, labels, asked, pool.classes) for learner in self.learners.values()]
            right = [float((each.argmax(axis=1) == pool.truth[mine]).sum()) for each in probs]
        shares = [total / len(queries) for total in runtime.totals(right)]
        return {f"{name}_accuracy": share for name, share in zip(self.learners, shares, strict=True)}


@dataclass(frozen=True)
class Health:
    """Monitor: {"embedding_std", "effective_rank", "collapsed"} of the features of some train images; no labels needed.

    collapsed: 1 if the features are no longer finite, if they are nearly one point (embedding_std below `least_std`) or
    nearly fill `least_rank` directions or fewer, else 0. Such a run will not recover: stop it, lower the learning rate
    or strengthen what keeps its features apart.

    Attributes:
        rows: how many, always the same ones.
        least_std, least_rank: below which features count as collapsed.

    >>> pool = sl.load("digits").split(labels=10)
    >>> method = sl.SimCLR(sl.net("tiny_4", style=pool.style), hidden=16, dim=8)
    >>> sl.features.Health(rows=100)(method, pool, sl.Runtime.start("cpu"))["collapsed"]
    0.0
    """

    rows: int = 1000
    least_std: float = 0.01
    least_rank: float = 2.0

    def __call__(self, method: Method, pool: Pool, runtime: Runtime) -> Mapping[str, float]:
        features = embed(method.predictor(), pool, some(pool.train, self.rows), runtime)
        if not np.isfinite(features).all():
            found = [float("nan"), float("nan"), 1.0]
        else:
            centered = features - features.mean(axis=0)  # features that are positive have one large common direction
            std, rank = embedding_std(features), effective_rank(centered)
            found = [std, rank, float(std < self.least_std or rank < self.least_rank)]
        numbers = [total / runtime.world for total in runtime.totals(found)]  # of ranks that rounded differently
        return dict(zip(("embedding_std", "effective_rank", "collapsed"), numbers, strict=True))


def some(indices: IntArray, most: int) -> IntArray:
    """At most `most` of the indices, drawn once and for all, sorted."""
    chosen = torch.randperm(len(indices), generator=generator("some"))[:most].sort().values
    few: IntArray = indices[chosen.numpy()]
    return few
