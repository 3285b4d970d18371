"""A person's own images in a CSV file: which columns hold paths, labels and parts, and which images are meant."""

from __future__ import annotations

import errno
import os
from collections import Counter
from collections.abc import Callable, Hashable, Sequence
from pathlib import Path
from typing import NamedTuple

from ssl_lab.data.cells import plain
from ssl_lab.data.classes import unlabeled_texts
from ssl_lab.data.columns import choose
from ssl_lab.data.decode import SUFFIXES
from ssl_lab.data.delimited import read_rows
from ssl_lab.data.files import identity
from ssl_lab.data.label_file import COLUMNS
from ssl_lab.data.ledger import IGNORED
from ssl_lab.data.listing import Listed, Listing, content_of_listing, once
from ssl_lab.data.pool import Pool, pool_of
from ssl_lab.data.reading import Reading
from ssl_lab.errors import UsageError

TABLES = (".csv", ".tsv", ".csv.gz", ".tsv.gz")


def load_csv(path: Path, caches: Path, reading: Reading) -> Pool:
    """A pool of the images that a CSV file lists: with a column of paths, relative to the file's folder, one of labels,
    and, if wanted, one of parts (train, valid or test; empty: train). See `list_csv`."""
    name = path.name[:-len(next(end for end in TABLES if path.name.lower().endswith(end)))]
    return pool_of(content_of_listing(name, path.parent, list_csv(path, reading), caches, reading))


def list_csv(path: Path, reading: Reading) -> Listing:
    """The images that a CSV file lists, in its order, each once.

    Columns are those that `reading` names, else those of usual names, which `columns.choose` says. Paths may be written
    as on Windows, and without the suffix or the one folder that all images share. UsageError naming the line at fault:
    more fields than columns, no path, an unknown part, an image with two labels or parts.
    """
    header, rows, notes = read_rows(path)
    columns = choose(path, header, rows, reading, notes)
    entries: list[Listed] = []
    places: list[str] = []
    passed_over: Counter[str] = Counter()
    given = [row.fields[columns.path] for row in rows if len(row.fields) > columns.path]
    image_of = _resolver(path.parent, given, notes)
    identities: list[Hashable] = []
    ours = {*COLUMNS} <= {*header}  # from `ssl-lab labels`
    short = 0
    for row in rows:
        where = f"{path}, line {row.line}"
        fields = [plain(cell) for cell in _fitting(row.fields, len(columns.names), where)]
        short += len(row.fields) < len(columns.names)
        if not fields[columns.path]:
            raise UsageError(f"{where}: the path is empty")
        if "\n" in fields[columns.path] + fields[columns.label]:
            raise UsageError(f"{where}: a path or label goes on over lines: {fields[columns.path][:40]!r}. Is a double "
                             "quote left open?")
        if fields[columns.label] == str(IGNORED) and ours:
            passed_over["ignored"] += 1
            continue
        image = image_of(fields[columns.path])
        if image is None:
            passed_over["paths that no file can have"] += 1
            continue
        part, labeled = columns.part(fields, where)
        entries.append(Listed(image.file, fields[columns.label] if labeled else None, part))
        places.append(f"line {row.line} ({fields[columns.path]!r})")
        identities.append(image.identity)
    if not rows:
        raise UsageError(f"{path} lists no image")
    if not entries:
        raise UsageError(f"{path}: none of its {len(rows)} paths in column {columns.names[columns.path]!r} can be one")
    if short:
        notes.append(f"{short} lines of {path.name} have fewer fields than columns: what they lack is taken as empty")
    gone, more = unlabeled_texts(Counter(entry.label for entry in entries if entry.label is not None))
    entries = [entry._replace(label=None) if entry.label in gone else entry for entry in entries]
    try:
        kept, again = once(entries, identities, places)
    except UsageError as error:
        raise UsageError(f"{path}: {error}") from None
    if again:
        notes.append(f"{again} lines of {path.name} list an image again that is listed before: it counts once")
    return Listing(kept, notes + more, passed_over)


def _fitting(fields: Sequence[str], columns: int, where: str) -> list[str]:
    """As many fields as there are columns. UsageError for more, unless these are empty."""
    if any(fields[columns:]):
        raise UsageError(f"{where}: {len(fields)} fields, but {columns} columns: {','.join(fields)[:80]!r}. Put a "
                         "field that holds the delimiter in double quotes")
    return [*fields[:columns], *[""] * (columns - len(fields))]


class Image(NamedTuple):
    """file: relative to the folder of the table, if it lies there. identity: the same for one file."""

    file: str
    identity: Hashable


def _resolver(folder: Path, paths: Sequence[str], notes: list[str]) -> Callable[[str], Image | None]:
    """From a path as it is written to the image that is meant; None for what can be no path.

    If none of the first paths is a file as it stands, that sub-folder of `folder` and that suffix are sought with which
    most of them are.
    """
    probe = [path for text in paths[:50] if (path := _clean(folder, text))]
    prefix, suffix = "", ""
    if probe and not any(identity(folder / path) for path in probe):
        try:
            inside = sorted(entry.name for entry in os.scandir(folder) if entry.is_dir() and entry.name[0] != ".")
        except OSError:
            inside = []
        tried = {(one, end): sum(identity(folder / one / (path + end)) is not None for path in probe)
                 for one in ("", *inside[:100]) for end in ("", *sorted(SUFFIXES))}
        best = max(tried, key=lambda pair: (tried[pair], pair == ("", "")))
        if tried[best]:
            prefix, suffix = best
            whole = os.path.join(prefix, probe[0] + suffix)
            notes.append(f"the paths in the table are completed: {probe[0]!r} is {whole!r}")

    def image_of(text: str) -> Image | None:
        path = _clean(folder, text)
        if path is None:
            return None
        file = os.path.normpath(os.path.join(prefix, path + suffix))
        if os.path.isabs(file) and Path(file).is_relative_to(folder.absolute()):
            file = os.path.relpath(file, folder.absolute())
        return Image(file, identity(folder / file) or file)

    return image_of


def _clean(folder: Path, text: str) -> str | None:
    """A path with slashes; None if the file system takes no such name."""
    path = text.replace("\\", "/")
    try:
        os.lstat(os.path.join(folder, path))
    except ValueError:  # a NUL byte
        return None
    except OSError as error:
        return None if error.errno in (errno.ENAMETOOLONG, errno.EILSEQ) else path
    return path
