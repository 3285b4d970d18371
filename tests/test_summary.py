"""What a run says of what was loaded: one line, once, on every path."""

import io
import tarfile

import numpy as np
import pytest
from PIL import Image

import ssl_lab as sl
from ssl_lab.data import Pool, images, load
from ssl_lab.data.images import ArrayImages, Concat, Resized, content_of
from ssl_lab.exits import exit_with_status
from ssl_lab.methods import Supervised
from ssl_lab.notes import at_most, tell

RNG = np.random.default_rng(0)
PIXELS = RNG.integers(0, 255, (12, 8, 8, 3), dtype=np.uint8)
PIXELS[9] = PIXELS[0]  # a test image that is also in train
PIXELS[5] = PIXELS[4]  # one image under two labels
PIXELS[7] = PIXELS[6]  # the same twice, with one label: nothing to say
LABELS = np.array([0, 0, 0, 1, 1, 0, 1, 1, -1, 0, 1, 1])
TEST = np.arange(9, 12)
COUNTS = "2 classes, 8 labeled, 1 unlabeled, 0 valid, 3 test (8 px, RGB)"
TWINS = "1 test image is also in train; 2 train images are there again with another label"


def png(pixels) -> bytes:
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "png")
    return file.getvalue()


def arrays(root):
    return Pool.from_arrays(PIXELS[:9], LABELS[:9], PIXELS[9:], LABELS[9:], name="photos")


def dataset(root):
    rows = list(zip(PIXELS, LABELS.tolist(), strict=True))
    return Pool.from_dataset(rows[:9], rows[9:], class_names=["0", "1"], name="photos")


def npz(root):
    np.savez(root / "photos.npz", images=PIXELS[:9], labels=LABELS[:9], test_images=PIXELS[9:], test_labels=LABELS[9:])
    return load(root / "photos.npz")


def folder(root):
    for i, (pixels, label) in enumerate(zip(PIXELS, LABELS, strict=True)):
        where = root / "photos" / ("test" if i in TEST else "train") / ("unlabeled" if label < 0 else str(label))
        where.mkdir(parents=True, exist_ok=True)
        (where / f"{i}.png").write_bytes(png(pixels))
    return load(root / "photos", data_dir=root / "caches")


def table(root):
    lines = ["path,label,split"]
    for i, (pixels, label) in enumerate(zip(PIXELS, LABELS, strict=True)):
        (root / f"{i}.png").write_bytes(png(pixels))
        lines.append(f"{i}.png,{label},{'test' if i in TEST else ''}")
    (root / "photos.csv").write_text("\n".join(lines) + "\n")
    return load(root / "photos.csv", data_dir=root / "caches")


def shards(root):
    pytest.importorskip("webdataset")
    (root / "photos").mkdir()
    for part in ("train", "test"):
        with tarfile.open(root / "photos" / f"{part}.tar", "w") as tar:
            for i in np.flatnonzero(np.isin(np.arange(12), TEST) == (part == "test")):
                for suffix, content in (("png", png(PIXELS[i])), ("cls", str(LABELS[i]).encode())):
                    info = tarfile.TarInfo(f"{i:02}.{suffix}")
                    info.size = len(content)
                    tar.addfile(info, io.BytesIO(content))
    return load(root / "photos", data_dir=root / "caches")


SOURCES = [arrays, dataset, npz, folder, table, shards]


@pytest.mark.parametrize("source", SOURCES)
def test_a_pool_is_one_line_on_every_path(source, tmp_path):
    pool = source(tmp_path)
    assert repr(pool) == str(pool) == f"photos: {COUNTS}; {TWINS}"
    assert repr(source(tmp_path) if source is not shards else pool) == repr(pool)  # from the cache too


@pytest.mark.parametrize("source", [arrays, folder])
def test_the_line_is_of_the_split_as_it_is_now(source, tmp_path):
    pool = source(tmp_path).split(labels=4, valid=2, seed=1)
    assert repr(pool).startswith("photos: 2 classes, 4 labeled, 3 unlabeled, 2 valid, 3 test (8 px, RGB)")
    pool.record(np.setdiff1d(pool.train, pool.labeled)[:2], [-2, 1])
    assert "5 labeled, 1 unlabeled, 2 valid, 3 test, 1 ignored" in repr(pool)


def test_other_shapes_and_many_images():
    pool = Pool.from_arrays(RNG.integers(0, 255, (1200, 1, 4, 6), dtype=np.uint8), np.arange(1200) % 2, name="wide")
    assert repr(pool) == "wide: 2 classes, 1,200 labeled, 0 unlabeled, 0 valid, 0 test (6x4 px, gray)"
    long = pool.split(imbalance=10)
    assert f"{1200 - len(long.train)} dropped for the long tail" in repr(long)


def test_what_is_too_large_is_not_read(monkeypatch):
    monkeypatch.setattr(images, "HASHED", 100)
    assert repr(arrays(None)).endswith("; whether images are there twice was not looked for (over 512 MiB of pixels)")


def test_contents_tell_images_apart():
    """Single bits and single bytes, swapped words, other lengths; and alike wherever an image stands."""
    base = np.zeros((1, 3, 8, 9), np.uint8)
    variants = [base]
    for place in range(base.size):
        for value in (1, 128, 255):
            variants.append(base.copy())
            variants[-1].flat[place] = value
    variants += [np.full_like(base, value) for value in range(1, 256)]
    pixels = np.concatenate(variants)
    found = content_of(pixels)
    assert len(np.unique(found)) == len(pixels)
    np.testing.assert_array_equal(content_of(pixels[::-1]), found[::-1])
    masks = RNG.integers(0, 2, (20_000, 1, 8, 8), dtype=np.uint8) * 128  # all that differs is the top bit of bytes
    masks[:, :, :, :7] = 0  # of a word, on a machine that keeps its last byte on top
    assert len(np.unique(content_of(masks))) == len(np.unique(masks.reshape(len(masks), -1), axis=0))
    assert content_of(np.zeros((1, 8), np.uint8)) != content_of(np.zeros((1, 16), np.uint8))
    both = Concat([ArrayImages(pixels[:5]), Resized(ArrayImages(pixels[5:9]), 4)])
    np.testing.assert_array_equal(both.contents(), found[:9])


def said(capsys) -> list[str]:
    return [line for line in capsys.readouterr().err.splitlines() if "classes," in line]


def test_a_run_says_it_once(tmp_path, capsys, monkeypatch):
    pool = arrays(None)

    def run(out):
        return sl.Trainer(steps=1, out=tmp_path / out, device="cpu", callbacks=[]).fit(
            Supervised(sl.net("tiny_4", classes=2, style=pool.style)), pool, labeled=4)

    run("a")
    assert said(capsys) == [repr(pool)]
    exit_with_status(lambda: (run("b"), run("c")))
    assert said(capsys) == [repr(pool)]
    with at_most(0):
        exit_with_status(lambda: run("d"))
    assert said(capsys) == []
    monkeypatch.setenv("RANK", "1")
    tell(["a"])
    assert capsys.readouterr().err == ""


def test_notes_follow(capsys, tmp_path):
    pool = folder(tmp_path)
    held = load(tmp_path / "photos" / "train", data_dir=tmp_path / "caches")
    assert held.notes
    sl.announce(held)
    assert capsys.readouterr().err.splitlines()[-1 - len(held.notes):] == [
        repr(held), *(f"note: {note}" for note in held.notes)]
    assert pool.notes == ()
