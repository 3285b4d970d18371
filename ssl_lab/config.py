"""Settings of recipes and commands: dataclasses. `command_line` fills them. Imports no torch."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

import tyro

from ssl_lab import schedule, texts
from ssl_lab.at_hand import size_for
from ssl_lab.errors import UsageError

Texts = Annotated[tuple[str, ...], tyro.conf.UseAppendAction]
"""Of a flag that is given as often as one likes."""


def _quantity(*nothing: str) -> Any:
    """How a number or a schedule is read; or None, of these texts."""
    return tyro.constructors.PrimitiveConstructorSpec(
        nargs=1, metavar="|".join(["NUMBER", "SCHEDULE", *nothing]),
        instance_from_str=lambda given: None if given[0] in nothing else schedule.scalar(given[0]),
        is_instance=lambda value: isinstance(value, int | float | schedule.Schedule) or str(value) in nothing,
        str_from_instance=lambda value: [str(value)])


Quantity = Annotated[schedule.Scalar, _quantity()]
"""Of a setting that is a number, or a schedule: 0.05, "cyclical(0.01, 0.1)"."""
MaybeQuantity = Annotated[schedule.Scalar | None, _quantity("None")]
"""Of one that may also be left open."""


def may_run(default: Any, text: str) -> Any:
    """A field of settings whose value can name a program or a module to run, where the pattern `text` is found in it:
    only the command line may give such a value, as files of settings come from strangers too."""
    return dataclasses.field(default=default, metadata={"runs": text})


@dataclass
class Data:
    """Which images."""

    data: str = may_run("digits", texts.MODULE)
    """Data set (see `ssl-lab list data`), folder of images, CSV of path,label, or package.module:Mine (not in a
    --config file)."""


@dataclass
class ReadingSettings:
    """How a person's images are listed and read: the flags of every recipe and command that takes images."""

    data_dir: Path | None = None
    """Where data sets lie (default: $SSL_LAB_DATA, else ~/.cache/ssl_lab)."""
    image_size: int | None = None
    """Side in pixels to which images are resized (default: theirs; with lite0 and the like, what these know)."""
    path_column: str | None = None
    """Column of a CSV file that holds the paths of images (default: path, or a usual name)."""
    label_column: str | None = None
    """Column of a CSV file, or key in the json of shards, that holds the labels (default: label, or a usual name)."""
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

    remote_gb: float = 20.0
    """Gigabytes that may be copied to this machine where the data are an address (s3://, gs://, hf://, https://)."""

    def reading(self, **others: Any) -> dict[str, Any]:
        """The arguments of `load` beside the data. others: settings that images may depend on, such as the net."""
        return reading_of(vars(self) | others)

    def said(self) -> dict[str, Any]:
        """How images are read, of that what is not the default."""
        return said_of(vars(self))

    def plain(self) -> dict[str, Any]:
        """Names and values as YAML has them."""
        return plain(vars(self))


def plain(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Names and values as YAML has them."""
    return {name: _plain(value) for name, value in settings.items()}


def _plain(value: Any) -> Any:
    if isinstance(value, schedule.Schedule):
        return schedule.plain(value)
    if isinstance(value, Path):
        return str(value)
    return list(value) if isinstance(value, tuple) else dict(value) if isinstance(value, dict) else value


AS_USUAL = ReadingSettings()


@dataclass
class Settings(ReadingSettings, Data):
    """The settings that every recipe shares. trains: whether a method is trained by them.

    >>> sl.Settings(steps=100, seed=1).plain()["seed"]
    1
    """

    trains: ClassVar[bool] = True

    view: Texts = may_run((), ":")  # noqa: RUF009 - it is a field
    """Another view in place of one that the method has, as often as you like: weak=simclr, "strong=strong(ops=3)",
    strong=mypackage.views:Mine (not in a --config file); without a name where the method has but one. See `ssl-lab list
    views`."""
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
    precision: Literal["auto", "fp32", "bf16", "fp16"] = "auto"
    """auto: bf16 where this machine multiplies it faster; fp16 on GPUs that have tensor cores for no other."""
    compile: Literal["off", "on", "auto"] = "off"
    """Compile the nets with torch.compile, on a GPU also the views, and small nets there as CUDA graphs; auto: if a few
    timed steps show that it makes the run faster."""
    shard: bool = False
    """Under torchrun, spread every weight over the processes (FSDP2): for nets that are too large for one device."""
    micro_batches: int | Literal["auto"] = 1
    """Parts into which each step's batch is cut, each with its own batch statistics; auto: the fastest."""
    optimizer: str | None = may_run(None, ":")
    """In place of the recipe's own: radam, "muon(lr=0.002)" (see `ssl-lab list optimizers`), or package.module:Mine
    (not in a --config file). Without lr in it, the rate is what the recipe's is for SGD, and falls as that does."""
    techniques: Annotated[Texts, tyro.conf.arg(name="with")] = may_run((), ":")  # noqa: RUF009
    """What else changes how the method trains (see `ssl-lab list techniques`), as in --with "sam(rho=0.1)", any number
    of times; or package.module:Thing (not in a --config file)."""
    forward: Literal["joint", "split"] = "joint"
    """split: views that only make targets pass the net by themselves, without gradient."""
    clip: MaybeQuantity = None
    """Largest norm of a step's gradient: 2, "cyclical(0.5, 5)"."""
    batch: Quantity = 1.0
    """Share of its images that a step has, to 1: "cyclical(0.25, 1)"."""
    track: Literal["tensorboard", "mlflow", "wandb"] | None = None
    """Also show settings, metrics and summary there (pip install "ssl_lab[mlflow]", or of another name)."""

    @property
    def folder(self) -> Path:
        """Where the run lies: --out, or the folder that --resume goes on in."""
        return self.out if self.resume in (None, "auto") else Path(str(self.resume))

    def split(self) -> dict[str, Any]:
        """The arguments of `Pool.split`."""
        return {"labels": self.labels, "labeled": self.split_file, "valid": self.valid, "seed": self.seed,
                "balance": self.balance, "imbalance": self.imbalance}

    def beginning(self) -> dict[str, Any]:
        """The arguments of `net` that say which weights it begins with."""
        return {"pretrained": self.pretrained, "weights": self.weights, "seed": self.seed}

    def trainer(self) -> dict[str, Any]:
        """The arguments of `Trainer` that every recipe passes on."""
        names = ("steps", "minutes", "out", "seed", "resume", "device", "precision", "compile", "shard",
                 "micro_batches", "techniques", "forward", "clip", "batch", "track")
        return {name: getattr(self, name) for name in names} | {"config": self.plain()}


@dataclass
class Untrained(Settings):
    """Settings of a recipe that trains no method: it looks at nets, or fits learners to features of images as they
    are."""

    trains = False
    steps: int | None = 0
    """Nothing is trained."""


@dataclass
class OfARun(Untrained):
    """Settings of a recipe that looks into a finished run, with its images and its labels."""

    start: Annotated[str, tyro.conf.arg(aliases=("--from",))] = "runs/latest"
    """The run: its --out."""
    data: str = may_run("", texts.MODULE)
    """Where its images lie now (default: where they lay for the run)."""


def reading_of(settings: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments of `load` beside the data, from settings or from what a run's config.yaml has of them."""
    given = {name: settings[name] for name in vars(AS_USUAL) if settings.get(name) is not None}
    if size := size_for(settings):
        given["image_size"] = size
    return given | ({"flip": {"on": True, "off": False}.get(given["flip"])} if "flip" in given else {})


def data_of(settings: Mapping[str, Any], folder: Path) -> str:
    """The images that a run was of, by its config.yaml. UsageError where nothing is said, and where to read them would
    import a module, which only the command line may ask for: folders of runs come from strangers too."""
    named = settings.get("data")
    if not isinstance(named, str):
        raise UsageError(f"{folder}/config.yaml does not say which images the run was of")
    if texts.names_module(named):
        raise UsageError(f"{folder}/config.yaml has images by {named}, which would import a module")
    return named


def said_of(settings: Mapping[str, Any]) -> dict[str, Any]:
    """How images are read, of that what is not the default, from settings or from a run's config.yaml."""
    return {name: settings[name] for name, usual in vars(AS_USUAL).items()
            if settings.get(name) is not None and settings[name] != usual}
