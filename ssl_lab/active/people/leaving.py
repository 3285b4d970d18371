"""`ssl-lab labels`: what people said leaves a folder as a CSV file."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import tyro

from ssl_lab.active.people.opinions import settled
from ssl_lab.active.people.votes import Agreement
from ssl_lab.data.label_file import labels_csv
from ssl_lab.errors import UsageError
from ssl_lab.files import write_text


def labels(source: Annotated[Path, tyro.conf.Positional], to: Path | None = None,
           agreement: Agreement = "newest") -> None:
    """Takes labels along: a CSV of path,label,source,when, for load, --split-file, --oracle FILE and everything else.

    Args:
        source: folder of an active-learning loop or of a run, or a ledger's file (labels.jsonl).
        to: the CSV file (default: printed). Paths are relative to its folder if the images lie below it, else whole;
            images without files have a column id in place of path. A label of -2 is an image to leave out.
        agreement: which answer counts where people who labeled together disagree: what most say (of a tie none), the
            first or the newest, none until they agree, or what is likeliest by how reliable each is (dawid-skene).
    """
    of_loop = ((source if source.is_dir() else source.parent) / "loop.json").exists()
    if of_loop and agreement != "newest":
        raise UsageError(f"{source} is of a loop, which asked one oracle: the loop's own --agreement says what counts "
                         "where people disagree")
    text, notes = labels_csv(source, Path() if to is None else to.parent,
                             None if of_loop else lambda entries: settled(entries, agreement))
    for note in notes:
        print(f"note: {note}", file=sys.stderr)
    if to is None:
        sys.stdout.write(text)
    else:
        write_text(to, text)
        print(f"{text.count(chr(10)) - 1} labels are in {to}")
