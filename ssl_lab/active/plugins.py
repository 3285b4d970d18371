"""Queries and oracles by name: the house's own, and a user's "mypackage.mymodule:MyQuery"."""

from __future__ import annotations

import importlib
import inspect
import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ssl_lab.active.label_studio import LabelStudio
from ssl_lab.active.oracle import Command, FromFile, Oracle, Truth
from ssl_lab.active.query import Query
from ssl_lab.data import Pool
from ssl_lab.errors import UsageError


def make_query(name: str, arguments: Mapping[str, Any] | None = None) -> Query:
    """The query of this name, or of "mypackage.mymodule:MyQuery", built with these arguments.

    A module is looked for in the current folder too. UsageError for unknown names and arguments, and for a module
    that cannot be imported.
    """
    query, given = _class_of(name), dict(arguments or {})
    known = inspect.signature(query).parameters
    for argument in given:
        if argument not in known:
            raise UsageError(f"{name} has no argument {argument!r}; it has {', '.join(known) or 'none'}")
    missing = [key for key, parameter in known.items() if parameter.default is parameter.empty and key not in given
               and parameter.kind not in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD)]
    if missing:
        raise UsageError(f"{name} needs the arguments {', '.join(missing)}; build it in Python and pass the object")
    return query(**given)


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


def make_oracle(name: str, pool: Pool, folder: Path, noise: float = 0.0, abstain: float = 0.0, seed: int = 0) -> Oracle:
    """ "truth", with noise and abstention; "label_studio", by files in `folder`; "command: PROGRAM ARGUMENTS"; or the
    path of a CSV or JSON file. UsageError for noise or abstention of anything but truth, and for another name."""
    if name == "truth":
        return Truth(pool, noise, abstain, seed)
    if noise or abstain:
        raise UsageError(f"noise={noise:g}, abstain={abstain:g}: only the oracle truth simulates them, not {name!r}")
    if name == "label_studio":
        return LabelStudio(folder, pool)
    if name.startswith("command:"):
        return Command(name.removeprefix("command:"), pool)
    if not name.endswith((".csv", ".json")):
        raise UsageError(f"unknown oracle {name!r}; expected truth, label_studio, 'command: PROGRAM', or a .csv or "
                         ".json file")
    return FromFile(name, pool)
