"""Runs of recipes, each a process with a folder of its own: started, waited for and resumed, here or by workers."""

from __future__ import annotations

import json
import math
import os
import sys
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from ssl_lab.engine.folder import same
from ssl_lab.errors import Interrupted, RunFailedError, UsageError
from ssl_lab.exits import BUSY
from ssl_lab.files import write_text
from ssl_lab.locks import is_taken
from ssl_lab.texts import names_module
from ssl_lab.workers import Here, Workers

MAY_DIFFER = {"out", "resume", "device", "data_dir", "remote_gb", "track",  # between a finished run and one to start
              "data", "image_size"}  # these because whoever starts runs holds their images together itself
PAUSE = 1.0  # seconds until a folder that another process has is looked at again


@dataclass(frozen=True)
class Job:
    """One run: a recipe, its settings, and the folder that it fills. flags: those of the settings that are given on the
    command line too, as no file may give them (see `config.may_run`)."""

    recipe: Path
    settings: Mapping[str, Any]
    out: Path
    flags: Mapping[str, str | Sequence[str]] = field(default_factory=dict)

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
                       if not same(before.get(key), self.settings.get(key))]
            if changed:
                raise UsageError(f"{self.out} holds a run with other settings ({', '.join(changed)}); "
                                 "take another --out, or delete that folder")
        content = {**self.settings, "out": str(self.out), "resume": "auto"}
        write_text(file, yaml.safe_dump(content, sort_keys=False))

    @property
    def command_line(self) -> list[str]:
        """What is on it: `flags`, and data of a module."""
        data = str(self.settings.get("data", ""))
        flags = {**self.flags, **({"data": data} if names_module(data) else {})}
        return [f"--{name}={each}" for name, value in flags.items()
                for each in ([value] if isinstance(value, str) else value)]

    def run(self, workers: Workers) -> None:
        """Runs or resumes it on one of the workers. RunFailedError has its last words.

        While another process has the folder, e.g. a run that outlived a killed comparison, it waits, with a word; what
        that one finished is not run again.
        """
        command = [sys.executable, str(self.recipe), "--config", str(self.out / "settings.yaml"), *self.command_line]
        waits = False
        while not workers.stopping.is_set():
            taken = is_taken(self.out)
            if waits and not taken and self.summary is not None:  # written before the folder is free
                return
            try:
                status = BUSY if taken else workers.command(command, self.out / "log.txt")
            except OSError as error:  # of a full disk, say: other runs may have room
                raise RunFailedError(f"{self.out.name} could not be started: {error}") from error
            if status != BUSY:
                break
            if not waits:
                print(f"note: another process writes into {self.out}; waiting for it", file=sys.stderr)
                waits = True
            workers.stopping.wait(PAUSE)
        else:
            status = 130
        if status == 130:
            raise Interrupted("stopped; the same command goes on")
        if status:
            raise RunFailedError(f"{self.out.name} {self._why(status)} (see {self.out / 'log.txt'})")

    def _why(self, status: int) -> str:
        if status < 0:
            return f"was killed by signal {-status}" + (", as systems do where memory runs out" if status == -9 else "")
        words = (self.out / "log.txt").read_text().strip().splitlines()[-1:]
        return "failed: " + (words[0] if words else f"with exit status {status}, and no words: is the disk full?")


def run_all(jobs: Sequence[Job], workers: Workers) -> list[str]:
    """Runs what is not finished on these workers; says what each gave. Returns why some failed.

    Ctrl-C and SIGTERM are handed on to the runs, which save, and become Interrupted when they are done; where this
    process is killed, the runs save and end as well.
    """
    for job in jobs:
        job.prepare()
    waiting = [job for job in jobs if job.summary is None]
    if isinstance(workers, Here) and workers.count > 1:  # their threads would wait for each other
        os.environ.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // workers.count)))
    failed = []
    with ThreadPoolExecutor(workers.count) as pool:
        started = {job.out: pool.submit(job.run, workers) for job in waiting}
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
            workers.stop(started.values())
            raise Interrupted("stopped; the same command goes on") from None
    return failed


def diverged(failure: str) -> bool:
    """Whether a run of `run_all` failed because its loss was not finite: an outcome of its settings."""
    return "not finite" in failure


def best(jobs: Sequence[Job], key: str) -> Job:
    """The finished job with the highest `key` in its summary. RunFailedError if none finished."""
    finished = [(job.summary[key], -number, job) for number, job in enumerate(jobs)
                if job.summary and job.summary[key] is not None]
    if not finished:
        raise RunFailedError(f"none of the {len(jobs)} runs in {jobs[0].out.parent} finished; see their log.txt")
    return max(finished)[-1]
