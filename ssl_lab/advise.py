"""`ssl-lab advise`: which way to go with these images and these few labels, by cross-validation on the labels alone."""

from __future__ import annotations

import math
import shlex
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import tyro
from numpy.typing import NDArray

from ssl_lab.at_hand import PRETRAINED, here
from ssl_lab.config import AS_USUAL, ReadingSettings
from ssl_lab.data import IntArray, Pool, announce, load
from ssl_lab.data.split import stratified
from ssl_lab.engine import Runtime
from ssl_lab.ensemble import Ensembling
from ssl_lab.errors import NonFiniteLossError, UsageError
from ssl_lab.features.embed import STEP
from ssl_lab.features.search import neighbors
from ssl_lab.intervals import half_width
from ssl_lab.members import few_labels, least
from ssl_lab.methods import LabeledSimCLR
from ssl_lab.notes import once
from ssl_lab.rapid import Rapid
from ssl_lab.report import Column, Table, print_tables
from ssl_lab.ways import FOLDS, Plan, Way, blind, deal, fitting_size, flags, learned, seconds_an_image, sized, trained

LEAST_SECONDS = 2.0
"""Of a training run: a shorter one says nothing."""
MOST = 2000
"""Labels to compare by: enough to tell ways apart that differ by two percent, and learners on features end soon."""
CHOOSING = 0.4
"""The share of the time of `ssl-lab train` in which it chooses."""
LEAST_STEPS = 25
"""Of fine-tuning: after fewer a net is what its probe was."""
MORE = 4
"""Images for each label from which what an ensemble says of those without one is worth a net's time."""
EMBEDDING = 0.3
"""The share of the time that embedding all images may take; in a shorter time they are resized to fewer pixels."""
MANY, LEAST_SIDE = 1024, 24
"""Images without a label, and side in pixels, from which short rounds from scratch are thought of."""
PLAIN, EACH = 0.3, 4
"""Gray images are plain, as digits are, if the nearest labeled one, by the cosine of pixels, tells so much of their
classes: 0 is by chance, 1 always (by 40 labels of MNIST 0.31 to 0.64, by 40 to 1,000 of CIFAR-10 in gray at most 0.19;
seeds 200 to 219). And how many labels of each class, on average, it takes to say."""
ROUNDS_FIRST = ("which was right on more photos than other ways from scratch when it had all of the time "
                "(recipes/rapid.py)")
SMALL, MIDDLE = 64, 128
"""Sides in pixels to which images are resized, if they are larger, for nets from scratch and for fine-tuning."""
LARGE = 160
"""Side in pixels for ensembles, which some images at this side serve better than all at a smaller one
(recipes/ensemble.py)."""


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


def backbone(name: str, pool: Pool, minutes: float, runtime: Runtime, net: str, image_size: int | None = None,
             weights: Path | None = None, pretrained: bool = False) -> Plan:
    """A probe on a backbone; see `Plan.of_backbone`. A known net sees images at the size that it knows, as far as the
    minutes allow it for all of them, unless somebody said another (image_size)."""
    size = image_size
    if size is None and name in PRETRAINED and pool.reading.resize != "none":
        size = fitting_size(name, pool, len(pool), 60 * minutes * EMBEDDING, runtime)
    return Plan.of_backbone(name, net, size, weights, pretrained)


def fine_tuned(eye: Plan, method: str, image_size: int | None) -> Plan:
    """The backbone, fine-tuned: each step costs, so that images are smaller unless somebody said how large."""
    size = eye.image_size and (image_size or min(eye.image_size, MIDDLE))
    return replace(eye, recipe="finetune", method=method, image_size=size)


def smaller(pool: Pool, image_size: int | None) -> int | None:
    """The side in pixels for nets from scratch, None for that of the pool, unless somebody said it (image_size)."""
    large = pool.reading.resize != "none" and pool.images.shape[1] > SMALL
    return image_size or (SMALL if large else None)


def worth_tuning(plan: Plan, pool: Pool, minutes: float, runtime: Runtime) -> bool:
    """Whether there are enough labels to fine-tune by, and time for some steps in each fold: a step of 32 images takes
    `STEP` times as long as to embed them."""
    if few_labels(pool):
        return False
    step = STEP * 32 * seconds_an_image(plan, pool, runtime)
    return 60 * minutes * CHOOSING / 2 >= FOLDS * LEAST_STEPS * step


def taught(eye: Plan, image_size: int | None) -> Plan:
    """The backbone taught by an ensemble."""
    return replace(eye, recipe="ensemble", method="soft_labels", image_size=eye.image_size and (image_size or LARGE))


def ensemble(eye: Plan, pool: Pool, minutes: float, runtime: Runtime, image_size: int | None = None) -> Plan | None:
    """The backbone taught by an ensemble, where that is worth its while: it is a pretrained net, there are at least
    `MORE` images for each label, and half of the minutes suffice to embed the `least` of them, the other half for four
    times `LEAST_STEPS`."""
    if not eye.known or eye.weights is not None or eye.pretrained or len(pool.train) < MORE * len(pool.labeled):
        return None
    plan = taught(eye, image_size)
    each = seconds_an_image(plan, pool, runtime)
    images = Ensembling.labeled + Ensembling.unlabeled
    return plan if 30 * minutes >= max(least(pool), 4 * LEAST_STEPS * STEP * images) * each else None


def in_rounds(pool: Pool, minutes: float, runtime: Runtime, image_size: int | None = None) -> Plan | None:
    """Short rounds from scratch, where these are worth their while: images are not tiny and, where gray, not plain (of
    CIFAR-10 in gray they know 64.6% in ten minutes, FixMatch 52.1; of MNIST 96.9, and FixMatch 99.2), most have no
    label, and there is time for one of them."""
    plan, style = Plan("rapid", Rapid.net, LabeledSimCLR.name, smaller(pool, image_size)), pool.style
    if (runtime.world > 1 or min(style.height, style.width) < LEAST_SIDE
            or len(pool.unlabeled) < max(MANY, MORE * len(pool.labeled))):
        return None
    small = sized(pool, plan.image_size)
    if not Rapid().worth(small, runtime, minutes):
        return None
    if style.channels == 1 and plain(small):
        once("short rounds are left out: images are gray, and as plain as digits or with too few labels to say; "
             "ssl-lab train --recipe rapid takes them")
        return None
    return plan


def plain(pool: Pool) -> bool:
    """Whether the nearest of the other labeled images, by pixels, tells the class of one (see `PLAIN`), or too few have
    labels to say."""
    if len(pool.labeled) < EACH * pool.classes:
        return True
    rows = pool.labeled[::1 + len(pool.labeled) // MOST]
    labels, nearest = pool.labels[rows], neighbors(pool.images.take(rows).flatten(1), k=1)[1][:, 0]
    right, chance = (labels[nearest] == labels).mean(), np.bincount(labels).max() / len(labels)
    return bool(right - chance >= PLAIN * (1 - chance))


def compared(pool: Pool, groups: Sequence[Sequence[Plan]], trainings: Sequence[Plan], seconds: float, seed: int,
             runtime: Runtime, steps: int | None = None) -> Advice:
    """The ways, held against each other by cross-validation on the labels of the pool; no other label is read.

    steps: of each training, in place of what the seconds allow. UsageError if no class has two labels, or a way cannot
    be gone, before anything is computed.
    """
    begun, given = time.perf_counter(), len(pool.labeled)
    if given > MOST:
        few = stratified(pool.labeled, pool.labels, MOST, seed, "advise")
        pool = pool.split(labeled=few, valid=0, seed=seed)
    pool = blind(pool)
    folds = deal(pool.labels[pool.labeled], seed)
    for plan in [*(plans[0] for plans in groups), *trainings]:
        plan.check(pool, seed)
    ways: list[Way] = []
    for plans in groups:
        ways += learned(plans, pool, folds, seed, runtime, begun + seconds if ways else math.inf)
    for number, plan in enumerate(trainings):
        left = seconds - (time.perf_counter() - begun)
        each = left / (len(trainings) - number) / (folds.max() + 1)
        if steps is None and each < LEAST_SECONDS:
            print(f"{plan.name} is left out: {max(each, 0):.1f} s remain for each of its {folds.max() + 1} runs; "
                  "give more --minutes")
            continue
        length: dict[str, Any] = {"minutes": each / 60} if steps is None else {"steps": steps}
        try:
            ways.append(trained(plan, pool, folds, seed, runtime, length))
        except NonFiniteLossError as error:
            print(f"{plan.name} is left out: {str(error).partition(';')[0]}")
    held = folds >= 0
    return Advice([replace(way, right=way.right[held]) for way in ways], folds[held], given)


def advise(data: Annotated[str, tyro.conf.Positional], labels: int | float | None = None, minutes: float = 5.0,
           net: str = "tiny_16", backbones: tuple[str, ...] | None = None, weights: Path | None = None,
           pretrained: bool = False, methods: tuple[str, ...] = ("supervised", "fixmatch"), steps: int | None = None,
           read: Annotated[ReadingSettings, tyro.conf.OmitArgPrefixes] = AS_USUAL,
           seed: int = 0, device: str = "auto") -> Advice:
    """Compares ways to use a few labels, in a few minutes, and recommends one, with numbers and their uncertainty.

    Nearest neighbors of raw pixels, kNN and linear probe on frozen features (of --net at random init, and of
    --backbones), short training of --net, and, with 10 labels a class, fine-tuning of the first backbone: all by
    cross-validation on the labels given. Test labels are not read. Each way comes with its `ssl-lab train`.

    Args:
        data: data set (see `ssl-lab list data`), folder of images, CSV of path,label, or package.module:Mine.
        labels: how many are given, or which fraction, as many of each class (default: all); at most 2000 are compared
            by.
        minutes: for all of it.
        net: that is trained.
        backbones: whose frozen features may help: lite0 and the like, folders of runs, files of their weights, or
            timm/MODEL (default: the pretrained nets that `ssl-lab fetch` brought here).
        weights: a file with weights of the timm backbones.
        pretrained: take the published weights of the timm backbones.
        methods: to train by (see `ssl-lab list methods`), or package.module:MyMethod; with arguments if you like.
        steps: of each training run, in place of what the minutes allow.
        read: how images are listed and read.
        seed: of the draw of labels, the folds, initial weights and training.
        device: cpu, cuda, or auto.
    """
    if minutes <= 0 or (steps is not None and steps < 1):
        raise UsageError(f"minutes={minutes:g}, steps={steps}: both must be positive")
    begun = time.perf_counter()
    pool = load(data, **read.reading()).split(labels=labels, seed=seed)
    announce(pool)
    runtime = Runtime.start(device)
    names = [known.name for known in here()] if backbones is None else backbones
    eyes = [backbone(name, pool, minutes, runtime, net, read.image_size, weights, pretrained) for name in names]
    small = smaller(pool, read.image_size)
    looked = [Plan("features", net, "knn", small), *eyes]
    groups = [[Plan("features", "pixels", "knn", small)],
              *([replace(plan, method=learner) for learner in ("knn", "probe")] for plan in looked)]
    tuned = [fine_tuned(eye, "supervised", read.image_size) for eye in eyes[:1] if eye.known]
    tuned = [plan for plan in tuned if worth_tuning(plan, pool, minutes, runtime)]
    trainings = [*tuned, *(Plan("scratch", net, method, small) for method in methods)]
    advice = compared(pool, groups, trainings, 60 * minutes - (time.perf_counter() - begun), seed, runtime, steps)
    said = {name.replace("_", "-"): value for name, value in read.said().items() if name != "image_size"}
    given = {"labels": labels, "seed": seed or None} | said
    words = f"ssl-lab train {shlex.quote(data)}{flags(given)}"
    advice = replace(advice, ways=[
        replace(way, command=f"{words}{way.plan.flags() if way.plan else ''} --minutes {minutes:g}")
        for way in advice.ways])
    print_tables(advice.table())
    print(advice.text())
    plan = ensemble(eyes[0], pool, minutes, runtime, read.image_size) if eyes else None
    if plan is not None:
        print(f"Not compared, for it takes all of the time: one net that learns what all pretrained nets here and "
              f"fine-tunings say of {len(pool.train) - len(pool.labeled):,} images without a label, as far as time "
              f"goes:\n"
              f"  {words}{plan.flags()} --minutes {minutes:g}")
    rapid = None if any(eye.known for eye in eyes) else in_rounds(pool, minutes, runtime, read.image_size)
    if rapid is not None:
        print(f"Not compared, for it takes all of the time: training in short rounds, {ROUNDS_FIRST}:\n"
              f"  {words}{rapid.flags()} --minutes {minutes:g}")
    return advice


def _percent(value: float, error: float) -> str:
    return f"{100 * value:.1f} ± {100 * error:.1f}"
