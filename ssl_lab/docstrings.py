"""What docstrings say of arguments: those of a function or a class, and of the classes that it is made of."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable

TITLES = ("Args", "Attributes")
SECTION = re.compile(rf"^({'|'.join(TITLES)}):\n((?: .*\n|\n(?= ))*)", re.M)
ENTRY = re.compile(r"^    (\*{0,2}\w+(?:, \*{0,2}\w+)*): .*\n(?:     +.*\n)*", re.M)


def entries(text: str, *titles: str) -> dict[str, str]:
    """Each name that has an entry under these titles (default: Args and Attributes), with the entry, which may be of
    several names."""
    found = [entry for section in SECTION.finditer(text + "\n") if section[1] in (titles or TITLES)
             for entry in ENTRY.finditer(section[2])]
    return {name.strip("* "): entry[0] for entry in found for name in entry[1].split(",")}


def arguments(made: type) -> dict[str, str]:
    """Each argument of the constructor that is described, by the class or the next of its bases, with the entry."""
    known: dict[str, str] = {}
    for each in made.__mro__:
        if each.__module__.startswith("ssl_lab"):
            known = entries(inspect.cleandoc(each.__doc__ or "")) | _at_init(each) | known
    return {name: known[name] for name in parameters(made) if name in known}


def _at_init(made: type) -> dict[str, str]:
    """The entries of the constructor itself, which pages show beside the class."""
    return entries(inspect.cleandoc(getattr(vars(made).get("__init__"), "__doc__", None) or ""))


def parameters(made: Callable[..., object]) -> list[str]:
    """The names of the arguments of a function, or of a class's constructor."""
    try:
        return list(inspect.signature(made).parameters)
    except ValueError:  # of classes that are made in C
        return []


def with_inherited(made: type, text: str) -> str:
    """A docstring, without its indentation, with the arguments that only bases describe at the end of its own."""
    own, described = entries(text) | _at_init(made), arguments(made)
    more = "".join(dict.fromkeys(entry for name, entry in described.items() if name not in own))
    section = SECTION.search(text + "\n")
    if not more:
        return text
    if section:
        return f"{text[:section.end()].rstrip()}\n{more}{text[section.end():]}"
    before, mark, example = text.partition("\n>>> ")
    return f"{before.rstrip()}\n\nArgs:\n{more}{mark}{example}"
