"""What people call by name: it changes on purpose, says what it is, and has an example that runs.

The names are in public_names.txt; after a change that is meant, `python tests/test_public.py` writes them anew.
"""

import doctest
import importlib
import inspect
import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

import ssl_lab as sl
from ssl_lab.docstrings import arguments, entries, parameters, with_inherited

ROOT = Path(__file__).parent.parent
NAMES = Path(__file__).parent / "public_names.txt"
MODULES = ("active", "analysis", "compress", "data", "engine", "features", "losses", "methods", "nets", "optim",
           "report", "schedule", "techniques", "testing", "views")


WITHOUT_EXAMPLE = {
    "sl.Model": "what sl.open gives, whose example uses it",
    "sl.Trainer": "its file stays under 250 lines; sl.Result's example trains",
    "sl.labels": "a word of `ssl-lab`: its example is the command in the README",
    "sl.launch": "the last line of each recipe",
    "sl.query": "a word of `ssl-lab`: its example is the command in --help",
}
"""And why."""


EXTRAS = {
    "ssl_lab.compress.cost": ("onnxscript", "onnxruntime"),
    "ssl_lab.compress.int8": ("onnxscript", "onnxruntime"),
    "ssl_lab.techniques.weights.slimming": ("torch_pruning",),
    "ssl_lab.techniques.weights.taylor": ("torch_pruning",),
}
"""What examples need that is not always installed."""


def public() -> list[str]:
    """Every name that is meant to be used, as `sl` has it, sorted."""
    inside = [f"sl.{module}.{name}" for module in MODULES for name in getattr(sl, module).__all__]
    return sorted([f"sl.{name}" for name in dir(sl)] + inside)


def value(name: str) -> object:
    found: object = sl
    for part in name.split(".")[1:]:
        found = getattr(found, part)
    return found


def test_names_change_on_purpose():
    listed = NAMES.read_text().split()
    assert public() == listed, "if this is meant, run `python tests/test_public.py`"


def described() -> list[str]:
    """Functions and classes, each by its shortest name."""
    names: dict[int, str] = {}
    for name in sorted(NAMES.read_text().split(), key=lambda name: (name.count("."), name)):
        found = value(name)
        if inspect.isclass(found) or inspect.isfunction(found):
            names.setdefault(id(found), name)
    return list(names.values())


def test_each_has_an_example():
    without = {name for name in described() if ">>>" not in (value(name).__doc__ or "")}
    assert without == WITHOUT_EXAMPLE.keys()


WITHOUT_ARGUMENTS = {
    "sl.ActiveLoop": "budget, rounds, device and precision are said where `query` and the trainer's are",
    "sl.Settings": "each field has a comment, which --help shows",
}
"""And why."""


def test_each_argument_of_a_class_is_described():
    """In a field of its docstring, or of a base's: `Args:` or `Attributes:`."""
    classes = {name: made for name in described() if inspect.isclass(made := value(name))}
    missing = {name: sorted({*parameters(made)} - {*arguments(made)} - {"args", "kwargs"})
               for name, made in classes.items() if made.__init__ is not object.__init__ and not hasattr(made, "args")}
    assert {name: names for name, names in missing.items() if names and name not in WITHOUT_ARGUMENTS} == {}
    assert missing.keys() >= WITHOUT_ARGUMENTS.keys()


def functions() -> dict[str, Callable[..., object]]:
    """Those that are public, and those that words of `ssl-lab` call."""
    words = {f"sl.{word}": sl.function_of(word) for word in sl.WORDS}
    return words | {name: found for name in described() if inspect.isfunction(found := value(name))}


def undescribed(function: Callable[..., object]) -> list[str]:
    """Arguments without an entry under `Args:`, unless there is only one, which the first paragraph names; and entries
    that are of no argument."""
    text, taken = inspect.getdoc(function) or "", parameters(function)
    first, given = text.partition("\n\n")[0], entries(text, "Args")
    missing = [] if len(taken) == 1 and re.search(rf"\b{taken[0]}\b", first) else sorted({*taken} - given.keys())
    return missing + sorted(given.keys() - {*taken})


def test_each_argument_of_a_function_is_described():
    assert {name: wrong for name, function in functions().items() if (wrong := undescribed(function))} == {}
    assert len(functions()) > 150


def test_what_is_not_described_is_found():
    def named(rows: int) -> None:
        """So many rows."""

    def one(rows: int) -> None:
        """So many.

        >>> one(rows=1)
        """

    def two(rows: int, columns: int) -> None:
        """So many rows and columns.

        Args:
            rows: a number.
            lines: another.
        """

    assert [undescribed(each) for each in (named, one, two)] == [[], ["rows"], ["columns", "lines"]]


def test_each_entry_of_a_class_is_of_an_argument():
    """Under `Args:`, of its own; what it has beside them is under `Attributes:`."""
    classes = {name: made for name in described() if inspect.isclass(made := value(name))}
    stale = {name: entries(inspect.cleandoc(vars(made)["__doc__"] or ""), "Args").keys() - {*parameters(made)}
             for name, made in classes.items()}
    assert {name: names for name, names in stale.items() if names} == {}


def test_arguments_that_bases_describe_are_shown():
    shown = with_inherited(sl.FitNet, inspect.getdoc(sl.FitNet))
    assert {"net", "teacher", "layers", "teacher_layers", "labeled", "view", "ema"} <= entries(shown).keys()
    assert shown.index("Args:") < shown.index("teacher_layers: submodules") < shown.index(">>>")
    whole = inspect.getdoc(sl.Eval)
    assert with_inherited(sl.Eval, whole) == whole


def modules_with_examples() -> list[str]:
    files = [path for path in sorted((ROOT / "ssl_lab").rglob("*.py")) if "\n    >>> " in path.read_text()]
    return [".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__") for path in files]


@pytest.mark.parametrize("module", modules_with_examples())
def test_examples(module, tmp_path, monkeypatch):
    """Each with sl, torch and np at hand, torch's seed 0, and an empty folder of its own to write to."""
    for extra in EXTRAS.get(module, ()):
        pytest.importorskip(extra)
    finder, runner = doctest.DocTestFinder(), doctest.DocTestRunner(
        verbose=False, optionflags=doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE)
    said: list[str] = []
    names = {"sl": sl, "torch": torch, "np": np, "__name__": "example"}
    with torch.random.fork_rng():
        for number, test in enumerate(finder.find(importlib.import_module(module), globs=names)):
            (tmp_path / str(number)).mkdir()
            monkeypatch.chdir(tmp_path / str(number))
            torch.manual_seed(0)
            runner.run(test, out=said.append)
    assert not runner.failures, "".join(said)
    assert runner.tries


if __name__ == "__main__":
    NAMES.write_text("\n".join(public()) + "\n")
