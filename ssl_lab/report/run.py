"""The page of one run: report.html in its folder, by what it left there, and thumbnails while its images are at hand.

Every number was measured by the run; of what was not measured there is no chart, but a word on how to get it.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from ssl_lab.data import Pool
from ssl_lab.data.remarks import loaded
from ssl_lab.errors import UsageError
from ssl_lab.intervals import wilson
from ssl_lab.report.charts import NUMBERED, confusion_chart, reliability_chart, share_chart
from ssl_lab.report.course import add_course
from ssl_lab.report.html import NAME, Report
from ssl_lab.report.images import image_grid, thumbnails
from ssl_lab.report.predicted import (
    by_class,
    calibration_error,
    confident_errors,
    confusion_counts,
    least_confident,
    reliability,
    top_confusions,
)
from ssl_lab.report.stored import StoredRun
from ssl_lab.report.suggestions import add_suggestions
from ssl_lab.report.tables import Cell, Column, Table
from ssl_lab.versions import versions

FEW = 40  # classes, up to which a chart has room for all of them
LISTED = 20  # confusions, and classes where there are many
SHOWN = 20  # images of a kind
SIDE = 96  # pixels of a thumbnail, at most
SPLITS = {"test": "test", "valid": "validation"}


def write_report(folder: Path, pool: Pool | None = None, missing: str = "") -> Path:
    """Writes report.html into the folder of a finished run, and returns its path.

    pool: the run's images, for thumbnails; others that were added or removed since do not matter. missing: why there is
    no pool. UsageError if the folder holds no finished run.
    """
    run = StoredRun.read(folder)
    page = Report(_title(run), _subtitle(run), f"ssl_lab {versions()['ssl_lab']}. Written again by: ssl-lab "
                                               f"report {folder}")
    _add_loaded(page, run, pool)
    _add_result(page, run)
    add_course(page, run)
    if run.class_names and run.predicted:
        split = next(split for split in SPLITS if split in run.predicted)
        _add_errors(page, run, split)
        _add_calibration(page, run, split)
        _add_images(page, run, split, pool, missing)
    _add_settings(page, run)
    add_suggestions(page, run)
    path = folder / NAME
    page.write(path)
    return path


def _title(run: StoredRun) -> str:
    return f"{run.summary.get('method', 'A run')} on {run.summary.get('data', 'images')}"


def _subtitle(run: StoredRun) -> str:
    done = run.summary
    parts = [f"{done['labels']:,} labels" if run.class_names and done.get("labels") is not None else "",
             f"{done['steps']:,} steps" if done.get("steps") else "",
             f"{done['seconds']:,.0f} s" if done.get("seconds") is not None else ""]
    how = ", ".join(filter(None, parts))
    for split, name in SPLITS.items():
        if split in run.predicted and run.class_names:
            found = run.predicted[split]
            right = int((found.logits.argmax(axis=1) == found.truth).sum())
            return f"{right / len(found.truth):.1%} of {len(found.truth):,} {name} images right, with {how}"
    return f"Features without labels, {how}" if not run.class_names else how


def _add_loaded(page: Report, run: StoredRun, pool: Pool | None) -> None:
    lines = run.summary.get("loaded") or (loaded(pool) if pool is not None else [])
    if lines:
        page.section("What was loaded")
        page.text(lines[0])
        page.list(lines[1:])


def _add_result(page: Report, run: StoredRun) -> None:
    page.section("Result")
    done = run.summary
    if not run.class_names:
        names = {"knn_accuracy": "kNN accuracy on features", "probe_accuracy": "linear probe accuracy on features",
                 "effective_rank": "effective rank of features", "embedding_std": "embedding std",
                 "collapsed": "collapsed"}
        shown = {name: f"{done[key]:.1%}" if "accuracy" in key else "yes" if key == "collapsed" and done[key] else
                 "no" if key == "collapsed" else f"{done[key]:.3g}"
                 for key, name in names.items() if done.get(key) is not None}
        if shown:
            page.table(Table("Features at the end", [Column("measure"), Column("value", "right")], [*shown.items()]))
        page.text("No classifier was trained: the features are the result, and how well they tell classes apart is "
                  "told by a few labels. " + (
                      "The accuracies are those of validation images, or else of test images, and chose nothing."
                      if "knn_accuracy" in done or "probe_accuracy" in done else
                      "It was not measured in this run (--online does, by the labels that there are)."))
        return
    if not run.predicted:
        page.text("How good this model is was not measured: of no test or validation image the class is known. Give a "
                  "folder's test/ sub-folders of the classes, a CSV a split column that says test, an .npz file "
                  "test_images and test_labels; or hold labeled images out of training with --valid 0.2.")
        return
    there = [split for split in SPLITS if split in run.predicted]
    columns = [Column("measure"), *(Column(f"{len(run.predicted[split].truth):,} {SPLITS[split]} images", "right")
                                    for split in there)]
    averaged = any(done.get(f"{split}_accuracy_plain") is not None for split in there)
    rows: list[list[Cell]] = [["accuracy" + ", of the averaged weights" * averaged,
                               *(_share(run, split) for split in there)]]
    for key, name in (("accuracy_plain", "accuracy, of the last weights"), ("balanced_accuracy", "balanced accuracy"),
                      ("ece", "calibration error (ECE)")):
        numbers = [done.get(f"{split}_{key}") for split in there]
        if any(number is not None for number in numbers):
            rows.append([name, *(None if number is None else f"{number:.1%}" for number in numbers)])
    page.table(Table("How good it is", columns, rows))
    page.text("In brackets 95% intervals (Wilson) for these images as a sample of such; another draw of the labels or "
              "another seed may differ by more, and this is one run. "
              + (f"The test images chose nothing. What is measured: {done['selection']}. "
                 if "test" in there and done.get("selection") else "")
              + ("" if "test" in there else "There are no test images of known class: where settings were chosen by "
                 "these validation images, the figures flatter them. "))


def _share(run: StoredRun, split: str) -> str:
    found = run.predicted[split]
    right, total = int((found.logits.argmax(axis=1) == found.truth).sum()), len(found.truth)
    low, high = wilson(right, total)
    return f"{right / total:.1%} ({100 * low:.1f} to {100 * high:.1f})"


def _add_errors(page: Report, run: StoredRun, split: str) -> None:
    found, names, of = run.predicted[split], run.class_names, SPLITS[split]
    counts = confusion_counts(found.truth, found.logits.argmax(axis=1), len(names))
    classes = by_class(counts)
    page.section(f"Errors by class, on {of} images")
    if len(names) <= FEW:
        page.figure(confusion_chart(counts, names),
                    f"Rows: the true class; columns: what the model said, of {len(found.truth):,} {of} images. Blue is "
                    "right and orange wrong, the stronger the larger the share of the row.")
        shown = [(names[each.label], each.right, each.images) for each in classes if each.images]
        page.figure(share_chart(shown), f"Share of each class's {of} images that are recognized, the lowest first, "
                                        "with 95% intervals (Wilson).")
    confused = top_confusions(counts, LISTED if len(names) > FEW else 5 if len(names) <= NUMBERED else LISTED // 2)
    if confused:
        page.table(Table("The most frequent confusions", [
            Column("true class"), Column("called"), Column("images", "right", ",d"),
            Column("of the class", "right", ".1%")], [
            [names[each.truth], names[each.said], each.images, each.share] for each in confused]))
    else:
        page.text(f"None of the {len(found.truth):,} images was called another class than its own.")
    columns = [Column("class"), Column(f"{of} images", "right", ",d"), Column("recognized", "right"),
               Column("called so", "right", ",d"), Column("of these right", "right")]
    rows: list[list[Cell]] = [[names[each.label], each.images, _interval(each.right, each.images, each.recall),
                               each.called, _interval(each.right, each.called, each.precision)] for each in classes]
    if len(names) > FEW:
        page.table(Table(f"The {LISTED} least recognized of {len(rows)} classes", columns, rows[:LISTED]))
    page.folded(f"All {len(rows)} classes in a table", Table("Classes, the least recognized first", columns, rows))


def _interval(right: int, total: int, ends: tuple[float, float]) -> str | None:
    return f"{right / total:.1%} ({100 * ends[0]:.0f} to {100 * ends[1]:.0f})" if total else None


def _add_calibration(page: Report, run: StoredRun, split: str) -> None:
    found, calibration = run.predicted[split], run.calibration
    page.section("Are its probabilities right?")
    ways = {"as trained": np.asarray(_softmax(found.logits, 1.0))}
    fitted = calibration.temperature != 1.0
    if fitted:
        ways["calibrated"] = _softmax(found.logits, calibration.temperature)
    for way, probs in ways.items():
        bins = reliability(probs, found.truth)
        by = f" (logits divided by {calibration.temperature:.3g})" if way == "calibrated" else ""
        page.figure(reliability_chart(bins), f"Probabilities {way}{by}, on {SPLITS[split]} images: bars that end on "
                                             f"the dashed line are right. ECE {calibration_error(bins):.1%}.")
    if fitted:
        page.text(f"The temperature was fitted to {calibration.source}"
                  + (", the very images of the charts: on new ones it may do a little worse."
                     if split == "valid" and "validation" in calibration.source else "."))
    else:
        page.text(f"Probabilities are {calibration.source or 'not calibrated'}.")


def _softmax(logits: Any, temperature: float) -> np.ndarray:
    scaled = np.nan_to_num(np.asarray(logits, np.float64)) / temperature
    powers = np.exp(scaled - scaled.max(axis=1, keepdims=True))
    return np.asarray(powers / powers.sum(axis=1, keepdims=True))


def _add_images(page: Report, run: StoredRun, split: str, pool: Pool | None, missing: str) -> None:
    found, names = run.predicted[split], run.class_names
    probs = _softmax(found.logits, run.calibration.temperature)
    said, confidence = probs.argmax(axis=1), probs.max(axis=1)
    kinds = {f"The most confident errors on {SPLITS[split]} images":
             (confident_errors(probs, found.truth, SHOWN),
              "What the model said, with its probability, and the label. Some of these labels may be wrong."),
             f"The least confident {SPLITS[split]} images":
             (least_confident(probs, SHOWN),
              "What the model said, with its probability, and the label where it is another.")}
    for heading, (places, caption) in kinds.items():
        if not len(places):
            continue
        page.section(heading)
        texts = [f"{names[said[i]]} {confidence[i]:.0%}"
                 + (f", is {names[found.truth[i]]}" if said[i] != found.truth[i] else "") for i in places.tolist()]
        if pool is None:
            page.text(f"No thumbnails: {missing or 'the images are not at hand'}.")
            continue
        try:
            rows = run.rows_in(pool, found.rows[places])
        except UsageError as error:
            page.text(f"No thumbnails: {error}.")
            continue
        here = rows >= 0
        gone = f" {int((~here).sum())} more are not there any more." if not here.all() else ""
        if here.any():
            page.images(image_grid(thumbnails(pool.images.take(rows[here]).numpy(), SIDE),
                                   [text for text, shown in zip(texts, here.tolist(), strict=True) if shown]),
                        caption + gone)
        else:
            page.text("No thumbnails: these images are not among the data any more.")


def _add_settings(page: Report, run: StoredRun) -> None:
    if not run.settings:
        return
    page.section("Settings")
    shown = {name: value for name, value in run.settings.items() if value not in (None, False, "", {}, [])}
    rows: list[list[Cell]] = [[name, ", ".join(f"{k}={v}" for k, v in value.items()) if isinstance(value, dict) else
                               str(value)] for name, value in shown.items()]
    page.folded(f"{len(rows)} settings; config.yaml has all of them",
                Table("Settings that are set", [Column("name"), Column("value")], rows))
