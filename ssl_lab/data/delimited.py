"""The rows of a CSV file, whatever program wrote it: its encoding, its delimiter, its first line."""

from __future__ import annotations

import codecs
import csv
import gzip
import io
import re
import zlib
from pathlib import Path
from typing import NamedTuple

from ssl_lab.errors import UsageError

_DELIMITERS = ",;\t|"
_BOMS = {codecs.BOM_UTF8: "utf-8-sig", codecs.BOM_UTF16_LE: "utf-16", codecs.BOM_UTF16_BE: "utf-16"}
_TOLD = re.compile(r'"?sep=(.)"?\s*\n', re.IGNORECASE)  # as Excel has it
LONE = re.compile("[\udc80-\udcff]")  # bytes that are no UTF-8, as Python keeps them
_SAMPLE = 50


class Row(NamedTuple):
    """line: of the file, from 1, where the row ends. fields: without the spaces around them."""

    line: int
    fields: list[str]


def read_rows(path: Path) -> tuple[list[str], list[Row], list[str]]:
    """The first row, the others that are not empty, and notes. UsageError if the file cannot be read.

    Text is UTF-8, UTF-16 or, with a note, Windows-1252; for the delimiter see `records`.
    """
    notes: list[str] = []
    try:
        content = gzip.decompress(path.read_bytes()) if path.suffix.lower() == ".gz" else path.read_bytes()
        text = decoded(content)
        if LONE.search(text):
            notes.append(f"{path.name} is not UTF-8 and is read as Windows-1252")
        rows = [Row(line, [field.strip() for field in fields]) for line, fields in records(legacy(text), spaces=False)]
    except (OSError, EOFError, zlib.error, UnicodeDecodeError) as error:
        raise UsageError(f"cannot read {path}: {error}") from error
    except csv.Error as error:
        raise UsageError(f"cannot read {path}: {error}. Is a double quote left open?") from error
    if not rows:
        raise UsageError(f"{path} is empty; expected a first line that names the columns, such as `path,label`")
    return rows[0].fields, rows[1:], notes


def decoded(content: bytes) -> str:
    """A file's text. Bytes that are no UTF-8 stay in it as `os.fsdecode` has them; `legacy` reads them."""
    for mark, encoding in _BOMS.items():
        if content.startswith(mark):
            return content.decode(encoding, "surrogateescape" if mark == codecs.BOM_UTF8 else "strict")
    for start, encoding in ((1, "utf-16-le"), (0, "utf-16-be")):  # without a mark, half of Latin text is zeros
        if len(content) > 1 and content[start::2].count(0) > len(content) / 4:
            return content.decode(encoding)
    return content.decode("utf-8", "surrogateescape")


def legacy(text: str) -> str:
    """The text with bytes that are no UTF-8 read as Windows-1252, which old spreadsheets write."""
    if not LONE.search(text):
        return text
    return text.encode("utf-8", "surrogateescape").decode("cp1252", "replace")


def records(text: str, spaces: bool = True) -> list[tuple[int, list[str]]]:
    """The rows of a CSV text that hold something, each with the line on which it ends. csv.Error for what is none.

    The delimiter is the one that a first line tells (sep=;), or of comma, semicolon, tab and bar the one that parts
    most of the first rows in as many fields as the first row has, and in the most. spaces: whether those before a field
    are part of it.
    """
    told = _TOLD.match(text)
    if told:
        text = text[told.end():]
    delimiter = told[1] if told else max(_DELIMITERS, key=lambda each: _fit(text, each))
    return _rows(text, delimiter, spaces)


def _rows(text: str, delimiter: str, spaces: bool) -> list[tuple[int, list[str]]]:
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, skipinitialspace=not spaces)
    return [(reader.line_num, fields) for fields in reader if any(field.strip() for field in fields)]


def _fit(text: str, delimiter: str) -> tuple[int, int]:
    """How many of the first rows have as many fields as the first one, and how many these are; (0, 0) for one."""
    begin = "".join(text.splitlines(keepends=True)[:_SAMPLE])
    try:
        rows = _rows(begin, delimiter, spaces=False)
    except csv.Error:
        return 0, 0
    width = len(rows[0][1]) if rows else 0
    return (sum(len(fields) == width for _, fields in rows), width) if width > 1 else (0, 0)
