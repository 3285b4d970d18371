"""What techniques are worth: one base with and without each, on the same splits and seeds, and what the differences
may say."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ssl_lab.active.study.statistics import Paired, holm, paired_t
from ssl_lab.arms import Arm
from ssl_lab.comparison import Runs
from ssl_lab.errors import RunFailedError
from ssl_lab.files import write_text
from ssl_lab.intervals import detectable
from ssl_lab.report import Column, Report, Table, mean_spread, print_tables
from ssl_lab.report.charts import difference_chart

RANKED = 3  # seeds, from which on techniques are ranked and judged


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
