"""`ssl-lab find-lr`: the learning-rate range test (Smith 2015, arXiv 1506.01186): a picture and a number."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import numpy as np
import torch
import tyro
from numpy.typing import NDArray

from ssl_lab import build, schedule
from ssl_lab.batch import At, Loss
from ssl_lab.config import AS_USUAL, ReadingSettings, Texts
from ssl_lab.data import Pool, load
from ssl_lab.engine import Trainer
from ssl_lab.engine.trainer import Run
from ssl_lab.errors import UsageError
from ssl_lab.files import write_text
from ssl_lab.methods import Method
from ssl_lab.nets import net as make_net
from ssl_lab.optim import SGD, Closure, Optimizer, described, stable_rate
from ssl_lab.report import Band, Report, curves
from ssl_lab.techniques import prepared

FloatArray = NDArray[np.float64]
DIVERGED = 4.0  # times the least loss: the test is over
SMOOTH = 0.9  # of the average of losses
SHARE = 0.1  # of the rate at which the loss is least


def find_lr(data: Annotated[str, tyro.conf.Positional], method: str = "supervised", net: str = "tiny_16",
            optimizer: str | None = None, labels: int | float | None = None, low: float = 1e-5, high: float = 10.0,
            steps: int = 100, labeled: int = 32, unlabeled: int = 128, view: Texts = (),
            techniques: Annotated[Texts, tyro.conf.arg(name="with")] = (), out: Path = Path("runs/find-lr"),
            read: Annotated[ReadingSettings, tyro.conf.OmitArgPrefixes] = AS_USUAL, seed: int = 0,
            device: str = "auto") -> float:
    """Trains while the learning rate rises from step to step, and says which one to take: a tenth of that at which the
    loss is least. Beyond that one the loss grows again. Nothing is saved but the picture.

    The rate is multiplied by the same factor in each step (the paper adds the same amount). Losses are averaged over
    about ten steps. Also says the largest rate at which plain gradient descent would be stable at the first step, 2 by
    the largest curvature of its batch (by Lanczos' method). Returns the rate to take.

    Args:
        data: data set (see `ssl-lab list data`), folder of images, CSV of path,label, or package.module:Mine.
        method: see `ssl-lab list methods`.
        net: see `ssl-lab list nets`.
        optimizer: see `ssl-lab list optimizers` (default: SGD with Nesterov momentum); its own rate plays no part.
        labels: how many are given, or which fraction, as many of each class (default: all).
        low: the first rate.
        high: the last rate, unless the loss grows to 4 times its least before.
        steps: of the test.
        labeled: labeled images per step.
        unlabeled: unlabeled images per step.
        view: another view in place of one of the method's, as often as you like: strong=simclr.
        techniques: what else changes how the method trains (see `ssl-lab list techniques`).
        out: folder of the picture, find-lr.html, and of the numbers, find-lr.json.
        read: how images are listed and read.
        seed: of everything drawn.
        device: cpu, cuda, cuda:1, or auto.
    """
    if not 0 < low < high or steps < 10:
        raise UsageError(f"find-lr: low={low}, high={high}, steps={steps}; expected 0 < low < high, and "
                         "10 steps or more")
    pool = load(data, **read.reading()).split(labels=labels, seed=seed)
    made = prepared(make_net(net, classes=pool.class_names, style=pool.style, seed=seed), techniques, pool, seed)
    learner = build.method(method, made, pool, {}).with_views(*view)
    spec = replace(described(optimizer) if optimizer else SGD(), lr=schedule.geometric(low, high))
    found = rising(learner, pool, spec, steps, labeled, unlabeled, seed=seed, device=device, techniques=techniques)
    if not found.losses:
        raise UsageError(f"find-lr: the loss of {method} is not finite at the first step, with any learning rate")
    title = f"Learning rates of {method} on {pool.name}"
    return written(found, high, title, f"{net}, {len(pool.labeled):,} labels, {steps} steps", out)


class Rising(NamedTuple):
    """The learning rate and the loss of each step, while they were finite, and the largest stable rate at the first."""

    rates: list[float]
    losses: list[float]
    stable: float


def rising(learner: Method, pool: Pool, spec: Optimizer, steps: int, labeled: int, unlabeled: int,
           **settings: Any) -> Rising:
    """Trains by the rates of `spec`, until the loss has left or `steps` are done. settings: of the `Trainer`."""
    stable = math.inf

    def update(closure: Closure, optimizer: torch.optim.Optimizer, at: At) -> Loss:
        nonlocal stable
        if at.step == 0:
            weights = [p for group in optimizer.param_groups for p in group["params"]]
            stable = stable_rate(lambda direction: closure.curvature(weights, direction), weights, seed=at.seed)
        loss = closure()
        optimizer.step()
        return loss

    trainer = Trainer(steps=steps, optimizer=spec, precision="fp32", update=update, callbacks=[], **settings)
    run = Run(trainer, *trainer.begun(learner, pool), learner, pool, labeled, unlabeled, saved=None)
    rates: list[float] = []
    losses: list[float] = []
    run.method.train()
    for step in range(steps):
        at = At(step, steps, trainer.seed)
        loss = float(run.step(at, 1).total.detach())
        if not math.isfinite(loss):
            break
        rates.append(at.value(spec.lr))
        losses.append(loss)
        if len(losses) > 10 and loss > DIVERGED * smoothed(losses).min():
            break
    return Rising(rates, losses, stable)


def written(found: Rising, high: float, title: str, subtitle: str, out: Path) -> float:
    """The rate to take, printed, and written into the folder `out` with the picture and all numbers."""
    rates, losses, stable = found
    average = smoothed(losses)
    best = int(average.argmin())
    rate = SHARE * rates[best]
    said = [f"take {rate:.2g}: the loss is least at {rates[best]:.2g}",
            f"plain gradient descent would be stable up to {stable:.2g} at the first step"]
    if best == len(losses) - 1:
        said.append(f"the loss still falls at {rates[best]:.2g}: try --high {10 * high:g}")
    numbers = {"rate": rate, "least_at": rates[best], "stable": stable if math.isfinite(stable) else None}
    write_text(out / "find-lr.json", json.dumps(numbers | {"rates": rates, "losses": losses}) + "\n")
    page = Report(title, subtitle)
    page.list(said)
    line = Band(np.array(rates), np.minimum(average, DIVERGED * average[: best + 1].max()), np.zeros(len(rates)))
    page.figure(curves({"loss": line}, "training loss", "learning rate", log=True), "Averaged over about ten steps.")
    page.write(out / "find-lr.html")
    print(*said, f"the picture is {out / 'find-lr.html'}", sep="\n")
    return rate


def smoothed(losses: Sequence[float]) -> FloatArray:
    """Their running average, float64 [n], in which the first ones count in full."""
    average, values = 0.0, []
    for count, loss in enumerate(losses, 1):
        average = SMOOTH * average + (1 - SMOOTH) * loss
        values.append(average / (1 - SMOOTH**count))
    return np.array(values)
