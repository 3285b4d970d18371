"""The active-learning loop: train, see, query, ask, record; again.

    for round in 0 .. rounds - 1:
        net = fit(pool, round)                    # not while there is no label: then a backbone's embeddings serve
        arrays = what the query needs of the net  # one pass over the train images, evaluation view
        ids = query(arrays, budget)               # on disk before anyone is asked
        oracle(ids) -> tell                       # each answer is on disk when `tell` returns
    fit once more, for the last point of the curve

A folder holds all of it: labels.jsonl (the ledger, unless the pool's has a file), round-000.json and so on,
abstained.json, classes.json, loop.json, images.npz. A loop that is made on the folder of another goes on where that
one stopped, in the middle of a round too: ids that were asked for and not answered are asked for again, not drawn
again. Images may have been added since: then ids are the new row numbers (`carry`).
"""

from __future__ import annotations

import dataclasses
import json
import math
import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import ArrayLike

from ssl_lab.active.arrays import version_of
from ssl_lab.active.people.answers import ASKED, CORRECTED, Answers, read_json
from ssl_lab.active.people.keys import Answer
from ssl_lab.active.people.oracle import Oracle, Readable, write_questions
from ssl_lab.active.queries.base import Query, described, scores_of
from ssl_lab.active.queries.view import IGNORED, UNLABELED, IntArray, PoolView
from ssl_lab.active.record import Round, asked_of, read_round
from ssl_lab.active.sight import Sight
from ssl_lab.active.stopping import Advice
from ssl_lab.active.watch import predicted, represented, stop_advice, watched
from ssl_lab.cost import measured
from ssl_lab.data import Pool, announce
from ssl_lab.engine import Result, Runtime, accuracy
from ssl_lab.engine.folder import check_same
from ssl_lab.errors import UsageError
from ssl_lab.files import write_text
from ssl_lab.machine import Precision
from ssl_lab.nets import Net
from ssl_lab.notes import at_most
from ssl_lab.seeds import seed_of

Fit = Callable[[Pool, int], Net | Result]
"""Trains on a pool's labels in round 0, 1, ...; should start afresh, and may resume a fit that was cut off."""


@dataclass
class ActiveLoop:
    """`run()` goes through all rounds with an oracle; `ask` and `tell` are its parts, for people and programs.

    `pool` is replaced by one with the durable ledger, and by one with more classes where `tell` founds any.

    Attributes:
        pool: the images and their labels so far.
        fit: trains on a pool's labels in round 0, 1, ..., see `Fit`.
        query: chooses `budget` images in each of `rounds` rounds.
        oracle: answers, see `people.oracle`; None if you `tell` the answers yourself.
        out: the loop's folder.
        seed: decides what is drawn.
        first: the query while there is no label, by default `query`; it may need embeddings, but nothing else.
        initial: how many images `first` chooses; by default `budget`.
        backbone: a net that gives the embeddings while no net is trained.
        embeddings: "net" takes them from the net that was trained, "backbone" from `backbone` in all rounds.
        new_classes: whether a name that `tell` does not know is a new class; else it is an error, perhaps a typo.
        config: the settings of `fit`, by name, which must be the same when the loop goes on.

    >>> pool = sl.load("digits").split(labels=20)
    >>> net = sl.net("tiny_4", classes=pool.class_names, style=pool.style)
    >>> query, oracle = sl.active.Margin(), sl.active.Truth(pool)
    >>> fit = lambda pool, number: net
    >>> loop = sl.ActiveLoop(pool, fit, query, oracle, budget=5, rounds=1, out="loop", device="cpu")
    >>> [(record.labels, len(record.ids)) for record in loop.run()]
    [(20, 5), (25, 0)]
    """

    pool: Pool
    fit: Fit
    query: Query
    oracle: Oracle | None = None
    budget: int = 20
    rounds: int = 10
    out: str | Path = "runs/active"
    seed: int = 0
    first: Query | None = None
    initial: int | None = None
    backbone: Net | None = None
    embeddings: Literal["net", "backbone"] = "net"
    new_classes: bool = False
    config: Mapping[str, Any] = field(default_factory=dict)
    device: str = "auto"
    precision: Precision = "auto"

    def __post_init__(self) -> None:
        if self.budget < 1 or self.rounds < 0 or (self.initial is not None and self.initial < 1):
            raise UsageError(f"budget={self.budget}, rounds={self.rounds}, initial={self.initial}: expected positive "
                             "numbers (no rounds: train and measure only)")
        if int(os.environ.get("WORLD_SIZE", "1")) > 1:
            raise UsageError("the active-learning loop runs in one process; start it without torchrun")
        self.out = self.folder = Path(self.out)
        self._settle()
        self._answers = Answers(self.pool, self.folder, self.new_classes)
        self.pool = self._answers.pool
        announce(self.pool)
        self.records = sorted(map(read_round, self.folder.glob("round-*.json")), key=lambda record: record.round)
        self.corrected: dict[int, tuple[str, str]] = {}
        self._how = "told"
        self._runtime: Runtime | None = None
        self._sight = Sight(self.backbone, self.embeddings, self.seed)
        self._sight.check(self._now, self._cold)
        self._sight.check(self.query, cold=False)

    def _settle(self) -> None:
        """Write down what this loop is, or check that the folder's loop is the same."""
        own = {"query": described(self.query), "budget": self.budget, "seed": self.seed,
               "first": self.first and described(self.first), "initial": self.initial, "embeddings": self.embeddings,
               **self.config}
        path = self.folder / "loop.json"
        if path.exists():
            check_same(read_json(path, {}), own, self.folder)
        else:
            write_text(path, json.dumps(own, indent=2) + "\n")

    @property
    def _cold(self) -> bool:
        """Whether there is nothing to train on: no label, or all the same where classes are founded."""
        return not len(self.pool.labeled) or self.pool.classes < 2

    @property
    def _now(self) -> Query:
        """The query of a round that begins now."""
        return self.first if self._cold and self.first is not None else self.query

    @property
    def runtime(self) -> Runtime:
        """Where nets compute."""
        if self._runtime is None:
            self._runtime = Runtime.start(self.device, self.precision)
        return self._runtime

    @property
    def pending(self) -> IntArray:
        """int64, the ids of the round now open that have no answer yet, in selection order."""
        ids = np.array(self.records[-1].ids if self.records else (), dtype=np.int64)
        waits = (self.pool.labels[ids] == UNLABELED) & ~np.isin(ids, self.abstained)
        open_: IntArray = ids[waits]
        return open_

    @property
    def abstained(self) -> IntArray:
        """int64, sorted: the ids that the oracle would not label. They stay unlabeled and are not asked for again."""
        return self._answers.abstained

    @property
    def advice(self) -> Advice:
        """How accurate the net is by the answers so far, what more would bring, and whether to stop; see `advise`."""
        return stop_advice(self.records, self.pool.labels)

    @property
    def finished(self) -> bool:
        """Whether all rounds are answered, or all images, and the last net is measured."""
        last = self.records[-1] if self.records else None
        return last is not None and not last.ids and (last.round >= self.rounds or not len(self._view({}).candidates))

    def run(self) -> list[Round]:
        """All rounds, or those until the oracle has no more answers for now: then `pending` says to what. Run it again
        when there are some. Returns the records, which `records` holds too."""
        if self.oracle is None:
            raise UsageError("run() needs an oracle; without one, use ask() and tell()")
        self.take_corrections()
        while len(pending := self.ask()):
            answers = self.oracle(asked_of(self.records[-1], pending, self.pool))
            for part in [answers] if isinstance(answers, Mapping) else ({i: answer} for i, answer in answers):
                self._hear(part)
            if len(self.pending) == len(pending):
                break
        return self.records

    def ask(self, n: int | None = None) -> IntArray:
        """int64: ids to label now, in selection order, at most n of them; empty when all rounds are done.

        They are the unanswered ones of the open round, the same until `tell` has answers. If none is open, this
        trains on the labels so far and opens the next.
        """
        if n is not None and n < 1:
            raise UsageError(f"ask({n}): expected at least 1")
        if not len(self.pending) and not self.finished:
            self._next_round()
        return self.pending[:n]

    def tell(self, ids: ArrayLike, labels: Sequence[Answer] | IntArray) -> None:
        """Record answers, all of which are durable when this returns. If it raises, no label was recorded.

        Args:
            ids: int [n], train rows, in any order, some or all of those asked for, or others; a later answer
                replaces an earlier one.
            labels: [n], see `Answer`: a class number or name, -2 (ignore), None (abstain), -1 (take back).
        """
        how, self._how = self._how, "told"
        self._answers.record(ids, labels, f"{how} in round {self.records[-1].round if self.records else 0}")
        self.pool = self._answers.pool

    def _hear(self, answers: Mapping[int, Answer], how: str = ASKED) -> None:
        """`tell` what the oracle says; `how` is noted beside it in the ledger."""
        self._how = how
        self.tell(list(answers), self._answers.in_words(answers.values()))

    def take_corrections(self) -> None:
        """Record what an oracle that can be read again says otherwise than when its answers were taken; `corrected` has
        both in words, by id. `run` begins with it. What was told over such an answer stays."""
        oracle: object = self.oracle
        if not isinstance(oracle, Readable):
            return
        asked = {i for record in self.records for i in record.ids}
        changed = self._answers.corrected(oracle.read(), asked)
        before = {i: self._answers.named(i) for i in changed}
        if changed:  # to abstain alone would leave a label as it is
            self._hear({i: UNLABELED for i, answer in changed.items() if answer is None}, CORRECTED)
            self._hear(changed, CORRECTED)
        self.corrected = {i: (said, self._answers.named(i)) for i, said in before.items()}

    def _next_round(self) -> None:
        """Train, measure, and, if rounds are left, choose."""
        number = sum(bool(record.ids) for record in self.records)
        choosing = number < self.rounds
        cold = self._cold
        budget = self.initial or self.budget if cold else self.budget
        view = self._view({})
        budget = min(budget, len(view.candidates))  # the last batch is what is left
        choosing = choosing and budget > 0
        query = self._now
        if choosing:
            self._sight.check(query, cold)
        seconds, learner = {}, None
        if not cold:
            start = time.perf_counter()
            with at_most(0):
                learner = self.fit(self.pool, number)
            seconds["fit"] = time.perf_counter() - start
        net = learner.method.predictor() if isinstance(learner, Result) else learner
        seen = {} if net is None else watched(net, self.pool, self.runtime, self.seed)
        record = Round(number, len(self.pool.labeled), self._accuracy(learner),
                       None if net is None else version_of(net), seconds=seconds, **seen)
        if choosing:
            start = time.perf_counter()
            view = self._view(self._sight.arrays(query, learner, net, self.pool, number, self.runtime))
            seconds["arrays"] = time.perf_counter() - start
            ids, cost = measured(lambda: query(view, budget, seed_of(self.seed, "query", number)))
            seconds["query"] = cost.seconds
            eyes = net or self.backbone
            record = replace(record, query=query.name, ids=tuple(ids.tolist()), scores=scores_of(query, view, ids),
                             version=None if eyes is None else version_of(eyes), memory=cost.memory,
                             **predicted(net, self.pool, ids, self.runtime), **represented(view, ids))
        write_text(self.folder / f"round-{number:03}.json", json.dumps(dataclasses.asdict(record)) + "\n")
        self.records[number:] = [record]

    def _view(self, arrays: Mapping[str, Any]) -> PoolView:
        """The train rows. Abstained ones may not be chosen again."""
        rows, labels = self.pool.train, self.pool.labels[self.pool.train]
        labels = np.where(np.isin(rows, self.abstained), IGNORED, labels)
        return PoolView(labels, rows, **arrays)

    def _accuracy(self, learner: Net | Result | None) -> float | None:
        if learner is None or not len(self.pool.test):
            return None
        value = (learner.test_accuracy if isinstance(learner, Result)
                 else accuracy(learner.to(self.runtime.device), self.pool, self.pool.test, self.runtime))
        return None if math.isnan(value) else float(value)

    def write_asked(self) -> Path:
        """Writes asked.csv, the pending ids and paths with a column `label`, empty but for what stands there already:
        `FromFile` reads it filled in."""
        write_questions(self.folder / "asked.csv", asked_of(self.records[-1], self.pending, self.pool))
        return self.folder / "asked.csv"
