"""Methods from texts: what a text's words and values stand for, and what a method is told about the pool."""

from __future__ import annotations

import difflib
import inspect
import re
from collections.abc import Callable, Mapping
from functools import partial
from types import NoneType
from typing import Any

import numpy as np
import torch

from ssl_lab import methods, schedule
from ssl_lab.data import Pool, hierarchy
from ssl_lab.errors import UsageError
from ssl_lab.methods import Method
from ssl_lab.nets import Net
from ssl_lab.schedule import Scalar, Schedule
from ssl_lab.seeds import seeded
from ssl_lab.texts import Call
from ssl_lab.views import ViewFactory, named

VARIABLE = (inspect.Parameter.VAR_KEYWORD, inspect.Parameter.VAR_POSITIONAL)
# What an argument may be, by how the method's __init__ annotates it; of other annotations, anything.
TAKES: dict[str, tuple[str, tuple[type, ...]]] = {
    "bool": ("True or False", (bool,)),
    "int": ("a whole number", (int,)),
    "int | None": ("a whole number", (int, NoneType)),
    "float": ("a number", (int, float)),
    "Scalar": ("a number, or a schedule such as linear(0, 1, until=0.3)", (int, float, Schedule)),
}


def method(text: str, net: Net, pool: Pool, arguments: Mapping[str, Any],
          defaults: Mapping[str, Any] | None = None) -> Method:
    """The method that a text describes (see `methods.described`) around `net`, for this pool.

    arguments: beside those in the text. defaults: where neither says otherwise, for those arguments that the method
    has. Those that describe the pool are filled in where the method has them: images (its size), rows (those that
    train), unlabeled (how many these are), class_counts (labels by class), parents (the superclass of each class).

    Of texts among the arguments, one with a parenthesis is a schedule, True and False are truth values, and a view goes
    by its name; in the method's own text, a view may also be package.module:MyView and have arguments, and a method may
    stand where the method takes one. Raises UsageError for an argument that the method does not have or cannot take, is
    given twice, or is needed and was not given.
    """
    found, call = methods.described(text)
    name = call.name
    known = dict(list(inspect.signature(found).parameters.items())[1:])  # without the net
    anything = any(parameter.kind is parameter.VAR_KEYWORD for parameter in known.values())
    known = {word: parameter for word, parameter in known.items() if parameter.kind not in VARIABLE}
    if len(call.args) > len(known):
        raise UsageError(f"{call} has {len(call.args)} arguments without a name; {name} takes {', '.join(known)}")
    said = dict(zip(known, call.args, strict=False))
    if twice := said.keys() & call.named.keys():
        raise UsageError(f"{call}: {', '.join(sorted(twice))} is given twice")
    said |= call.named
    for argument in (*said, *arguments):
        if argument not in known and not anything:
            raise _unknown_argument(name, argument, known)
    given = {word: value for word, value in (defaults or {}).items() if word in known}
    given |= {word: _read(name, known.get(word), value) for word, value in arguments.items()}
    for word, value in said.items():
        made = _read(name, known.get(word), value)
        if word in arguments and repr(made) != repr(given[word]):
            raise UsageError(f"{call}: {word} is also given as {arguments[word]!r}; leave out one of the two")
        given[word] = made
    given |= {word: fact() for word, fact in _facts(pool).items() if word in known and word not in given}
    missing = [word for word, parameter in known.items()
               if parameter.default is parameter.empty and word not in given]
    if missing:
        recipe = getattr(found, "recipe", "")
        how = f"which {recipe} finds for it" if recipe else f"as in {name}({missing[0]}=...)"
        raise UsageError(f"{name} needs {', '.join(missing)}, {how}")
    with seeded("method", repr(float(net.head.weight.detach().double().sum()))):  # weights of its own go by the seed
        return found(net, **given)


def _facts(pool: Pool) -> dict[str, Callable[[], Any]]:
    """What methods may be told about the pool, by the name of the argument."""
    return {
        "images": lambda: len(pool),
        "rows": lambda: torch.from_numpy(pool.unlabeled),
        "unlabeled": lambda: len(pool.unlabeled),
        "class_counts": lambda: np.bincount(pool.labels[pool.labeled], minlength=pool.classes).tolist(),
        "parents": lambda: [hierarchy.parents(pool)],
    }


def _unknown_argument(method: str, argument: str, known: Mapping[str, Any]) -> UsageError:
    near = difflib.get_close_matches(argument, known, n=1)
    return UsageError(f"{method} has no argument {argument!r}; it has {', '.join(known) or 'none'}"
                      + (f". Did you mean {near[0]}?" if near else ""))


def _read(method: str, parameter: inspect.Parameter | None, value: Any) -> Any:
    """An argument's value as the method takes it: what a text or a Call stands for, anything else as it is."""
    annotation = "" if parameter is None else _annotation(parameter.annotation)
    if "ViewFactory" in annotation and isinstance(value, Call | str):
        return named(value, modules=isinstance(value, Call))  # settings from a file may not import one
    if isinstance(value, Call):
        value = _described(value, annotation)
    elif isinstance(value, str):
        value = schedule.parse(value) if "(" in value else {"True": True, "False": False}.get(value, value)
    expected, types = TAKES.get(annotation, ("", ()))
    if parameter is not None and types and type(value) not in types:  # a bool is an instance of int
        raise UsageError(f"{method}: {parameter.name} is {value!r}; expected {expected}")
    return value


def _annotation(annotation: Any) -> str:
    """As the house's own methods have it, which postpone its evaluation."""
    if isinstance(annotation, str):
        return annotation.rpartition(".")[2] if re.fullmatch(r"[\w.]+", annotation) else annotation
    for name, meant in (("Scalar", Scalar), ("ViewFactory", ViewFactory)):
        if annotation == meant:
            return name
    return annotation.__name__ if isinstance(annotation, type) else str(annotation)


def _described(value: Call, annotation: str) -> Any:
    """A schedule, a method that makes another one around a net, or the word itself."""
    if "Method" in annotation:
        inner, call = methods.described(str(value))
        known = list(inspect.signature(inner).parameters)[1:]
        words = dict(zip(known, call.args, strict=False)) | dict(call.named)
        kinds = inspect.signature(inner).parameters
        for word in words:
            if word not in kinds:
                raise _unknown_argument(call.name, word, dict.fromkeys(known))
        return partial(inner, **{word: _read(call.name, kinds[word], given) for word, given in words.items()})
    return schedule.parse(str(value)) if value.called else value.name
