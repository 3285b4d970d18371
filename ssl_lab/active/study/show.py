"""What a benchmark of active learning prints and writes: tables, curves, and no more claims than the runs bear."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ssl_lab.active.study import statistics
from ssl_lab.active.study.benchmark import BASELINE, Cell
from ssl_lab.active.study.statistics import FloatArray, Paired
from ssl_lab.files import write_text
from ssl_lab.intervals import detectable, half_width
from ssl_lab.report import Band, Column, Report, Table, curves, print_tables

ENOUGH = 3  # seeds, from which strategies are compared at all
SIGNIFICANT = 0.05


@dataclass(frozen=True)
class Group:
    """The curves of all queries under one trainer and batch: labels [P], accuracy name -> [R, P], over equal seeds: of
    each the mean over its initial sets, which share weights and draws, so that they do not count as further seeds."""

    name: str
    labels: FloatArray
    accuracy: Mapping[str, FloatArray]
    results: Mapping[str, Sequence[Mapping[str, Any]]]

    def areas(self, query: str) -> FloatArray:
        """[R], the area under each run's curve."""
        return statistics.area(self.labels, self.accuracy[query])

    def against_random(self) -> dict[str, Paired]:
        """The paired difference of the areas from random's, with p adjusted by Holm for the number of queries."""
        others = [query for query in self.accuracy if query != BASELINE]
        tests = [statistics.paired_t(self.areas(query), self.areas(BASELINE)) for query in others]
        adjusted = statistics.holm([test.p for test in tests])
        return {query: test._replace(p=p) for query, test, p in zip(others, tests, adjusted, strict=True)}

    def detectable(self, query: str) -> float:
        """The difference from random's area that so many seeds would find in four of five cases, at the strictest
        significance of Holm's tests."""
        tests = max(1, len(self.accuracy) - 1)
        return detectable(self.areas(query) - self.areas(BASELINE), SIGNIFICANT / tests)

    def efficiency(self, query: str) -> str:
        """The labeling efficiency of the mean curves, or its bound, and its 95% interval over seeds."""
        one, other = self.accuracy[query], self.accuracy[BASELINE]
        least, most = statistics.labeling_efficiency(self.labels, one.mean(axis=0), other.mean(axis=0))
        low, high = statistics.efficiency_interval(self.labels, one, other)
        what = f"{least:.2f}" if least == most else f"≥ {least:.2f}" if least > 0 else f"≤ {most:.2f}"
        return f"{what} ({low:.2f} to {'?' if np.isinf(high) else f'{high:.2f}'})"


def groups_of(results: Mapping[Cell, Mapping[str, Any]]) -> list[Group]:
    """The cells' results by trainer and batch."""
    groups: dict[str, dict[str, list[Mapping[str, Any]]]] = {}
    for cell, result in results.items():
        name = f"{cell.trainer}, {cell.batch} a round"
        groups.setdefault(name, {}).setdefault(cell.query, []).append(result)
    return [Group(name, np.array(next(iter(runs.values()))[0]["labels"], dtype=np.float64),
                  {query: _by_seed(each) for query, each in runs.items()}, runs)
            for name, runs in groups.items()]


def _by_seed(runs: Sequence[Mapping[str, Any]]) -> FloatArray:
    """float64 [R, P], the mean accuracy of each seed's runs."""
    seeds = np.array([run["settings"]["cell"]["seed"] for run in runs])
    accuracy = np.array([run["accuracy"] for run in runs], dtype=np.float64)
    return np.array([accuracy[seeds == seed].mean(axis=0) for seed in np.unique(seeds)])


def verdict(group: Group, seeds: int) -> str:
    """What may be said of the strategies: nothing with fewer than 3 seeds; else who differs from random."""
    if seeds < ENOUGH:
        return (f"{group.name}: no ranking. {seeds} seed{'s say' if seeds > 1 else ' says'} nothing of the next; run "
                f"at least {ENOUGH}.")
    sides: dict[str, list[str]] = {"better": [], "worse": [], "same": []}
    for query, test in group.against_random().items():
        side = "same" if test.p >= SIGNIFICANT else "better" if test.difference > 0 else "worse"
        unseen = f"; {seeds} seeds find {100 * group.detectable(query):.1f}" if side == "same" else ""
        sides[side].append(f"{query} ({_points(test)}{unseen})")
    parts = [f"{text}: {', '.join(sides[side])}" for side, text in
             (("better", "better than random"), ("worse", "worse than random"),
              ("same", "not to be told from random")) if sides[side]]
    return f"{group.name}, {seeds} paired seeds: {'; '.join(parts) or 'random alone'}."


def _points(test: Paired) -> str:
    return f"{100 * test.difference:+.1f} ± {100 * test.half_width:.1f}"


def group_table(group: Group, seeds: int) -> Table:
    """A row for each query; ranked by area, with intervals and compared with random, only from 3 seeds on."""
    ranked = seeds >= ENOUGH
    transfers = any(run["transfer"] is not None for runs in group.results.values() for run in runs)
    columns = [Column("query"), Column("area (%)", "right"), Column("last (%)", "right", ".1f"),
               Column("vs random", "right"), Column("p", "right", ".3f"), Column("detectable", "right", ".1f"),
               Column("label eff.", "right"),
               Column("choosing (s)", "right", ".2f"), Column("memory (MB)", "right", ",.0f")]
    columns += [Column("transfer (%)", "right", ".1f")] if transfers else []
    tests = group.against_random() if ranked else {}
    rows: list[list[Any]] = []
    for query in sorted(group.accuracy, key=lambda name: -group.areas(name).mean()) if ranked else group.accuracy:
        runs, mean, areas = group.results[query], group.accuracy[query].mean(axis=0), 100 * group.areas(query)
        memory = [peak for run in runs for peak in run["memory"] if peak is not None]
        area = f"{areas.mean():.1f}" + (f" ± {half_width(areas):.1f}" if ranked else "")
        test = tests.get(query)
        compared = [None] * 4 if test is None else [
            _points(test), test.p, 100 * group.detectable(query), group.efficiency(query)]
        row = [query, area, 100 * mean[-1], *compared, np.mean([second for run in runs for second in run["seconds"]]),
               max(memory) / 2**20 if memory else None]
        rows.append(row + ([100 * np.mean([run["transfer"] for run in runs])] if transfers else []))
    sets = len(group.results[BASELINE]) // seeds
    return Table(f"{group.name}: mean over {seeds} seed{'s' * (seeds > 1)}{f', {sets} sets each' * (sets > 1)}",
                 columns, rows)


def win_table(groups: Sequence[Group]) -> Table:
    """Who beats whom how often, over all points of all groups."""
    names = list(groups[0].accuracy)
    wins = np.mean([statistics.win_matrix(group.accuracy, SIGNIFICANT) for group in groups], axis=0)
    rows = [[name, *row] for name, row in zip(names, wins.tolist(), strict=True)]
    rows.append(["is beaten, mean", *wins.mean(axis=0).tolist()])
    return Table("Row beats column: share of the curves' points at which it does, by a paired t-test at 5%",
                 [Column("query"), *(Column(name, "right", ".0%") for name in names)], rows)


def show_benchmark(results: Mapping[Cell, Mapping[str, Any]], about: str, out: Path) -> None:
    """Prints tables and what may be said; writes report.html and results.json, with the ids of every selection.

    results: by cell, see `run_cell`. about: what was run, a sentence.
    """
    groups, seeds = groups_of(results), len({cell.seed for cell in results})
    said = [verdict(group, seeds) for group in groups]
    tables = [group_table(group, seeds) for group in groups]
    page = Report("Active learning strategies side by side", about)
    for line in said:
        page.text(line)
    for table in tables:
        page.table(table)
    page.text("Area: mean accuracy over the budget, by trapezoids, with its 95% interval. Vs random: paired difference "
              "of the areas, in points; p: of the paired t-test, after Holm. Detectable: the true difference that so "
              "many seeds would find in four of five cases, if pairs differ as much as these do; smaller ones mostly "
              "go unseen. Label eff.: labels that random needs / labels that the strategy needs for the highest "
              "accuracy that both reach; above 1 it saves labels. Where one of them starts above that, it is a bound; "
              "in brackets its 95% interval, by drawing seeds with replacement. "
              "Choosing and memory: of the query alone, mean, and peak above its inputs.")
    page.section("Accuracy by labels")
    for group in groups:
        lines = {query: Band(group.labels, runs.mean(axis=0), half_width(runs) if seeds >= ENOUGH else
                             np.full(len(group.labels), np.nan)) for query, runs in group.accuracy.items()}
        page.figure(curves(lines, "test accuracy", "labels", percent=True),
                    f"{group.name}: mean" + (" and 95% interval" if seeds >= ENOUGH else "") + " over seeds.")
    if seeds >= ENOUGH:
        page.section("Who beats whom")
        page.table(win_table(groups))
        page.text("These many tests are not corrected for their number: of true ties, one in forty counts as a win of "
                  "the row.")
    print_tables(*tables)
    print(*said, f"The report is {out / 'report.html'}", sep="\n")
    page.write(out / "report.html")
    write_text(out / "results.json", json.dumps(list(results.values())) + "\n")
