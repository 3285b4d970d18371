"""One table, three faces: the terminal (`rich.print(table)`), `table.html()` and `table.markdown()`."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import rich.box
import rich.table
from rich.console import Console, ConsoleOptions, RenderResult
from rich.text import Text

from ssl_lab.errors import UsageError
from ssl_lab.report.metrics import mean_and_spread
from ssl_lab.report.text import Markup, escape, printable

Cell = str | int | float | None
WIDE = 200  # characters of a line that goes into a pipe or a file
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
        def text(string: str) -> Text:  # not markup, and nothing that the terminal's encoding lacks
            return Text(printable(string).encode(options.encoding, "replace").decode(options.encoding))

        table = rich.table.Table(title=text(self.title), title_justify="left", title_style="bold",
                                 header_style="bold", box=rich.box.SIMPLE_HEAD, pad_edge=False,
                                 collapse_padding=True)
        rows = self.cells()
        # In a narrow terminal headings and names wrap before numbers do. If that does not suffice, all may:
        # nothing is cut off.
        unbroken = [[*column.name.split(), *(row[i] for row in rows)] if column.align == "right" else ["name"]
                    for i, column in enumerate(self.columns)]
        widths = [max(map(len, words), default=1) for words in unbroken]
        if sum(widths) + 2 * len(widths) + 2 > options.max_width:
            widths = [1] * len(widths)
        for column, width in zip(self.columns, widths, strict=True):
            table.add_column(text(column.name), justify=column.align, overflow="fold", min_width=width)
        for row in rows:
            table.add_row(*map(text, row))
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
        widths = [max(3, *(len(cell) for cell in column)) for column in zip(*rows, strict=True)]
        rules = ["-" * (width - 1) + (":" if column.align == "right" else "-")
                 for column, width in zip(self.columns, widths, strict=True)]
        rows.insert(1, rules)
        lines = [" | ".join(cell.rjust(width) if column.align == "right" else cell.ljust(width)
                            for cell, width, column in zip(row, widths, self.columns, strict=True))
                 for row in rows]
        return "".join(f"| {line} |\n" for line in lines)


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
    """Prints tables: on a terminal as wide as that is, and else as wide as they are, so that no name is broken.

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
