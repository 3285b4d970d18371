"""`audit`: what is wrong with a data set, ranked: labels, duplicates, leaks, foreign and odd images."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ssl_lab.auditing.eye import at_side, eye
from ssl_lab.auditing.looks import Odd, blank, look, odd_colors, odd_shapes, odd_sizes, read_headers
from ssl_lab.auditing.pairs import Bar, Pairs, bar_of, copies, find_pairs, sample
from ssl_lab.data import IntArray, Pool, load
from ssl_lab.data.files import data_folder
from ssl_lab.data.images import ArrayImages
from ssl_lab.data.remote import GIGABYTES
from ssl_lab.engine import Runtime
from ssl_lab.errors import UsageError, unknown
from ssl_lab.features import FeatureStore, Learner, embed, sgd_probe, weighted_knn
from ssl_lab.features.confident import doubt
from ssl_lab.features.crossfit import cross_fitted
from ssl_lab.features.search import FloatArray, matrix
from ssl_lab.features.topic import off_topic

DOUBTERS: dict[str, Learner] = {"knn": weighted_knn, "probe": sgd_probe}
"""Learners that doubt labels. The probe is trained by SGD: an exact one, whose strength is chosen, takes ten times as
long, for each of five folds."""
QUICK = 2**34
"""Labels x features x classes up to which a probe takes minutes at most."""
WEAK = 0.75
"""Share of the labels: who agrees with fewer is as likely wrong as the labels that it doubts."""
FAR = 3
"""Usual deviations above the usual distance from which on an image is off-topic."""
PARTS = ("train", "valid", "test", "dropped")


class Doubts(NamedTuple):
    """The labels, the most doubtful first. rows, given, likelier: int64 [n]; the class that was given, and which is
    likeliest if that is wrong. scores: float64 [n], see `doubt`. wrong: bool [n], whether confident learning says so.
    learner: that says so. agreement: the share of the labels that it predicts when they are held out."""

    rows: IntArray
    given: IntArray
    likelier: IntArray
    scores: NDArray[np.float64]
    wrong: NDArray[np.bool_]
    learner: str
    agreement: float


class Issue(NamedTuple):
    """kind: of `KINDS`. score: higher is worse, comparable within a kind. given, likelier: class numbers, -1 = none.
    other: the row that it is a duplicate of, -1 = none. note: in words."""

    kind: str
    row: int
    score: float
    given: int
    likelier: int
    other: int
    note: str


KINDS = {
    "label": "labels that are likely wrong",
    "leak": "images of valid or test that are in train too, or in both",
    "duplicate": "images that are there twice in one part",
    "off_topic": "images unlike all others, and unlike their class",
    "blank": "images that show nothing",
    "size": "files of an unusual size",
    "shape": "files of an unusual shape",
    "color": "images or files of an unusual color mode",
}


@dataclass(frozen=True, eq=False)
class Audit:
    """What was found.

    Attributes:
        pool: what was examined.
        net: whose features told it.
        bar: what counts as near.
        doubts: of labels; None without labels to compare.
        pairs: duplicates, exact and near; bar: what counts as near.
        part: int64 [N], which of `PARTS` each row is of.
        off_topic, blank, size, shape, color: images that stand out.
        notes: what a person should be told, a line each.

    >>> images = np.random.default_rng(0).integers(0, 256, (30, 8, 8), dtype=np.uint8)
    >>> images[7] = 0  # nothing is to be seen on it
    >>> found = sl.audit(sl.Pool.from_arrays(images, np.arange(30) % 2), net="pixels", data_dir=".")
    >>> found.blank.rows
    array([7])
    """

    pool: Pool
    net: str
    doubts: Doubts | None
    pairs: Pairs
    bar: Bar
    part: IntArray
    off_topic: Odd
    blank: Odd
    size: Odd
    shape: Odd
    color: Odd
    notes: tuple[str, ...]

    @property
    def leaks(self) -> NDArray[np.bool_]:
        """bool [P]: of which pairs the images are in different parts."""
        one, other = self.part[self.pairs.rows].T
        return np.asarray(one != other)

    @property
    def counts(self) -> dict[str, int]:
        """How many issues there are of each of `KINDS`."""
        leaks = int(self.leaks.sum())
        return {"label": 0 if self.doubts is None else int(self.doubts.wrong.sum()), "leak": leaks,
                "duplicate": len(self.pairs.rows) - leaks,
                **{kind: len(getattr(self, kind).rows) for kind in ("off_topic", "blank", "size", "shape", "color")}}

    def issues(self) -> list[Issue]:
        """All of them: by kind, the worst first."""
        found = []
        if self.doubts is not None:
            for row, given, likelier, score, wrong in zip(*self.doubts[:5], strict=True):
                if wrong:
                    found.append(Issue("label", int(row), float(score), int(given), int(likelier), -1, ""))
        pairs, leaks = self.pairs, self.leaks
        for kind, mask in (("leak", leaks), ("duplicate", ~leaks)):
            for number in np.flatnonzero(mask).tolist():
                first, second = pairs.rows[number].tolist()
                if self.part[first] < self.part[second]:  # of a leak, the one in train is the one to take out
                    first, second = second, first
                found.append(Issue(kind, second, float(pairs.alike[number]), self._given(second), -1, first,
                                   self.pair_note(number)))
        for kind in ("off_topic", "blank", "size", "shape", "color"):
            odd: Odd = getattr(self, kind)
            found += [Issue(kind, int(row), float(score), self._given(int(row)), -1, -1, note)
                      for row, score, note in zip(*odd, strict=True)]
        return found

    def pair_note(self, number: int) -> str:
        """What is to be said of a pair."""
        first, second = self.pairs.rows[number].tolist()
        said = "exactly alike" if self.pairs.exact[number] else f"nearly alike ({self.pairs.alike[number]:.3f})"
        if (one := self.part[first]) != (other := self.part[second]):
            said += f", in {PARTS[one]} and in {PARTS[other]}"
        one, other = self._given(first), self._given(second)
        if one != other and min(one, other) >= 0:
            said += f", labeled {self.pool.class_names[one]} and {self.pool.class_names[other]}"
        return said

    def corrected(self) -> Pool:
        """The pool with the likelier class in place of each train label that is likely wrong, in its ledger."""
        if self.doubts is not None:
            mine = self.doubts.wrong & (self.part[self.doubts.rows] == PARTS.index("train"))
            if mine.any():
                self.pool.record(self.doubts.rows[mine], self.doubts.likelier[mine], "audit")
        return self.pool

    def _given(self, row: int) -> int:
        return int(given_labels(self.pool)[row])


def audit(data: Pool | str | os.PathLike[str], net: str | None = None, *, learner: str = "auto",
          weights: str | Path | None = None, pretrained: bool = False,
          data_dir: str | os.PathLike[str] | None = None, remote_gb: float = GIGABYTES, seed: int = 0,
          device: str = "auto", say: Callable[[str], object] = lambda line: None) -> Audit:
    """Looks for what is wrong with a data set; nothing is changed.

    Labels: those of train by cross-fitting, those of valid and test by what was learned from train, and confident
    learning's rule (see `features.confident`). Features are kept in the data folder, for the next time.

    Args:
        data: a pool, or what `load` takes.
        net: whose features images are compared by: a run's folder, a file of weights, timm/MODEL (with its weights file
            or pretrained), or one of `NETS`; by default the smallest pretrained net that was fetched, else the images'
            own values.
        learner: knn or probe, that doubts labels; auto takes whichever predicts more of the labels when they are held
            out.
        weights: a file with weights of the net.
        pretrained: take the published weights of a timm net.
        data_dir: where data sets and features lie (default: $SSL_LAB_DATA, else ~/.cache/ssl_lab).
        remote_gb: more gigabytes than that are not copied from an address.
        seed: of what is drawn to compare by.
        device: cpu, cuda, or auto.
        say: is told what happens.

    Raises:
        UsageError: for data without images, and for an unknown learner or net.

    >>> images = np.random.default_rng(0).integers(0, 256, (30, 8, 8), dtype=np.uint8)
    >>> images[29] = images[0]  # twice
    >>> found = sl.audit(sl.Pool.from_arrays(images, np.arange(30) % 2), net="pixels", data_dir=".")
    >>> found.pairs.rows
    array([[ 0, 29]])
    """
    pool = data if isinstance(data, Pool) else load(data, data_dir, remote_gb=remote_gb)
    if not len(pool):
        raise UsageError(f"{pool.name} has no images to audit")
    if learner != "auto" and learner not in DOUBTERS:
        raise unknown("learner", learner, ["auto", *DOUBTERS])
    net_, side, note = eye(pool, net, weights, pretrained, seed)
    say(note)
    runtime = Runtime.start(device)
    store = FeatureStore.build(net_, at_side(pool, side), data_folder(data_dir) / "features", runtime)
    features, notes = store.features, [note]
    looks, headers = look(pool.images), read_headers(pool)

    rows = sample(len(pool), seed)
    originals = pool.images.take(rows).numpy()
    changed = copies(originals)
    made = at_side(replace(pool, images=ArrayImages(changed)), side)
    bar = bar_of(originals, changed, features[rows], embed(net_, made, np.arange(len(changed)), runtime))
    pairs = find_pairs(looks, features, bar, store.search)

    labels = given_labels(pool)
    doubts = doubts_of(features, pool, learner, notes)
    shows_nothing = blank(looks)
    scores = off_topic(features, labels, seed)
    scores[shows_nothing.rows] = 0  # said already
    part = np.zeros(len(pool), dtype=np.int64)
    for number, mine in enumerate((pool.train, pool.valid, pool.test, pool.dropped)):
        part[mine] = number
    return Audit(pool, net_.name, doubts, pairs, bar, part, _far(scores), shows_nothing, odd_sizes(headers),
                 odd_shapes(headers), odd_colors(looks, headers), tuple(notes))


def given_labels(pool: Pool) -> IntArray:
    """int64 [N]: the labels that are there to be doubted, those that train may use and those of valid and test; -1
    where there is none."""
    labels = np.maximum(pool.labels, -1)
    for rows in (pool.valid, pool.test):
        labels[rows] = pool.truth[rows]
    return labels


def doubts_of(features: ArrayLike, pool: Pool, learner: str, notes: list[str]) -> Doubts | None:
    """Which labels are doubtful; None, and a note, where there is too little to compare. features: [N, D]."""
    rows, labels = matrix(features, "features"), given_labels(pool)
    own = np.full(len(pool), -1)
    own[pool.train] = labels[pool.train]
    counts = np.bincount(own[own >= 0], minlength=pool.classes)
    if not len(counts) or (counts > 1).sum() < 2:
        notes.append("labels are not looked at: that takes two classes or more with two labels each in train"
                     if (labels >= 0).any() else "no image has a label: labels are not looked at")
        return None
    best = None
    for name in _to_try(learner, counts, rows.shape[1], notes):
        fit = DOUBTERS[name]
        held, probs = cross_fitted(rows, own, pool.classes, fit)
        agreement = float((probs.argmax(axis=1) == own[held]).mean())
        if best is None or agreement > best[3]:
            best = name, fit, (held, probs), agreement
    assert best is not None
    name, fit, (held, probs), agreement = best
    others = np.concatenate([pool.valid, pool.test])
    others = others[labels[others] >= 0]
    if len(others):
        held, probs = np.concatenate([held, others]), np.concatenate(
            [probs, fit(rows, own, rows[others], pool.classes)])
    if left := int((own >= 0).sum()) - int(np.isin(held, pool.train).sum()):
        notes.append(f"{left} labels are the only ones of their class, and not looked at")
    found = doubt(labels[held], probs)
    if agreement < WEAK and found.wrong.any():
        notes.append(f"the {name} that doubts labels agrees with only {agreement:.0%} of those it had not seen: of its "
                     "doubts many are its own mistakes; more labels, or a net that knows such images, help")
    order = np.lexsort((held, -found.score, ~found.wrong))
    return Doubts(held[order], labels[held][order], found.likelier[order], found.score[order], found.wrong[order],
                  name, agreement)


def _to_try(learner: str, counts: IntArray, dim: int, notes: list[str]) -> tuple[str, ...]:
    """The names of the learners to choose from. counts: int64 [C], labels of each class."""
    if learner != "auto":
        return (learner,)
    if int(counts.sum()) * dim * len(counts) <= QUICK:
        return tuple(DOUBTERS)
    notes.append(f"labels are doubted by knn: a probe of {len(counts):,} classes on {counts.sum():,} labels takes long "
                 "(--learner probe takes one all the same)")
    return ("knn",)


def _far(scores: FloatArray) -> Odd:
    """Images whose distance is far above the usual one, in units of the usual spread (by medians)."""
    usual = float(np.median(scores))
    spread = 1.4826 * float(np.median(np.abs(scores - usual)))
    rows = np.flatnonzero(scores > usual + FAR * max(spread, 1e-6))
    rows = rows[np.argsort(-scores[rows], kind="stable")]
    return Odd(rows, scores[rows].astype(np.float64),
               [f"distance {score:.3f}, usually {usual:.3f} ± {spread:.3f}" for score in scores[rows]])
