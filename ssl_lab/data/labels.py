"""Labels as people have them in memory: numbers and texts, of NumPy, pandas, PyTorch or plain lists; and the classes
that they name, by the rules that hold for CSV files."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Collection, Sequence
from numbers import Integral, Real
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ssl_lab.class_names import shown
from ssl_lab.data.arrays import IntArray, to_labels
from ssl_lab.data.classes import classes_of, compact, unlabeled_texts
from ssl_lab.data.words import same
from ssl_lab.errors import UsageError

Written = IntArray | list[str]
"""Labels of n images: class numbers, int64 [n], -1 = none; or n texts, "" = none."""

_NONE = ("NAType", "NaTType")  # what pandas calls its missing values
_EXPECTED = "expected class numbers (-1 for none) or texts (None for none), one for each image"


class Labels(NamedTuple):
    """truth: int64 [n] of each part, -1 = none. class_names: of the numbers. notes: what a person should be told."""

    truth: list[IntArray]
    class_names: tuple[str, ...]
    notes: list[str]


def read_labels(parts: Sequence[Any], rows: Sequence[int], class_names: Sequence[str] | None = None,
                whats: Sequence[str] = ("labels", "test_labels")) -> Labels:
    """The labels of train and perhaps other images, and the classes that they name together.

    parts: of each, what `written` takes. rows: how many images there are in each. class_names: of the classes, which
    numbers then count and texts then name; by default the classes are those that occur, sorted. whats: what to call
    each part. UsageError for a wrong length, and for what is no label or none of `class_names`.
    """
    whats = whats[:len(parts)]
    notes: list[str] = []
    given = [written(part, what, notes) for part, what in zip(parts, whats, strict=True)]
    for part, count, what in zip(given, rows, whats, strict=True):
        if len(part) != count:
            raise UsageError(f"{what} have length {len(part)}, but there are {count} images")
    notes += _on_signs(given, class_names)
    if class_names is not None:
        names = tuple(class_names)
        numbers = [_by_name(part, names, what, notes) if isinstance(part, list) else
                   to_labels(part, len(part), len(names), what) for part, what in zip(given, whats, strict=True)]
        return Labels(numbers, names, _once(notes))
    if not any(isinstance(part, list) for part in given):
        numbers = [to_labels(part, len(part), None, what) for part, what in zip(given, whats, strict=True)]
        truth, names, said = compact(np.concatenate(numbers))
    else:
        texts = [text for part in given for text in texts_of(part)]
        counts = Counter(texts)
        gone, more = unlabeled_texts(counts)
        names, number, said = classes_of({text: count for text, count in counts.items() if text not in gone})
        truth = np.array([number.get(text, -1) for text in texts], dtype=np.int64)
        said = more + said
    ends = np.cumsum(rows)[:-1]
    return Labels(np.split(truth, ends), names, _once(notes + said))


def written(given: Any, what: str, notes: list[str]) -> Written:
    """Labels in whatever a person keeps them: an array, a list, a tensor, a pandas Series or Categorical, a column [n,
    1]; of whole numbers, of floats that are whole (NaN = none), of texts, bytes or truth values, or of objects that are
    these (None and pandas' NA = none). Numbers stay numbers, unless texts or fractions are among them.

    What was read as something else is added to `notes`. UsageError for anything else.
    """
    array = as_column(given, what)
    if not array.size or array.dtype.kind in "iu":
        return array.astype(np.int64)
    if array.dtype.kind not in "fbOUST":
        raise UsageError(f"{what} are an array of {array.dtype}, {_EXPECTED}")
    entries = [entry_of(value, f"{what}: entry {row}") for row, value in enumerate(array)]
    known = [entry for entry in entries if entry is not None]
    if any(isinstance(entry, str) for entry in known) or not all(float(entry).is_integer() for entry in known):
        return ["" if entry is None else str(entry) for entry in entries]
    broken = next((entry for entry in known if not isinstance(entry, Integral) and entry != -1), None)
    if broken is not None:
        notes.append(f"labels like '{broken:.1f}' are read as whole numbers")
    return np.array([-1 if entry is None else int(entry) for entry in entries], dtype=np.int64)


def texts_of(labels: Written) -> list[str]:
    """Labels as a CSV file has them."""
    return labels if isinstance(labels, list) else [str(number) for number in labels.tolist()]


def as_column(given: Any, what: str) -> NDArray[Any]:
    """As an array of one dimension."""
    if isinstance(given, np.ma.MaskedArray):
        known, given = ~np.ma.getmaskarray(given), given.data.astype(object)
        given = np.where(known, given, np.array(None, dtype=object))
    elif hasattr(given, "detach"):
        given = given.detach().cpu()
    try:
        texts = isinstance(given, list | tuple) and any(isinstance(entry, str | bytes) for entry in given)
        array = np.asarray(given, dtype=object if texts else None)  # beside a text, NumPy would make 'None' of None
    except (ValueError, TypeError) as error:
        raise UsageError(f"{what} are not one label for each image ({error}); {_EXPECTED}") from error
    if array.ndim == 2 and array.shape[1] == 1:
        array = array[:, 0]
    if array.ndim == 2 and array.dtype.kind in "biuf" and (array.astype(bool).sum(axis=1) == 1).all():
        raise UsageError(f"{what} have shape {array.shape}, one column for each class it seems; {_EXPECTED}. "
                         "labels.argmax(axis=1) are such")
    if array.ndim != 1:
        raise UsageError(f"{what} have shape {array.shape}, {_EXPECTED}")
    return array


def entry_of(value: Any, what: str) -> str | Any | None:
    """A text, a number, or None for no label."""
    if isinstance(value, str):
        return str(value)
    if isinstance(value, bytes):
        return value.decode("utf-8", "replace")
    if getattr(value, "ndim", None) == 0 and hasattr(value, "item"):  # a tensor
        value = value if isinstance(value, np.generic) else value.item()
    if value is None or type(value).__name__ in _NONE:
        return None
    if isinstance(value, bool | np.bool_):
        return str(value)
    if isinstance(value, Real) and not math.isinf(value):
        return None if math.isnan(value) else value
    raise UsageError(f"{what} is {str(value)[:40]!r}, {_EXPECTED}")


def _by_name(texts: list[str], names: Sequence[str], what: str, notes: list[str]) -> IntArray:
    """The numbers of classes that are known by name, in any spelling that means one of them alone."""
    gone, said = unlabeled_texts(Counter(texts), names)
    notes += said
    alike: dict[str, list[int]] = {}
    for number, name in enumerate(names):
        alike.setdefault(same(name), []).append(number)
    number_of = {key: numbers[0] for key, numbers in alike.items() if len(numbers) == 1}
    exact = {name: number for number, name in enumerate(names)}
    found = [-1 if text in gone else exact.get(text, number_of.get(same(text), -2)) for text in texts]
    if -2 in found:
        row = found.index(-2)
        raise UsageError(f"{what}: entry {row} is {texts[row]!r}, which is none of the classes: {shown(names)}")
    return np.array(found, dtype=np.int64)


def _on_signs(given: Sequence[Written], class_names: Collection[str] | None) -> list[str]:
    """What to say of -1 and 1 as two classes, which -1 cannot be. UsageError if it leaves one class only."""
    said: set[str] = set()
    for part in given:
        said.update(part if isinstance(part, list) else map(str, np.unique(part).tolist()))
    if {text.strip().removesuffix(".0") for text in said} != {"-1", "1"}:
        return []
    text = "labels are -1 and 1 only, of which -1 means no label; if both are classes, give 0 and 1, or their names"
    if class_names is None:
        raise UsageError(text)
    return [text]


def _once(notes: Sequence[str]) -> list[str]:
    return list(dict.fromkeys(notes))
