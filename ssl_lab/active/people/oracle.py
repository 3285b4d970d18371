"""Oracles: who answers. Known labels with noise and abstention, a file that grows, a command.

An oracle is a function of `Asked`. It returns a mapping id -> answer, or yields (id, answer) pairs, each of which is
durable before the next is waited for. What it leaves out is not answered yet. One that can also `read` all
that was ever answered is asked for that too: what was corrected since is taken.
"""

from __future__ import annotations

import json
import shlex
import subprocess
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np

from ssl_lab.active.people.answer_files import Said, read_answers, row_of
from ssl_lab.active.people.keys import Answer, Keys
from ssl_lab.active.people.votes import Agreed, Agreement, agree
from ssl_lab.active.queries.base import rng
from ssl_lab.active.queries.view import IntArray
from ssl_lab.data import Pool
from ssl_lab.data.cells import csv_text, read_table
from ssl_lab.errors import UsageError
from ssl_lab.files import write_text


@dataclass(frozen=True)
class Asked:
    """The images to be labeled: ids int64 [n], in selection order, and what was known when they were selected.

    Attributes:
        ids: int64 [n], global ids.
        paths: of the image files, "" where there are none.
        predicted, confidence, scores: the names of the net's classes, their probabilities, and the query's scores,
            [n] each; None where there are none.
        version: of the net.
        class_names: all that there are so far.
        stands_for: how many unlabeled images each stands for: those that are more like it than like another one
            asked for.

    >>> asked = sl.active.Asked(np.array([7, 3]), predicted=("cat", "dog"), confidence=(0.4, 0.5))
    >>> dict(zip(asked.ids.tolist(), asked.predicted))
    {7: 'cat', 3: 'dog'}
    """

    ids: IntArray
    paths: tuple[str, ...] = ()
    predicted: tuple[str, ...] | None = None
    confidence: tuple[float, ...] | None = None
    scores: tuple[float, ...] | None = None
    version: str | None = None
    class_names: tuple[str, ...] = ()
    stands_for: tuple[int, ...] | None = None


Oracle = Callable[[Asked], Mapping[int, Answer] | Iterable[tuple[int, Answer]]]


@runtime_checkable
class Readable(Protocol):
    """An oracle that keeps all its answers where they can be corrected."""

    def read(self) -> Mapping[int, Answer]:
        """What it says now of all that was ever asked, and perhaps of more."""
        ...


class Truth:
    """The pool's known labels. With probability `noise` a wrong one, drawn evenly from the other classes; with
    probability `abstain` none. An answer is a pure function of (seed, id): asking again changes nothing.

    Args:
        pool: whose labels are known.
        noise, abstain: probabilities, in [0, 1].
        seed: what the answers go by.

    >>> pool = sl.load("digits").split(labels=10)
    >>> answers = dict(sl.active.Truth(pool)(sl.active.Asked(np.array([7, 8, 9]))))
    >>> answers == {row: pool.truth[row] for row in (7, 8, 9)}
    True
    """

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

    A table (CSV with any usual delimiter, TSV, JSON, JSON lines) of `id` or `path`, and `label`; or a JSON object
    {id or path: label}; or an export of Label Studio; see `read_answers`. A label is a class name, a class number,
    "ignore" (or -2) or "abstain"; an empty one, or a word for a missing value, is not given yet. Several people may
    answer, each under a name in `annotator`; see `agree`. Rows that were not asked for are passed over. UsageError for
    a file that cannot be read, names an unknown path, or gives an image two labels without saying who. notes: what a
    person should be told of the last reading.

    Args:
        path: of the file, which need not be there yet.
        pool: whose images are asked for.
        agreement: see `agree`.

    >>> from pathlib import Path
    >>> written = Path("answers.csv").write_text("id,label" + chr(10) + "7,3" + chr(10))
    >>> sl.active.FromFile("answers.csv", sl.load("digits"))(sl.active.Asked(np.array([7, 8])))
    {7: '3'}
    """

    def __init__(self, path: str | Path, pool: Pool, agreement: Agreement = "majority") -> None:
        self.path, self.agreement, self._keys = Path(path), agreement, Keys(pool)
        self.notes: list[str] = []

    def __call__(self, asked: Asked) -> Mapping[int, Answer]:
        wanted = set(asked.ids.tolist())
        return {i: answer for i, answer in self.read().items() if i in wanted}

    def read(self) -> dict[int, Answer]:
        """All that the file says now."""
        self.notes = []
        if not self.path.exists():
            return {}
        said = read_answers(self.path, self._keys)
        if said.unknown and not said.label_studio:
            raise UsageError(said.unknown[0])
        agreed = agree(said.votes, self.agreement)
        if said.label_studio:
            self.notes.append(f"{self.path}: {counted(said)}")
        self.notes += differing(agreed, self.agreement)
        return agreed.answers


def counted(said: Said) -> str:
    """How much of a file could be read."""
    first = f" (the first: {said.unknown[0]})" if said.unknown else ""
    return (f"{said.tasks} tasks read, {len(said.unknown)} without a known image{first}, {said.empty} without a "
            "choice")


def differing(agreed: Agreed, how: Agreement) -> list[str]:
    """A line on the images of which people say different things, if there are any."""
    if not agreed.disagreed:
        return []
    settled = len(agreed.disagreed) - len(agreed.open)
    rows = ", ".join(map(str, agreed.open[:10])) + (", ..." if len(agreed.open) > 10 else "")
    left = f"; {len(agreed.open)} stay without an answer until people agree (id {rows})" if agreed.open else ""
    return [f"people disagree on {len(agreed.disagreed)} images: {settled} settled by --agreement {how}{left}"]


def write_questions(path: Path, asked: Asked) -> None:
    """Writes a CSV file of the ids and paths for `FromFile`, and of how many images each stands for, if that is known;
    its column `label` keeps what stands there already, and is else empty. UsageError if it cannot be written."""
    before = read_table(path) if path.exists() else ()
    filled = {str(row.get("id", "")): row.get("label") or "" for row in before if isinstance(row, dict)}
    columns: dict[str, Sequence[object]] = {"id": asked.ids.tolist(), "path": asked.paths}
    if asked.stands_for is not None:
        columns["stands_for"] = asked.stands_for
    columns["label"] = [filled.get(str(i), "") for i in asked.ids.tolist()]
    write_text(path, csv_text(tuple(columns), [*zip(*columns.values(), strict=True)]))


class Command:
    """A program that is run once for each request: it reads a JSON line {"id": 17, "path": "a.png", "predicted": "cat",
    "confidence": 0.4} for each image from its standard input and writes a line {"id": 17, "label": "dog"} for each
    answer, as soon as it has it; a label of null abstains, and a word for a missing one, such as "" or "nan", is none
    yet. With a path in place of the id, or beside it. UsageError if it fails or writes something else.

    Args:
        command: the program and its arguments, as one text or a list.
        pool: whose images are asked for.

    >>> say = "import json, sys; print(json.dumps({'id': json.loads(next(sys.stdin))['id'], 'label': '3'}))"
    >>> dict(sl.active.Command(["python3", "-c", say], sl.load("digits"))(sl.active.Asked(np.array([7]))))
    {7: '3'}
    """

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
            process = subprocess.Popen(self.command, stdin=questions, stdout=subprocess.PIPE, text=True,
                                       encoding="utf-8", errors="surrogateescape")
        except OSError as error:
            raise UsageError(f"cannot run the oracle {shlex.join(self.command)}: {error.strerror}") from error
        with process:
            assert process.stdout is not None
            try:
                for line in process.stdout:
                    if line.strip():
                        yield from self._answer(line)
            except BaseException:
                process.terminate()
                raise
        if process.returncode:
            raise UsageError(f"the oracle {shlex.join(self.command)} exited with status {process.returncode}; the "
                             "answers that it gave before are kept")

    def _answer(self, line: str) -> Iterator[tuple[int, Answer]]:
        try:
            row = json.loads(line)
            fields, label = {name: row[name] for name in ("id", "path") if name in row}, row["label"]
        except (ValueError, KeyError, TypeError):
            fields, label = {}, None
        i = row_of(fields, self._keys, f"the oracle's answer {line.strip()}")
        if i is None:
            raise UsageError(f"the oracle {shlex.join(self.command)} wrote {line.strip()!r}; expected "
                             '{"id": ..., "label": ...} on each line')
        if label is None or self._keys.given(label):
            yield i, self._keys.answer(label)
