"""Nearest neighbors within a pool by Euclidean distance: of all rows, or of the nearest lists of an inverted file."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch

from ssl_lab.active.queries.distances import blocks, squared_distances, squared_norms
from ssl_lab.active.queries.rows import Rows
from ssl_lab.active.queries.view import FloatArray, IntArray
from ssl_lab.features.k_means import cells
from ssl_lab.features.search import top_columns

ALL = 20_000  # rows, up to which each is compared with all
LISTS, PROBES = 4, 16  # lists, in sqrt(N), of the rows of larger pools; those that are searched for a row's neighbors
SOME = 1024  # rows, evenly spaced, whose mean is near that of all


def nearest_others(x: FloatArray | Rows, k: int,
                   exact: int | None = None) -> Iterator[tuple[IntArray, FloatArray, IntArray]]:
    """Every row of x [N, D] once, in groups of M: their rows [M], the distances to the k nearest others, rising, and
    which these are, both [M, k], 1 <= k < N. Sought as `neighborhoods` says.

    Of rows less the mean of some; the error of squared distances is about 1e-7 of their squared norms. Memory is that
    of x once more, as float32.
    """
    order, groups = neighborhoods(x, k + 1, exact)
    y = _with_norms(x, order)
    scores, taken = (np.empty((0, columns), dtype=np.float32) for columns in (1, y.shape[1]))  # fresh memory costs time
    for members, others in groups:
        columns = np.concatenate([np.arange(each.start, each.stop) for each in others])
        rows = y[members] * 2
        rows[:, -1] = -1
        if len(taken) < len(columns) < len(y):
            taken = np.empty((len(columns), y.shape[1]), dtype=np.float32)
        near = y if len(columns) == len(y) else np.concatenate([y[each] for each in others], out=taken[: len(columns)])
        if len(scores) < len(rows) * len(near):
            scores = np.empty((len(rows) * len(near), 1), dtype=np.float32)
        products = scores[: len(rows) * len(near)].reshape(len(rows), -1)
        # A row's squared norm less the squared distance.
        torch.mm(torch.from_numpy(rows), torch.from_numpy(near).T, out=torch.from_numpy(products))
        own = members.start - others[0].start  # the first part of the others holds them
        products[np.arange(len(rows)), np.arange(own, own + len(rows))] = -np.inf
        best, places = top_columns(torch.from_numpy(products), k)
        squares = y[members, -1:] - best.numpy()
        yield order[members], np.sqrt(np.maximum(squares, 0)), order[columns[places.numpy()]]


def neighborhoods(x: FloatArray | Rows, least: int,
                  exact: int | None = None) -> tuple[IntArray, Iterator[tuple[slice, list[slice]]]]:
    """An order of the rows of x [N, D], and every place in it once, in groups: each with the places, of which it is
    within the first part, where its rows' neighbors are sought.

    Up to `exact` rows (default: ALL), these are all. Of more, they are approximate: rows are in LISTS * sqrt(N) lists,
    and the neighbors of those of a list are sought in the PROBES lists of the nearest centers, or in more until these
    hold `least` rows.
    A pure function of x; time and pairs are O(N^1.5).
    """
    n = len(x)
    if n <= (ALL if exact is None else exact):
        return np.arange(n), ((part, [slice(0, n)]) for part in blocks(n, n))
    lists, centers = cells(x, max(1, int(n**0.5 / LISTS)))
    return np.concatenate(lists), _near_lists(np.array([len(rows) for rows in lists]), centers, least)


def _near_lists(sizes: IntArray, centers: FloatArray, least: int) -> Iterator[tuple[slice, list[slice]]]:
    """The places of each list, of one after the other of these sizes, and those of the lists near it, itself first."""
    starts = np.cumsum(sizes) - sizes
    for near in blocks(len(sizes), len(sizes)):
        for own, apart in zip(range(near.start, near.stop), squared_distances(centers[near], centers), strict=True):
            apart[own] = -1
            nearest = np.argpartition(apart, PROBES)[:PROBES] if len(apart) > PROBES else np.arange(len(apart))
            if sizes[nearest].sum() < least:
                nearest = np.argsort(apart, kind="stable")
                nearest = nearest[: int((np.cumsum(sizes[nearest]) < least).sum()) + 1]
            nearest = np.append(own, nearest[nearest != own])
            others = [slice(starts[each], starts[each] + sizes[each]) for each in nearest]
            for part in blocks(sizes[own], int(sizes[nearest].sum())):
                yield slice(starts[own] + part.start, starts[own] + part.stop), others


def _with_norms(x: FloatArray | Rows, order: IntArray) -> FloatArray:
    """The rows of x [N, D] in an order, less the mean of some, and their squared norms: float32 [N, D + 1]."""
    origin = x[np.arange(0, len(x), -(-len(x) // SOME))].mean(axis=0, dtype=np.float64).astype(np.float32)
    y = np.empty((len(x), x.shape[1] + 1), dtype=np.float32)
    for part in blocks(*x.shape):
        np.subtract(x[order[part]], origin, out=y[part, :-1])
        y[part, -1] = squared_norms(y[part, :-1])
    return y
