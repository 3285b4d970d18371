"""How a run went: its curves, of what was measured at two points at least."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from ssl_lab.report.html import Report
from ssl_lab.report.metrics import Band, Row, band
from ssl_lab.report.plots import curves, heat_map
from ssl_lab.report.stored import StoredRun
from ssl_lab.report.text import Markup

FEW = 40  # classes, up to which each has a row of color
OTHERS = 8  # further numbers that a method logs, of which a chart each is shown
KNOWN: tuple[tuple[str, Mapping[str, str], bool, str], ...] = (  # title, line -> key, whether shares, caption
    ("test accuracy", {"averaged weights": "test_accuracy", "last weights": "test_accuracy_plain"}, True,
     "On test images, some of them where there are many. The curve chose nothing."),
    ("validation accuracy", {"averaged weights": "valid_accuracy", "last weights": "valid_accuracy_plain"}, True,
     "On validation images."),
    ("training accuracy", {"labeled images": "train_accuracy"}, True,
     "On the labeled images of the steps, as they were learned from."),
    ("pseudo-labels", {"mask rate": "mask_rate", "right ones": "pseudo_label_accuracy"}, True,
     "Mask rate: share of the unlabeled images of a step that the method learned from. Right ones: share of their "
     "pseudo-labels that are right, among images whose class is known, if any; training does not see it."),
    ("pseudo-labels of the evaluated net", {"coverage": "pseudo_coverage", "precision": "pseudo_precision"}, True,
     "Coverage: share of the unlabeled images that it is at least 95% sure of; precision: of these, the right ones. "
     "The same measure for every method; training does not see it."),
    ("accuracy by features", {"kNN": "knn_accuracy", "linear probe": "probe_accuracy"}, True,
     "Learners on the features, given the labels that there are, on validation images, or else on test images. They "
     "chose nothing."),
    ("effective rank", {"features": "effective_rank"}, False,
     "How many directions the features fill. A rank of 2 or less means collapse."),
    ("embedding std", {"features": "embedding_std"}, False,
     "How far the features of images lie apart; near 0 they have collapsed into one point."),
)
PLAIN = {"step", "seconds", "lr", "loss", "collapsed"}  # not among the others
SUFFIXES = ("_balanced_accuracy", "_ece")


def add_course(page: Report, run: StoredRun) -> None:
    """The section of the curves; none where no curve has two points."""
    rows = run.rows
    keys = list(dict.fromkeys(key for row in rows for key in row))
    figures = []
    terms = [key for key in keys if key.startswith("loss/")]
    losses = {"loss": "loss"} | ({key.removeprefix("loss/"): key for key in terms} if len(terms) > 1 else {})
    if lines := _lines(rows, losses):
        figures.append((curves(lines, "loss"), "Mean over the steps since the point before."
                        + (" The loss is the sum of its terms." if len(terms) > 1 else "")))
    for title, shown, shares, caption in KNOWN:
        if lines := _lines(rows, shown):
            figures.append((curves(lines, title, percent=shares), caption))
    known = PLAIN | {key for _, shown, _, _ in KNOWN for key in shown.values()}
    others = [key for key in keys if key not in known and "/" not in key and not key.endswith(SUFFIXES)]
    changing = {key: lines for key in others if (lines := _lines(rows, {key: key})) and _varies(lines[key])}
    figures += [(curves(lines, key.replace("_", " ")), "As the method logs it.")
                for key, lines in list(changing.items())[:OTHERS]]
    if len(run.class_names) <= FEW:
        figures += _by_class(rows, run.class_names)
    if not figures:
        return
    page.section("During training")
    for figure, caption in figures:
        page.figure(figure, caption)


def _lines(rows: Sequence[Row], keys: Mapping[str, str]) -> dict[str, Band]:
    """The lines that have two points at least, by label; each keeps its color by an empty one in place of a missing."""
    found = {label: band([rows], key) for label, key in keys.items()}
    return found if any(len(line.x) > 1 for line in found.values()) else {}


def _varies(line: Band) -> bool:
    return len(line.x) > 1 and not math.isclose(float(line.mean.min()), float(line.mean.max()))


def _by_class(rows: Sequence[Row], names: Sequence[str]) -> list[tuple[Markup, str]]:
    """Rows of color: of each class the precision and the coverage of its pseudo-labels, over training."""
    figures = []
    for key, said in (("coverage", "images of the class that the evaluated net is at least 95% sure of"),
                      ("precision", "right ones among those that it is so sure are of the class")):
        lines = {name: band([rows], f"pseudo_{key}/{c}") for c, name in enumerate(names)}
        if any(len(line.x) > 1 for line in lines.values()):
            figures.append((heat_map(lines, f"pseudo-labels: {key} by class"),
                            f"Share of the {said}: from none to all in the darkest. Empty where there are none."))
    return figures
