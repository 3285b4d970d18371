"""Most of the nearest neighbors by cosine in a fraction of the time: an inverted file of product codes by FAISS."""

from __future__ import annotations

import logging
import math
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike

from ssl_lab.data import IntArray
from ssl_lab.errors import UsageError
from ssl_lab.features.k_means import cells
from ssl_lab.features.search import FloatArray, matrix, top_k, unit, without_self
from ssl_lab.seeds import generator

TUNED_K, TUNED_ON = 20, 500  # nearest rows of so many rows of the bank
TRAINED = 2**16  # rows by which codes are chosen
ADDED = 2**16  # rows at a time
FACTOR, PROBED = 256, 1 / 4  # at most: candidates for each neighbor, and of the lists; more is hardly faster than all
CANDIDATES = 2**22  # numbers of candidates that are compared at a time: 16 MiB

_log = logging.getLogger(__name__)


class Approximate:
    """Nearest neighbors in a fraction of the time, most of them: `aim` is the share of the true ones to find.

    An inverted file of about sqrt(N) lists, which are cells of k-means, with 4-bit codes of every two numbers (FAISS)
    proposes `factor` candidates for each neighbor wanted; their cosines are then computed exactly, of rows that are
    read from the bank, so that memory is that of the codes: D / 4 bytes a row, 8 for its number and 4 for its length.

    Args:
        codes: FAISS's index of the bank.
        bank: float32 or float16 [N, D]; it may be a memory map.
        factor: candidates for each neighbor wanted.
        aim: in (0, 1].

    >>> bank = np.random.default_rng(0).normal(size=(2000, 16)).astype(np.float32)
    >>> index = sl.features.Approximate.build(bank, recall=0.9)
    >>> cosines, rows = index.search(bank[:3], k=5)
    >>> rows.shape, rows[:, 0]
    ((3, 5), array([0, 1, 2]))
    """

    def __init__(self, codes: Any, bank: FloatArray, factor: int, aim: float) -> None:
        self.codes, self.bank, self.factor, self.aim = codes, bank, factor, aim
        blocks = (matrix(bank[start:start + ADDED], "the bank") for start in range(0, len(bank), ADDED))
        self._lengths = np.sqrt(np.concatenate([np.einsum("nd,nd->n", block, block) for block in blocks]))

    @classmethod
    def build(cls, bank: ArrayLike, recall: float = 0.99) -> Approximate:
        """Index of the rows of `bank` [n, D] that probes as few lists, and asks for as few candidates, as find `recall`
        of the 20 nearest, measured on 500 rows of the bank. A recall that is not reached where a quarter of the lists
        are probed is logged: where features fill all of their dimensions, no index is of use.
        """
        bank = matrix(bank, "the bank", half=True)
        if not 0 < recall < 1 or len(bank) <= TUNED_K:
            raise UsageError(f"recall={recall} in {len(bank)} rows: expected a recall between 0 and 1, and more than "
                             f"{TUNED_K} rows")
        drawn = torch.randperm(len(bank), generator=generator("index")).numpy()
        lists, centers = cells(_Unit(bank), math.isqrt(len(bank)))
        place = np.empty(len(bank), dtype=np.int64)
        for number, rows in enumerate(lists):
            place[rows] = number
        built = cls(_coded(bank, place, centers, np.sort(drawn[:TRAINED])), bank, 1, recall)
        built._tune(np.sort(drawn[:TUNED_ON]), place, unit(centers))
        return built

    def _tune(self, sample: IntArray, place: IntArray, centers: FloatArray) -> None:
        """Half of what may be missed may lie in lists that are not probed; a quarter is left to queries that are harder
        than rows of the bank."""
        queries, lists, missed = self.bank[sample], len(centers), 1 - self.aim
        _, truth = without_self(*top_k(queries, self.bank, TUNED_K + 1), sample)
        far = np.argsort(np.argsort(-(unit(matrix(queries, "queries")) @ centers.T), axis=1), axis=1)
        needed = np.sort(np.take_along_axis(far, place[truth], axis=1), axis=None)
        needed = needed[math.ceil((1 - missed / 2) * len(needed)) - 1]
        self.codes.nprobe = min(int(needed) + 1, max(8, int(PROBED * lists)))
        reached, gained = self._found(queries, sample, truth), 1.0
        while reached < 1 - 0.75 * missed and self.factor < FACTOR and gained > missed / 50:
            self.factor *= 2
            before, reached = reached, self._found(queries, sample, truth)
            gained = reached - before
        if reached < self.aim:
            _log.warning("the index finds %.1f%% of the nearest neighbors, not %.1f%%, by looking at %.0f%% of the "
                         "rows; ssl_lab.features.top_k finds all", 100 * reached, 100 * self.aim,
                         100 * min(1, self.codes.nprobe / lists))

    def _found(self, queries: FloatArray, own: IntArray, truth: IntArray) -> float:
        _, rows = without_self(*self.search(queries, TUNED_K + 1), own)
        return float(np.mean([np.isin(true, row).mean() for true, row in zip(truth, rows, strict=True)]))

    def search(self, queries: ArrayLike, k: int) -> tuple[FloatArray, IntArray]:
        """As `top_k`, but for the neighbors that it misses; -1 with cosine -inf where it finds fewer than k."""
        queries = matrix(queries, "queries")
        total, dim = self.bank.shape
        if queries.shape[1] != dim or not 1 <= k <= total:
            raise UsageError(f"queries {list(queries.shape)} and k={k} for an index of {total} rows of {dim} numbers")
        # Never fewer candidates than it was tuned with: a few of the nearest are as hard to find as 20.
        count = min(self.factor * max(k, min(TUNED_K, total)), total)
        cosines = np.empty((len(queries), k), dtype=np.float32)
        rows = np.empty((len(queries), k), dtype=np.int64)
        size = max(1, CANDIDATES // (count * dim))
        for part in (slice(start, start + size) for start in range(0, len(queries), size)):
            wanted = _padded(queries[part])
            _, found = self.codes.search(wanted, count)
            near = torch.from_numpy(matrix(self.bank[found.ravel()], "the bank")).view(*found.shape, dim)
            exact = torch.bmm(near, torch.from_numpy(wanted[:, :dim, None]))[..., 0]
            exact /= torch.from_numpy(np.maximum(self._lengths[found], np.float32(1e-12)))
            best, places = exact.masked_fill_(torch.from_numpy(found < 0), -torch.inf).topk(k)
            cosines[part], rows[part] = best.numpy(), np.take_along_axis(found, places.numpy(), axis=1)
        return cosines, rows


class _Unit:
    """The rows of a bank [N, D], float32 and scaled to length 1 as they are read."""

    def __init__(self, bank: FloatArray) -> None:
        self.bank, self.shape = bank, bank.shape

    def __len__(self) -> int:
        return len(self.bank)

    def __getitem__(self, which: Any, /) -> FloatArray:
        return unit(self.bank[which])


def _coded(bank: FloatArray, place: IntArray, centers: FloatArray, sample: IntArray) -> Any:
    """FAISS's index of the bank's unit rows, each in the list that `place` says. Left to itself, FAISS compares
    every row with every center, which did not end in ten minutes for ten million rows."""
    import faiss

    library: Any = faiss  # whose types do not name all of it
    dim = bank.shape[1] + bank.shape[1] % 2
    quantizer = library.IndexFlatIP(dim)
    quantizer.add(_padded(centers))
    codes = library.IndexIVFPQ(quantizer, dim, len(centers), dim // 2, 4, library.METRIC_INNER_PRODUCT)
    codes.pq.cp.min_points_per_centroid = 1  # else FAISS warns on stderr
    codes.train(_padded(bank[sample]))
    for first in range(0, len(bank), ADDED):
        rows = _padded(bank[first:first + ADDED])
        numbers = np.arange(first, first + len(rows))
        codes.add_core(len(rows), *map(library.swig_ptr, (rows, numbers, place[first:first + len(rows)])))
    quick = library.IndexIVFPQFastScan(codes)
    quick.own_fields, codes.own_fields = True, False
    quantizer.this.disown()
    return quick


def _padded(rows: FloatArray) -> FloatArray:
    """Unit rows, with a zero added to an odd number of columns: one code stands for two of them."""
    return np.ascontiguousarray(np.pad(unit(rows), ((0, 0), (0, rows.shape[1] % 2))))
