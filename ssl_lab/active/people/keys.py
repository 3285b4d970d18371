"""From what stands in files of answers to rows of a pool and to answers."""

from __future__ import annotations

import re
import unicodedata
from collections import Counter, defaultdict
from pathlib import PurePosixPath
from typing import Any
from urllib.parse import SplitResult, parse_qs, unquote, urlsplit

from ssl_lab.data import Pool
from ssl_lab.data.cells import unescaped
from ssl_lab.data.decode import SUFFIXES
from ssl_lab.data.delimited import legacy
from ssl_lab.data.words import missing, same
from ssl_lab.errors import UsageError

Answer = int | str | None
"""A class number or class name; -2 or "ignore": leave the image out; None or "abstain": the image stays unlabeled and
is not asked for again; -1: take the label back. A class of such a name wins."""

IGNORE, ABSTAIN = "ignore", "abstain"
_UPLOAD = re.compile(r"/?data/upload/(?:\d+/)?(?:[0-9a-f]{8}-)?(.+)")  # Label Studio puts a hash before the name
_NUMBER = re.compile(r"[+-]?\d+(\.0*)?")


class UnknownImageError(UsageError):
    """A path that means no image of the pool, or several."""


class Keys:
    """Finds the rows of a pool by id or path, and reads labels. urls: of our tasks in Label Studio, and their rows now,
    where images came since, so that the ids that Label Studio has are of rows that were."""

    def __init__(self, pool: Pool) -> None:
        self.pool = pool
        self.urls: dict[str, int] = {}
        names = pool.files or tuple(f"images/{i}.png" for i in range(len(pool)))  # as Label Studio's are written
        self._of_path = {path: i for i, path in enumerate(names)}
        self._by_name: dict[str, list[tuple[int, tuple[str, ...]]]] = defaultdict(list)
        self._uploaded: dict[str, list[int]] = defaultdict(list)
        for i, path in enumerate(names):
            parts = _parts(path)
            self._by_name[parts[-1]].append((i, parts))
            self._uploaded[_upload_name(parts[-1])].append(i)
        self._names = frozenset(pool.class_names)
        spellings = Counter(map(same, pool.class_names))
        self._classes = {same(name): name for name in pool.class_names if spellings[same(name)] == 1}

    def id(self, key: object, where: str) -> int:
        """A row number, from itself, its text (3.0 too) or the image's path. UsageError for anything else."""
        text = str(key)
        if text in self._of_path:
            return self._of_path[text]
        if _NUMBER.fullmatch(text.strip()):
            found = int(float(text))
            if not 0 <= found < len(self.pool):
                raise UsageError(f"{where}: id {found} is out of range; {self.pool.name} has {len(self.pool)} images")
            return found
        rows = self.rows(text)
        if len(rows) != 1:
            which = f"the path of {len(rows)} images" if rows else "neither an id nor the path of an image"
            raise UnknownImageError(f"{where}: {text!r} is {which} of {self.pool.name}")
        return rows[0]

    def rows(self, path: str) -> list[int]:
        """The rows whose image a path or URL can mean: itself; the file at its end, or of which it is the end; of an
        upload, and of an image elsewhere in the web, those of the file's name."""
        for text in dict.fromkeys((path, unescaped(path), legacy(path), path.strip())):
            if text in self._of_path:
                return [self._of_path[text]]
        for text in dict.fromkeys((path, unescaped(path), legacy(path), unquote(path, errors="surrogateescape"))):
            if rows := self._like(text.strip()):
                return rows
        return []

    def _like(self, path: str) -> list[int]:
        upload = _UPLOAD.search(path)
        if upload:
            return self._uploaded.get(_upload_name(_parts(unquote(upload[1]))[-1]), [])
        url = _split(path)
        served = re.search(r"/data/local-files/?\?(.*)", path)
        if served:
            path = parse_qs(served[1], errors="surrogateescape").get("d", [""])[0]
        elif url:
            path = unquote(url.path, errors="surrogateescape")
        parts = _parts(path)
        if not parts:
            return []
        named = self._by_name.get(parts[-1], [])
        ends = [(len(file), i) for i, file in named if parts[-len(file):] == file]
        if ends:  # of a/b.png and b.png the longer one
            longest = max(ends)[0]
            return [i for length, i in ends if length == longest]
        begins = [i for i, file in named if file[-len(parts):] == parts]
        elsewhere = url is not None and url.scheme != "file" and not served
        return begins or ([i for i, _ in named] if elsewhere else [])

    def given(self, label: Any) -> bool:
        """Whether this is an answer: not empty, and no word for a missing value, such as nan, None, ? or -1."""
        return label is not None and not missing([str(label)], self._names)

    def answer(self, label: Any) -> Answer:
        """Names win: a number is one of a class only if no class has that name. None abstains."""
        if label is None:
            return None
        if isinstance(label, bool) or not isinstance(label, int | float | str):
            raise UsageError(f"a label is {label!r}; expected a class name, a class number, {IGNORE!r} or {ABSTAIN!r}")
        text = legacy(str(label)).strip()
        found = self._class(text)
        if found is None and _NUMBER.fullmatch(text):
            number = int(float(text))
            return self._class(str(number)) or number
        if found is None and isinstance(label, float):
            raise UsageError(f"a label is {label!r}; expected a class name, a class number, {IGNORE!r} or {ABSTAIN!r}")
        return found or {IGNORE: IGNORE, ABSTAIN: None}.get(text.lower(), text)

    def _class(self, text: str) -> str | None:
        """The class of this name, or the only one of which it is another spelling."""
        return text if text in self._names else self._classes.get(same(text))


def is_path(value: object) -> bool:
    """Whether this reads like the path or URL of an image."""
    if not isinstance(value, str):
        return False
    url = _split(value)
    texts = (value, url.path if url else "")
    return any(PurePosixPath(text.strip().lower()).suffix in SUFFIXES for text in texts)


def _split(text: str) -> SplitResult | None:
    """The parts of a URL; None of what is none."""
    try:
        return urlsplit(text) if "://" in text else None
    except ValueError:  # of brackets
        return None


def _parts(path: str) -> tuple[str, ...]:
    """The names in a path, of either kind of slash, with composed accents."""
    return tuple(part for part in unicodedata.normalize("NFC", path).replace("\\", "/").split("/")
                 if part not in ("", "."))


def _upload_name(name: str) -> str:
    """A file's name as an upload keeps it, whatever of it that is."""
    return re.sub(r"[^-\w.]", "", name.strip().replace(" ", "_"))
