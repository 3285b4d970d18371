"""What a word of `ssl-lab` takes, read from its file: to import what it works with takes seconds, and its flags need
none of that. Imports no torch.
"""

from __future__ import annotations

import ast
import functools
import importlib
from collections.abc import Callable
from pathlib import Path
from types import FunctionType
from typing import Any

PACKAGE = __name__.partition(".")[0]


def announced(place: str) -> Callable[..., object]:
    """The function at "module:name" of this package, with its arguments and docstring. Its module is imported when it
    is called.

    >>> from ssl_lab.signatures import announced
    >>> announced("find_lr:find_lr").__name__
    'find_lr'
    """
    module, _, name = place.partition(":")
    shown = _shown(f"{PACKAGE}.{module}", name)

    @functools.wraps(shown)
    def word(*arguments: Any, **named: Any) -> object:
        return getattr(importlib.import_module(f"{PACKAGE}.{module}"), name)(*arguments, **named)

    return word


def _shown(module: str, name: str) -> FunctionType:
    """The function without what it does and returns: its arguments, their types and defaults, and its docstring."""
    file, definitions = _definitions(module)
    function = definitions[name]
    assert isinstance(function, ast.FunctionDef)
    function = ast.FunctionDef(**{**vars(function), "body": function.body[:1], "decorator_list": [], "returns": None})
    known: dict[str, Any] = {"__name__": module}
    for each in ast.walk(function):  # with `from __future__ import annotations`, types are looked up by who asks
        if isinstance(each, ast.Name) and each.id in definitions:
            known[each.id] = _value(module, each.id)
    flags = annotations.compiler_flag
    exec(compile(ast.Module([function], []), str(file), "exec", flags), known)
    shown = known[name]
    assert isinstance(shown, FunctionType)
    return shown


def _value(module: str, name: str) -> Any:
    """The value of a name of a module. Where it is a text, a number or a type that is written out, as in
    `Kind = Literal["a", "b"]`, or a name of another such module, no module of this package is imported for it."""
    file, definitions = _definitions(module)
    found = definitions.get(name)
    if isinstance(found, ast.ImportFrom) and str(found.module).startswith(f"{PACKAGE}."):
        return _value(str(found.module), next(each.name for each in found.names if (each.asname or each.name) == name))
    if isinstance(found, ast.ImportFrom | ast.Import):
        known: dict[str, Any] = {}
        exec(compile(ast.Module([found], []), str(file), "exec"), known)
        return known[name]
    if isinstance(found, ast.Assign | ast.AnnAssign) and found.value is not None and _is_written_out(found.value):
        known = {each.id: _value(module, each.id) for each in ast.walk(found.value)
                 if isinstance(each, ast.Name) and each.id in definitions}
        return eval(compile(ast.Expression(found.value), str(file), "eval"), known)
    return getattr(importlib.import_module(module), name)


def _is_written_out(value: ast.expr) -> bool:
    return not any(isinstance(each, ast.Call | ast.Lambda | ast.comprehension) for each in ast.walk(value))


@functools.cache
def _definitions(module: str) -> tuple[Path, dict[str, ast.stmt]]:
    """The file of a module of this package, and its statements by the names that they define."""
    place = Path(__file__).parent.joinpath(*module.split(".")[1:])
    file = place / "__init__.py" if place.is_dir() else place.with_suffix(".py")
    found: dict[str, ast.stmt] = {}
    for each in ast.parse(file.read_text(encoding="utf-8")).body:
        if isinstance(each, ast.Import | ast.ImportFrom):
            found |= {(alias.asname or alias.name).partition(".")[0]: each for alias in each.names}
        elif isinstance(each, ast.Assign):
            found |= {target.id: each for target in each.targets if isinstance(target, ast.Name)}
        elif isinstance(each, ast.AnnAssign) and isinstance(each.target, ast.Name):
            found[each.target.id] = each
        elif isinstance(each, ast.FunctionDef | ast.ClassDef):
            found[each.name] = each
    return file, found
