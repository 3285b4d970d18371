"""Texts that describe something by a name and arguments: `fixmatch(threshold=0.7)`, `prefilter(margin, k_center)`,
`linear(0, 1, until=0.3)`, `package.module:Class(power=2)`. Methods, queries and schedules are read by this one grammar.

Reading a text runs nothing: it gives a `Call`. Only `imported` imports a module, which whoever takes texts from files
that others wrote must not do (see `config.may_run`).
"""

from __future__ import annotations

import ast
import hashlib
import importlib
import inspect
import os
import re
import sys
import traceback
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, NoReturn, TypeVar, cast

from ssl_lab.errors import UsageError

T = TypeVar("T")
COLON = "__colon__"  # stands for the colon of package.module:Class, which is no Python
LONGEST = 80  # letters in the name of a folder


@dataclass(frozen=True)
class Call:
    """A name and the arguments in the parentheses after it, if there are any: numbers, texts in quotes, truth values,
    None, lists of such, and other Calls.

    called: whether there are parentheses. Its str is the text that is read as the same Call, however it was spaced.
    """

    name: str
    args: tuple[Any, ...] = ()
    named: Mapping[str, Any] = field(default_factory=dict)
    called: bool = True

    def __str__(self) -> str:
        words = [*map(str, map(_Shown, self.args)), *(f"{word}={_Shown(value)}" for word, value in self.named.items())]
        return f"{self.name}({', '.join(words)})" if words else self.name


class _Shown:
    """A value as a text has it."""

    def __init__(self, value: Any) -> None:
        self.value = value

    def __str__(self) -> str:
        if isinstance(self.value, list):
            return f"[{', '.join(str(_Shown(each)) for each in self.value)}]"
        return str(self.value) if isinstance(self.value, Call) else repr(self.value)


def read(text: str, kind: str, example: str) -> Call:
    """The Call that a text describes. UsageError, which names the kind and an example, where it describes none."""
    try:
        node = ast.parse(text.replace(":", COLON).strip(), mode="eval").body
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        node = None
    if not isinstance(node, ast.Name | ast.Attribute | ast.Call):
        if file := re.match(r"\s*([\w./\\-]+)\.py:(\w+)", text):
            module = re.sub(r"[/\\]+", ".", file[1]).strip(".")
            raise UsageError(f"{text!r} names a file; the {kind} is {module}:{file[2]}, a module and what is in it")
        raise UsageError(f"{text!r} describes no {kind}; expected a name, with arguments as in {example}")
    try:
        return _call(node)
    except RecursionError:
        raise UsageError(f"{text[:40]!r}... describes no {kind}: it is too deep") from None


def split(text: str, at: str = ",") -> list[str]:
    """The descriptions of several things, at commas (or another sign) outside of parentheses, brackets, quotes."""
    parts, depth, quote = [""], 0, ""
    for letter in text:
        if quote or letter in "'\"":
            quote = "" if letter == quote else quote or letter
        else:
            depth += (letter in "([{") - (letter in ")]}")
        if letter == at and not depth and not quote:
            parts.append("")
        else:
            parts[-1] += letter
    return [part.strip() for part in parts]


def make(call: Call, find: Callable[[str], Callable[..., T]], literal: Callable[[Any], Any] = lambda value: value) -> T:
    """What a Call describes: the maker that `find` gives for its name, called with its arguments, where Calls are made
    likewise and anything else is what `literal` makes of it.

    UsageError for arguments that the maker does not have or take.
    """
    maker = find(call.name)
    known = inspect.signature(maker)

    def value(given: Any) -> Any:
        if isinstance(given, list):
            return [value(each) for each in given]
        return make(given, find, literal) if isinstance(given, Call) else literal(given)

    try:
        bound = known.bind(*map(value, call.args), **{word: value(given) for word, given in call.named.items()})
        return maker(*bound.args, **bound.kwargs)
    except UsageError:
        raise
    except Exception as error:  # of a text that is no number, a file that is no array, an argument of another kind
        raise UsageError(f"{call.name}: {error}; its arguments are ({', '.join(known.parameters)})") from error


def imported(name: str, base: type[T], kind: str) -> type[T]:
    """The class "package.module:Class", a subclass of `base`; the module may lie in the current folder. Where base is
    object, it may be any callable.

    UsageError for what cannot be imported or is something else.
    """
    module, _, attribute = name.partition(":")
    if os.getcwd() not in sys.path:
        sys.path.append(os.getcwd())
    try:
        home = importlib.import_module(module)
    except Exception as error:  # also of what the module itself does wrong
        _refuse(name, kind, _said(module, error), error)
    found = getattr(home, attribute, None)
    if found is None:
        fit = [key for key, value in vars(home).items() if isinstance(value, type) and issubclass(value, base)
               and value.__module__ == home.__name__]
        has = f"; it has {', '.join(fit)}" if fit else ""
        _refuse(name, kind, f"module {module!r} has no attribute {attribute!r}{has}", None)
    if base is object and callable(found):
        return cast(type[T], found)
    if not (isinstance(found, type) and issubclass(found, base)):
        raise UsageError(f"{name} is not a subclass of {base.__module__}.{base.__qualname__}")
    return found


def as_file_name(text: str) -> str:
    """A name for files and folders of what this text describes, another one for each text: `fixmatch(weight=2)` is
    fixmatch,weight=2."""
    plain = re.sub(r"\)$", "", text.replace(":", ".").replace(", ", ",").replace("(", ",", 1))
    safe = re.sub(r"[^\w.,=+-]+", "_", plain).strip("._")
    if safe == plain and len(safe) <= LONGEST:
        return safe
    return f"{safe[:LONGEST]}-{hashlib.blake2b(text.encode(), digest_size=3).hexdigest()}"


def _call(node: ast.Name | ast.Attribute | ast.Call) -> Call:
    if not isinstance(node, ast.Call):
        return Call(_text(node), called=False)
    name = _text(node.func)
    words = {word.arg or "**": word.value for word in node.keywords}
    if "**" in words or any(isinstance(value, ast.Starred) for value in node.args):
        raise UsageError(f"{name}: descriptions have no arguments with * or **; name each of them")
    if len(words) < len(node.keywords):
        raise UsageError(f"{name}: an argument is given twice in {_text(node)}")
    return Call(name, tuple(_value(name, value) for value in node.args),
                {word: _value(name, value) for word, value in words.items()})


def _value(name: str, node: ast.expr) -> Any:
    if isinstance(node, ast.Name | ast.Attribute | ast.Call):
        return _call(node)
    if isinstance(node, ast.List | ast.Tuple):
        return [_value(name, each) for each in node.elts]
    try:
        value = ast.literal_eval(node)
    except (ValueError, TypeError, SyntaxError):
        raise UsageError(f"{name}: {_text(node)} is no argument; expected a number, a text in quotes, True, False, "
                         "None, a list of such, or another description") from None
    return value.replace(COLON, ":") if isinstance(value, str) else value


def _text(node: ast.expr) -> str:
    return ast.unparse(node).replace(COLON, ":")


def _said(module: str, error: Exception) -> str:
    """What an import failed by, and where if within the module."""
    if isinstance(error, ImportError) and module.endswith(".py"):
        return f"{module} is a file; the module is {module.removesuffix('.py').replace('/', '.')}"
    if isinstance(error, ImportError | ValueError):
        return str(error)
    if isinstance(error, SyntaxError):
        return f"{type(error).__name__}: {error}"
    frame = traceback.extract_tb(error.__traceback__)[-1]
    return f"{type(error).__name__}: {error} ({frame.filename}, line {frame.lineno})"


def _refuse(name: str, kind: str, why: str, error: Exception | None) -> NoReturn:
    raise UsageError(f"cannot load the {kind} {name!r}: {why}. Expected package.module:Class, importable from here or "
                     "installed") from error
