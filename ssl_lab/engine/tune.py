"""Tuning: which settings give the highest accuracy on validation images, by Optuna, in a study that survives a kill."""

from __future__ import annotations

import importlib
import os
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from ssl_lab.data import IntArray, Pool
from ssl_lab.data.ledger import SPLIT, UNLABELED, Ledger
from ssl_lab.data.split import hold_out
from ssl_lab.engine.callbacks import Callback
from ssl_lab.engine.folder import check_same, clear, make_way
from ssl_lab.errors import NonFiniteLossError, RunFailedError, UsageError
from ssl_lab.seeds import seed_of

HELD_OUT = 0.2  # of the labels of each class, where a pool has no validation images
HOPEFUL = 1 / 3  # of a trial, in which it is not given up: high learning rates are late

Run = Callable[[Mapping[str, float], Path, Callback], float]
"""(values, folder, callback to train with) -> accuracy on validation images, in [0, 1]."""


def tune(run: Run, space: Mapping[str, tuple[float, float]], trials: int, out: Path, seed: int,
         config: Mapping[str, Any], resume: bool) -> dict[str, float]:
    """The values of `space` for which `run` gave the highest accuracy, in so many trials.

    space: name -> lowest and highest value, both positive; drawn on a log scale by a tree-structured Parzen estimator
    (Bergstra et al. 2011), as a pure function of the seed and of what the trials so far gave. A trial that after a
    third of its steps has a lower accuracy than the median of those that went to the end had there is given up; one
    whose loss is not finite counts as 0. RunFailedError if that is what all of them gave.

    out: holds study.db (SQLite) and a folder for each trial in trials/. With `resume`, the study goes on as if it had
    never stopped, and a trial that was cut off is run again; without, `out` must hold no study. config: the settings of
    the study. UsageError if a study that goes on had others, if there are several ranks, or without optuna.
    """
    try:
        optuna: Any = importlib.import_module("optuna")
    except ImportError as error:
        raise UsageError('tuning needs optuna: pip install "ssl_lab[tune]"') from error
    if os.environ.get("WORLD_SIZE", "1") != "1":
        raise UsageError("tuning runs in one process; start it without torchrun")
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    if not resume:
        make_way(out, "study.db")
    out.mkdir(parents=True, exist_ok=True)
    study = optuna.create_study(storage=f"sqlite:///{(out / 'study.db').resolve()}", study_name="tune",
                                direction="maximize", pruner=optuna.pruners.MedianPruner(), load_if_exists=True)
    check_same(study.user_attrs.get("config", config), config, out)
    study.set_user_attr("config", dict(config))
    states = optuna.trial.TrialState
    for cut_off in study.get_trials(states=[states.RUNNING]):
        study.tell(cut_off.number, state=states.FAIL)
    while (done := len(study.get_trials(states=[states.COMPLETE, states.PRUNED]))) < trials:
        study.sampler = optuna.samplers.TPESampler(seed=seed_of(seed, "trial", done) % 2**32)
        trial = study.ask()
        values = {name: trial.suggest_float(name, *ends, log=True) for name, ends in space.items()}
        folder = out / "trials" / f"{done:03d}"
        clear(folder)  # of one that was cut off
        try:
            score = run(values, folder, _Watch(trial, optuna.TrialPruned))
            study.tell(trial, score)
            gave = f"{score:.2%} on validation images"
        except optuna.TrialPruned:
            study.tell(trial, state=states.PRUNED)
            gave = "given up"
        except NonFiniteLossError:
            study.tell(trial, 0.0)
            gave = "the loss became infinite"
        print(f"trial {done + 1} of {trials}: {_listed(values)}: {gave}")
    scores = [trial.value for trial in study.get_trials(states=[states.COMPLETE])]
    if not any(scores):
        raise RunFailedError(f"none of the {trials} trials in {out / 'trials'} gave an accuracy above zero, most "
                             "likely because their losses became infinite; mend that first, e.g. by --precision fp32")
    print(f"best: {_listed(study.best_params)}: {study.best_value:.2%} on validation images")
    return dict(study.best_params)


def tuning_pools(pool: Pool, seed: int) -> tuple[Pool, Pool]:
    """The pool of the trials, and that of the last run, which trains on the trials' validation images too.

    Validation images are the pool's; if it has none, a fifth of the labels of each class, drawn by the seed. The trials
    see no test image. UsageError if no class has two labels.
    """
    labels = pool.labels.copy()
    labels[pool.valid] = pool.truth[pool.valid]
    held = pool.valid if len(pool.valid) else hold_out(pool.labeled, labels, HELD_OUT, seed)
    if not len(held):
        raise UsageError(f"tuning needs validation images, but no class has two of the {len(pool.labeled)} labels; "
                         "give more labels, or hold images out with --valid")
    everything = np.union1d(pool.train, pool.valid)
    truth = pool.truth.copy()
    truth[held] = labels[held]
    trials = replace(_with(pool, np.setdiff1d(everything, held), held, labels), truth=truth, test=pool.test[:0])
    return trials, _with(pool, everything, held[:0], labels)


def _with(pool: Pool, train: IntArray, valid: IntArray, labels: IntArray) -> Pool:
    rows, ledger = train[labels[train] != UNLABELED], Ledger()
    ledger.append(rows, labels[rows], SPLIT)
    return replace(pool, train=train, valid=valid, ledger=ledger)


class _Watch(Callback):
    """Tells the trial its accuracies, and stops it if they are too low."""

    def __init__(self, trial: Any, stop: type[Exception]) -> None:
        self.trial, self.stop, self.steps = trial, stop, 0

    def start(self, name: str, out: Path, step: int, steps: int) -> None:
        self.steps = steps

    def row(self, row: Mapping[str, float]) -> None:
        if "valid_accuracy" in row:
            self.trial.report(row["valid_accuracy"], int(row["step"]))
            if self.steps * HOPEFUL <= row["step"] < self.steps and self.trial.should_prune():
                raise self.stop


def _listed(values: Mapping[str, float]) -> str:
    return ", ".join(f"{name} {value:.3g}" for name, value in values.items())
