"""From a command line to settings: defaults, then a YAML file, then flags. Imports no torch.

`launch(main, Settings)` is the last line of a recipe: it parses, runs, and ends as `exits` says.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import inspect
import io
import os
import re
import shlex
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar, get_type_hints

import tyro

from ssl_lab import flags
from ssl_lab.config import Settings
from ssl_lab.errors import UsageError, unknown
from ssl_lab.exits import exit_with_status

S = TypeVar("S", bound=Settings)


def parse(settings: type[S], arguments: Sequence[str] | None = None) -> S:
    """Settings from the command line. `--config FILE` reads YAML first; `--print-config` prints and exits."""
    argv = list(sys.argv[1:] if arguments is None else arguments)
    if flags.HELP & {*argv}:
        print(_help(settings))
        raise SystemExit(0)
    file, argv = _take(argv, "--config", "FILE")
    show = "--print-config" in argv
    argv = [argument for argument in argv if argument != "--print-config"]
    if file is not None:
        argv = _from_yaml(settings, Path(file), given=argv) + argv
    with _one_line_errors():
        parsed, left = tyro.cli(settings, args=_negative(argv), return_unknown_args=True)
    if left:
        known = [_flag(field.name) for field in dataclasses.fields(settings)]
        raise unknown("flag", left[0].partition("=")[0], [*known, "--config", "--print-config"], "See --help.")
    if parsed.steps is not None and parsed.minutes is not None:
        raise UsageError(f"--steps {parsed.steps} and --minutes {parsed.minutes} exclude each other; give one")
    if show:
        import yaml

        print(yaml.safe_dump(parsed.plain(), sort_keys=False), end="")
        raise SystemExit(0)
    if parsed.steps is None and parsed.minutes is None:
        raise UsageError("how long to train? Give --steps N or --minutes M")
    _check_beginning(parsed)
    if parsed.techniques and not parsed.trains:
        raise UsageError(f"--with {shlex.quote(parsed.techniques[0])} changes how a method trains, and this recipe "
                         "trains none; leave it out")
    if parsed.view and not parsed.trains:
        raise UsageError(f"--view {parsed.view[0]}: images are looked at as they are; nothing is trained here")
    if not parsed.trains and (parsed.clip is not None or parsed.batch != 1):
        raise UsageError("--clip and --batch change how a method trains, and this recipe trains none; leave them out")
    return parsed


def _help(settings: type[Settings]) -> str:
    """The text of a recipe's --help: what it is for, its commands, and its flags."""
    module = sys.modules[settings.__module__]
    file = Path(module.__file__ or "recipe.py")
    place = f"recipes/{file.name}" if file.parent.name == "recipes" else file.name
    first, *others = inspect.cleandoc(module.__doc__ or "").split("\n\n")
    block = next((each for each in others if each.startswith("    ")), "")
    refused = () if settings.trains else ("view", "techniques", "clip", "batch")
    given = [flag for flag in flags.of_settings(settings) if flag.name not in refused]
    given += [flags.Flag("config", "--config FILE", "Settings from YAML; flags win."),
              flags.Flag("print_config", "--print-config", "Print the settings as YAML, and end.")]
    return flags.page(f"python {place}", f"{first}\n\n{block}", given, flags.width_here(),
                      f"What was measured, and how long it took: the docstring of {place}.")


def _check_beginning(settings: Settings) -> None:
    """UsageError for a run that would begin from the run in its own folder, which makes way for it."""
    for name in ("start", "teacher", "weights", "also") if settings.steps != 0 else ():  # 0: nothing is trained
        given = getattr(settings, name, None)
        for each in given if isinstance(given, tuple) else str(given or "").split(","):
            path = Path(each)
            if each and settings.out == (path.parent if path.suffix == ".safetensors" else path):
                raise UsageError(f"{each} lies in --out {settings.out}, where the new run is written: name another "
                                 "--out")


def launch(main: Callable[[S], object], settings: type[S]) -> None:
    """Runs a recipe from the command line. Of several ranks only the first one prints to stdout.

    Args:
        main: the recipe, which takes its settings.
        settings: a dataclass, of which the flags are read.
    """
    with contextlib.redirect_stdout(io.StringIO() if os.environ.get("RANK", "0") != "0" else sys.stdout):
        exit_with_status(lambda: main(parse(settings)))


def run_command(commands: Mapping[str, Callable[..., object]], program: str,
                arguments: Sequence[str] | None = None) -> None:
    """Runs the word that the command line names; the arguments of its function become flags."""
    word, *rest = [*(sys.argv[1:] if arguments is None else arguments)] or ["--help"]
    width = flags.width_here()
    if word in flags.HELP:
        does = {name: " ".join(flags.explained(each)[0].partition("\n\n")[0].split())
                for name, each in commands.items()}
        print(flags.overview(program, {"": does}, width))
        raise SystemExit(0)
    if word not in commands:
        raise unknown("word", word, commands, f"`{program} --help` explains them.")
    command = commands[word]
    if flags.HELP & {*rest}:
        description, _ = flags.explained(command)
        print(flags.page(f"{program} {word}", description, flags.of_function(command), width))
        raise SystemExit(0)
    chosen: list[Callable[[], object]] = []

    @functools.wraps(command)
    def choose(*args: Any, **kwargs: Any) -> None:
        """Takes the arguments, so that only the parsing happens while stderr is held back."""
        chosen.append(functools.partial(command, *args, **kwargs))

    with _one_line_errors():
        tyro.cli(choose, prog=f"{program} {word}", args=_negative(rest))
    chosen[0]()


@contextlib.contextmanager
def _one_line_errors() -> Iterator[None]:
    """Turns tyro's boxed message into a UsageError of one line."""
    box = io.StringIO()
    try:
        with contextlib.redirect_stderr(box):
            yield
    except SystemExit as stop:
        if stop.code in (0, None):
            raise
        # The first row is a title; where tyro is not sure of the encoding, it draws rules of "-" and no sides.
        rows = [row.strip("│ ") for row in box.getvalue().splitlines()[1:]]
        parts = " ".join(row if row.strip("╰─╯-") else "─" for row in rows).split("─")
        words = [" ".join(part.split()) for part in parts if part.strip() and "Argument helptext" not in part]
        said = _MISFIT.sub(_misfit, "; ".join(words))
        raise UsageError(re.sub(r"(, )?'None'(?(1)|, )", "", said).replace(" (default: False)", "")) from None


_MISFIT = re.compile(r"Error parsing (--[\w-]+): no type matching (.+?) could be instantiated from "
                     r"\[(.*?)\].*?; For full")


def _misfit(found: re.Match[str]) -> str:
    """What tyro says of a value that none of several types takes, in a few words."""
    flag, takes, given = found.groups()
    for theirs, ours in (("{None}|", ""), ("INT|FLOAT", "NUMBER"), ("INT", "N"), ("FLOAT", "NUMBER"), ("STR", "TEXT")):
        takes = takes.replace(theirs, ours)
    return f"{flag}: {given} is no {takes}; For full"


def _flag(name: str) -> str:
    """The flag of a setting."""
    return "--with" if name == "techniques" else f"--{name.replace('_', '-')}"


def _negative(argv: Sequence[str]) -> list[str]:
    """The command line with values that begin with a minus sign and a digit, as in `--value-range -1-1`, joined to
    their flags: else they would pass for flags."""
    joined: list[str] = []
    for argument in argv:
        if joined and re.match(r"-\d", argument) and re.fullmatch(r"--[\w-]+", joined[-1]):
            joined[-1] += f"={argument}"
        else:
            joined.append(argument)
    return joined


def _take(argv: list[str], flag: str, what: str) -> tuple[str | None, list[str]]:
    """The value of `flag`, and argv without it."""
    for i, argument in enumerate(argv):
        if argument == flag:
            if i + 1 == len(argv):
                raise UsageError(f"{flag} needs a value: {flag} {what}")
            return argv[i + 1], argv[:i] + argv[i + 2 :]
        if argument.startswith(flag + "="):
            return argument.partition("=")[2], argv[:i] + argv[i + 1 :]
    return None, argv


def _leaves(value: object) -> Iterator[object]:
    """The texts and numbers in what YAML holds."""
    if isinstance(value, Mapping):
        yield from (leaf for pair in value.items() for each in pair for leaf in _leaves(each))
    elif isinstance(value, list):
        yield from (leaf for each in value for leaf in _leaves(each))
    else:
        yield value


def _from_yaml(settings: type[Settings], file: Path, given: list[str]) -> list[str]:
    """The YAML file's settings as flags, to stand before the given ones."""
    import yaml

    try:
        content = yaml.safe_load(file.read_text()) or {}
    except OSError as error:
        raise UsageError(f"cannot read --config {file}: {error.strerror}") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UsageError(f"--config {file} is not YAML: {' '.join(str(error).split())}") from None
    if not isinstance(content, dict):
        raise UsageError(f"--config {file} holds a {type(content).__name__}; expected lines of `name: value`")
    fields = {field.name: field for field in dataclasses.fields(settings)}
    flags = {argument.partition("=")[0] for argument in given}
    hints = get_type_hints(settings, include_extras=True)
    arguments = []
    for name, value in content.items():
        if name not in fields:
            raise unknown("setting", str(name), fields, f"It stands in --config {file}.")
        if name in ("steps", "minutes") and flags & {"--steps", "--minutes"}:
            continue  # a flag for one of the two replaces both
        flag = _flag(name)
        runs = fields[name].metadata.get("runs")
        if runs and flag not in flags and any(re.search(runs, str(each)) for each in _leaves(value)):
            raise UsageError(f"{name}: {value!r} in --config {file} would run a program or import a module, which a "
                             "file of settings may not; if you trust it, give it on the command line: "
                             f"{flag} {shlex.quote(str(value))}")
        if isinstance(fields[name].default, bool):
            if not isinstance(value, bool):
                raise UsageError(f"{name}: {value} in --config {file}: expected true or false")
            arguments.append(flag if value else f"--no-{flag[2:]}")
        elif isinstance(value, list) and isinstance(fields[name].default, tuple):
            if value and flag not in flags:  # as with a mapping
                repeats = tyro.conf.UseAppendAction in getattr(hints[name], "__metadata__", ())
                arguments += [f"{flag}={each}" for each in value] if repeats else [flag, *map(str, value)]
        elif isinstance(value, dict):
            if value and flag not in flags:  # a flag replaces the whole of it
                arguments += [flag, *(str(part) for pair in value.items() for part in pair)]
        else:
            words = {True: "on", False: "off"}  # YAML reads a bare on or off as a truth value
            arguments.append(f"{flag}={words[value] if isinstance(value, bool) else value}")
    return arguments

