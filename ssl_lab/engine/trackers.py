"""Trackers: callbacks that show runs elsewhere. TensorBoard, MLflow, Weights & Biases; `--track` takes them by name.

A tracker gets the settings of a run, each row of its metrics and its summary. What it shows is a copy: metrics.jsonl
and summary.json stay the truth, and a tracking server that goes away in mid-run does not stop the training.
"""

from __future__ import annotations

import importlib
import json
import math
import os
import sys
import time
from abc import abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, ClassVar, Literal, TypeVar

import yaml

from ssl_lab.data import Pool
from ssl_lab.engine.callbacks import Afterwards, Callback, ShowProgress
from ssl_lab.engine.folder import TRACKED
from ssl_lab.errors import UsageError, unknown
from ssl_lab.files import write_text

Track = Literal["tensorboard", "mlflow", "wandb"]
Status = Literal["finished", "stopped", "failed"]
Row = Mapping[str, float]
T = TypeVar("T")


class Tracker(Callback):
    """What trackers share: a resumed run goes on as the same run there, and no step is sent twice.

    The run's id there lies in track.json of its folder. UsageError, when training starts, for a tracker that is not
    installed or does not answer. Where it fails later, a note says so, and what is missing is sent when the run ends.
    """

    name: ClassVar[str]
    module: ClassVar[str]

    def __init__(self) -> None:
        try:
            self._api: Any = importlib.import_module(self.module)
        except ImportError as error:
            raise UsageError(f'--track {self.name}: {error}; pip install "ssl_lab[{self.name}]"') from None
        self._waiting: list[Row] = []
        self._summary: Mapping[str, Any] = {}
        self._answers = True

    @abstractmethod
    def _open(self, method: str, out: Path, settings: Mapping[str, Any], known: str | None, step: int) -> str:
        """Begins a run there, or goes on with the run whose id is `known`, from `step` on; returns its id."""

    @abstractmethod
    def _send(self, rows: Sequence[Row]) -> None:
        """Adds rows of metrics, all of them finite."""

    @abstractmethod
    def _close(self, summary: Mapping[str, Any], status: Status) -> None:
        """Adds the summary, empty of a run that was not finished, and ends the run there for now."""

    def start(self, name: str, out: Path, step: int, steps: int) -> None:
        self._waiting, self._summary, self._answers = [], {}, True
        ids = _ids(out / TRACKED)
        try:
            settings = dict(_flat(yaml.safe_load((out / "config.yaml").read_text())))
            ids[self.name] = self._open(name, out, settings, ids.get(self.name), step)
        except Exception as error:
            raise UsageError(f"--track {self.name} cannot start: {_line(error)}. Mend that, or leave it out") from error
        write_text(out / TRACKED, json.dumps(ids) + "\n")

    def row(self, row: Row) -> None:
        self._waiting.append({key: value for key, value in row.items() if math.isfinite(value)})
        if self._answers:
            self._answers = self._flushed("training goes on, and what is missing is sent when it ends")

    def finish(self, out: Path, pool: Pool) -> None:
        self._summary = json.loads((out / "summary.json").read_text())

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None,
                 trace: TracebackType | None) -> None:
        stopped = kind is not None and issubclass(kind, KeyboardInterrupt)
        status: Status = "finished" if kind is None else "stopped" if stopped else "failed"
        missing = "what is missing there is in metrics.jsonl and summary.json"
        if self._flushed(missing):
            try:
                self._close({key: value for key, value in self._summary.items() if _tells(value)}, status)
            except Exception as problem:
                self._complain(problem, missing)

    def _flushed(self, otherwise: str) -> bool:
        """Whether all rows that waited are sent now; else a note has said why not."""
        try:
            if self._waiting:
                self._send(self._waiting)
                self._waiting = []
            return True
        except Exception as error:  # whatever it is, it is not worth the run
            self._complain(error, otherwise)
            return False

    def _complain(self, error: Exception, otherwise: str) -> None:
        print(f"note: {self.name} does not take metrics ({_line(error)}); {otherwise}", file=sys.stderr)


class TensorBoard(Tracker):
    """Event files in the run's folder, under tensorboard/ (extra `tensorboard`).

    >>> trainer = sl.Trainer(steps=100, track="tensorboard")  # by name, beside what the callbacks are by default
    >>> trainer.track
    'tensorboard'
    """

    name, module = "tensorboard", "torch.utils.tensorboard"

    def _open(self, method: str, out: Path, settings: Mapping[str, Any], known: str | None, step: int) -> str:
        self._writer = self._api.SummaryWriter(str(out / "tensorboard"), purge_step=step + 1)
        if known is None:
            self._writer.add_text("settings", _table(settings))
        return str(out / "tensorboard")

    def _send(self, rows: Sequence[Row]) -> None:
        for row in rows:
            for key, value in row.items():
                self._writer.add_scalar(key, value, int(row["step"]))

    def _close(self, summary: Mapping[str, Any], status: Status) -> None:
        if summary:
            self._writer.add_text("summary", _table(summary), int(summary["steps"]))
        self._writer.close()


class MLflow(Tracker):
    """A run of MLflow (extra `mlflow`), where MLFLOW_TRACKING_URI says, in the experiment MLFLOW_EXPERIMENT_NAME or
    ssl_lab: settings are parameters, the summary's numbers metrics under summary/, its words tags.

    >>> trainer = sl.Trainer(steps=100, track="mlflow")  # by name, beside what the callbacks are by default
    >>> trainer.track
    'mlflow'
    """

    name, module = "mlflow", "mlflow"

    def _open(self, method: str, out: Path, settings: Mapping[str, Any], known: str | None, step: int) -> str:
        self._client = self._api.MlflowClient()
        self._last = 0  # step that it has
        if known is not None and self._is_there(known):
            self._run = known
            self._last = max((point.step for point in self._client.get_metric_history(known, "seconds")), default=0)
            self._client.update_run(known, status="RUNNING")
            return known
        self._run = str(self._client.create_run(self._experiment(), run_name=str(out)).info.run_id)
        entities = self._api.entities
        params = [entities.Param(key, str(value)[:500]) for key, value in settings.items()]
        for few in _chunks(params, 100):  # the most that it takes at a time
            self._client.log_batch(self._run, params=few)
        return self._run

    def _is_there(self, run: str) -> bool:
        try:
            return bool(self._client.get_run(run).info.lifecycle_stage == "active")
        except self._api.exceptions.MlflowException as error:
            if error.error_code == "RESOURCE_DOES_NOT_EXIST":
                return False
            raise

    def _experiment(self) -> str:
        if given := os.environ.get("MLFLOW_EXPERIMENT_ID"):
            return given
        name = os.environ.get("MLFLOW_EXPERIMENT_NAME", "ssl_lab")
        found = self._client.get_experiment_by_name(name)
        return str(found.experiment_id if found else self._client.create_experiment(name))

    def _send(self, rows: Sequence[Row]) -> None:
        self._log([(key, value, int(row["step"])) for row in rows if row["step"] > self._last
                   for key, value in row.items() if key != "step"])
        self._last = max(self._last, int(rows[-1]["step"]))

    def _close(self, summary: Mapping[str, Any], status: Status) -> None:
        numbers = {key: value for key, value in summary.items() if isinstance(value, int | float)}
        self._log([(f"summary/{key}", value, int(summary["steps"])) for key, value in numbers.items()])
        tags = [self._api.entities.RunTag(key, str(value)[:5000]) for key, value in summary.items()
                if key not in numbers]
        self._client.log_batch(self._run, tags=tags)
        self._client.set_terminated(self._run, {"finished": "FINISHED", "stopped": "KILLED"}.get(status, "FAILED"))

    def _log(self, points: Sequence[tuple[str, float, int]]) -> None:
        now, metric = int(1000 * time.time()), self._api.entities.Metric
        for few in _chunks([metric(key, float(value), now, step) for key, value, step in points], 900):
            self._client.log_batch(self._run, metrics=few)


class WandB(Tracker):
    """A run of Weights & Biases (extra `wandb`), in the project WANDB_PROJECT or ssl_lab; with WANDB_MODE=offline it
    stays in the run's folder, from where `wandb sync` sends it.

    >>> trainer = sl.Trainer(steps=100, track="wandb")  # by name, beside what the callbacks are by default
    >>> trainer.track
    'wandb'
    """

    name, module = "wandb", "wandb"

    def _open(self, method: str, out: Path, settings: Mapping[str, Any], known: str | None, step: int) -> str:
        self._run = self._api.init(
            project=os.environ.get("WANDB_PROJECT", "ssl_lab"), name=str(out), dir=str(out), id=known,
            resume=None if known is None else "allow", config=dict(settings), allow_val_change=True,
            settings=self._api.Settings(console="off"))  # what is printed here stays here
        self._first = int(self._run.step) if self._run.resumed else 0  # step that it lacks
        return str(self._run.id)

    def _send(self, rows: Sequence[Row]) -> None:
        for row in rows:
            if row["step"] >= self._first:
                shown = {key: value for key, value in row.items() if key != "step"}
                self._run.log(shown, step=int(row["step"]), commit=True)  # else the last one overrides the summary

    def _close(self, summary: Mapping[str, Any], status: Status) -> None:
        self._run.summary.update(dict(summary))
        if status == "stopped":
            self._run.mark_preempting()  # it goes on
        self._run.finish(exit_code=0 if status == "finished" else 1)


TRACKERS: dict[str, type[Tracker]] = {tracker.name: tracker for tracker in (TensorBoard, MLflow, WandB)}


def chosen(callbacks: Sequence[Callback] | None, track: Track | None) -> list[Callback]:
    """The callbacks of a run: those given, or a progress bar and what is done with every finished run; and a tracker if
    one is named."""
    if track is not None and track not in TRACKERS:
        raise unknown("tracker", track, TRACKERS)
    usual = [ShowProgress(), Afterwards()] if callbacks is None else callbacks
    return [*usual, *([TRACKERS[track]()] if track else [])]


def _ids(file: Path) -> dict[str, str]:
    """By tracker, the id of the run in this folder."""
    try:
        return dict(json.loads(file.read_text()))
    except (OSError, ValueError, TypeError):
        return {}


def _flat(settings: Mapping[str, Any], before: str = "") -> Iterator[tuple[str, Any]]:
    """Names and values, those in a mapping under NAME.KEY."""
    for key, value in settings.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{before}{key}.")
        else:
            yield f"{before}{key}", value


def _tells(value: Any) -> bool:
    return value is not None and not (isinstance(value, float) and not math.isfinite(value))


def _table(values: Mapping[str, Any]) -> str:
    """In Markdown."""
    rows = "\n".join(f"| {key} | {str(value).replace('|', chr(92) + '|')} |" for key, value in values.items())
    return f"| | |\n|---|---|\n{rows}"


def _chunks(values: Sequence[T], most: int) -> Iterator[Sequence[T]]:
    for start in range(0, len(values), most):
        yield values[start : start + most]


def _line(error: BaseException) -> str:
    return " ".join(str(error).split())[:300] or type(error).__name__
