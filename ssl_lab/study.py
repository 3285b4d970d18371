"""What techniques are worth: one base with and without each, on the same splits and seeds, and what the differences
may say."""

from __future__ import annotations

import importlib.util
import math
import re
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

import yaml

from ssl_lab import texts
from ssl_lab.active.study.statistics import Paired, holm, paired_t
from ssl_lab.command_line import parse
from ssl_lab.comparison import Runs
from ssl_lab.config import Settings
from ssl_lab.engine.jobs import Job
from ssl_lab.errors import RunFailedError, UsageError, unknown
from ssl_lab.files import write_text
from ssl_lab.intervals import detectable
from ssl_lab.report import Column, Report, Table, mean_spread, print_tables
from ssl_lab.report.charts import difference_chart
from ssl_lab.techniques import TECHNIQUES, together
from ssl_lab.understood import check_texts

BASE = "base"
FOR_ACCURACY = [name for name, kind in TECHNIQUES.items() if kind.serves == "accuracy"]
RANKED = 3  # seeds, from which on techniques are ranked and judged


@dataclass(frozen=True)
class Arm:
    """What is tried beside the base: techniques together, other settings of the base, or both.

    text: as it was given. kind: that of its technique, or `settings`. techniques: texts. settings: name -> value.
    """

    text: str
    kind: str
    techniques: tuple[str, ...] = ()
    settings: Mapping[str, Any] = field(default_factory=dict)


def arms(given: Sequence[str]) -> list[Arm]:
    """What texts name, once each: techniques and settings NAME=VALUE, several together by `+`, as in "sam + swa" or
    "lr=0.03 + swa"; `all` is each technique of ssl_lab that is for accuracy, alone, with its defaults.

    Raises UsageError for what is no technique, and for techniques that exclude each other.
    """
    named = [name for text in given for name in (FOR_ACCURACY if text.strip() == "all" else [text])]
    found: dict[str, Arm] = {}
    for text in named:
        arm = _arm(text)
        found.setdefault(arm.text, arm)
    if not found:
        raise UsageError('nothing to try; give --try "sam(rho=0.1)", --try "swa + sam", --try lr=0.03, or --try all')
    return list(found.values())


def _arm(text: str) -> Arm:
    parts = texts.split(text, at="+")
    settings: dict[str, Any] = {}
    techniques = []
    for part in parts:
        if setting := re.fullmatch(r"([A-Za-z][\w-]*)\s*=(?!=)\s*(.+)", part, re.DOTALL):
            settings[setting[1].replace("-", "_")] = value(setting[2])
        else:
            techniques.append(part)
    both = together(techniques)
    kinds = [each.kind for each in both.given] + (["settings"] if settings else [])
    said = [*both.texts, *(f"{name}={value}" for name, value in settings.items())]
    return Arm(" + ".join(said), ", ".join(dict.fromkeys(kinds)), tuple(both.texts), settings)


def value(text: str) -> Any:
    """The value of a setting, as a YAML file of settings has it: 0.1, true, or a text."""
    try:
        return yaml.safe_load(text)
    except yaml.YAMLError:
        raise UsageError(f"{text!r} is no value of a setting; give a number, true, false or a text") from None


def check(job: Job, given: str) -> None:
    """UsageError, before anything runs, where the recipe of a job would not take its settings.

    given: what holds them, in words. Names, values, and what texts name are looked at; whether the method can have it
    is for the run to say.
    """
    settings = _settings_of(job.recipe)
    known = [each.name for each in fields(settings)]
    for name in job.settings.keys() - set(known):
        raise unknown("setting", name, known, f"It is given by {given}, and recipes/{job.recipe.name} has none such.")
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "settings.yaml"
        file.write_text(yaml.safe_dump({**job.settings, "out": str(job.out)}, sort_keys=False))
        try:
            found = parse(settings, ["--config", str(file), *job.command_line])
            check_texts(getattr(found, "method", None), found.view, found.optimizer, found.techniques)
        except UsageError as error:
            raise UsageError(f"{given}: {str(error).replace(f' in --config {file}', '')}") from None


def _settings_of(recipe: Path) -> type[Settings]:
    """Those that a recipe takes."""
    spec = importlib.util.spec_from_file_location(f"recipe_{recipe.stem}", recipe)
    assert spec is not None
    assert spec.loader is not None
    module = sys.modules[spec.name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    found: type[Settings] = module.Settings
    return found


@dataclass(frozen=True)
class Worth:
    """An arm's runs beside the base's. difference: of test accuracies, in [-1, 1], paired by seed; NaN without runs.
    cost: how many times as long it trained, by the mean over seeds. seeds: of pairs that both finished."""

    arm: Arm
    runs: Runs
    difference: Paired
    cost: float
    pairs: tuple[float, ...]

    @property
    def verdict(self) -> str:
        """helped, did harm, or cannot be told, by the 95% interval; did not run."""
        mean, half, _ = self.difference
        if not self.pairs:
            return "did not run"
        if math.isnan(half) or abs(mean) <= half or not mean:
            return "cannot be told"
        return "helped" if mean > 0 else "did harm"


def worth(arm: Arm, runs: Runs, base: Runs, score: str = "test_accuracy") -> Worth:
    """What an arm was worth; runs and base: of the same seeds, in the same order."""
    both = [[(job.summary or {}).get(score) for job in pair] for pair in zip(runs.jobs, base.jobs, strict=True)]
    kept = [(one, other) for one, other in both if one is not None and other is not None]
    one, other = [pair[0] for pair in kept], [pair[1] for pair in kept]
    nothing = Paired(math.nan, math.nan, math.nan)
    return Worth(arm, runs, paired_t(one, other) if kept else nothing, runs.mean("seconds") / base.mean("seconds"),
                 tuple(a - b for a, b in kept))


def table(title: str, base: Runs, found: Sequence[Worth], score: str = "test_accuracy") -> Table:
    """A row for the base, and one for each arm: what it reached, the paired difference, what it cost."""
    ranked = len(base.jobs) >= RANKED
    columns = [Column("technique"), Column("kind"), Column("accuracy (%)", "right"),
               Column("difference" + (" (95%)" if ranked else ""), "right"), Column("time", "right"),
               *([Column("verdict")] if ranked else [])]
    rows: list[Sequence[Any]] = [(base.named, "", mean_spread(base.each(score)), "", "1.0 x", *([""] * ranked))]
    for each in found:
        cost = None if math.isnan(each.cost) else f"{each.cost:.1f} x"
        rows.append((each.runs.named, each.arm.kind, mean_spread(each.runs.each(score)) if each.pairs else None,
                     _points(each.difference), cost, *([each.verdict] * ranked)))
    return Table(title, columns, rows)


def _points(difference: Paired) -> str | None:
    mean, half, _ = difference
    if math.isnan(mean):
        return None
    return f"{100 * mean:+.1f}" + ("" if math.isnan(half) else f" ± {100 * half:.1f}")


def verdicts(found: Sequence[Worth], seeds: int) -> list[str]:
    """Which helped, which did harm, which cannot be told from nothing, and how far that may be trusted; with fewer than
    3 seeds, that nothing is ranked."""
    if seeds < RANKED:
        return [f"With {seeds} seed{'s' * (seeds > 1)} nothing is ranked: give --seeds 3 or more."]
    groups = {said: [each.arm.text for each in found if each.verdict == said]
              for said in ("helped", "did harm", "cannot be told", "did not run")}
    told = {"helped": "Helped", "did harm": "Did harm", "cannot be told": "Cannot be told from nothing",
            "did not run": "Did not run"}
    lines = [f"{told[said]} ({len(names)}): {', '.join(names)}." for said, names in groups.items() if names]
    tested = [each for each in found if not math.isnan(each.difference.p)]
    sure = [each.arm.text for each, p in zip(tested, holm([each.difference.p for each in tested]), strict=True)
            if p < 0.05]
    least = sorted(detectable(each.pairs) for each in tested)
    lines.append(f"By 95% intervals over {seeds} seeds: of {len(tested)} techniques without any effect, about "
                 f"{0.05 * len(tested):.1f} would be told apart by accident. Corrected for all of them (Holm): "
                 f"{', '.join(sure) or 'none'}.")
    if least:
        lines.append("So many seeds find a difference of "
                     f"{100 * least[len(least) // 2]:.1f} points (median) in four of five cases.")
    return lines


def show(title: str, base: Runs, found: Sequence[Worth], notes: Sequence[str], out: Path, score: str) -> None:
    """Prints the table and the verdicts; writes `out`/report.html and `out`/table.md.

    base: the runs without any technique. found: in the order asked for. notes: what a reader should know.
    RunFailedError if no run of the base finished.
    """
    if not base.each(score):
        raise RunFailedError(f"no run of the base in {out} finished; see their log.txt")
    seeds = len(base.jobs)
    if seeds >= RANKED:
        found = sorted(found, key=lambda each: (not each.pairs, -each.difference.difference if each.pairs else 0.0))
    shown, said = table(title, base, found, score), [*verdicts(found, seeds), *notes]
    page = Report("What each technique is worth", title)
    page.table(shown)
    for line in said:
        page.text(line)
    if rows := [(each.arm.text, 100 * each.difference.difference, 100 * each.difference.half_width)
                for each in found if each.pairs]:
        page.section("Differences from the base, in points")
        page.figure(difference_chart(rows), f"Test accuracy with each less that of the base, paired over {seeds} "
                    + ("seeds, and 95% intervals." if seeds > 1 else "seed."))
    page.runs({job.out.name: job.out for runs in (base, *(each.runs for each in found)) for job in runs.jobs}, out)
    print_tables(shown)
    print(*said, f"The report is {out / 'report.html'}", sep="\n")
    page.write(out / "report.html")
    write_text(out / "table.md", shown.markdown() + "\n")
