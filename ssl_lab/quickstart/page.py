"""The quickstart's page: what each stage gave, which images were asked for, and what the model says of new ones."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from itertools import pairwise

import numpy as np
import torch
from torch import Tensor

from ssl_lab.batch import At
from ssl_lab.data import Pool
from ssl_lab.engine import Result, Runtime, predict
from ssl_lab.intervals import half_width
from ssl_lab.quickstart.new import Said
from ssl_lab.quickstart.stages import BEST, LABELS, STAGES, SURE, Data, Stage
from ssl_lab.report import Band, Report, Table, band, curves, image_grid, read_metrics
from ssl_lab.views import Strong, Weak

SHOWN = 20  # wrong predictions


def page_of(table: Table, accuracies: Mapping[Stage, Sequence[float]], runs: Mapping[Stage, Sequence[Result]],
            data: Sequence[Data], said: Sequence[Said]) -> Report:
    """accuracies, runs: of each stage, one a seed, like `data`. said: of new images, by the first run of the best."""
    first = data[0]
    report = Report(f"From {LABELS} labels to a model",
                    f"scikit-learn's digits: {LABELS} labeled images, {len(first.drawn.train) - LABELS:,} without a "
                    f"label, {len(first.drawn.test):,} to test on")
    report.text(_what_one_sees(accuracies, data))
    report.table(table)
    report.section("Accuracy during training")
    _add_curves(report, runs, len(data))
    report.section("Which ten images to label")
    _add_labeled(report, first)
    report.section("Labels that spread")
    report.text(f"In the graph that joins each image to those that are most like it, the ten labels spread to all "
                f"others. The surest images of each class, up to {SURE:.0%} of its share, keep the label that reaches "
                f"them: {len(first.sure):,} labels that nobody gave. {first.right:.1%} of them are right, which "
                "training never sees.")
    report.section("In use")
    report.images(image_grid(torch.stack([one.image for one in said]).numpy(),
                             [f"{one.label}, {one.probability:.1%} sure" for one in said], scale=5),
                  f"Images that the model of the last stage has not seen, and what it says of them; "
                  f"{sum(one.right for one in said)} of {len(said)} are right. With ten labels, none was "
                  "left to calibrate how sure it is.")
    report.command(f"ssl-lab predict {runs[BEST][0].out} {said[0].file.parent}")
    report.section("What the net sees")
    _add_views(report, first.chosen)
    report.section("The most confident mistakes")
    _add_mistakes(report, runs[BEST][0], first.drawn)
    return report


def _what_one_sees(accuracies: Mapping[Stage, Sequence[float]], data: Sequence[Data]) -> str:
    """What each stage adds to the one before it, and of all of them the interval."""
    means = {stage: float(np.mean(values)) for stage, values in accuracies.items()}
    text = f"With {STAGES[0].said}, and nothing else, the net reaches {means[STAGES[0]]:.1%} of the test images."
    for before, stage in pairwise(STAGES):
        points = 100 * (means[stage] - means[before])
        text += f" {stage.name}: {stage.said}: {means[stage]:.1%} ({points:+.1f} points)."
    pairs = [last - one for one, last in zip(accuracies[STAGES[0]], accuracies[BEST], strict=True)]
    if len(pairs) == 1:
        return text + " This is one seed: a few points either way are chance."
    same = set.intersection(*(set(each.asked.tolist()) for each in data))
    half, points = 100 * float(half_width(pairs)), 100 * float(np.mean(pairs))
    return text + (f" The 95% interval of the whole difference over {len(pairs)} seeds is {points - half:+.1f} to "
                   f"{points + half:+.1f} points. {len(same)} of the {LABELS} images that the query chooses are the "
                   "same with every seed.")


def _add_curves(report: Report, runs: Mapping[Stage, Sequence[Result]], seeds: int) -> None:
    def lines(key: str) -> dict[str, Band]:
        return {stage.name: band([read_metrics(result.out / "metrics.jsonl") for result in results], key)
                for stage, results in runs.items()}

    over = "One seed." if seeds == 1 else f"Line and band: mean and standard deviation over {seeds} seeds."
    for key, title, caption in (
        ("test_accuracy", "test accuracy",
         f"Averaged weights on the test images. {over} The curve chose nothing: the table shows the last step."),
        ("mask_rate", "mask rate", "Share of the unlabeled images that are learned from: those whose weak view is "
                                   "classified with a confidence of 95% or more by FixMatch, and of 90% or more of "
                                   "its mean confidence in labeled images by AdaMatch."),
        ("pseudo_label_accuracy", "pseudo-label accuracy",
         "Share of the pseudo-labels in use that are right. Training never sees this number.")):
        report.figure(curves(lines(key), title, percent=True), caption)


def _add_labeled(report: Report, data: Data) -> None:
    """The drawn and the chosen images."""
    drawn = data.drawn.labeled[data.drawn.truth[data.drawn.labeled].argsort()]
    rows = np.concatenate([drawn, data.asked])
    pool = data.drawn
    report.images(image_grid(pool.images.take(rows).numpy(), [pool.class_names[label] for label in pool.truth[rows]],
                             columns=LABELS, scale=4, rows=("drawn", "chosen")),
                  "Drawn: one of each class, at random, as if classes were known before. Chosen, in this order: by a "
                  "query that knows no class. It looks for images with most others around them, each counted once, "
                  "where near is who reaches the same images along the graph of images that are alike; they are of "
                  f"{len(set(pool.truth[data.asked].tolist()))} classes.")


def _add_views(report: Report, pool: Pool) -> None:
    """The labeled images of a pool, by class, and views of them."""
    rows = pool.labeled[pool.truth[pool.labeled].argsort()]
    originals, at = pool.images.take(rows), At(0, 1)
    views = {"weak": Weak, "strong": Strong, "strong, again": Strong}
    pixels = [factory(pool.style)(originals, at.draw(f"report/{name}", len(rows))) for name, factory in views.items()]
    grid = image_grid(torch.cat([originals, *map(_to_bytes, pixels)]).numpy(), columns=len(rows), scale=4,
                      rows=("original", *views))
    report.images(grid, "The chosen images, by class, and random views of them. FixMatch takes its pseudo-label "
                        "from the weak view of an unlabeled image and learns it on a strong one.")


def _to_bytes(pixels: Tensor) -> Tensor:
    return (pixels * 255).round().to(torch.uint8)


def _add_mistakes(report: Report, result: Result, pool: Pool) -> None:
    """Wrong predictions for the first seed's training images, the most confident ones first."""
    rows = pool.unlabeled
    confidence, said = predict(result.method.predictor(), pool, rows, Runtime.start(precision="fp32")).softmax(1).max(1)
    wrong = (said != torch.from_numpy(pool.truth[rows])).nonzero().squeeze(1)
    chosen = wrong[confidence[wrong].argsort(descending=True, stable=True)][:SHOWN]
    if not len(chosen):
        report.text(f"None: the last stage's net is right on all {len(rows):,} training images.")
        return
    mistakes = {i: (int(pool.truth[rows[i]]), int(said[i])) for i in wrong.tolist()}
    captions = [f"true {mistakes[i][0]}, said {mistakes[i][1]}, {confidence[i]:.1%}" for i in chosen.tolist()]
    (true, false), times = Counter(mistakes.values()).most_common(1)[0]
    report.images(image_grid(pool.images.take(rows[chosen.numpy()]).numpy(), captions, scale=5),
                  f"The last stage's net is wrong on {len(wrong):,} of {len(rows):,} training images, most "
                  f"often in saying {false} to a {true} ({times} times). These are the {len(chosen)} of which it is "
                  "surest: what it once believed, it went on to learn from.")
