"""The arrays that queries may need: their shapes, and what is refused."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ssl_lab.active.queries.share import Share
from ssl_lab.data import IntArray
from ssl_lab.engine import Runtime
from ssl_lab.errors import UsageError

# What a query may need beside the labels. N rows, D features, C classes, S samples, V views.
ARRAYS = {
    "embeddings": "[N, D], features of each row",
    "probs": "[N, C], predicted probabilities; rows sum to 1",
    "mc_probs": "[N, S, C], probabilities by S dropout samples or committee members",
    "view_probs": "[N, V, C], probabilities of V views of each row: the image itself, then augmented ones",
    "predicted_loss": "[N], the loss that a method's loss head predicts",
    "head_weight": "[C, D], of the linear classifier on the embeddings",
    "head_bias": "[C], of the same",
}
LARGEST = 1e15  # whose square a float32 still holds, and the sum of many such squares
NUMBERS = 2**20  # looked at together
FAULTS = ("hold NaN or infinity; repair or drop them",
          f"hold numbers beyond {LARGEST:g}; has the net diverged?",
          "do not sum to 1; expected probabilities, not logits",
          "are below 0; expected probabilities, not logits")


@np.errstate(over="ignore", invalid="ignore")  # numbers at which these come are refused in a sentence
def checked(given: Mapping[str, ArrayLike], ids: IntArray, ranks: Runtime) -> dict[str, NDArray[Any]]:
    """The arrays of `ARRAYS` that were given for rows of these ids: as they are, if float32 or float16, else as
    float32. UsageError on all ranks for what is wrong, each of which looks at its own rows."""
    arrays = {name: np.asanyarray(value) for name, value in given.items()}
    for name, array in arrays.items():
        shape = ARRAYS[name]
        by_row = shape.startswith("[N")
        if array.ndim != shape.partition("]")[0].count(",") + 1 or (by_row and len(array) != len(ids)):
            raise UsageError(f"{name} have shape {list(array.shape)} for {len(ids)} rows; expected {shape}")
        if array.dtype not in (np.float32, np.float16):
            arrays[name] = array.astype(np.float32)
        for what, rows in zip(FAULTS, _faults(name, arrays[name], ranks), strict=True):
            if len(rows):
                which = f"id {ids[rows[0]]}" if by_row else f"row {rows[0]}"
                raise UsageError(f"{name} of {which} {what} ({len(rows)} such rows)")
    _check_widths(arrays)
    return arrays


def _faults(name: str, array: NDArray[Any], ranks: Runtime) -> list[IntArray]:
    """For each of FAULTS, the rows that have it, from a block of rows at a time."""
    share = Share(len(array), ranks, max(1, NUMBERS // max(array[:1].size, 1)))
    found: list[list[IntArray]] = [[] for _ in FAULTS]
    for part in share:
        for bad, rows in zip(_faulty(name, array[part]), found, strict=True):
            rows.append(np.flatnonzero(bad) + part.start)
    mine = [np.concatenate([*rows, np.empty(0, dtype=np.int64)]) for rows in found]
    return [np.concatenate(rows) for rows in zip(*ranks.of_all(mine), strict=True)]


def _faulty(name: str, block: NDArray[Any]) -> list[NDArray[np.bool_]]:
    none, inner = np.zeros(len(block), dtype=bool), tuple(range(1, block.ndim))
    probs = name.endswith("probs")
    # The exponent of a float16 tells whether it is finite, in a tenth of the time that a comparison takes.
    if block.dtype == np.float16 and not probs and (block.view(np.uint16) & 0x7FFF).max(initial=0) < 0x7C00:
        return [none] * len(FAULTS)
    block = np.asarray(block, dtype=np.float32)
    bad = [none] * len(FAULTS)
    if not (block.min(initial=0) >= -LARGEST and block.max(initial=0) <= LARGEST):  # nor is NaN
        bad[:2] = ~np.isfinite(block).all(axis=inner), (np.abs(block) > LARGEST).any(axis=inner)
    if probs:
        bad[2:] = (np.abs(block.sum(axis=-1).reshape(len(block), -1) - 1).max(axis=1, initial=0) > 0.01,
                   block.min(axis=inner, initial=0) < 0)
    return bad


def _check_widths(arrays: Mapping[str, NDArray[Any]]) -> None:
    """UsageError where two arrays differ in the number of features, classes or samples."""
    known: dict[str, tuple[int, str]] = {}
    for name, array in arrays.items():
        shape = ARRAYS[name]
        for letter, size in zip(re.findall("[A-Z]", shape.partition("]")[0]), array.shape, strict=True):
            first, other = known.setdefault(letter, (size, name))
            if size != first:
                raise UsageError(f"{name} have shape {list(array.shape)}, so that {letter} is {size}, but "
                                 f"{first} in {other}; expected {shape}")
