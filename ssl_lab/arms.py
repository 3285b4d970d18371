"""What a study of techniques tries beside its base: techniques, settings, or both; and what of it the base cannot
have."""

from __future__ import annotations

import copy
import importlib.util
import re
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, fields, replace
from functools import cache
from pathlib import Path
from typing import Any

import torch
import yaml

from ssl_lab import build, texts
from ssl_lab.command_line import parse
from ssl_lab.config import Settings
from ssl_lab.data import Pool
from ssl_lab.engine import Trainer
from ssl_lab.engine.jobs import Job
from ssl_lab.errors import UsageError, unknown
from ssl_lab.methods import Method, OpenCoS, Teacher, get
from ssl_lab.nets import Net
from ssl_lab.nets import net as named
from ssl_lab.nets.start import start_net
from ssl_lab.notes import at_most, tell
from ssl_lab.optim import SGD, described
from ssl_lab.presets import for_pool
from ssl_lab.techniques import TECHNIQUES, NetTechnique, together
from ssl_lab.understood import check_texts

FOR_ACCURACY = [name for name, kind in TECHNIQUES.items() if kind.serves == "accuracy"]


@dataclass(frozen=True)
class Arm:
    """What is tried beside the base: techniques together, other settings of the base, or both.

    text: as it was given. kind: that of its technique, or `settings`. techniques: texts. settings: name -> value.
    of_all: whether nobody named it.
    """

    text: str
    kind: str
    techniques: tuple[str, ...] = ()
    settings: Mapping[str, Any] = field(default_factory=dict)
    of_all: bool = False


BASE = Arm("base", "")


def arms(given: Sequence[str]) -> list[Arm]:
    """What texts name, once each: techniques and settings NAME=VALUE, several together by `+`, as in "sam + swa" or
    "lr=0.03 + swa"; `all` is each technique of ssl_lab that is for accuracy, alone, with its defaults.

    Raises UsageError for what is no technique, and for techniques that exclude each other.
    """
    found: dict[str, Arm] = {}
    for text in given:
        of_all = text.strip() == "all"
        for arm in map(_arm, FOR_ACCURACY if of_all else [text]):
            before = found.setdefault(arm.text, arm)
            found[arm.text] = replace(arm, of_all=of_all and (before is arm or before.of_all))
    if not found:
        raise UsageError('nothing to try; give --try "sam(rho=0.1)", --try "swa + sam", --try lr=0.03, or --try all')
    return list(found.values())


def _arm(text: str) -> Arm:
    parts = texts.split(text, at="+")
    settings: dict[str, Any] = {}
    techniques = []
    for part in parts:
        if setting := re.fullmatch(r"([A-Za-z][\w-]*)\s*=(?!=)\s*(.+)", part, re.DOTALL):
            settings[setting[1].replace("-", "_")] = value(setting[2])
        else:
            techniques.append(part)
    both = together(techniques)
    kinds = [each.kind for each in both.given] + (["settings"] if settings else [])
    said = [*both.texts, *(f"{name}={value}" for name, value in settings.items())]
    return Arm(" + ".join(said), ", ".join(dict.fromkeys(kinds)), tuple(both.texts), settings)


def value(text: str) -> Any:
    """The value of a setting, as a YAML file of settings has it: 0.1, true, or a text."""
    try:
        return yaml.safe_load(text)
    except yaml.YAMLError:
        raise UsageError(f"{text!r} is no value of a setting; give a number, true, false or a text") from None


def allowed(tried: Sequence[Arm], job: Callable[[Arm], Job],
            check: Callable[[Job, str], object]) -> tuple[list[Arm], list[str]]:
    """Those whose jobs pass a check, which is told what they are of and raises UsageError, and notes of those that do
    not. The base must pass, and what somebody named; of `all`, what does not is left out, with a word."""
    check(job(BASE), "the base")
    kept, notes = list[Arm](), list[str]()
    for arm in tried:
        try:
            check(job(arm), f"{arm.text} is left out" if arm.of_all else f"--try {arm.text!r}")
        except UsageError as error:
            if not arm.of_all:
                raise
            notes.append(f"{error}.")
        else:
            kept.append(arm)
    tell([f"note: {each}" for each in notes])
    return kept, notes


def check_texts_of(job: Job, given: str) -> None:
    """UsageError, before anything is read, where the recipe of a job would not take its settings.

    given: what holds them, in words. Names, values, and what texts name are looked at.
    """
    settings = _settings_of(job.recipe)
    known = [each.name for each in fields(settings)]
    for name in job.settings.keys() - set(known):
        raise unknown("setting", name, known, f"It is given by {given}, and recipes/{job.recipe.name} has none such.")
    with _saying(given):
        found = _parsed(job)
        check_texts(getattr(found, "method", None), found.view, found.optimizer, found.techniques)


def check_run_of(pool: Pool, job: Job, given: str) -> None:
    """UsageError, before anything trains, where net, method, techniques and optimizer of a job do not fit each other or
    these data. pool: without its split."""
    with _saying(given), at_most(0):
        settings = _parsed(job)
        few, both = pool.split(**settings.split()), together(settings.techniques)
        net = copy.deepcopy(_net(job.recipe.stem, settings, few))
        both.check_net(net, few)
        net.prepared = tuple(each.text for each in both.of(NetTechnique))  # as if they had acted
        by = described(settings.optimizer) if settings.optimizer else SGD()
        trainer = Trainer(steps=1, device=settings.device, precision="fp32", shard=settings.shard, optimizer=by,
                          techniques=both.given)
        trainer.begun(_method(job.recipe.stem, settings, net, few), few)


@contextmanager
def _saying(given: str) -> Iterator[None]:
    """Within it, a UsageError begins with what it is of."""
    try:
        yield
    except UsageError as error:
        raise UsageError(f"{given}: {error}") from None


def _parsed(job: Job) -> Settings:
    """The settings of a job's recipe."""
    return _read(job.recipe, yaml.safe_dump({**job.settings, "out": str(job.out)}, sort_keys=False),
                 tuple(job.command_line))


@cache
def _read(recipe: Path, text: str, flags: Sequence[str]) -> Settings:
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "settings.yaml"
        file.write_text(text)
        try:
            return parse(_settings_of(recipe), ["--config", str(file), *flags])
        except UsageError as error:
            raise UsageError(str(error).replace(f" in --config {file}", "")) from None


def _net(recipe: str, settings: Any, pool: Pool) -> Net:
    """What the recipe would train."""
    if recipe == "finetune":
        return start_net(settings.start, pool.class_names, pool.style, settings.net, settings.pretrained,
                         settings.weights)
    name = settings.net
    if name == "auto":
        own: dict[str, Any] = {}  # of fixmatch: its runs are short ones, however long
        if recipe == "consistency":
            own = {"kind": settings.preset, "steps": settings.steps}
        name = for_pool(get(getattr(settings, "method", recipe)), pool, weights=settings.weights, view=settings.view,
                        **own).net
    return named(name, pool.class_names, pool.style, **settings.beginning())


def _method(recipe: str, settings: Any, net: Net, pool: Pool) -> Method:
    """The method that the recipe would train it by; a teacher that is yet to be trained is a net like its student."""
    text = getattr(settings, "method", recipe)
    arguments = dict(getattr(settings, "arguments", {}))
    if recipe == "distill":
        arguments["teacher"] = Teacher(copy.deepcopy(net))
    elif text == "opencos":  # as if all unlabeled images were of the classes
        images = len(pool)
        return OpenCoS(net, torch.ones(images, dtype=torch.bool), torch.full((images, net.classes), 1 / net.classes),
                       torch.full((images,), -1)).with_views(*settings.view)
    return build.method(text, net, pool, arguments).with_views(*settings.view)


@cache
def _settings_of(recipe: Path) -> type[Settings]:
    """Those that a recipe takes."""
    spec = importlib.util.spec_from_file_location(f"recipe_{recipe.stem}", recipe)
    assert spec is not None
    assert spec.loader is not None
    module = sys.modules[spec.name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    found: type[Settings] = module.Settings
    return found
