"""From one image file, of whatever kind and origin, to uint8 pixels, or to an exception that says why not."""

from __future__ import annotations

import errno
import os
import stat
import threading
import warnings
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ssl_lab.data.files import Bounded
from ssl_lab.data.reading import Background, Reading
from ssl_lab.data.sizes import fit_picture
from ssl_lab.data.values import BYTES_AND_UNIT, Range, Seen, Survey, Values, survey

if TYPE_CHECKING:
    from PIL import Image

SUFFIXES = frozenset([".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".apng", ".gif", ".webp", ".bmp", ".tif", ".tiff",
                      ".ppm", ".pgm", ".pbm", ".pnm"])

_FORMATS = ("JPEG", "PNG", "GIF", "WEBP", "BMP", "TIFF", "PPM")  # no format that runs another program
_GRAY = ("1", "L", "LA", "La", "I", "F", "I;16", "I;16L", "I;16B", "I;16N")
# Of OSErrors, those that are no passing failure: Pillow's own, links and lists that name no file, and EINVAL, which
# comes of a damaged file whose offsets lie before its beginning.
_OF_THE_FILE = (None, errno.ENOENT, errno.ENOTDIR, errno.ELOOP, errno.EINVAL)
_BYTES: Survey = {"bytes": Seen(0, 255)}  # what else they hold, decoding them tells

_ORIENTATION = 0x0112  # of EXIF

_lock = threading.Lock()
_inside = 0
_restore = ExitStack()


class Probe(NamedTuple):
    """What a first look at a file finds. size: (width, height) in pixels. gray: whether it has no color. deep: whether
    it has 16 bits a color channel, of which Pillow reads the upper 8. survey: of the values of wide grays, which are
    decoded for it; else empty."""

    size: tuple[int, int]
    gray: bool
    deep: bool
    survey: Survey


class Pixels(NamedTuple):
    """A decoded image: uint8 [C, H, W], and whether it was transparent somewhere."""

    pixels: NDArray[np.uint8]
    clear: bool


class Upright(NamedTuple):
    """A plain image, L or RGB, and whether it was transparent somewhere."""

    image: Image.Image
    clear: bool


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


def probe(path: Path, reading: Reading) -> Probe:
    """Read the header of a file. Raises ValueError, OSError or what Pillow raises, if it cannot be used."""
    with opened(path, reading.max_pixels) as image:
        return look(image, turn=reading.resize == "none")


def look(image: Image.Image, turn: bool) -> Probe:
    """What there is to see of an opened image. turn: its size is wanted as its EXIF turns it."""
    gray, deep, found = image.mode in _GRAY, is_deep(image), _BYTES
    size = image.size if not turn else _turned_size(image)
    if is_wide(image):
        found = survey(np.asarray(turned(image))[None], lambda _: "the image")
    return Probe(size, gray, deep, {} if image.mode == "1" else found)


def brightest(path: Path, max_pixels: int) -> int:
    """The greatest byte of an image file."""
    with opened(path, max_pixels) as image:
        return peak(upright(image).image)


def peak(image: Image.Image) -> int:
    """The greatest byte of a plain image."""
    extrema: Any = image.getextrema()
    return int(max(np.ravel(extrema)))


def read_image(source: Path | BytesIO, reading: Reading) -> Pixels:
    """uint8 [C, size, size], C = 1 if gray, else 3, of an image file, or of the bytes of one.

    reading: as decided for the data set (see `resolve`). Raises as `probe` does; a truncated file is an error too.
    """
    with opened(source, reading.max_pixels) as image:
        if (size := reading.image_size) is not None:
            image.draft(None, (2 * size, 2 * size))  # lets JPEG skip detail that the resize would average away
        return from_picture(image, reading)


def from_picture(image: Image.Image, reading: Reading) -> Pixels:
    """As `read_image`, of a PIL image."""
    plain, clear = upright(image, reading.values or BYTES_AND_UNIT, reading.background)
    pixels = np.asarray(as_mode(fit_picture(plain, reading.image_size, reading.resize), "L" if reading.gray else "RGB"))
    return Pixels(pixels[None] if reading.gray else np.ascontiguousarray(pixels.transpose(2, 0, 1)), clear)


def is_wide(image: Image.Image) -> bool:
    """Whether an image has grays of more than 8 bits."""
    return image.mode in ("I", "F") or image.mode.startswith("I;16")


def is_deep(image: Image.Image) -> bool:
    """Whether an opened image has color channels of more than 8 bits in its file."""
    tiles: Sequence[Any] = getattr(image, "tile", ())  # of images in files
    modes = [args if isinstance(args, str) else args[0] for *_, args in tiles if args]
    return not is_wide(image) and any(isinstance(mode, str) and ";16" in mode for mode in modes)


def _turned_size(image: Image.Image) -> tuple[int, int]:
    with suppress(ValueError, SyntaxError, KeyError, TypeError, OverflowError):
        if image.getexif().get(_ORIENTATION) in (5, 6, 7, 8):
            return image.height, image.width
    return image.size


def turned(image: Image.Image) -> Image.Image:
    """An image as its EXIF says, loaded."""
    from PIL import ImageOps

    # Damaged EXIF says nothing of the pixels: whether these are good, loading them below tells.
    with suppress(ValueError, SyntaxError, KeyError, TypeError, OverflowError):
        if image.getexif().get(_ORIENTATION, 1) != 1:  # of an upright one it would make a copy
            image = ImageOps.exif_transpose(image)
    image.load()
    return image


def upright(image: Image.Image, values: Values = BYTES_AND_UNIT, background: Background = "white") -> Upright:
    """Any image as mode L or RGB: turned as its EXIF says, first frame, on a background where it is transparent."""
    from PIL import Image

    image, clear = turned(image), False
    if is_wide(image):
        return Upright(Image.fromarray(values.to_bytes(np.asarray(image)[None])[0]), False)
    mode = "L" if image.mode in _GRAY else "RGB"
    if image.has_transparency_data:
        image = image.convert("RGBA")
        extrema: Any = image.getchannel("A").getextrema()
        clear = bool(extrema[0] < 255)
        image = Image.alpha_composite(Image.new("RGBA", image.size, background), image)
    return Upright(_in_range(as_mode(image, mode), values.bytes), clear)


def as_mode(image: Image.Image, mode: str) -> Image.Image:
    """The image in this mode: itself, where it has it, of which Pillow would make a copy."""
    return image if image.mode == mode else image.convert(mode)


def _in_range(image: Image.Image, white: Range) -> Image.Image:
    """A plain image whose bytes have other values for black and white."""
    if white == BYTES_AND_UNIT.bytes:
        return image
    table = Values(bytes=white).to_bytes(np.arange(256, dtype=np.uint8)).tolist()
    return image.point(table * len(image.getbands()))


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

    if isinstance(source, Path) and not stat.S_ISREG(os.stat(source).st_mode):  # to open a pipe would wait
        raise ValueError("not a regular file")
    with ExitStack() as stack:
        file = source if isinstance(source, BytesIO) else stack.enter_context(Bounded(source))
        if file.seek(0, os.SEEK_END) == 0:
            raise ValueError("the file is empty")
        file.seek(0)
        image = stack.enter_context(Image.open(file, formats=_FORMATS))
        if image.width * image.height > max_pixels:
            raise ValueError(f"{image.width}x{image.height} pixels, over max_pixels={max_pixels}")
        if 0 in image.size:
            raise ValueError("no pixels")
        yield image
