"""`ssl-lab predict`: the classes of new images, as a table, as folders, or as tasks for people."""

from __future__ import annotations

import csv
import json
import os
import shutil
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Annotated, Literal, TextIO
from urllib.parse import quote

import tyro

from ssl_lab import model as models
from ssl_lab.config import AS_USUAL
from ssl_lab.data.cells import safe
from ssl_lab.data.pictures import find_pictures
from ssl_lab.data.remote import is_address
from ssl_lab.errors import UsageError
from ssl_lab.files import make_folder, write_text
from ssl_lab.predictions import Predictions

Format = Literal["csv", "jsonl", "folders", "label-studio"]
Write = Callable[[Predictions, int], None]
UNSURE = "_unsure"
"""The folder of images whose class is not given."""


def predict(run: Annotated[Path, tyro.conf.Positional], paths: Annotated[tuple[str, ...], tyro.conf.Positional],
            to: Format = "csv", out: Path | None = None, top: int = 1, threshold: float = 0.0,
            coverage: float | None = None, mirror: bool = False, data_dir: Path | None = None,
            remote_gb: float = AS_USUAL.remote_gb, device: str = "auto") -> None:
    """The classes of new images by a finished run, with probabilities that are calibrated where the run had validation
    images.

    Images are turned, resized and cut as those that the run was trained on. One that cannot be read is a row that says
    why.

    Args:
        run: folder of the run.
        paths: image files, folders, patterns such as "new/*.jpg", .tar and .npy files, and addresses (s3://, gs://,
            hf://, https://) of these; - reads them from standard input, a line each.
        to: csv or jsonl, a row for each image; folders, a copy of each image in the folder of its class; label-studio,
            tasks with the guess preselected.
        out: the file, or the folder (default: csv and jsonl are printed).
        top: so many classes for each image, the likeliest first.
        threshold: give a class only if it is at least so probable.
        coverage: also a set of classes that holds the right one so often, e.g. 0.95.
        mirror: take the mean of an image and its mirror image, where these are of one class, in twice the time.
        data_dir: where copies of what lies at an address are kept (default: $SSL_LAB_DATA, else ~/.cache/ssl_lab).
        remote_gb: gigabytes that may be copied to this machine from an address.
        device: cpu, cuda, or auto.
    """
    if top < 1:
        raise UsageError(f"--top {top}: expected 1 or more")
    if not paths:
        raise UsageError("which images? Give files, folders, patterns, or - for paths on standard input")
    model = models.open(run, device, mirror=mirror)
    pictures = find_pictures(paths, model.card.style.channels, data_dir, remote_gb)
    seen: Counter[str] = Counter()
    begun = time.perf_counter()
    with ExitStack() as stack:
        write = _WRITERS[to](stack, out, model.classes, top)
        for part in _watched(model.stream(pictures, threshold, coverage), pictures.known):
            for row, label in enumerate(part.labels):
                seen["unreadable" if part.reasons[row] is not None else "unsure" if label is None else "given"] += 1
                write(part, row)
    seconds = time.perf_counter() - begun
    total = seen.total()
    notes = [f"{seen[kind]:,} {what}" for kind, what in (
        ("unsure", f"below {threshold:g} without a class"), ("unreadable", "cannot be read")) if seen[kind]]
    notes += [f"passed over: {', '.join(f'{count} {kind}' for kind, count in pictures.passed_over.items())}"
              ] if pictures.passed_over else []
    notes.append(f"probabilities: {model.card.calibration.said}")
    print(f"{total:,} images in {seconds:.1f} s, {total / seconds:,.0f} a second; {'; '.join(notes)}", file=sys.stderr)


def _watched(parts: Iterator[Predictions], total: int | None) -> Iterator[Predictions]:
    """The same, with a bar on a terminal."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    console = Console(stderr=True)
    with Progress(TextColumn("predicting"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn(), console=console,
                  transient=True, disable=not console.is_terminal) as progress:
        task = progress.add_task("", total=total)
        for part in parts:
            yield part
            progress.advance(task, len(part))


def _file(stack: ExitStack, out: Path | None) -> TextIO:
    if out is None:
        return sys.stdout
    make_folder(out.parent)
    try:
        return stack.enter_context(out.open("w", encoding="utf-8", errors="surrogateescape", newline=""))
    except OSError as error:
        raise UsageError(f"cannot write {out}: {error.strerror}") from error


def _csv(stack: ExitStack, out: Path | None, classes: tuple[str, ...], top: int) -> Write:
    table = csv.writer(_file(stack, out), lineterminator="\n")
    further = [name for place in range(2, top + 1) for name in (f"label_{place}", f"probability_{place}")]
    table.writerow(["path", "label", "probability", *further, "set", "note"])

    def write(found: Predictions, row: int) -> None:
        best = found.top(row, top)
        label, note = found.labels[row], found.reasons[row] or ""
        if label is None and best:
            note = f"below the threshold: {best[0][0]}"
        rest = [cell for name, p in best[1:] for cell in (name, f"{p:.4f}")]
        cells = [found.names[row], label or "", f"{best[0][1]:.4f}" if best else "", *rest]
        cells += [""] * (len(further) + 3 - len(cells))
        table.writerow([safe(cell) for cell in (*cells, "|".join(found.set_of(row) or ()), note)])

    return write


def _jsonl(stack: ExitStack, out: Path | None, classes: tuple[str, ...], top: int) -> Write:
    file = _file(stack, out)

    def write(found: Predictions, row: int) -> None:
        best = found.top(row, top)
        line = {"path": found.names[row], "label": found.labels[row], "probability": best[0][1] if best else None,
                "top": [{"label": name, "probability": p} for name, p in best], "set": found.set_of(row),
                "error": found.reasons[row]}
        file.write(json.dumps(line) + "\n")

    return write


def _folders(stack: ExitStack, out: Path | None, classes: tuple[str, ...], top: int) -> Write:
    if out is None:
        raise UsageError("--to folders needs --out FOLDER, where a folder for each class is made")
    make_folder(out)

    def write(found: Predictions, row: int) -> None:
        path = Path(found.names[row])
        if found.reasons[row] is None:
            if not path.is_file():
                raise UsageError(f"--to folders copies files, and {path} is none; take --to csv")
            folder = out / _as_folder(found.labels[row] or UNSURE)
            make_folder(folder)
            _copy(path, folder)

    return write


def _as_folder(name: str) -> str:
    """A class's name as that of one folder, wherever it comes from."""
    return name.replace("/", "_").replace("\\", "_").replace("\0", "_").lstrip(".") or "_"


def _copy(path: Path, folder: Path) -> None:
    """A copy of the file in the folder, under another name if there is another file of its name."""
    target, number = folder / path.name, 1
    while target.exists():
        if target.stat().st_size == path.stat().st_size and target.read_bytes() == path.read_bytes():
            return
        number += 1
        target = folder / f"{path.stem}-{number}{path.suffix}"
    shutil.copy2(path, target)


def _label_studio(stack: ExitStack, out: Path | None, classes: tuple[str, ...], top: int) -> Write:
    from ssl_lab.active.people.label_studio import label_config

    if out is None:
        raise UsageError("--to label-studio needs --out FOLDER, for tasks.json and label_config.xml")
    make_folder(out)
    tasks: list[dict[str, object]] = []

    def finish() -> None:
        paths = [str(task.pop("path")) for task in tasks]
        files = [os.path.abspath(path) for path in paths if not is_address(path)]
        root = os.path.commonpath([os.path.dirname(file) for file in files] or ["/"])
        for task, path in zip(tasks, paths, strict=True):
            place = os.path.relpath(os.path.abspath(path), os.path.dirname(root))
            task["data"] = {"image": path if is_address(path) else "/data/local-files/?d=" + quote(place)}
        write_text(out / "label_config.xml", label_config(classes))
        write_text(out / "tasks.json", json.dumps(tasks, indent=1) + "\n")
        print(f"Import {out}/tasks.json into a Label Studio project with the interface of {out}/label_config.xml; its "
              f"local storage is {root}, below the document root {os.path.dirname(root)}", file=sys.stderr)

    stack.callback(finish)

    def write(found: Predictions, row: int) -> None:
        if found.reasons[row] is None:
            (label, p), = found.top(row, 1)
            tasks.append({"path": found.names[row], "predictions": [{"model_version": "ssl_lab", "score": p, "result": [
                {"from_name": "label", "to_name": "image", "type": "choices", "value": {"choices": [label]}}]}]})

    return write


_WRITERS: dict[Format, Callable[[ExitStack, Path | None, tuple[str, ...], int], Write]] = {
    "csv": _csv, "jsonl": _jsonl, "folders": _folders, "label-studio": _label_studio}
