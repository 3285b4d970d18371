"""How a person's images are read: what `load` is told beside where they lie."""

from __future__ import annotations

from dataclasses import dataclass

from ssl_lab.data.decode import MAX_PIXELS
from ssl_lab.errors import UsageError


@dataclass(frozen=True)
class Reading:
    """image_size: side in pixels to resize to, None: what the data suggest. max_pixels: larger image files are skipped
    unread."""

    image_size: int | None = None
    max_pixels: int = MAX_PIXELS

    def __post_init__(self) -> None:
        if self.image_size is not None and self.image_size < 1:
            raise UsageError(f"image_size={self.image_size}: expected 1 or more pixels")
