r"""What are a net's features worth? With labels and without, by number of labels, layer by layer, and as a map.

    python recipes/evaluate.py --from runs/pretrain --against init --data mnist --labels 1000 --out runs/evaluation
    python recipes/evaluate.py --from lite0 --data cifar10 --image-size 128

The first command, after ten minutes of SimCLR (4,109 steps): kNN 95.6%, linear probe 97.0%, with 40 labels 86.3 ± 2.6%.
27 seconds on one core of an AMD EPYC that had other work, images embedded before. With ten other processes on two cores
of an Intel Xeon, ten minutes were 1,190 steps: 90.1, 94.2 and 78.2 ± 4.2%; at random init 64.4, 65.2 and 35.8 ±
3.4%. That took 102 seconds of CPU time, with embedding.

--from and --against take the folder of a run, a .safetensors file (of --net), lite0 and the like, or timm/MODEL with
--pretrained or --weights FILE; `--against init` is the same net at random init (`--from init` that of --net), `pixels`
the images themselves. It prints one table and writes report.html, with a map of test images on which each shows itself
under the pointer. Labels are those of --labels (default: all that are known); test labels are only counted. Without any
labels it measures health alone. Images are embedded once and kept in the data folder: the next evaluation starts at
once.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Literal

import numpy as np
import tyro
from rich.console import Console

import ssl_lab as sl
from ssl_lab.data import IntArray
from ssl_lab.data.files import data_folder
from ssl_lab.errors import UsageError
from ssl_lab.features import (
    LEARNERS,
    FeatureStore,
    class_separation,
    embed,
    layer_cka,
    linear_cka,
    linear_probe,
    weighted_knn,
)
from ssl_lab.features.health import some
from ssl_lab.features.protocols import Scores, few_label_curve, label_free, small_data
from ssl_lab.features.search import FloatArray
from ssl_lab.nets.start import start_net
from ssl_lab.report import Band, Column, Report, Table, curves, heat_map, image_map, in_two_dimensions
from ssl_lab.report.map import Layout


@dataclass
class Settings(sl.Settings):
    trains = False
    start: Annotated[str, tyro.conf.arg(aliases=("--from",))] = "runs/pretrain"
    """What to evaluate: a run, a file of weights, timm/MODEL, init or pixels."""
    against: str | None = None
    """What to compare it with: another such, init or pixels."""
    splits: int = 5
    """Draws of the labels in the few-label curve, of seeds --seed, --seed + 1, ..."""
    learner: Literal["knn", "prototype", "probe"] = "probe"
    """Of the few-label curve."""
    layout: Layout = "pca"
    """Of the map; umap: pip install "ssl_lab[umap]"."""
    shown: int = 400
    """Test images on the map."""
    compared: int = 256
    """Images by which layers are compared."""
    out: Path = Path("runs/evaluation")
    """Folder of report.html."""
    steps: int | None = 0
    """Nothing is trained."""


@dataclass
class Evaluated:
    """A net, its features of all images, and what was measured: name -> text."""

    name: str
    net: sl.Net
    features: FloatArray
    numbers: dict[str, str] = field(default_factory=dict)
    curve: list[Scores] = field(default_factory=list)


def main(settings: Settings) -> None:
    if settings.view:
        raise sl.UsageError(f"--view {settings.view[0]}: features are of images as they are; nothing is trained here")
    pool = sl.load(settings.data, **settings.reading()).split(**settings.split())
    sl.announce(pool)
    queries = images_to_ask_about(pool)
    runtime = sl.Runtime.start(settings.device, settings.precision)
    nets = {name: beginning(name, settings, pool) for name in (settings.start, settings.against) if name is not None}

    found = []
    for name, net in nets.items():
        features = FeatureStore.build(net, pool, data_folder(settings.data_dir) / "features", runtime).features
        each = Evaluated(name, net, features)
        measure_health(each, pool, runtime)
        if np.isfinite(features).all() and len(pool.labeled):
            measure_with_labels(each, pool, queries, settings)
        found.append(each)
    layers = compare(found, pool, settings, runtime) if len(found) == 2 else None

    table = Table(f"{pool.name}, {len(pool.labeled)} labels, {len(queries)} test images", [
        Column("measure"), *(Column(each.name, "right") for each in found)],
        [[name, *(each.numbers.get(name) for each in found)] for name in {**found[0].numbers, **found[-1].numbers}])
    Console().print(table)
    write_report(found, layers, table, pool, queries, settings)
    print(f"The report is {settings.out / 'report.html'}")


def images_to_ask_about(pool: sl.Pool) -> IntArray:
    """The test images whose class is known, or else the validation images."""
    queries = pool.test if (pool.truth[pool.test] >= 0).any() else pool.valid
    queries = queries[pool.truth[queries] >= 0]
    if len(pool.labeled) and not len(queries):
        raise UsageError(f"{pool.name} has no test image whose class is known; hold some out with --valid 0.2")
    return queries


def beginning(start: str, settings: Settings, pool: sl.Pool) -> sl.Net:
    """The net of --from or --against; --pretrained and --weights are for timm models."""
    classes, foreign = pool.class_names or 1, start.startswith("timm/")
    if start in ("init", "pixels"):
        name = start
        if start == "init":
            name = settings.net if settings.start == "init" else beginning(settings.start, settings, pool).name
        return sl.net(name, classes, pool.style, seed=settings.seed)
    return start_net(start, classes, pool.style, settings.net, settings.pretrained and foreign,
                     settings.weights if foreign else None, settings.seed)


def measure_health(each: Evaluated, pool: sl.Pool, runtime: sl.Runtime) -> None:
    """What needs no labels: are features spread out, and alike for two views of an image?"""
    rows = some(pool.train, 1000)
    views = tuple(embed(each.net, pool, rows, runtime, weak(which)) for which in ("first", "second"))
    health = label_free(each.features[rows], views)
    if health["collapsed"]:
        print(f"ALARM: the features of {each.name} have collapsed (embedding std {health['embedding_std']:.2g}, "
              f"effective rank {health['effective_rank']:.2g}): they do not tell images apart, and more training will "
              "not help. Lower the learning rate, or strengthen what keeps features apart.")
    each.numbers["collapsed"] = "YES" if health.pop("collapsed") else "no"
    each.numbers |= {name.replace("_", " "): f"{value:.3g}" for name, value in health.items()}


def weak(which: str) -> sl.views.ViewFactory:
    """A random weak view; another one for another name."""
    def factory(style: sl.Style) -> sl.views.View:
        return lambda images, draw: sl.Weak(style)(images, draw.child(which))
    return factory


def measure_with_labels(each: Evaluated, pool: sl.Pool, queries: IntArray, settings: Settings) -> None:
    """How well labels, all of them and few, tell the classes of test images by frozen features."""
    features, classes, seeds = each.features, pool.classes, range(settings.seed, settings.seed + settings.splits)
    bank, labels = features[pool.labeled], pool.labels[pool.labeled]
    asked, answers = features[queries], pool.truth[queries]
    data = bank, labels, asked, answers, classes

    tuning = np.setdiff1d(pool.valid[pool.truth[pool.valid] >= 0], queries)  # chooses L2, as in Kornblith's protocol
    both = np.concatenate([bank, features[tuning]]), np.concatenate([labels, pool.truth[tuning]])
    held = np.arange(len(bank), len(bank) + len(tuning)) if len(tuning) else None
    probs = {"kNN accuracy": weighted_knn(bank, labels, asked, classes),
             "linear probe accuracy": linear_probe(*both, asked, classes, valid=held)}
    each.numbers |= {name: f"{(p.argmax(axis=1) == answers).mean():.1%}" for name, p in probs.items()}

    each.curve = few_label_curve(*data, learner=LEARNERS[settings.learner], seeds=seeds)
    each.numbers |= {f"{settings.learner}, {few.name} ({few.labels})": interval(few) for few in each.curve}
    smallest = int(np.bincount(labels, minlength=classes).min())
    if smallest > 1:
        few = small_data(*data, labels=min(50, smallest) * classes, seeds=seeds)
        each.numbers[f"small data ({few.labels}), balanced accuracy"] = interval(few)
    each.numbers["class separation"] = f"{class_separation(asked, answers):.3f}"


def interval(scores: Scores) -> str:
    half = f" ± {100 * scores.half_width:.1f}" if len(scores.accuracies) > 1 else ""
    return f"{100 * scores.mean:.1f}{half}%"


def compare(found: Sequence[Evaluated], pool: sl.Pool, settings: Settings,
            runtime: sl.Runtime) -> tuple[np.ndarray, list[str], list[str]]:
    """`layer_cka`; and in the first net's numbers how alike it is to the second: features, and five layers from first
    to last."""
    one, other = found
    rows = some(pool.train, settings.compared)
    alike, mine, theirs = layer_cka(one.net, other.net, pool, rows, runtime)
    one.numbers["CKA of features"] = f"{linear_cka(one.features[rows], other.features[rows]):.3f}"
    for place in np.unique(np.linspace(0, len(mine) - 1, 5).round().astype(int)):
        nearest = int(np.nan_to_num(alike[place], nan=-1).argmax())
        one.numbers[f"CKA of {mine[place]}"] = f"{alike[place, nearest]:.3f} with {theirs[nearest]}"
    return alike, mine, theirs


def write_report(found: Sequence[Evaluated], layers: tuple[np.ndarray, list[str], list[str]] | None, table: Table,
                 pool: sl.Pool, queries: IntArray, settings: Settings) -> None:
    report = Report(f"The features of {settings.start}", f"{pool.name}, by recipes/evaluate.py")
    report.table(table)
    report.text("±: half of a 95% interval of the mean over draws of the labels; the test images are the same in all.")
    if any(each.curve for each in found):
        report.section("Few labels")
        lines = {each.name: Band(*np.array([(few.labels, few.mean, few.half_width) for few in each.curve])
                                 .reshape(-1, 3).T) for each in found}
        report.figure(curves(lines, "test accuracy", "labels", percent=True, log=True),
                      f"{settings.learner} on frozen features. Band: 95% interval over {settings.splits} draws.")
    report.section("Map")
    rows = some(queries if len(queries) else pool.train, settings.shown)
    for each in found:
        if np.isfinite(each.features[rows]).all():
            points = in_two_dimensions(each.features[rows], settings.layout, settings.seed)
            report.figure(image_map(points, pool.truth[rows], pool.images.take(rows).numpy(), pool.class_names),
                          f"Features of {each.name}: {len(rows)} images by {settings.layout.upper()}, colored by "
                          "class. Point at one to see it.")
    if layers is not None:
        report.section("Layers")
        alike, mine, theirs = layers
        places = np.arange(1.0, len(theirs) + 1)
        lines = {name: Band(places, row, row) for name, row in zip(mine, np.nan_to_num(alike), strict=True)}
        report.figure(heat_map(lines, f"CKA of layers of {found[0].name}", f"layer of {found[1].name}, in order"),
                      f"Linear CKA on {settings.compared} train images: full color is 1, the same up to rotation.")
    report.write(settings.out / "report.html")


if __name__ == "__main__":
    sl.launch(main, Settings)
