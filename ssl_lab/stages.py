"""Runs of several stages: what trains first, and that all texts are understood before anything does."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from ssl_lab import build, methods, presets
from ssl_lab.config import Settings
from ssl_lab.data import Pool
from ssl_lab.engine import Result, Runtime, Trainer
from ssl_lab.engine.folder import make_way
from ssl_lab.methods.distillation import Teacher
from ssl_lab.nets import Net
from ssl_lab.optim import SGD, Optimizer, described, optimizer
from ssl_lab.schedule import cosine_7_16
from ssl_lab.techniques import prepared
from ssl_lab.understood import check_texts


def first_stage(trainer: Trainer, stage: str, steps: int, usual: Optimizer, **config: Any) -> Trainer:
    """The trainer of what a run trains first, in the folder `stage` of the run's own, without the run's techniques.

    A run that starts afresh makes way at once (see `make_way`), as its first stage lies in its folder too. config: in
    place of the run's settings of these names.
    """
    if trainer.resume is None:
        Runtime.start(trainer.device, "fp32").from_first(lambda: make_way(trainer.folder, stage))
    return replace(trainer, steps=steps, minutes=None, out=trainer.folder / stage, optimizer=usual, techniques=(),
                   resume=trainer.resume and "auto", config={**(trainer.config or {}), **config})


def trained_teacher(text: str, net: Net, pool: Pool, trainer: Trainer, labeled: int, unlabeled: int,
                    check: Callable[[Teacher], object]) -> Teacher:
    """A teacher that the method of this text makes of `net`, by the preset that suits the trainer's steps.

    check: called with the teacher before it is trained, to refuse what the student would stop at.
    """
    preset = presets.preset(methods.get(text).name, pool.name, presets.kind_for(trainer.steps))
    learner = build.method(text, net, pool, {}, preset.arguments)
    check(Teacher(learner.predictor(), classifies=learner.classifies))
    trained = trainer.fit(learner, pool, labeled, unlabeled).method
    return Teacher(trained.predictor(), classifies=trained.classifies)


@dataclass(frozen=True)
class Stages:
    """One training after another by the same settings, each a run in a folder of its own in theirs, which goes on where
    it stopped."""

    settings: Settings

    def train(self, stage: str, method: str, net: Net, pool: Pool, lr: float, views: Sequence[str] = (),
              techniques: Sequence[str] = (), **arguments: Any) -> Result:
        """Trains the method of this text around `net`, with its arguments, by SGD or --optimizer."""
        settings = self.settings
        own = replace(settings, net=net.name, out=settings.folder / stage, resume="auto",  # where later stages read it
                      techniques=tuple(techniques))
        usual = SGD(lr=cosine_7_16(lr))
        trainer = Trainer(optimizer=optimizer(settings.optimizer, usual), **own.trainer())
        net = prepared(net, own.techniques, pool, settings.seed)
        return trainer.fit(build.method(method, net, pool, arguments).with_views(*views), pool, 32, 128)

    def check(self, pretrain: str, method: str, distill: str, net: Net, student: Net, pool: Pool,
              few: Pool | None) -> None:
        """UsageError for what a later stage would stop at, before the first one trains: pretraining, a method on few
        labels by --view and --with, distillation.

        few: the pool with labels, None where people will give them.
        """
        settings = self.settings
        for text in (pretrain, distill):
            methods.get(text)
        check_texts(method, settings.view, settings.optimizer, settings.techniques)
        build.method(distill, student, pool, {"teacher": Teacher(copy.deepcopy(net))})
        if few is not None:
            by = described(settings.optimizer) if settings.optimizer else SGD()
            learner = build.method(method, net, few, {}).with_views(*settings.view)
            trainer = Trainer(steps=1, optimizer=by, device=settings.device, techniques=settings.techniques)
            trainer.begun(learner, few)
