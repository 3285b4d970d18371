"""Views by name: `weak`, `strong(ops=3, cutout=0.25)`, `mypackage.views:Mine`; and what a run says of its own."""

from __future__ import annotations

import inspect
import re
from collections.abc import Hashable, Mapping, Sequence
from functools import partial
from typing import Any

from torch import nn

from ssl_lab import schedule, texts
from ssl_lab.batch import Style
from ssl_lab.errors import UsageError, unknown
from ssl_lab.notes import once
from ssl_lab.texts import Call
from ssl_lab.views import checks
from ssl_lab.views.base import View, ViewFactory
from ssl_lab.views.contrastive import SimCLRView, crop
from ssl_lab.views.foreign import Kornia, Torchvision
from ssl_lab.views.kornia_presets import StrongKornia, WeakKornia, simclr_kornia
from ssl_lab.views.presets import Eval, Strong, Weak

VIEWS: dict[str, ViewFactory] = {
    "weak": Weak, "strong": Strong, "simclr": SimCLRView, "crop": crop, "eval": Eval,
    "weak_kornia": WeakKornia, "strong_kornia": StrongKornia, "simclr_kornia": simclr_kornia,
}
"""The named views; `ssl-lab list views` prints each with the first line of its docstring."""
OURS = {"cpu": "1.9 to 3.2 times as fast as Kornia's on one core of an Intel Xeon, from 32 to 224 px",
        "cuda": "strong and simclr 1.5 to 2.4 times as fast as Kornia's on an NVIDIA H200, weak 0.5 to 1.1 times, from "
                "32 to 224 px"}
"""Why methods take weak, strong and simclr and not those by Kornia, by device (tests/benchmarks/README.md)."""
FOREIGN = {Kornia: "kornia", Torchvision: "torchvision"}
MIRRORED = "--flip off if that can change a class (letters, arrows, left and right)"


def named(text: str | Call, modules: bool = True) -> ViewFactory:
    """The view that a text describes: a name of `VIEWS`, or package.module:MyView, a callable from a `Style` to a
    `View`; with arguments by name if there are any, as in strong(ops=3).

    Args:
        text: as above, or what was read of it.
        modules: whether the text may import a module, which one from a file of settings may not.

    Raises:
        UsageError: for what is no view, and for arguments that it does not have.

    >>> sl.views.named("strong(ops=3)")(sl.Style()).ops
    3
    """
    call = texts.read(text, "view", "strong(ops=3)") if isinstance(text, str) else text
    if modules and ":" in call.name:
        found: Any = texts.imported(call.name, object, "view")
        if isinstance(found, nn.Module):
            raise UsageError(f"{call.name} is a module, and no view: write sl.views.kornia(...) around augmentations "
                             "of Kornia, sl.views.torchvision(...) around others")
        factory: ViewFactory = found
    elif call.name in VIEWS:
        factory = VIEWS[call.name]
    else:
        raise unknown("view", call.name, VIEWS, "See `ssl-lab list views`; your own is package.module:MyView.")
    if call.args:
        known = [*list(inspect.signature(factory).parameters)[1:], "ops"]
        raise UsageError(f"{call}: a view's arguments have names, as in {call.name}({known[0]}={call.args[0]})")
    arguments = {name: schedule.parse(str(value)) if isinstance(value, Call) else value
                 for name, value in call.named.items()}
    try:
        inspect.signature(factory).bind(None, **arguments)
    except TypeError as error:
        takes = ", ".join(list(inspect.signature(factory).parameters)[1:])
        raise UsageError(f"{call}: {error}; its arguments are ({takes})") from None
    return partial(factory, **arguments) if arguments else factory


def by_name(given: Sequence[str]) -> dict[str, ViewFactory]:
    """The views that texts give to names, as in strong=simclr; a text alone stands for the name "".

    Args:
        given: texts, each NAME=VIEW, or a VIEW as `named` reads it.

    Raises:
        UsageError: where one name is given two, and as in `named`.

    >>> views = sl.views.by_name(["weak=simclr", "strong=strong(ops=3)"])
    >>> views["weak"].__name__, views["strong"](sl.Style()).ops
    ('SimCLRView', 3)
    """
    found: dict[str, ViewFactory] = {}
    for text in given:
        split = re.fullmatch(r"\s*(\w+)\s*=\s*(.*)", text, re.DOTALL)
        name, view = split.groups() if split else ("", text)
        if name in found:
            raise UsageError(f"--view {text}: {name or 'the view'} is given twice")
        found[name] = named(view)
    return found


def replaced(method: str, kinds: Mapping[str, Mapping[str, ViewFactory]],
             changes: Mapping[str, ViewFactory]) -> dict[str, dict[str, ViewFactory]]:
    """A method's views of each kind of images, with others under some of their names, in all kinds alike; `weak` is
    weak_1, weak_2 and so on too, and "" any name.

    UsageError for a name that no view has, and for one view in place of several different ones.
    """
    views = [pair for kind in kinds.values() for pair in kind.items()]
    stems = list(dict.fromkeys(_stem(name) for name, _ in views))
    for name in changes:
        if not name and len({text_of(factory) for _, factory in views}) > 1:
            raise UsageError(f"{method} has the views {', '.join(stems)}; say which one to replace, as in "
                             f"--view {stems[-1]}=simclr")
        if name and name not in {*stems, *(each for each, _ in views)}:
            raise unknown(f"view of {method}", name, stems)
    return {kind: {name: changes.get(name, changes.get(_stem(name), changes.get("", factory)))
                   for name, factory in views.items()} for kind, views in kinds.items()}


def _stem(name: str) -> str:
    return re.sub(r"_\d+$", "", name)


def text_of(factory: ViewFactory) -> str:
    """How `named` has this view; of one that it does not know, what tells it from others."""
    for name, known in (*VIEWS.items(), *((name, kind) for kind, name in FOREIGN.items())):
        if factory is known:
            return name
    if isinstance(factory, partial):
        words = [*map(repr, factory.args), *(f"{name}={value!r}" for name, value in factory.keywords.items())]
        return _without_addresses(f"{text_of(factory.func)}({', '.join(words)})")
    if hasattr(factory, "__qualname__"):
        return f"{factory.__module__}:{factory.__qualname__}"
    return _without_addresses(repr(factory))


def _without_addresses(text: str) -> str:
    """What a resumed run says too."""
    return re.sub(r" at 0x[0-9a-fA-F]+", "", " ".join(text.split()))


def built(name: str, factory: ViewFactory, style: Style) -> View:
    """The view for these images. One that is not the house's is tried first, once in a process: UsageError if what it
    makes are no images of [0, 1], and a word where it breaks the rest of the contract."""
    try:
        view = factory(style)
    except UsageError as error:
        raise UsageError(f"view {name}: {error}") from error
    except Exception as error:
        raise UsageError(f"view {name}: {text_of(factory)} is no view of a style ({type(error).__name__}: {error}); "
                         "expected a function of a Style that returns a function of (images, draw)") from error
    held = _identity(factory), style
    if type(view).__module__.startswith("ssl_lab.") or held in _HELD:
        return view
    try:
        checks.check_pixels(view, style)
    except Exception as error:
        raise UsageError(f"view {name}: {_said(error)}") from error
    try:
        checks.check_rows(view, style)
    except AssertionError as error:
        once(f"note: view {_said(error)}. It is used all the same; ssl_lab.testing.check_views holds it to the "
             "contract")
    _HELD.add(held)
    return view


_HELD: set[tuple[Hashable, Style]] = set()
"""Factories, and the styles whose views of theirs were held to the contract."""


def _identity(factory: ViewFactory) -> Hashable:
    """Equal for factories that are one function with equal arguments."""
    try:
        found = (factory.func, factory.args, *factory.keywords.items()) if isinstance(factory, partial) else factory
        hash(found)
    except TypeError:  # an argument, as a list, is equal to none but itself
        return id(factory)
    return found


def _said(error: Exception) -> str:
    return str(error) if isinstance(error, AssertionError) else f"{type(error).__name__}: {error}"


def said_of(factories: Mapping[str, Mapping[str, ViewFactory]], views: Mapping[str, Mapping[str, View]]) -> str:
    """In a line which views a run has of each kind of images, and which of them may mirror images."""
    kinds = [f"{kind} {', '.join(_shown(name, made[name], views[kind][name]) for name in made)}"
             for kind, made in factories.items() if made]
    names = {answer: [name for name, view in all_views(views) if mirrors(view) is answer] for answer in (True, None)}
    yes, unsaid = (" and ".join(dict.fromkeys(names[answer])) for answer in (True, None))
    words = [*([f"{yes} may mirror images left-right"] if yes else []),
             *([f"{unsaid} does not say whether it mirrors images"] if unsaid else [])]
    return f"views: {'; '.join([*kinds, *(words or ['none mirrors images'])])}"


def all_views(views: Mapping[str, Mapping[str, View]]) -> list[tuple[str, View]]:
    """Name and view, of all kinds."""
    return [pair for kind in views.values() for pair in kind.items()]


def mirrors(view: View) -> bool | None:
    """Whether a view may mirror an image left-right; None if it does not say."""
    answer: bool | None = getattr(view, "mirrors", None)
    return answer


def _shown(name: str, factory: ViewFactory, view: View) -> str:
    """weak, or strong=simclr."""
    long = isinstance(factory, partial) and factory.func in FOREIGN
    text = repr(view) if long else text_of(factory)
    return name if text == name else f"{name}={text}"
