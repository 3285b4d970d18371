"""How a person's images are read: what `load` is told beside where they lie."""

from __future__ import annotations

from dataclasses import dataclass, replace

from ssl_lab.data.decode import MAX_PIXELS
from ssl_lab.errors import UsageError


@dataclass(frozen=True)
class Reading:
    """image_size: side in pixels to resize to, None: what the data suggest. max_pixels: larger image files are skipped
    unread. path_column, label_column, split_column: of a CSV file, the names of the columns of paths, labels and parts,
    None: the usual ones. class_level: of a folder, at which depth the folders are classes: 1, those in it; 2, those in
    these."""

    image_size: int | None = None
    max_pixels: int = MAX_PIXELS
    path_column: str | None = None
    label_column: str | None = None
    split_column: str | None = None
    class_level: int = 1

    def __post_init__(self) -> None:
        if self.image_size is not None and self.image_size < 1:
            raise UsageError(f"image_size={self.image_size}: expected 1 or more pixels")
        if self.class_level < 1:
            raise UsageError(f"class_level={self.class_level}: expected 1 or more, the depth of class folders")

    def of_pixels(self) -> Reading:
        """Without what says which files are meant: what their pixels depend on, by which they are cached."""
        return replace(self, path_column=None, label_column=None, split_column=None, class_level=1)

    @property
    def columns(self) -> tuple[str | None, ...]:
        return self.path_column, self.label_column, self.split_column
