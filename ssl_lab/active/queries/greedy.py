"""Greedy choice of rows whose values only fall as others are chosen: exact, and lazy (Minoux 1978)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ssl_lab.active.queries.base import places
from ssl_lab.active.queries.share import Share, first
from ssl_lab.active.queries.view import IntArray

HOT, OF = 4096, 1024  # positions that are looked at: so many, or one of so many if that is more

Now = Callable[[IntArray], NDArray[Any]]


def lazy_greedy(
    bounds: NDArray[Any],
    now: Now,
    choose: Callable[[int], None],
    budget: int,
    seed: int,
    batch: int = 64,
    share: Share | None = None,
) -> IntArray:
    """`budget` positions, each of the highest value at its turn; equal values in an order drawn from the seed.

    bounds: [M], at least the value of each position at the start; -infinity: not to be chosen. now(positions):
    their values after the choices so far. choose(position) is told of every choice.

    share: where ranks choose together, bounds and `now` are of a rank's own positions; the best of all ranks is
    chosen, and choose and the result are of positions among all.

    A value computed before is a bound on the value now. So only positions whose bound beats the best value known
    are computed again, in batches of `batch`, then twice as many; and the search is among the highest bounds until one
    outside may be higher.
    """
    share = Share(len(bounds)) if share is None else share
    own = _Own(bounds, places(seed, share), now, batch)
    chosen: list[int] = []
    while len(chosen) < budget:
        best = own.best(len(chosen))
        _, rank, position = min((each[:2], rank, each[2]) for rank, each in enumerate(share.ranks.of_all(
            (*best[:2], best[2] + share.start))))
        if rank == share.ranks.rank:
            own.remove(best[2])
        choose(position)
        chosen.append(position)
    return np.array(chosen, dtype=np.int64)


class _Own:
    """A rank's positions, and what is known of their values."""

    def __init__(self, bounds: NDArray[Any], place: IntArray, now: Now, batch: int) -> None:
        self.bounds, self.place, self.now, self.batch = bounds.astype(np.float64), place, now, batch
        self.ages = np.full(len(bounds), -1, dtype=np.int32)  # after how many choices a bound was computed
        self._look()

    def _look(self) -> None:
        """Chooses what is looked at. `outside` is what the best of the others may have, see `first`."""
        self.hot, self.outside = first(self.bounds, self.place, max(HOT, len(self.bounds) // OF))

    def best(self, choices: int) -> tuple[float, int, int]:
        """The highest value after so many choices: its negative, its place and its position."""
        size = self.batch
        while len(self.hot):
            values = self.bounds[self.hot]
            ties = self.hot[values == values.max()]
            position = int(ties[self.place[ties].argmin()])
            found = -float(self.bounds[position]), int(self.place[position])
            if found > self.outside and self.outside[0] < np.inf:
                self._look()
            elif self.ages[position] == choices or found[0] == np.inf:
                return *found, position
            else:
                top = self.hot[first(values, self.place[self.hot], size)[0]]
                stale = top[self.ages[top] < choices]
                self.bounds[stale] = np.minimum(self.bounds[stale], self.now(stale))
                self.ages[stale] = choices
                size *= 2
        return np.inf, 0, 0

    def remove(self, position: int) -> None:
        """So that it is not chosen again."""
        self.bounds[position] = -np.inf
