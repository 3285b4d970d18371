"""The words that people's data are written in: for no label, for the parts of a data set, and for one class in two
spellings."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Collection, Iterable, Sequence

_MISSING = frozenset(["", "-1", "-1.0", "nan", "-nan", "<na>", "#n/a", "#na", "nat", "?", "??", "???", "unlabeled",
                      "unlabelled", "not labeled", "no label", "no_label", "nolabel"])
"""Never the name of a class, in any case."""
_DOUBTFUL = frozenset(["None", "NULL", "null", "NA", "N/A", "n/a"])
"""As programs write a missing value, but a class may bear the name: as they are written here only. A person's `none`
is a class, which is how pandas reads it too."""

LABEL_NAMES = ("label", "labels", "class", "class_name", "classname", "category", "target", "species", "y",
               "label_name", "class_id", "category_id", "label_id", "fine_label", "cls", "diagnosis", "breed")
"""What people call the column of labels, in tables, data sets and json, the likeliest first; see `plain_name`."""

_PARTS = {"train": "train", "training": "train", "trainval": "train", "labeled": "labeled", "labelled": "labeled",
          "valid": "valid", "val": "valid", "validation": "valid", "validate": "valid", "validating": "valid",
          "test": "test", "tests": "test", "testing": "test",
          "unlabeled": "unlabeled", "unlabelled": "unlabeled", "nolabel": "unlabeled", "nolabels": "unlabeled",
          "unannotated": "unlabeled"}
_DOUBTFUL_PARTS = {"dev": "valid", "development": "valid", "eval": "valid", "evaluation": "valid", "holdout": "test",
                   "heldout": "test"}
_FILLERS = frozenset(["set", "sets", "data", "dataset", "image", "images", "img", "imgs", "photo", "photos", "picture",
                      "pictures", "pic", "pics", "sample", "samples", "example", "examples", "file", "files", "folder",
                      "dir", "split", "part", "subset", "public", "private", "all", "full", "new", "final", "the"])
_SETS = {frozenset(["train", "valid"]): "train", frozenset(["train", "labeled"]): "train",
         frozenset(["train", "unlabeled"]): "unlabeled", frozenset(["labeled"]): "train"}
"""What two such words in one name mean: `train_val`, `labeled_train`, `unlabeled_train`."""


def missing(texts: Iterable[str], names: Collection[str] = ()) -> frozenset[str]:
    """Which of the texts, as they stand where a label is expected, say that there is none.

    The empty text, -1, -1.0, nan, ?, unlabeled and their like always do. None, NULL, NA do, unless one of those stands
    beside them: then what is missing is written so, and None is a class. names: of classes that are known; these are
    never missing.
    """
    known = {same(name) for name in names}
    given = {text for text in texts if not text.strip() or same(text) not in known}
    sure = frozenset(text for text in given if same(text) in _MISSING)
    return sure or frozenset(text for text in given if text.strip() in _DOUBTFUL)


def plain_name(column: str) -> str:
    """The name of a column in one spelling: class_name for `Class Name`."""
    return "_".join(column.lower().replace("-", " ").replace("_", " ").split())


def named_like(columns: Iterable[str], usual: Sequence[str]) -> list[str]:
    """The columns that have one of the usual names, in whatever spelling, the likeliest first."""
    found = [column for column in columns if plain_name(column) in usual]
    return sorted(found, key=lambda column: usual.index(plain_name(column)))


def may_mean_missing(text: str) -> bool:
    """Whether the word is one that says "no label" in some hands and names a class in others: None, none, NA."""
    return text.strip() in _DOUBTFUL or same(text) in {same(word) for word in _DOUBTFUL}


def same(name: str) -> str:
    """The same text for all spellings of a name: upper and lower case, spaces around it, forms of Unicode (the é of
    café is one character or two)."""
    folded = unicodedata.normalize("NFC", name).casefold()
    return " ".join(unicodedata.normalize("NFC", folded).split())


def part_of(name: str, doubtful: bool = False) -> str | None:
    """train, valid, test or unlabeled, if that is what a name says: `Training_Set`, `val2017`, `test-images`; else
    None, as of `train_station`. doubtful: also `dev`, `eval` (valid) and `holdout` (test)."""
    words = _words(name)
    table = _PARTS | _DOUBTFUL_PARTS if doubtful else _PARTS
    for several in (len(words), 2):  # no_label, hold-out, un labeled
        if "".join(words[:several]) in table:
            words[:several] = ["".join(words[:several])]
    meanings = {table.get(_bare(word, table)) for word in words if word not in _FILLERS}
    said = {meaning for meaning in meanings if meaning}
    if not said or None in meanings:
        return None
    return _SETS.get(frozenset(said), said.pop() if len(said) == 1 else None)


def says_nothing(name: str) -> bool:
    """Whether a folder of this name, `images` or `data`, can be no class."""
    words = _words(name)
    return bool(words) and all(word in _FILLERS for word in words)


def _words(name: str) -> list[str]:
    """test-Set2, testSet -> test, set."""
    return re.findall(r"[a-z]+", re.sub(r"(?<=[a-z])(?=[A-Z])", " ", name).lower())


def _bare(word: str, table: Collection[str]) -> str:
    """trainset -> train."""
    return next((bare for end in _FILLERS if (bare := word.removesuffix(end)) in table), word)


def whole(text: str) -> str | None:
    """The whole number that a text is, as its digits ("3.0" -> "3"), or None."""
    found = re.fullmatch(r"\+?(\d+)(?:\.0*)?", text.strip(), flags=re.ASCII)
    return str(int(found[1])) if found else None
