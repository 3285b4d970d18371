"""Predictions of a net over many images, in evaluation mode and under the evaluation view."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ssl_lab.batch import At
from ssl_lab.class_names import order_of
from ssl_lab.data import Pool
from ssl_lab.engine.feed import in_batches, laid_out
from ssl_lab.engine.runtime import Runtime
from ssl_lab.engine.weights import whole
from ssl_lab.methods import Method
from ssl_lab.nets import Net
from ssl_lab.seeds import generator
from ssl_lab.views import Eval

IntArray = NDArray[np.int64]
FloatArray = NDArray[Any]
MONITORED = 2000  # test images that a curve is drawn from where there is no validation split
LEAST = 250  # of them, in runs that are so short that more would take longer than training
BINS = 15  # of confidence, in the calibration error


class Predictions(NamedTuple):
    """rows: int64 [n], of the pool. logits: float32 [n, classes]. truth: int64 [n], the class of each, all known."""

    rows: IntArray
    logits: FloatArray
    truth: IntArray


class Monitor(Protocol):
    """Measures a method at each evaluation point; its numbers join the row of metrics.

    Called on every rank, with equal weights; all ranks return the same numbers.

    >>> def count(method, pool, runtime):  # a monitor is a function that names its numbers
    ...     return {"parameters": sum(p.numel() for p in method.parameters())}
    >>> pool = sl.load("digits").split(labels=10)
    >>> count(sl.FixMatch(sl.net("tiny_4", style=pool.style)), pool, None)
    {'parameters': 10284}
    """

    def __call__(self, method: Method, pool: Pool, runtime: Runtime) -> Mapping[str, float]: ...


def rows_at_once(pool: Pool, device: torch.device) -> int:
    """How many images pass a net that only predicts: on a GPU, some 16 million pixels, but 64 to 2,048 images.

    That number was chosen by what the largest nets here hold in memory, not by timing it on a GPU.
    """
    return 256 if device.type == "cpu" else min(2048, max(64, 2**24 // (pool.style.height * pool.style.width)))


def predict(net: Net, pool: Pool, indices: IntArray, runtime: Runtime, batch: int | None = None) -> Tensor:
    """Logits float32 [len(indices), classes], on the CPU. The net's mode is restored.

    Args:
        net: that predicts.
        pool: whose images.
        indices: int64 [n], which of its images.
        runtime: where it computes.
        batch: images that pass at a time; None: `rows_at_once`.

    >>> pool, runtime = sl.load("digits"), sl.Runtime.start("cpu")
    >>> net = sl.net("tiny_4", classes=pool.class_names, style=pool.style)
    >>> logits = sl.engine.predict(net, pool, pool.test[:5], runtime)
    >>> logits.shape, logits.dtype
    (torch.Size([5, 10]), torch.float32)
    """
    view, at = Eval(pool.style), At(0, 1)
    was_training = net.training
    net.eval()
    logits = []
    with whole(net), torch.inference_mode():
        for images in in_batches(pool.images, indices, batch or rows_at_once(pool, runtime.device), runtime.device):
            pixels = laid_out(view(images, at.draw("eval", len(images), runtime.device)))
            with runtime.autocast():
                logits.append(net(pixels).logits.float())
    net.train(was_training)
    return torch.cat(logits).cpu() if logits else torch.empty(0, net.classes)


def accuracy(net: Net, pool: Pool, indices: IntArray, runtime: Runtime) -> float:
    """Share of correct predictions in [0, 1] against the pool's truth; NaN without images. See `scores`.

    Args:
        net: that predicts.
        pool: whose images, and their truth.
        indices: int64 [n], which of its images.
        runtime: where it computes.

    >>> pool, runtime = sl.load("digits"), sl.Runtime.start("cpu")
    >>> net = sl.net("tiny_4", classes=pool.class_names, style=pool.style)
    >>> sl.accuracy(net, pool, pool.test, runtime) < 0.3  # it has not learned anything
    True
    """
    return scores(net, pool, indices, runtime)["accuracy"]


def scores(net: Net, pool: Pool, indices: IntArray, runtime: Runtime,
           keep: Callable[[Predictions], None] | None = None) -> dict[str, float]:
    """How good the predictions are, for the rows whose truth the pool knows; see `rates`. Classes go by name.

    Each rank predicts its part; all must hold the same net.

    Args:
        net: that predicts.
        pool: whose images, and their truth.
        indices: int64 [n], which of its images.
        runtime: where it computes.
        keep: is given what was predicted, on every rank that of all.

    Returns:
        accuracy, balanced_accuracy and ece, each a fraction, as `rates` has them; NaN without images.

    >>> pool, runtime = sl.load("digits"), sl.Runtime.start("cpu")
    >>> net = sl.net("tiny_4", classes=pool.class_names, style=pool.style)
    >>> sorted(sl.engine.scores(net, pool, pool.test[:50], runtime))
    ['accuracy', 'balanced_accuracy', 'ece']
    """
    rows = indices[pool.truth[indices] >= 0]
    mine = rows[runtime.rank :: runtime.world]
    logits = predict(net, pool, mine, runtime)
    if (names := getattr(net, "class_names", None)) not in (None, pool.class_names):
        logits = logits[:, order_of(names, pool.class_names, f"the net {net.name}")]
    if keep is not None:
        found = np.empty((len(rows), net.classes), dtype=np.float32)
        for rank, part in enumerate(runtime.of_all(logits.numpy())):
            found[rank :: runtime.world] = part
        keep(Predictions(rows, found, pool.truth[rows]))
    probs = logits.double().softmax(dim=1).numpy()
    return rates(np.array(runtime.totals(tallies(probs, pool.truth[mine]).tolist())))


def tallies(probs: FloatArray, truth: IntArray) -> FloatArray:
    """What `rates` needs of predictions, float64; those of parts add up.

    probs: [n, classes]. truth: int64 [n]; rows with a negative one are left out.
    """
    known, classes = truth >= 0, probs.shape[1]
    p, truth = np.nan_to_num(probs[known]), truth[known]  # a run is stopped where weights are checked, not here
    confidence, right = p.max(axis=1, initial=0.0), p.argmax(axis=1) == truth
    bins = np.clip(np.ceil(confidence * BINS) - 1, 0, BINS - 1).astype(np.int64)
    return np.concatenate([np.bincount(truth, weights=right, minlength=classes), np.bincount(truth, minlength=classes),
                           np.bincount(bins, weights=right - confidence, minlength=BINS)])


def rates(tallied: FloatArray) -> dict[str, float]:
    """accuracy, balanced_accuracy and ece, all in [0, 1], from `tallies`; NaN where no row's truth was known.

    accuracy: share of correct predictions. balanced_accuracy: mean over the classes that occur of the share of their
    rows that are recognized. ece: expected calibration error, the mean over rows of |accuracy - confidence| of their
    bin of 15 equal bins of confidence (Guo et al. 2017, arXiv 1706.04599).
    """
    (recalled, seen), gaps = tallied[:-BINS].reshape(2, -1), tallied[-BINS:]
    if not seen.sum():
        return dict.fromkeys(("accuracy", "balanced_accuracy", "ece"), math.nan)
    return {"accuracy": float(recalled.sum() / seen.sum()),
            "balanced_accuracy": float((recalled[seen > 0] / seen[seen > 0]).mean()),
            "ece": float(np.abs(gaps).sum() / seen.sum())}


def measure(method: Method, pool: Pool, runtime: Runtime, splits: Mapping[str, IntArray],
            monitors: Sequence[Monitor], kept: dict[str, Predictions] | None = None) -> dict[str, float]:
    """What an evaluation point reports: scores of each split's rows, and what the monitors measure.

    Of the averaged weights all scores, of the plain ones the accuracy; none where the method trains no classifier,
    or a split has no rows. kept: where the predictions of the averaged weights go, by split.
    """
    row: dict[str, float] = {}
    for split, indices in splits.items():
        if method.classifies and len(indices):
            keep = None if kept is None else partial(kept.__setitem__, split)
            averaged = scores(method.predictor(), pool, indices, runtime, keep)
            plain = averaged if method.predictor() is method.net else scores(method.net, pool, indices, runtime)
            row |= {f"{split}_{name}": value for name, value in averaged.items()}
            row[f"{split}_accuracy_plain"] = plain["accuracy"]
    for monitor in monitors:
        row |= monitor(method, pool, runtime)
    return row


def worth_measuring(trained: int) -> int:
    """Of how many test images a point of the curve is worth its time, after `trained` images since the last one: a pass
    forward costs a third of a step's."""
    return min(MONITORED, max(LEAST, trained // 4))


def monitored(pool: Pool, most: int = MONITORED) -> tuple[str, IntArray]:
    """The split, and its rows, that the accuracy curve shows; of test images at most so many. It chooses nothing."""
    if len(pool.valid):
        return "valid", pool.valid
    chosen = torch.randperm(len(pool.test), generator=generator("monitored"))[:most].sort().values
    return "test", pool.test[chosen.numpy()]
