"""How values become bytes: which is black and which is white is decided once for a data set, and said.

Bytes are 0..255. Of floats and of whole numbers of more than 8 bits only their values tell: those of the whole set,
train and test together, decide, with a little room for rounding; what fits nothing that is usual is refused.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, get_args

import numpy as np
from numpy.typing import NDArray

from ssl_lab.errors import UsageError

Range = tuple[float, float]
"""The values that become black (0) and white (255)."""

Kind = Literal["bytes", "whole numbers", "floats"]
KINDS: tuple[Kind, ...] = get_args(Kind)

_LIMITS = (1, 255, 1023, 4095, 16383, 65535)
_BITS = {1023: 10, 4095: 12, 16383: 14, 65535: 16}
_ROUNDING = 1e-3
"""By which share of the white value floats may go beyond black and white."""
_LEAST_WHITE = 16.0
"""Floats with fractions are not read as 0..255 if none is as large: few levels of theirs would be left."""
_FEW_LEVELS = 64
_APART = 16.0
"""Parts of which one reads so many times as bright as the other are not on one scale."""
_ROWS = 1024
_NUMBER = r"(-?\d+(?:\.\d+)?(?:e[+-]?\d+)?)"


@dataclass(frozen=True)
class Values:
    """What is black and what is white among bytes, whole numbers of more than 8 bits, and floats."""

    bytes: Range = (0, 255)
    whole: Range = (0, 65535)
    floats: Range = (0, 1)

    def of(self, kind: Kind) -> Range:
        """The values that become 0 and 255."""
        return {"bytes": self.bytes, "whole numbers": self.whole, "floats": self.floats}[kind]

    def to_bytes(self, array: NDArray[Any], kind: Kind | None = None) -> NDArray[np.uint8]:
        """uint8 of the same shape [N, ...], rounded, clipped at black and white. False is black and True white. Bytes
        of 0..255 are themselves, not copied. kind: of what the values were, if the array's type says another."""
        if array.dtype == np.bool_:
            return array.astype(np.uint8) * np.uint8(255)
        low, high = self.of(kind or kind_of(array))
        if array.dtype == np.uint8 and (low, high) == (0, 255):
            return array
        pixels = np.empty(array.shape, np.uint8)
        for start in range(0, len(array), _ROWS):
            part = array[start:start + _ROWS]
            scaled = (part - low if low else part) * (255 / (high - low))
            pixels[start:start + _ROWS] = np.rint(scaled).clip(0, 255)
        return pixels


BYTES_AND_UNIT = Values()


class Seen(NamedTuple):
    """What values images hold, the least and the greatest. whole: whether none has a fraction. unit: the name of an
    image of fractions in 0..1, if there is one."""

    low: float
    high: float
    whole: bool = True
    unit: str | None = None

    def __or__(self, other: Seen) -> Seen:
        return Seen(min(self.low, other.low), max(self.high, other.high), self.whole and other.whole,
                    self.unit or other.unit)


Survey = Mapping[Kind, Seen]


def parse_range(given: object) -> Range | None:
    """(low, high) from such a pair or a text "LOW-HIGH"; None from None or "auto". UsageError for anything else."""
    if given is None or given == "auto":
        return None
    pair: Any = given
    if isinstance(given, str):
        match = re.fullmatch(rf"\s*{_NUMBER}\s*(?:-|\.\.|,|:)\s*{_NUMBER}\s*", given.lower())
        pair = match.groups() if match else ()
    try:
        low, high = (float(value) for value in pair)
    except (TypeError, ValueError):
        low, high = math.nan, math.nan
    if not (math.isfinite(low) and math.isfinite(high) and low < high):
        raise UsageError(f"value_range={given!r}: expected auto, or the values of black and of white as LOW-HIGH, e.g. "
                         "0-1, 0-255, 0-4095 or -1-1")
    return low, high


def kind_of(array: NDArray[Any], what: str = "images") -> Kind:
    """Of which kind an array's values are (booleans count as bytes). UsageError for text, objects and the like."""
    if array.dtype == np.uint8 or array.dtype == np.bool_:
        return "bytes"
    if np.issubdtype(array.dtype, np.integer):
        return "whole numbers"
    if np.issubdtype(array.dtype, np.floating):
        return "floats"
    raise UsageError(f"{what} have dtype {array.dtype}, expected bytes, whole numbers, floats or booleans")


def survey(images: NDArray[Any], name: Callable[[int], str], what: str = "images") -> Survey:
    """What the values of images [N, ...] are. name: what to call the image of a row.

    Of bytes only whether one is above 1, so that large memory maps are not read. UsageError for NaN or infinity.
    """
    kind, seen = kind_of(images, what), None
    for start in range(0, len(images), _ROWS):
        part = images[start:start + _ROWS]
        if kind == "bytes":
            if images.dtype == np.bool_:
                return {}
            more = Seen(0, 255 if (top := int(part.max())) > 1 else top)
        else:
            more = _survey_part(part.reshape(len(part), -1), kind, start, name)
        seen = more if seen is None else seen | more
        if kind == "bytes" and seen.high > 1:
            break
    return {} if seen is None else {kind: seen}


def _survey_part(rows: NDArray[Any], kind: Kind, start: int, name: Callable[[int], str]) -> Seen:
    lows, highs = rows.min(axis=1), rows.max(axis=1)
    low, high = float(lows.min()), float(highs.max())
    if kind == "whole numbers":
        return Seen(low, high)
    bad = ~(np.isfinite(lows) & np.isfinite(highs))
    if bad.any():
        raise UsageError(f"{name(start + int(bad.argmax()))} holds NaN or infinity. Repair or drop it.")
    fractions = (rows != np.rint(rows)).any(axis=1)
    unit = fractions & (highs <= 1 + _ROUNDING) & (highs > 0.1)
    return Seen(low, high, not fractions.any(), name(start + int(unit.argmax())) if unit.any() else None)


def merged(surveys: Iterable[Survey]) -> dict[Kind, Seen]:
    """Several surveys as one."""
    found: dict[Kind, Seen] = {}
    for each in surveys:
        for kind, seen in each.items():
            found[kind] = found[kind] | seen if kind in found else seen
    return found


def spans_of(surveys: Sequence[Survey]) -> NDArray[np.float64]:
    """Of each image file the values that it spans, [n, 2], one a row; NaN where they are bytes."""
    wide = [next((seen for kind, seen in each.items() if kind != "bytes"), None) for each in surveys]
    return np.array([(math.nan, math.nan) if seen is None else seen[:2] for seen in wide]).reshape(-1, 2)


def check_spans(spans: NDArray[np.float64], parts: NDArray[np.str_], values: Survey) -> None:
    """UsageError where the images of one part are on another scale than those of another, as `decide` finds it where it
    sees parts. spans: [n, 2], see `spans_of`. parts: [n]. values: of all images."""
    found = [spans[(parts == part) & np.isfinite(spans[:, 0])] for part in np.unique(parts)]
    for kind in [kind for kind in values if kind != "bytes"][:1]:
        _check_parts(kind, [Seen(float(each[:, 0].min()), float(each[:, 1].max())) for each in found if len(each)])


def decide(parts: Sequence[Survey], given: Range | None = None) -> tuple[Values, list[str]]:
    """How the values of a data set are read, and what to say of that. parts: of train and of test images, say.

    given: as a person wants it, for bytes too if there is nothing else. Without it, the least of 0..1, 0..255 and 10,
    12, 14 and 16 bits that holds all values of a kind, or -1..1; bytes that are all 0 or 1 are 0..1. UsageError where
    values fit none of these, or images are on different scales.
    """
    every = merged(parts)
    ranges, notes = {}, []
    for kind, seen in every.items():
        if given is not None and (kind != "bytes" or len(every) == 1):
            ranges[kind], note = given, _on_given(kind, seen, given)
        else:
            ranges[kind] = _guess(kind, seen)
            _check_parts(kind, [part[kind] for part in parts if kind in part])
            note = _on_guess(kind, seen, ranges[kind])
        notes += [note] if note else []
    return Values(*(ranges.get(kind, BYTES_AND_UNIT.of(kind)) for kind in KINDS)), notes


def _guess(kind: Kind, seen: Seen) -> Range:
    room = _ROUNDING if kind == "floats" else 0.0
    if kind == "bytes":
        return (0, 1) if 0 < seen.high <= 1 else (0, 255)
    high = _white(seen.high, room)
    if seen.low < -room * max(1.0, seen.high):
        if -1 - room <= seen.low < -0.5 and high == 1:
            return -1, 1
        raise UsageError(_refused(kind, seen))
    if high is None or (not seen.whole and high > 1 and seen.high < _LEAST_WHITE):
        raise UsageError(_refused(kind, seen))
    if seen.unit is not None and high > 1:
        raise UsageError(f"{seen.unit} spans 0 to 1 at most, others reach {seen.high:g}: images on different scales. "
                         "Bring them to one, or say which value is black and which white: --value-range LOW-HIGH")
    return 0, high


def _white(high: float, room: float) -> int | None:
    return next((limit for limit in _LIMITS if high <= limit * (1 + room)), None)


def _refused(kind: Kind, seen: Seen) -> str:
    return (f"the images hold {kind} from {seen.low:g} to {seen.high:g}, expected 0 to 1, 0 to 255, -1 to 1, or those "
            "of 10 to 16 bits. Give the pixels as they were before any normalization, or say which value is black and "
            f"which white: --value-range LOW-HIGH (in code value_range=({seen.low:g}, {seen.high:g}), say)")


def _check_parts(kind: Kind, parts: Sequence[Seen]) -> None:
    """UsageError where train and test images are on different scales: 0..1 and 0..255, say."""
    if kind == "bytes":
        return
    tops = [_white(seen.high, _ROUNDING) or seen.high for seen in parts if seen.high > 0]
    signed = [seen.low < -0.5 for seen in parts]
    if (tops and max(tops) >= _APART * min(tops)) or (any(signed) and not all(signed)):
        spans = " and ".join(f"{seen.low:g} to {seen.high:g}" for seen in parts)
        raise UsageError(f"train and test images hold {kind} from {spans}: images on different scales. Bring them to "
                         "one, or say which value is black and which white: --value-range LOW-HIGH")


def _on_guess(kind: Kind, seen: Seen, chosen: Range) -> str | None:
    low, high = chosen
    if kind == "bytes":
        return ("all pixels are 0 or 1, and 1 is read as white; --value-range 0-255 reads it as nearly black"
                if high == 1 else None)
    levels = round(255 * (seen.high - seen.low) / (high - low))
    narrow = 0 < levels < _FEW_LEVELS
    if kind == "whole numbers" and high == 65535 and not narrow:
        return None  # the range of 16 bits is no guess
    bits = f" ({_BITS[int(high)]} bits)" if high in _BITS and kind == "whole numbers" else ""
    if narrow:
        return (f"pixels, {kind} from {seen.low:g} to {seen.high:g}, are read as {low:g}..{high:g}{bits}, where they "
                f"have only {levels} of 256 levels; --value-range {seen.low:g}-{seen.high:g} spreads them over all")
    return (f"pixels, {kind} up to {seen.high:g}, are read as {low:g}..{high:g}{bits}; --value-range LOW-HIGH reads "
            "them otherwise")


def _on_given(kind: Kind, seen: Seen, given: Range) -> str | None:
    low, high = given
    if kind != "bytes" and (seen.low >= high or seen.high <= low) and seen.low < seen.high:
        raise UsageError(f"value_range={low:g}-{high:g}: the images hold {kind} from {seen.low:g} to {seen.high:g}, of "
                         "which nothing would be left")
    room = _ROUNDING * (high - low)
    if kind == "bytes" or (seen.low >= low - room and seen.high <= high + room):
        return None
    return (f"pixels, {kind} from {seen.low:g} to {seen.high:g}, are clipped to {low:g}..{high:g}, as --value-range "
            "says")
