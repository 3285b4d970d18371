"""Damaged image files of every kind: none ends the process, and each is decoded or listed with its reason.

200 files; by command as many as wanted: SSL_LAB_FUZZ=2000 pytest tests/test_image_fuzz.py. In a process of its own,
because what is feared here is a crash in a decoder's C code, or memory and time without end.
"""

import io
import json
import os
import random
import re
import resource
import sys
import tarfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageSequence
from small_runs import start

from ssl_lab.data import load

COUNT = int(os.environ.get("SSL_LAB_FUZZ", "200"))
MEMORY = 8 * 2**30
"""Of addresses, beside those of the libraries: some images of 64 million pixels at a time, and the canvases of a WebP,
up to 2 GiB, which it makes before it says its size."""


def originals() -> dict[str, bytes]:
    """Small valid files of the five formats, each in the variants that take other paths through a decoder."""
    rng = np.random.default_rng(0)
    y, x = np.mgrid[0:255:40j, 0:255:56j]
    picture = Image.fromarray(np.stack([y, x, rng.integers(0, 256, x.shape)], axis=-1).astype(np.uint8))
    frames = [picture, picture.rotate(90), picture.transpose(Image.Transpose.FLIP_LEFT_RIGHT)]
    exif = Image.Exif()
    exif[0x0112] = 6
    exif[0x010E] = "a description"
    wide = Image.fromarray((x * 257).astype(np.uint16))
    kinds = [(picture, "JPEG", {}), (picture, "JPEG", {"progressive": True, "exif": exif}),
             (picture.convert("L"), "JPEG", {"restart_marker_blocks": 2}), (picture.convert("CMYK"), "JPEG", {}),
             (picture, "PNG", {}), (picture.convert("P"), "PNG", {"transparency": 3}), (wide, "PNG", {}),
             (picture.convert("LA"), "PNG", {"exif": exif}),
             (picture, "PNG", {"save_all": True, "append_images": frames[1:]}),
             (picture, "GIF", {}), (picture, "GIF", {"save_all": True, "append_images": frames[1:]}),
             (picture.convert("1"), "GIF", {"interlace": 1}),
             (picture, "WEBP", {}), (picture, "WEBP", {"lossless": True, "exif": exif}),
             (picture.convert("RGBA"), "WEBP", {"save_all": True, "append_images": frames[1:]}),
             (picture, "BMP", {}), (picture.convert("P"), "BMP", {}), (picture.convert("1"), "BMP", {})]
    files = {}
    for number, (image, kind, options) in enumerate(kinds):
        buffer = io.BytesIO()
        image.save(buffer, kind, **options)
        files[f"{number:02}.{kind.lower()}"] = buffer.getvalue()
    return files


def mutated(content: bytes, others: list[bytes], rng: random.Random) -> bytes:
    """The file after one to four accidents."""
    data = bytearray(content)
    for _ in range(rng.randint(1, 4)):
        place = rng.randrange(len(data) + 1)
        if rng.random() < 0.4:
            place = rng.randrange(min(len(data), 64) + 1)  # where headers are
        length = rng.choice([1, 1, 2, 4, 16, 200])
        accident = rng.randrange(8)
        if accident == 0:
            data[place:place + 1] = bytes([rng.randrange(256)])
        elif accident == 1:
            data[place:place + 1] = bytes([(data[place] if place < len(data) else 0) ^ 1 << rng.randrange(8)])
        elif accident == 2:
            data[place:place + length] = rng.randbytes(length)
        elif accident == 3:
            del data[place:place + length]
        elif accident == 4:
            data[place:place] = data[place:place + length]
        elif accident == 5:  # sizes and offsets at their limits
            data[place:place + 4] = rng.choice([b"\0\0\0\0", b"\xff" * 4, b"\x7f\xff\xff\xff", b"\xff\xff\xff\x7f",
                                                b"\0\0\0\1", b"\1\0\0\0", b"\0\0\x80\0"])
        elif accident == 6:
            del data[place:]
        else:
            other = rng.choice(others)
            cut = rng.randrange(len(other))
            data[place:] = other[cut:]
        if not data:
            break
    return bytes(data)


def write_files(root: Path, count: int) -> list[str]:
    """Half of them in each of two classes; the originals, which must be decoded, come first."""
    rng, whole = random.Random(0), originals()
    names, contents = list(whole), list(whole.values())
    files = {f"{'ab'[number % 2]}/{name}": content for number, (name, content) in enumerate(whole.items())}
    for number in range(count):
        which = number % len(names)
        name = f"{'ab'[number // 2 % 2]}/x{number}.{names[which].partition('.')[2]}"
        files[name] = mutated(contents[which], contents, rng)
    for name, content in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(content)
    return list(files)


def job(folder: Path) -> None:
    """What the process does: the folder as images and as a shard, at two sizes; says how far it came."""
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    limit = pages * resource.getpagesize() + MEMORY
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    pool = load(folder / "images", folder / "data", image_size=32)
    pixels = pool.images.take(np.arange(len(pool)))
    assert tuple(pixels.shape) == (len(pool), 3, 32, 32)
    (folder / "decoded.json").write_text(json.dumps(pool.files))
    shards = [load(folder / "shard.tar", folder / "data", image_size=size) for size in (8, 64)]
    for pool in shards:  # what the index has found good must not end a run later
        assert len(pool.images.take(np.arange(len(pool)))) == len(pool)
    (folder / "shards.json").write_text(json.dumps([len(pool) for pool in shards]))


def skipped(folder: Path, pattern: str) -> dict[str, str]:
    (file,) = [path for path in (folder / "data/cache").glob("*/skipped.json")
               if (path.parent / pattern).exists()]
    return {entry["file"]: entry["reason"] for entry in json.loads(file.read_text())}


@pytest.mark.skipif(sys.platform != "linux", reason="address space is limited as Linux does")
def test_no_file_ends_the_process_and_each_is_decoded_or_listed(tmp_path):
    files = write_files(tmp_path / "images", COUNT)
    with tarfile.open(tmp_path / "shard.tar", "w") as tar:
        for number, name in enumerate(files):
            content = (tmp_path / "images" / name).read_bytes()
            for member, value in ((f"{number:05}.cls", name[:1].encode()), (f"{number:05}.png", content)):
                info = tarfile.TarInfo(member)
                info.size = len(value)
                tar.addfile(info, io.BytesIO(value))
    process = start("-X", "faulthandler", __file__, tmp_path, OMP_NUM_THREADS="1")
    with process:
        try:
            _, err = process.communicate(timeout=60 + COUNT / 4)
        finally:
            process.kill()
    assert process.returncode == 0, err[-3000:]

    decoded = set(json.loads((tmp_path / "decoded.json").read_text()))
    refused = skipped(tmp_path, "images.npy")
    assert decoded | refused.keys() == set(files)
    assert not decoded & refused.keys()
    assert set(files[:len(originals())]) <= decoded
    assert min(len(decoded), len(refused)) > COUNT / 10, "the accidents are neither all harmless nor all fatal"
    counts = json.loads((tmp_path / "shards.json").read_text())
    refused_of_shard = skipped(tmp_path, "members.npy")
    assert [count + len(refused_of_shard) for count in counts] == [len(files)] * 2
    for reason in [*refused.values(), *refused_of_shard.values()]:
        assert reason
        assert "\n" not in reason
        assert not re.search(r"\b0x|/tmp", reason), "the same on every machine"


def test_the_originals_show_what_they_are():
    for name, content in originals().items():
        with Image.open(io.BytesIO(content)) as image:
            assert image.format.lower() == name.partition(".")[2]
            assert image.size == (56, 40)
    frames = {name: len(list(ImageSequence.Iterator(Image.open(io.BytesIO(content)))))
              for name, content in originals().items()}
    assert sorted(frames.values())[-3:] == [3, 3, 3]


if __name__ == "__main__":
    job(Path(sys.argv[1]))
