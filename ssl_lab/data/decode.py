"""From one image file, of whatever kind and origin, to uint8 pixels, or to an exception that says why not."""

from __future__ import annotations

import errno
import os
import stat
import threading
import warnings
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from PIL import Image

MAX_PIXELS = 64_000_000
"""Larger images are refused by default, before they are decoded: they may be bombs."""

SUFFIXES = frozenset([".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".apng", ".gif", ".webp", ".bmp", ".tif", ".tiff",
                      ".ppm", ".pgm", ".pbm", ".pnm"])

_FORMATS = ("JPEG", "PNG", "GIF", "WEBP", "BMP", "TIFF", "PPM")  # no format that runs another program
_GRAY = ("1", "L", "LA", "La", "I", "F", "I;16", "I;16L", "I;16B", "I;16N")
# Of OSErrors, those that are no passing failure: Pillow's own, links and lists that name no file, and EINVAL, which
# comes of a damaged file whose offsets lie before its beginning.
_OF_THE_FILE = (None, errno.ENOENT, errno.ENOTDIR, errno.ELOOP, errno.EINVAL)

_lock = threading.Lock()
_inside = 0
_restore = ExitStack()


class Probe(NamedTuple):
    """What the header of a file says. short: the shorter side in pixels. gray: whether it has no color."""

    short: int
    gray: bool


@contextmanager
def decoding() -> Iterator[None]:
    """Within this, files decode without Pillow's own pixel limit and warnings, which `max_pixels` and the
    list of skipped files replace. Both are settings of the process: of the threads that are within this at a time,
    the first one sets them and the last one puts them back."""
    global _inside
    with _lock:
        _inside += 1
        if _inside == 1:
            _restore.enter_context(_without_limit())
    try:
        yield
    finally:
        with _lock:
            _inside -= 1
            if _inside == 0:
                _restore.close()


@contextmanager
def _without_limit() -> Iterator[None]:
    from PIL import Image

    limit = Image.MAX_IMAGE_PIXELS
    Image.MAX_IMAGE_PIXELS = None
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        Image.MAX_IMAGE_PIXELS = limit


def probe(path: Path, max_pixels: int) -> Probe:
    """Read the header of a file. Raises ValueError, OSError or what Pillow raises, if it cannot be used."""
    with opened(path, max_pixels) as image:
        return Probe(min(image.size), image.mode in _GRAY)


def read_image(source: Path | BytesIO, size: int, gray: bool, max_pixels: int = MAX_PIXELS) -> NDArray[np.uint8]:
    """uint8 [C, size, size], C = 1 if gray, else 3: shorter side to `size`, then the center square.

    source: a file, or the bytes of one. Raises as `probe` does; a truncated file is an error too.
    """
    with opened(source, max_pixels) as image:
        image.draft(None, (2 * size, 2 * size))  # lets JPEG skip detail that the resize would average away
        pixels = np.asarray(to_square(upright(image), size).convert("L" if gray else "RGB"))
    return pixels[None] if gray else np.ascontiguousarray(pixels.transpose(2, 0, 1))


def to_square(image: Image.Image, size: int) -> Image.Image:
    """The center square of a plain image, resized to size x size (bicubic, antialiased)."""
    from PIL import Image, ImageOps

    return ImageOps.fit(image, (size, size), Image.Resampling.BICUBIC)


def upright(image: Image.Image) -> Image.Image:
    """Any image as mode L or RGB: turned as its EXIF says, first frame, on white where it is transparent.

    16-bit grays are divided by 257; other wide grays may hold 0..1, 0..255 or 0..65535, the smallest of these
    that holds them all.
    """
    from PIL import Image, ImageOps

    # Damaged EXIF says nothing of the pixels: whether these are good, loading them below tells.
    with suppress(ValueError, SyntaxError, KeyError, TypeError, OverflowError):
        image = ImageOps.exif_transpose(image)
    image.load()
    if image.mode in ("I", "F") or image.mode.startswith("I;16"):
        return Image.fromarray(_narrow(np.asarray(image), image.mode))
    if image.has_transparency_data:
        gray = image.mode in _GRAY
        image = image.convert("RGBA")
        white = Image.new("RGBA", image.size, "white")
        return Image.alpha_composite(white, image).convert("L" if gray else "RGB")
    return image.convert("L" if image.mode in _GRAY else "RGB")


def reason(error: Exception) -> str:
    """A short text, the same on every machine, for why a file was skipped."""
    from PIL import UnidentifiedImageError

    if isinstance(error, UnidentifiedImageError):
        return "not an image of a known format, or its header is damaged"
    text = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    return " ".join(text.split()) or type(error).__name__


def is_passing(error: Exception) -> bool:
    """Whether an image was not read because the machine failed, not for what it is: no permission, too many open
    files, a disk that does not answer, no memory. Once that is mended, it may be as good as any."""
    return isinstance(error, MemoryError) or (isinstance(error, OSError) and error.errno not in _OF_THE_FILE)


@contextmanager
def opened(source: Path | BytesIO, max_pixels: int) -> Iterator[Image.Image]:
    """An image whose header is read, from a file or the bytes of one. Raises as `probe` does."""
    from PIL import Image

    if isinstance(source, BytesIO):
        size = source.getbuffer().nbytes
    else:
        status = os.stat(source)
        if not stat.S_ISREG(status.st_mode):
            raise ValueError("not a regular file")
        size = status.st_size
    if size == 0:
        raise ValueError("the file is empty")
    with Image.open(source, formats=_FORMATS) as image:
        if image.width * image.height > max_pixels:
            raise ValueError(f"{image.width}x{image.height} pixels, over max_pixels={max_pixels}")
        if 0 in image.size:
            raise ValueError("no pixels")
        yield image


def _narrow(values: NDArray[np.generic], mode: str) -> NDArray[np.uint8]:
    """Gray values of more than 8 bits as uint8."""
    wide = values.astype(np.float64)
    if not np.isfinite(wide).all():
        raise ValueError("NaN or infinity among the pixels")
    limits = {"F": (1, 255, 65535), "I": (255, 65535)}.get(mode, (65535,))
    high = next((limit for limit in limits if wide.max() <= limit), None)
    if high is None or wide.min() < 0:
        raise ValueError(f"gray values from {wide.min():g} to {wide.max():g}, expected 0 to 65535")
    return np.rint(wide * (255 / high)).astype(np.uint8)
