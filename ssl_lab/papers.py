"""The papers that ssl_lab implements, in papers.csv: each with its places in the product, and how to run them.

A place is a kind and a name: `method fixmatch`, `with sam`, `optimizer radam`, `net wrn_28_2`, `compress rigl` (a way
of recipes/compress.py), `code module:name` (a function or class of ssl_lab), `recipe robustness`, `cited module` (what
guided that module, named in its docstring). `ssl-lab list --papers` looks for each, and claims nothing that is not
there.
"""

from __future__ import annotations

import csv
import importlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from ssl_lab.errors import UsageError


@dataclass(frozen=True)
class Paper:
    """number: its row, from 1. arxiv: its number there; empty if it has none. places: see above."""

    number: int
    title: str
    arxiv: str
    places: tuple[str, ...]

    @property
    def here(self) -> bool:
        """Whether all of its places exist in what is installed."""
        return not self.missing

    @property
    def missing(self) -> list[str]:
        """Its places that do not exist."""
        return [place for place in self.places if not self._at(place)]

    def _at(self, place: str) -> bool:
        kind, _, name = place.partition(" ")
        try:
            if kind == "cited":
                said = importlib.import_module(f"ssl_lab.{name}").__doc__ or ""
                return (self.arxiv or self.title) in " ".join(said.split())
            return _FINDERS[kind](name)
        except (UsageError, ImportError, AttributeError):
            return False

    @property
    def how(self) -> str:
        """How it is run, place by place."""
        missing = self.missing
        return "; ".join("not yet" if place in missing else command(place) for place in self.places)


def papers() -> list[Paper]:
    """All of them, in order."""
    with (Path(__file__).parent / "papers.csv").open(encoding="utf-8", newline="") as file:
        return [Paper(number, row["title"], row["arxiv"], tuple(row["places"].split("; ")))
                for number, row in enumerate(csv.DictReader(file), start=1)]


def listed() -> list[dict[str, str]]:
    """The rows of `ssl-lab list --papers`."""
    return [{"row": str(each.number), "arxiv": each.arxiv or "none", "paper": each.title,
             "name": ", ".join(place.partition(" ")[2] for place in each.places),
             "how": each.how} for each in papers()]


def command(place: str) -> str:
    """How what the place names is run: a command, flags of one, or lines of code."""
    kind, _, name = place.partition(" ")
    if kind == "method":
        from ssl_lab.methods import METHODS

        recipe = METHODS[name].recipe
        alone = Path(recipe).stem == name  # a recipe of its own
        return f"python {recipe}" + ("" if alone else f" --method {name}")
    quoted = f'"{name}"' if "(" in name else name
    module, _, function = name.partition(":")
    return {"with": f"--with {quoted}", "optimizer": f"--optimizer {quoted}", "net": f"--net {name}",
            "compress": f"python recipes/compress.py --how {name}", "recipe": f"python recipes/{name}.py",
            "code": f"from ssl_lab.{module} import {function}", "cited": f"read: it guided ssl_lab.{name}"}[kind]


def _method(name: str) -> bool:
    from ssl_lab.methods import METHODS

    return name in METHODS


def _technique(text: str) -> bool:
    from ssl_lab.techniques import technique

    return bool(technique(text).name)


def _optimizer(name: str) -> bool:
    from ssl_lab.optim import OPTIMIZERS

    return name in OPTIMIZERS


def _net(name: str) -> bool:
    import torch

    from ssl_lab.batch import Style
    from ssl_lab.nets import net

    with torch.device("meta"):  # shapes alone
        return net(name, 2, Style(height=8, width=8)).name == name


def _compress(name: str) -> bool:
    return name in importlib.import_module("ssl_lab.compress").WAYS


def _code(name: str) -> bool:
    module, _, attribute = name.partition(":")
    return hasattr(importlib.import_module(f"ssl_lab.{module}"), attribute)


def _recipe(name: str) -> bool:
    """Recipes are not installed: there, the code that they are thin calls of is what exists."""
    recipes = Path(__file__).parent.parent / "recipes"
    return not recipes.is_dir() or (recipes / f"{name}.py").is_file()


_FINDERS: dict[str, Callable[[str], bool]] = {
    "method": _method, "with": _technique, "optimizer": _optimizer, "net": _net, "compress": _compress, "code": _code,
    "recipe": _recipe}
