"""From `metrics.jsonl` to curves: reading runs, series by name, and mean and spread over runs."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ssl_lab.errors import UsageError

Row = dict[str, float]
FloatArray = NDArray[np.float64]


class Band(NamedTuple):
    """A curve and its uncertainty.

    Attributes:
        x: float64 [N].
        mean: float64 [N], finite.
        spread: float64 [N]; NaN is unknown.

    >>> band = sl.report.Band(np.arange(3), np.array([0.1, 0.5, 0.6]), np.array([0.01, 0.02, np.nan]))
    >>> float(band.mean[-1])
    0.6
    """

    x: FloatArray
    mean: FloatArray
    spread: FloatArray


def line(x: ArrayLike, y: ArrayLike) -> Band:
    """A curve whose points, [N] each, are exact."""
    return Band(np.asarray(x, np.float64), np.asarray(y, np.float64), np.zeros(np.shape(x)))


def read_metrics(path: str | Path) -> list[Row]:
    """The numbers of a run, one row for each step, by step.

    A `null` reads as NaN; values that are not numbers are left out. Lines of the same step are merged and the later one
    wins, so the steps that a resumed run repeats count once. A torn last line (the run was killed while writing it) is
    ignored.

    Args:
        path: of metrics.jsonl.

    Raises:
        UsageError: if the file is absent or a line that is not the last is unreadable.

    >>> from pathlib import Path
    >>> written = Path("metrics.jsonl").write_text('{"step": 1, "loss": 0.5}' + chr(10) + '{"step": 2, "lo')  # killed
    >>> sl.report.read_metrics("metrics.jsonl")
    [{'step': 1.0, 'loss': 0.5}]
    """
    path = Path(path)
    try:
        lines = path.read_text(encoding="utf-8", errors="replace").rstrip("\n").split("\n")
    except OSError as error:
        message = f"cannot read metrics {path}: {error.strerror}. Give the metrics.jsonl of a run's folder."
        raise UsageError(message) from error
    rows: dict[float, Row] = {}
    for number, line in enumerate(lines, start=1):
        try:
            row = _numbers(json.loads(line))
            rows.setdefault(row["step"], {}).update(row)
        except (ValueError, AttributeError, KeyError) as error:
            if number < len(lines):
                message = f"{path} line {number} is not a JSON object with a step. Mend or delete it."
                raise UsageError(message) from error
    return [rows[step] for step in sorted(rows)]


def _numbers(values: dict[str, object]) -> Row:
    return {key: float("nan") if value is None else float(value) for key, value in values.items()
            if value is None or isinstance(value, int | float)}


def series(rows: Sequence[Row], key: str) -> tuple[FloatArray, FloatArray]:
    """Steps and values of the rows in which `key` is present and finite.

    Args:
        rows: as `read_metrics` gives them.
        key: of the number.

    Returns:
        Steps and values, float64 [N] each.

    >>> sl.report.series([{"step": 1, "loss": 0.5}, {"step": 2}, {"step": 3, "loss": 0.4}], "loss")
    (array([1., 3.]), array([0.5, 0.4]))
    """
    points = [(row["step"], row[key]) for row in rows if np.isfinite(row.get(key, np.nan))]
    steps, values = np.array(points, dtype=np.float64).reshape(-1, 2).T
    return steps, values


def mean_and_spread(values: ArrayLike) -> tuple[FloatArray, FloatArray]:
    """Mean and sample standard deviation (n - 1) over the first axis.

    The spread of a single run is NaN: one run says nothing about the next.

    Args:
        values: [R] or [R, N], of R runs.

    >>> mean, spread = sl.report.mean_and_spread([1.0, 2.0, 3.0])
    >>> float(mean), float(spread)
    (2.0, 1.0)
    """
    runs = np.asarray(values, dtype=np.float64)
    mean = runs.mean(axis=0)
    return mean, runs.std(axis=0, ddof=1) if len(runs) > 1 else np.full_like(mean, np.nan)


def band(runs: Sequence[Sequence[Row]], key: str) -> Band:
    """Mean and spread of `key` over runs, against the step.

    Runs are read at all steps that any of them logged, with linear interpolation, over the range that all of
    them cover: each mean is over the same runs. Runs that never logged `key` are left out; without any, the
    band is empty. Spread is the sample standard deviation (n - 1), and NaN for a single run.

    Args:
        runs: the rows of each, as `read_metrics` gives them.
        key: of the number, as in "test_accuracy".

    >>> one, other = ([{"step": 0, "loss": 2.0}, {"step": 10, "loss": last}] for last in (1.0, 0.0))
    >>> sl.report.band([one, other], "loss").mean
    array([2. , 0.5])
    """
    logged = [(steps, values) for steps, values in (series(rows, key) for rows in runs) if len(steps)]
    if not logged:
        return Band(np.empty(0), np.empty(0), np.empty(0))
    grid = np.unique(np.concatenate([steps for steps, _ in logged]))
    start, end = max(steps[0] for steps, _ in logged), min(steps[-1] for steps, _ in logged)
    grid = grid[(grid >= start) & (grid <= end)]
    mean, spread = mean_and_spread([np.interp(grid, steps, values) for steps, values in logged])
    return Band(grid, mean, spread)
