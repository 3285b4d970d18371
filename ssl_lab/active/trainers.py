"""How the loop trains between queries, by name: a fresh net in each round, with settings for minutes on a CPU."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Sequence
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

from ssl_lab.active.loop import Fit
from ssl_lab.active_settings import TrainSettings
from ssl_lab.batch import Style
from ssl_lab.config import Settings
from ssl_lab.data import Pool
from ssl_lab.engine import Result, Trainer
from ssl_lab.errors import UsageError, unknown
from ssl_lab.methods import FixMatch, Method, Supervised
from ssl_lab.methods.learning_loss import LearningLoss
from ssl_lab.nets import Net, net
from ssl_lab.optim import SGD, described, optimizer
from ssl_lab.schedule import Scalar, cosine_7_16, course
from ssl_lab.techniques import prepared, together


def _learning_loss(net: Net, ema: Scalar) -> Method:
    return LearningLoss(Supervised(net, ema=ema))


TRAINERS: dict[str, tuple[Callable[..., Method], float, bool]] = {  # method, learning rate, from the backbone or afresh
    "supervised": (Supervised, 0.03, False),
    "learning_loss": (_learning_loss, 0.03, False),
    "fixmatch": (FixMatch, 0.1, False),
    "finetune": (Supervised, 0.03, True),
    "finetune_fixmatch": (FixMatch, 0.03, True),
}


def backbone(settings: TrainSettings, style: Style, classes: int | Sequence[str] = 1) -> Net | None:
    """The net that --weights or --pretrained describe; None if there are neither."""
    if settings.weights is None and not settings.pretrained:
        return None
    return net(settings.backbone or settings.net, classes, style, settings.pretrained, settings.weights,
               settings.seed, settings.bn_momentum)


def check_training(settings: TrainSettings, trainer: str, pool: Pool) -> None:
    """UsageError for a net, view, technique or optimizer that training would stop at, before anybody is asked."""
    method, _, from_backbone = TRAINERS[trainer]
    start = backbone(settings, pool.style) if from_backbone else net(settings.net, 2, pool.style)
    assert start is not None  # see `fitter`
    method(start, ema=settings.ema).with_views(*settings.view)
    together(settings.techniques)
    if settings.optimizer:
        described(settings.optimizer)


def fitter(settings: TrainSettings, trainer: str, out: Path, quiet: bool = False, keep: bool = True) -> Fit:
    """A fit that trains afresh in each round, in a folder of its own under `out`; what was cut off is resumed.

    Nets are measured when they are trained. quiet: without a progress bar. keep: leave the folders then.
    UsageError for an unknown trainer, and for one that wants a backbone where there is none.
    """
    if trainer not in TRAINERS:
        raise unknown("trainer", trainer, TRAINERS)
    method, rate, from_backbone = TRAINERS[trainer]
    if from_backbone and settings.weights is None and not settings.pretrained:
        raise UsageError(f"trainer {trainer} starts from a backbone: give --weights FILE, or --pretrained and a timm "
                         "net")
    shared = {field.name for field in fields(TrainSettings)}
    lr = rate if settings.lr is None else settings.lr

    def fit(pool: Pool, round: int) -> Result:
        start = backbone(settings, pool.style, pool.class_names) if from_backbone else None
        begun = start or net(settings.net, pool.class_names, pool.style, seed=settings.seed,
                             bn_momentum=settings.bn_momentum)
        learner = method(prepared(begun, settings.techniques, pool, settings.seed), ema=settings.ema)
        learner.with_views(*settings.view)
        folder = training_folder(out, round)
        split = folder / "split.json"
        if split.exists() and json.loads(split.read_text())["hash"] != pool.manifest()["hash"]:
            _remove(folder)  # labels were changed while it was cut off
        config = {name: value for name, value in settings.plain().items() if name in shared}
        usual = SGD(course(lr, cosine_7_16), settings.weight_decay)
        # of the class: recipes/active.py has a setting of the method's name
        arguments: dict[str, Any] = Settings.trainer(replace(settings, out=folder, resume="auto"))
        arguments |= {"config": config | {"trainer": trainer}, "optimizer": optimizer(settings.optimizer, usual)}
        trains = Trainer(**arguments, evaluations=1, callbacks=[] if quiet else None)
        result = trains.fit(learner, pool, settings.labeled, settings.unlabeled)
        if not keep:
            _remove(folder)
        return result

    return fit


def training_folder(out: Path, round: int) -> Path:
    """Where a round's net is trained, and its run lies."""
    return out / f"training-{round:03}"


def _remove(folder: Path) -> None:
    """Killed in the middle of this, no half of the folder is left under its name."""
    aside = folder.with_name(f".{folder.name}.old")
    shutil.rmtree(aside, ignore_errors=True)
    folder.rename(aside)
    shutil.rmtree(aside)
