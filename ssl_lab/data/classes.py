"""From the labels that stand beside images, in whatever spelling, to classes and their numbers."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Collection, Mapping, Sequence

import numpy as np

from ssl_lab.data.arrays import IntArray
from ssl_lab.data.words import may_mean_missing, missing, same, whole
from ssl_lab.errors import UsageError

_APART = "names that differ in more than upper and lower case, spaces or forms of Unicode keep classes apart"


def unlabeled_texts(counts: Mapping[str, int], names: Collection[str] = (), *,
                    chosen: bool = False) -> tuple[frozenset[str], list[str]]:
    """Which of the texts mean that there is no label, and what to say of it. counts: how often each stands there.
    names: of classes that are known. chosen: whether people chose the texts, as names of folders, where `None` is a
    class."""
    gone = missing(counts, [*names, *(text for text in counts if chosen and may_mean_missing(text))])
    notes = []
    words = [f"{counts[text]} {text!r}" for text in sorted(gone) if text.strip() not in ("", "-1")]
    if words:
        notes.append(f"no label is what {', '.join(words)} mean; a class must have another name")
    kept = [f"{text!r}" for text in sorted(counts.keys() - gone) if may_mean_missing(text) and not names]
    if kept:
        notes.append(f"{', '.join(kept)} is read as a class, not as missing labels")
    return gone, notes


def classes_of(counts: dict[str, int]) -> tuple[tuple[str, ...], dict[str, int], list[str]]:
    """The classes that labels name, sorted as numbers if all are numbers, else as text; the class number of each text;
    and what to say of it. counts: how many images have each label.

    Spellings that are the `same` are one class, which has the most frequent one's name; single letters keep their
    case. Whole numbers that are written 1.0, as pandas does where some labels are missing, are named 1. UsageError for
    texts that hold several labels.
    """
    _refuse_several(counts)
    notes: list[str] = []
    numbers = {text: whole(text) for text in counts}
    if all(numbers.values()) and any("." in text for text in counts):
        name_of = {text: str(number) for text, number in numbers.items()}
        notes.append(f"labels like {next(text for text in counts if '.' in text)!r} are read as whole numbers")
    else:
        name_of = {text: unicodedata.normalize("NFC", " ".join(text.split())) for text in counts}
        groups: dict[str, list[str]] = {}
        for text in sorted(counts, key=lambda text: (-counts[text], text)):
            name = name_of[text]
            groups.setdefault(name if len(name) == 1 else same(text), []).append(text)
        for group in groups.values():
            name_of |= dict.fromkeys(group, name_of[group[0]])
        notes += _on_spellings(groups, name_of, counts)
    names = set(name_of.values())
    numeric = all(name.isascii() and name.isdigit() for name in names)
    order = tuple(sorted(names, key=lambda name: (int(name) if numeric else 0, name)))
    number = {name: index for index, name in enumerate(order)}
    if broken := [name for name in order if re.fullmatch(r"-?\d*\.\d+", name)]:
        notes.append(f"labels like {broken[0]!r} are numbers with a fraction; each of the {len(order)} is read as a "
                     "class")
    total = sum(counts.values())
    if len(names) > max(20, total / 2):
        notes.append(f"{total} labels name {len(names)} classes, from {order[0]!r} to {order[-1]!r}: are they classes?")
    return order, {text: number[name] for text, name in name_of.items()}, notes


def _on_spellings(groups: dict[str, list[str]], name_of: dict[str, str], counts: dict[str, int]) -> list[str]:
    """Lines on names that are merged, and on letters that are not."""
    merged = [" and ".join(f"{_plainly(text, group)} ({counts[text]} images)" for text in group)
              + f" are one class, {name_of[group[0]]!r}" for group in groups.values() if len(group) > 1]
    notes = []
    if merged:
        more = f" (and {len(merged) - 3} more)" if len(merged) > 3 else ""
        notes.append(f"{'; '.join(merged[:3])}{more}: {_APART}")
    letters = sorted(name for name in groups if len(name) == 1 and name != name.casefold() in groups)
    if letters:
        notes.append(f"{letters[0]!r} and {letters[0].casefold()!r} are two classes, as single letters are")
    return notes


def _plainly(text: str, group: Sequence[str]) -> str:
    """A spelling as it shows in print; with its code points where another one prints the same."""
    alike = sum(unicodedata.normalize("NFC", other) == unicodedata.normalize("NFC", text) for other in group)
    return ascii(text) if alike > 1 else repr(text)


def _refuse_several(counts: dict[str, int]) -> None:
    """UsageError if labels are lists: "cat|dog", "['cat', 'dog']"."""
    for text in counts:
        parts = [part.strip() for part in re.split(r"[|;,]", text)]
        several = len(parts) > 1 and all(parts) and any(part in counts for part in parts)
        if several or re.fullmatch(r"\[.*\]", text.strip()):
            raise UsageError(f"the label {text!r} seems to name several classes ({counts[text]} such images); expected "
                             "one class for each image. Give each image the one that matters, or rename the class")


def compact(numbers: IntArray) -> tuple[IntArray, tuple[str, ...], list[str]]:
    """Class numbers without gaps, -1 as before; the numbers given, as names; and a note if the two differ."""
    given = np.unique(numbers[numbers >= 0])
    names = tuple(map(str, given.tolist()))
    if not len(given) or given[-1] == len(given) - 1:
        return numbers, names, []
    truth = np.where(numbers >= 0, np.searchsorted(given, numbers), -1)
    some = ", ".join(names[:5]) + (" ..." if len(names) > 5 else "")
    return truth, names, [f"labels are {some}: they name the classes, which are numbered 0 to {len(names) - 1}; "
                          "class_names=[...] keeps numbers as they are"]
