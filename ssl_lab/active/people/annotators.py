"""Several people label: how reliable each is (Dawid and Skene 1979), and who should label which image next."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import linear_sum_assignment

from ssl_lab.active.queries.view import FloatArray, IntArray
from ssl_lab.errors import UsageError

SMOOTHING = 1.0  # of an answer, that each person is credited with in each cell of the table, the right one three times

Float64 = NDArray[np.float64]


class Reliability(NamedTuple):
    """How far each person can be relied on, and what their answers say together.

    Attributes:
        people: names, sorted.
        confusion: float64 [people, C, C], P(says l | class k); rows sum to 1.
        classes: float64 [images, C], the chances of each image's class.
        rows: int64 [images], which these are.
        prior: float64 [C], of the classes.

    >>> said = [(row, who, row % 2 if who == "ann" else 0) for row in range(20) for who in ("ann", "bob")]
    >>> sl.active.dawid_skene(said, classes=2).confusion.shape  # people, true class, what is said
    (2, 2, 2)
    """

    people: tuple[str, ...]
    confusion: Float64
    classes: Float64
    rows: IntArray
    prior: Float64

    def accuracy(self) -> dict[str, float]:
        """How often each person is right, on classes as frequent as here."""
        return {who: float(self.prior @ np.diag(self.confusion[n])) for n, who in enumerate(self.people)}


def dawid_skene(answers: Iterable[tuple[int, str, int]], classes: int, iterations: int = 200,
                tolerance: float = 1e-7) -> Reliability:
    """The people's confusion tables and the images' classes, by EM from the share of votes (Dawid and Skene 1979):

        E: P(class k of image i) ~ prior_k prod_(who, l) confusion[who, k, l]
        M: prior = mean of these; confusion[who, k, l] ~ sum of P(class k) over the images that who calls l

    Tables begin with a few right answers each (one for a wrong cell, three for the right one), so that one who said
    little is taken for somewhat reliable, not for perfect.

    Args:
        answers: (row, who, class); one for each row and person, or more that count each.
        classes: how many there are.
        iterations: at most so many.
        tolerance: EM ends when no image's chances move by more.

    Raises:
        UsageError: without answers, or for a class that is none of 0 .. classes - 1.

    >>> said = [(row, who, row % 2 if who != "cy" else 0) for row in range(20) for who in ("ann", "bob", "cy")]
    >>> found = sl.active.dawid_skene(said, classes=2)  # cy says 0 of all
    >>> {who: round(share, 1) for who, share in found.accuracy().items()}, found.classes.argmax(axis=1)[:4]
    ({'ann': 0.9, 'bob': 0.9, 'cy': 0.6}, array([0, 1, 0, 1]))
    """
    said = list(answers)
    if not said:
        raise UsageError("nobody has answered yet: there is nothing to tell people's reliability by")
    rows, image = np.unique([row for row, _, _ in said], return_inverse=True)
    people = tuple(sorted({who for _, who, _ in said}))
    person = np.array([people.index(who) for _, who, _ in said])
    label = np.array([each for _, _, each in said])
    if label.min() < 0 or label.max() >= classes:
        raise UsageError(f"an answer is class {label.min() if label.min() < 0 else label.max()}; expected 0 to "
                         f"{classes - 1}")
    start = np.zeros((len(rows), classes))
    np.add.at(start, (image, label), 1.0)
    chances = start / start.sum(axis=1, keepdims=True)
    known = SMOOTHING * (np.ones((classes, classes)) + 2 * np.eye(classes))
    for _ in range(iterations):
        prior = (chances.sum(axis=0) + 1) / (len(rows) + classes)
        counts = np.zeros((len(people), classes, classes)) + known
        np.add.at(counts.transpose(0, 2, 1), (person, label), chances[image])
        confusion = counts / counts.sum(axis=2, keepdims=True)
        logs = np.tile(np.log(prior), (len(rows), 1))
        np.add.at(logs, image, np.log(confusion[person, :, label]))
        before, chances = chances, np.exp(logs - logs.max(axis=1, keepdims=True))
        chances /= chances.sum(axis=1, keepdims=True)
        if np.abs(chances - before).max() < tolerance:
            break
    return Reliability(people, confusion, chances, rows.astype(np.int64), prior)


def assign(queries: Sequence[int], annotators: Sequence[str], reliability: Reliability | None = None,
           probs: FloatArray | None = None, done: Mapping[int, Iterable[str]] | None = None) -> dict[int, str]:
    """Who labels which image: the most right answers that are expected, while all get as many images (or one more).

    Exact (an assignment problem); of equal ones the earlier person, image by image.

    Args:
        queries: rows.
        annotators: names; one who is not in `reliability` counts as the mean of those who are.
        reliability: of `dawid_skene`; without it all are taken to be equally good.
        probs: [n, C], what the model thinks of each image: then people get images of classes that they know; without
            it, the class frequencies.
        done: row -> those who have labeled it already, who do not get it again; a row that all have labeled is left
            out.

    Raises:
        UsageError: without annotators or with a name twice.

    >>> sl.active.assign([10, 11, 12], ["ann", "bob"], done={10: ["ann"]})
    {10: 'bob', 11: 'ann', 12: 'ann'}
    """
    if not annotators or len(set(annotators)) < len(annotators):
        raise UsageError(f"annotators {', '.join(annotators) or 'none'}: expected different names, one at least")
    seen = {row: set(people) for row, people in (done or {}).items()}
    places = [n for n, row in enumerate(queries) if set(annotators) - seen.get(row, set())]
    if not places:
        return {}
    chance = np.ones((len(queries), len(annotators)))
    if reliability is not None:
        right = np.diagonal(reliability.confusion, axis1=1, axis2=2)  # [people, C]
        table = np.array([right[reliability.people.index(who)] if who in reliability.people else right.mean(axis=0)
                          for who in annotators])
        thought = np.tile(reliability.prior, (len(queries), 1)) if probs is None else np.asarray(probs, np.float64)
        chance = thought @ table.T
    for n, row in enumerate(queries):
        chance[n, [who in seen.get(row, ()) for who in annotators]] = -len(queries)
    each = -(-len(places) // len(annotators))
    seats = np.tile(np.arange(len(annotators)), each)  # the last turn may be left
    late = np.repeat(np.arange(each) == each - 1, len(annotators)) * 2.0 if len(places) % len(annotators) else 0.0
    image, seat = linear_sum_assignment(chance[places][:, seats] - late, maximize=True)
    chosen = {queries[places[n]]: int(seats[s]) for n, s in zip(image, seat, strict=True)}
    return {row: annotators[who] for row, who in chosen.items() if annotators[who] not in seen.get(row, set())}
