"""Exact nearest neighbors by cosine: products with blocks of rows."""

from __future__ import annotations

import functools
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
MEASURED_K = 20  # neighbors, in comparing the two products
WORTH_MEASURING = 2**35  # multiplications, below which the faster library wins too little

_Nearest = Callable[[Tensor, Tensor, int], tuple[Tensor, Tensor]]


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
        nearest(queries, block, MEASURED_K)
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
