"""The page of how a run stands attacks, corruptions and noise."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import numpy as np

from ssl_lab.analysis.robustness import LEVELS, STRENGTHS, Score, Stand
from ssl_lab.intervals import wilson
from ssl_lab.report.finished import Finished
from ssl_lab.report.html import NAME, Report
from ssl_lab.report.metrics import line
from ssl_lab.report.plots import curves
from ssl_lab.report.tables import Cell, Column, Table
from ssl_lab.views.corruptions import KINDS


def table_of_all(found: Stand) -> Table:
    """A row for the clean images, each attack and radius, the mean of all corruptions, and each level of noise."""
    low, high = wilson(round(found.clean.accuracy * found.count), found.count)
    every = [score for scores in found.corrupted.values() for score in scores[1:]]
    rows: list[list[Cell]] = [
        [f"clean (95%: {100 * low:.1f} to {100 * high:.1f})", *found.clean],
        *_rows((f"{name}, radius {255 * radius:.3g}/255", score) for name, scores in found.attacks.items()
               for radius, score in scores.items() if radius),
        ["corruptions, mean of 75", *np.mean(every, axis=0).tolist()],
        *_rows((f"Gaussian noise {level:g}", score) for level, score in zip(LEVELS[1:], found.noisy[1:], strict=True))]
    return Table(f"{found.count} test images", [Column("under"), Column("accuracy", "right", ".1%"),
                                                Column("calibration error", "right", ".1%")], rows)


def _rows(scores: Iterable[tuple[str, Score]]) -> list[list[Cell]]:
    return [[name, score.accuracy, score.ece] for name, score in scores]


def table_of_kinds(found: Stand) -> Table:
    """A row for each corruption: accuracy by strength, its mean, and the mean calibration error."""
    rows: list[list[Cell]] = [
        [kind, *(score.accuracy for score in scores[1:]), float(np.mean([s.accuracy for s in scores[1:]])),
         float(np.mean([s.ece for s in scores[1:]]))] for kind, scores in found.corrupted.items()]
    return Table("Accuracy by corruption and strength", [
        Column("corruption"), *(Column(str(strength), "right", ".1%") for strength in STRENGTHS[1:]),
        Column("mean", "right", ".1%"), Column("calibration error", "right", ".1%")], rows)


def write_robustness(run: Finished, found: Stand, out: Path) -> Path:
    """Writes report.html into the folder `out` and returns its path."""
    report = Report("How robust this run is", f"{run.stored.folder}, by recipes/robustness.py")
    report.table(table_of_all(found))
    report.text(f"{run.named}. Calibration error (ECE): the mean distance of confidence and accuracy over 15 bins; of "
                f"{found.count} images it is about {0.5 / found.count**0.5:.0%} even where confidence is right. None "
                "of these images chose anything.")
    report.section("Attacks")
    attacks = {name: line([255 * radius for radius in scores], [score.accuracy for score in scores.values()])
               for name, scores in found.attacks.items()}
    report.figure(curves(attacks, "accuracy", "change of a pixel, in levels of 255", percent=True),
                  "The worst image that each attack finds within the radius. The truth is at most that: another attack "
                  "may find more.")
    report.section("Common corruptions")
    for family in dict.fromkeys(family for family, _, _ in KINDS.values()):
        lines = {kind.replace("_", " "): line(STRENGTHS, [score.accuracy for score in found.corrupted[kind]])
                 for kind in KINDS if KINDS[kind][0] == family}
        report.figure(curves(lines, f"accuracy under {family}", "strength", percent=True), "Strength 0: clean.")
    report.table(table_of_kinds(found))
    report.section("Gaussian noise by level")
    by_level = {name: line([255 * level for level in LEVELS], [score[place] for score in found.noisy])
                for place, name in enumerate(("accuracy", "calibration error"))}
    report.figure(curves(by_level, "share", "standard deviation of noise, in levels of 255", percent=True),
                  "The same draw at each level, clipped to black and white.")
    report.section("Calibration")
    errors = [float(np.mean([scores[strength].ece for scores in found.corrupted.values()])) for strength in STRENGTHS]
    report.figure(curves({"mean of 15 corruptions": line(STRENGTHS, errors)}, "calibration error", "strength",
                         percent=True),
                  "Nets that do not know that an image is bad stay confident: the error then rises with strength.")
    report.write(out / NAME)
    return out / NAME
