"""Queries and oracles by name: the house's own, and a user's "mypackage.mymodule:MyQuery"."""

from __future__ import annotations

import ast
import importlib
import inspect
import os
import sys
from pathlib import Path
from typing import Any

import numpy as np

from ssl_lab.active.label_studio import LabelStudio
from ssl_lab.active.oracle import Command, FromFile, Oracle, Truth
from ssl_lab.active.query import Query
from ssl_lab.active.votes import Agreement
from ssl_lab.data import Pool
from ssl_lab.errors import UsageError

FILES = (".csv", ".tsv", ".json", ".jsonl", ".txt")  # of answers, which need not be there yet
COLON = "__colon__"  # stands for the colon of package.module:Class, which is no Python


def make_query(text: str) -> Query:
    """The query that a text describes: its name, or "mypackage.mymodule:MyQuery", and in parentheses its arguments.

    These are numbers, other queries, and .npy files in quotes: badge, prob_cover(delta=0.5),
    prefilter(margin, k_center), cost_aware(margin, 'costs.npy'). A module is looked for in the current folder too.
    UsageError for unknown names and arguments, and for what cannot be imported or read.
    """
    try:
        node = ast.parse(text.replace(":", COLON).strip(), mode="eval").body
    except (SyntaxError, ValueError, RecursionError):
        raise UsageError(f"{text!r} describes no query; expected a name, with arguments as in prob_cover(delta=0.5) "
                         "or prefilter(margin, k_center)") from None
    return _made(node)


def split_queries(text: str) -> list[str]:
    """The descriptions of several queries, at the commas outside of parentheses."""
    parts, depth = [""], 0
    for letter in text:
        depth += (letter == "(") - (letter == ")")
        if letter == "," and not depth:
            parts.append("")
        else:
            parts[-1] += letter
    return [part.strip() for part in parts]


def _made(node: ast.expr) -> Query:
    name = ast.unparse(node.func if isinstance(node, ast.Call) else node).replace(COLON, ":")
    query = _class_of(name)
    words = {word.arg or "**": word.value for word in node.keywords} if isinstance(node, ast.Call) else {}
    known = inspect.signature(query)
    try:
        given = known.bind(*map(_value, node.args if isinstance(node, ast.Call) else ()),
                           **{word: _value(value) for word, value in words.items()})
        return query(*given.args, **given.kwargs)
    except UsageError:
        raise
    except Exception as error:  # of a text that is no number, a file that is no array, an argument of another kind
        raise UsageError(f"{name}: {error}; its arguments are ({', '.join(known.parameters)})") from error


def _value(node: ast.expr) -> Any:
    """An argument: a query, an array, or what Python reads."""
    if isinstance(node, ast.Name | ast.Attribute | ast.Call):
        return _made(node)
    value = ast.literal_eval(node)
    if isinstance(value, str) and value.endswith(".npy"):
        return np.load(value.replace(COLON, ":"), allow_pickle=False)
    return value


def _class_of(name: str) -> type[Query]:
    if ":" not in name:
        from ssl_lab.active.queries import get

        return get(name)
    module, _, attribute = name.partition(":")
    if os.getcwd() not in sys.path:
        sys.path.append(os.getcwd())
    try:
        found = getattr(importlib.import_module(module), attribute)
    except (ImportError, AttributeError, ValueError) as error:
        raise UsageError(f"cannot load the query {name!r}: {error}. Expected package.module:Class, importable from "
                         "here or installed") from error
    if not (isinstance(found, type) and issubclass(found, Query)):
        raise UsageError(f"{name} is not a subclass of ssl_lab.active.query.Query")
    return found


def make_oracle(name: str, pool: Pool, folder: Path, noise: float = 0.0, abstain: float = 0.0, seed: int = 0, *,
                agreement: Agreement = "majority", data: str | Path | None = None) -> Oracle:
    """ "truth", with noise and abstention; "label_studio", by files in `folder`; "command: PROGRAM ARGUMENTS"; or the
    path of a file of answers. agreement: see `agree`. data: the folder or CSV file that the pool was loaded from, if it
    was. UsageError for noise or abstention of anything but truth, and for another name."""
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
