"""Where the runs of a study run: processes of this machine, jobs of a SLURM cluster, or tasks of a Ray cluster.

Nothing is scheduled here: a run is a folder on a disk that all workers share, it resumes by itself, and whoever has it
holds its lock. So a worker that is lost costs what its run did since the last checkpoint, and the command that started
the study goes on where it was.
"""

from __future__ import annotations

import importlib
import os
import re
import socket
import subprocess
import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from ssl_lab import texts
from ssl_lab.errors import RunFailedError, UsageError, unknown
from ssl_lab.processes import PARENT

T = TypeVar("T")
KINDS = ("slurm", "ray")
EXAMPLE = 'slurm(timeout_min=600, gpus_per_node=1, slurm_partition="gpu")'


class Workers(ABC):
    """count: how many run at a time; as many threads may call at once. stopping: whether all is to stop."""

    def __init__(self, count: int) -> None:
        if not isinstance(count, int) or count < 1:
            raise UsageError(f"--workers {count}: expected at least one")
        self.count, self.stopping = count, threading.Event()
        self._begun: list[Any] = []

    @abstractmethod
    def command(self, command: Sequence[str], log: Path) -> int:
        """Runs a command on a worker, its output at the end of `log`: the exit status."""

    @abstractmethod
    def end(self, begun: Any) -> None:
        """Tells one of what was begun to save and to end."""

    def stop(self, runs: Iterable[Future[Any]]) -> None:
        """Tells what runs to save and to end, and waits until all `runs`, the threads' work, are done: one of them may
        just be beginning something."""
        self.stopping.set()
        told = 0
        while not all(run.done() for run in runs):
            for begun in self._begun[told:]:
                self.end(begun)
                told += 1
            time.sleep(0.05)


class Here(Workers):
    """Processes of this machine, each of which ends when this one does."""

    def command(self, command: Sequence[str], log: Path) -> int:
        with log.open("a") as file:
            child = subprocess.Popen(command, stdout=file, stderr=file, env=os.environ | {PARENT: str(os.getpid())})
            self._begun.append(child)
            return child.wait()

    def end(self, begun: Any) -> None:
        begun.terminate()


class Elsewhere(Workers):
    """Workers that may be other machines: functions and what they take travel by pickle, images and runs by a disk."""

    def command(self, command: Sequence[str], log: Path) -> int:
        return self.call(run_command, command, log)

    @abstractmethod
    def call(self, function: Callable[..., T], *given: Any) -> T:
        """What the function returns on a worker. RunFailedError where it fails or the worker is lost."""


class Slurm(Elsewhere):
    """Jobs of a SLURM cluster, by submitit, at most `most` at a time; a job that its time limit or another one ends is
    queued again. parameters: those of submitit's AutoExecutor (timeout_min, gpus_per_node, mem_gb, slurm_partition and
    so on). cluster: "local" starts them on this machine."""

    def __init__(self, folder: Path, most: int = 32, cluster: str | None = None, **parameters: Any) -> None:
        super().__init__(most)
        submitit = _package("submitit")
        try:
            self._executor = submitit.AutoExecutor(folder=folder / "jobs", cluster=cluster)
            self._executor.update_parameters(**{"name": "ssl_lab", **parameters})
        except (RuntimeError, ValueError, TypeError, NameError) as error:
            raise UsageError(f"--workers slurm: {' '.join(str(error).split())}") from error
        self._turn = threading.Lock()

    def call(self, function: Callable[..., T], *given: Any) -> T:
        with self._turn:
            job = self._executor.submit(There(function), *given)
            self._begun.append(job)
        try:
            found = job.result()
        except Exception as error:  # of submitit: it ended without a result
            log = job.paths.stderr
            why = lost(error, log.read_text(errors="replace") if log.exists() else "")
            raise RunFailedError(f"job {job.job_id} was lost (see {log}): {why}") from error
        return _result(found)  # type: ignore[no-any-return]

    def end(self, begun: Any) -> None:
        begun.cancel(check=False)


class Ray(Elsewhere):
    """Tasks of a Ray cluster, at most `most` at a time: the one at `address` ("auto": that of this machine), or a new
    one of this machine alone. cpus, gpus: what each is given."""

    def __init__(self, address: str | None = None, most: int = 32, cpus: float = 1, gpus: float = 0) -> None:
        super().__init__(most)
        self._ray = ray = _package("ray")
        try:
            ray.init(address=address, ignore_reinit_error=True, include_dashboard=False, log_to_driver=False,
                     configure_logging=False)
        except (ConnectionError, ValueError, RuntimeError) as error:
            raise UsageError(f"--workers ray: {' '.join(str(error).split())}") from error
        self._there = ray.remote(_called).options(num_cpus=cpus, num_gpus=gpus, max_retries=0)

    def call(self, function: Callable[..., T], *given: Any) -> T:
        task = self._there.remote(There(function), *given)
        self._begun.append(task)
        try:
            found = self._ray.get(task)
        except self._ray.exceptions.RayError as error:
            raise RunFailedError(f"a task of Ray was lost: {lost(error)}") from error
        return _result(found)  # type: ignore[no-any-return]

    def end(self, begun: Any) -> None:
        self._ray.cancel(begun)


@dataclass(frozen=True)
class Failed:
    """What a worker returns in place of a result."""

    reason: str


class There:
    """A function as a worker calls it: in the folder in which this one was made. Errors are returned, as Failed."""

    def __init__(self, function: Callable[..., Any]) -> None:
        self.function, self.folder = function, Path.cwd()

    def __call__(self, *given: Any) -> Any:
        try:
            os.chdir(self.folder)
        except OSError:
            return Failed(f"{self.folder} is not on {socket.gethostname()}, but workers need one disk")
        try:
            return self.function(*given)
        except Exception as error:
            return Failed(_line(error))

    def checkpoint(self, *given: Any) -> Any:
        """What submitit queues again when a job is cut off: the same, which goes on by itself."""
        return _package("submitit").helpers.DelayedSubmission(self, *given)


def _result(found: Any) -> Any:
    if isinstance(found, Failed):
        raise RunFailedError(found.reason)
    return found


def _line(error: Exception) -> str:
    last = (str(error).strip().splitlines() or [""])[-1]
    return last if isinstance(error, UsageError | RunFailedError) else f"{type(error).__name__}: {last}"


def lost(error: Exception, written: str = "") -> str:
    """Why something ended without a result: the error that it wrote last, if any, else what is known of it here.

    >>> from ssl_lab.workers import lost
    >>> lost(ValueError("job failed"), "Traceback:\\nModuleNotFoundError: No module named 'timm'\\n")
    "ModuleNotFoundError: No module named 'timm'; a worker needs the packages that are here"
    """
    named = [line.strip() for line in written.splitlines() if re.match(r"[\w.]+(Error|Exception): ", line)]
    words = named[-1] if named else _line(error)
    return words + "; a worker needs the packages that are here" * ("No module named" in words)


def _called(there: There, *given: Any) -> Any:
    return there(*given)


def run_command(command: Sequence[str], log: Path) -> int:
    """The exit status of a command whose output goes to the end of `log`; it is told to save where this is stopped.

    RunFailedError where the log's folder, which whoever started this made, is not on this machine.
    """
    if not log.parent.is_dir():
        raise RunFailedError(f"{log.parent.absolute()} is not on {socket.gethostname()}: --out must be on a disk that "
                             "all workers share")
    with log.open("a") as file:
        child = subprocess.Popen(command, stdout=file, stderr=file, env=os.environ | {PARENT: str(os.getpid())})
        try:
            return child.wait()
        except BaseException:
            child.terminate()
            child.wait()
            raise


def workers_of(text: str, folder: Path) -> Workers:
    """What `--workers` means: a number of processes, slurm or ray, with arguments as in a call. UsageError otherwise.

    folder: of the study, where submitit keeps its files.

    >>> from pathlib import Path
    >>> from ssl_lab.workers import workers_of
    >>> workers_of("2", Path("runs")).count
    2
    """
    if text.strip().isdecimal():
        return Here(int(text))
    call = texts.read(text, "workers", EXAMPLE)
    if call.name not in KINDS:
        raise unknown("workers", call.name, KINDS, hint="; or a number of processes on this machine")
    try:
        return Slurm(folder, *call.args, **call.named) if call.name == "slurm" else Ray(*call.args, **call.named)
    except TypeError as error:
        raise UsageError(f"--workers {text}: {error}") from error


def _package(name: str) -> Any:
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise UsageError(f'--workers {"slurm" if name == "submitit" else name} needs {name}: '
                         'pip install "ssl_lab[cluster]"') from error
