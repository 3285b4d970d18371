"""All pairs of rows within a distance: a product of all with all, in bfloat16 where that is faster, and then exact."""

from __future__ import annotations

import functools
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from scipy.sparse import csr_matrix, vstack

from ssl_lab.active.queries.distances import blocks
from ssl_lab.active.queries.view import FloatArray, IntArray
from ssl_lab.machine import resolve_precision

SIDE = 2048  # rows that are multiplied with as many
WORTH = 2**33  # multiplications, from which on it is measured whether bfloat16 is faster


def pairs_within(x: FloatArray, delta: float) -> Any:
    """The pairs i < j of unit rows x [N, D] with |x_i - x_j| <= delta: an upper triangular csr_matrix [N, N].

    By float32 products: where bfloat16 is faster, of those pairs alone whose product of rounded rows does not settle
    it, which is as far from the exact one as the rows were moved by rounding, and its own rounding, at most.
    """
    within = _within(x, 1 - delta**2 / 2)
    strips = []
    for start in range(0, len(x), SIDE):
        rows, columns = [], []
        for first in range(start, len(x), SIDE):
            near, places = within(slice(start, start + SIDE), slice(first, first + SIDE))
            row, column = np.divmod(places, near)
            above = row < column if first == start else slice(None)
            rows.append(row[above])
            columns.append((column[above] + first).astype(np.int32))
        row, column = np.concatenate(rows), np.concatenate(columns)
        strips.append(csr_matrix((np.ones(len(row), dtype=np.int8), (row, column)),
                                 shape=(min(SIDE, len(x) - start), len(x))))
    return vstack(strips, format="csr")


def _within(x: FloatArray, bound: float) -> Callable[[slice, slice], tuple[int, IntArray]]:
    """A function of two slices of the rows of x: how many rows are in the second, and the places in the table of both
    where the product is at least the bound."""

    def exactly(part: slice, others: slice) -> tuple[int, IntArray]:
        y = x[others]
        return len(y), np.flatnonzero(x[part] @ y.T >= bound)

    if len(x) * x.size <= WORTH or not _bf16_is_faster():
        return exactly
    rounded = torch.from_numpy(x).bfloat16()
    moved = max(float((torch.from_numpy(x[part]) - rounded[part].float()).norm(dim=1).max())
                for part in blocks(len(x), x.shape[1]))
    # By Cauchy and Schwarz; of the product's own rounding and that of the limits; of its sum in float32.
    slack = 1.01 * (moved * (2 + moved) + abs(bound) / 256 + x.shape[1] / 2**23)
    if bound - slack < 2**-9:  # the bits of positive numbers alone are in their order
        return exactly
    low, high = (int(torch.tensor(limit, dtype=torch.bfloat16).view(torch.int16))
                 for limit in (bound - slack, bound + slack))

    def roughly(part: slice, others: slice) -> tuple[int, IntArray]:
        y = x[others]
        bits = (rounded[part] @ rounded[others].T).view(torch.int16).numpy()
        places = np.flatnonzero(bits >= low)
        unsure = bits.ravel()[places] <= high
        keep = ~unsure
        keep[unsure] = _products(x[part], y, places[unsure]) >= bound
        return len(y), places[keep]

    return roughly


def _products(x: FloatArray, y: FloatArray, places: IntArray) -> FloatArray:
    """Of rows of x [N, D] and y [M, D], at rising places in [N, M]."""
    row, column = np.divmod(places, len(y))
    starts = np.append(0, np.cumsum(np.bincount(row, minlength=len(x))))
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Sparse CSR tensor support is in beta")
        wanted = torch.sparse_csr_tensor(torch.from_numpy(starts), torch.from_numpy(column), torch.zeros(len(places)),
                                         (len(x), len(y)), check_invariants=False)
        found = torch.sparse.sampled_addmm(wanted, torch.from_numpy(x), torch.from_numpy(y).T, beta=0.0)
    products: FloatArray = found.values().numpy()
    return products


@functools.cache
def _bf16_is_faster() -> bool:
    return resolve_precision(torch.device("cpu"), "auto")[0] == "bf16"
