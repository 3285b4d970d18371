"""`load`: from a name, a folder or a file to a `Pool`."""

from __future__ import annotations

import functools
import json
import os
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ssl_lab import texts
from ssl_lab.data.arrays import IntArray, to_labels
from ssl_lab.data.content import Content
from ssl_lab.data.files import data_folder
from ssl_lab.data.folder import load_folder
from ssl_lab.data.images import ArrayImages, join, pixel_statistics, style_of
from ssl_lab.data.memory import content_of_arrays
from ssl_lab.data.own import at_hand, load_own, resized
from ssl_lab.data.pool import Pool, pool_of
from ssl_lab.data.reading import MAX_PIXELS, Background, Reading
from ssl_lab.data.remote import GIGABYTES, copied, is_address, name_of
from ssl_lab.data.shards import load_shards, shards_of
from ssl_lab.data.sizes import Resize
from ssl_lab.data.split import stratified
from ssl_lab.data.table import TABLES, load_csv
from ssl_lab.data.values import Range, Values, parse_range
from ssl_lab.data.walk import walk
from ssl_lab.errors import UsageError, unknown

DATASETS = {
    "digits": "1,797 handwritten digits, 8x8 gray, 10 classes; bundled with scikit-learn",
    "mnist": "70,000 handwritten digits, 28x28 gray, 10 classes",
    "fashion_mnist": "70,000 pieces of clothing, 28x28 gray, 10 classes",
    "cifar10": "60,000 photographs, 32x32 RGB, 10 classes",
    "cifar100": "60,000 photographs, 32x32 RGB, 100 classes",
    "svhn": "99,289 house-number digits, 32x32 RGB, 10 classes",
    "stl10": "13,000 photographs and 100,000 unlabeled ones, 96x96 RGB, 10 classes",
}
"""The data sets with a name: what each is, in a line."""

_NO_FLIP = ("digits", "mnist", "svhn")


def load(name_or_path: str | os.PathLike[str] | Any, data_dir: str | os.PathLike[str] | None = None,
         image_size: int | None = None, max_pixels: int = MAX_PIXELS, path_column: str | None = None,
         label_column: str | None = None, split_column: str | None = None, class_level: int = 1, *,
         resize: Resize = "crop", value_range: Range | str | None = None, background: Background = "white",
         flip: bool | None = None, remote_gb: float = GIGABYTES) -> Pool:
    """The pool of a data set's name (see `DATASETS`), a folder of images, a .csv or .tsv file of `path,label`,
    WebDataset shards (a folder of .tar files, one, or a pattern: "path/{000..009}.tar"; see `load_shards`), an .npz
    file with `images`, `labels` and, if wanted, `test_images`, `test_labels`, `class_names`; the address of any of
    these elsewhere (s3://, gs://, hf://, https://: see `copied`); a data set that is at hand, of PyTorch or Hugging
    Face, or a dict of such by part: see `Pool.from_dataset`; or "package.module:Thing" or "file.py:Thing", with
    arguments if you like, a function or class of your own that gives such a data set, or a pool.

    Every known label of a train image is given until `split` takes some away.

    Args:
        name_or_path: the name, path, pattern, address or data set. What names a module imports it.
        data_dir: where fetched data sets and caches lie; by default $SSL_LAB_DATA, else ~/.cache/ssl_lab.
        image_size: side in pixels to resize to. By default data sets and arrays keep theirs, and files take the
            median of their shorter sides (of the longer ones to pad), at most 224.
        resize: "crop" (shorter side, then the center square), "pad", "squash" or "none", see `Resize`.
        max_pixels: larger image files are skipped unread.
        value_range: the values of black and white in images that do not hold bytes, by default decided by all of
            them (see `decide`) and noted.
        background: "white" or "black", where images are transparent.
        flip: whether views may mirror images; False where a mirrored image is of another class.
        path_column: the column of paths in a CSV file, or of images in a data set, if its name is unusual.
        label_column: the column of labels there, or the key of the label in the json of shards.
        split_column: the column of a CSV file that says train, valid or test.
        class_level: 2 if the classes of a folder are the sub-folders of its folders.
        remote_gb: more gigabytes than that are not copied from an address.

    Raises:
        UsageError: the name is unknown, or files cannot be read or mean nothing; the message says which and why.

    >>> pool = sl.load("digits")
    >>> pool.images.shape, pool.classes, len(pool.train), len(pool.test)
    ((1, 8, 8), 10, 1198, 599)
    """
    reading = Reading(image_size, max_pixels, resize, parse_range(value_range), background, flip, path_column,
                      label_column, split_column, class_level)
    if not isinstance(name_or_path, str | os.PathLike):
        return at_hand(name_or_path, reading, "dataset", "load was given", "a name, a path")
    if is_address(name_or_path):
        copy = copied(str(name_or_path), data_dir, remote_gb)
        pool = load(copy, data_dir, image_size, max_pixels, path_column, label_column, split_column, class_level,
                    resize=resize, value_range=value_range, background=background, flip=flip)
        return replace(pool, name=name_of(str(name_or_path))) if copy.is_dir() else pool
    name, path = os.fspath(name_or_path), Path(name_or_path).expanduser()
    if texts.names_module(name) and not path.exists():
        return load_own(name, reading)
    if name in DATASETS and reading.value_range is not None:
        raise UsageError(f"value_range={value_range}: {name} holds bytes from 0 to 255; only your own images may hold "
                         "other values")
    caches = data_folder(data_dir) / "cache"
    is_table = path.name.lower().endswith(TABLES) and path.is_file()
    found = walk(path) if name not in DATASETS and path.is_dir() else None
    is_shards = path.suffix == ".tar" if found is None else bool(found.shards and not found.top)
    if any((reading.path_column, reading.split_column, None if is_shards else label_column)) and not is_table:
        raise UsageError("--path-column, --label-column and --split-column name columns of a CSV file, which "
                         f"{name} is not" + (" (the label column may also be a key of json in shards)" * is_shards))
    if class_level != 1 and not path.is_dir():
        raise UsageError(f"--class-level {class_level} is for a folder of class folders, which {name} is not")
    if name == "digits":
        return _named(_digits(), reading)
    if name in DATASETS:
        return _named(_fetched(name, data_dir), reading)
    if found is not None:
        if is_shards:
            beside = found.passed_over - Counter({".tar": len(found.shards)})
            return load_shards(path, found.shards, caches, reading, beside)
        return load_folder(path, found, caches, reading)
    if is_shards:
        return load_shards(*shards_of(path), caches, reading)
    if is_table:
        return load_csv(path, caches, reading)
    if path.is_file() and path.suffix.lower() == ".npz":
        return _npz(path, reading)
    if path.exists():
        raise UsageError(f"{path} cannot be read: expected a folder of images, a .csv or an .npz file, or .tar "
                         "shards")
    if path.suffix or len(path.parts) > 1:
        raise UsageError(f"there is no file or folder {path}")
    raise unknown("data set", name, DATASETS, "A folder, a .csv or an .npz file, or .tar shards may also be given.")


def _digits() -> Pool:
    """8x8 bytes (0..16 scaled to 0..255); a fixed third of each class is the test split."""
    pixels, truth, first = _digit_arrays()
    style = style_of((1, 8, 8), *pixel_statistics(pixels[:first]), flip=False)
    rows = np.arange(len(truth))
    return pool_of(Content("digits", ArrayImages(pixels.copy()), truth.copy(), tuple("0123456789"), style,
                           test=rows[first:]))


@functools.cache
def _digit_arrays() -> tuple[NDArray[np.uint8], IntArray, int]:
    """uint8 [N, 1, 8, 8], int64 [N], and the number of training images, which come first; 50 ms to read."""
    from sklearn.datasets import load_digits

    bunch = load_digits()
    pixels = np.rint(bunch.images * (255 / 16)).astype(np.uint8)[:, None]
    truth = bunch.target.astype(np.int64)
    rows = np.arange(len(truth))
    test = stratified(rows, truth, len(truth) // 3, "digits", "test")
    order = np.concatenate([np.setdiff1d(rows, test), test])
    return pixels[order], truth[order], len(truth) - len(test)


def _fetched(name: str, data_dir: str | os.PathLike[str] | None) -> Pool:
    """A data set that `ssl-lab fetch` stored, memory-mapped."""
    folder = data_folder(data_dir) / name
    option = f" --data-dir {data_dir}" if data_dir else ""
    command = f"ssl-lab fetch {name}{option}"
    if not folder.exists():
        raise UsageError(f"{name} is not in {folder.parent}. Fetch it: {command}")
    try:
        manifest = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
        arrays = {}
        for file, entry in manifest["files"].items():
            arrays[file] = np.load(folder / file, mmap_mode="r")
            if list(arrays[file].shape) != entry["shape"] or str(arrays[file].dtype) != entry["dtype"]:
                raise ValueError(f"{file} has another shape or type than was stored")
        images = [ArrayImages(arrays[f"{part}_images.npy"], manifest["files"][f"{part}_images.npy"]["sha256"])
                  for part in ("train", "test")]
        class_names = tuple(manifest["class_names"])
        truth = np.concatenate([to_labels(arrays[f"{part}_labels.npy"], len(rows), len(class_names))
                                for part, rows in zip(("train", "test"), images, strict=True)])
        style = style_of(images[0].shape, tuple(manifest["mean"]), tuple(manifest["std"]),
                         flip=name not in _NO_FLIP)
    except Exception as error:  # damaged arrays raise nearly anything
        raise UsageError(f"{folder} is damaged ({error}). Fetch it again: {command}") from error
    test = np.arange(len(images[0]), len(truth))
    return pool_of(Content(name, join(images), truth, class_names, style, test))


def _named(pool: Pool, reading: Reading) -> Pool:
    """A pool of a known data set, as it is wanted."""
    return resized(pool, reading, replace(reading, values=Values(), gray=pool.images.shape[0] == 1))


def _npz(path: Path, reading: Reading) -> Pool:
    try:
        with np.load(path, allow_pickle=False) as content:
            arrays = dict(content)
    except Exception as error:  # damaged arrays raise nearly anything
        hint = ". Save labels as texts: labels.astype(str)" if "Object arrays" in str(error) else ""
        raise UsageError(f"cannot read {path}: {error}{hint}") from error
    known = {"images", "labels", "test_images", "test_labels", "class_names"}
    if not {"images", "labels"} <= arrays.keys() <= known:
        raise UsageError(f"{path} holds {', '.join(arrays) or 'nothing'}; expected images and labels, and "
                         "perhaps test_images, test_labels and class_names")
    if "class_names" in arrays:
        arrays["class_names"] = [str(name) for name in arrays["class_names"]]
    return pool_of(content_of_arrays(arrays["images"], arrays["labels"], arrays.get("test_images"),
                                     arrays.get("test_labels"), arrays.get("class_names"), path.stem, None, reading))
