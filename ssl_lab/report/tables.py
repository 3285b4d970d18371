"""One table, three faces: the terminal (`rich.print(table)`), `table.html()` and `table.markdown()`."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import rich.box
import rich.table
from rich.cells import cell_len
from rich.console import Console, ConsoleOptions, RenderResult
from rich.text import Text

from ssl_lab.errors import UsageError
from ssl_lab.report.metrics import mean_and_spread
from ssl_lab.report.text import Markup, escape, printable

Cell = str | int | float | None
WIDE = 2**16  # characters of a line that goes into a pipe or a file: as many as it has
SPACE = 2  # between columns, and one on each side
MISSING = "–"  # noqa: RUF001 (an en dash: the typographer's empty cell)


@dataclass(frozen=True)
class Column:
    """A heading, where its cells stand, and the format specification of its numbers, e.g. ".1f" or ".1%".

    Attributes:
        name: the heading.
        align: "left" or "right".
        format: of its numbers, e.g. ".1f" or ".1%"; "" shows them as they are.

    >>> sl.report.Column("accuracy", "right", ".1%").format
    '.1%'
    """

    name: str
    align: Literal["left", "right"] = "left"
    format: str = ""

    def show(self, cell: Cell) -> str:
        """The text of a cell: numbers by `format`; None and non-finite numbers as a dash."""
        if isinstance(cell, str):
            return printable(cell)
        return MISSING if cell is None or not np.isfinite(cell) else format(cell, self.format)


@dataclass(frozen=True)
class Table:
    """A title, columns and rows; the first column names the row. A row of another length is a UsageError.

    Attributes:
        title: above it.
        columns: one or more.
        rows: a cell for each column.

    >>> columns = [sl.report.Column("method"), sl.report.Column("accuracy", "right", ".1%")]
    >>> table = sl.report.Table("Digits", columns, [("fixmatch", 0.764), ("supervised", 0.644)])
    >>> [row[0] for row in table.rows]
    ['fixmatch', 'supervised']
    """

    title: str
    columns: Sequence[Column]
    rows: Sequence[Sequence[Cell]]

    def __post_init__(self) -> None:
        for row in self.rows:
            if len(row) != len(self.columns):
                raise UsageError(f"a row of table {self.title!r} has {len(row)} cells, expected "
                                 f"{len(self.columns)}: {list(row)}. Give one cell a column, None if empty.")

    def cells(self) -> list[list[str]]:
        """The rows as text."""
        return [[column.show(cell) for column, cell in zip(self.columns, row, strict=True)]
                for row in self.rows]

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        """Where it is wider than the console, headings and sentences wrap, at spaces; if that does not suffice, it is
        cut into tables of some columns each, which all begin with the names of the rows. Nothing is cut off, and a
        number or a name is broken only where it is too long for any line."""
        def text(string: str) -> Text:  # not markup, and nothing that the terminal's encoding lacks
            return Text(printable(string).encode(options.encoding, "replace").decode(options.encoding))

        yield Text.styled(text(self.title).plain, "bold")
        rows = self.cells()
        for part in _parts([[column.name, *(row[i] for row in rows)] for i, column in enumerate(self.columns)],
                           [i > 0 and column.align == "left" for i, column in enumerate(self.columns)],
                           options.max_width):
            table = rich.table.Table(header_style="bold", box=rich.box.SIMPLE_HEAD, pad_edge=False,
                                     collapse_padding=True)
            for place, width in part.items():
                column = self.columns[place]
                table.add_column(text(column.name), justify=column.align, overflow="fold", width=width)
            for row in rows:
                table.add_row(*(text(row[place]) for place in part))
            yield table

    def html(self) -> Markup:
        """A `<table>` with a caption; right-aligned cells have the class `right`."""
        def cell(tag: str, column: Column, content: str) -> str:
            right = ' class="right"' if column.align == "right" else ""
            return f"<{tag}{right}>{escape(content)}</{tag.split()[0]}>"

        def line(tags: list[str], row: Sequence[str]) -> str:
            return "<tr>" + "".join(map(cell, tags, self.columns, row)) + "</tr>"

        others = len(self.columns) - 1
        head = line(['th scope="col"'] * (1 + others), [column.name for column in self.columns])
        body = "\n".join(line(['th scope="row"'] + ["td"] * others, row) for row in self.cells())
        return Markup(f"<table>\n<caption><span>{escape(self.title)}</span></caption>\n"
                      f"<thead>{head}</thead>\n<tbody>\n{body}\n</tbody>\n</table>")

    def markdown(self) -> str:
        """A GitHub-flavored Markdown table, without the title, padded so that its source reads as a table."""
        rows = [[_markdown_escape(cell) for cell in row]
                for row in [[printable(column.name) for column in self.columns], *self.cells()]]
        widths = [max(3, _widest(column)) for column in zip(*rows, strict=True)]
        rules = ["-" * (width - 1) + (":" if column.align == "right" else "-")
                 for column, width in zip(self.columns, widths, strict=True)]
        rows.insert(1, rules)
        spaces = [[" " * (width - cell_len(cell)) for cell, width in zip(row, widths, strict=True)] for row in rows]
        lines = [" | ".join(space + cell if column.align == "right" else cell + space
                            for cell, space, column in zip(row, beside, self.columns, strict=True))
                 for row, beside in zip(rows, spaces, strict=True)]
        return "".join(f"| {line} |\n" for line in lines)


def _parts(columns: Sequence[Sequence[str]], wraps: Sequence[bool], width: int) -> Iterator[dict[int, int]]:
    """Tables of at most so many characters: for each, its columns and how wide these are. columns: the heading and the
    cells of each. wraps: whether its cells may, at spaces; headings always may."""
    room = max(width - SPACE * 2, 2)  # of two columns
    least = [min(_widest([*heading.split(), *(word for cell in cells for word in (cell.split() if may else [cell]))]),
                 room // 2 if may else room) for (heading, *cells), may in zip(columns, wraps, strict=True)]
    if least[0] + max(least[1:], default=0) > room:
        least[0] = min(least[0], room // 2)
    wanted, others = list(map(_widest, columns)), list(range(1, len(columns)))
    while True:
        part = {0: least[0]}
        for place in others:
            if sum(part.values()) + least[place] + SPACE * (len(part) + 1) <= width:
                part[place] = least[place]
            else:
                break
        if others and len(part) == 1:  # a number as wide as most of the line
            number = min(least[others[0]], max(3 * room // 4, 1))
            part = {0: min(least[0], room - number), others[0]: number}
        while sum(part.values()) < width - SPACE * len(part) and (
                narrow := [place for place in part if part[place] < wanted[place]]):
            part[min(narrow, key=part.__getitem__)] += 1
        yield {place: max(size, 1) for place, size in part.items()}
        others = others[len(part) - 1:]
        if not others:
            return


def _widest(texts: Iterable[str]) -> int:
    return max(map(cell_len, texts), default=0)


def _markdown_escape(text: str) -> str:
    return re.sub(r"([\\`*\[\]<>|])", r"\\\1", text)


def mean_spread(values: Sequence[float], percent: bool = True) -> str:
    """Mean ± sample standard deviation over runs, e.g. "76.3 ± 2.1"; of a single run only "76.3".

    No values, or one that is not finite, gives a dash.

    Args:
        values: one of each run.
        percent: the values are fractions in [0, 1] and are shown times 100, with one decimal; otherwise they are shown
            as they are, with three significant digits.

    >>> sl.report.mean_spread([0.76, 0.78, 0.74]), sl.report.mean_spread([0.76])
    ('76.0 ± 2.0', '76.0')
    """
    if not len(values) or not np.all(np.isfinite(values)):
        return MISSING
    shown = [f"{100 * number:.1f}" if percent else f"{number:.3g}"
             for number in map(float, mean_and_spread(values)) if np.isfinite(number)]
    return " ± ".join(shown)


def print_tables(*tables: Table) -> None:
    """Prints tables: into a pipe or a file as wide as they are, a line for each row; on a terminal (or with COLUMNS in
    the environment) no wider than that, in parts if need be, each with the names of the rows.

    >>> columns = [sl.report.Column("method"), sl.report.Column("accuracy", "right", ".1%")]
    >>> sl.report.print_tables(sl.report.Table("Digits", columns, [("fixmatch", 0.764)]))
    Digits
     method    accuracy
     ──────────────────
     fixmatch     76.4%
    """
    console = Console(width=None if sys.stdout.isatty() or "COLUMNS" in os.environ else WIDE)
    for table in tables:
        console.print(table)
