"""What `--help` prints: each flag with what it takes, in groups, the most used first, in the width of the terminal.

Flags are read off a dataclass of settings or a function's signature, as tyro does, which parses them.
"""

from __future__ import annotations

import ast
import dataclasses
import functools
import inspect
import re
import shutil
import textwrap
import types
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Annotated, Any, Literal, Union, get_args, get_origin, get_type_hints

from ssl_lab.docstrings import entries

HELP = {"-h", "--help"}
COLUMN = 22  # of a flag, before what it does; a longer one stands on a line of its own
WIDEST = 100
FEW = 13  # flags that need no groups

GROUPS: Mapping[str, tuple[str, ...]] = {
    "data": ("data", "labels", "valid", "split_file", "balance", "imbalance"),
    "method": ("recipe", "method", "arguments", "preset", "net", "pretrained", "weights", "view", "techniques",
               "optimizer"),
    "training": ("steps", "minutes", "labeled", "unlabeled", "lr", "weight_decay", "ema", "bn_momentum", "calibrate"),
    "run": ("out", "resume", "seed", "track", "config", "print_config"),
    "hardware": ("device", "precision", "compile", "micro_batches", "shard"),
    "how images are read": ("image_size", "flip", "resize", "value_range", "background", "class_level", "path_column",
                            "label_column", "split_column", "data_dir", "remote_gb"),
    "advanced": ("forward", "clip", "batch"),
}
"""Titles -> settings, by their names. What is in none of them is what a recipe or a word is about, and comes second."""

_NAMES = {int: "N", float: "NUMBER", str: "TEXT", Path: "PATH", bool: ""}


@dataclasses.dataclass(frozen=True)
class Flag:
    """name: of the setting. typed: how it is given, with what it takes. text: what it does, and its default."""

    name: str
    typed: str
    text: str
    positional: bool = False

    def lines(self, width: int) -> Iterator[str]:
        yield from beside(self.typed, self.text, width, COLUMN)


def beside(name: str, text: str, width: int, column: int) -> Iterator[str]:
    """A name and the text that explains it, or beneath a name that is too long for that."""
    first = f"  {name}".ljust(column + 2)
    if len(name) + 1 > column:
        yield f"  {name}"
        first = " " * (column + 2)
    yield from textwrap.wrap(text, width, initial_indent=first, subsequent_indent=" " * (column + 2),
                             break_on_hyphens=False, break_long_words=False) or [first.rstrip()]


def of_settings(settings: type) -> list[Flag]:
    """Of a dataclass whose fields are documented by the texts beneath them."""
    hints, texts = get_type_hints(settings, include_extras=True), documented(settings)
    return [_flag(field.name, hints[field.name], _default(field), texts.get(field.name, ""))
            for field in dataclasses.fields(settings)]


def of_function(function: Callable[..., object]) -> list[Flag]:
    """Of a function whose docstring says what each argument is, with the fields of dataclasses among them."""
    hints, (_, texts) = get_type_hints(function, include_extras=True), explained(function)
    flags = []
    for name, parameter in inspect.signature(function).parameters.items():
        if dataclasses.is_dataclass(inner := _plain(hints[name])) and isinstance(inner, type):
            flags += of_settings(inner)
        else:
            flags.append(_flag(name, hints[name], parameter.default, texts.get(name, "")))
    return flags


def documented(settings: type) -> dict[str, str]:
    """The fields of a dataclass and of those that it derives from, with the texts beneath them."""
    texts: dict[str, str] = {}
    for each in reversed(settings.__mro__):
        if dataclasses.is_dataclass(each):
            texts |= _beneath(each)
    return texts


@functools.cache
def _beneath(settings: type) -> dict[str, str]:
    """The texts beneath the fields of this class alone."""
    body = ast.parse(textwrap.dedent(inspect.getsource(settings))).body[0]
    assert isinstance(body, ast.ClassDef)
    return {field.target.id: " ".join(str(after.value.value).split()) for field, after in pairwise(body.body)
            if isinstance(field, ast.AnnAssign) and isinstance(field.target, ast.Name)
            and isinstance(after, ast.Expr) and isinstance(after.value, ast.Constant)}


def explained(function: Callable[..., object]) -> tuple[str, dict[str, str]]:
    """A function's docstring: what comes before its sections and examples, and what is said beneath `Args:` of each
    argument."""
    text = inspect.cleandoc(function.__doc__ or "")
    about, *_ = re.split(r"^(?:>>> |\w+:\n)", text, maxsplit=1, flags=re.M)
    return about.strip(), {name: " ".join(entry.partition(": ")[2].split()) for name, entry in entries(text).items()}


def _default(field: dataclasses.Field[Any]) -> Any:
    return field.default if field.default_factory is dataclasses.MISSING else field.default_factory()


def _flag(name: str, hint: Any, default: Any, text: str) -> Flag:
    import tyro

    marks = getattr(hint, "__metadata__", ())
    takes, needed = metavar(hint), default in (inspect.Parameter.empty, dataclasses.MISSING)
    if tyro.conf.Positional in marks:
        several = takes.endswith(" ...")
        shown = f"{name.upper()} ..." if several else name.upper()
        return Flag(name, shown if needed else f"[{shown}]", _sentence(text, takes), positional=True)
    own = next((mark.name for mark in marks if getattr(mark, "name", None)), name)
    aliases = [alias for mark in marks for alias in getattr(mark, "aliases", None) or ()]
    no = "no-" if default is True else ""
    words = ", ".join([*aliases, f"--{no}{own.replace('_', '-')}"])
    known = None if needed or isinstance(default, bool | dict) or default in (None, "", ()) else default
    if isinstance(known, tuple):
        known = " ".join(map(str, known))
    also = "" if known is None or "(default" in text else f" (default: {known})"
    return Flag(name, f"{words} {takes}".strip(), f"{_sentence(text, takes)}{' (required)' * needed}{also}".strip())


def _sentence(text: str, takes: str) -> str:
    """The text with a capital, unless it begins with one of the values."""
    first = text.partition(" ")[0]
    return text if first in re.split(r"\W", takes) or not first.isalpha() else text[:1].upper() + text[1:]


def metavar(hint: Any) -> str:
    """What a setting of this type takes: N, NUMBER, TEXT, PATH, {one,of,these}; "" of a switch."""
    import tyro

    marks = getattr(hint, "__metadata__", ())
    if named := next((mark.metavar for mark in marks if getattr(mark, "metavar", None)), None):
        return str(named).removesuffix("|None")
    if (inner := _plain(hint)) is not hint:
        takes = metavar(inner)
        return takes.removesuffix(" ...") if tyro.conf.UseAppendAction in marks else takes
    origin, parts = get_origin(hint), get_args(hint)
    if origin in (Union, types.UnionType):
        wide = [part for part in parts if part is not type(None) and not (part is int and float in parts)]
        if len(wide) == 1:
            return metavar(wide[0])
        return "|".join("|".join(map(str, get_args(part))) if get_origin(part) is Literal else metavar(part)
                        for part in wide)
    if origin is Literal:
        return f"{{{','.join(map(str, parts))}}}"
    if origin is tuple:
        return f"{metavar(parts[0])} ..."
    return "NAME VALUE ..." if origin is dict else _NAMES.get(hint, "TEXT")


def _plain(hint: Any) -> Any:
    return get_args(hint)[0] if get_origin(hint) is Annotated else hint


def width_here() -> int:
    """Of the terminal, or of 80 columns where there is none; text of more than 100 is hard to read."""
    return min(shutil.get_terminal_size().columns, WIDEST)


def page(usage: str, description: str, flags: Sequence[Flag], width: int, last: str = "") -> str:
    """The text of `--help`. description: paragraphs, and indented lines of commands."""
    positional = [flag for flag in flags if flag.positional]
    words = " ".join([usage, *(flag.typed for flag in positional), "[flags]"])
    lines = [*textwrap.wrap(f"usage: {words}", width, subsequent_indent="    ")]
    for paragraph in filter(None, description.split("\n\n")):
        lines += ["", *(commands(paragraph, width) if paragraph.startswith("    ") else
                        textwrap.wrap(paragraph, width, break_on_hyphens=False, break_long_words=False))]
    for title, members in grouped(flags).items():
        lines += ["", title, *(line for flag in members for line in flag.lines(width))]
    return "\n".join([*lines, *(["", *textwrap.wrap(last, width, break_on_hyphens=False)] if last else [])])


def grouped(flags: Sequence[Flag]) -> dict[str, list[Flag]]:
    """By titles, each in the order of `GROUPS`."""
    given = {"arguments": [flag for flag in flags if flag.positional]}
    others = {flag.name: flag for flag in flags if not flag.positional}
    if len(others) <= FEW:
        return {title: members for title, members in (given | {"flags": list(others.values())}).items() if members}
    listed = {name for names in GROUPS.values() for name in names}
    for title, names in GROUPS.items():
        given[title] = [others[name] for name in names if name in others]
        if title == "data":
            given["what it does"] = [flag for name, flag in others.items() if name not in listed]
    return {title: members for title, members in given.items() if members}


def commands(block: str, width: int) -> Iterator[str]:
    """Indented commands, of which long ones go on in the next line, as a shell reads them."""
    for line in textwrap.dedent(block).replace("\\\n", " ").splitlines():
        row = "   "
        for word in re.findall(r'(?:[^\s"]|"[^"]*")+', line):
            if len(row) + len(word) + 3 > width and row.strip():
                yield f"{row} \\"
                row = " " * 7
            row += f" {word}"
        yield row


def overview(program: str, words: Mapping[str, Mapping[str, str]], width: int) -> str:
    """The words of a command, by title, and what each does."""
    column = 2 + max(len(word) for members in words.values() for word in members)
    lines = [f"usage: {program} WORD [flags]"]
    for title, members in words.items():
        lines += ["", *([title] if title else []),
                  *(line for word, does in members.items() for line in beside(word, does, width, column))]
    return "\n".join([*lines, "", *textwrap.wrap(f"`{program} WORD --help` explains each.", width)])
