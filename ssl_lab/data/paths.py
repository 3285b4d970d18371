"""Pools of image files by their paths, beside labels that are in memory."""

from __future__ import annotations

import os
from collections.abc import Hashable, Sequence
from pathlib import Path
from typing import Any

from ssl_lab.data.columns import part_said
from ssl_lab.data.content import Content
from ssl_lab.data.files import data_folder, identity
from ssl_lab.data.labels import read_labels
from ssl_lab.data.listing import Listed, Listing, content_of_listing, once
from ssl_lab.data.reading import Reading
from ssl_lab.errors import UsageError


def content_of_files(files: Sequence[str | os.PathLike[str]], labels: Any, parts: Sequence[Any] | None,
                  class_names: Sequence[str] | None, name: str, data_dir: str | os.PathLike[str] | None,
                  test_share: float, reading: Reading) -> Content:
    """See `Pool.from_files`."""
    if isinstance(files, str | bytes | os.PathLike):
        raise UsageError(f"files is one path, {os.fspath(files)!r}; expected a list of the paths of images. A folder "
                         "is what sl.load reads")
    if not 0 <= test_share < 1:
        raise UsageError(f"hold_out={test_share:g}: expected a share of the labeled images, 0 or more and below 1")
    paths = [_absolute(file, row) for row, file in enumerate(files)]
    if not paths:
        raise UsageError("files lists no image")
    given = ["train"] * len(paths) if parts is None else [_part(part, row) for row, part in enumerate(parts)]
    if len(given) != len(paths):
        raise UsageError(f"parts have length {len(given)}, but there are {len(paths)} files")
    read = read_labels([labels], [len(paths)], class_names)
    root = Path(os.path.commonpath([path.parent for path in paths]))
    entries, places, identities = list[Listed](), list[str](), list[Hashable]()
    for row, (path, part, number) in enumerate(zip(paths, given, read.truth[0].tolist(), strict=True)):
        label = None if number < 0 or part == "unlabeled" else read.class_names[number]
        entries.append(Listed(os.path.relpath(path, root), label, "train" if part == "unlabeled" else part))
        places.append(f"file {row} ({str(path)!r})")
        identities.append(identity(path) or str(path))
    kept, again = once(entries, identities, places)
    notes = [*read.notes, *([f"{again} files are there twice: each image counts once"] if again else [])]
    names = None if class_names is None else read.class_names
    return content_of_listing(name, root, Listing(kept, notes, {}, names, test_share), data_folder(data_dir) / "cache",
                           reading)


def _absolute(file: Any, row: int) -> Path:
    try:
        return Path(os.path.abspath(Path(os.fsdecode(file)).expanduser()))
    except TypeError:
        raise UsageError(f"files: entry {row} is {str(file)[:40]!r}, expected the path of an image") from None


def _part(given: Any, row: int) -> str:
    text = "" if given is None or given != given else str(given)  # NaN is not itself
    said = part_said(text)
    if said is None:
        raise UsageError(f"parts: entry {row} is {text!r}, expected train, valid or test")
    return said
