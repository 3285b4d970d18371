"""Queries and oracles by name: the house's own, and a user's "mypackage.mymodule:MyQuery"."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from ssl_lab import texts
from ssl_lab.active.people.label_studio import LabelStudio
from ssl_lab.active.people.oracle import Command, FromFile, Oracle, Truth
from ssl_lab.active.people.votes import Agreement
from ssl_lab.active.queries.base import Query
from ssl_lab.active.queries.inputs import ARRAYS
from ssl_lab.data import Pool
from ssl_lab.errors import UsageError, unknown

FILES = (".csv", ".tsv", ".json", ".jsonl", ".txt")  # of answers, which need not be there yet


def make_query(text: str) -> Query:
    """The query that a text describes: its name, or "mypackage.mymodule:MyQuery", and in parentheses its arguments.

    These are numbers, other queries, and .npy files in quotes: badge, prob_cover(delta=0.5), prefilter(margin,
    k_center), cost_aware(margin, 'costs.npy'). A module is looked for in the current folder too.

    Raises:
        UsageError: for unknown names and arguments, and for what cannot be imported or read.

    >>> sl.make_query("prefilter(margin, k_center)").needs == {"probs", "embeddings"}
    True
    """
    return texts.make(texts.read(text, "query", "prob_cover(delta=0.5) or prefilter(margin, k_center)"),
                      _class_of, _value)


def _value(literal: Any) -> Any:
    """An argument: an array, or the value itself."""
    is_file = isinstance(literal, str) and literal.endswith(".npy")
    return np.load(literal, allow_pickle=False) if is_file else literal


def _class_of(name: str) -> type[Query]:
    if ":" in name:
        found = texts.imported(name, Query, "query")
        if isinstance(found.needs, frozenset) and (wrong := found.needs - ARRAYS.keys()):
            raise unknown(f"array that {name} needs", str(min(wrong)), ARRAYS)
        return found
    from ssl_lab.active.queries import get

    return get(name)


def make_oracle(name: str, pool: Pool, folder: Path, noise: float = 0.0, abstain: float = 0.0, seed: int = 0, *,
                agreement: Agreement = "majority", data: str | Path | None = None) -> Oracle:
    """The oracle that a name stands for: "truth", with noise and abstention; "label_studio", by files in `folder`;
    "command: PROGRAM ARGUMENTS"; or the path of a file of answers.

    Args:
        name: one of these.
        pool: whose images are asked for.
        folder: where the files of Label Studio lie.
        noise, abstain: of the truth, probabilities in [0, 1]: of a wrong answer, and of none.
        seed: of these.
        agreement: see `agree`.
        data: the folder or CSV file that the pool was loaded from, if it was.

    Raises:
        UsageError: for noise or abstention of anything but truth, and for another name.

    >>> from pathlib import Path
    >>> pool = sl.load("digits").split(labels=10)
    >>> type(sl.active.make_oracle("truth", pool, Path("."), noise=0.1)).__name__
    'Truth'
    """
    if name == "truth":
        return Truth(pool, noise, abstain, seed)
    if noise or abstain:
        raise UsageError(f"noise={noise:g}, abstain={abstain:g}: only the oracle truth simulates them, not {name!r}")
    if name == "label_studio":
        given = None if data is None else Path(data)
        root = given if given is None or given.is_dir() else given.parent if given.is_file() else None
        return LabelStudio(folder, pool, root, agreement)
    if name.startswith("command:"):
        return Command(name.removeprefix("command:"), pool)
    if not (name.lower().endswith(FILES) or Path(name).is_file()):
        raise UsageError(f"unknown oracle {name!r}; expected truth, label_studio, 'command: PROGRAM', or a file "
                         f"({', '.join(FILES)})")
    return FromFile(name, pool, agreement)
