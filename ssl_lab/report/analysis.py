"""The page of what a run is like: numbers of its net, its labels and its course, each with what it means and what it
cannot tell."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from ssl_lab import analysis
from ssl_lab.engine import Runtime
from ssl_lab.engine.evaluate import predict
from ssl_lab.errors import UsageError
from ssl_lab.report.finished import Finished
from ssl_lab.report.html import NAME, Report
from ssl_lab.report.metrics import line
from ssl_lab.report.plots import curves
from ssl_lab.report.tables import Column, Table
from ssl_lab.techniques import technique
from ssl_lab.techniques.data.corrupt_labels import CorruptLabels
from ssl_lab.techniques.images import some


class Number(NamedTuple):
    """value: as text, None where it was not measured. means, cannot: sentences."""

    name: str
    value: str | None
    means: str
    cannot: str


def landscape(run: Finished, images: int, seed: int, runtime: Runtime) -> analysis.Landscape:
    """The loss of so many of the run's training images of known class, drawn by the seed; its net moves to the
    device."""
    run.net.to(runtime.device)
    rows = run.pool.train[run.pool.truth[run.pool.train] >= 0]
    rows = np.sort(some(rows, images, seed, "analyze"))
    return analysis.Landscape.of(run.net, run.pool, rows, run.pool.truth[rows])


def of_the_loss(land: analysis.Landscape, radius: float, energy: float, draws: int, seed: int) -> list[Number]:
    """radius: of sharpness. energy, draws: of local energy."""
    whole, each = (analysis.sharpness(land, radius, m) for m in (None, 32))
    rise = analysis.local_energy(land, energy, draws, seed)
    flat = ("Two nets whose weights have other lengths are not compared by it: a net can be rescaled without changing "
            "a single answer, and this number with it.")
    return [
        Number("loss, error on these images", f"{land.loss():.3g}, {land.error():.1%}",
               "What the numbers below are about: the loss of training images as they are, in evaluation mode.",
               "How good the net is on new images: that is the test accuracy of the run's own page."),
        Number(f"sharpness at {radius:g}", f"{whole:.3g}",
               f"By how much the loss rises one step of length {radius:g} up the gradient, of all images "
               "together. SAM keeps it small.", flat),
        Number(f"m-sharpness, m = 32, at {radius:g}", f"{each:.3g}",
               "The same for groups of 32 images, each with a step of its own. Among nets trained alike, a smaller one "
               "went with better generalization in the paper.", flat),
        Number(f"local energy at {energy:g}", f"{100 * rise:+.2f} points of error",
               f"By how much the error on these images rises when every weight moves at random by some "
               f"{energy:.0%} of itself: how wide the valley is. It does not depend on how layers are scaled "
               "against each other.", f"Little where it is 0: then {energy:g} is too small to tell nets "
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
        Number("effective depth", _known(lambda: f"{analysis.effective_depth(run.net, land.x):.2f} nonlinearities"),
               "How many nonlinearities an image passes on average over paths, where channels that never bend on these "
               "images count as linear: a small one says that layers could be merged.",
               "How much accuracy merging would cost: recipes/compress.py --how linearize tries. In a net of ReLUs "
               "nearly every channel bends on some image, so that it has about all the depth it can."),
        Number("safe change of weights", _known(lambda: _safe(run, land)),
               "The share of its norm by which every layer's weights may change before the median image that is "
               "told right can be told wrong, by a bound that holds for any change.",
               "How much the net really bears: the bound is loose by orders of magnitude in deep nets."),
    ]


def _safe(run: Finished, land: analysis.Landscape) -> str:
    radii = analysis.safe_radius(run.net.double(), land.x.double(), land.y)
    run.net.float()
    right = radii[radii > 0]
    return f"{right.median().item():.2g} of its norm" if len(right) else "none is right"


def _known(measure: Callable[[], str]) -> str | None:
    """None where the net has parts of which it is not known."""
    try:
        return measure()
    except UsageError:
        return None


def of_the_labels(run: Finished, runtime: Runtime) -> list[Number]:
    pool = run.pool
    rows = pool.labeled[pool.truth[pool.labeled] >= 0]
    given = pool.labels
    for text in run.techniques:
        if isinstance(found := technique(text), CorruptLabels):
            given = found(pool, run.seed).labels
    said = predict(run.net, pool, rows, runtime).argmax(dim=1).numpy()
    learned = analysis.memorization(said, given[rows], pool.truth[rows])
    value = (f"{learned.wrong:.0%} by heart, {learned.righted:.0%} told right in spite, of {learned.corrupted:,} wrong "
             "labels" if learned.corrupted else f"no wrong label is known; {learned.right:.1%} of the others fitted")
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


def of_the_noise(land: analysis.Landscape, batches: int, seed: int) -> list[Number]:
    """batches: whose noise is measured; 0 leaves that out."""
    value = None
    if batches:
        noise = analysis.gradient_noise(land, batches, seed=seed)
        exponents = analysis.hurst_exponents(noise)
        value = f"{analysis.hurst_exponent(noise):.3f}, dimension {analysis.fractal_dimension(exponents):.2f}"
    return [Number("Hurst exponent of gradient noise", value,
                   "0.54 as measured here is noise without memory (0.5; short windows read higher). The dimension of "
                   "such a path enters the paper's bound of the gap between training and test.",
                   "The gap itself. Batches are drawn at random at the final weights, as in the authors' code, so that "
                   "exponents far from 0.54 tell of heavy tails or of too few batches, not of the path.")]


def table_of(run: Finished, numbers: Sequence[Number]) -> Table:
    """A row for each number."""
    return Table(run.named, [Column("number"), Column("value")], [[each.name, each.value] for each in numbers])


def write_analysis(run: Finished, numbers: Sequence[Number], whole: analysis.Spectrum,
                   parts: Mapping[int, analysis.Spectrum], land: analysis.Landscape, out: Path) -> Path:
    """Writes report.html into the folder `out` and returns its path.

    whole, parts: the Hessian's spectrum, of all images and class by class.
    """
    report = Report("What this run is like", f"{run.stored.folder}, by recipes/analyze.py")
    report.table(table_of(run, numbers))
    report.text(f"Of {len(land.y):,} training images and one seed of this analysis. A dash: not measured here, for the "
                "reason that stands below.")
    for each in numbers:
        report.section(f"{each.name}: {each.value or 'not measured'}")
        report.text(f"What it means. {each.means}")
        report.text(f"What it cannot tell. {each.cannot}")
    _add_spectrum(report, run, whole, parts, land)
    for name, series in (("head_norm", "norm of the last layer"), ("loss", "training loss")):
        rows = [row for row in run.stored.rows if name in row]
        if rows and any("head_norm" in row for row in run.stored.rows):
            course = line([row["step"] for row in rows], [row[name] for row in rows])
            report.figure(curves({series: course}, series), f"The {series} in training.")
    report.write(out / NAME)
    return out / NAME


def _add_spectrum(report: Report, run: Finished, whole: analysis.Spectrum, parts: Mapping[int, analysis.Spectrum],
                  land: analysis.Landscape) -> None:
    report.section("The spread of the Hessian's eigenvalues")
    width = whole.largest - whole.smallest
    at = np.linspace(whole.smallest - 0.05 * width, whole.largest + 0.05 * width, 300)
    density = np.log10(np.maximum(whole.density(at, max(width, 1e-12) / 60), 1e-6))
    report.figure(curves({"all classes": line(at, density)}, "log10 of density", "eigenvalue"),
                  f"By {len(whole.values)} steps of Lanczos' method from a random direction; most lie near 0.")
    report.table(Table("The Hessian, class by class", [
        Column("class"), Column("images", "right", ",d"), Column("largest eigenvalue", "right", ".3g"),
        Column("smallest", "right", ".3g")], [
        [run.pool.class_names[label], int((land.y == label).sum()), each.largest, each.smallest]
        for label, each in parts.items()]))
    report.text("A class that was learned badly often has both a larger largest and a more negative smallest "
                "eigenvalue; of few images of a class, both are rough.")
