"""The numbers of each step: kept on the device until they are wanted, averaged, checked for NaN."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from ssl_lab.engine.runtime import Runtime
from ssl_lab.errors import NonFiniteLossError


class Meter:
    """Averages what the steps report between two rows of the metrics.

    `add` stores tensors and reads nothing; `check` and `mean` read all of them at once.
    """

    def __init__(self) -> None:
        self._device: list[tuple[int, dict[str, Tensor]]] = []
        self._host: list[dict[str, float]] = []

    def add(self, step: int, numbers: dict[str, Tensor]) -> None:
        """Remembers one step's scalar tensors."""
        self._device.append((step, numbers))

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

        Each step of each rank counts alike: of shares of rows (accuracies) also where it knew more rows than another.
        """
        self.check()
        rows, self._host = self._host, []
        names = list(dict.fromkeys(name for row in rows for name in row))
        values = [[row[name] for row in rows if name in row and not math.isnan(row[name])] for name in names]
        sums = runtime.totals([math.fsum(numbers) for numbers in values])
        counts = runtime.totals([len(numbers) for numbers in values])
        return {name: total / count for name, total, count in zip(names, sums, counts, strict=True) if count}

    def state(self) -> list[dict[str, float]]:
        """What has been added since the last row, for a checkpoint."""
        self.check()
        return list(self._host)

    def load(self, state: list[dict[str, Any]]) -> None:
        self._device, self._host = [], list(state)
