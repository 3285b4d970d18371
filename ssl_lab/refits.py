"""How sure a trained net may be, told without validation images: by further trainings on parts of its labels.

A net is surer of images that it was trained on than of others, so that its own labels cannot calibrate it. Nets that
are trained in the same way and for as many steps, each on all parts of the labels but one, say of that one what they
would of new images; the temperature that makes these probabilities right makes those of the net of all labels nearly
right. With fewer labels a net is right less often, so that a temperature by few parts takes too much of its certainty:
measured in tests/benchmarks/README.md. Prediction sets come from the same scores, so that they hold the right class
more often than they promise.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np

from ssl_lab.afterwards import finished
from ssl_lab.calibration import FEWEST, Calibration, calibrate
from ssl_lab.data import IntArray, Pool
from ssl_lab.engine import Runtime, ShowProgress, predict
from ssl_lab.engine.card import Card
from ssl_lab.errors import UsageError
from ssl_lab.nets import Net
from ssl_lab.ways import blind, deal, parts

FOLDER = "refits"
"""Of the further runs, in that of the run which they calibrate."""
Fit = Callable[..., tuple[Net, object]]
"""A training from the start, whose net comes first: fit(pool, out=..., steps=..., resume=..., callbacks=...,
evaluations=...)."""


def dealt(pool: Pool, count: int, seed: int) -> IntArray:
    """int64 [labels]: one of `count` parts for each label of the pool, each class by its share; -1 for the only one of
    a class, which trains all nets. UsageError if these are too few to calibrate by."""
    if count < 2:
        raise UsageError(f"--calibrate {count}: expected 2 parts of the labels or more")
    labels = pool.labels[pool.labeled]
    single = np.bincount(labels, minlength=pool.classes)[labels] == 1
    if len(labels) - single.sum() < FEWEST:
        raise UsageError(f"--calibrate {count}: a temperature takes {FEWEST} labels of classes that have two or more, "
                         f"and here are {len(labels) - single.sum()}; give more labels, or leave it out")
    return deal(labels, seed, count)


def calibrate_by_refits(out: Path, pool: Pool, folds: IntArray, fit: Fit, runtime: Runtime, steps: int) -> Calibration:
    """Trains the further nets in out/refits, going on with what was stopped, and writes what they tell into the
    finished run `out`: its card and its report.

    pool, steps: of that run. folds: int64 [labels], see `dealt`.
    """
    rows, hidden = pool.labeled, blind(pool)
    logits, truth = [], []
    for fold, held in parts(folds):
        few = hidden.split(labeled=rows[~held], valid=rows[held])
        net, _ = fit(few, out=out / FOLDER / str(fold), steps=steps, resume="auto", callbacks=[ShowProgress()],
                     evaluations=1)
        logits.append(predict(net, few, rows[held], runtime).numpy())
        truth.append(pool.labels[rows[held]])
    calibration = calibrate(np.concatenate(logits), np.concatenate(truth),
                            f"labels held out in turn of {len(logits)} further trainings")
    replace(Card.read(out), calibration=calibration).write(out)
    finished(out, pool)
    return calibration
