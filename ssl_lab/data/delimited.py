"""The rows of a CSV file, whatever program wrote it: its encoding, its delimiter, its first line."""

from __future__ import annotations

import codecs
import csv
import gzip
import io
import re
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from ssl_lab.errors import UsageError

_DELIMITERS = (",", ";", "\t", "|")
_BOMS = ((codecs.BOM_UTF8, "utf-8-sig"), (codecs.BOM_UTF16_LE, "utf-16"), (codecs.BOM_UTF16_BE, "utf-16"))
_SAMPLE = 50


class Row(NamedTuple):
    """line: of the file, from 1, where the row ends. fields: without the spaces around them."""

    line: int
    fields: list[str]


def read_rows(path: Path) -> tuple[list[str], list[Row], list[str]]:
    """The first row, the others that are not empty, and notes. UsageError if the file cannot be read.

    Text is UTF-8, UTF-16 or, with a note, Windows-1252. Of comma, semicolon, tab and bar, that one delimits which parts
    most of the first rows in as many fields as the first row has, and in the most.
    """
    notes: list[str] = []
    try:
        content = gzip.decompress(path.read_bytes()) if path.suffix.lower() == ".gz" else path.read_bytes()
        text = re.sub(r"\Asep=.\s*\n", "", _decoded(content, path, notes))  # as Excel reads it
        delimiter = max(_DELIMITERS, key=lambda each: _fit(text, each))
        rows = [Row(line, fields) for line, fields in _rows(text, delimiter)]
    except (OSError, EOFError, zlib.error, UnicodeDecodeError) as error:
        raise UsageError(f"cannot read {path}: {error}") from error
    except csv.Error as error:
        raise UsageError(f"cannot read {path}: {error}. Is a double quote left open?") from error
    if not rows:
        raise UsageError(f"{path} is empty; expected a first line that names the columns, such as `path,label`")
    return rows[0].fields, rows[1:], notes


def _decoded(content: bytes, path: Path, notes: list[str]) -> str:
    encoding = next((name for mark, name in _BOMS if content.startswith(mark)), None)
    if encoding is None and len(content) > 3 and (zeros := content[:400].count(0)) > len(content[:400]) / 3:
        encoding = "utf-16-le" if content[1:400:2].count(0) * 2 > zeros else "utf-16-be"  # without its mark
    if encoding:
        return content.decode(encoding)
    try:
        return content.decode("utf-8")
    except UnicodeDecodeError:
        notes.append(f"{path.name} is not UTF-8 and is read as Windows-1252")
        return content.decode("cp1252", errors="replace")


def _rows(text: str, delimiter: str) -> list[tuple[int, list[str]]]:
    """Line numbers and stripped fields of all rows that hold something."""
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, skipinitialspace=True)
    stripped = ((reader.line_num, [field.strip() for field in fields]) for fields in reader)
    return [(line, fields) for line, fields in stripped if any(fields)]


def _fit(text: str, delimiter: str) -> tuple[int, int]:
    """How many of the first rows have as many fields as the first one, and how many these are; (0, 0) for one."""
    begin = "".join(text.splitlines(keepends=True)[:_SAMPLE])
    try:
        rows: Sequence[tuple[int, list[str]]] = _rows(begin, delimiter)
    except csv.Error:
        return 0, 0
    width = len(rows[0][1]) if rows else 0
    return (sum(len(fields) == width for _, fields in rows), width) if width > 1 else (0, 0)
