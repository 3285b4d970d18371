"""Texts that describe something by a name and arguments: `fixmatch(threshold=0.7)`, `prefilter(margin, k_center)`,
`linear(0, 1, until=0.3)`, `package.module:Class(power=2)`. Methods, queries and schedules are read by this one grammar.
`folder/file.py:Class`, below the current folder, is the module's `folder.file:Class`.

Reading a text runs nothing: it gives a `Call`. Only `imported` and `given` import a module, which whoever takes texts
from files that others wrote must not do (see `config.may_run`).
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
from pathlib import Path
from typing import Any, NoReturn, TypeVar, cast

from ssl_lab.errors import UsageError

T = TypeVar("T")
COLON = "__colon__"  # stands for the colon of package.module:Class, which is no Python
MODULE = r"\A\s*[^:(){}]+:[A-Za-z_]\w*\s*(\(.*)?\Z"
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
    plain = _of_a_module(text).replace(":", COLON).strip()
    try:
        node = ast.parse(plain, mode="eval").body
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        node = None
    if not isinstance(node, ast.Name | ast.Attribute | ast.Call):
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
    found = _found(name, base, kind)
    if base is object and callable(found):
        return cast(type[T], found)
    if not (isinstance(found, type) and issubclass(found, base)):
        raise UsageError(f"{name} is not a subclass of {base.__module__}.{base.__qualname__}")
    return found


def names_module(text: str) -> bool:
    """Whether this is package.module:Thing or file.py:Thing, perhaps with arguments, and no address or plain path.

    >>> from ssl_lab.texts import names_module
    >>> [names_module(text) for text in ("my.data:Birds(year=2024)", "birds.py:Birds", "birds.csv", "s3://bucket/birds")]
    [True, True, False, False]
    """
    return re.fullmatch(MODULE, text, re.S) is not None


def given(call: Call, kind: str, is_one: Callable[[object], bool]) -> object:
    """What is at "package.module:thing", if it is one of the things that are looked for; else what the function or
    class that is there gives, with the arguments of the Call, which are no Calls.

    UsageError for what cannot be imported or called, and, in one line, for whatever goes wrong in it.
    """
    found = _found(call.name, object, kind)
    if not call.called and not isinstance(found, type) and (is_one(found) or not callable(found)):
        return found
    if not callable(found):
        raise UsageError(f"{call}: {call.name} is a {type(found).__name__}, which takes no arguments")
    for each in (*call.args, *call.named.values()):
        if isinstance(each, Call):
            raise UsageError(f"{call}: {each} is no argument; texts stand in quotes")
    known = inspect.signature(found)
    try:
        bound = known.bind(*call.args, **call.named)
    except TypeError as error:
        raise UsageError(f"{call.name}: {error}; its arguments are ({', '.join(known.parameters)})") from error
    try:
        return found(*bound.args, **bound.kwargs)
    except UsageError:
        raise
    except Exception as error:
        raise UsageError(f"{call} fails: {_with_place(error)}") from error


def _found(name: str, base: type, kind: str) -> object:
    """What is at "package.module:Thing". base: of classes to name where it is not there."""
    module, _, attribute = name.partition(":")
    if os.getcwd() not in sys.path:
        sys.path.append(os.getcwd())
    try:
        home = importlib.import_module(module)
    except Exception as error:  # also of what the module itself does wrong
        _refuse(name, kind, _said(error), error)
    found = getattr(home, attribute, None)
    if found is None:
        fit = [key for key, value in vars(home).items() if isinstance(value, type) and issubclass(value, base)
               and value.__module__ == home.__name__]
        has = f"; it has {', '.join(fit)}" if fit else ""
        _refuse(name, kind, f"module {module!r} has no attribute {attribute!r}{has}", None)
    return found


def _of_a_module(text: str) -> str:
    """A text that begins with a file below the current folder, by the name of its module; others as they are."""
    file = re.match(r"\s*([^\s:()]+)\.py(?=:[A-Za-z_])", text)
    if file is None:
        return text
    try:
        parts = Path(os.path.abspath(os.path.expanduser(file[1]))).relative_to(os.getcwd()).parts
    except ValueError:
        raise UsageError(f"{text!r} names a file that does not lie below the current folder, from which modules are "
                         "imported; start there, or install it and give package.module:Thing") from None
    if not all(part.isidentifier() for part in parts):
        raise UsageError(f"{text!r} names a file that cannot be imported: give it, and its folders, names of letters, "
                         "digits and _ alone")
    return ".".join(parts) + text[file.end():]


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


def _said(error: Exception) -> str:
    """What an import failed by, and where if within the module."""
    if isinstance(error, ImportError | ValueError):
        return str(error)
    return f"{type(error).__name__}: {error}" if isinstance(error, SyntaxError) else _with_place(error)


def _with_place(error: Exception) -> str:
    """What went wrong, and where, in one line."""
    frame = traceback.extract_tb(error.__traceback__)[-1]
    said = " ".join(str(error).split())
    return f"{type(error).__name__}: {said} ({frame.filename}, line {frame.lineno})"


def _refuse(name: str, kind: str, why: str, error: Exception | None) -> NoReturn:
    raise UsageError(f"cannot load the {kind} {name!r}: {why}. Expected package.module:Class, importable from here or "
                     "installed") from error
