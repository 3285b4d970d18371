"""Which images a step sees: a pure function of (seed, purpose, step), so there is no state to save."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import ArrayLike

from ssl_lab.data.arrays import IntArray
from ssl_lab.errors import UsageError
from ssl_lab.seeds import generator


class Sampler:
    """An endless row of shuffled epochs, cut into batches of `batch`.

    Each epoch is a permutation of `indices`, so each image is seen once before any is seen again; batches run
    on across the border of two epochs, and may be larger than an epoch. A rank of several takes its rows of
    the batch.

    Args:
        indices: int64, the rows to draw.
        batch: rows of a batch, over all ranks.
        seed, purpose: what the order is a function of.

    >>> sampler = sl.Sampler(np.arange(6), batch=2, seed=0, purpose="unlabeled")
    >>> np.sort(np.concatenate([sampler.at(step) for step in range(3)]))  # an epoch
    array([0, 1, 2, 3, 4, 5])
    """

    def __init__(self, indices: ArrayLike, batch: int, seed: int, purpose: str) -> None:
        """indices: int [n], n > 0. batch: images per step, all ranks together. purpose: names the stream."""
        self.indices = np.asarray(indices, dtype=np.int64)
        if not len(self.indices) or batch < 1:
            raise UsageError(f"cannot draw {purpose} batches of {batch} from {len(self.indices)} images; "
                             "both must be at least 1")
        self.batch, self.seed, self.purpose = batch, seed, purpose
        self._last = -1, self.indices  # an epoch and its order, as one: threads may ask side by side

    def at(self, step: int) -> IntArray:
        """int64 [batch]: the images of a step, which counts from 0."""
        size = len(self.indices)
        start, stop = step * self.batch, (step + 1) * self.batch
        parts = []
        while start < stop:
            epoch, place = divmod(start, size)
            part = self._permuted(epoch)[place:place + stop - start]
            parts.append(part)
            start += len(part)
        return np.concatenate(parts)

    def _permuted(self, epoch: int) -> IntArray:
        last, shuffled = self._last
        if epoch != last:
            order = torch.randperm(len(self.indices), generator=generator(self.seed, self.purpose, epoch))
            shuffled = self.indices[order.numpy()]
            self._last = epoch, shuffled
        return shuffled


class PoissonSampler(Sampler):
    """Batches in which each of the images is by a coin of its own, of chance batch / n: of `batch` images on average,
    and perhaps of none. What accountants of differential privacy take for granted.

    Args:
        indices: int64, the rows to draw.
        batch: its mean size, over all ranks.
        seed, purpose: what the order is a function of.

    >>> sampler = sl.data.PoissonSampler(np.arange(100), batch=10, seed=0, purpose="labeled")
    >>> [len(sampler.at(step)) for step in range(5)]
    [5, 6, 9, 10, 5]
    """

    def __init__(self, indices: ArrayLike, batch: int, seed: int, purpose: str) -> None:
        super().__init__(indices, batch, seed, purpose)
        self.rate = batch / len(self.indices)
        if self.rate > 1:
            raise UsageError(f"{purpose} batches of {batch} on average from {len(self.indices)} images: each image is "
                             "in a batch at most once; ask for fewer")

    def at(self, step: int) -> IntArray:
        """int64 [n], in the order of `indices`: the images of a step."""
        coins = torch.rand(len(self.indices), generator=generator(self.seed, self.purpose, "poisson", step),
                           dtype=torch.float64)
        found: IntArray = self.indices[(coins < self.rate).numpy()]
        return found
