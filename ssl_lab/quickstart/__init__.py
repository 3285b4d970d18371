"""`ssl-lab quickstart`: from images without labels to a model in use, on scikit-learn's digits, with ten labels.

Five stages train the same net from the same initial weights for the same number of steps; each adds one idea to the one
before it (see `STAGES`), so that the table says what each of them is worth. AdaMatch, the last one, is more than its
distribution alignment: labeled images have strong views too, and its threshold follows how sure it is of them. Its run
then says what five new images are.

The query, how far labels spread, and the last method were chosen with seeds 100 to 107: by 200 validation images of
each, and by the labels of the training images, which training did not see there either; with ten labels of one's own,
nobody has these. The learning rates were chosen so before. Test accuracies of earlier stages were known by then, and
nothing was chosen by them.

Measured once so chosen, on the test images, of which all seeds have the same, mean ± standard deviation over seeds 0 to
4: 64.4 ± 5.4, 76.4 ± 4.4, 87.6 ± 1.9, 91.6 ± 3.0 and 93.7 ± 0.8%. A run took 6, 17, 17, 18 and 25 s of CPU time (mean
of seeds 1 to 4, one core of an Intel Xeon that had other work too). The query's ten are of all classes; seeds break a
tie at the last of them, and with it 98.3 or 99.8% of the labels that spread are right. The command alone has seed 0:
61.8, 74.1, 88.1, 88.6 and 92.3%, and 93 s of CPU time in all.
"""

from __future__ import annotations

import json
import platform
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from ssl_lab.engine import Result
from ssl_lab.engine.folder import make_way
from ssl_lab.errors import Interrupted, UsageError
from ssl_lab.files import write_text
from ssl_lab.quickstart.new import Said, use
from ssl_lab.quickstart.page import page_of
from ssl_lab.quickstart.stages import BEST, IMAGE_SIZE, LABELS, NET, STAGES, Data, Stage, prepare, train
from ssl_lab.report import Column, Table, mean_and_spread, mean_spread, print_tables
from ssl_lab.versions import versions

NEXT = ("ssl-lab label PATH/TO/FOLDER                   # label some images of yours, the next by a query",
        "ssl-lab audit PATH/TO/FOLDER                   # what is wrong with the images and their labels",
        "ssl-lab train PATH/TO/FOLDER --minutes 10      # the best classifier that these labels allow")


def run(out: Path, steps: int, seeds: int = 1) -> None:
    """Trains all stages with each of the seeds 0, 1, ..., prints a table, and fills a folder:

    report.html, summary.json, metrics.jsonl (each row with its `stage` and `seed`), a folder for each run, and `new`
    with the images that were asked about. What an earlier quickstart left there is replaced.

    Args:
        out: the folder.
        steps: of training, in each run.
        seeds: runs of each stage, for means and spreads.

    Raises:
        UsageError: if the folder cannot be written.
    """
    if seeds < 1:
        raise UsageError(f"--seeds {seeds}: expected 1 or more")
    make_way(out)
    begun = time.perf_counter()
    torch.set_num_threads(1)  # for batches this small, a second thread costs more than it brings
    numbers = range(seeds)
    data = [prepare(seed) for seed in numbers]
    try:
        runs = {stage: [train(stage, each, out, steps, numbers) for each in data] for stage in STAGES}
    except Interrupted:
        raise Interrupted("stopped; the same command starts the quickstart afresh") from None

    scores = [Score.of(stage, results) for stage, results in runs.items()]
    table = _table(scores, seeds)
    write_text(out / "metrics.jsonl", "".join(_metrics(stage, results) for stage, results in runs.items()))
    said = use(runs[BEST][0].out, data[0].drawn, out / "new")
    page_of(table, {score.stage: score.accuracies for score in scores}, runs, data, said).write(out / "report.html")
    _write_summary(out, scores, runs, data, said, steps, time.perf_counter() - begun)
    _print(table, out, runs[BEST][0].out, said)


@dataclass(frozen=True)
class Score:
    """A stage's test accuracies, in [0, 1], one a seed, and its mean training time."""

    stage: Stage
    accuracies: list[float]
    seconds: float

    @classmethod
    def of(cls, stage: Stage, results: Sequence[Result]) -> Score:
        seconds = [result.summary["seconds"] for result in results]
        return cls(stage, [result.test_accuracy for result in results], round(sum(seconds) / len(seconds), 2))

    def plain(self) -> dict[str, object]:
        """As summary.json has it; spread is the sample standard deviation, null of one seed."""
        mean, spread = map(float, mean_and_spread(self.accuracies))
        return {"stage": self.stage.name, "method": self.stage.method.name, "labels": LABELS, "said": self.stage.said,
                "test_accuracy_mean": mean, "test_accuracy_spread": None if len(self.accuracies) == 1 else spread,
                "seconds": self.seconds, "test_accuracies": self.accuracies}


def _table(scores: Sequence[Score], seeds: int) -> Table:
    columns = [Column("stage"), Column("labels", "right"), Column("test accuracy (%)", "right"),
               Column("seconds", "right", ".1f")]
    rows = [(score.stage.name, LABELS, mean_spread(score.accuracies), score.seconds) for score in scores]
    return Table(f"Digits: {'one seed' if seeds == 1 else f'mean ± standard deviation over {seeds} seeds'}", columns,
                 rows)


def _metrics(stage: Stage, results: Sequence[Result]) -> str:
    """The runs' rows, each with its stage and seed."""
    return "".join(
        json.dumps({"stage": stage.name, "seed": result.summary["seed"], **json.loads(line)}) + "\n"
        for result in results for line in (result.out / "metrics.jsonl").read_text().splitlines())


def _write_summary(out: Path, scores: Sequence[Score], runs: Mapping[Stage, Sequence[Result]], data: Sequence[Data],
                   said: Sequence[Said], steps: int, seconds: float) -> None:
    summary = {
        "results": [score.plain() for score in scores], "data": data[0].drawn.name, "image_size": IMAGE_SIZE,
        "net": NET, "seeds": list(range(len(data))), "steps": steps, "asked": [each.asked.tolist() for each in data],
        "propagated": [{"labels": len(each.sure), "right": each.right} for each in data],
        "new": [{"file": one.file.name, "label": one.label, "probability": one.probability, "truth": one.truth}
                for one in said],
        "seconds": round(seconds, 2), "device": runs[BEST][0].summary["device"],
        "versions": {
            "python": platform.python_version(),
            **versions("torch", "torchvision", "kornia", "scikit-learn", "numpy")}}
    write_text(out / "summary.json", json.dumps(summary, indent=2) + "\n")


def _print(table: Table, out: Path, best: Path, said: Sequence[Said]) -> None:
    print_tables(table)
    print(f"The report is {out / 'report.html'}\n\nThe last model on {len(said)} images that it has not seen:\n")
    print(f"  ssl-lab predict {best} {out / 'new'}")
    for one in said:
        wrong = "" if one.right else f" (wrong: it is {one.truth})"
        print(f"    {one.file.name}  {one.label}, {one.probability:.1%} sure{wrong}")
    print(f'\n  or in code: ssl_lab.open("{best}").predict(images)\n\nNext:')
    for command in NEXT:
        print(f"  {command}")

