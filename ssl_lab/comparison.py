"""Which methods can be compared; what many runs of recipes show side by side, and what their numbers may say."""

from __future__ import annotations

import copy
import math
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch

from ssl_lab import build, presets, texts
from ssl_lab.config import Settings
from ssl_lab.data import Pool
from ssl_lab.engine import Feed, Runtime, jobs
from ssl_lab.engine.jobs import Job
from ssl_lab.errors import RunFailedError, UsageError
from ssl_lab.files import write_text
from ssl_lab.intervals import detectable, half_width
from ssl_lab.methods import METHODS, described, get
from ssl_lab.nets import net
from ssl_lab.report import (
    Band,
    Column,
    Report,
    Table,
    band,
    curves,
    heat_map,
    print_tables,
    read_metrics,
)
from ssl_lab.report.tables import MISSING, Cell
from ssl_lab.workers import Here, Workers


@dataclass(frozen=True)
class Runs:
    """The runs of one method, over seeds; those that failed count nowhere."""

    name: str
    jobs: Sequence[Job]

    def each(self, key: str) -> list[float]:
        """A number of the summaries, of those runs that have it."""
        found = [(job.summary or {}).get(key) for job in self.jobs]
        return [float(value) for value in found if value is not None]

    @property
    def named(self) -> str:
        """Its name, and how many runs finished if not all did."""
        done = sum(job.summary is not None for job in self.jobs)
        return self.name + (f" ({done} of {len(self.jobs)} seeds)" if done < len(self.jobs) else "")

    def mean(self, key: str) -> float:
        """Its mean; NaN where no run has it."""
        values = self.each(key)
        return sum(values) / len(values) if values else math.nan

    def band(self, key: str) -> Band:
        """A curve of the metrics, over the finished runs."""
        return band([read_metrics(job.out / "metrics.jsonl") for job in self.jobs if job.summary], key)


def chosen(settings: Settings, methods: str, seeds: int, workers: Workers) -> list[str]:
    """The texts of the methods that a list, separated by commas, or `all` names, once each. UsageError for what cannot
    be compared, and for lengths and counts that make no comparison.

    The baseline is not one of them: it is there anyway, and tuned.
    """
    _check_numbers(settings, seeds, workers)
    fit = [name for name, method in METHODS.items()
           if method.family == "consistency" and name != "opencos"]  # which needs recipes/openset.py
    given = fit if methods == "all" else filter(None, texts.split(methods))
    names = list(dict.fromkeys(str(described(text)[1]) for text in given))
    if "supervised" in names:
        print("note: supervised is the baseline, which always runs; it is left out of --methods", file=sys.stderr)
        names.remove("supervised")
    for name in names:
        method, call = described(name)
        if call.name not in fit and not (":" in call.name and method.classifies):
            raise UsageError(f"{name} cannot be compared here: only methods of the family `consistency` train on the "
                             f"same labels alone (ssl-lab list methods); see "
                             f"{getattr(method, 'recipe', '') or 'recipes/pretrain.py'}")
    if not names:
        raise UsageError(f"--methods {methods!r} leaves nothing to compare with the supervised baseline; give names "
                         "separated by commas, e.g. fixmatch,flexmatch, or all")
    return names


def _check_numbers(settings: Settings, seeds: int, workers: Workers) -> None:
    if isinstance(workers, Here) and workers.count > 1 and settings.minutes is not None:
        raise UsageError(f"--minutes {settings.minutes} with {workers.count} --workers: runs beside each other "
                         "would each get less of the machine; give --steps")
    length = settings.minutes if settings.steps is None else settings.steps
    if seeds < 1 or (length is not None and length <= 0):
        raise UsageError(f"seeds={seeds}, steps={settings.steps}, minutes={settings.minutes}: all must be positive")


def able(settings: Settings, pool: Pool, names: Sequence[str], seeds: int,
         kind: Literal["paper", "short"]) -> list[str]:
    """The methods that these data and settings allow: what cannot run is known before anything trains.

    pool: without its split. Of `all` methods, those that want more of the data are left out with a word; where one was
    named it is a UsageError.
    """
    Runtime.start(settings.device, "fp32")
    parts = 1 if settings.micro_batches == "auto" else settings.micro_batches
    pools = [pool.split(**settings.split() | {"seed": seed}) for seed in range(seeds)]
    built = net(settings.net, pool.class_names, pool.style, pretrained=settings.pretrained, weights=settings.weights)
    kept = []
    for name in names:
        preset = presets.preset(get(name).name, settings.data, kind)
        try:
            for few in pools:
                method = build.method(name, copy.deepcopy(built), few, {}, {"ema": preset.ema, **preset.arguments})
                method.with_views(*settings.view)
                Feed(few, method.views, preset.labeled, preset.unlabeled, 0, torch.device("cpu"), parts=parts)
        except UsageError as error:
            if getattr(settings, "methods", "") != "all":
                raise UsageError(f"{name}: {error}") from None
            print(f"note: {name} is left out: {error}", file=sys.stderr)
        else:
            kept.append(name)
    return kept


def validation_images(pool: Pool, settings: Settings) -> int:
    """How many to tune the baseline by: a fifth of the train images that have a label which no method gets."""
    known = len(pool.labeled)
    few = settings.labels is not None or settings.split_file is not None
    asked = len(pool.split(**settings.split()).labeled) if few else 0
    if known - asked < 10:
        raise UsageError(f"{known} train images have a label, and {asked} are asked for: at least 10 more are "
                            "needed, of which a fifth tunes the baseline. Give fewer --labels, or label more images")
    return min(1000, (known - asked) // 5)


def tune(runs: Sequence[Job], workers: Workers, then: Iterable[Job] = ()) -> list[str]:
    """Runs the settings of the baseline and returns which of them diverged; RunFailedError if one failed otherwise.

    then: what is to run afterwards; a folder of theirs that holds other settings is a UsageError before the tuning.
    """
    for job in then:
        job.prepare()
    failed = jobs.run_all(runs, workers)
    if broken := [failure for failure in failed if not jobs.diverged(failure)]:
        raise RunFailedError(f"{len(broken)} of the {len(runs)} settings of the baseline could not be tried, and the "
                             f"best of the others would be no tuned baseline. {broken[0]}. Mend that; the same command "
                             "goes on")
    return failed


def interval(values: Sequence[float]) -> tuple[float, float]:
    """Mean and half-width of Student's 95% interval; the half-width of fewer than 2 values is NaN."""
    if not values:
        return math.nan, math.nan
    return sum(values) / len(values), float(half_width(values))


def table(title: str, runs: Sequence[Runs], balanced: bool) -> Table:
    """One row for each method: accuracy and its 95% interval, its pseudo-labels, and what it cost; of columns those in
    which something was measured."""
    score = "test_balanced_accuracy" if balanced else "test_accuracy"
    columns = [Column("method"), Column("balanced (%)" if balanced else "accuracy (%)", "right"),
               Column("precision", "right", ".1%"), Column("coverage", "right", ".1%"), Column("ECE", "right", ".1%"),
               Column("s", "right", ",.0f"), Column("images/s", "right", ",.0f"), Column("GB", "right", ".2f")]
    keys = ("pseudo_precision", "pseudo_coverage", "test_ece", "seconds", "images_per_second")
    rows: list[Sequence[Cell]] = [(each.named, _points(*interval(each.each(score))), *map(each.mean, keys),
             each.mean("peak_memory_bytes") / 1e9) for each in runs]
    kept = [i for i, column in enumerate(columns) if not i or any(column.show(row[i]) != MISSING for row in rows)]
    return Table(title, [columns[i] for i in kept], [[row[i] for i in kept] for row in rows])


def _points(mean: float, half: float) -> str | None:
    """In percent; a dash without runs, no interval of a single one."""
    if math.isnan(mean):
        return None
    return f"{100 * mean:.1f}" + ("" if math.isnan(half) else f" ± {100 * half:.1f}")


def verdicts(runs: Sequence[Runs], baseline: Runs, balanced: bool) -> list[str]:
    """A sentence for each method on whether unlabeled images helped, by the paired difference over seeds.

    They did, they did harm, or it cannot be told: the 95% interval holds zero, or there is but one seed."""
    score = "test_balanced_accuracy" if balanced else "test_accuracy"
    said = []
    for each in runs:
        both = [[(run.summary or {}).get(score) for run in pair] for pair in zip(each.jobs, baseline.jobs, strict=True)]
        pairs = [one - other for one, other in both if one is not None and other is not None]
        if not pairs:
            continue
        mean, half = interval(pairs)
        size = f"{100 * mean:+.1f} points" + ("" if math.isnan(half) else f" ± {100 * half:.1f}")
        seeds = f"95% interval over {len(pairs)} seeds"
        if math.isnan(half):
            said.append(f"{each.name}: {size} against the tuned supervised baseline in a single run, which decides "
                        "nothing; give more --seeds.")
        elif mean > half:
            said.append(f"{each.name}: unlabeled images helped ({size}, {seeds}).")
        elif mean < -half:
            said.append(f"{each.name}: unlabeled images did not help, they did harm ({size} against the tuned "
                        f"supervised baseline, {seeds}).")
        else:
            said.append(f"{each.name}: cannot be told from the tuned supervised baseline with {len(pairs)} seeds "
                        f"({size}, {seeds}); so many find a difference of {100 * detectable(pairs):.1f} points in four "
                        "of five cases.")
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
    page.runs({job.out.name: job.out for each in everything for job in each.jobs}, out)
    _add_curves(page, everything, score)
    _add_classes(page, everything, pool.class_names)
    print_tables(shown)
    print(*said, f"The report is {out / 'report.html'}", sep="\n")
    page.write(out / "report.html")
    write_text(out / "table.md", shown.markdown() + "\n")


def _add_curves(page: Report, everything: Sequence[Runs], score: str) -> None:
    """The curves of what was measured; nothing of what was not."""
    captions = {
        score: "Averaged weights on test images. The curve chose nothing.",
        score.replace("test", "valid"): "Averaged weights on validation images.",
        "pseudo_precision": "Share of right ones among the unlabeled images that the evaluated net is at least 95% "
                            "sure of, whatever threshold the method itself has.",
        "pseudo_coverage": "Share of the unlabeled images that it is at least 95% sure of.",
    }
    figures = []
    for key, caption in captions.items():
        bands = {each.name: each.band(key) for each in everything}
        if any(len(line.x) for line in bands.values()):
            several = any(line.spread.size and math.isfinite(line.spread[0]) for line in bands.values())
            figures.append((curves(bands, key.replace("_", " "), percent=True),
                            f"{caption} {'Mean and standard deviation over seeds.' if several else 'One seed.'}"))
    if figures:
        page.section("During training")
    for figure, caption in figures:
        page.figure(figure, caption)


def _add_classes(page: Report, everything: Sequence[Runs], names: Sequence[str]) -> None:
    """Pseudo-labels by class, where the truth of unlabeled images is known; else a sentence."""
    figures = []
    for each in everything:
        for key in ("precision", "coverage"):
            bands = {name: each.band(f"pseudo_{key}/{c}") for c, name in enumerate(names)}
            if any(len(line.x) for line in bands.values()):
                figures.append((heat_map(bands, f"{each.name}: {key}"), _lowest(bands, key)))
    page.section("Pseudo-labels by class")
    if not figures:
        page.text("Not measured: of no unlabeled image is the class known, or no run came to an evaluation.")
    for figure, caption in figures:
        page.figure(figure, caption)


def _lowest(bands: Mapping[str, Band], key: str) -> str:
    last = {name: float(line.mean[-1]) for name, line in bands.items() if len(line.x)}
    name = min(last, key=lambda each: last[each])
    return (f"By class over training, mean over seeds; the darkest is 100%. At the end the lowest {key} is that of "
            f"{name}, {last[name]:.0%}.")
