"""New images, from wherever people have them, as a stream of batches: for a model that is at hand already."""

from __future__ import annotations

import glob
import io
import os
import sys
import tarfile
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ssl_lab.data.ahead import in_order
from ssl_lab.data.arrays import channels_first
from ssl_lab.data.decode import SUFFIXES, decoding, from_picture, read_image, reason
from ssl_lab.data.reading import Reading
from ssl_lab.data.remote import GIGABYTES, copied, is_address
from ssl_lab.data.rows import content_of_row, fields_of, is_dataset, row_at
from ssl_lab.data.sizes import fit_batch
from ssl_lab.data.walk import walk
from ssl_lab.errors import UsageError

Read = tuple[str, NDArray[np.uint8] | str]
"""A picture's name, with its pixels [C, H, W] or with the reason why there are none."""


class Picture(NamedTuple):
    """An image that is not read yet. name: its path, or what else to call it. content: a file, the bytes of one, a PIL
    image, an array [H, W], [C, H, W] or [H, W, C], or the error that it met."""

    name: str
    content: Any


class Batch(NamedTuple):
    """names: of all images of the batch, in order. reasons: of each, why it cannot be read, None where it can. pixels:
    uint8 [n, C, H, W], of those that can."""

    names: list[str]
    reasons: list[str | None]
    pixels: Tensor


@dataclass
class Pictures:
    """What is to be read. known: how many there are, None where only reading tells. passed_over: files that are no
    images, by what they are."""

    stream: Iterator[Picture]
    known: int | None
    passed_over: dict[str, int]


def find_pictures(given: Any, channels: int = 3, data_dir: str | os.PathLike[str] | None = None,
                  remote_gb: float = GIGABYTES) -> Pictures:
    """The images that `given` means: the path of a file, of a folder (with all below it), of a tar or .npy file, a
    pattern such as "new/*.jpg", the address of one of these; "-" for any of that on standard input, a line each; an
    array [N, H, W], [N, C, H, W] or [N, H, W, C] or of one image; a PIL image; a list, or an array of texts, of any of
    these; or a data set, of PyTorch or Hugging Face, of which the images are read (see `fields_of`).

    channels: 1 if they are for a model of grays, to which an array [3, H, W] is three images and not one. data_dir,
    remote_gb: where copies of what lies at an address are kept, and how many gigabytes of it may be copied.
    UsageError for a path at which there is nothing, and for anything else.
    """
    if isinstance(given, str | os.PathLike):
        path = os.fspath(given)
        if path == "-":
            return _of_lines(sys.stdin, partial(find_pictures, channels=channels, data_dir=data_dir,
                                                remote_gb=remote_gb))
        return _at_path(path, copied(path, data_dir, remote_gb) if is_address(path) else None, channels)
    if is_dataset(given):
        return _of_dataset(given)
    if isinstance(given, np.ndarray) and given.dtype.kind in "OUT":
        given = given.tolist()
    if isinstance(given, np.ndarray | Tensor):
        return _of_array(np.asarray(given), "image", channels)
    if type(given).__module__.startswith("PIL."):
        return Pictures(iter([Picture("image 0", given)]), 1, {})
    if not isinstance(given, Iterable) or isinstance(given, bytes | dict):
        raise UsageError(f"{type(given).__name__} is no image: expected paths, arrays or PIL images")
    found = [find_pictures(each, data_dir=data_dir, remote_gb=remote_gb) for each in given]
    counts = [each.known for each in found]
    passed_over: dict[str, int] = {}
    for each in found:
        for kind, count in each.passed_over.items():
            passed_over[kind] = passed_over.get(kind, 0) + count
    numbered = (Picture(f"image {n}", picture.content) if picture.name == "image 0" else picture
                for n, picture in enumerate(picture for each in found for picture in each.stream))
    return Pictures(numbered, None if None in counts else sum(count or 0 for count in counts), passed_over)


def _of_lines(lines: Iterable[str], find: Callable[[str], Pictures]) -> Pictures:
    """What each line means, when it comes. A line at which there is nothing is an image that cannot be read, so that
    the others are."""
    passed_over: Counter[str] = Counter()

    def stream() -> Iterator[Picture]:
        for line in filter(None, map(str.strip, lines)):
            try:
                found = find(line)
            except UsageError as error:
                yield Picture(line, error)
            else:
                yield from found.stream
                passed_over.update(found.passed_over)

    return Pictures(stream(), None, passed_over)


def _of_dataset(dataset: Any) -> Pictures:
    fields = fields_of(dataset, None, None, [])

    def content(number: int) -> Any:
        try:
            image = content_of_row(row_at(dataset, number, fields)[0])
            is_array = isinstance(image, np.ndarray | Tensor | list)
            return channels_first(np.asarray(image)[None], "the image")[0] if is_array else image
        except UsageError as error:
            return error

    return Pictures((Picture(f"row {number}", content(number)) for number in range(len(dataset))), len(dataset), {})


def _at_path(path: str, copy: Path | None, channels: int) -> Pictures:
    """copy: of what lies at an address; images are named by that."""
    where = Path(path).expanduser() if copy is None else copy
    if where.is_dir():
        found = walk(where)
        files = sorted(found.top.all_images())
        if not files:
            raise UsageError(f"{path} holds no image; expected files of {' '.join(sorted(SUFFIXES))}")
        top = str(where) if copy is None else path.rstrip("/")
        return Pictures((Picture(f"{top}/{file}", where / file) for file in files), len(files),
                        dict(found.passed_over))
    if where.suffix.lower() == ".tar" and where.is_file():
        return Pictures(_of_tar(where, str(where) if copy is None else path), None, {})
    if where.suffix.lower() in (".npy", ".npz") and where.is_file():
        return _of_array(_array_in(where), f"{path}, image", channels)
    if where.exists() or not glob.has_magic(path):
        if not where.exists():
            raise UsageError(f"there is no file or folder {path}")
        return Pictures(iter([Picture(path, where)]), 1, {})
    matches = sorted(file for file in glob.glob(str(where), recursive=True) if not os.path.isdir(file))
    if not matches:
        raise UsageError(f"no file matches {path}")
    there = None if copy is None else path.rpartition("/")[0]
    return Pictures((Picture(file if there is None else f"{there}/{Path(file).name}", Path(file)) for file in matches),
                    len(matches), {})


def _of_tar(path: Path, name: str) -> Iterator[Picture]:
    from ssl_lab.data.shard_scan import members_of

    try:
        for member in members_of(path, Counter()):
            if f".{member.suffix}" in SUFFIXES:
                yield Picture(f"{name}/{member.stem}.{member.suffix}", io.BytesIO(member.content))
    except (OSError, ValueError, tarfile.TarError) as error:
        yield Picture(name, ValueError(f"damaged, only the images before that are read: {reason(error)}"))


def _array_in(path: Path) -> NDArray[Any]:
    try:
        loaded = np.load(path, mmap_mode="r" if path.suffix == ".npy" else None, allow_pickle=False)
        if isinstance(loaded, np.ndarray):
            return loaded
        with loaded:
            names = loaded.files
            if len(names) == 1 or "images" in names:
                return np.asarray(loaded["images" if "images" in names else names[0]])
    except Exception as error:  # damaged arrays raise nearly anything
        raise UsageError(f"cannot read {path}: {error}") from error
    raise UsageError(f"{path} holds {', '.join(names) or 'nothing'}; expected one array, or one called images")


def _of_array(array: NDArray[Any], what: str, channels: int) -> Pictures:
    if array.ndim == 2 or (array.ndim == 3 and (array.shape[0] in (1, channels) or array.shape[2] in (1, 3))):
        array = array[None]
    images = channels_first(array, "images")
    return Pictures((Picture(f"{what} {n}", image) for n, image in enumerate(images)), len(images), {})


def batches(pictures: Iterable[Picture], reading: Reading, shape: tuple[int, int, int], size: int) -> Iterator[Batch]:
    """The pictures as a net takes them, `size` at a time, in order; the next ones are decoded meanwhile, by threads.

    reading: as decided for the data that the net learned (see `resolve`). shape: (C, H, W) of the images that it takes.
    Nothing that an image holds raises; what cannot be read has a reason.
    """
    with decoding(), ThreadPoolExecutor(os.cpu_count() or 1) as threads:
        decoded = in_order(threads, partial(_read, reading=reading, shape=shape), pictures, ahead=2 * size)
        while part := list(islice(decoded, size)):
            yield _batch(part)


def groups(pictures: Iterable[Picture], size: int) -> Iterator[list[Picture]]:
    """The pictures, `size` at a time, for `read_batch`."""
    rest = iter(pictures)
    while part := list(islice(rest, size)):
        yield part


def read_batch(pictures: Iterable[Picture], reading: Reading, shape: tuple[int, int, int]) -> Batch:
    """These pictures as `batches` gives them, read one after another, within `decoding`."""
    return _batch([_read(picture, reading, shape) for picture in pictures])


def _batch(part: list[Read]) -> Batch:
    good = [pixels for _, pixels in part if not isinstance(pixels, str)]
    return Batch([name for name, _ in part], [pixels if isinstance(pixels, str) else None for _, pixels in part],
                 torch.from_numpy(np.stack(good)) if good else torch.empty(0))


def _read(picture: Picture, reading: Reading, shape: tuple[int, int, int]) -> Read:
    try:
        pixels = _pixels(picture.content, reading)
        if pixels.shape != shape:
            width, height = pixels.shape[2], pixels.shape[1]
            return picture.name, f"{width}x{height} pixels; the model takes {shape[2]}x{shape[1]} and resizes nothing"
        return picture.name, pixels
    except Exception as error:  # damaged files raise nearly anything
        return picture.name, reason(error)


def _pixels(content: Any, reading: Reading) -> NDArray[np.uint8]:
    """uint8 [C, H, W]."""
    if isinstance(content, Exception):
        raise content
    if isinstance(content, Path | io.BytesIO):
        return read_image(content, reading).pixels
    if not isinstance(content, np.ndarray):
        return from_picture(content, reading).pixels
    assert reading.values is not None  # resolved
    pixels = reading.values.to_bytes(content[None])
    images = torch.from_numpy(np.ascontiguousarray(pixels))
    if reading.image_size is not None and tuple(images.shape[2:]) != (reading.image_size,) * 2:
        images = fit_batch(images, reading.image_size, reading.resize)
    found: NDArray[np.uint8] = images[0].numpy()
    if len(found) == 1 and not reading.gray:
        found = np.repeat(found, 3, axis=0)
    elif len(found) == 3 and reading.gray:  # as Pillow does it
        found = np.rint(np.tensordot([0.299, 0.587, 0.114], found, axes=1)[None]).astype(np.uint8)
    return found
