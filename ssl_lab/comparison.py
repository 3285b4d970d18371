"""Many runs of recipes, each a process with a folder of its own, and what they show side by side."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
import time
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from rich.console import Console

from ssl_lab.data import Pool
from ssl_lab.errors import Interrupted, RunFailedError, UsageError
from ssl_lab.files import write_text
from ssl_lab.intervals import half_width
from ssl_lab.report import (
    Band,
    Column,
    Report,
    Table,
    band,
    curves,
    heat_map,
    read_metrics,
)

MAY_DIFFER = {"out", "resume", "device", "data_dir"}  # between a finished run and one that would be started now


@dataclass(frozen=True)
class Job:
    """One run: a recipe, its settings, and the folder that it fills."""

    recipe: Path
    settings: Mapping[str, Any]
    out: Path

    @property
    def summary(self) -> dict[str, Any] | None:
        """What the finished run gave; None if it is not finished."""
        file = self.out / "summary.json"
        return json.loads(file.read_text()) if file.exists() else None

    def prepare(self) -> None:
        """Writes the settings into the folder. UsageError if it holds a run with other ones."""
        file = self.out / "settings.yaml"
        if file.exists():
            before = yaml.safe_load(file.read_text())
            changed = [f"{key}: {before.get(key)!r} -> {self.settings.get(key)!r}"
                       for key in sorted({*before, *self.settings} - MAY_DIFFER)
                       if before.get(key) != self.settings.get(key)]
            if changed:
                raise UsageError(f"{self.out} holds a run with other settings ({', '.join(changed)}); "
                                 "take another --out, or delete that folder")
        content = {**self.settings, "out": str(self.out), "resume": "auto"}
        write_text(file, yaml.safe_dump(content, sort_keys=False))

    def run(self, children: list[subprocess.Popen[bytes]]) -> None:
        """Runs or resumes it, as one more of `children`. RunFailedError has its last words."""
        command = [sys.executable, str(self.recipe), "--config", str(self.out / "settings.yaml")]
        with (self.out / "log.txt").open("a") as log:
            child = subprocess.Popen(command, stdout=log, stderr=log)
            children.append(child)
            status = child.wait()
        if status == 130:
            raise Interrupted("stopped; the same command goes on")
        if status:
            last = (self.out / "log.txt").read_text().strip().splitlines()[-1:]
            raise RunFailedError(f"{self.out.name} failed: {' '.join(last)} (see {self.out / 'log.txt'})")


def run_all(jobs: Sequence[Job], processes: int) -> list[str]:
    """Runs what is not finished, `processes` at a time; says what each gave. Returns why some failed.

    Ctrl-C and SIGTERM are handed on to the runs, which save, and become Interrupted when they are done.
    """
    for job in jobs:
        job.prepare()
    waiting = [job for job in jobs if job.summary is None]
    if processes > 1:  # their threads would wait for each other
        os.environ.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // processes)))
    failed = []
    children: list[subprocess.Popen[bytes]] = []
    with ThreadPoolExecutor(processes) as pool:
        started = {job.out: pool.submit(job.run, children) for job in waiting}
        try:
            for number, job in enumerate(waiting, start=1):
                try:
                    started[job.out].result()
                except RunFailedError as error:
                    failed.append(str(error))
                    print(f"{number}/{len(waiting)} {error}", file=sys.stderr)
                else:
                    done = job.summary or {}
                    measured = [done[key] for key in ("test_accuracy", "valid_accuracy") if done[key] is not None]
                    print(f"{number}/{len(waiting)} {job.out.name}: {[*measured, math.nan][0]:.2%} in "
                          f"{done['seconds']:.0f} s", file=sys.stderr)
        except KeyboardInterrupt:
            pool.shutdown(wait=False, cancel_futures=True)
            _stop(children, started.values())
            raise Interrupted("stopped; the same command goes on") from None
    return failed


def _stop(children: Sequence[subprocess.Popen[bytes]], started: Iterable[Future[None]]) -> None:
    """SIGTERM to each child, once, until all that was started is done: a thread may just be starting one."""
    told = 0
    while not all(run.done() for run in started):
        for child in children[told:]:
            child.terminate()
            told += 1
        time.sleep(0.05)


def best(jobs: Sequence[Job], key: str) -> Job:
    """The finished job with the highest `key` in its summary. RunFailedError if none finished."""
    finished = [(job.summary[key], -number, job) for number, job in enumerate(jobs) if job.summary]
    if not finished:
        raise RunFailedError(f"none of the {len(jobs)} runs in {jobs[0].out.parent} finished; see their log.txt")
    return max(finished)[-1]


@dataclass(frozen=True)
class Runs:
    """The runs of one method, over seeds; those that failed count nowhere."""

    name: str
    jobs: Sequence[Job]

    def each(self, key: str) -> list[float]:
        """A number of the summaries, of those runs that have it."""
        found = [(job.summary or {}).get(key) for job in self.jobs]
        return [float(value) for value in found if value is not None]

    def mean(self, key: str) -> float:
        """Its mean; NaN where no run has it."""
        values = self.each(key)
        return sum(values) / len(values) if values else math.nan

    def band(self, key: str) -> Band:
        """A curve of the metrics, over the finished runs."""
        return band([read_metrics(job.out / "metrics.jsonl") for job in self.jobs if job.summary], key)


def interval(values: Sequence[float]) -> tuple[float, float]:
    """Mean and half-width of Student's 95% interval; the half-width of fewer than 2 values is NaN."""
    if not values:
        return math.nan, math.nan
    return sum(values) / len(values), float(half_width(values))


def table(title: str, runs: Sequence[Runs], balanced: bool) -> Table:
    """One row for each method: accuracy and its 95% interval, its pseudo-labels, and what it cost."""
    score = "test_balanced_accuracy" if balanced else "test_accuracy"
    columns = [Column("method"), Column("balanced (%)" if balanced else "accuracy (%)", "right"),
               Column("precision", "right", ".1%"), Column("coverage", "right", ".1%"), Column("ECE", "right", ".1%"),
               Column("s", "right", ",.0f"), Column("images/s", "right", ",.0f"), Column("GB", "right", ".2f")]
    keys = ("pseudo_precision", "pseudo_coverage", "test_ece", "seconds", "images_per_second")
    rows = [(each.name, _points(*interval(each.each(score))), *map(each.mean, keys),
             each.mean("peak_memory_bytes") / 1e9) for each in runs]
    return Table(title, columns, rows)


def _points(mean: float, half: float) -> str | None:
    """In percent; a dash without runs, no interval of a single one."""
    if math.isnan(mean):
        return None
    return f"{100 * mean:.1f}" + ("" if math.isnan(half) else f" ± {100 * half:.1f}")


def verdicts(runs: Sequence[Runs], baseline: Runs, balanced: bool) -> list[str]:
    """A sentence for each method: whether unlabeled images helped, by the paired difference over seeds."""
    score = "test_balanced_accuracy" if balanced else "test_accuracy"
    said = []
    for each in runs:
        both = [[(run.summary or {}).get(score) for run in pair] for pair in zip(each.jobs, baseline.jobs, strict=True)]
        pairs = [one - other for one, other in both if one is not None and other is not None]
        if not pairs:
            continue
        mean, half = interval(pairs)
        size = f"{100 * mean:+.1f} points" + ("" if math.isnan(half) else f" ± {100 * half:.1f}")
        if mean <= 0:
            said.append(f"{each.name}: unlabeled images did not help ({size} against the tuned supervised baseline).")
        elif math.isnan(half):
            said.append(f"{each.name}: {size} over the baseline in a single run, which decides nothing.")
        elif mean <= half:
            said.append(f"{each.name}: {size}; over {len(pairs)} seeds the difference could be chance.")
        else:
            said.append(f"{each.name}: unlabeled images helped ({size}, 95% interval over {len(pairs)} seeds).")
    return said


def show(pool: Pool, baseline: Runs, runs: Sequence[Runs], notes: Sequence[str], out: Path,
         balanced: bool = False) -> None:
    """Prints the table and who was helped; writes `out`/report.html and `out`/table.md.

    pool: that of the runs, without their split. baseline: the supervised runs, of the same seeds. notes: what a
    reader should know. balanced: judge by balanced accuracy, as for long-tailed training sets. RunFailedError if no
    run finished.
    """
    everything = [baseline, *runs]
    labels = next((job.summary["labels"] for each in everything for job in each.jobs if job.summary), None)
    if labels is None:
        raise RunFailedError(f"none of the runs in {out} finished; see their log.txt")
    lengths = sorted({round(each.mean("steps")) for each in everything if each.each("steps")})
    steps = f"{lengths[0]:,}" + (f" to {lengths[-1]:,}" if len(lengths) > 1 else "")
    title = (f"{pool.name} with {labels} labels, {steps} steps: mean and 95% interval over "
             f"{len(baseline.jobs)} seeds")
    score = "test_balanced_accuracy" if balanced else "test_accuracy"
    ranked = sorted(everything, key=lambda each: -each.mean(score) if each.each(score) else math.inf)
    shown = table(title, ranked, balanced)
    said = [*notes, *verdicts(runs, baseline, balanced)]
    page = Report(f"{len(runs)} methods on {pool.name}", title)
    page.table(shown)
    for line in said:
        page.text(line)
    page.section("During training")
    captions = {
        score: "Averaged weights on test images. The curve chose nothing.",
        "pseudo_precision": "Share of right ones among the unlabeled images that the evaluated net is at least 95% "
                            "sure of, whatever threshold the method itself has.",
        "pseudo_coverage": "Share of the unlabeled images that it is at least 95% sure of.",
    }
    for key, caption in captions.items():
        page.figure(curves({each.name: each.band(key) for each in everything}, key.replace("_", " "), percent=True),
                    f"{caption} Mean and standard deviation over seeds.")
    page.section("Pseudo-labels by class")
    for each in everything:
        for key in ("precision", "coverage"):
            bands = {name: each.band(f"pseudo_{key}/{c}") for c, name in enumerate(pool.class_names)}
            page.figure(heat_map(bands, f"{each.name}: {key}"), _lowest(bands, key))
    Console().print(shown)
    print(*said, f"The report is {out / 'report.html'}", sep="\n")
    page.write(out / "report.html")
    write_text(out / "table.md", shown.markdown() + "\n")


def _lowest(bands: Mapping[str, Band], key: str) -> str:
    last = {name: float(line.mean[-1]) for name, line in bands.items() if len(line.x)}
    if not last:
        return "Nothing was measured."
    name = min(last, key=lambda each: last[each])
    return (f"By class over training, mean over seeds; the darkest is 100%. At the end the lowest {key} is that of "
            f"{name}, {last[name]:.0%}.")
