"""Tables as people and programs write them: CSV and TSV of any spreadsheet, JSON, JSON lines. What a cell begins with
can make a spreadsheet run it, and file names need not be UTF-8: both ways are lossless."""

from __future__ import annotations

import csv
import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ssl_lab.data.delimited import LONE, decoded, records
from ssl_lab.errors import UsageError

_NO_TEXT = {b"PK\x03\x04": "a zip file or an Excel workbook; unzip it, or save it as CSV",
            b"\xd0\xcf\x11\xe0": "an Excel workbook; save it as CSV"}
_FORMULA = re.compile("'*[=+\\-@\t\r]")  # what a spreadsheet would run, perhaps with our marks before it
_NUMBER = re.compile(r"[+-]?[0-9]+(\.[0-9]*)?")
_TO_QUOTE = re.compile('^ |[",;\t|\r\n]| $')
_WRITTEN = re.compile(r"\\udc[89a-f][0-9a-f]")


def read_table(path: Path) -> Any:
    """What a file holds: of JSON as it is (of JSON lines a list), of CSV a list of a dict for each row.

    CSV: the delimiter (comma, semicolon, tab, bar) and the encoding (UTF-8, UTF-16, Windows-1252) are found out; names
    of columns are stripped and in lower case; rows without any content are left out, each other one has its number,
    from 1, under the key "" (no column's). UsageError for what is no such text, and for a row with more cells than
    there are columns.
    """
    try:
        content = path.read_bytes()
    except OSError as error:
        raise UsageError(f"cannot read {path}: {error.strerror}") from error
    what = next((what for start, what in _NO_TEXT.items() if content.startswith(start)), None)
    if what is not None:
        raise UsageError(f"{path} is {what}")
    try:
        text = decoded(content)
    except UnicodeDecodeError:
        text = "\0"
    if "\0" in text:
        raise UsageError(f"{path} is no text")
    if text.lstrip()[:1] in ("[", "{") or path.suffix.lower() in (".json", ".jsonl"):
        return _json(text, path)
    return rows_of(text, str(path))


def rows_of(text: str, where: str) -> list[dict[str, Any]]:
    """The rows of a CSV text; see `read_table`."""
    try:
        lines = [line for _, line in records(text)]
    except csv.Error as error:
        raise UsageError(f"cannot read {where}: {error}") from error
    columns = [cell.strip().lower() for cell in lines[0]] if lines else []
    rows = []
    for number, line in enumerate(lines[1:], start=1):
        if any(cell.strip() for cell in line[len(columns):]):
            raise UsageError(f"{where}, row {number}: {len(line)} cells under the {len(columns)} columns "
                             f"{', '.join(columns)}; quote cells that hold the delimiter")
        cells = [*map(plain, line), *[""] * len(columns)]
        row: dict[str, Any] = {"": number}
        for column, cell in zip(columns, cells, strict=False):
            row.setdefault(column, cell)
        rows.append(row)
    return rows


def _json(text: str, path: Path) -> Any:
    try:
        return json.loads(text or "[]")
    except ValueError as error:
        lines = [line for line in text.splitlines() if line.strip()]
        try:
            return [json.loads(line) for line in lines]
        except ValueError:
            raise UsageError(f"cannot read {path}: {error}") from error


def csv_text(columns: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """A CSV text that no spreadsheet runs and that is UTF-8 whatever the cells hold; `read_table` gives them back."""
    return "".join(",".join(_quoted(safe(str(cell))) for cell in row) + "\n" for row in (columns, *rows))


def _quoted(cell: str) -> str:
    return '"' + cell.replace('"', '""') + '"' if _TO_QUOTE.search(cell) else cell  # csv.writer would leave out \r


def safe(cell: str) -> str:
    """A cell that a spreadsheet shows and does not run: with a ' before what would be a formula."""
    cell = LONE.sub(lambda byte: f"\\u{ord(byte[0]):x}", cell)
    return "'" + cell if _FORMULA.match(cell) and not _NUMBER.fullmatch(cell) else cell


def plain(cell: str) -> str:
    """What `safe` was given, but for the escapes of bytes: a name may hold such text; see `unescaped`."""
    return cell[1:] if cell.startswith("'") and _FORMULA.match(cell) else cell


def unescaped(cell: str) -> str:
    """The cell with bytes that are no UTF-8 in place of their escapes."""
    return _WRITTEN.sub(lambda escape: chr(int(escape[0][2:], 16)), cell)
