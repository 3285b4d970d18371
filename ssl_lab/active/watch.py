"""What stop advice is made of: what nets said before answers came, and of images that are watched in all rounds."""

from __future__ import annotations

import itertools
import zlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from ssl_lab.active.arrays import arrays_of
from ssl_lab.active.queries.base import rng
from ssl_lab.active.queries.view import FloatArray, IntArray, PoolView
from ssl_lab.active.record import Round
from ssl_lab.active.stands import stands_for
from ssl_lab.active.stopping import Advice, Estimate, advise, estimate_accuracy, kappa
from ssl_lab.data import Pool
from ssl_lab.engine import Runtime
from ssl_lab.features import linear_probe
from ssl_lab.features.crossfit import cross_fitted
from ssl_lab.features.self_training import Learner
from ssl_lab.nets import Net

WATCHED = 2000  # train images: the paper's stop set
RECENT = 100  # answers by which a net is judged


def watched(net: Net, pool: Pool, runtime: Runtime, seed: int) -> Mapping[str, Any]:
    """Of `Round`: what the net says of up to 2,000 train images, drawn from the seed, labeled or not."""
    rows = np.sort(rng(seed, "stop set").permutation(pool.train)[:WATCHED])
    probs = arrays_of(net, pool, rows, ("probs",), runtime)["probs"]
    return {"watch": f"{zlib.crc32(rows.astype('<i8').tobytes()):08x}", "watched": tuple(probs.argmax(axis=1).tolist()),
            "sureness": tuple(np.round(probs.max(axis=1).astype(np.float64), 5).tolist())}


def predicted(net: Net | None, pool: Pool, ids: IntArray, runtime: Runtime) -> Mapping[str, Any]:
    """Of `Round`: what the net says of the images that are asked for, for people who label them, and to judge it by."""
    if net is None:
        return {}
    probs = arrays_of(net, pool, ids, ("probs",), runtime)["probs"]
    return {"predicted": tuple(probs.argmax(axis=1).tolist()), "confidence": tuple(probs.max(axis=1).tolist())}


def represented(view: PoolView, ids: IntArray) -> Mapping[str, Any]:
    """Of `Round`: what each pick stands for by the embeddings that the query saw, if it did."""
    if view.embeddings is None:
        return {}
    rows = np.arange(len(view))
    picks = rows[np.searchsorted(view.ids_of(rows), ids)]
    stands = stands_for(view.embeddings, picks, np.setdiff1d(view.candidates, picks))
    return {"stands_for": stands.counts,
            "like": tuple(tuple(view.ids_of(np.array(some, dtype=np.int64)).tolist()) for some in stands.examples)}


def stop_advice(records: Sequence[Round], labels: IntArray) -> Advice:
    """Whether more labels are worth it, by a loop's rounds; labels: int [rows of the pool], the answers so far.

    A net is judged by the last 100 answers to predictions that it or those before it made, and by how sure it is of the
    images that are watched (which are few of all, so that those labeled since hardly count).
    """
    right: list[bool] = []
    sure: list[float] = []
    estimates: list[Estimate | None] = []
    for record in records:
        found = None
        if record.sureness is not None:
            found = estimate_accuracy(right[-RECENT:], sure[-RECENT:], record.sureness)
        estimates.append(found)
        for i, said, confidence in zip(record.ids, record.predicted or (), record.confidence or (), strict=False):
            if labels[i] >= 0:
                right.append(bool(labels[i] == said))
                sure.append(confidence)
    pairs = [(one.watched, other.watched) for one, other in itertools.pairwise(records)
             if one.watch == other.watch and one.watched and other.watched]
    return advise([record.labels for record in records], estimates,
                  [kappa(one or (), other or ()) for one, other in pairs])


def held_out_estimate(features: FloatArray, labels: IntArray, classes: int,
                      learner: Learner = linear_probe) -> Estimate | None:
    """The accuracy on unlabeled rows of a learner on frozen features [N, D], by five folds of the labels [N] (-1 =
    unlabeled): each fold is predicted from the others, and so are (up to 2,000) unlabeled rows. See
    `estimate_accuracy`; fits on four fifths of the labels are a little worse than one on all."""
    free = rng(0, "stop set").permutation(np.flatnonzero(labels < 0))[:WATCHED]
    sure: list[FloatArray] = []

    def both(x: Any, known: Any, asked: Any, count: int) -> FloatArray:
        probs = learner(x, known, np.concatenate([asked, features[free]]), count)
        sure.append(probs[len(asked) :].max(axis=1))
        return probs[: len(asked)]

    held_out = cross_fitted(features, labels, classes, both)
    if not sure:
        return None
    right = held_out.probs.argmax(axis=1) == labels[held_out.rows]
    return estimate_accuracy(right, held_out.probs.max(axis=1), np.concatenate(sure))
