"""What a pool is made of, wherever its images come from."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from ssl_lab.batch import Style
from ssl_lab.data.arrays import IntArray
from ssl_lab.data.images import Images
from ssl_lab.data.reading import AS_BYTES, Reading


@dataclass(frozen=True, eq=False)
class Content:
    """Images, what is known of them, and which are of test and valid: int64, sorted rows; without valid, none. All
    other rows train. The fields are those of `Pool`."""

    name: str
    images: Images
    truth: IntArray
    class_names: tuple[str, ...]
    style: Style
    test: IntArray
    valid: IntArray | None = None
    notes: tuple[str, ...] = ()
    files: tuple[str, ...] = ()
    passed_over: Mapping[str, int] = field(default_factory=dict)
    root: str = ""
    reading: Reading = AS_BYTES
