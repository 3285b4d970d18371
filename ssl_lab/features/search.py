"""Nearest neighbors by cosine: exact by products with blocks of rows, approximate by an inverted file of FAISS."""

from __future__ import annotations

import functools
import logging
import math
import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from ssl_lab.data import IntArray
from ssl_lab.errors import UsageError
from ssl_lab.seeds import generator

FloatArray = NDArray[np.float32]

BANK_ROWS, QUERY_ROWS = 65536, 512  # of one matrix product: larger ones are faster, and merged less often
TUNED_K = 20
CANDIDATES = 2**22  # numbers of candidates that are compared at a time: 16 MiB
WORTH_MEASURING = 2**35  # multiplications, below which the faster library wins too little

_Nearest = Callable[[Tensor, Tensor, int], tuple[Tensor, Tensor]]

_log = logging.getLogger(__name__)


def matrix(values: ArrayLike, what: str, dim: int | None = None, half: bool = False) -> FloatArray:
    """`values` as float32 [n, D]; a memory map stays one, with `half` one of float16 too. UsageError for another rank
    or, if given, another D."""
    array = np.asanyarray(values)
    if array.ndim != 2 or (dim is not None and array.shape[1] != dim):
        raise UsageError(f"{what} have shape {list(array.shape)}, expected [n, {'D' if dim is None else dim}]")
    return array if array.dtype == np.float32 or (half and array.dtype == np.float16) else array.astype(np.float32)


def unit(features: ArrayLike) -> FloatArray:
    """float32 [n, D]: rows scaled to length 1; rows of zeros stay. UsageError for NaN and infinity."""
    features = matrix(features, "features")
    lengths = np.sqrt(np.einsum("nd,nd->n", features, features))[:, None]  # np.linalg.norm copies the features twice
    if not np.isfinite(lengths).all():
        row = int(np.flatnonzero(~np.isfinite(lengths[:, 0]))[0])
        raise UsageError(f"features: row {row} holds NaN or infinity, or is too long; has the net diverged?")
    scaled: FloatArray = features / np.maximum(lengths, np.float32(1e-12))
    return scaled


def top_k(queries: ArrayLike, bank: ArrayLike, k: int,
          device: torch.device | str = "cpu") -> tuple[FloatArray, IntArray]:
    """The k rows of the bank with the highest cosine to each query, exactly.

    Args:
        queries: [q, D].
        bank: [n, D], read once, block by block (it may be a memory map, of float16 too).
        k: from 1 to n.
        device: that computes the products.

    Returns:
        Cosines float32 [q, k], falling, and rows int64 [q, k]; equal cosines come in no particular order.

    Raises:
        UsageError: for another k, and features of another D or that are not finite.

    >>> cosines, rows = sl.features.top_k(queries=[[1, 1]], bank=[[1, 0], [2, 2], [-1, 0]], k=2)
    >>> rows, cosines.round(3)
    (array([[1, 0]]), array([[1.   , 0.707]], dtype=float32))
    """
    bank = matrix(bank, "the bank", half=True)
    wanted = torch.from_numpy(unit(matrix(queries, "queries", bank.shape[1]))).to(device)
    if not 1 <= k <= len(bank):
        raise UsageError(f"k={k} neighbors in a bank of {len(bank)} rows: expected 1 to {len(bank)}")
    large = wanted.device.type == "cpu" and len(wanted) * bank.size > WORTH_MEASURING
    nearest = _faster() if large else _nearest
    cosines = torch.full((len(wanted), k), -torch.inf, device=device)
    rows = torch.full((len(wanted), k), -1, device=device)
    for first, block in _blocks(bank, wanted.device):
        found, places = nearest(wanted, block, min(k, len(block)))
        cosines, best = torch.cat([cosines, found], dim=1).topk(k)
        rows = torch.cat([rows, places + first], dim=1).gather(1, best)
    return cosines.cpu().numpy(), rows.cpu().numpy()


def _blocks(bank: FloatArray, device: torch.device) -> Iterator[tuple[int, Tensor]]:
    """(first row, unit rows) of each block of the bank."""
    for first in range(0, len(bank), BANK_ROWS):
        yield first, torch.from_numpy(unit(bank[first:first + BANK_ROWS])).to(device)


def _products(queries: Tensor, block: Tensor) -> Iterator[tuple[int, Tensor]]:
    """(first query, cosines [queries, rows]) of some queries at a time; the cosines last until the next."""
    out = queries.new_empty(min(QUERY_ROWS, len(queries)), len(block))  # fresh memory for each costs a tenth
    for start in range(0, max(1, len(queries)), QUERY_ROWS):
        part = queries[start:start + QUERY_ROWS]
        yield start, torch.mm(part, block.T, out=out[:len(part)])


def _nearest(queries: Tensor, block: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """The k highest cosines of each query, falling, and their rows in the block, both [q, k]."""
    values, places = zip(*(top_columns(scores, k) for _, scores in _products(queries, block)), strict=True)
    return torch.cat(values), torch.cat(places)


def _nearest_by_faiss(queries: Tensor, block: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """The same on a CPU, by another library's matrix product."""
    import faiss

    values, places = faiss.knn(queries.numpy(), block.numpy(), k, metric=faiss.METRIC_INNER_PRODUCT)
    return torch.from_numpy(values), torch.from_numpy(places)


@functools.cache
def _faster() -> _Nearest:
    """Whichever of the two is faster on this CPU: each brings a matrix product that is slow on somebody's processor."""
    draw = generator("search")
    queries, block = (torch.randn(rows, 256, generator=draw) for rows in (1024, 16384))
    took: dict[_Nearest, float] = {}
    for nearest in (_nearest, _nearest_by_faiss) * 4:
        start = time.perf_counter()
        nearest(queries, block, TUNED_K)
        took[nearest] = min(took.get(nearest, math.inf), time.perf_counter() - start)
    return min(took, key=lambda nearest: took[nearest])


def top_columns(scores: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """`scores.topk(k)` of [q, n], several times as fast: no group of columns without one of the k highest group
    maxima can hold one of the k highest scores, so that most columns are seen by a plain maximum alone."""
    columns = scores.shape[1]
    group = 2 ** max(0, round(math.log2(columns / k) / 2))  # the fewest maxima and columns seen again, in sum
    groups = columns // group
    if groups <= 4 * k:
        values, places = scores.topk(k)
        return values, places
    whole = groups * group
    # Columns of a group are `groups` apart, so that many maxima are taken by one instruction.
    best = scores[:, :whole].reshape(len(scores), group, groups).amax(dim=1).topk(k, sorted=False).indices
    inside = torch.arange(0, whole, groups, device=scores.device)
    left = torch.arange(whole, columns, device=scores.device).expand(len(scores), -1)
    candidates = torch.cat([(best[:, :, None] + inside).flatten(1), left], dim=1)
    values, places = scores.gather(1, candidates).topk(k)
    return values, candidates.gather(1, places)


def neighbors(features: ArrayLike, k: int, device: torch.device | str = "cpu") -> tuple[FloatArray, IntArray]:
    """Cosines and rows [n, k] of each row's k nearest *other* rows, exactly.

    Args:
        features: [n, D].
        k: neighbors, fewer than n.
        device: that computes the products.

    Raises:
        UsageError: as in `top_k`.

    >>> cosines, rows = sl.features.neighbors([[1, 0], [2, 0], [0, 1]], k=1)
    >>> rows[:2, 0], cosines[:2, 0]
    (array([1, 0]), array([1., 1.], dtype=float32))
    """
    features = matrix(features, "features")
    return without_self(*top_k(features, features, k + 1, device), np.arange(len(features)))


def without_self(cosines: FloatArray, rows: IntArray, own: IntArray) -> tuple[FloatArray, IntArray]:
    """[n, k] of [n, k+1] without each line's `own` row; without its last, where own twins crowded it out."""
    away = rows == own[:, None]
    away[~away.any(axis=1), -1] = True
    shape = (len(rows), rows.shape[1] - 1)
    return cosines[~away].reshape(shape), rows[~away].reshape(shape)


def within(queries: ArrayLike, bank: ArrayLike, cosine: float,
           device: torch.device | str = "cpu") -> tuple[IntArray, IntArray, FloatArray]:
    """All pairs of a query and a row of the bank that are at least this alike, exactly.

    Args:
        queries: [q, D].
        bank: [n, D], read once, block by block.
        cosine: the least.
        device: that computes the products.

    Returns:
        Query numbers int64 [P], bank rows int64 [P] and cosines float32 [P], sorted by query, then by row.

    >>> sl.features.within([[1, 0]], bank=[[1, 0], [1, 1], [0, 1]], cosine=0.7)[:2]
    (array([0, 0]), array([0, 1]))
    """
    bank = matrix(bank, "the bank", half=True)
    wanted = torch.from_numpy(unit(matrix(queries, "queries", bank.shape[1]))).to(device)
    found: list[NDArray[Any]] = []
    for first, block in _blocks(bank, wanted.device):
        for start, scores in _products(wanted, block):
            query, row = torch.nonzero(scores >= cosine, as_tuple=True)
            found.append(np.stack([(query + start).cpu().numpy(), (row + first).cpu().numpy(),
                                   scores[query, row].double().cpu().numpy()]))
    queried, rows, cosines = np.concatenate(found, axis=1) if found else np.empty((3, 0))
    order = np.lexsort((rows, queried))
    return queried[order].astype(np.int64), rows[order].astype(np.int64), cosines[order].astype(np.float32)


class Approximate:
    """Nearest neighbors in a fraction of the time, most of them: `aim` is the share of the true ones to find.

    An inverted file whose lists hold 4-bit product codes (FAISS) proposes `factor` candidates for each neighbor
    wanted; their cosines are then computed exactly, of rows that are read from the bank, so that memory is that of the
    codes: D / 8 bytes a row, 8 for its number and 4 for its length. (Graphs of HNSW searched about as fast, but took
    seven times as long to build on the same data.)

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
        blocks = (matrix(bank[start:start + BANK_ROWS], "the bank") for start in range(0, len(bank), BANK_ROWS))
        self._lengths = np.sqrt(np.concatenate([np.einsum("nd,nd->n", block, block) for block in blocks]))

    @classmethod
    def build(cls, bank: ArrayLike, recall: float = 0.99) -> Approximate:
        """Index of the rows of `bank` [n, D] that probes as few lists, and asks for as few candidates, as find `recall`
        of the 20 nearest, measured on 500 rows of the bank. A recall that cannot be reached is logged.
        """
        import faiss

        bank = matrix(bank, "the bank", half=True)
        if not 0 < recall < 1 or len(bank) <= TUNED_K:
            raise UsageError(f"recall={recall} in {len(bank)} rows: expected a recall between 0 and 1, and more than "
                             f"{TUNED_K} rows")
        lists = 2 ** round(math.log2(len(bank)) / 2)  # about sqrt(n)
        dim = bank.shape[1] + -bank.shape[1] % 4
        codes: Any = faiss.index_factory(dim, f"IVF{lists},PQ{dim // 4}x4fs", faiss.METRIC_INNER_PRODUCT)
        codes.cp.min_points_per_centroid = codes.pq.cp.min_points_per_centroid = 1  # else FAISS warns on stderr
        drawn = torch.randperm(len(bank), generator=generator("index")).numpy()
        codes.train(_padded(bank[np.sort(drawn[:64 * lists])]))
        for first in range(0, len(bank), BANK_ROWS):
            codes.add(_padded(bank[first:first + BANK_ROWS]))
        built = cls(codes, bank, factor=32, aim=recall)
        built._tune(bank, np.sort(drawn[:500]))
        return built

    def _tune(self, bank: FloatArray, sample: IntArray) -> None:
        aim = self.aim + (1 - self.aim) / 4  # queries may be harder than rows of the bank
        _, truth = without_self(*top_k(bank[sample], bank, TUNED_K + 1), sample)

        def found() -> float:
            _, rows = without_self(*self.search(bank[sample], TUNED_K + 1), sample)
            return float(np.mean([np.isin(true, row).mean() for true, row in zip(truth, rows, strict=True)]))

        self.codes.nprobe = min(4, self.codes.nlist)
        while found() < aim and self.codes.nprobe < self.codes.nlist:
            self.codes.nprobe *= 2
        while found() >= aim and self.factor > 1:
            self.factor //= 2
        if found() < aim:
            self.factor *= 2
        reached = found()
        if reached < self.aim:
            _log.warning("the index finds %.1f%% of the nearest neighbors, not %.1f%%", 100 * reached, 100 * self.aim)

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


def _padded(rows: FloatArray) -> FloatArray:
    """Unit rows, with zeros added up to a multiple of 4 numbers: one code stands for 4 of them."""
    return np.ascontiguousarray(np.pad(unit(rows), ((0, 0), (0, -rows.shape[1] % 4))))
