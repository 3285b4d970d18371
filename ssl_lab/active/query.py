"""What a query is: a function from arrays to the ids of the images to label next. Queries never see models."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any, ClassVar

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ssl_lab.batch import seed_of
from ssl_lab.errors import UsageError

IntArray = NDArray[np.int64]
FloatArray = NDArray[np.float32]
UNLABELED, IGNORED = -1, -2

# What a query may need beside the labels. N rows, D features, C classes, S samples.
ARRAYS = {
    "embeddings": "[N, D], features of each row",
    "probs": "[N, C], predicted probabilities; rows sum to 1",
    "mc_probs": "[N, S, C], probabilities by S dropout samples or committee members",
    "predicted_loss": "[N], the loss that a method's loss head predicts",
    "head_weight": "[C, D], of the linear classifier on the embeddings",
    "head_bias": "[C], of the same",
}


@dataclass(frozen=True, eq=False)
class PoolView:
    """What a query sees: N rows, what is known of their labels, and the arrays that queries asked for.

    labels: int [N], a class, -1 = unlabeled (may be chosen), -2 = ignored. ids: int [N], the global id of each row
    (default: its number). The other arrays are those of `ARRAYS`: floats, kept as they are if float32 (a memory
    map stays one), None where nobody asked. Raises UsageError for wrong shapes, repeated ids, and values that are
    not finite, naming the first such id.
    """

    labels: IntArray
    ids: IntArray | None = None
    embeddings: FloatArray | None = None
    probs: FloatArray | None = None
    mc_probs: FloatArray | None = None
    predicted_loss: FloatArray | None = None
    head_weight: FloatArray | None = None
    head_bias: FloatArray | None = None

    def __post_init__(self) -> None:
        labels = np.asarray(self.labels)
        if labels.ndim != 1 or not np.issubdtype(labels.dtype, np.integer) or (labels < IGNORED).any():
            raise UsageError(f"labels have shape {labels.shape} and type {labels.dtype}; expected integers [N]: "
                             "classes, -1 = unlabeled, -2 = ignored")
        ids = np.arange(len(labels)) if self.ids is None else np.asarray(self.ids)
        if ids.shape != labels.shape or len(np.unique(ids)) != len(ids):
            raise UsageError(f"ids have shape {ids.shape} for {len(labels)} labels; expected one id for each row, "
                             "no two the same")
        object.__setattr__(self, "labels", labels.astype(np.int64, copy=False))
        object.__setattr__(self, "ids", ids.astype(np.int64, copy=False))
        for name, shape in ARRAYS.items():
            value = getattr(self, name)
            if value is not None:
                object.__setattr__(self, name, self._checked(name, value, shape))

    def _checked(self, name: str, value: ArrayLike, shape: str) -> FloatArray:
        array = np.asanyarray(value)
        if array.dtype != np.float32:
            array = array.astype(np.float32)
        by_row = shape.startswith("[N")
        if array.ndim != shape.partition("]")[0].count(",") + 1 or (by_row and len(array) != len(self)):
            raise UsageError(f"{name} have shape {list(array.shape)} for {len(self)} rows; expected {shape}")
        sums = array.reshape(len(array), -1).sum(axis=1)  # not finite if any of a row is not, and cheaper to test
        if not np.isfinite(sums).all():
            rows = np.flatnonzero(~np.isfinite(array.reshape(len(array), -1)).all(axis=1))
            if len(rows):
                which = f"id {self.ids_of(rows[:1])[0]}" if by_row else f"row {rows[0]}"
                raise UsageError(f"{name} of {which} hold NaN or infinity ({len(rows)} such rows); repair or drop them")
        return array

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def candidates(self) -> IntArray:
        """int64, the row numbers that may be chosen."""
        return np.flatnonzero(self.labels == UNLABELED)

    @property
    def labeled(self) -> IntArray:
        """int64, the row numbers that have a label."""
        return np.flatnonzero(self.labels >= 0)

    def ids_of(self, rows: IntArray) -> IntArray:
        """The global ids of rows."""
        assert self.ids is not None  # set in __post_init__
        return self.ids[rows]

    def need(self, name: str) -> FloatArray:
        """The array of this name. UsageError if it was not given."""
        value: FloatArray | None = getattr(self, name)
        if value is None:
            given = [f.name for f in fields(self) if f.name in ARRAYS and getattr(self, f.name) is not None]
            raise UsageError(f"this query needs {name} {ARRAYS[name]}; given: {', '.join(given) or 'labels alone'}")
        return value


class Query:
    """Base of every query. A subclass names what it `needs` and writes `select`.

    Calling it checks the budget and returns global ids in the order in which they were chosen, a pure function of
    (view, budget, seed).
    """

    name: ClassVar[str]
    family: ClassVar[str]  # uncertainty, diversity, hybrid, training, baseline
    paper: ClassVar[str]
    arxiv: ClassVar[str]
    needs: frozenset[str] = frozenset()
    uses_classes: ClassVar[bool] = False  # of the labeled rows, not only that they have one

    def select(self, view: PoolView, budget: int, seed: int) -> IntArray:
        """`budget` different row numbers out of `view.candidates`, in selection order."""
        raise NotImplementedError

    def __call__(self, view: PoolView, budget: int, seed: int = 0) -> IntArray:
        """int64 [budget], global ids. UsageError if the budget exceeds the candidates or an array is missing."""
        candidates = len(view.candidates)
        if not 1 <= budget <= candidates:
            raise UsageError(f"a budget of {budget} was asked for, but {candidates} unlabeled rows can be chosen; "
                             f"expected 1 to {candidates}")
        for name in sorted(self.needs):
            view.need(name)
        return view.ids_of(self.select(view, budget, seed))


class ScoreQuery(Query):
    """A query that takes the rows of the highest scores. A subclass writes `scores`; wrappers reuse them."""

    def scores(self, view: PoolView, rows: IntArray) -> NDArray[Any]:
        """[len(rows)], how much each row is worth: at least 0, and higher is chosen sooner."""
        raise NotImplementedError

    def select(self, view: PoolView, budget: int, seed: int) -> IntArray:
        candidates = view.candidates
        return candidates[highest(self.scores(view, candidates), budget, seed)]


def highest(scores: NDArray[Any], budget: int, seed: int) -> IntArray:
    """Positions of the `budget` highest scores [M], highest first; equal scores in an order drawn from the seed."""
    order = rng(seed, "ties").permutation(len(scores))
    best: IntArray = order[np.argsort(-scores[order], kind="stable")[:budget]]
    return best


def rng(seed: int, purpose: str) -> np.random.Generator:
    """Random numbers that are a pure function of seed and purpose."""
    return np.random.default_rng(seed_of(seed, purpose))
