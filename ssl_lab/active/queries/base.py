"""What a query is: a function from arrays to the ids of the images to label next. Queries never see models."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, ClassVar, Literal, get_args

import numpy as np
from numpy.typing import NDArray

from ssl_lab.active.queries.share import Share, first
from ssl_lab.active.queries.view import UNLABELED, IntArray, PoolView
from ssl_lab.errors import UsageError
from ssl_lab.seeds import seed_of

Reads = Literal["whole", "blocks", "shares"]
READS: tuple[Reads, ...] = get_args(Reads)


class Query:
    """Base of every query. A subclass names what it `needs` and writes `select`.

    Calling it checks the budget and returns global ids in the order in which they were chosen, a pure function of
    (view, budget, seed).

    >>> class Newest(sl.Query):
    ...     name, family, paper, arxiv = "newest", "baseline", "", ""
    ...     def select(self, view, budget, seed):
    ...         return view.candidates[::-1][:budget]
    >>> Newest()(sl.PoolView(np.array([0, -1, -1, -1])), budget=2)
    array([3, 2])
    """

    name: ClassVar[str]
    family: ClassVar[str]  # uncertainty, diversity, hybrid, training, baseline
    paper: ClassVar[str]
    arxiv: ClassVar[str]
    needs: frozenset[str] = frozenset()
    uses_classes: bool = False  # of the labeled rows, not only that they have one
    fewer: bool = False  # rows than the budget may come back
    reads: Reads = "whole"  # its arrays, or blocks or shares of them: see `__call__`

    def __init_subclass__(cls, **words: Any) -> None:
        given: Any = cls.needs
        if isinstance(given, str | list | tuple | set):
            cls.needs = frozenset([given] if isinstance(given, str) else given)

    def select(self, view: PoolView, budget: int, seed: int) -> IntArray:
        """`budget` different row numbers out of `view.candidates`, in selection order."""
        raise NotImplementedError

    def notes(self, view: PoolView, budget: int) -> list[str]:
        """What it decides for a person here, and how to decide otherwise: a line each."""
        return []

    def __call__(self, view: PoolView, budget: int, seed: int = 0) -> IntArray:
        """int64 [budget], global ids, the same on all ranks. UsageError if the budget exceeds the candidates or an
        array is missing, and AssertionError if `select` breaks its promise.

        A query that `reads` its arrays whole is given float32 ones, which takes a copy of what is float16; one that
        reads them in blocks, by `PoolView.read`, gets them as they are stored. If these are the blocks of a `Share`,
        ranks may choose together; other queries refuse to (UsageError).
        """
        candidates = len(view.candidates)
        if not 1 <= budget <= candidates:
            raise UsageError(f"a budget of {budget} was asked for, but {candidates} unlabeled rows can be chosen; "
                             f"expected 1 to {candidates}")
        for name in sorted(self.needs):
            view.need(name)
        if view.ranks.world > 1 and self.reads != "shares":
            raise UsageError(f"{self.name} is not computed by several ranks, of which there are {view.ranks.world}; "
                             "start it without torchrun")
        if self.reads == "whole":
            view = view.widened(self.needs)
        rows = self.select(view, budget, seed)
        for broken, what in ((len(rows) > budget or (len(rows) < budget and not self.fewer),
                              f"chooses {len(rows)} rows for a budget of {budget}"),
                             (len(np.unique(rows)) < len(rows), "chooses a row twice"),
                             ((view.labels[rows] != UNLABELED).any(), "chooses rows that are labeled or ignored")):
            if broken:
                raise AssertionError(f"the query {type(self).__name__} {what}")
        return view.ids_of(rows)


class Wrapper(Query):
    """Base of queries around queries. UsageError for what is not of the kind that it wraps, and for queries that may
    choose fewer rows than they are asked for: a limit holds only where it is outermost.

    Args:
        inner: the queries that it is around.
        needs: names of arrays that it reads itself, beside those of `inner`.

    >>> class Odd(sl.active.Wrapper):
    ...     name, family, paper, arxiv = "odd", "baseline", "", ""
    ...     def __init__(self, query):
    ...         super().__init__(query)
    ...         self.query = query
    ...     def select(self, view, budget, seed):
    ...         return self.query.select(view, budget, seed + 1)
    >>> Odd(sl.active.Margin()).needs
    frozenset({'probs'})
    """

    wraps: ClassVar[type[Query]] = Query

    def __init__(self, *inner: Query, needs: Iterable[str] = ()) -> None:
        for query in inner:
            if not isinstance(query, self.wraps):
                raise UsageError(f"{self.name} wraps a query{' that scores rows' * (self.wraps is ScoreQuery)}; "
                                 f"{getattr(query, 'name', repr(query))} is none")
            if query.fewer:
                raise UsageError(f"{query.name} with a limit within {self.name}: put {query.name} outermost")
        self.needs = frozenset(needs).union(*(query.needs for query in inner))
        self.reads = min((type(self).reads, *(query.reads for query in inner)), key=READS.index)
        self.uses_classes = type(self).uses_classes or any(query.uses_classes for query in inner)


class ScoreQuery(Query):
    """A query that takes the rows of the highest scores. A subclass writes `scores`; wrappers reuse them.

    Attributes:
        drawn: whether a batch of several rows is drawn, p(i) ~ score_i, as `power` does, because the highest scores
            are of rows that are alike.

    >>> class Longest(sl.ScoreQuery):
    ...     name, family, paper, arxiv, needs = "longest", "uncertainty", "", "", frozenset({"embeddings"})
    ...     def scores(self, view, rows):
    ...         return np.square(view.embeddings[rows]).sum(axis=1)
    >>> Longest()(sl.PoolView(np.full(3, -1), embeddings=[[1, 0], [3, 4], [2, 2]]), budget=2)
    array([1, 2])
    """

    drawn: ClassVar[bool] = False

    def scores(self, view: PoolView, rows: IntArray) -> NDArray[Any]:
        """[len(rows)], how much each row is worth: at least 0, and higher is chosen sooner."""
        raise NotImplementedError

    def select(self, view: PoolView, budget: int, seed: int) -> IntArray:
        candidates = view.candidates
        share = Share(len(candidates), view.ranks)
        rows = candidates[share.start : share.stop]
        scores = np.asarray(self.scores(view, rows))
        if scores.shape != rows.shape or np.isnan(scores).any():
            raise UsageError(f"{self.name} scores {list(scores.shape)}, {np.isnan(scores).sum()} of them NaN; expected "
                             f"a number for each of {len(rows)} rows (probabilities may be 0, whose log is none)")
        return candidates[self.first(scores, budget, seed, share=share)]

    def first(self, scores: NDArray[Any], budget: int, seed: int, several: bool | None = None,
              share: Share | None = None) -> IntArray:
        """Positions of the `budget` scores [M] that come first, the first one first: the highest, or, where several
        rows are to be chosen (by default: if the budget is above 1), drawn ones if this query draws. See `highest`."""
        share = Share(len(scores)) if share is None else share
        if self.drawn and (budget > 1 if several is None else several):
            noise = rng(seed, "drawn").gumbel(size=share.total)
            scores = log_scores(scores) + noise[share.start : share.stop]
        return highest(scores, budget, seed, share)


def highest(scores: NDArray[Any], budget: int, seed: int, share: Share | None = None) -> IntArray:
    """Positions of the `budget` highest scores [M], highest first; equal scores in an order drawn from the seed.

    share: of several ranks, whose positions these scores are of; the result is out of all."""
    share = Share(len(scores)) if share is None else share
    place = places(seed, share)
    values = np.nan_to_num(-np.asarray(scores, dtype=np.float64), copy=False, nan=np.inf, posinf=np.inf, neginf=-np.inf)
    best = first(-values, place, budget)[0]
    found = [np.concatenate(of) for of in zip(*share.ranks.of_all((values[best], place[best], best + share.start)),
                                              strict=True)]
    chosen: IntArray = found[2][np.lexsort((found[1], found[0]))[:budget]]
    return chosen


def places(seed: int, share: Share) -> IntArray:
    """[M], this rank's positions' places in an order of all of them that is drawn from the seed: of equals, the first
    one is taken."""
    order = rng(seed, "ties").permutation(share.total)
    place = np.empty_like(order)
    place[order] = np.arange(share.total)
    return place[share.start : share.stop]


def log_scores(scores: NDArray[Any]) -> NDArray[np.float64]:
    """log of scores [M] >= 0; -infinity of 0. With Gumbel noise the highest are a draw without replacement, p(i) ~
    score_i (Kirsch et al. 2023, arXiv 2106.12059)."""
    values = np.asarray(scores, dtype=np.float64)
    return np.log(values, out=np.full(len(values), -np.inf), where=values > 0)


def check_counts(**numbers: object) -> None:
    """UsageError for an argument that is no whole number above 0."""
    for name, value in numbers.items():
        if not isinstance(value, int) or value < 1:
            raise UsageError(f"{name} = {value!r}; expected a whole number of at least 1")


def rng(seed: int, purpose: str) -> np.random.Generator:
    """Random numbers that are a pure function of seed and purpose."""
    return np.random.default_rng(seed_of(seed, purpose))


def scores_of(query: Query, view: PoolView, ids: IntArray) -> tuple[float, ...] | None:
    """The scores of ids (train rows, and those are sorted), from a query that has any."""
    if not isinstance(query, ScoreQuery):
        return None
    scores = query.scores(view, np.searchsorted(view.ids_of(np.arange(len(view))), ids))
    return tuple(np.asarray(scores, dtype=np.float64).tolist())


def described(query: Query) -> dict[str, Any]:
    """A query's name and plain arguments, and those of the queries within it."""
    plain = {key: described(value) if isinstance(value, Query) else value for key, value in vars(query).items()
             if isinstance(value, int | float | str | Query)}
    return {"name": query.name, **plain}
