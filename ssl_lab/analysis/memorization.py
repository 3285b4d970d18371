"""Did a net learn wrong labels by heart? (Zhang et al. 2017, arXiv 1611.03530.)"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from ssl_lab.errors import UsageError

IntArray = NDArray[np.int64]


class Memorized(NamedTuple):
    """Shares of training images, NaN of none.

    Attributes:
        wrong: of those whose given label is wrong, so many are told as that label (by heart).
        righted: as their true class in spite of it.
        right: of those whose label is right, told so.
        corrupted: images whose given label is wrong.

    >>> given, truth = np.array([1, 1, 0, 0]), np.array([0, 0, 0, 0])
    >>> sl.analysis.memorization(said=np.array([1, 0, 0, 0]), given=given, truth=truth)
    Memorized(wrong=0.5, righted=0.5, right=1.0, corrupted=2)
    """

    wrong: float
    righted: float
    right: float
    corrupted: int


def memorization(said: IntArray, given: IntArray, truth: IntArray) -> Memorized:
    """What a net makes of training images whose labels were wrong (Zhang et al. 2017, arXiv 1611.03530). One that fits
    everything has wrong = right = 1; one that learned and did not memorize has righted near its test accuracy.

    Args:
        said: int64 [n], the classes that a net gives its training images.
        given: int64 [n], their labels in training.
        truth: int64 [n], their classes.

    Raises:
        UsageError: where their numbers differ.

    >>> given, truth = np.array([1, 1, 0, 0]), np.array([0, 0, 0, 0])  # the first two labels are wrong
    >>> sl.analysis.memorization(said=given, given=given, truth=truth)  # a net that fits everything
    Memorized(wrong=1.0, righted=0.0, right=1.0, corrupted=2)
    """
    if not len(said) == len(given) == len(truth):
        raise UsageError(f"memorization: {len(said)} answers, {len(given)} labels and {len(truth)} classes; expected "
                         "one of each for each image")
    changed = given != truth

    def share(hit: NDArray[np.bool_]) -> float:
        return float(hit.mean()) if len(hit) else float("nan")

    return Memorized(share(said[changed] == given[changed]), share(said[changed] == truth[changed]),
                     share(said[~changed] == truth[~changed]), int(changed.sum()))
