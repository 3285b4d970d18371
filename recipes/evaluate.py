r"""What are a net's features worth? With labels and without, by number of labels, layer by layer, and as a map.

    python recipes/evaluate.py --from runs/pretrain --against init --data mnist --out runs/evaluation
    python recipes/evaluate.py --from timm/tf_efficientnet_lite0 --weights FILE --data cifar10 --image-size 128

--from and --against take the folder of a run, a .safetensors file (of --net), or timm/MODEL with --pretrained or
--weights FILE; `--against init` is the same net at random init. It prints one table and writes report.html, with a map
of test images on which each shows itself under the pointer. Labels are those of --labels (default: all that are known);
test labels are only counted. Without any labels it measures health alone. Images are embedded once and kept in the data
folder: the next evaluation starts at once.
"""

import base64
import importlib
import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import numpy as np
import tyro
from PIL import Image
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
from ssl_lab.report import Band, Column, Markup, Report, Table, curves, heat_map
from ssl_lab.report.text import escape


@dataclass
class Settings(sl.Settings):
    start: Annotated[str, tyro.conf.arg(aliases=("--from",))] = "runs/pretrain"
    """What to evaluate: a run, a file of weights, or timm/MODEL."""
    against: str | None = None
    """What to compare it with: another such, or init."""
    splits: int = 5
    """Draws of the labels in the few-label curve, of seeds --seed, --seed + 1, ..."""
    learner: Literal["knn", "prototype", "probe"] = "probe"
    """Of the few-label curve."""
    layout: Literal["pca", "umap"] = "pca"
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
    numbers: dict[str, str]
    curve: list[Scores]


Layers = tuple[np.ndarray, list[str], list[str]]
"""Of `layer_cka`."""


def main(settings: Settings) -> None:
    pool = sl.load(settings.data, settings.data_dir, settings.image_size).split(**settings.split())
    queries = pool.test if (pool.truth[pool.test] >= 0).any() else pool.valid
    queries = queries[pool.truth[queries] >= 0]
    if len(pool.labeled) and not len(queries):
        raise UsageError(f"{pool.name} has no test image whose class is known; hold some out with --valid 0.2")
    runtime = sl.Runtime.start(settings.device, settings.precision)
    nets = {settings.start: beginning(settings.start, settings, pool)}
    if settings.against is not None:
        first = next(iter(nets.values()))
        nets[settings.against] = (
            sl.net(first.name, max(pool.classes, 1), pool.style, seed=settings.seed) if settings.against == "init"
            else beginning(settings.against, settings, pool))
    found = [evaluate(name, net, pool, queries, settings, runtime) for name, net in nets.items()]
    layers = None
    if len(found) == 2:
        rows = some(pool.train, settings.compared)
        layers = layer_cka(found[0].net, found[1].net, pool, rows, runtime)
        compare(found, rows, layers)
    table = Table(f"{pool.name}, {len(pool.labeled)} labels, {len(queries)} test images", [
        Column("measure"), *(Column(each.name, "right") for each in found)],
        [[name, *(each.numbers.get(name) for each in found)] for name in {**found[0].numbers, **found[-1].numbers}])
    Console().print(table)
    write_report(found, layers, table, pool, queries, settings)
    print(f"The report is {settings.out / 'report.html'}")


def beginning(start: str, settings: Settings, pool: sl.Pool) -> sl.Net:
    """The net of --from or --against; --pretrained and --weights are for timm models."""
    foreign = start.startswith("timm/")
    return start_net(start, max(pool.classes, 1), pool.style, settings.net, settings.pretrained and foreign,
                     settings.weights if foreign else None, settings.seed)


def evaluate(name: str, net: sl.Net, pool: sl.Pool, queries: IntArray, settings: Settings,
             runtime: sl.Runtime) -> Evaluated:
    """Everything that is measured of one net."""
    features = FeatureStore.build(net, pool, data_folder(settings.data_dir) / "features", runtime).features
    rows = some(pool.train, 1000)
    views = tuple(embed(net, pool, rows, runtime, weak(which)) for which in ("first", "second"))
    health = label_free(features[rows], views)
    if health["collapsed"]:
        print(f"ALARM: the features of {name} have collapsed (embedding std {health['embedding_std']:.2g}, effective "
              f"rank {health['effective_rank']:.2g}): they do not tell images apart, and more training will not help. "
              "Lower the learning rate, or strengthen what keeps features apart.")
    numbers = {"collapsed": "YES" if health.pop("collapsed") else "no"}
    numbers |= {measure.replace("_", " "): f"{value:.3g}" for measure, value in health.items()}
    if not np.isfinite(features).all() or not len(pool.labeled):
        return Evaluated(name, net, features, numbers, [])

    bank, labels = features[pool.labeled], pool.labels[pool.labeled]
    asked, answers = features[queries], pool.truth[queries]
    tuning = np.setdiff1d(pool.valid[pool.truth[pool.valid] >= 0], queries)  # chooses L2, as in Kornblith's protocol
    both = np.concatenate([bank, features[tuning]]), np.concatenate([labels, pool.truth[tuning]])
    held = np.arange(len(bank), len(bank) + len(tuning)) if len(tuning) else None
    probs = {"kNN accuracy": weighted_knn(bank, labels, asked, pool.classes),
             "linear probe accuracy": linear_probe(*both, asked, pool.classes, valid=held)}
    numbers |= {measure: f"{(p.argmax(axis=1) == answers).mean():.1%}" for measure, p in probs.items()}
    data = bank, labels, asked, answers, pool.classes
    seeds = range(settings.seed, settings.seed + settings.splits)
    curve = few_label_curve(*data, learner=LEARNERS[settings.learner], seeds=seeds)
    numbers |= {f"{settings.learner}, {each.name} ({each.labels})": interval(each) for each in curve}
    smallest = int(np.bincount(labels, minlength=pool.classes).min())
    if smallest > 1:
        each = small_data(*data, labels=min(50, smallest) * pool.classes, seeds=seeds)
        numbers[f"small data ({each.labels}), balanced accuracy"] = interval(each)
    numbers["class separation"] = f"{class_separation(asked, answers):.3f}"
    return Evaluated(name, net, features, numbers, curve)


def weak(which: str) -> sl.views.ViewFactory:
    """A random weak view; another one for another name."""
    def factory(style: sl.Style) -> sl.views.View:
        return lambda images, draw: sl.Weak(style)(images, draw.child(which))
    return factory


def interval(scores: Scores) -> str:
    half = f" ± {100 * scores.half_width:.1f}" if len(scores.accuracies) > 1 else ""
    return f"{100 * scores.mean:.1f}{half}%"


def compare(found: Sequence[Evaluated], rows: IntArray, layers: Layers) -> None:
    """Adds to the first net's numbers how alike it is to the second: features, and five layers from first to last."""
    one, other = found
    alike, mine, theirs = layers
    one.numbers["CKA of features"] = f"{linear_cka(one.features[rows], other.features[rows]):.3f}"
    for place in np.unique(np.linspace(0, len(mine) - 1, 5).round().astype(int)):
        nearest = int(np.nan_to_num(alike[place], nan=-1).argmax())
        one.numbers[f"CKA of {mine[place]}"] = f"{alike[place, nearest]:.3f} with {theirs[nearest]}"


def write_report(found: Sequence[Evaluated], layers: Layers | None, table: Table, pool: sl.Pool, queries: IntArray,
                 settings: Settings) -> None:
    report = Report(f"The features of {settings.start}", f"{pool.name}, by recipes/evaluate.py")
    report.table(table)
    report.text("±: half of a 95% interval of the mean over draws of the labels; the test images are the same in all.")
    if any(each.curve for each in found):
        report.section("Few labels")
        lines = {each.name: Band(*np.array([(np.log10(at.labels), at.mean, at.half_width) for at in each.curve])
                                 .reshape(-1, 3).T) for each in found}
        report.figure(curves(lines, "test accuracy", "labels, as powers of ten", percent=True),
                      f"{settings.learner} on frozen features. Band: 95% interval over {settings.splits} draws.")
    report.section("Map")
    rows = some(queries if len(queries) else pool.train, settings.shown)
    for each in found:
        if np.isfinite(each.features[rows]).all():
            points = layout(each.features[rows], settings.layout, settings.seed)
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


def layout(features: np.ndarray, kind: str, seed: int) -> np.ndarray:
    """float64 [n, 2]: the first two principal components of features [n, D], the sign of each such that its largest
    entry is positive; or UMAP's."""
    if kind == "umap":
        try:
            umap = importlib.import_module("umap")
        except ImportError as error:
            raise UsageError('--layout umap needs umap-learn: pip install "ssl_lab[umap]"') from error
        return np.asarray(umap.UMAP(random_state=seed, n_jobs=1, metric="cosine").fit_transform(features), np.float64)
    left, sizes, _ = np.linalg.svd(np.float64(features) - features.mean(axis=0), full_matrices=False)
    points = np.zeros((len(features), 2))
    points[:, :min(2, len(sizes))] = left[:, :2] * sizes[:2]
    return points * np.where(points.max(axis=0) < -points.min(axis=0), -1, 1)


def image_map(points: np.ndarray, labels: np.ndarray, images: np.ndarray, class_names: Sequence[str]) -> Markup:
    """Dots that show their image and class at the right while the pointer is on them, by style sheet alone, as SVG.

    points: float [n, 2]. labels: int [n], -1 for unknown. images: uint8 [n, C, H, W], shown with 48 pixels a side at
    most.
    """
    low, size = points.min(axis=0), np.maximum(np.ptp(points, axis=0), 1e-12)
    places = 8 + 284 * (points - low) / size
    colors = [f"hsl({360 * label // len(class_names)} 70% {(40, 58)[label % 2]}%)" for label in range(len(class_names))]
    names = [*map(escape, class_names), escape("unknown")]  # of -1: the last
    colors.append("gray")
    dots = []
    for (x, y), label, image in zip(places, labels.tolist(), images, strict=True):
        name = names[label]
        dots.append(f'<g><circle cx="{x:.1f}" cy="{300 - y:.1f}" r="4" fill="{colors[label]}">'
                    f"<title>{name}</title></circle>"
                    f'<image x="312" y="8" width="140" height="140" href="{png(image)}"/>'
                    f'<text x="382" y="168" text-anchor="middle" fill="currentColor">{name}</text></g>')
    legend = [f'<text x="{312 + 72 * (i // 6)}" y="{196 + 18 * (i % 6)}" font-size="11" fill="{colors[i]}">'
              f"{escape(name[:11])}</text>" for i, name in enumerate(class_names[:12])]
    return Markup('<svg xmlns="http://www.w3.org/2000/svg" class="map" viewBox="0 0 460 300" role="img" '
                  f'aria-label="map of {len(points)} images" font-size="13">\n'
                  "<style>.map image { image-rendering: pixelated; pointer-events: none; } "
                  ".map g > image, .map g > text { visibility: hidden; } .map g:hover circle { stroke: currentColor; } "
                  ".map g:hover > image, .map g:hover > text { visibility: visible; }</style>\n"
                  + "\n".join([*legend, *dots]) + "\n</svg>")


def png(image: np.ndarray) -> str:
    """A data URL of uint8 [1 or 3, H, W], made smaller if it has more than 48 pixels a side."""
    small = Image.fromarray(np.ascontiguousarray(image.transpose(1, 2, 0)).squeeze())
    small.thumbnail((48, 48))
    file = io.BytesIO()
    small.save(file, "png")
    return "data:image/png;base64," + base64.b64encode(file.getvalue()).decode()


if __name__ == "__main__":
    sl.launch(main, Settings)
