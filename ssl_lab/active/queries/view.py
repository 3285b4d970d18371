"""What a query sees: the labels of a pool's rows, and the arrays that queries asked for."""

from __future__ import annotations

import copy
from collections.abc import Iterable
from dataclasses import dataclass, field, fields
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ssl_lab.active.queries.inputs import ARRAYS, checked
from ssl_lab.active.queries.share import ALONE
from ssl_lab.engine import Runtime
from ssl_lab.errors import UsageError

IntArray = NDArray[np.int64]
FloatArray = NDArray[np.float32]
UNLABELED, IGNORED = -1, -2


@dataclass(frozen=True, eq=False)
class PoolView:
    """What a query sees: N rows, what is known of their labels, and the arrays that queries asked for.

    Attributes:
        labels: int [N], a class, -1 = unlabeled (may be chosen), -2 = ignored.
        ids: int [N], the global id of each row (default: its number).
        embeddings, probs, mc_probs, view_probs, predicted_loss, head_weight, head_bias: floats, of the shapes in
            `ARRAYS`, kept as they are if float32 or float16 (a memory map stays one); None where nobody asked.
        ranks: that choose together, each of which has this view.

    Raises:
        UsageError: for shapes that are wrong or do not agree, repeated ids, values that are not finite or beyond
            1e15, and probabilities that are none, naming the first such id.

    >>> labels = np.array([3, -1, -1, -2])  # a class, two unlabeled rows, one that is ignored
    >>> view = sl.PoolView(labels, embeddings=np.eye(4))
    >>> view.candidates, view.labeled
    (array([1, 2]), array([0]))
    """

    labels: IntArray
    ids: IntArray | None = None
    embeddings: FloatArray | None = None
    probs: FloatArray | None = None
    mc_probs: FloatArray | None = None
    view_probs: FloatArray | None = None
    predicted_loss: FloatArray | None = None
    head_weight: FloatArray | None = None
    head_bias: FloatArray | None = None
    ranks: Runtime = field(default_factory=lambda: ALONE)

    def __post_init__(self) -> None:
        labels = np.asarray(self.labels)
        if labels.ndim != 1 or not np.issubdtype(labels.dtype, np.integer) or (labels < IGNORED).any():
            raise UsageError(f"labels have shape {labels.shape} and type {labels.dtype}; expected integers [N]: "
                             "classes, -1 = unlabeled, -2 = ignored")
        ids = np.arange(len(labels)) if self.ids is None else np.asarray(self.ids)
        if ids.shape != labels.shape or (self.ids is not None and len(np.unique(ids)) != len(ids)):
            raise UsageError(f"ids have shape {ids.shape} for {len(labels)} labels; expected one id for each row, "
                             "no two the same")
        object.__setattr__(self, "labels", labels.astype(np.int64, copy=False))
        object.__setattr__(self, "ids", ids.astype(np.int64, copy=False))
        arrays = {name: getattr(self, name) for name in ARRAYS if getattr(self, name) is not None}
        for name, array in checked(arrays, self.ids_of(np.arange(len(labels))), self.ranks).items():
            object.__setattr__(self, name, array)

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

    def need(self, name: str) -> NDArray[Any]:
        """The array of this name, as it was given. UsageError if it was not."""
        value: NDArray[Any] | None = getattr(self, name)
        if value is None:
            given = [f.name for f in fields(self) if f.name in ARRAYS and getattr(self, f.name) is not None]
            raise UsageError(f"this query needs {name} {ARRAYS[name]}; given: {', '.join(given) or 'labels alone'}")
        return value

    def read(self, name: str, rows: slice | IntArray) -> FloatArray:
        """A float32 copy of these rows of the array of this name."""
        stored = self.need(name)
        if isinstance(rows, np.ndarray) and len(rows) and (np.diff(rows) == 1).all():
            rows = slice(int(rows[0]), int(rows[-1]) + 1)  # at once, also from a file
        return np.array(stored[rows], dtype=np.float32)

    def widened(self, names: Iterable[str]) -> PoolView:
        """The view with these arrays in float32."""
        wide = copy.copy(self)
        for name in names:
            object.__setattr__(wide, name, np.asanyarray(self.need(name)).astype(np.float32, copy=False))
        return wide
