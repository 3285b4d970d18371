r"""What is this run like? Numbers of a finished run's net, each with what it means and what it cannot tell.

    python recipes/supervised.py --data digits --labels 200 --steps 300 --net tiny_8 --out runs/plain --with head_norm
    python recipes/analyze.py --from runs/plain --out runs/analysis
    python recipes/supervised.py --data digits --labels 200 --steps 300 --net tiny_8 --out runs/wrong \
        --with "corrupt_labels(0.4)" --with head_norm
    python recipes/analyze.py --from runs/wrong --out runs/analysis-wrong

The second run learned 49% of its 73 wrong labels by heart, and told 41% right in spite of them (test accuracy 73.0%;
95.2% of the first, which has none). Its valley is steeper: sharpness 0.32 against 0.10, largest eigenvalue 222 against
62, local energy +9.2 against +5.1 points; effective depth (5.5) and the exponent of gradient noise (0.52) do not tell
the two apart. One seed of each; an analysis takes some 20 seconds of CPU time.

It prints one table, and writes report.html. Data and labels are those of the run (--data says where they lie now). The
loss that is looked at is that of --images training images, as they are, by their classes (labels, where no more is
known). Test images play no part.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
from rich.console import Console

import ssl_lab as sl
from ssl_lab import analysis
from ssl_lab.engine.evaluate import predict
from ssl_lab.errors import UsageError
from ssl_lab.finished import Finished, OfARun
from ssl_lab.report import Band, Column, Report, Table, curves
from ssl_lab.techniques.data.corrupt_labels import CorruptLabels
from ssl_lab.techniques.images import some


@dataclass
class Settings(OfARun):
    images: int = 256
    """Training images of the loss that is looked at."""
    radius: float = 0.05
    """Of sharpness: the length by which all weights together move."""
    energy: float = 0.1
    """Of local energy: the share of itself by which each weight moves."""
    draws: int = 30
    """Of local energy."""
    krylov: int = 12
    """Steps of Lanczos' method for the Hessian."""
    batches: int = 600
    """Mini-batches whose noise is measured, 120 or more; 0 leaves that out."""
    out: Path = Path("runs/analysis")
    """Folder of report.html."""


class Number(NamedTuple):
    """value: as text, None where it was not measured. means, cannot: sentences."""

    name: str
    value: str | None
    means: str
    cannot: str


def main(settings: Settings) -> None:
    run = settings.finished()
    runtime = sl.Runtime.start(settings.device, "fp32")
    run.net.to(runtime.device)
    rows = run.pool.train[run.pool.truth[run.pool.train] >= 0]
    rows = np.sort(some(rows, settings.images, settings.seed, "analyze"))
    land = analysis.Landscape.of(run.net, run.pool, rows, run.pool.truth[rows])

    whole = analysis.spectrum(land, settings.krylov, seed=settings.seed)
    parts = analysis.spectrum_by_class(land, settings.krylov, settings.seed)
    numbers = [*of_the_loss(land, settings), *of_the_hessian(whole), *of_the_net(run, land),
               *of_the_labels(run, runtime), *of_the_course(run), *of_the_noise(land, settings)]
    classes = Table("The Hessian, class by class", [
        Column("class"), Column("images", "right", ",d"), Column("largest eigenvalue", "right", ".3g"),
        Column("smallest", "right", ".3g")], [
        [run.pool.class_names[label], int((land.y == label).sum()), each.largest, each.smallest]
        for label, each in parts.items()])
    summary = run.stored.summary
    named = " with ".join(filter(None, [f"{summary['method']} on {summary['data']}", ", ".join(run.techniques)]))
    table = Table(named, [Column("number"), Column("value")], [[each.name, each.value] for each in numbers])
    Console().print(table)
    write_report(run, numbers, table, classes, whole, land, settings)
    print(f"The report is {settings.out / 'report.html'}")


def of_the_loss(land: analysis.Landscape, settings: Settings) -> list[Number]:
    whole, each = (analysis.sharpness(land, settings.radius, m) for m in (None, 32))
    energy = analysis.local_energy(land, settings.energy, settings.draws, settings.seed)
    flat = ("Two nets whose weights have other lengths are not compared by it: a net can be rescaled without changing "
            "a single answer, and this number with it.")
    return [
        Number("loss, error on these images", f"{land.loss():.3g}, {land.error():.1%}",
               "What the numbers below are about: the loss of training images as they are, in evaluation mode.",
               "How good the net is on new images: that is the test accuracy of the run's own page."),
        Number(f"sharpness at {settings.radius:g}", f"{whole:.3g}",
               f"By how much the loss rises one step of length {settings.radius:g} up the gradient, of all images "
               "together. SAM keeps it small.", flat),
        Number(f"m-sharpness, m = 32, at {settings.radius:g}", f"{each:.3g}",
               "The same for groups of 32 images, each with a step of its own. Among nets trained alike, a smaller one "
               "went with better generalization in the paper.", flat),
        Number(f"local energy at {settings.energy:g}", f"{100 * energy:+.2f} points of error",
               f"By how much the error on these images rises when every weight moves at random by some "
               f"{settings.energy:.0%} of itself: how wide the valley is. It does not depend on how layers are scaled "
               "against each other.", f"Little where it is 0: then {settings.energy:g} is too small to tell nets "
               "apart; raise --energy."),
    ]


def of_the_hessian(whole: analysis.Spectrum) -> list[Number]:
    rate = f"{2 / whole.largest:.3g}" if whole.largest > 0 else "no bound"
    return [
        Number("largest eigenvalue", f"{whole.largest:.3g}",
               f"The largest curvature of the loss. Plain gradient descent on it is stable up to a learning rate of 2 "
               f"over it: {rate}.", "What rate trains best: momentum, mini-batches and the path before matter."),
        Number("smallest eigenvalue", f"{whole.smallest:.3g}",
               "The largest downward curvature. Far below 0 beside the largest, the net stands on a saddle, and "
               "training could still go down.", "Anything exact: Lanczos' method finds it from above, "
               "in few steps."),
    ]


def of_the_net(run: Finished, land: analysis.Landscape) -> list[Number]:
    rate = next((row["lr"] for row in reversed(run.stored.rows) if "lr" in row), None)
    found = {} if rate is None else analysis.effective_rates(run.net, run.pool.style, float(rate))
    return [
        Number("effective learning rate at the end", f"{found['all']:.3g}" if found else None,
               "The last learning rate over the squared length of all weights that a norm follows: by so much their "
               "direction, which alone matters, could still move. It falls as weights grow.",
               "The regime that the run was in: that also needs its course, and plain SGD."),
        Number("effective depth", known(lambda: f"{analysis.effective_depth(run.net, land.x):.2f} nonlinearities"),
               "How many nonlinearities an image passes on average over paths, where channels that never bend on these "
               "images count as linear: a small one says that layers could be merged.",
               "How much accuracy merging would cost: recipes/compress.py --how linearize tries. In a net of ReLUs "
               "nearly every channel bends on some image, so that it has about all the depth it can."),
        Number("safe change of weights", known(lambda: safe(run, land)),
               "The share of its norm by which every layer's weights may change before the median image that is "
               "told right can be told wrong, by a bound that holds for any change.",
               "How much the net really bears: the bound is loose by orders of magnitude in deep nets."),
    ]


def safe(run: Finished, land: analysis.Landscape) -> str:
    radii = analysis.safe_radius(run.net.double(), land.x.double(), land.y)
    run.net.float()
    right = radii[radii > 0]
    return f"{right.median().item():.2g} of its norm" if len(right) else "none is right"


def known(measure: Callable[[], str]) -> str | None:
    """None where the net has parts of which it is not known."""
    try:
        return measure()
    except UsageError:
        return None


def of_the_labels(run: Finished, runtime: sl.Runtime) -> list[Number]:
    pool = run.pool
    rows = pool.labeled[pool.truth[pool.labeled] >= 0]
    given = pool.labels
    for text in run.techniques:
        if isinstance(technique := sl.techniques.technique(text), CorruptLabels):
            given = technique(pool, run.seed).labels
    said = predict(run.net, pool, rows, runtime).argmax(dim=1).numpy()
    found = analysis.memorization(said, given[rows], pool.truth[rows])
    value = (f"{found.wrong:.0%} by heart, {found.righted:.0%} told right in spite, of {found.corrupted:,} wrong labels"
             if found.corrupted else f"no wrong label is known; {found.right:.1%} of the others fitted")
    return [Number("labels learned by heart", value,
                   "Of training images whose label is known to be wrong (--with corrupt_labels makes some): how many "
                   "the net gives just that label, which nothing but memory can do.",
                   "Which of your own labels are wrong: ssl-lab audit looks for these.")]


def of_the_course(run: Finished) -> list[Number]:
    rows = [row for row in run.stored.rows if "head_norm" in row and "loss" in row]
    value = None
    if rows:
        found = analysis.slingshots([float(r["head_norm"]) for r in rows], [float(r["loss"]) for r in rows])
        value = f"{len(found)}" + (f", the first at step {int(rows[found[0].start]['step']):,}" if found else "")
    return [Number("slingshots", value,
                   "Jumps of the last layer's norm, each with a spike of the loss: training under Adam that breaks "
                   "loose and settles again.", "Anything without the norm's course: train with --with head_norm. That "
                   "they help generalization is disputed.")]


def of_the_noise(land: analysis.Landscape, settings: Settings) -> list[Number]:
    value = None
    if settings.batches:
        noise = analysis.gradient_noise(land, settings.batches, seed=settings.seed)
        exponents = analysis.hurst_exponents(noise)
        value = f"{analysis.hurst_exponent(noise):.3f}, dimension {analysis.fractal_dimension(exponents):.2f}"
    return [Number("Hurst exponent of gradient noise", value,
                   "0.54 as measured here is noise without memory (0.5; short windows read higher). The dimension of "
                   "such a path enters the paper's bound of the gap between training and test.",
                   "The gap itself. Batches are drawn at random at the final weights, as in the authors' code, so that "
                   "exponents far from 0.54 tell of heavy tails or of too few batches, not of the path.")]


def write_report(run: Finished, numbers: list[Number], table: Table, classes: Table, whole: analysis.Spectrum,
                 land: analysis.Landscape, settings: Settings) -> None:
    report = Report("What this run is like", f"{settings.start}, by recipes/analyze.py")
    report.table(table)
    report.text(f"Of {len(land.y):,} training images and one seed of this analysis. A dash: not measured here, for the "
                "reason that stands below.")
    for each in numbers:
        report.section(f"{each.name}: {each.value or 'not measured'}")
        report.text(f"What it means. {each.means}")
        report.text(f"What it cannot tell. {each.cannot}")
    report.section("The spread of the Hessian's eigenvalues")
    ends = np.array([whole.smallest, whole.largest])
    at = np.linspace(*(ends + np.array([-0.05, 0.05]) * np.ptp(ends)), 300)
    density = np.log10(np.maximum(whole.density(at, max(float(np.ptp(ends)), 1e-12) / 60), 1e-6))
    report.figure(curves({"all classes": Band(at, density, np.zeros_like(at))}, "log10 of density", "eigenvalue"),
                  f"By {settings.krylov} steps of Lanczos' method from a random direction; most lie near 0.")
    report.table(classes)
    report.text("A class that was learned badly often has both a larger largest and a more negative smallest "
                "eigenvalue; of few images of a class, both are rough.")
    for name, series in (("head_norm", "norm of the last layer"), ("loss", "training loss")):
        rows = [row for row in run.stored.rows if name in row]
        if rows and any("head_norm" in row for row in run.stored.rows):
            x, y = (np.array([float(row[key]) for row in rows]) for key in ("step", name))
            report.figure(curves({series: Band(x, y, np.zeros_like(x))}, series), f"The {series} in training.")
    report.write(settings.out / "report.html")


if __name__ == "__main__":
    sl.launch(main, Settings)
