"""ssl_lab: semi-supervised and label-efficient learning for images, in one loop.

    import ssl_lab as sl
    pool = sl.load("digits").split(labels=10)
    method = sl.FixMatch(sl.net("tiny_16", classes=pool.class_names, style=pool.style))
    result = sl.Trainer(steps=500, out="runs/first").fit(method, pool, labeled=16, unlabeled=112)
    print(result.test_accuracy)

Names are loaded when they are first used, so that `--help` does not wait for torch.
"""

from __future__ import annotations

import importlib
import sys
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

from ssl_lab.afterwards import AFTERWARDS
from ssl_lab.processes import quiet_imports
from ssl_lab.versions import VERSION

if TYPE_CHECKING:
    from ssl_lab import (
        active,
        analysis,
        arms,
        begun,
        build,
        comparison,
        compress,
        data,
        engine,
        ensemble,
        features,
        finetune,
        losses,
        methods,
        nets,
        optim,
        presets,
        pretraining_presets,
        rounds,
        schedule,
        stages,
        study,
        techniques,
        testing,
        views,
    )
    from ssl_lab.active import ActiveLoop, PoolView, Query, ScoreQuery, make_query
    from ssl_lab.active.command import query_command as query
    from ssl_lab.active.people.leaving import labels
    from ssl_lab.advise import advise
    from ssl_lab.auditing import Audit, audit
    from ssl_lab.batch import At, Batch, Draw, Loss, Rows, Style
    from ssl_lab.command_line import launch
    from ssl_lab.config import Settings
    from ssl_lab.data import Pool, Sampler, announce, load
    from ssl_lab.engine import (
        Callback,
        Feed,
        MLflow,
        PseudoLabels,
        Result,
        Runtime,
        ShowProgress,
        TensorBoard,
        Trainer,
        WandB,
        accuracy,
    )
    from ssl_lab.errors import UsageError
    from ssl_lab.estimator import Classifier
    from ssl_lab.export import export
    from ssl_lab.fetch import fetch
    from ssl_lab.find_lr import find_lr
    from ssl_lab.label.command import label
    from ssl_lab.methods import *  # noqa: F403
    from ssl_lab.model import Model, open
    from ssl_lab.nets import Ema, Net, Output, net
    from ssl_lab.optim import SGD, AdamW, optimizer
    from ssl_lab.predict import predict
    from ssl_lab.predictions import Predictions
    from ssl_lab.quickstart import run as quickstart
    from ssl_lab.reporting import report
    from ssl_lab.runs import runs
    from ssl_lab.techniques import *  # noqa: F403
    from ssl_lab.train import train
    from ssl_lab.views import Eval, Strong, Weak

quiet_imports()

__version__ = VERSION
_HOMES = {
    "active": ("ActiveLoop", "PoolView", "Query", "ScoreQuery", "make_query"),
    "auditing": ("Audit", "audit"),
    "batch": ("At", "Batch", "Draw", "Loss", "Rows", "Style"),
    "command_line": ("launch",),
    "config": ("Settings",),
    "data": ("Pool", "Sampler", "announce", "load"),
    "engine": ("Callback", "Feed", "MLflow", "PseudoLabels", "Result", "Runtime", "ShowProgress", "TensorBoard",
               "Trainer", "WandB", "accuracy"),
    "errors": ("UsageError",),
    "estimator": ("Classifier",),
    "model": ("Model", "open"),
    "nets": ("Ema", "Net", "Output", "net"),
    "predictions": ("Predictions",),
    "optim": ("SGD", "AdamW", "optimizer"),
    "techniques": ("prepared",),
    "views": ("Eval", "Strong", "Weak"),
}
_HOME = {name: home for home, names in _HOMES.items() for name in names}
WORDS = {"advise": "advise:advise", "export": "export:export", "fetch": "fetch:fetch", "find_lr": "find_lr:find_lr",
          "label": "label.command:label", "labels": "active.people.leaving:labels",
          "predict": "predict:predict", "query": "active.command:query_command",
          "quickstart": "quickstart:run", "report": "reporting:report", "runs": "runs:runs", "train": "train:train"}
"""The words of `ssl-lab` whose functions have its arguments; where a module has the name, it can be called."""
_MODULES = ("active", "analysis", "compress", "data", "engine", "features", "losses", "methods", "nets", "optim",
            "schedule", "techniques", "testing", "views")
_FILES = ("arms", "begun", "build", "comparison", "ensemble", "finetune", "presets", "pretraining_presets", "rapid",
          "rounds", "stages", "study")
"""What recipes are made of: reached as the modules are, but nothing that is kept as it is."""


def function_of(word: str) -> Any:
    """What a word of `ssl-lab` calls."""
    module, _, name = WORDS[word].partition(":")
    return getattr(importlib.import_module(f"ssl_lab.{module}"), name)


class _Word(ModuleType):
    """A module that is called as its word of `ssl-lab` is typed: sl.train("photos", minutes=5)."""

    def __call__(self, *arguments: Any, **named: Any) -> Any:
        return function_of(self.__name__.rpartition(".")[2])(*arguments, **named)


class _Package(ModuleType):
    def __setattr__(self, name: str, value: Any) -> None:  # by which an imported module becomes known here
        if name in WORDS and type(value) is ModuleType:
            value.__class__ = _Word
        super().__setattr__(name, value)


sys.modules[__name__].__class__ = _Package


def write_report(run: str | Path, pool: Any = None) -> Path:
    """Writes report.html into the folder of a finished run, and returns its path; see `ssl_lab.report.run`.

    Every run of a `Trainer` that was given no callbacks ends with it.

    Args:
        run: the folder.
        pool: the run's, for thumbnails; without it there are none.

    >>> pool = sl.load("digits").split(labels=10)
    >>> method = sl.Supervised(sl.net("tiny_4", classes=pool.class_names, style=pool.style))
    >>> run = sl.Trainer(steps=2, out="run", device="cpu", callbacks=[]).fit(method, pool, labeled=4, unlabeled=0)
    >>> sl.write_report(run.out).name
    'report.html'
    """
    from ssl_lab.report.run import write_report

    return write_report(Path(run), pool)


AFTERWARDS.append(write_report)


def __getattr__(name: str) -> Any:
    if name in _HOME:
        return getattr(importlib.import_module(f"ssl_lab.{_HOME[name]}"), name)
    if name in WORDS:
        try:
            return importlib.import_module(f"ssl_lab.{name}")
        except ModuleNotFoundError as error:
            if error.name != f"ssl_lab.{name}":
                raise
            return function_of(name)
    if name in _MODULES or name in _FILES:
        return importlib.import_module(f"ssl_lab.{name}")
    if name[0].isupper():
        for room in ("methods", "techniques"):
            home = importlib.import_module(f"ssl_lab.{room}")
            if name in home.__all__:
                return getattr(home, name)
    raise AttributeError(f"module 'ssl_lab' has no attribute {name!r}")


def __dir__() -> list[str]:
    rooms = [importlib.import_module(f"ssl_lab.{room}").__all__ for room in ("methods", "techniques")]
    return sorted({*_HOME, *WORDS, *_MODULES, "write_report",
                   *(name for names in rooms for name in names if name[0].isupper())})
