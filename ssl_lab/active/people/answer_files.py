"""Files of answers, whatever wrote them: people in a spreadsheet, programs, Label Studio as JSON, JSON-MIN, CSV or TSV.

An `id` is a row of ours, but in what Label Studio wrote its own number of a task: there our id is `ssl_lab_id`, and an
image is also known by its path or URL. Where a row has an id of ours and a path, both must mean the same image.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ssl_lab.active.people.keys import ABSTAIN, IGNORE, Keys, UnknownImageError, is_path
from ssl_lab.active.people.votes import Vote, seconds_of
from ssl_lab.data.cells import read_table
from ssl_lab.errors import UsageError

ID = "ssl_lab_id"  # our id in the data of Label Studio's tasks
PATHS = ("path", "image", "file", "filename", "file_name", "filepath", "file_path", "img", "image_path", "image_url",
         "url")
_MARKS = {ID, "annotation_id", "lead_time"}  # columns that Label Studio writes, and nobody else
_PEOPLE = ("annotator", "completed_by", "user")
_NO_LABEL = {"", "id", "query_score", "created_at", "updated_at", "agreement", "was_cancelled", *_MARKS, *PATHS,
             *_PEOPLE}
Fields = Mapping[str, Any]


class NoAnswersError(UsageError):
    """A file that is no file of answers."""


@dataclass
class Said:
    """What a file says. tasks: how many images it lists; unknown: of which of them it is not known which they are, each
    with the place; empty: how many have no answer. label_studio: whether Label Studio wrote it."""

    votes: list[Vote] = field(default_factory=list)
    tasks: int = 0
    unknown: list[str] = field(default_factory=list)
    empty: int = 0
    label_studio: bool = False


def read_answers(path: Path, keys: Keys) -> Said:
    """What a file says of the images of a pool. NoAnswersError if it is no file of answers; UsageError if it says two
    things of one, or is for other images."""
    try:
        content = read_table(path)
    except UsageError as error:
        raise NoAnswersError(str(error)) from error
    if isinstance(content, dict):
        if isinstance(content.get("data"), dict) or isinstance(content.get("task"), dict):
            content = [content]
        elif not any(isinstance(label, dict | list) for label in content.values()):
            content = [{"id": key, "label": label} for key, label in content.items()]
    if not isinstance(content, list) or not all(isinstance(row, dict) for row in content):
        raise NoAnswersError(f"{path}: expected rows of id (or path) and label, or tasks of Label Studio")
    tasks = bool(content) and all(_data(row) is not None for row in content)
    return _tasks(content, keys, path) if tasks else _rows(content, keys, path)


def row_of(fields: Fields, keys: Keys, where: str, label_studio: bool = False) -> int | None:
    """The row of the pool that fields name by id or path; None if they name none. UsageError if id and path mean
    different images; UnknownImageError if there is a path alone, of no image or of several."""
    for value in fields.values() if label_studio else ():
        if isinstance(value, str) and value in keys.urls:
            return keys.urls[value]
    id_ = fields.get(ID, "") if label_studio else _first(fields, (ID, "id"))
    column = next((name for name in PATHS if not _blank(fields.get(name))), None)
    if column is None and label_studio:
        column = next((name for name, value in fields.items() if is_path(value)), None)
    if _blank(id_):
        return None if column is None else keys.id(fields[column], where)
    row = keys.id(id_, where)
    if column is None:
        return row
    path, known = str(fields[column]), bool(keys.pool.files)
    rows = keys.rows(path)
    if row in rows or not (rows or (known and (column == "path" or is_path(path)))):
        return row
    ours = f"{keys.pool.files[row]!r}" if known else f"row {row}"
    theirs = f" (id {rows[0]})" if rows else f", which {keys.pool.name} does not have"
    raise UsageError(f"{where}: id {row} is {ours}, but the {column} beside it is {path!r}{theirs}. The answers are "
                     "for other images, or images were added or removed since: keep the paths and leave the ids out")


def _tasks(tasks: Sequence[Fields], keys: Keys, path: Path) -> Said:
    """From tasks of Label Studio with their annotations, and annotations with their task."""
    said = Said(tasks=len(tasks), label_studio=True)
    for number, task in enumerate(tasks, start=1):
        data = _data(task) or {}
        where = f"{path}: task {task.get('id', number)}"
        annotations = [task] if "result" in task else task.get("annotations") or task.get("completions") or []
        try:
            row = row_of({str(name).lower(): value for name, value in data.items()}, keys, where, label_studio=True)
        except UnknownImageError as error:
            said.unknown.append(str(error))
            continue
        if row is None:
            said.unknown.append(f"{where} names no image")
            continue
        found = [vote for annotation in annotations if isinstance(annotation, dict)
                 for vote in _annotation(annotation, row, keys, where)]
        said.votes += found
        said.empty += not found
    return said


def _data(task: Fields) -> Fields | None:
    """The data of a task, or of the task of an annotation; None of what is neither."""
    inner = task.get("task", task) if "result" in task else task
    data = inner.get("data") if isinstance(inner, dict) else None
    return data if isinstance(data, dict) else None


def _annotation(annotation: Fields, row: int, keys: Keys, where: str) -> Iterator[Vote]:
    """The vote of an annotation; none if it was saved without a choice."""
    by_control: dict[str, list[Any]] = {}
    for part in annotation.get("result") or []:
        value = part.get("value") if isinstance(part, dict) else None
        if isinstance(value, dict) and "choices" in value:
            by_control.setdefault(str(part.get("from_name")), []).extend(_choices(value, keys))
    if len(by_control) > 1 and "label" not in by_control:
        raise UsageError(f"{where} has choices of {', '.join(by_control)}; name the control of the class `label`")
    choices = by_control.get("label") or next(iter(by_control.values()), [])
    yield from _vote([None] if annotation.get("was_cancelled") else choices, annotation, row, keys, where,
                     annotation.get("id"))


def _rows(rows: Sequence[Fields], keys: Keys, path: Path) -> Said:
    """From a table: a row for each answer. Label Studio's JSON-MIN and CSV have one for each annotation."""
    rows = [{str(name).strip().lower(): value for name, value in row.items()} for row in rows]
    columns = {name for row in rows for name in row}
    said = Said(label_studio=bool(columns & _MARKS) or any(
        "/data/upload/" in value or "/data/local-files/" in value for row in rows for value in row.values()
        if isinstance(value, str)) or ("annotator" in columns and bool(columns & {*PATHS[1:]})))
    if rows and not said.label_studio and not columns & {"id", *PATHS}:
        raise NoAnswersError(f"{path}: expected rows of id (or path) and label, found the columns "
                         f"{', '.join(sorted(columns - {''}))}")
    column = _label_column(rows, keys, path, said.label_studio)
    answered: dict[object, bool] = {}
    for place, fields in enumerate(rows, start=1):
        number = fields.get("", place)
        key = _first(fields, ("id", *PATHS)) if said.label_studio else _first(fields, ("id", ID, *PATHS))
        where = f"{path}, row {number}"
        task = key if said.label_studio and not _blank(key) else number
        try:
            row = row_of(fields, keys, where, said.label_studio)
        except UnknownImageError as error:
            said.unknown.append(str(error))
            continue
        choices = _choices(fields.get(column), keys) if column else []
        if row is None:
            if choices or said.label_studio:
                said.unknown.append(f"{where} names no image")
            continue
        found = list(_vote(choices, fields, row, keys, f"{where}: {key!r}", fields.get("annotation_id")))
        said.votes += found
        answered[task] = answered.get(task, False) or bool(found)
    said.tasks = len(answered) + len(said.unknown)
    said.empty = sum(not given for given in answered.values())
    return said


def _label_column(rows: Sequence[Fields], keys: Keys, path: Path, label_studio: bool) -> str | None:
    """`label`, or the only column that holds choices; None if nothing is answered."""
    columns = list(dict.fromkeys(name for row in rows for name in row))
    if "label" in columns or not rows:
        return "label"
    words = {*keys.pool.class_names, IGNORE, ABSTAIN}
    free = [name for name in columns if name not in _NO_LABEL]
    found = [name for name in free if any(
        isinstance(row.get(name), dict | list) or set(map(str, _choices(row.get(name), keys))) & words for row in rows)]
    if not found and label_studio:  # classes that the answers found
        found = [name for name in free if any(_choices(row.get(name), keys) and not is_path(row.get(name))
                                              for row in rows)]
        if not found:
            return None
    if len(found) != 1:
        what = f"the columns {', '.join(found)} all hold choices" if found else "no column holds any"
        raise NoAnswersError(f"{path}: expected rows of id (or path) and label; {what} of {', '.join(columns)}. Name "
                             "the one of the class `label`")
    return found[0]


def _choices(value: Any, keys: Keys) -> list[Any]:
    """The choices of a cell: a text, {"choices": [...]}, or JSON of that, or several of these; without missing ones."""
    if isinstance(value, str) and value not in keys.pool.class_names and value.lstrip()[:1] in ("{", "["):
        try:
            value = json.loads(value)
        except ValueError:
            return [value]
    if isinstance(value, dict):
        return _choices(value.get("choices"), keys)
    if isinstance(value, list):
        return [choice for each in value for choice in _choices(each, keys)]
    return [value] if keys.given(value) else []


def _vote(choices: Sequence[Any], fields: Fields, row: int, keys: Keys, where: str, annotation: Any) -> Iterator[Vote]:
    if len(dict.fromkeys(map(str, choices))) > 1:
        raise UsageError(f"{where} has the choices {', '.join(map(str, choices))}; expected one")
    if choices:
        who = _first(fields, _PEOPLE)
        if isinstance(who, dict):
            who = who.get("email") or who.get("id")
        when = _first(fields, ("updated_at", "created_at"))
        yield Vote(row, keys.answer(choices[0]), None if _blank(who) else str(who).strip(), seconds_of(when),
                   seconds_of(fields.get("created_at")), None if _blank(annotation) else str(annotation), where)


def _first(fields: Fields, names: Sequence[str]) -> Any:
    return next((fields[name] for name in names if not _blank(fields.get(name))), None)


def _blank(value: Any) -> bool:
    return value is None or (isinstance(value, str) and not value.strip()) or value != value  # the last of NaN
