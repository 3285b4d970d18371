"""Active-learning strategies side by side, on equal initial sets: curves, areas, labeling efficiency, tests.

    python recipes/active_benchmark.py --data mnist --queries margin,badge,typiclust --seeds 5 --initial 10 \\
        --final 110 --batches 20 --steps 300 --workers 2

As robust and reproducible comparisons ask for (Munjal et al. 2022, arXiv 2002.09564), random always runs, and all from
the same initial sets, several of them. Each combination of trainer, batch, query, seed and initial set is a cell with a
folder of its own in --out. Finished cells are kept and cut ones resumed, so the same command goes on where it stopped,
and with more queries or seeds it adds what is missing. With fewer than 3 seeds the report ranks nothing.
"""

from __future__ import annotations

import concurrent.futures
import itertools
import json
import multiprocessing
import os
import sys
from collections.abc import Iterator, Sequence
from concurrent.futures.process import BrokenProcessPool
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ssl_lab import texts
from ssl_lab.active.loop import ActiveLoop
from ssl_lab.active.people.oracle import Truth
from ssl_lab.active.plugins import make_query
from ssl_lab.active.trainers import backbone, fitter
from ssl_lab.active_settings import Benchmark
from ssl_lab.data import Pool, announce, load
from ssl_lab.data.images import Subset
from ssl_lab.data.inventory import require_same
from ssl_lab.engine import Result
from ssl_lab.engine.folder import check_same
from ssl_lab.errors import RunFailedError, UsageError
from ssl_lab.files import write_text
from ssl_lab.notes import at_most
from ssl_lab.processes import end_with
from ssl_lab.seeds import generator
from ssl_lab.workers import Elsewhere, Workers, workers_of

BASELINE = "random"
IRRELEVANT = {"out", "resume", "data_dir", "device", "queries", "trainers", "seeds", "sets", "batches", "workers",
              "remote_gb", "seed", "track", "labels", "split_file"}  # to what a cell gives


@dataclass(frozen=True)
class Cell:
    """One run of the loop."""

    trainer: str
    batch: int
    query: str
    seed: int
    initial_set: int

    @property
    def folder(self) -> Path:
        """Where it lies below the benchmark's folder."""
        query = texts.as_file_name(self.query)
        return Path(self.trainer, f"batch-{self.batch}", query, f"seed-{self.seed}-set-{self.initial_set}")


def cells_of(settings: Benchmark) -> list[Cell]:
    """All cells, seed by seed, with random's first. UsageError for settings that make no benchmark."""
    if settings.labels is not None or settings.split_file is not None or settings.minutes is not None:
        raise UsageError("a benchmark takes --initial in place of --labels and --split-file, and --steps in place of "
                         "--minutes, by which cells would train for different lengths")
    trainers = list(dict.fromkeys(map(str.strip, settings.trainers.split(","))))
    try:
        batches = list(dict.fromkeys(map(int, settings.batches.split(","))))
    except ValueError:
        raise UsageError(f"--batches {settings.batches!r}: expected whole numbers, separated by commas") from None
    for trainer in trainers:
        fitter(settings, trainer, settings.out)  # an unknown one, or one without the backbone that it starts from
    counts = settings.seeds, settings.sets, settings.duplicates, *batches
    if min(counts) < 1 or settings.initial < 0:
        raise UsageError("seeds, sets, duplicates and batches must be at least 1, and --initial at least 0")
    for batch in batches:
        if settings.final <= settings.initial or (settings.final - settings.initial) % batch:
            raise UsageError(f"from --initial {settings.initial} to --final {settings.final} there is no whole number "
                             f"of rounds of {batch} labels")
    queries = list(dict.fromkeys([BASELINE, *texts.split(settings.queries)]))
    for name in queries:
        make_query(name)
    return [Cell(trainer, batch, query, seed, initial_set) for seed, initial_set, trainer, batch, query in
            itertools.product(range(settings.seeds), range(settings.sets), trainers, batches, queries)]


def run_cells(settings: Benchmark, cells: Sequence[Cell]) -> dict[Cell, dict[str, Any]]:
    """Runs what is not finished on the workers, and returns what each cell gave; see `run_cell`."""
    workers = workers_of(settings.workers, settings.out)
    pool = load(settings.data, **settings.reading())
    announce(pool)
    require_same(settings.out, pool, f"the cells in {settings.out} are of")
    waiting = [cell for cell in cells if _finished(settings, cell) is None]
    for number, cell in enumerate(_running(settings, waiting, workers), start=1):
        result = _finished(settings, cell) or {}
        print(f"{number}/{len(waiting)} {cell.folder}: {result['accuracy'][-1]:.2%} with {result['labels'][-1]} labels",
              file=sys.stderr)
    return {cell: _finished(settings, cell) or {} for cell in cells}


def _running(settings: Benchmark, cells: Sequence[Cell], workers: Workers) -> Iterator[Cell]:
    """Yields each cell when it is done."""
    if isinstance(workers, Elsewhere):
        with concurrent.futures.ThreadPoolExecutor(workers.count) as asking:
            asked = {asking.submit(workers.call, _run_quietly, settings, cell): cell for cell in cells}
            try:
                for future in concurrent.futures.as_completed(asked):
                    future.result()
                    yield asked[future]
            except BaseException:
                asking.shutdown(wait=False, cancel_futures=True)
                workers.stop(asked)
                raise
        return
    if workers.count == 1:
        for cell in cells:
            _run_quietly(settings, cell)
            yield cell
        return
    threads = max(1, (os.cpu_count() or 1) // workers.count)
    with concurrent.futures.ProcessPoolExecutor(workers.count, multiprocessing.get_context("spawn"),
                                                _begin, (threads, os.getpid())) as executor:
        running = {executor.submit(_run_quietly, settings, cell): cell for cell in cells}
        try:
            for future in concurrent.futures.as_completed(running):
                future.result()
                yield running[future]
        except BrokenProcessPool as error:
            raise RunFailedError("a process of a cell was killed, as systems do where memory runs out: give fewer "
                                 "--workers, or a smaller --net. The same command goes on") from error
        except BaseException:
            executor.shutdown(wait=False, cancel_futures=True)
            raise


def _begin(threads: int, parent: int) -> None:
    """A process for cells, which ends with the one that started it."""
    torch.set_num_threads(threads)
    end_with(parent)


def _run_quietly(settings: Benchmark, cell: Cell) -> None:
    """Without a word on what was loaded: that is said once."""
    with at_most(0):
        run_cell(settings, cell)


def _spec(settings: Benchmark, cell: Cell) -> dict[str, Any]:
    """What a cell depends on."""
    values = settings.plain()
    return {key: values[key] for key in (field.name for field in fields(Benchmark)) if key not in IRRELEVANT
            } | {"cell": asdict(cell)}


def _finished(settings: Benchmark, cell: Cell) -> dict[str, Any] | None:
    """What the cell gave, if it is finished. UsageError if it was run with other settings."""
    path = settings.out / cell.folder / "result.json"
    if not path.exists():
        return None
    result: dict[str, Any] = json.loads(path.read_text())
    check_same(result["settings"], _spec(settings, cell), path.parent)
    return result


def run_cell(settings: Benchmark, cell: Cell) -> None:
    """Runs or resumes a cell and writes its result.json.

    labels, accuracy: the curve. initial: ids; selected: the ids of each round, in selection order. seconds, memory: of
    each query. fit_seconds: of all training. transfer: test accuracy of the other net.
    """
    out = settings.out / cell.folder
    spec, own = _spec(settings, cell), replace(settings, seed=cell.seed)
    if (out / "settings.json").exists():
        check_same(json.loads((out / "settings.json").read_text()), spec, out)
    write_text(out / "settings.json", json.dumps(spec, indent=1) + "\n")
    pool = duplicated(load(settings.data, **settings.reading()), settings.duplicates, cell.seed)
    split = settings.split() | {"seed": cell.seed + 1000 * cell.initial_set, "labels": settings.initial}
    if not settings.initial:
        split |= {"labels": None, "labeled": []}
    pool = pool.split(**split)
    if not len(pool.test):
        raise UsageError(f"{pool.name} has no test images, so that there is nothing to compare by")
    loop = ActiveLoop(pool, fitter(own, cell.trainer, out, quiet=True, keep=False), make_query(cell.query),
                      Truth(pool, settings.noise, seed=cell.seed), cell.batch,
                      (settings.final - settings.initial) // cell.batch, out, cell.seed,
                      backbone=backbone(settings, pool.style), embeddings=settings.embeddings, device=settings.device,
                      precision=settings.precision)
    records = loop.run()
    moved = None
    if settings.transfer is not None:
        trainer = "fixmatch" if "fixmatch" in cell.trainer else "supervised"
        other = fitter(replace(own, net=settings.transfer), trainer, out / "transfer", quiet=True, keep=False)(
            loop.pool, 0)
        moved = other.test_accuracy if isinstance(other, Result) else None
    measured = [record for record in records if record.accuracy is not None]
    asked = [record for record in records if record.ids]
    write_text(out / "result.json", json.dumps({
        "settings": spec, "labels": [record.labels for record in measured],
        "accuracy": [record.accuracy for record in measured], "initial": pool.labeled.tolist(),
        "selected": [list(record.ids) for record in asked],
        "seconds": [record.seconds["query"] for record in asked], "memory": [record.memory for record in asked],
        "fit_seconds": sum(record.seconds.get("fit", 0.0) for record in records), "transfer": moved}) + "\n")


def duplicated(pool: Pool, times: int, seed: int = 0) -> Pool:
    """The pool, before its split, with 1 in `times` train images, drawn at random, each there `times` times."""
    if times == 1:
        return pool
    kept = len(pool.train) // times
    chosen = pool.train[torch.randperm(len(pool.train), generator=generator(seed, "duplicates")).numpy()[:kept]]
    parts = [np.tile(np.sort(chosen), times), pool.valid, pool.test]
    rows = np.concatenate(parts)
    ends = np.cumsum([len(part) for part in parts])
    train, valid, test = np.split(np.arange(ends[-1]), ends[:-1])
    return replace(pool, images=Subset(pool.images, rows), truth=pool.truth[rows], train=train, valid=valid, test=test,
                   files=tuple(pool.files[row] for row in rows.tolist()) if pool.files else ())
