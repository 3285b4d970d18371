"""Linear probe: multinomial logistic regression on frozen features, its L2 chosen on held-out labels."""

from __future__ import annotations

import math

import numpy as np
import torch
from numpy.typing import ArrayLike
from scipy.optimize import minimize

from ssl_lab.data import IntArray, Pool
from ssl_lab.data.split import stratified
from ssl_lab.engine import Runtime
from ssl_lab.errors import UsageError
from ssl_lab.features.embed import embed
from ssl_lab.features.knn import check_labels, labeled_rows, softmax
from ssl_lab.features.search import FloatArray, matrix, unit
from ssl_lab.nets import Net
from ssl_lab.seeds import seed_of

L2_GRID = tuple(np.logspace(-6, 5, 45).tolist())
FEW = 0.1  # the L2 where labels are too few to hold any out
CHOOSING = 1e-5  # largest gradient where a strength is only tried: half the time, and with 1e-4 some choices are bad
FOLDS = 5
MANY = 1000
ENOUGH = 10_000  # rows to choose the strength by
CLASSES = 200  # to choose the strength by
LARGE = 2e9  # rows x features x classes from which a fit is of float32 and ends after `STEPS`: seconds for each step
STEPS = 100


def linear_probe(features: ArrayLike, labels: ArrayLike, queries: ArrayLike, classes: int, l2: float | None = None,
                 valid: IntArray | None = None) -> FloatArray:
    """Probabilities of the queries by logistic regression on unit features:

        min over W, b of  sum_i CE(W x_i + b, y_i) + l2 / 2 ||W||^2

    Args:
        features: [N, D].
        labels: int [N], -1 = unlabeled.
        queries: [M, D].
        classes: how many there are.
        l2: above 0. None chooses among 45 values from 1e-6 to 1e5, then fits again on all labels, as in Kornblith et
            al. 2019 (arXiv 1805.08974). It chooses on the rows `valid`, or, where none are given, by cross-validation:
            the most correct labels, and of equals the lowest loss. If a class has one label only, nothing can be held
            out and l2 = 0.1. Of more than 10,000 labels it chooses on 10,000, and of more than 200 classes on 200,
            drawn once and for all, and only the last fit takes all.
        valid: int64, numbers of rows of features that have a label.

    Returns:
        float32 [M, classes]; a class without a label gets nearly 0.

    Raises:
        UsageError: as in `weighted_knn`, and for rows of `valid` without a label.

    >>> pool = sl.load("digits").split(labels=50)
    >>> pixels = pool.images.take(np.arange(len(pool))).flatten(1).numpy()
    >>> few = pool.labels[pool.train]  # five labels a class; -1 elsewhere
    >>> probs = sl.features.linear_probe(pixels[pool.train], few, pixels[pool.test], classes=10, l2=1e-3)
    >>> bool((probs.argmax(axis=1) == pool.truth[pool.test]).mean() > 0.8)
    True
    """
    weights, basis = _probe(features, labels, classes, l2, valid)
    asked = unit(matrix(queries, "queries", np.shape(features)[1]))
    return softmax(_with_one(asked if basis is None else asked @ basis) @ weights.T)


def probe_weights(features: ArrayLike, labels: ArrayLike, classes: int, l2: float | None = None) -> FloatArray:
    """float32 [classes, D + 1]: W and, last, b of `linear_probe`, for unit features."""
    weights, basis = _probe(features, labels, classes, l2, None)
    return weights if basis is None else np.column_stack([weights[:, :-1] @ basis.T, weights[:, -1]])


def _probe(features: ArrayLike, labels: ArrayLike, classes: int, l2: float | None,
           valid: IntArray | None) -> tuple[FloatArray, FloatArray | None]:
    """Weights as from `fit`, and the basis [D, n] of the features that they are for, if these are not the whole space.
    """
    rows, known = labeled_rows(features, labels, classes)
    rows, basis = unit(rows), None
    if len(rows) < rows.shape[1]:  # the minimum lies in the span of the rows: so few coordinates say all
        basis = np.linalg.qr(rows.T)[0]
        rows = rows @ basis
    if l2 is None:
        held_out = _folds(known) if valid is None else [_places(check_labels(labels, classes), valid)]
        l2 = choose_l2(rows, known, classes, held_out)
    return fit(rows, known, classes, l2), basis


def sgd_probe(features: ArrayLike, labels: ArrayLike, queries: ArrayLike, classes: int, epochs: int = 30,
              lr: float = 1.0, batch: int = 256) -> FloatArray:
    """Probabilities of the queries by softmax regression trained by SGD: `linear_probe` in a fraction of its time, for
    a look at a net in training.

    Unit features are centered and scaled to a mean square length of 1, so that one learning rate suits any net. It
    falls by a cosine, with momentum 0.9 and no weight decay, from weights of zero.

    Args:
        features: [N, D].
        labels: int [N], -1 = unlabeled.
        queries: [M, D].
        classes: how many there are.
        epochs: passes over the labeled rows.
        lr: the peak.
        batch: rows per step.

    Returns:
        float32 [M, classes].

    Raises:
        UsageError: as in `linear_probe`.

    >>> rng = np.random.default_rng(0)
    >>> labels = rng.integers(0, 2, 200)
    >>> features = rng.normal(size=(200, 8)) + 2 * labels[:, None]
    >>> probs = sl.features.sgd_probe(features, labels, features, classes=2)
    >>> bool((probs.argmax(axis=1) == labels).mean() > 0.95)
    True
    """
    rows, known = labeled_rows(features, labels, classes)
    rows, asked = unit(rows), unit(matrix(queries, "queries", rows.shape[1]))
    center = rows.mean(axis=0)
    scale = max(float(np.square(rows - center).sum(axis=1).mean()) ** 0.5, 1e-6)
    x, asked = (_with_one((part - center) / scale) for part in (rows, asked))
    weights = np.zeros((classes, x.shape[1]), dtype=np.float32)
    velocity = np.zeros_like(weights)
    draw = np.random.default_rng(seed_of("sgd probe"))
    orders = (draw.permutation(len(x)) for _ in range(epochs))
    steps = [order[start:start + batch] for order in orders for start in range(0, len(x), batch)]
    for step, part in enumerate(steps):
        slope = _cross_entropy(x[part] @ weights.T, known[part])[1]
        velocity *= 0.9
        velocity += slope.T @ x[part] / len(part)
        weights -= np.float32(lr * (1 + math.cos(math.pi * step / len(steps))) / 2) * velocity
    return softmax(asked @ weights.T)


def probe_head(net: Net, pool: Pool, runtime: Runtime) -> None:
    """Lets the head of the net begin as the linear probe of the pool's labeled images (Kumar et al. 2022, arXiv
    2202.10054): what is fine-tuned from there need not first unlearn what a random head makes of good features.

    The probe is one of unit features; those of the net have about the mean length of these images.

    Args:
        net: whose head begins anew.
        pool: whose labeled images.
        runtime: where it computes.

    >>> pool, runtime = sl.load("digits").split(labels=30), sl.Runtime.start("cpu")
    >>> net = sl.net("tiny_8", classes=pool.class_names, style=pool.style)
    >>> before = sl.accuracy(net, pool, pool.test, runtime)
    >>> sl.features.probe_head(net, pool, runtime)
    >>> sl.accuracy(net, pool, pool.test, runtime) > before + 0.3  # of features that were drawn, not learned
    True
    """
    features = embed(net, pool, pool.labeled, runtime)
    rows, known = labeled_rows(features, pool.labels[pool.labeled], net.classes)
    rows = unit(rows)
    _into_head(net, fit(rows, known, net.classes, choose_l2(rows, known, net.classes, _folds(known))), features)


def set_head(net: Net, features: ArrayLike, labels: IntArray, among: IntArray, l2: float = 1.0) -> None:
    """Lets the head begin as a probe of labels that were guessed: of so many, and wrong ones, that it need not choose
    the strength.

    Args:
        net: whose head begins anew.
        features: [N, D], of the net.
        labels: int64 [N].
        among: the rows to learn from; of more than 10,000 so many.
        l2: as in `linear_probe`.

    >>> pool = sl.load("digits")
    >>> net = sl.net("tiny_4", classes=pool.class_names, style=pool.style)
    >>> features = sl.features.embed(net, pool, pool.train[:200], sl.Runtime.start("cpu"))
    >>> sl.features.set_head(net, features, pool.truth[pool.train[:200]], among=np.arange(200))
    """
    rows = stratified(among, labels, min(ENOUGH, len(among)), "head")
    found = matrix(np.asarray(features)[rows], "features")
    _into_head(net, fit(unit(found), labels[rows], net.classes, l2), found)


def _into_head(net: Net, weights: FloatArray, features: FloatArray) -> None:
    """weights: float32 [classes, D + 1], of unit features."""
    length = max(float(np.linalg.norm(features, axis=1).mean()), 1e-12)
    with torch.no_grad():
        net.head.weight.copy_(torch.from_numpy(weights[:, :-1] / length))
        net.head.bias.copy_(torch.from_numpy(weights[:, -1]))


def choose_l2(rows: FloatArray, known: IntArray, classes: int, held_out: list[IntArray]) -> float:
    """The value of `L2_GRID` that is right most often on held-out rows, each part predicted by a fit on the others.

    rows: float32 [n, D]. known: int64 [n]. held_out: parts of the row numbers; none: `FEW`. Of more than `ENOUGH` rows,
    so many: a fifth of them held out. Of more than `CLASSES` classes, so many.
    """
    if not held_out:
        return FEW
    there = np.unique(known)
    if len(there) > CLASSES:
        some = np.sort(np.random.default_rng(seed_of("classes")).permutation(there)[:CLASSES])
        kept = np.flatnonzero(np.isin(known, some))
        held_out = [np.flatnonzero(np.isin(kept, part)) for part in held_out]
        rows, known, classes = rows[kept], np.searchsorted(some, known[kept]), CLASSES
    scores = np.zeros((len(L2_GRID), 2))
    for held in held_out:
        rest = np.setdiff1d(np.arange(len(known)), held)
        if len(known) > ENOUGH:
            held, rest = (stratified(part, known, min(most, len(part)), "enough")
                          for part, most in ((held, ENOUGH // FOLDS), (rest, ENOUGH - ENOUGH // FOLDS)))
        weights = None
        for place in reversed(range(len(L2_GRID))):  # the strong ones are quick, and start the next
            weights = fit(rows[rest], known[rest], classes, L2_GRID[place], weights, True)
            logits = _with_one(rows[held]) @ weights.T
            right = int((logits.argmax(axis=1) == known[held]).sum())
            scores[place] += right, -_cross_entropy(logits, known[held])[0]
    best = max(range(len(L2_GRID)), key=lambda place: (scores[place, 0], scores[place, 1]))
    return float(L2_GRID[best])


def fit(rows: FloatArray, known: IntArray, classes: int, l2: float, start: FloatArray | None = None,
        quick: bool = False) -> FloatArray:
    """float32 [classes, D + 1]: W and, last, b at the minimum, by L-BFGS (SciPy) from `start` (default: zeros).

    In float64, until no entry of the gradient of the mean over the n rows is larger than l2 / 100 n: with a weak l2 the
    minimum lies far out in a flat valley, where a gradient that is small on any other scale says nothing. quick: in
    float32, until none is larger than `CHOOSING`, 300 steps at most. What is `LARGE` ends after `STEPS`, in float32.
    """
    if l2 <= 0:
        raise UsageError(f"l2={l2}: it must be positive")
    large = float(rows.size) * classes > LARGE
    x = _with_one(rows if quick or large else rows.astype(np.float64))
    shape = (classes, x.shape[1])
    held = np.full(shape[1], l2 / len(x))
    held[-1] = 0  # the bias is not held back
    scale = 1 / np.sqrt(1 + held)  # of what the solver sees, so that its tolerances suit any l2

    def objective(flat: FloatArray) -> tuple[float, FloatArray]:
        w = flat.reshape(shape) * scale
        value, slope = _cross_entropy(x @ w.astype(x.dtype).T, known)
        slopes = (slope.T @ x / len(x) + held * w) * scale
        return value / len(x) + float((held * w * w).sum()) / 2, slopes.ravel().astype(np.float64)

    first = np.zeros(shape) if start is None else start / scale
    ends = {"maxiter": 300, "gtol": CHOOSING, "ftol": 1e-10} if quick else {
        "maxiter": 20_000, "maxfun": 40_000, "gtol": max(min(1e-6, l2 / (100 * len(x))), 1e-12), "ftol": 0.0}
    if large:
        ends["maxiter"] = STEPS
    found = minimize(objective, first.ravel().astype(np.float64), jac=True, method="L-BFGS-B",
                     options={**ends, "maxcor": 20})
    weights: FloatArray = (found.x.reshape(shape) * scale).astype(np.float32)
    return weights


def _cross_entropy(logits: FloatArray, known: IntArray) -> tuple[float, FloatArray]:
    """The sum over rows, and its gradient [n, classes]."""
    shifted = logits - logits.max(axis=1, keepdims=True)
    exponents = np.exp(shifted)
    sums = exponents.sum(axis=1)
    places = np.arange(len(known)), known
    slope = exponents / sums[:, None]
    slope[places] -= 1
    return float((np.log(sums) - shifted[places]).sum(dtype=np.float64)), slope


def _with_one(rows: FloatArray) -> FloatArray:
    """Rows with a last column of ones, which the bias multiplies."""
    return np.column_stack([rows, np.ones(len(rows), dtype=np.float32)])


def _folds(known: IntArray) -> list[IntArray]:
    """Up to five parts with an equal share of each class; none if a class has a single label. Of `MANY` labels or
    more only the first part: it is large enough to choose by."""
    counts = np.bincount(known)
    folds = min(FOLDS, int(counts[counts > 0].min()))
    if folds < 2:
        return []
    order = np.random.default_rng(seed_of("folds")).permutation(len(known))
    order = order[np.argsort(known[order], kind="stable")]  # by class, in a random order within each
    return [np.sort(order[part::folds]) for part in range(folds if len(known) < MANY else 1)]


def _places(labels: IntArray, valid: IntArray) -> IntArray:
    """The places of rows `valid` among the labeled rows."""
    places = np.flatnonzero(np.isin(np.flatnonzero(labels >= 0), valid))
    if len(places) != len(valid) or not 0 < len(places) < (labels >= 0).sum():
        raise UsageError(f"valid names {len(valid)} rows, of which {len(places)} have a label among "
                         f"{(labels >= 0).sum()}; expected labeled rows, and others beside them")
    return places
