"""Settings of recipes: dataclasses, from defaults, then a YAML file, then flags. Imports no torch.

`launch(main, Settings)` is the last line of a recipe: it parses, runs, and turns what goes wrong into one clear
line and an exit status (0; 2 for bad usage; 75 where another process has the run's folder; 130 after Ctrl-C, SIGTERM or
a closed terminal; 1 for a run that failed).
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
import signal
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any, Literal, NoReturn, TypeVar

from ssl_lab.at_hand import size_for
from ssl_lab.errors import BusyError, NonFiniteLossError, RunFailedError, UsageError, unknown
from ssl_lab.notes import at_most
from ssl_lab.processes import end_with_parent_if_told, hang_up, out_of_memory, stopping_signals

S = TypeVar("S", bound="Settings")
BUSY = 75  # as in sysexits.h: try again later

READING = ("data_dir", "image_size", "path_column", "label_column", "split_column", "class_level", "resize",
           "value_range", "background", "flip")
"""The settings that say how a person's images are listed and read."""


@dataclass
class Settings:
    """The settings that every recipe shares."""

    data: str = "digits"
    """Data set (see `ssl-lab list data`), folder of images, or CSV of path,label."""
    data_dir: Path | None = None
    """Where data sets lie (default: $SSL_LAB_DATA, else ~/.cache/ssl_lab)."""
    image_size: int | None = None
    """Side in pixels to which images are resized (default: theirs; with lite0 and the like, what these know)."""
    path_column: str | None = None
    """Column of a CSV file that holds the paths of images (default: path, or a usual name)."""
    label_column: str | None = None
    """Column of a CSV file that holds the labels (default: label, or a usual name)."""
    split_column: str | None = None
    """Column of a CSV file that says train, valid or test (default: split, or a usual name)."""
    class_level: int = 1
    """2: the classes of a folder are the sub-folders of its folders, as where these are years."""
    resize: Literal["crop", "pad", "squash", "none"] = "crop"
    """Of images that are not square: crop the ends, pad by the edges, or squash. none: keep the one size of all."""
    value_range: str = "auto"
    """Values of black and white in images that do not hold bytes, e.g. 0-1, 0-4095 or -1-1 (auto: told by the values
    of all images)."""
    background: Literal["white", "black"] = "white"
    """What shows through where images are transparent."""
    flip: Literal["auto", "on", "off"] = "auto"
    """Views mirror images left-right; off if a mirrored one is of another class (auto: not in digits, mnist, svhn)."""
    labels: int | float | None = None
    """Labeled training images, drawn by the seed: a count, or a fraction of those whose label is known (default: all of
    these)."""
    split_file: Path | None = None
    """In place of --labels: a file of the rows to label, or the split.json of another run."""
    balance: Literal["class", "natural", "covered"] = "class"
    """Draw the same number of labels from each class, or as they come (natural), or so after one of each (covered)."""
    imbalance: float | None = None
    """Long-tailed training classes: the largest has this many times the images of the smallest."""
    valid: float | None = None
    """Validation images taken from the training set, a fraction or a count; they cost labels, and leave
    those of --labels as they are (default: those of a folder's valid/, if any)."""
    net: str = "tiny_16"
    """Net (see `ssl-lab list nets`), e.g. lite0, pretrained; or timm/<model>."""
    pretrained: bool = False
    """Start a timm net from its published weights."""
    weights: Path | None = None
    """Start the net from this file, e.g. a run's model.safetensors."""
    steps: int | None = None
    """Training steps."""
    minutes: float | None = None
    """Length of the run; a few steps are timed to turn it into steps."""
    seed: int = 0
    """Seed of the split, the initial weights and all randomness in training."""
    out: Path = Path("runs/latest")
    """Folder of the run."""
    resume: str | None = None
    """`auto` goes on with the run in --out if there is one; a folder continues that run."""
    device: str = "auto"
    """cpu, cuda, cuda:1, or auto."""
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    """auto: bf16 where this machine multiplies it faster."""
    compile: Literal["off", "on", "auto"] = "off"
    """Compile the nets with torch.compile; auto: if a few timed steps show that it makes the run faster."""
    shard: bool = False
    """Under torchrun, spread every weight over the processes (FSDP2): for nets that are too large for one device."""
    micro_batches: int | Literal["auto"] = 1
    """Parts into which each step's batch is cut, each with its own batch statistics; auto: the fastest."""
    forward: Literal["joint", "split"] = "joint"
    """split: views that only make targets pass the net by themselves, without gradient."""
    track: Literal["tensorboard", "mlflow", "wandb"] | None = None
    """Also show settings, metrics and summary there (pip install "ssl_lab[mlflow]", or of another name)."""

    def reading(self) -> dict[str, Any]:
        """The arguments of `load` beside the data."""
        return reading_of(dataclasses.asdict(self))

    def split(self) -> dict[str, Any]:
        """The arguments of `Pool.split`."""
        return {"labels": self.labels, "labeled": self.split_file, "valid": self.valid, "seed": self.seed,
                "balance": self.balance, "imbalance": self.imbalance}

    def trainer(self) -> dict[str, Any]:
        """The arguments of `Trainer` that every recipe passes on."""
        names = ("steps", "minutes", "out", "seed", "resume", "device", "precision", "compile", "shard",
                 "micro_batches", "forward", "track")
        return {name: getattr(self, name) for name in names} | {"config": self.plain()}

    def plain(self) -> dict[str, Any]:
        """Names and values as YAML has them."""
        return {name: str(value) if isinstance(value, Path) else value
                for name, value in dataclasses.asdict(self).items()}


def may_run(default: Any, text: str) -> Any:
    """A field of settings whose value can name a program or a module to run, where the pattern `text` is found in it:
    only the command line may give such a value, as files of settings come from strangers too."""
    return dataclasses.field(default=default, metadata={"runs": text})


def reading_of(settings: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments of `load` beside the data, from settings or from what a run's config.yaml has of them."""
    given = {name: settings[name] for name in READING if settings.get(name) is not None}
    if size := size_for(settings):
        given["image_size"] = size
    return given | ({"flip": {"on": True, "off": False}.get(given["flip"])} if "flip" in given else {})


def parse(settings: type[S], arguments: Sequence[str] | None = None) -> S:
    """Settings from the command line. `--config FILE` reads YAML first; `--print-config` prints and exits."""
    import tyro

    argv = list(sys.argv[1:] if arguments is None else arguments)
    file, argv = _take(argv, "--config", "FILE")
    show = "--print-config" in argv
    argv = [argument for argument in argv if argument != "--print-config"]
    if file is not None:
        argv = _from_yaml(settings, Path(file), given=argv) + argv
    description = (sys.modules[settings.__module__].__doc__ or "") + (
        "\nAlso: --config FILE reads settings from YAML (flags win); --print-config prints them and exits.")
    with _one_line_errors():
        parsed, left = tyro.cli(settings, args=_negative(argv), description=description, return_unknown_args=True)
    if left:
        flags = [f"--{field.name.replace('_', '-')}" for field in dataclasses.fields(settings)]
        raise unknown("flag", left[0].partition("=")[0], [*flags, "--config", "--print-config"], "See --help.")
    if parsed.steps is not None and parsed.minutes is not None:
        raise UsageError(f"--steps {parsed.steps} and --minutes {parsed.minutes} exclude each other; give one")
    if show:
        import yaml

        print(yaml.safe_dump(parsed.plain(), sort_keys=False), end="")
        raise SystemExit(0)
    if parsed.steps is None and parsed.minutes is None:
        raise UsageError("how long to train? Give --steps N or --minutes M")
    _check_beginning(parsed)
    return parsed


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
    """Runs a recipe from the command line. Of several ranks only the first one prints to stdout."""
    with contextlib.redirect_stdout(io.StringIO() if os.environ.get("RANK", "0") != "0" else sys.stdout):
        exit_with_status(lambda: main(parse(settings)))


def run_command(commands: Mapping[str, Callable[..., object]], program: str, description: str,
                arguments: Sequence[str] | None = None) -> None:
    """Runs the subcommand that the command line names; its arguments become flags."""
    import tyro

    chosen: list[Callable[[], object]] = []

    def later(command: Callable[..., object]) -> Callable[..., None]:
        """Takes the command's arguments, so that only the parsing happens while stderr is held back."""
        command.__doc__ = _by_argument(command)  # tyro reads that of the innermost function

        @functools.wraps(command)
        def choose(*args: Any, **kwargs: Any) -> None:
            chosen.append(functools.partial(command, *args, **kwargs))
        return choose

    with _one_line_errors():
        tyro.extras.subcommand_cli_from_dict({name: later(command) for name, command in commands.items()},
                                             prog=program, description=description,
                                             args=_negative(sys.argv[1:] if arguments is None else arguments))
    chosen[0]()


def _by_argument(command: Callable[..., object]) -> str:
    """A command's docstring with the lines on its arguments where tyro looks for them, under "Args:"."""
    lines = inspect.cleandoc(command.__doc__ or "").splitlines()
    names = "|".join(inspect.signature(command).parameters)
    first = next((row for row, line in enumerate(lines) if re.match(f"({names}): ", line)), None)
    if not names or first is None:
        return "\n".join(lines)
    each = re.sub(rf"\. ({names}): ", r".\n\1: ", "\n".join(lines[first:])).splitlines()  # several may share a line
    return "\n".join([*lines[:first], "Args:", *(f"    {line}" for line in each)])


def exit_with_status(action: Callable[[], object]) -> None:
    """Runs `action`; what goes wrong becomes one line on stderr and the exit status."""
    # Threads that spin while they wait starve each other where cores are shared: a short run of a small net was
    # seen to take 7 times as long beside other processes. Read when torch is imported, which is not yet.
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")
    for number in stopping_signals():  # until training handles them: as Ctrl-C
        if number.name != "SIGINT" or signal.getsignal(number) is signal.default_int_handler:  # else it is ignored
            signal.signal(number, _interrupt)
    _interrupts.clear()
    end_with_parent_if_told()
    try:
        try:
            message, status = _outcome(action)
        finally:  # also of --help, which ends by SystemExit
            sys.stdout.flush()
        if message:
            print(message, file=sys.stderr, flush=True)
    except BrokenPipeError:  # the reader, e.g. `head`, has seen enough
        hang_up()
        status = 0
    if status:
        sys.exit(status)


_interrupts: list[int] = []  # signals that have arrived before training


def _interrupt(number: int, frame: FrameType | None) -> NoReturn:
    if number == getattr(signal, "SIGHUP", None):
        hang_up()
    _interrupts.append(number)
    raise KeyboardInterrupt


def _outcome(action: Callable[[], object]) -> tuple[str, int]:
    """Runs `action`: what to say of how it ended, if anything, and the exit status."""
    try:
        with at_most(1):
            action()
    except BusyError as error:
        return f"error: {error}", BUSY
    except UsageError as error:
        return f"error: {error}", 2
    except KeyboardInterrupt as error:
        return str(error) or "interrupted", 130
    except BrokenPipeError:
        raise
    except (NonFiniteLossError, RunFailedError) as error:
        return f"error: {error}", 1
    except (MemoryError, OSError, RuntimeError) as error:
        if lacking := out_of_memory(error):
            return f"error: {lacking}", 1
        if _interrupts:
            return "interrupted", 130
        if not isinstance(error, OSError):
            raise
        return f"error: {error}", 1
    except Exception:
        if _interrupts:  # what was cut off in the middle of its import fails in ways of its own
            return "interrupted", 130
        raise
    return "", 0


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
        raise UsageError("; ".join(words)) from None


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
    arguments = []
    for name, value in content.items():
        if name not in fields:
            raise unknown("setting", str(name), fields, f"It stands in --config {file}.")
        if name in ("steps", "minutes") and flags & {"--steps", "--minutes"}:
            continue  # a flag for one of the two replaces both
        flag = f"--{name.replace('_', '-')}"
        runs = fields[name].metadata.get("runs")
        if runs and flag not in flags and any(re.search(runs, str(each)) for each in _leaves(value)):
            raise UsageError(f"{name}: {value!r} in --config {file} would run a program or import a module, which a "
                             "file of settings may not; if you trust it, give it on the command line: "
                             f"{flag} {shlex.quote(str(value))}")
        if isinstance(fields[name].default, bool):
            if not isinstance(value, bool):
                raise UsageError(f"{name}: {value} in --config {file}: expected true or false")
            arguments.append(flag if value else f"--no-{flag[2:]}")
        elif isinstance(value, dict):
            if value and flag not in flags:  # a flag replaces the whole of it
                arguments += [flag, *(str(part) for pair in value.items() for part in pair)]
        else:
            words = {True: "on", False: "off"}  # YAML reads a bare on or off as a truth value
            arguments.append(f"{flag}={words[value] if isinstance(value, bool) else value}")
    return arguments

