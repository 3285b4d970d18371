"""What a model says of images."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import chain
from typing import Any

import numpy as np
from numpy.typing import NDArray

FloatArray = NDArray[Any]


@dataclass(frozen=True)
class Predictions:
    """What a model says of n images.

    Attributes:
        names: of the images, e.g. paths.
        classes: names, in the order of the columns.
        probabilities: float64 [n, C], calibrated; NaN for images that cannot be read.
        reasons: why not; None where they can.
        threshold: a class is given only at so high a probability.
        sets: bool [n, C], which classes may be the right one, if a coverage was asked for.

    >>> probs = np.array([[0.9, 0.1], [0.4, 0.6]])
    >>> found = sl.Predictions(["a.png", "b.png"], ("cat", "dog"), probs, reasons=[None, None], threshold=0.7)
    >>> found.labels, found.confidence, found.top(1, 2)
    (['cat', None], array([0.9, 0.6]), [('dog', 0.6), ('cat', 0.4)])
    """

    names: Sequence[str]
    classes: tuple[str, ...]
    probabilities: FloatArray
    reasons: Sequence[str | None]
    threshold: float = 0.0
    sets: NDArray[np.bool_] | None = None

    def __len__(self) -> int:
        return len(self.names)

    @cached_property
    def order(self) -> NDArray[np.int64]:
        """int64 [n, C]: the classes of each image, the likeliest first."""
        return np.argsort(-self.probabilities, axis=1, kind="stable")

    @property
    def confidence(self) -> FloatArray:
        """float64 [n]: the probability of the likeliest class; NaN where the image cannot be read."""
        return np.take_along_axis(self.probabilities, self.order[:, :1], axis=1)[:, 0]

    @property
    def labels(self) -> list[str | None]:
        """The likeliest class of each image; None where that is less likely than the threshold, or the image cannot be
        read."""
        sure = self.confidence >= self.threshold  # not so of NaN
        return [self.classes[first] if good else None for first, good in zip(self.order[:, 0], sure, strict=True)]

    def top(self, row: int, count: int) -> list[tuple[str, float]]:
        """The `count` likeliest classes of an image, and their probabilities; none if it cannot be read."""
        if self.reasons[row] is not None:
            return []
        return [(self.classes[at], float(self.probabilities[row, at])) for at in self.order[row, :count]]

    def set_of(self, row: int) -> list[str] | None:
        """The classes in an image's prediction set, the likeliest first; None where there is none."""
        if self.sets is None or self.reasons[row] is not None:
            return None
        return [self.classes[at] for at in self.order[row] if self.sets[row, at]]

    @classmethod
    def joined(cls, parts: Sequence[Predictions]) -> Predictions:
        """Several, of one model, as one."""
        first = parts[0]
        sets = None if first.sets is None else np.concatenate([part.sets for part in parts if part.sets is not None])
        return cls(list(chain.from_iterable(part.names for part in parts)), first.classes,
                   np.concatenate([part.probabilities for part in parts]),
                   list(chain.from_iterable(part.reasons for part in parts)), first.threshold, sets)
