"""Oracles: who answers. Known labels with noise and abstention, a file that grows, a command.

An oracle is a function of `Asked`. It returns a mapping id -> answer, or yields (id, answer) pairs, each of which is
durable before the next is waited for. What it leaves out is not answered yet. It is not asked again about what it has
answered: later corrections are told (`ActiveLoop.tell`).
"""

from __future__ import annotations

import csv
import io
import json
import shlex
import subprocess
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np

from ssl_lab.active.query import IntArray, rng
from ssl_lab.data import Pool
from ssl_lab.errors import UsageError
from ssl_lab.files import write_text

Answer = int | str | None
"""A class number or class name; -2 or "ignore": leave the image out; None or "abstain": the image stays unlabeled and
is not asked for again; -1: take the label back. A class of such a name wins."""

IGNORE, ABSTAIN = "ignore", "abstain"


@dataclass(frozen=True)
class Asked:
    """The images to be labeled: ids int64 [n], in selection order, and what was known when they were selected.

    paths: of the image files, "" where there are none. predicted, confidence, scores: the names of the net's classes,
    their probabilities, and the query's scores, [n] each; None where there are none. version: of the net. class_names:
    all that there are so far.
    """

    ids: IntArray
    paths: tuple[str, ...] = ()
    predicted: tuple[str, ...] | None = None
    confidence: tuple[float, ...] | None = None
    scores: tuple[float, ...] | None = None
    version: str | None = None
    class_names: tuple[str, ...] = ()


Oracle = Callable[[Asked], Mapping[int, Answer] | Iterable[tuple[int, Answer]]]


class Truth:
    """The pool's known labels. With probability `noise` a wrong one, drawn evenly from the other classes; with
    probability `abstain` none. An answer is a pure function of (seed, id): asking again changes nothing."""

    def __init__(self, pool: Pool, noise: float = 0.0, abstain: float = 0.0, seed: int = 0) -> None:
        if not (0 <= noise <= 1 and 0 <= abstain <= 1):
            raise UsageError(f"noise={noise:g}, abstain={abstain:g}: expected probabilities from 0 to 1")
        draws = rng(seed, "oracle").random((2, len(pool)))
        shift = rng(seed, "oracle/noise").integers(1, max(2, pool.classes), len(pool))
        self.pool = pool
        self._abstains = draws[0] < abstain
        self._labels = np.where(draws[1] < noise, (pool.truth + shift) % pool.classes, pool.truth)

    def __call__(self, asked: Asked) -> Mapping[int, Answer]:
        """UsageError if an image's label is not known."""
        unknown = asked.ids[self.pool.truth[asked.ids] < 0]
        if len(unknown):
            raise UsageError(f"the label of row {unknown[0]} of {self.pool.name} is not known ({len(unknown)} such "
                             "rows were asked for): only a person can answer, through a file, a command or `tell`")
        return {i: None if self._abstains[i] else int(self._labels[i]) for i in asked.ids.tolist()}


class FromFile:
    """Answers in a file that a person or program fills in, read anew each time.

    CSV with a header of `id` or `path`, and `label`; or JSON, an object {id or path: label} or a list of objects with
    those keys. A label is a class name, a class number, "ignore" (or -2) or "abstain"; an empty one is not given yet.
    Rows that were not asked for are passed over. UsageError for a file that cannot be read, names an unknown path, or
    gives an image two labels.
    """

    def __init__(self, path: str | Path, pool: Pool) -> None:
        self.path, self._keys = Path(path), Keys(pool)

    def __call__(self, asked: Asked) -> Mapping[int, Answer]:
        wanted = set(asked.ids.tolist())
        answers: dict[int, Any] = {}
        for number, (key, label) in enumerate(self._rows(), start=1):
            i = self._keys.id(key, where := f"{self.path}, row {number}")
            if label not in ("", None) and answers.setdefault(i, label) != label:
                raise UsageError(f"{where}: {key!r} is {label!r} there, but {answers[i]!r} before; expected one label")
        return {i: self._keys.answer(label) for i, label in answers.items() if i in wanted}

    def _rows(self) -> list[tuple[object, Any]]:
        if not self.path.exists():
            return []
        try:
            text = self.path.read_text(encoding="utf-8-sig")
            content = list(csv.DictReader(text.splitlines())) if self.path.suffix == ".csv" else json.loads(text)
        except (OSError, ValueError) as error:
            raise UsageError(f"cannot read the answers in {self.path}: {error}") from error
        if isinstance(content, dict):
            return list(content.items())
        if not isinstance(content, list) or not all(
                isinstance(row, dict) and "label" in row and ("id" in row or "path" in row) for row in content):
            raise UsageError(f"{self.path}: expected rows of id (or path) and label")
        return [(row["id"] if "id" in row else row["path"], row["label"]) for row in content]


def write_questions(path: Path, asked: Asked) -> None:
    """Writes a CSV file of the ids and paths for `FromFile`; its column `label` keeps what stands there already, and is
    else empty. UsageError if it cannot be written."""
    before = csv.DictReader(path.read_text(encoding="utf-8-sig").splitlines()) if path.exists() else ()
    filled = {row.get("id"): row.get("label") or "" for row in before}
    rows = io.StringIO()
    writer = csv.writer(rows, lineterminator="\n")
    writer.writerow(("id", "path", "label"))
    for i, image in zip(asked.ids.tolist(), asked.paths, strict=True):
        writer.writerow((i, image, filled.get(str(i), "")))
    write_text(path, rows.getvalue())


class Command:
    """A program that is run once for each request: it reads a JSON line {"id": 17, "path": "a.png", "predicted": "cat",
    "confidence": 0.4} for each image from its standard input and writes a line {"id": 17, "label": "dog"} for each
    answer, as soon as it has it; a label of null abstains. UsageError if it fails or writes something else."""

    def __init__(self, command: str | Sequence[str], pool: Pool) -> None:
        self.command = shlex.split(command) if isinstance(command, str) else list(command)
        self._keys = Keys(pool)

    def __call__(self, asked: Asked) -> Iterator[tuple[int, Answer]]:
        with tempfile.TemporaryFile("w+") as questions:  # a file: a pipe that is not read would block both sides
            for n, i in enumerate(asked.ids.tolist()):
                row = {"id": i, "path": asked.paths[n] if asked.paths else "",
                       "predicted": None if asked.predicted is None else asked.predicted[n],
                       "confidence": None if asked.confidence is None else asked.confidence[n]}
                questions.write(json.dumps(row) + "\n")
            questions.seek(0)
            yield from self._answers(questions)

    def _answers(self, questions: Any) -> Iterator[tuple[int, Answer]]:
        try:
            process = subprocess.Popen(self.command, stdin=questions, stdout=subprocess.PIPE, text=True)
        except OSError as error:
            raise UsageError(f"cannot run the oracle {shlex.join(self.command)}: {error.strerror}") from error
        with process:
            assert process.stdout is not None
            try:
                for line in process.stdout:
                    if line.strip():
                        yield self._answer(line)
            except BaseException:
                process.terminate()
                raise
        if process.returncode:
            raise UsageError(f"the oracle {shlex.join(self.command)} exited with status {process.returncode}; the "
                             "answers that it gave before are kept")

    def _answer(self, line: str) -> tuple[int, Answer]:
        try:
            row = json.loads(line)
            key, label = row["id"], row["label"]
        except (ValueError, KeyError, TypeError) as error:
            raise UsageError(f"the oracle {shlex.join(self.command)} wrote {line.strip()!r}; expected "
                             '{"id": ..., "label": ...} on each line') from error
        return self._keys.id(key, "the oracle's answer"), self._keys.answer(label)


class Keys:
    """From what stands in files to ids and answers."""

    def __init__(self, pool: Pool) -> None:
        self.pool = pool
        self._of_path = {path: i for i, path in enumerate(pool.files)}

    def id(self, key: object, where: str) -> int:
        """A row number, from itself, its decimal text or the image's path."""
        if isinstance(key, str) and key in self._of_path:
            return self._of_path[key]
        try:
            found = int(str(key))
        except ValueError:
            raise UsageError(f"{where}: {key!r} is neither an id nor the path of an image of "
                             f"{self.pool.name}") from None
        if not 0 <= found < len(self.pool):
            raise UsageError(f"{where}: id {found} is out of range; {self.pool.name} has {len(self.pool)} images")
        return found

    def answer(self, label: Any) -> Answer:
        """Names win: text is a number only if no class has that name."""
        if label is None or isinstance(label, int) or label in self.pool.class_names:
            return cast(Answer, label)
        if not isinstance(label, str):
            raise UsageError(f"a label is {label!r}; expected a class name, a class number, {IGNORE!r} or {ABSTAIN!r}")
        try:
            return int(label)
        except ValueError:
            return label
