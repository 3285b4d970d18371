"""What a loop prints and writes: its rounds, its advice to stop, and what its picks look like."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from ssl_lab.active.loop import ActiveLoop
from ssl_lab.active.people.label_studio import LabelStudio
from ssl_lab.active.record import Round
from ssl_lab.active.stopping import MORE, STABLE, WORTH
from ssl_lab.active.trainers import training_folder
from ssl_lab.data import Pool
from ssl_lab.report import Band, Column, Report, Table, curves, image_grid, print_tables

SHOWN = 10  # images of a round


def show_loop(loop: ActiveLoop, title: str) -> None:
    """Prints a table of the rounds and writes report.html into the loop's folder."""
    pool = loop.pool
    labels = pool.labels
    columns = [Column("round", "right"), Column("labels", "right"), Column("test accuracy", "right", ".2%"),
               Column("asked", "right"), Column("ignored", "right"), Column("abstained", "right"),
               Column("training (s)", "right", ".1f"), Column("choosing (s)", "right", ".2f")]
    rows = []
    for record in loop.records:
        ids = np.array(record.ids, dtype=np.int64)
        rows.append((record.round, record.labels, record.accuracy, len(ids), int((labels[ids] == -2).sum()),
                     int(np.isin(ids, loop.abstained).sum()), record.seconds.get("fit"), record.seconds.get("query")))
    table = Table(title, columns, rows)
    page = Report(title, f"{pool.name}: {len(pool.train):,} training images, {len(pool.labeled):,} labeled now")
    measured = [record for record in loop.records if record.accuracy is not None]
    x, y = ([float(value or 0) for value in values] for values in
            ([record.labels for record in measured], [record.accuracy for record in measured]))
    page.figure(curves({"test": Band(np.array(x), np.array(y), np.full(len(x), np.nan))}, "test accuracy", "labels",
                       percent=True),
                "One run: where it goes is partly chance. recipes/active_benchmark.py compares strategies over seeds.")
    page.table(table)
    page.runs({f"round {record.round}": training_folder(loop.folder, record.round) for record in loop.records},
              loop.folder)
    advice = loop.advice
    page.section("Whether to go on")
    for line in advice.lines:
        page.text(line)
    page.text("An estimate from answers to predictions, not from the test images. The rule: stop when the 95% interval "
              f"of what {MORE} more labels bring ends below {WORTH:.0%}, or when three rounds in a row agree by a mean "
              f"kappa of {STABLE:g} (Bloodgood and Vijay-Shanker 2009).")
    asked = [record for record in loop.records if record.ids]
    if asked:
        page.section("What was asked")
        page.images(*_picks(pool, [record.ids[:SHOWN] for record in asked], [f"{record.round}" for record in asked]))
        if asked[-1].like is not None and any(asked[-1].like):
            page.images(*_represented(pool, asked[-1]))
    print_tables(table)
    print(*advice.lines, sep="\n")
    page.write(loop.folder / "report.html")
    print(f"The report is {loop.folder / 'report.html'}")


def say_how_it_stands(loop: ActiveLoop, waits: str = "") -> None:
    """Prints what was read of the answers of people, what was corrected, and where the loop waits for more, `waits` and
    what to do in Label Studio."""
    print(*getattr(loop.oracle, "notes", ()), sep="\n", end="\n" if getattr(loop.oracle, "notes", ()) else "")
    if loop.corrected:
        changes = [f"{i} ({before} -> {now})" for i, (before, now) in loop.corrected.items()]
        print(f"{len(changes)} answers were corrected since they were read, and the labels with them: id "
              f"{', '.join(changes[:SHOWN])}{', ...' if len(changes) > SHOWN else ''}. Rounds that are done stay as "
              "they were")
    if len(loop.pending):
        print(waits)
        if isinstance(loop.oracle, LabelStudio):
            print(loop.oracle.instructions())
    elif loop.records and loop.records[-1].round < loop.rounds:
        print(f"All images that could be asked for have been: the loop ends after {loop.records[-1].round} of "
              f"{loop.rounds} rounds")


def _picks(pool: Pool, rounds: Sequence[Sequence[int]], names: Sequence[str]) -> tuple[Any, str]:
    """A grid of the first images of each round, and its caption."""
    width = min(map(len, rounds))
    ids = np.array([i for chosen in rounds for i in chosen[:width]])
    names_of = {-1: "no answer", -2: "ignored"} | dict(enumerate(pool.class_names))
    grid = image_grid(pool.images.take(ids).numpy(), [names_of[label] for label in pool.labels[ids].tolist()], width,
                      rows=[f"round {name}" for name in names])
    return grid, f"The first {width} images of each round, in the order of choice, with their labels."


def _represented(pool: Pool, record: Round) -> tuple[Any, str]:
    """A grid of the first images of a round, each beside some that it stands for, and its caption."""
    counts, like = record.stands_for or (), record.like or ()
    first = [place for place in range(min(SHOWN, len(like))) if like[place]]
    ids = [[record.ids[place], *like[place]] for place in first]
    width = max(map(len, ids))
    blank = np.zeros((1, *pool.images.shape), dtype=np.uint8)
    shown = np.concatenate([part for row in ids for part in (
        pool.images.take(np.array(row)).numpy(), np.repeat(blank, width - len(row), axis=0))])
    grid = image_grid(shown, columns=width, rows=[f"{counts[place]:,} like it" for place in first])
    return grid, (f"The first images of round {record.round}, and beside each the unlabeled ones nearest to it, among "
                  "those that are more like it than like another one of the round.")
