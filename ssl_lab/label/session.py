"""Who labeled what, what comes next, and what the model guesses: the labeling page without the page."""

from __future__ import annotations

import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from ssl_lab.active.people.annotators import Reliability, assign, dawid_skene
from ssl_lab.active.people.answers import Answers
from ssl_lab.active.people.opinions import UNDO, opinions
from ssl_lab.active.queries.view import IGNORED, UNLABELED, FloatArray, IntArray
from ssl_lab.data import Pool
from ssl_lab.data.ledger import Entry
from ssl_lab.errors import UsageError
from ssl_lab.features.search import unit

HELD = 300.0
"""Seconds for which an image that one labeler was given is not given to another."""


@dataclass(frozen=True)
class Thought:
    """What is known once the model has been fitted to some labels. labels: how many. probs: float32 [train rows, C],
    None before two classes are known. order: the rows to label next, the best first. accuracy: (estimate, low, high)
    on the unlabeled images by cross-validation, if labels allow one. more: what more labels would bring, a sentence."""

    labels: int = 0
    probs: FloatArray | None = None
    order: tuple[int, ...] = ()
    accuracy: tuple[float, float, float] | None = None
    more: str | None = None


@dataclass
class Labeler:
    """What is remembered of a person while the server runs."""

    skipped: set[int] = field(default_factory=set)
    held: dict[int, float] = field(default_factory=dict)


class Session:
    """The labels of a pool's train images in a folder, given by several people at once; safe to call from threads.

    A label is durable when `answer` returns. neighbors: of a row of the pool, those most like it, the nearest first; it
    is asked for more than are shown. twice: share of the images that a person is given although another one has labeled
    them, to see how far they agree. annotators: people among whom the chosen images are dealt out (see `assign`),
    those of them who are here: each gets first what the others know less of.
    """

    def __init__(self, pool: Pool, folder: Path, embeddings: FloatArray, twice: float = 0.0,
                 annotators: Sequence[str] = ()) -> None:
        if not 0 <= twice < 1:
            raise UsageError(f"twice={twice:g}: expected a share from 0 to below 1")
        if annotators:
            assign([], annotators)  # which says what is wrong with them
        self.folder, self.twice, self.annotators = folder, twice, tuple(annotators)
        self.embeddings = unit(embeddings)
        self.thought = Thought()
        self.changed = threading.Condition()
        self._answers = Answers(pool, folder, new_classes=True)
        self._people: dict[str, Labeler] = {}
        self._dealt: tuple[Thought | None, dict[int, str]] = (None, {})
        self._place = {int(row): place for place, row in enumerate(pool.train)}

    @property
    def pool(self) -> Pool:
        """The pool with the labels and classes so far."""
        return self._answers.pool

    def answer(self, me: str, rows: Sequence[int], label: str | int | None, retry: bool = False) -> None:
        """Label `rows` as `me` says: a class name (a new one founds a class), or -2 to ignore them. Durable on return.

        retry: the same answer was sent before, and whether it arrived is not known: it counts once. UsageError if a row
        is no train image or the label is empty.
        """
        if isinstance(label, str):
            label = " ".join(label.split())
        if label in ("", None) or label == UNLABELED:
            raise UsageError("a label is missing: expected the name of a class, or -2 to ignore the image")
        with self.changed:
            if not (retry and self._is_last(me, rows, label)):
                self._answers.record(list(rows), [label] * len(rows), me)
            for row in rows:
                self._person(me).skipped.discard(row)
            self.changed.notify_all()

    def skip(self, me: str, row: int) -> None:
        """Do not show this image to `me` again, until there are no others."""
        with self.changed:
            self._person(me).skipped.add(row)

    def undo(self, me: str) -> list[int]:
        """Take back the last answer of `me`, durably: its rows have the labels from before. Returns them."""
        with self.changed:
            done, before = self._stack(me)
            if not done:
                return []
            entry = done[-1]
            earlier = before[len(done) - 1]
            rows: list[int] = entry.indices.tolist()
            self.pool.record(rows, [earlier.get(row, UNLABELED) for row in rows], me + UNDO)
            self.changed.notify_all()
            return rows

    def next(self, me: str, count: int = 1, besides: Sequence[int] = ()) -> list[int]:
        """Up to `count` rows for `me` to label, besides those that the page has; none if all are labeled."""
        with self.changed:
            person, now = self._person(me), time.monotonic()
            labels = self.pool.labels
            held = {row for name, other in self._people.items() if name != me
                    for row, until in other.held.items() if until > now}
            found: list[int] = []
            for row in self._candidates(me, labels):
                if len(found) == count:
                    break
                if row not in held and row not in besides and row not in found:
                    found.append(row)
            if not found and person.skipped - set(besides):
                person.skipped.clear()
                return self.next(me, count, besides)
            person.held = dict.fromkeys((*besides, *found), now + HELD)
            return found

    def _candidates(self, me: str, labels: IntArray) -> Any:
        """Rows in the order in which `me` should see them."""
        skipped = self._person(me).skipped
        train = self.pool.train
        rest = np.random.default_rng(0).permutation(train)  # which no query has ordered yet
        owner = self.dealt()
        order = [*self.thought.order, *rest.tolist()]
        if me in owner.values():  # what is dealt to others comes last
            order.sort(key=lambda row: -1 if owner.get(row) == me else int(row in owner))
        chosen = [row for row in dict.fromkeys(order) if labels[row] == UNLABELED]
        again = iter(self._of_others(me) if self.twice else ())
        owed = 0.0
        for row in chosen:
            if row in skipped:
                continue
            owed += self.twice / (1 - self.twice)  # seconds for each first
            while owed >= 1:
                owed -= 1
                other = next(again, None)
                if other is not None:
                    yield other
            yield row
        yield from again

    def dealt(self) -> dict[int, str]:
        """row -> who should label it, of those that were chosen last; {} without `annotators`."""
        thought, labels = self.thought, self.pool.labels
        if self._dealt[0] is not thought:
            rows = [row for row in thought.order if labels[row] == UNLABELED and row in self._place]
            probs = None if thought.probs is None else thought.probs[[self._place[row] for row in rows]]
            now = time.monotonic()
            here = [who for who in self.annotators if any(until > now for until in self._person(who).held.values())]
            people = here or self.annotators
            self._dealt = thought, assign(rows, people, self._reliability(probs), probs) if people and rows else {}
        return self._dealt[1]

    def _reliability(self, probs: FloatArray | None) -> Reliability | None:
        """Of those who label, by the images that several of them have labeled; None where there is none."""
        classes = self.pool.classes if probs is None else probs.shape[1]
        said = {row: {who: label for who, label in by.items() if 0 <= label < classes}
                for row, by in self.opinions().items()}
        if not any(len(by) > 1 for by in said.values()):
            return None
        return dawid_skene(((row, who, label) for row, by in said.items() for who, label in by.items()), classes)

    def _of_others(self, me: str) -> list[int]:
        """Rows that others have labeled and `me` has not."""
        return [row for row, said in self.opinions().items() if me not in said]

    def similar(self, row: int, count: int = 12) -> list[int]:
        """The unlabeled rows most like this one by the cosine of their embeddings, the nearest first."""
        place = self._place.get(row)
        if place is None:
            return []
        cosines = self.embeddings @ self.embeddings[place]
        train, labels = self.pool.train, self.pool.labels
        cosines[(labels[train] != UNLABELED) | (train == row)] = -np.inf
        best = np.argsort(-cosines, kind="stable")[:count]
        return [int(train[at]) for at in best if np.isfinite(cosines[at])]

    def guess(self, row: int) -> list[tuple[str, float]]:
        """Classes and their probabilities by the model, the likeliest first; nothing before it knows two classes."""
        probs, place = self.thought.probs, self._place.get(row)
        if probs is None or place is None:
            return []
        order = np.argsort(-probs[place], kind="stable")
        return [(self.pool.class_names[at], float(probs[place][at])) for at in order]

    def opinions(self) -> dict[int, dict[str, int]]:
        """row -> who -> what they said last; without those who took it back."""
        return {row: {who: int(vote.answer or 0) for who, vote in by.items()}
                for row, by in opinions(self.pool.ledger.entries).items()}

    def said(self, me: str, rows: Sequence[int]) -> list[int]:
        """Those of `rows` of which `me` has said something."""
        opinions = self.opinions()
        return [row for row in rows if me in opinions.get(row, {})]

    def progress(self, me: str = "") -> Mapping[str, Any]:
        """Counts, for the page: see the code."""
        labels, train, opinions = self.pool.labels, self.pool.train, self.opinions()
        several = [list(by.values()) for by in opinions.values() if len(by) > 1]
        counts = np.bincount(labels[self.pool.labeled], minlength=self.pool.classes).tolist()
        return {"name": self.pool.name, "images": len(train), "labeled": len(self.pool.labeled),
                "ignored": int((labels[train] == IGNORED).sum()), "mine": sum(me in by for by in opinions.values()),
                "classes": list(self.pool.class_names), "counts": counts, "accuracy": self.thought.accuracy,
                "more": self.thought.more,
                "fitted": self.thought.labels, "people": len({who for by in opinions.values() for who in by}),
                "both": len(several), "agree": sum(len(set(each)) == 1 for each in several)}

    def _person(self, me: str) -> Labeler:
        return self._people.setdefault(me, Labeler())

    def _is_last(self, me: str, rows: Sequence[int], label: str | int | None) -> bool:
        """Whether this is what `me` said last."""
        done, _ = self._stack(me)
        if not done or done[-1].indices.tolist() != list(rows):
            return False
        value = self.pool.class_names.index(label) if label in self.pool.class_names else label
        return bool((done[-1].labels == value).all()) if isinstance(value, int) else False

    def _stack(self, me: str) -> tuple[list[Entry], list[dict[int, int]]]:
        """The answers of `me` that were not taken back, and for each what its rows were labeled before."""
        done: list[Entry] = []
        before: list[dict[int, int]] = []
        now: dict[int, int] = {}
        for entry in self.pool.ledger.entries:
            if entry.source == me + UNDO and done:
                done.pop()
                before.pop()
            elif entry.source == me:
                done.append(entry)
                before.append({row: now[row] for row in entry.indices.tolist() if row in now})
            now.update(zip(entry.indices.tolist(), entry.labels.tolist(), strict=True))
        return done, before

