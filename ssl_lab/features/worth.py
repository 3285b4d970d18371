"""What a net's features are worth: their health, with labels, by number of labels, and layer by layer beside another
net's."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ssl_lab.batch import Style
from ssl_lab.data import IntArray, Pool
from ssl_lab.engine import Runtime
from ssl_lab.errors import UsageError
from ssl_lab.features.cka import layer_cka, linear_cka
from ssl_lab.features.embed import embed
from ssl_lab.features.health import class_separation, some
from ssl_lab.features.knn import weighted_knn
from ssl_lab.features.probe import linear_probe
from ssl_lab.features.protocols import Scores, few_label_curve, label_free, small_data
from ssl_lab.features.search import FloatArray
from ssl_lab.features.self_training import Learner
from ssl_lab.features.store import FeatureStore
from ssl_lab.nets import Net, net
from ssl_lab.nets.start import start_net
from ssl_lab.views import View, ViewFactory, Weak

HEALTHY = 1000  # images by which health is measured


@dataclass
class Worth:
    """A net, its features of all images, float32 [N, D], and what was measured: name -> text."""

    name: str
    net: Net
    features: FloatArray
    numbers: dict[str, str] = field(default_factory=dict)
    curve: list[Scores] = field(default_factory=list)

    @classmethod
    def of(cls, name: str, net: Net, pool: Pool, kept: Path, runtime: Runtime) -> Worth:
        """With what needs no labels: are features spread out, and alike for two views of an image?

        kept: the folder of stored features. Features that have collapsed are said at once.
        """
        features = FeatureStore.build(net, pool, kept, runtime).features
        rows = some(pool.train, HEALTHY)
        views = embed(net, pool, rows, runtime, _weak("first")), embed(net, pool, rows, runtime, _weak("second"))
        health = label_free(features[rows], views)
        if health["collapsed"]:
            print(f"ALARM: the features of {name} have collapsed (embedding std {health['embedding_std']:.2g}, "
                  f"effective rank {health['effective_rank']:.2g}): they do not tell images apart, and more training "
                  "will not help. Lower the learning rate, or strengthen what keeps features apart.")
        numbers = {"collapsed": "YES" if health.pop("collapsed") else "no"}
        return cls(name, net, features, numbers | {key.replace("_", " "): f"{value:.3g}"
                                                   for key, value in health.items()})

    def by_labels(self, pool: Pool, queries: IntArray, learners: Mapping[str, Learner], seeds: Sequence[int]) -> None:
        """Adds how well labels, all of them and few, tell the classes of the queries by frozen features; nothing if
        there are no labels, or features are not finite.

        learners: one, by name, for the few-label curve. seeds: of its draws.
        """
        if not len(pool.labeled) or not np.isfinite(self.features).all():
            return
        features, classes = self.features, pool.classes
        bank, labels = features[pool.labeled], pool.labels[pool.labeled]
        asked, answers = features[queries], pool.truth[queries]
        data = bank, labels, asked, answers, classes

        # What chooses L2, as in Kornblith's protocol.
        tuning = np.setdiff1d(pool.valid[pool.truth[pool.valid] >= 0], queries)
        both = np.concatenate([bank, features[tuning]]), np.concatenate([labels, pool.truth[tuning]])
        held = np.arange(len(bank), len(bank) + len(tuning)) if len(tuning) else None
        probs = {"kNN accuracy": weighted_knn(bank, labels, asked, classes),
                 "linear probe accuracy": linear_probe(*both, asked, classes, valid=held)}
        self.numbers |= {name: f"{(p.argmax(axis=1) == answers).mean():.1%}" for name, p in probs.items()}

        (learner, learn), = learners.items()
        self.curve = few_label_curve(*data, learner=learn, seeds=seeds)
        self.numbers |= {f"{learner}, {few.name} ({few.labels})": _interval(few) for few in self.curve}
        smallest = int(np.bincount(labels, minlength=classes).min())
        if smallest > 1:
            few = small_data(*data, labels=min(50, smallest) * classes, seeds=seeds)
            self.numbers[f"small data ({few.labels}), balanced accuracy"] = _interval(few)
        self.numbers["class separation"] = f"{class_separation(asked, answers):.3f}"


@dataclass(frozen=True)
class Layers:
    """How alike the layers of two nets are. alike: `layer_cka`, [layers of one, layers of the other]. images: by how
    many."""

    alike: NDArray[np.float64]
    mine: list[str]
    theirs: list[str]
    images: int


def compare(one: Worth, other: Worth, pool: Pool, images: int, runtime: Runtime) -> Layers:
    """How alike two nets are, by so many training images; in the numbers of the first one: their features, and five
    layers from first to last."""
    rows = some(pool.train, images)
    alike, mine, theirs = layer_cka(one.net, other.net, pool, rows, runtime)
    one.numbers["CKA of features"] = f"{linear_cka(one.features[rows], other.features[rows]):.3f}"
    for place in np.unique(np.linspace(0, len(mine) - 1, 5).round().astype(int)):
        nearest = int(np.nan_to_num(alike[place], nan=-1).argmax())
        one.numbers[f"CKA of {mine[place]}"] = f"{alike[place, nearest]:.3f} with {theirs[nearest]}"
    return Layers(alike, mine, theirs, images)


def images_to_ask_about(pool: Pool) -> IntArray:
    """The test images whose class is known, or else the validation images. UsageError where labels have none to be
    judged by."""
    queries = pool.test if (pool.truth[pool.test] >= 0).any() else pool.valid
    queries = queries[pool.truth[queries] >= 0]
    if len(pool.labeled) and not len(queries):
        raise UsageError(f"{pool.name} has no test image whose class is known; hold some out with --valid 0.2")
    return queries


def net_of(start: str, beside: str, classes: int | Sequence[str], style: Style, name: str, pretrained: bool = False,
           weights: Path | None = None, seed: int = 0) -> Net:
    """What `start_net` has, and `pixels`, the images themselves, and `init`: the net of `beside` at random init, or the
    one called `name` if that is `init` too. pretrained, weights: for timm models alone."""
    if start == "pixels":
        return net(start, classes, style, seed=seed)
    if start == "init":
        other = name if beside == "init" else net_of(beside, beside, classes, style, name, pretrained, weights,
                                                     seed).name
        return net(other, classes, style, seed=seed)
    foreign = start.startswith("timm/")
    return start_net(start, classes, style, name, pretrained and foreign, weights if foreign else None, seed)


def _weak(which: str) -> ViewFactory:
    """A random weak view; another one for another name."""
    def factory(style: Style) -> View:
        return lambda images, draw: Weak(style)(images, draw.child(which))
    return factory


def _interval(scores: Scores) -> str:
    half = f" ± {100 * scores.half_width:.1f}" if len(scores.accuracies) > 1 else ""
    return f"{100 * scores.mean:.1f}{half}%"
