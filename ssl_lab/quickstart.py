"""`ssl-lab quickstart`: FixMatch against supervised on scikit-learn's digits, with one label per class.

Both methods train the same net from the same initial weights, on the same 10 labels, for the same number of
steps; this is repeated on three splits. Each has the better of two learning rates, 0.03 and 0.1, as chosen
with validation images of other splits; no test image chose anything. Digits are enlarged from 8x8 to 16x16
pixels, because turning and shearing so few pixels leaves no digit.
"""

from __future__ import annotations

import json
import os
import platform
import shlex
import sys
import time
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

import torch
from rich.console import Console
from torch import Tensor

from ssl_lab.batch import At
from ssl_lab.data import Pool, load
from ssl_lab.engine import Result, Runtime, ShowProgress, Trainer, predict
from ssl_lab.engine.folder import clear, make_way
from ssl_lab.errors import Interrupted, UsageError
from ssl_lab.files import write_text
from ssl_lab.intervals import half_width
from ssl_lab.methods import FixMatch, Method, Supervised
from ssl_lab.nets import net
from ssl_lab.optim import SGD
from ssl_lab.report import (
    Band,
    Column,
    Report,
    Table,
    band,
    curves,
    image_grid,
    mean_and_spread,
    mean_spread,
    read_metrics,
)
from ssl_lab.schedule import cosine_7_16
from ssl_lab.views import Strong, Weak

LEARNING_RATES: dict[type[Method], float] = {Supervised: 0.03, FixMatch: 0.1}
SEEDS = (0, 1, 2)  # of the split, the initial weights and the training
LABELS, IMAGE_SIZE, NET = 10, 16, "tiny_16"
SHOWN = 20  # wrong pseudo-labels

NEXT = ("data_scripts/fetch.py mnist",
        "recipes/fixmatch.py --data mnist --labels 40 --minutes 5",
        "recipes/fixmatch.py --data PATH/TO/FOLDER --labels 100 --minutes 10")


def run(out: Path, steps: int) -> None:
    """Trains both methods on each split for `steps` steps, prints a table, and fills `out`:

    report.html, summary.json, metrics.jsonl (each row with its `method` and `split`), and a folder for each
    run. What an earlier quickstart left there is replaced. Raises UsageError if `out` cannot be written.
    """
    make_way(out)
    begun = time.perf_counter()
    torch.set_num_threads(1)  # for batches this small, a second thread costs more than it brings
    images = load("digits", image_size=IMAGE_SIZE)
    pools = [images.split(labels=LABELS, seed=seed) for seed in SEEDS]
    try:
        runs = {method.name: [_train(method, pool, out, steps) for pool in pools] for method in LEARNING_RATES}
    except Interrupted:
        raise Interrupted("stopped; the same command starts the quickstart afresh") from None

    scores = [_score(name, results) for name, results in runs.items()]
    table = _table(scores)
    write_text(out / "metrics.jsonl", "".join(_metrics(results) for results in runs.values()))
    _report(table, scores, runs, pools[0]).write(out / "report.html")
    summary = {"results": [score.plain() for score in scores], "data": images.name, "image_size": IMAGE_SIZE,
               "net": NET, "seeds": SEEDS, "steps": steps, "seconds": round(time.perf_counter() - begun, 2),
               "device": runs[FixMatch.name][0].summary["device"], "versions": _versions()}
    write_text(out / "summary.json", json.dumps(summary, indent=2) + "\n")

    Console().print(table)
    python = shlex.quote(_python())
    print(f"The report is {out / 'report.html'}\n\nNext, from the project's folder:")
    for command in NEXT:
        print(f"  {python} {command}")


@dataclass(frozen=True)
class Score:
    """A method's test accuracies, in [0, 1], on each split, and its mean training time."""

    method: str
    accuracies: list[float]
    seconds: float

    @property
    def mean(self) -> float:
        return float(mean_and_spread(self.accuracies)[0])

    def plain(self) -> dict[str, object]:
        """As summary.json has it; spread is the sample standard deviation."""
        return {"method": self.method, "labels": LABELS, "test_accuracy_mean": self.mean,
                "test_accuracy_spread": float(mean_and_spread(self.accuracies)[1]), "seconds": self.seconds,
                "test_accuracies": self.accuracies}


class _Progress(ShowProgress):
    """A bar that says which of the runs it is; without the loss it fits into 80 columns."""

    def __init__(self, label: str, console: Console) -> None:
        super().__init__(console)
        self._label = label

    def start(self, name: str, out: Path, step: int, steps: int) -> None:
        super().start(self._label, out, step, steps)

    def row(self, row: Mapping[str, float]) -> None:
        super().row({key: value for key, value in row.items() if key != "loss"})


def _train(method: type[Method], pool: Pool, out: Path, steps: int) -> Result:
    seed = pool.seed or 0
    folder = out / f"{method.name}-{seed}"
    if (folder / "settings.yaml").exists():
        raise UsageError(f"{folder} is a run of recipes/compare.py, which is not overwritten; choose another --out")
    clear(folder)
    label = f"{method.name} {SEEDS.index(seed) + 1}/{len(SEEDS)}"
    console = Console(file=sys.stderr)
    trainer = Trainer(
        steps=steps, out=folder, seed=seed, precision="fp32", evaluations=20,
        optimizer=SGD(lr=cosine_7_16(LEARNING_RATES[method]), weight_decay=5e-4),
        callbacks=[_Progress(label, console)] if console.is_terminal else [])
    learner = method(net(NET, classes=pool.class_names, style=pool.style, seed=seed, bn_momentum=0.05), ema=0.99)
    result = trainer.fit(learner, pool, labeled=32, unlabeled=96)
    console.print(f"{label:15}  test {result.test_accuracy:6.1%}  {result.summary['seconds']:5.1f} s",
                  highlight=False)
    return result


def _score(name: str, results: list[Result]) -> Score:
    seconds = [result.summary["seconds"] for result in results]
    return Score(name, [result.test_accuracy for result in results], round(sum(seconds) / len(seconds), 2))


def _table(scores: list[Score]) -> Table:
    columns = [Column("method"), Column("labels", "right"), Column("test accuracy (%)", "right"),
               Column("seconds a run", "right", ".1f")]
    rows = [(score.method, LABELS, mean_spread(score.accuracies), score.seconds) for score in scores]
    return Table(f"Digits: mean ± standard deviation over {len(SEEDS)} splits", columns, rows)


def _metrics(results: list[Result]) -> str:
    """The runs' rows, each with its method and the seed of its split."""
    return "".join(
        json.dumps({"method": result.summary["method"], "split": result.summary["seed"], **json.loads(line)}) + "\n"
        for result in results for line in (result.out / "metrics.jsonl").read_text().splitlines())


def _versions() -> dict[str, str]:
    packages = ("ssl_lab", "torch", "torchvision", "kornia", "scikit-learn", "numpy")
    return {"python": platform.python_version()} | {name: metadata.version(name) for name in packages}


def _python() -> str:
    """This interpreter as one types it here; without an activated environment, `python` is another one."""
    inside = Path(sys.executable).is_relative_to(Path.cwd())
    return os.path.relpath(sys.executable) if inside else sys.executable


def _report(table: Table, scores: list[Score], runs: dict[str, list[Result]], pool: Pool) -> Report:
    report = Report("FixMatch against supervised, with one label per class",
                    f"scikit-learn's digits: {LABELS} labeled images, {len(pool.train) - LABELS:,} without a label, "
                    f"{len(pool.test):,} to test on")
    bands = {key: {name: band([read_metrics(result.out / "metrics.jsonl") for result in results], key)
                   for name, results in runs.items()}
             for key in ("test_accuracy", "mask_rate", "pseudo_label_accuracy")}
    report.text(_what_one_sees(scores, bands["mask_rate"][FixMatch.name],
                               bands["pseudo_label_accuracy"][FixMatch.name]))
    report.table(table)
    report.section("Accuracy during training")
    report.figure(curves(bands["test_accuracy"], "test accuracy", percent=True),
                  f"Averaged weights on the test images. Line and band: mean and standard deviation over the "
                  f"{len(SEEDS)} splits. The curve chose nothing: the table shows the last step.")
    report.section("Pseudo-labels")
    report.figure(curves(bands["mask_rate"], "mask rate", percent=True),
                  "Share of the unlabeled images that FixMatch learns from: those whose weak view it classifies "
                  "with a confidence of 95% or more.")
    report.figure(curves(bands["pseudo_label_accuracy"], "pseudo-label accuracy", percent=True),
                  "Share of the pseudo-labels in use that are right. Training never sees this number.")
    report.section("What the net sees")
    _add_views(report, pool)
    report.section("The most confident wrong pseudo-labels")
    _add_mistakes(report, runs[FixMatch.name][0], pool)
    return report


def _what_one_sees(scores: list[Score], mask_rate: Band, right: Band) -> str:
    supervised, fixmatch = (score.mean for score in scores)
    points = 100 * (fixmatch - supervised)
    pairs = zip(*(score.accuracies for score in scores), strict=True)
    half = 100 * float(half_width([other - one for one, other in pairs]))
    text = (f"From the same {LABELS} labels, in the same number of steps, FixMatch reaches {fixmatch:.1%} on the test "
            f"images and supervised training {supervised:.1%}: {abs(points):.1f} points "
            f"{'more' if points >= 0 else 'less'}, from images without labels. The 95% interval of the difference "
            f"over {len(scores[0].accuracies)} splits is {points - half:+.1f} to {points + half:+.1f} points"
            f"{'' if abs(points) > half else ': it holds zero, so that these splits alone do not tell the two apart'}.")
    if len(right.x):
        text += (f" At the end it uses {mask_rate.mean[-1]:.0%} of its pseudo-labels, and {right.mean[-1]:.0%} of "
                 "those are right.")
    return text


def _add_views(report: Report, pool: Pool) -> None:
    """The labeled images of a split, by class, and views of them."""
    rows = pool.labeled[pool.truth[pool.labeled].argsort()]
    originals, at = pool.images.take(rows), At(0, 1)
    views = {"weak": Weak, "strong": Strong, "strong, again": Strong}
    pixels = [factory(pool.style)(originals, at.draw(f"report/{name}", len(rows))) for name, factory in views.items()]
    grid = image_grid(torch.cat([originals, *map(_to_bytes, pixels)]).numpy(), columns=len(rows), scale=4,
                      rows=("original", *views))
    report.images(grid, "The labeled images of the first split, all that it knows of each class, and random views "
                        "of them. FixMatch takes its pseudo-label from the weak view of an unlabeled image and "
                        "learns it on a strong one.")


def _to_bytes(pixels: Tensor) -> Tensor:
    return (pixels * 255).round().to(torch.uint8)


def _add_mistakes(report: Report, result: Result, pool: Pool) -> None:
    """Wrong predictions for the first split's training images, the most confident ones first."""
    rows = pool.unlabeled
    confidence, said = predict(result.method.predictor(), pool, rows, Runtime.start(precision="fp32")).softmax(1).max(1)
    wrong = (said != torch.from_numpy(pool.truth[rows])).nonzero().squeeze(1)
    chosen = wrong[confidence[wrong].argsort(descending=True, stable=True)][:SHOWN]
    if not len(chosen):
        report.text(f"None: the final net of the first split is right on all {len(rows):,} training images.")
        return
    mistakes = {i: (int(pool.truth[rows[i]]), int(said[i])) for i in wrong.tolist()}
    captions = [f"true {mistakes[i][0]}, said {mistakes[i][1]}, {confidence[i]:.1%}" for i in chosen.tolist()]
    (true, false), times = Counter(mistakes.values()).most_common(1)[0]
    report.images(image_grid(pool.images.take(rows[chosen.numpy()]).numpy(), captions, scale=5),
                  f"The final net of the first split is wrong on {len(wrong):,} of {len(rows):,} training images, most "
                  f"often in saying {false} to a {true} ({times} times). These are the {len(chosen)} of which it is "
                  "surest: what it once believed, it went on to learn from.")
