"""The numbers of each step: kept on the device until they are wanted, averaged, checked for NaN."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from ssl_lab.batch import Loss, Share
from ssl_lab.engine.runtime import Runtime
from ssl_lab.errors import NonFiniteLossError

ROWS = "rows of "
"""What the number of rows of a share is kept under, before the share's name."""


class Meter:
    """Averages what the steps report between two rows of the metrics.

    `add` stores tensors and reads nothing; `check` and `mean` read all of them at once.
    """

    def __init__(self) -> None:
        self._device: list[tuple[int, dict[str, Tensor]]] = []
        self._host: list[dict[str, float]] = []

    def add(self, step: int, loss: Loss) -> None:
        """Remembers one step's numbers: of shares, how many rows are right, and of how many."""
        shares = {name: value for name, value in loss.logs.items() if isinstance(value, Share)}
        right = {name: value.right for name, value in shares.items()}
        rows = {ROWS + name: value.rows for name, value in shares.items()}
        self._device.append((step, loss.detached() | right | rows))

    def check(self) -> None:
        """Reads what is pending. Raises NonFiniteLossError naming the first bad step and its terms."""
        pending, self._device = self._device, []
        for names in dict.fromkeys(tuple(numbers) for _, numbers in pending):
            rows = [(step, numbers) for step, numbers in pending if tuple(numbers) == names]
            table = torch.stack([torch.stack([value.float() for value in numbers.values()]) for _, numbers in rows])
            for (step, _), values in zip(rows, table.tolist(), strict=True):
                named = dict(zip(names, values, strict=True))
                bad = [name for name, value in named.items() if name.startswith("loss") and not math.isfinite(value)]
                if bad:
                    terms = ", ".join(f"{name} = {named[name]}" for name in names if name.startswith("loss"))
                    raise NonFiniteLossError(f"the loss is not finite at step {step}: {terms}")
                self._host.append(named)

    def mean(self, runtime: Runtime) -> dict[str, float]:
        """The averages since the last call, over ranks too, without what a step left out or reported as NaN.

        Each step of each rank counts alike; in shares of rows (accuracies) each row does.
        """
        self.check()
        rows, self._host = self._host, []
        names = list(dict.fromkeys(name for row in rows for name in row if not name.startswith(ROWS)))
        values = [[(row[name], row.get(ROWS + name, 1.0)) for row in rows if not math.isnan(row.get(name, math.nan))]
                  for name in names]
        sums = runtime.totals([math.fsum(value for value, _ in numbers) for numbers in values])
        counts = runtime.totals([math.fsum(count for _, count in numbers) for numbers in values])
        return {name: total / count for name, total, count in zip(names, sums, counts, strict=True) if count}

    def state(self) -> list[dict[str, float]]:
        """What has been added since the last row, for a checkpoint."""
        self.check()
        return list(self._host)

    def load(self, state: list[dict[str, Any]]) -> None:
        self._device, self._host = [], list(state)
