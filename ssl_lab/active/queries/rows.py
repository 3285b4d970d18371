"""Some rows of an array of a view, read when they are asked for."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from ssl_lab.active.queries.view import FloatArray, IntArray, PoolView


class Rows:
    """These rows [N, D] of an array of a view: indexed by slices or integers they are float32 copies, and `change`d.

    So a float16 file of which a query needs a part at a time is never in memory whole.
    """

    def __init__(self, view: PoolView, name: str, rows: IntArray,
                 change: Callable[[FloatArray], FloatArray] | None = None) -> None:
        self.view, self.name, self.rows, self.change = view, name, rows, change
        self.shape = (len(rows), view.need(name).shape[1])

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, which: slice | IntArray) -> FloatArray:
        found = self.view.read(self.name, self.rows[which])
        return found if self.change is None else self.change(found)


def rows_of(view: PoolView, name: str, rows: IntArray) -> FloatArray | Rows:
    """The rows of an array: itself, if these are all and it is float32, else to be read."""
    stored = view.need(name)
    return stored if len(rows) == len(view) and stored.dtype == np.float32 else Rows(view, name, rows)
