"""The model behind the labeling page: fitted again in the background while people label."""

from __future__ import annotations

import sys
import threading

import numpy as np

from ssl_lab.active.queries.base import Query
from ssl_lab.active.queries.view import IGNORED, UNLABELED, PoolView
from ssl_lab.active.stopping import Estimate, advise
from ssl_lab.active.watch import held_out_estimate
from ssl_lab.errors import UsageError
from ssl_lab.features import linear_probe
from ssl_lab.label.session import Session, Thought
from ssl_lab.seeds import seed_of

GIVEN = frozenset(["embeddings", "probs"])
"""What a query may need here."""


class Thinker(threading.Thread):
    """Fits a linear probe to the labels, and lets a query choose the next images, whenever `every` labels are new or
    the chosen ones run out.

    first: the query while fewer than two classes are known. ahead: images chosen at a time.
    """

    def __init__(self, session: Session, query: Query, first: Query, every: int = 10, ahead: int = 30,
                 seed: int = 0) -> None:
        for each in (query, first):
            if each.needs - GIVEN:
                raise UsageError(f"{each.name} needs {', '.join(sorted(each.needs - GIVEN))}, which the labeling page "
                                 "does not have; take a query of embeddings and probabilities, such as typiclust, "
                                 "margin or badge")
        if first.needs - {"embeddings"}:
            raise UsageError(f"{first.name} needs probabilities, which there are none of before two classes are known")
        super().__init__(daemon=True, name="thinker")
        self.session, self.query, self.first = session, query, first
        self.every, self.ahead, self.seed = every, ahead, seed
        self._rounds = 0
        self._curve: dict[int, Estimate] = {}  # by number of labels, ascending
        self._ending = False

    def run(self) -> None:
        session = self.session
        while not self._ending:
            try:
                thought = self.think()
            except UsageError as error:  # of a query, say; the page goes on with the order that it has
                print(f"note: {error}", file=sys.stderr)
                thought = None
            with session.changed:
                if thought is not None:
                    session.thought = thought
                since = len(session.pool.labeled) if thought is None else thought.labels
                while not self._ending and not self._due(since):
                    session.changed.wait()

    def end(self) -> None:
        """Ends the thread, after what it does now."""
        with self.session.changed:
            self._ending = True
            self.session.changed.notify_all()

    def _due(self, since: int) -> bool:
        """Whether it is time to think again."""
        pool, thought = self.session.pool, self.session.thought
        new = abs(len(pool.labeled) - since)
        left = sum(pool.labels[row] == UNLABELED for row in thought.order)
        return new >= self.every or (new > 0 and left < min(self.ahead // 3, 5))

    def think(self) -> Thought:
        """A fit to the labels as they are now."""
        with self.session.changed:
            pool = self.session.pool
            labels = pool.labels[pool.train].copy()
        embeddings, classes = self.session.embeddings, pool.classes
        known = np.where(labels == IGNORED, UNLABELED, labels)
        warm = len(np.unique(known[known >= 0])) > 1
        probs = linear_probe(embeddings, known, embeddings, classes) if warm else None
        query = self.query if warm or not self.query.needs - {"embeddings"} else self.first
        view = PoolView(labels, pool.train, embeddings=embeddings, probs=probs)
        budget = min(self.ahead, len(view.candidates))
        self._rounds += 1
        order = query(view, budget, seed_of(self.seed, "label", self._rounds)).tolist() if budget else []
        count = int((labels >= 0).sum())
        accuracy = held_out_estimate(embeddings, known, classes) if warm else None
        if accuracy is not None:
            self._curve = {n: each for n, each in self._curve.items() if n < count} | {count: accuracy}
        advice = advise([*self._curve], [*self._curve.values()]) if accuracy is not None else None
        return Thought(count, probs, tuple(order), accuracy, None if advice is None else advice.lines[1])
