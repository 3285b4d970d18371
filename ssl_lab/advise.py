"""`ssl-lab advise`: which way to go with these images and these few labels, by cross-validation on the labels alone."""

from __future__ import annotations

import shlex
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import tyro
from numpy.typing import NDArray
from rich.console import Console

from ssl_lab import nets, presets
from ssl_lab.config import reading_of
from ssl_lab.data import IntArray, Pool, announce, load
from ssl_lab.data.reading import Background
from ssl_lab.data.sizes import Resize
from ssl_lab.data.split import shuffled, stratified
from ssl_lab.engine import Runtime, Trainer, predict
from ssl_lab.errors import NonFiniteLossError, UsageError
from ssl_lab.features import LEARNERS, embed
from ssl_lab.features.search import FloatArray
from ssl_lab.intervals import half_width
from ssl_lab.methods import METHODS, get
from ssl_lab.nets.start import start_net
from ssl_lab.optim import SGD
from ssl_lab.report import Column, Table
from ssl_lab.schedule import cosine_7_16

FOLDS = 5
LEAST_SECONDS = 2.0
"""Of a training run: a shorter one says nothing."""
MOST = 2000
"""Labels to compare by: enough to tell ways apart that differ by two percent, and learners on features end soon."""


@dataclass(frozen=True)
class Way:
    """A way to a classifier. right: float [N], 1 or 0 for each label, when it was held out. seconds: of all folds.
    command: how to go it."""

    name: str
    right: NDArray[np.float64]
    seconds: float
    command: str


@dataclass(frozen=True)
class Advice:
    """ways: all that were tried. folds: int64 [N], in which fold each label was held out. given: how many
    labels there are; of more than `MOST`, so many were drawn to compare by."""

    ways: Sequence[Way]
    folds: IntArray
    given: int = 0

    def accuracy(self, way: Way) -> tuple[float, float]:
        """Mean over folds, and its standard error."""
        each = self._by_fold(way.right)
        return float(each.mean()), float(each.std(ddof=1) / len(each) ** 0.5)

    def margin(self, one: Way, other: Way) -> tuple[float, float]:
        """By how much `one` is better in the same folds, and half the width of Student's 95% interval of that.

        It is the wider of two: by the differences between folds, and by McNemar's standard error, sqrt(n) / N of the n
        labels on which the two disagree, because a few folds may agree by chance.
        """
        difference = one.right - other.right
        each = self._by_fold(difference)
        folds = float(half_width(each))
        return float(each.mean()), float(max(folds, 1.96 * np.abs(difference).sum() ** 0.5 / len(difference)))

    @property
    def best(self) -> Way:
        """That of the highest accuracy; of equals the cheapest."""
        return max(self.ways, key=lambda way: (self.accuracy(way)[0], -way.seconds))

    @property
    def rivals(self) -> list[Way]:
        """The ways that the labels cannot tell from the best one; the cheapest first."""
        best = self.best
        margins = [(way, *self.margin(best, way)) for way in self.ways if way is not best]
        return sorted((way for way, difference, half in margins if difference <= half), key=lambda way: way.seconds)

    def _by_fold(self, values: NDArray[np.float64]) -> NDArray[np.float64]:
        return np.bincount(self.folds, values) / np.bincount(self.folds)

    def table(self) -> Table:
        """The ways, the best first, with the difference to it and what may be noise."""
        best, rivals = self.best, self.rivals
        rows = [[way.name, _percent(*self.accuracy(way)), None if way is best else _percent(*self.margin(best, way)),
                 "best" if way is best else "within noise" if way in rivals else "worse", way.seconds]
                for way in sorted(self.ways, key=lambda way: -self.accuracy(way)[0])]
        return Table(f"Accuracy on {len(self.folds)} held-out labels, in % ± standard error", [
            Column("way"), Column("accuracy", "right"), Column("behind the best ± 95%", "right"), Column("verdict"),
            Column("seconds", "right", ".1f")], rows)

    def text(self) -> str:
        """The recommendation."""
        lines = [f"Recommended: {self.best.name}", f"  {self.best.command}"]
        if self.rivals:
            lines.append(f"Within noise of it: {'; '.join(way.name for way in self.rivals)}. {len(self.folds)} labels "
                         "do not tell which is best; more would.")
            cheapest = min(self.best, self.rivals[0], key=lambda way: way.seconds)
            lines += ["It is the cheapest of these too."] if cheapest is self.best else [
                "The cheapest of these:", f"  {cheapest.command}"]
        elif len(self.ways) > 1:
            lines.append("It beats each other way by more than noise.")
        if self.given > MOST:
            lines.append(f"Of {self.given} labels {MOST} were compared by, each class by its share, so that it ends in "
                         "time; with all of them accuracies are likely higher, and another way may be best.")
        lines.append(f"Every number comes from {self.folds.max() + 1} parts of these labels, each predicted from the "
                     "others; no other label was read. Folds share labels, so that errors are a little larger than "
                     "they look, and the best of several looks a little better than it is. Training had only the "
                     "seconds above.")
        return "\n".join(lines)


def advise(data: Annotated[str, tyro.conf.Positional], labels: int | float | None = None, minutes: float = 5.0,
           net: str = "tiny_16", backbones: tuple[str, ...] = (), weights: Path | None = None, pretrained: bool = False,
           methods: tuple[str, ...] = ("supervised", "fixmatch"), steps: int | None = None,
           image_size: int | None = None, path_column: str | None = None, label_column: str | None = None,
           split_column: str | None = None, class_level: int = 1, resize: Resize = "crop", value_range: str = "auto",
           background: Background = "white", flip: Literal["auto", "on", "off"] = "auto", data_dir: Path | None = None,
           seed: int = 0, device: str = "auto") -> Advice:
    """Compares ways to use a few labels, in a few minutes, and recommends one, with numbers and their uncertainty.

    Nearest neighbors of raw pixels, kNN and linear probe on frozen features (of --net at random init, and of
    --backbones), and short training of --net: all by cross-validation on the labels given. Test labels are not read.

    data: data set (see `ssl-lab list data`), folder of images, or CSV of path,label.
    labels: how many are given, or which fraction, as many of each class (default: all); at most 2000 are compared by.
    minutes: for all of it.
    net: that is trained.
    backbones: whose frozen features may help: folders of runs, files of weights of --net, or timm/MODEL.
    weights: a file with weights of the timm backbones.
    pretrained: take the published weights of the timm backbones.
    methods: to train by (see `ssl-lab list methods`), or package.module:MyMethod; with arguments if you like.
    steps: of each training run, in place of what the minutes allow.
    image_size: side in pixels to which images are resized.
    path_column: column of a CSV file that holds the paths of images (default: path, or a usual name).
    label_column: column of a CSV file that holds the labels (default: label, or a usual name).
    split_column: column of a CSV file that says train, valid or test (default: split, or a usual name).
    class_level: 2 if the classes of a folder are the sub-folders of its folders.
    resize: crop, pad or squash images that are not square, or none.
    value_range: the values of black and of white in images that do not hold bytes, e.g. 0-1.
    background: what shows through where images are transparent.
    flip: whether views mirror images left-right.
    data_dir: where data sets lie.
    seed: of the draw of labels, the folds, initial weights and training.
    device: cpu, cuda, or auto.
    """
    begun = time.perf_counter()
    if minutes <= 0 or (steps is not None and steps < 1):
        raise UsageError(f"minutes={minutes:g}, steps={steps}: both must be positive")
    if wrong := [name for name in methods if not get(name).classifies]:
        raise UsageError(f"{wrong[0]} trains no classifier; pretrain with it first, and name its run in --backbones")
    read: dict[str, Any] = {
        "data_dir": data_dir, "image_size": image_size, "path_column": path_column, "label_column": label_column,
        "split_column": split_column, "class_level": class_level, "resize": resize, "value_range": value_range,
        "background": background, "flip": flip}
    pool = load(data, **reading_of(read)).split(labels=labels, seed=seed)
    announce(pool)
    given_labels = len(pool.labeled)
    if given_labels > MOST:
        pool = pool.split(labeled=stratified(pool.labeled, pool.labels, MOST, seed, "advise"), seed=seed)
    pool = blind(pool)
    folds = deal(pool.labels[pool.labeled], seed)
    runtime = Runtime.start(device)
    usual = {"class_level": 1, "resize": "crop", "value_range": "auto", "background": "white", "flip": "auto"}
    given = {"data": data, "labels": labels, "seed": seed or None} | {
        name.replace("_", "-"): value for name, value in read.items() if value != usual.get(name)}
    flags = _flags(given)

    for name in methods:  # what they cannot be built for is known at once too
        preset = presets.preset(get(name).name, pool.name, "short")
        presets.build(name, nets.net(net, pool.class_names, pool.style, seed=seed), pool, {}, preset.arguments)
    features = _features(pool, runtime, net, backbones, weights, pretrained, seed)
    ways = []
    for name, rows, learners, chosen, seconds in features:
        for learner in learners:
            start = time.perf_counter()
            right = cross_validated(rows, pool.labels[pool.labeled], folds, learner, pool.classes)
            command = (f"python recipes/features.py{flags}{_flags(chosen)} --learner {learner}" if chosen
                       else "nothing but ssl_lab.features.weighted_knn(pixels, labels, queries, classes)")
            ways.append(Way(f"{name}, {learner}", right, time.perf_counter() - start + seconds, command))

    for number, name in enumerate(methods):
        left = 60 * minutes - (time.perf_counter() - begun)
        each = left / (len(methods) - number) / (folds.max() + 1)
        if steps is None and each < LEAST_SECONDS:
            print(f"{name} is left out: {max(each, 0):.1f} s remain for each of its {folds.max() + 1} runs; "
                  "give more --minutes")
            continue
        length = {"minutes": each / 60} if steps is None else {"steps": steps}
        try:
            ways.append(_trained(name, pool, folds, net, seed, runtime, length, flags, minutes))
        except NonFiniteLossError as error:
            print(f"{name} is left out: {str(error).partition(';')[0]}")
    held = folds >= 0
    advice = Advice([replace(way, right=way.right[held]) for way in ways], folds[held], given_labels)
    Console().print(advice.table())
    print(advice.text())
    return advice


def blind(pool: Pool) -> Pool:
    """The pool without any label but those that training may use, and without validation and test images."""
    truth = np.full_like(pool.truth, -1)
    truth[pool.labeled] = pool.labels[pool.labeled]
    return replace(pool, truth=truth, valid=pool.valid[:0], test=pool.test[:0], notes=())


def deal(labels: IntArray, seed: int) -> IntArray:
    """int64 [N]: a fold, 0 to 4, for each label, the folds as equal in classes and size as they can be; fewer folds if
    there are fewer labels. -1, never held out: the only label of a class. UsageError if that is all there is."""
    counts = np.bincount(labels)
    order = shuffled(np.flatnonzero(counts[labels] > 1), seed, "folds")
    if not len(order):
        raise UsageError(f"{len(labels)} labels, no class with two: nothing can be held out to compare by. Give more")
    order = order[np.argsort(labels[order], kind="stable")]
    folds = np.full(len(labels), -1)
    folds[order] = np.arange(len(order)) % min(FOLDS, len(order))
    return folds


def cross_validated(features: FloatArray, labels: IntArray, folds: IntArray, learner: str,
                    classes: int) -> NDArray[np.float64]:
    """float64 [N]: whether each label was predicted by a learner (see `LEARNERS`) of the other folds; NaN if never held
    out. features: [N, D]. labels, folds: int64 [N]."""
    right = np.full(len(labels), np.nan)
    for _, held in _parts(folds):
        probs = LEARNERS[learner](features, np.where(held, -1, labels), features[held], classes)
        right[held] = probs.argmax(axis=1) == labels[held]
    return right


def _parts(folds: IntArray) -> Iterator[tuple[int, NDArray[np.bool_]]]:
    for fold in range(folds.max() + 1):
        yield fold, folds == fold


Features = tuple[str, FloatArray, tuple[str, ...], dict[str, Any], float]
"""Name, [N, D] of the labeled images, names of learners, the settings of recipes/features.py, seconds."""


def _features(pool: Pool, runtime: Runtime, name: str, backbones: Sequence[str], weights: Path | None, pretrained: bool,
              seed: int) -> Iterator[Features]:
    rows = pool.labeled
    built: list[tuple[str | None, nets.Net]] = [(None, nets.net(name, pool.class_names, pool.style, seed=seed))]
    for start in backbones:  # all of them before anything is computed: what is not there is known at once
        foreign = start.startswith("timm/")
        built.append((start, start_net(start, pool.class_names, pool.style, name, pretrained and foreign,
                                       weights if foreign else None, seed)))
    pixels: FloatArray = (pool.images.take(rows).flatten(1).float().div_(255).numpy())
    yield "raw pixels", pixels, ("knn",), {}, 0.0
    for origin, backbone in built:
        begun = time.perf_counter()
        settings = _weights(origin, weights, pretrained) if origin else {}
        found = embed(backbone, pool, rows, runtime)
        title = f"frozen {origin}" if settings else f"{origin or name} at random init"
        yield title, found, ("knn", "probe"), {"net": backbone.name, **settings}, time.perf_counter() - begun


def _weights(start: str, weights: Path | None, pretrained: bool) -> dict[str, Any]:
    """The settings that give a recipe's --net the weights of a backbone."""
    if start.startswith("timm/"):
        return {"pretrained": True} if pretrained else {"weights": weights} if weights else {}
    path = Path(start)
    return {"weights": path / "model.safetensors" if path.is_dir() else path}


def _trained(name: str, pool: Pool, folds: IntArray, net: str, seed: int, runtime: Runtime, length: dict[str, Any],
             flags: str, minutes: float) -> Way:
    """A net trained afresh for each fold, on the labels of the others; held-out images do not train at all."""
    begun, rows = time.perf_counter(), pool.labeled
    preset = presets.preset(get(name).name, pool.name, "short")
    right = np.full(len(rows), np.nan)
    for _, held in _parts(folds):
        few = pool.split(labeled=rows[~held], valid=rows[held])
        fresh = nets.net(net, pool.class_names, pool.style, seed=seed, bn_momentum=preset.bn_momentum)
        method = presets.build(name, fresh, few, {}, {"ema": preset.ema, **preset.arguments})
        with tempfile.TemporaryDirectory() as out:
            trainer = Trainer(**length, out=out, seed=seed, device=str(runtime.device), precision=runtime.precision,
                              optimizer=SGD(cosine_7_16(preset.lr), preset.weight_decay), callbacks=[], evaluations=1)
            trainer.fit(method, few, preset.labeled, preset.unlabeled)
        said = predict(method.predictor(), few, rows[held], runtime).argmax(dim=1).numpy()
        right[held] = said == pool.labels[rows[held]]
    recipe = get(name).recipe if name in METHODS else "recipes/consistency.py"  # which takes arguments, and one's own
    by_name = {"method": name} if recipe.endswith("consistency.py") else {}
    command = f"python {recipe}{flags}{_flags({**by_name, 'net': net, 'minutes': f'{minutes:g}'})}"
    return Way(f"{net} trained by {name}", right, time.perf_counter() - begun, command)


def _percent(value: float, error: float) -> str:
    return f"{100 * value:.1f} ± {100 * error:.1f}"


def _flags(settings: dict[str, Any]) -> str:
    """" --name value" of each setting that is not None; " --name" of True."""
    return "".join(f" --{name}" if value is True else f" --{name} {shlex.quote(str(value))}"
                   for name, value in settings.items() if value is not None)
