"""Grids of small images, inlined in the page as PNG."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray
from PIL import Image

from ssl_lab.errors import UsageError
from ssl_lab.report.text import Markup, escape

DISPLAY = 80  # pixels that the default scale aims at


def image_grid(images: ArrayLike, captions: Sequence[str] = (), columns: int | None = None,
               scale: int | None = None, rows: Sequence[str] = ()) -> Markup:
    """Images with captions, as HTML in which small images are enlarged without smoothing.

    Args:
        images: uint8 [N, C, H, W], C of 1 or 3.
        captions: one an image, or none; "" leaves an image bare.
        columns: images in a row, which then shrink on a narrow screen; without it, as many as there is room for.
        scale: screen pixels for each pixel; by default images become about 80 pixels wide.
        rows: headings, one a row.

    Raises:
        UsageError: for images of another dtype or shape and for counts that do not fit.

    >>> "cat" in sl.report.image_grid(np.zeros((2, 1, 8, 8), dtype=np.uint8), captions=["cat", "dog"])
    True
    """
    pixels = np.asarray(images)
    shape = pixels.shape
    if pixels.dtype != np.uint8 or len(shape) != 4 or shape[1] not in (1, 3) or 0 in shape[2:]:
        raise UsageError(f"image_grid was given images of {pixels.dtype} {list(shape)}, expected uint8 "
                         "[N, 1 or 3, H, W]. Scale images in [0, 1] by 255, round and convert them.")
    count, width = shape[0], shape[3]
    if captions and len(captions) != count:
        raise UsageError(f"image_grid was given {len(captions)} captions for {count} images. "
                         "Give one an image, or none.")
    if rows and (columns is None or len(rows) * columns != count):
        raise UsageError(f"image_grid was given {len(rows)} row headings for {count} images in "
                         f"{columns} columns. Give `columns` and one heading a row.")
    shown = width * (scale or max(1, round(DISPLAY / width)))
    cells = [_cell(image, caption, shown)
             for image, caption in zip(pixels, captions or [""] * count, strict=True)]
    for row in reversed(range(len(rows))):
        cells.insert(row * (columns or 0), f'<div class="row">{escape(rows[row])}</div>')
    tracks = f"repeat(auto-fill, {shown}px)"
    if columns:
        tracks = ("fit-content(40%) " if rows else "") + f"repeat({columns}, minmax(0, {shown}px))"
    content = "\n".join(cells)
    return Markup(f'<div class="grid" style="grid-template-columns: {tracks}">\n{content}\n</div>')


def _cell(image: NDArray[np.uint8], caption: str, shown: int) -> str:
    text = f"<figcaption>{escape(caption)}</figcaption>" if caption else ""
    return (f'<figure><img src="{png(image)}" alt="{escape(caption)}" width="{shown}" '
            f'height="{round(shown * image.shape[1] / image.shape[2])}">{text}</figure>')


def thumbnails(images: NDArray[np.uint8], side: int) -> NDArray[np.uint8]:
    """Images, uint8 [N, 1 or 3, H, W], made smaller, in proportion, if they have more pixels a side than `side`."""
    channels, height, width = images.shape[1:]
    scale = side / max(height, width)
    if scale >= 1:
        return images
    size = max(1, round(width * scale)), max(1, round(height * scale))
    planes = [[np.asarray(Image.fromarray(plane).resize(size, Image.Resampling.LANCZOS)) for plane in image]
              for image in images]
    return np.array(planes, dtype=np.uint8).reshape(len(images), channels, size[1], size[0])


def png(image: NDArray[np.uint8], side: int | None = None) -> str:
    """A data URL of an image, uint8 [1 or 3, H, W]; made smaller if it has more pixels a side than `side`."""
    channels_last = np.ascontiguousarray(image.transpose(1, 2, 0))
    picture = Image.fromarray(channels_last.squeeze(2) if len(image) == 1 else channels_last)
    if side:
        picture.thumbnail((side, side))
    file = io.BytesIO()
    picture.save(file, "png")
    return "data:image/png;base64," + base64.b64encode(file.getvalue()).decode()
