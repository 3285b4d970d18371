"""Rows in blocks, shared among ranks, and the places of equal values: what large pools are chosen from."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray

from ssl_lab.data import IntArray
from ssl_lab.engine import Runtime

T = TypeVar("T")
ROWS = 8192  # of a block
ALONE = Runtime(torch.device("cpu"), "fp32", "queries compute in it")


class Share:
    """The positions out of `total` that are this rank's, `start` to `stop`, in blocks of `size`.

    Blocks have the same borders for any number of ranks: what is computed of a block, by matrix products too, is the
    same number whoever computes it, and what is added up in the order of the blocks is the same sum.
    """

    def __init__(self, total: int, ranks: Runtime = ALONE, size: int | None = None) -> None:
        self.total, self.ranks, self.size = total, ranks, size or ROWS
        count = -(-total // self.size)
        self.start, self.stop = (min(self.size * (count * each // ranks.world), total)
                                 for each in (ranks.rank, ranks.rank + 1))

    def __len__(self) -> int:
        return self.stop - self.start

    def __iter__(self) -> Iterator[slice]:
        """The blocks: slices of all positions."""
        for start in range(self.start, self.stop, self.size):
            yield slice(start, min(start + self.size, self.stop))

    def own(self, part: slice) -> slice:
        """A block's slice of this rank's positions."""
        return slice(part.start - self.start, part.stop - self.start)

    def of_all(self, parts: Sequence[T]) -> list[T]:
        """What each rank has of each of its blocks, in the order of the blocks."""
        return [each for found in self.ranks.of_all(list(parts)) for each in found]


def first(values: NDArray[Any], place: IntArray, count: int) -> tuple[IntArray, tuple[float, int]]:
    """Positions of the `count` highest of values [M], of equal ones those of the lowest place [M] first, in no order;
    and what the best of the others has: its negative value, and its place."""
    if count >= len(values):
        return np.arange(len(values)), (np.inf, 0)
    border = -np.partition(-values, count)[count]
    above, equal = np.flatnonzero(values > border), np.flatnonzero(values == border)
    wanted = count - len(above)
    equal = equal[np.argpartition(place[equal], wanted)]
    return np.append(above, equal[:wanted]), (-float(border), int(place[equal[wanted]]))
