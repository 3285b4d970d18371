"""The ways to a classifier that `ssl-lab advise` compares and `ssl-lab train` goes, and how each of them is gone."""

from __future__ import annotations

import math
import shlex
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from ssl_lab import build, nets, presets
from ssl_lab.at_hand import PRETRAINED, here
from ssl_lab.data import IntArray, Pool
from ssl_lab.data.images import Resized
from ssl_lab.data.split import shuffled
from ssl_lab.engine import Result, Runtime, Trainer, predict
from ssl_lab.ensemble import Ensembling
from ssl_lab.errors import UsageError, unknown
from ssl_lab.features import LEARNERS, embed
from ssl_lab.features.embed import seconds_to_embed
from ssl_lab.features.search import FloatArray
from ssl_lab.finetune import FineTuning
from ssl_lab.methods import get
from ssl_lab.nets import Net
from ssl_lab.nets.start import start_net
from ssl_lab.rapid import Rapid
from ssl_lab.report import print_tables

FOLDS = 5
Recipe = Literal["features", "finetune", "ensemble", "scratch", "rapid"]
FRESH = ("scratch", "rapid")
"""Recipes that begin with a net that knows nothing."""
LOW, STEP = 96, 32  # sides in pixels: below, features of photographs lose too much


@dataclass(frozen=True)
class Way:
    """A way to a classifier. right: float [N], 1 or 0 for each label, when it was held out. seconds: of all folds.
    command: how to go it. plan: the same for code."""

    name: str
    right: NDArray[np.float64]
    seconds: float
    command: str
    plan: Plan | None = None


@dataclass(frozen=True)
class Plan:
    """recipe: "features", the learner `method` on frozen features of `net`; "finetune", training it on by `method`;
    "ensemble", training it on by what it, the other pretrained nets that are here and fine-tunings of it say of
    images (see `Ensembling`); "scratch", training a fresh one; or "rapid", that in short rounds (see `Rapid`). net: a
    name, or what `start_net` takes. weights, pretrained: of a timm net. image_size: side in pixels; None: that of the
    data. view: texts of views in place of the method's."""

    recipe: Recipe
    net: str
    method: str
    image_size: int | None = None
    weights: Path | None = None
    pretrained: bool = False
    view: tuple[str, ...] = ()

    @classmethod
    def of_backbone(cls, name: str, net: str, size: int | None, weights: Path | None, pretrained: bool) -> Plan:
        """A probe on a backbone: a known name, a run, a file of weights (of `net`, if it lies in no run's folder), or
        timm/MODEL, whose weights the last two arguments tell. UsageError if there is none."""
        foreign, path = name.startswith("timm/"), Path(name)
        if name in PRETRAINED or foreign:
            return cls("features", name, "probe", size, weights if foreign else None, pretrained and foreign)
        if not path.exists():
            raise UsageError(f"there is no {name} to start from; give the folder of a finished run, a .safetensors "
                             f"file, timm/MODEL, or {', '.join(PRETRAINED)}")
        alone = path.is_file() and not (path.parent / "model.json").exists()
        return cls("features", net if alone else name, "probe", size, path if alone else None)

    def __post_init__(self) -> None:
        if self.recipe == "features" and self.method not in LEARNERS:
            raise unknown("learner", self.method, LEARNERS)
        if self.recipe != "features" and not get(self.method).classifies:
            raise UsageError(f"{self.method} trains no classifier; pretrain with it first, and name its run as a net")

    @property
    def known(self) -> bool:
        """Whether the net has learned something before."""
        return self.net in PRETRAINED or self.pretrained or self.weights is not None or _is_stored(self.net)

    @property
    def _by_time(self) -> bool:
        """Whether the minutes decide which net it is."""
        return self.recipe == "rapid" and self.net == Rapid.net

    @property
    def name(self) -> str:
        if self.recipe == "scratch":
            return f"{self.net} trained by {self.method}"
        if self.recipe == "rapid":
            return f"{'a net' if self._by_time else self.net} trained in short rounds"
        if self.recipe == "finetune":
            return f"{self.net} fine-tuned by {self.method}"
        if self.recipe == "ensemble":
            return f"{self.net} taught by an ensemble"
        if self.net == "pixels":
            return f"raw pixels, {self.method}"
        seen = self.net if self.weights is None or self.net.startswith("timm/") else self.weights
        return f"frozen {seen}, {self.method}" if self.known else f"{self.net} at random init, {self.method}"

    def settings(self) -> dict[str, Any]:
        """What a run records of it, beside the size of images."""
        return {"recipe": self.recipe, "net": self.net, "method": self.method, "view": list(self.view),
                "weights": self.weights, "pretrained": self.pretrained}

    def flags(self) -> str:
        """Of `ssl-lab train`."""
        method = None if self.recipe in ("ensemble", "rapid") else self.method
        net = None if self._by_time else self.net
        return flags({"recipe": self.recipe, "net": net, "method": method, "image-size": self.image_size,
                      "weights": self.weights, "pretrained": self.pretrained or None})

    def build(self, pool: Pool, seed: int, bn_momentum: float | None = None) -> Net:
        """The net where training, or embedding, begins."""
        if self.recipe in FRESH or not (self.net in PRETRAINED or _is_stored(self.net)):
            return nets.net(self.net, pool.class_names, pool.style, self.pretrained, self.weights, seed, bn_momentum)
        return start_net(self.net, pool.class_names, pool.style, seed=seed)

    def fit(self, pool: Pool, runtime: Runtime, seed: int, **trainer: Any) -> tuple[Net, Mapping[str, Any]]:
        """Trains, and leaves a run; the net that predicts, and what summary.json holds. Not for "features"."""
        shared = {"device": str(runtime.device), "precision": runtime.precision, **trainer}
        if self.recipe == "ensemble":
            others = [known.name for known in here() if self.net in PRETRAINED]
            result, table = Ensembling((self.net, *others), view=self.view).fit(pool, runtime, seed=seed, **shared)
            print_tables(table)
        elif self.recipe == "rapid":
            rapid = Rapid(self.net, Rapid.grown if self.net == Rapid.net else "", view=self.view)
            return rapid.fit(pool, runtime, seed=seed, **shared)
        elif self.recipe == "finetune":
            tuning = FineTuning(self.method, view=self.view)
            result = tuning.fit(self.build(pool, seed), pool, runtime, seed, **shared)
        else:
            result = self._from_scratch(pool, seed, **shared)
        return result.method.predictor(), result.summary

    def _from_scratch(self, pool: Pool, seed: int, **trainer: Any) -> Result:
        preset = presets.for_pool(get(self.method), pool, net=self.net, view=self.view)
        net = preset.begun(self.build(pool, seed, preset.bn_momentum), pool, seed)
        method = build.method(self.method, net, pool, {}, {"ema": preset.ema, **preset.arguments})
        method.with_views(*preset.views)
        optimizer = preset.optimizer_of(preset.lr, preset.weight_decay)
        return Trainer(optimizer=optimizer, seed=seed, **trainer).fit(method, pool, preset.labeled, preset.unlabeled)

    def check(self, pool: Pool, seed: int) -> None:
        """UsageError for what cannot be built for this pool."""
        if self.net in PRETRAINED:
            PRETRAINED[self.net].weights()
        elif self.recipe == "scratch":
            preset = presets.preset(get(self.method).name, pool.name, "short")
            build.method(self.method, self.build(pool, seed), pool, {}, preset.arguments)
        elif not self._by_time:
            self.build(pool, seed)


def _is_stored(net: str) -> bool:
    """Whether this is a run, or a file of weights, and no name of a net."""
    path = Path(net)
    return not net.startswith("timm/") and (path.suffix in (".safetensors", ".pt", ".pth") or path.is_dir()
                                            or len(path.parts) > 1)


def sized(pool: Pool, size: int | None) -> Pool:
    """The pool with its images at this side, resized as they are read."""
    if size is None or pool.images.shape[1:] == (size, size):
        return pool
    return replace(pool, images=Resized(pool.images, size, pool.reading.resize),
                   style=replace(pool.style, height=size, width=size))


def fitting_size(name: str, pool: Pool, images: int, seconds: float, runtime: Runtime) -> int:
    """The side in pixels at which a known net embeds so many images in so many seconds here: that which it was trained
    on, or a smaller one, down to 96."""
    size = PRETRAINED[name].size
    whole = images * seconds_an_image(Plan("features", name, "probe", size), pool, runtime)
    sizes = [size, *range(size // STEP * STEP, LOW - 1, -STEP)]
    return next((each for each in sizes if whole * (each / size) ** 2 <= seconds), LOW)


def seconds_an_image(plan: Plan, pool: Pool, runtime: Runtime) -> float:
    """How long the plan's net takes to embed an image here."""
    pool = sized(pool, plan.image_size)
    return seconds_to_embed(plan.build(pool, 0), pool, runtime)


def blind(pool: Pool) -> Pool:
    """The pool without any label but those that training may use, and without validation and test images."""
    truth = np.full_like(pool.truth, -1)
    truth[pool.labeled] = pool.labels[pool.labeled]
    return replace(pool, truth=truth, valid=pool.valid[:0], test=pool.test[:0], notes=())


def deal(labels: IntArray, seed: int, count: int = FOLDS) -> IntArray:
    """int64 [N]: one of `count` folds for each label, the folds as equal in classes and size as they can be; fewer if
    there are fewer labels. -1, never held out: the only label of a class. UsageError if that is all there is."""
    counts = np.bincount(labels)
    order = shuffled(np.flatnonzero(counts[labels] > 1), seed, "folds")
    if not len(order):
        raise UsageError(f"{len(labels)} labels, no class with two: nothing can be held out to compare by. Give more")
    order = order[np.argsort(labels[order], kind="stable")]
    folds = np.full(len(labels), -1)
    folds[order] = np.arange(len(order)) % min(count, len(order))
    return folds


def parts(folds: IntArray) -> Iterator[tuple[int, NDArray[np.bool_]]]:
    """Each fold, and which labels are in it."""
    for fold in range(folds.max() + 1):
        yield fold, folds == fold


def cross_validated(features: FloatArray, labels: IntArray, folds: IntArray, learner: str, classes: int,
                    end: float = math.inf) -> NDArray[np.float64] | None:
    """float64 [N]: whether each label was predicted by a learner (see `LEARNERS`) of the other folds; NaN if never held
    out. None if it would not be done by `end`, a time of `perf_counter`. features: [N, D]. labels, folds: int64 [N]."""
    right, begun = np.full(len(labels), np.nan), time.perf_counter()
    count = folds.max() + 1
    for fold, held in parts(folds):
        probs = LEARNERS[learner](features, np.where(held, -1, labels), features[held], classes)
        right[held] = probs.argmax(axis=1) == labels[held]
        each = (time.perf_counter() - begun) / (fold + 1)
        if begun + each * count > end:
            return None
    return right


def trained(plan: Plan, pool: Pool, folds: IntArray, seed: int, runtime: Runtime, length: Mapping[str, Any]) -> Way:
    """A net trained afresh for each fold, on the labels of the others; held-out images do not train at all."""
    begun, rows, pool = time.perf_counter(), pool.labeled, sized(pool, plan.image_size)
    right = np.full(len(rows), np.nan)
    for _, held in parts(folds):
        few = pool.split(labeled=rows[~held], valid=rows[held])
        with tempfile.TemporaryDirectory() as out:
            net, _ = plan.fit(few, runtime, seed, **length, out=out, callbacks=[], evaluations=1)
        said = predict(net, few, rows[held], runtime).argmax(dim=1).numpy()
        right[held] = said == pool.labels[rows[held]]
    return Way(plan.name, right, time.perf_counter() - begun, "", plan)


def learned(plans: Sequence[Plan], pool: Pool, folds: IntArray, seed: int, runtime: Runtime,
            end: float = math.inf) -> list[Way]:
    """Learners on the features of one net, which all these plans share; without those that would not be done by `end`,
    a time of `perf_counter`, each with a word."""
    begun, rows, pool = time.perf_counter(), pool.labeled, sized(pool, plans[0].image_size)
    features = embed(plans[0].build(pool, seed), pool, rows, runtime)
    seconds, ways = time.perf_counter() - begun, []
    for plan in plans:
        begun = time.perf_counter()
        right = cross_validated(features, pool.labels[rows], folds, plan.method, pool.classes, end)
        if right is None:
            print(f"{plan.name} is left out: its {folds.max() + 1} fits take too long; give more --minutes", flush=True)
            continue
        ways.append(Way(plan.name, right, seconds + time.perf_counter() - begun, "", plan))
    return ways


def flags(settings: Mapping[str, Any]) -> str:
    """" --name value" of each setting that is not None; " --name" of True."""
    return "".join(f" --{name}" if value is True else f" --{name} {shlex.quote(str(value))}"
                   for name, value in settings.items() if value is not None)
