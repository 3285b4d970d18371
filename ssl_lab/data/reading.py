"""How a person's images are read: what `load` is told beside where they lie, and what is decided from the images."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal, NamedTuple, get_args

from ssl_lab.data.sizes import Resize, Sizes, check_resize
from ssl_lab.data.values import BYTES_AND_UNIT, Kind, Range, Seen, Survey, Values, decide, parse_range
from ssl_lab.errors import UsageError, unknown

MAX_PIXELS = 64_000_000
"""Larger images are refused by default, before they are decoded: they may be bombs."""

Background = Literal["white", "black"]


@dataclass(frozen=True)
class Reading:
    """image_size: side in pixels to resize to, None: what the data suggest. max_pixels: larger image files are skipped
    unread. resize: see `Resize`. value_range: the values of black and of white, None: what the data suggest.
    background: what shows through where images are transparent. flip: whether views may mirror images, None: nobody
    said it. path_column, label_column, split_column: of a CSV file, the names of the columns of paths, labels and
    parts, None: the usual ones. class_level: of a folder, at which depth the folders are classes: 1, those in it; 2,
    those in these. values, gray: as decided from the images; None before that.
    """

    image_size: int | None = None
    max_pixels: int = MAX_PIXELS
    resize: Resize = "crop"
    value_range: Range | None = None
    background: Background = "white"
    flip: bool | None = None
    path_column: str | None = None
    label_column: str | None = None
    split_column: str | None = None
    class_level: int = 1
    values: Values | None = None
    gray: bool | None = None

    def __post_init__(self) -> None:
        if self.image_size is not None and self.image_size < 1:
            raise UsageError(f"image_size={self.image_size}: expected 1 or more pixels")
        check_resize(self.resize, self.image_size)
        if self.background not in get_args(Background):
            raise unknown("background", self.background, get_args(Background))
        if self.class_level < 1:
            raise UsageError(f"class_level={self.class_level}: expected 1 or more, the depth of class folders")

    @property
    def columns(self) -> tuple[str | None, ...]:
        return self.path_column, self.label_column, self.split_column

    def of_pixels(self) -> tuple[object, ...]:
        """What the pixels depend on, of what was told: by this they are cached."""
        return self.image_size, self.max_pixels, self.resize, self.value_range, self.background

    def of_images(self) -> tuple[object, ...]:
        """What the pixels of an image depend on beside its size, once that is decided."""
        return self.resize, self.values, self.background

    def plain(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self)

    @classmethod
    def read(cls, plain: Mapping[str, Any]) -> Reading:
        """From `plain`, or from the JSON of it. TypeError or ValueError if it is not that."""
        given = dict(plain)
        if given["values"] is not None:
            given["values"] = Values(**{kind: tuple(white) for kind, white in given["values"].items()})
        return cls(**given | {"value_range": parse_range(given["value_range"])})

    def flips(self, usual: bool = True) -> bool:
        """Whether views mirror images, which they usually do."""
        return usual if self.flip is None else self.flip


AS_BYTES = Reading(values=BYTES_AND_UNIT, flip=True)
"""Of images that nothing was decided of."""


class Facts(NamedTuple):
    """What a first look at image files found. deep: how many have 16 bits a color channel. clear: how many are
    transparent somewhere (0 until they are decoded)."""

    sizes: Sizes
    gray: bool
    survey: Survey
    deep: int = 0
    clear: int = 0

    def plain(self) -> dict[str, Any]:
        """For JSON."""
        return {"sizes": list(self.sizes), "gray": self.gray, "deep": self.deep, "clear": self.clear,
                "survey": {kind: list(seen) for kind, seen in self.survey.items()}}

    @classmethod
    def read(cls, plain: Mapping[str, Any]) -> Facts:
        """From `plain`. KeyError, TypeError or ValueError if it is not that."""
        short, long, cropped, first, other = plain["sizes"]
        sizes = Sizes(short, long, cropped, tuple(first), tuple(other) if other else None)
        kinds: dict[Kind, Seen] = {kind: Seen(*seen) for kind, seen in plain["survey"].items()}
        return cls(sizes, plain["gray"], kinds, plain["deep"], plain["clear"])


def resolve(reading: Reading, facts: Facts) -> tuple[Reading, list[str]]:
    """How these image files are read, and what a person should be told of it."""
    values, notes = decide([facts.survey], reading.value_range)
    if facts.deep:
        notes.append(f"{facts.deep} images have 16 bits a color channel, of which the upper 8 are read; arrays (.npz) "
                     "are read whole")
    notes += on_clear(facts.clear, reading.background)
    side = facts.sizes.side(reading.image_size, reading.resize)
    notes = facts.sizes.notes(reading.image_size, reading.resize) + notes
    return replace(reading, image_size=side, values=values, gray=facts.gray), notes


def on_clear(images: int, background: Background) -> list[str]:
    """What to say of transparent images."""
    other = "black" if background == "white" else "white"
    return [f"{images} images are transparent in places, shown on {background}; --background {other} shows them on "
            f"{other}"] if images else []
