"""A person's own images: every kind of file that folders hold, the cache, folder layouts and CSV lists."""

import errno
import io
import json
import os
import random
import threading
import time
import tracemalloc
import warnings
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from small_runs import BAD_NPY

from ssl_lab.data import load
from ssl_lab.data.cache import decode_files, open_or_make
from ssl_lab.data.decode import decoding, probe, read_image, upright
from ssl_lab.data.reading import Reading
from ssl_lab.errors import UsageError

RED = (200, 30, 20)


def put(path, image=None, **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    (image or Image.new("RGB", (12, 10), RED)).save(path, **options)
    return path


def animals(root, count=5):
    """Two classes of `count` images, and one unlabeled image."""
    for number in range(count):
        put(root / f"cat/{number}.png", Image.new("RGB", (12, 10), (number, 0, 0)))
        put(root / f"dog/deep/{number}.png", Image.new("RGB", (12, 10), (0, number, 0)))
    put(root / "loose.png")
    return root


def pixels_of(pool, file):
    return pool.images.take(np.array([pool.files.index(file)]))[0].numpy()


def texture(height, width, channels=3):
    """A smooth picture, so that no codec or resampling makes much of a difference."""
    y, x = np.mgrid[0:1:height * 1j, 0:1:width * 1j]
    return np.rint(255 * np.stack([y, x, (x + y) / 2], axis=-1)[..., :channels]).astype(np.uint8)


# --- files ---

def test_a_folder_of_every_kind_of_image(tmp_path):
    root = tmp_path / "photos"
    animals(root)
    wide = (np.arange(120, dtype=np.uint16) * 257).reshape(10, 12)
    frames = [Image.new("RGB", (12, 10), RED), Image.new("RGB", (12, 10), "blue")]
    clear = Image.new("RGBA", (12, 10), (*RED, 0))
    palette = Image.new("P", (12, 10), 1)
    palette.putpalette([0, 0, 0, *RED])
    turned = Image.new("RGB", (20, 10), RED)
    turned.paste((0, 0, 255), (0, 0, 10, 10))
    orientation = Image.Exif()
    orientation[0x0112] = 6
    kinds = {
        "bits16.png": (Image.fromarray(wide), {}),
        "gray.png": (Image.new("L", (12, 10), 90), {}),
        "bilevel.png": (Image.new("1", (12, 10), 1), {}),
        "gray_alpha.png": (Image.new("LA", (12, 10), (90, 0)), {}),
        "palette.png": (palette, {}),
        "palette_clear.png": (palette, {"transparency": 1}),
        "clear.png": (clear, {}),
        "half.png": (Image.new("RGBA", (12, 10), (*RED, 128)), {}),
        "clear.webp": (clear, {"lossless": True}),
        "animated.gif": (frames[0], {"save_all": True, "append_images": frames[1:]}),
        "animated.png": (frames[0], {"save_all": True, "append_images": frames[1:]}),
        "cmyk.jpg": (Image.new("CMYK", (12, 10), (0, 255, 255, 0)), {"quality": 95}),
        "float.tiff": (Image.fromarray(np.full((10, 12), 0.5, np.float32)), {}),
        "tiny.png": (Image.new("RGB", (1, 1), RED), {}),
        "thin.png": (Image.new("RGB", (1, 300), RED), {}),
        "upper.JPG": (frames[0], {"quality": 95, "format": "JPEG"}),
        "bitmap.bmp": (frames[0], {}),
        "portable.ppm": (frames[0], {}),
        "turned.jpg": (turned, {"quality": 95, "exif": orientation}),
    }
    for name, (image, options) in kinds.items():
        put(root / "unlabeled" / name, image, **options)
    whole = (root / "unlabeled/upper.JPG").read_bytes()
    whole_png = put(tmp_path / "whole.png", Image.fromarray(texture(40, 40))).read_bytes()
    bad = {"zero.png": b"", "text.jpg": b"not an image", "cut.jpg": whole[:len(whole) // 2],
           "cut.png": whole_png[:len(whole_png) // 2],
           "postscript.png": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n"}
    for name, content in bad.items():
        (root / "cat" / name).write_bytes(content)
    os.mkfifo(root / "cat/pipe.png")
    (root / "cat/gone.png").symlink_to(root / "nowhere.png")
    put(root / "dog/huge.png", Image.new("1", (9000, 8000)))

    pool = load(root, tmp_path / "data", image_size=8)
    assert pool.images.shape == (3, 8, 8)
    assert set(pool.files) == ({f"unlabeled/{name}" for name in kinds} | {"loose.png"}
                               | {f"cat/{i}.png" for i in range(5)} | {f"dog/deep/{i}.png" for i in range(5)})
    white = (255, 255, 255)
    solid = {"gray.png": (90, 90, 90), "bilevel.png": white, "gray_alpha.png": white, "palette.png": RED,
             "palette_clear.png": white, "clear.png": white, "clear.webp": white, "animated.gif": RED,
             "animated.png": RED, "float.tiff": (128, 128, 128), "tiny.png": RED, "thin.png": RED,
             "bitmap.bmp": RED, "portable.ppm": RED, "half.png": (227, 142, 137)}
    for name, color in solid.items():
        assert np.abs(pixels_of(pool, f"unlabeled/{name}") - np.reshape(color, (3, 1, 1)).astype(int)).max() <= 1, name
    for name, color in {"upper.JPG": RED, "cmyk.jpg": (255, 0, 0)}.items():
        assert np.abs(pixels_of(pool, f"unlabeled/{name}") - np.reshape(color, (3, 1, 1)).astype(int)).max() <= 4, name
    bits16 = pixels_of(pool, "unlabeled/bits16.png")
    assert 100 < bits16.astype(int).sum(axis=0).mean() / 3 * 2 < 140
    assert (np.diff(bits16[0].astype(int), axis=0) > 0).all(), "rises from row to row as the 16 bits do"
    top, bottom = (pixels_of(pool, "unlabeled/turned.jpg")[:, rows].mean((1, 2)) for rows in (slice(3), slice(5, 8)))
    assert top[2] > 200 > 60 > bottom[2], "what was left is up after the turn"

    skipped = {entry["file"]: entry["reason"] for entry in
               json.loads(next((tmp_path / "data/cache").glob("*/skipped.json")).read_text())}
    assert skipped.keys() == {f"cat/{name}" for name in [*bad, "pipe.png", "gone.png"]} | {"dog/huge.png"}
    assert skipped["cat/zero.png"] == "the file is empty"
    assert skipped["cat/text.jpg"] == "not an image of a known format, or its header is damaged"
    assert skipped["cat/postscript.png"] == skipped["cat/text.jpg"]
    assert skipped["dog/huge.png"] == "9000x8000 pixels, over max_pixels=64000000"
    assert skipped["cat/pipe.png"] == "not a regular file"
    assert skipped["cat/gone.png"] == "No such file or directory"
    assert "8 image files could not be read" in " ".join(pool.notes)
    assert "skipped.json" in " ".join(pool.notes)
    more = load(root, tmp_path / "data", image_size=8, max_pixels=100_000_000)
    assert "dog/huge.png" in more.files


def test_mutated_files_are_decoded_or_refused(tmp_path):
    rng = random.Random(0)
    originals = []
    for kind in ("JPEG", "PNG", "GIF", "WEBP", "BMP", "TIFF"):
        buffer = io.BytesIO()
        Image.fromarray(texture(20, 24)).save(buffer, kind)
        originals.append(buffer.getvalue())
    files = []
    for number in range(300):
        content = bytearray(rng.choice(originals))
        for _ in range(rng.randint(1, 8)):
            content[rng.randrange(len(content))] = rng.randrange(256)
        files.append(f"{number}.png")
        (tmp_path / files[-1]).write_bytes(content[:rng.randint(1, 2 * len(content))])
    decoded = decode_files(tmp_path, files, tmp_path / "cache", Reading(16))
    assert len(decoded.rows) + len(decoded.skipped) == 300
    assert len(decoded.rows) > 50
    assert len(decoded.skipped) > 20
    assert all(reason and "\n" not in reason and "0x" not in reason for _, reason in decoded.skipped)


@pytest.mark.parametrize(("height", "width"), [(300, 200), (100, 400), (64, 64)])
def test_resizing_takes_the_shorter_side_and_the_center(tmp_path, height, width):
    picture = Image.fromarray(texture(height, width))
    short = min(height, width)
    left, top = (width - short) // 2, (height - short) // 2
    expected = np.asarray(picture.crop((left, top, left + short, top + short))
                          .resize((32, 32), Image.Resampling.BICUBIC)).transpose(2, 0, 1)
    for name, tolerance in [("a.png", 1), ("a.jpg", 6)]:
        path = put(tmp_path / name, picture, **({"quality": 95} if name == "a.jpg" else {}))
        assert np.abs(read_image(path, Reading(32, gray=False)).pixels.astype(int) - expected).max() <= tolerance


def test_a_header_that_promises_gigabytes_takes_no_memory(tmp_path):
    content = bytearray(put(tmp_path / "whole.png", Image.new("I;16", (12, 10), 70)).read_bytes())
    length = content.index(b"IDAT") - 4
    content[length:length + 4] = (2**31 - 1).to_bytes(4, "big")
    (tmp_path / "damaged.png").write_bytes(content)
    tracemalloc.start()
    try:
        for name in ("whole.png", "damaged.png"):
            with decoding():
                probe(tmp_path / name, Reading())
                read_image(tmp_path / name, Reading(8, gray=True))
        assert tracemalloc.get_traced_memory()[1] < 2**24
    finally:
        tracemalloc.stop()


def test_broken_exif_does_not_cost_the_image(tmp_path):
    path = put(tmp_path / "a.jpg", exif=b"Exif\0\0MM\0*\0\0\0\x08\0\x09\x01\x12\xff\xff")
    with decoding(), Image.open(path) as image:
        assert upright(image).image.size == (12, 10)


def test_settings_of_pillow_are_put_back(tmp_path):
    before = Image.MAX_IMAGE_PIXELS
    load(animals(tmp_path / "a"), tmp_path / "data")
    assert before == Image.MAX_IMAGE_PIXELS


def test_settings_of_pillow_are_put_back_by_the_last_of_several_threads():
    before, filters = Image.MAX_IMAGE_PIXELS, list(warnings.filters)
    both, first_is_out = threading.Barrier(2), threading.Event()
    inside = []

    def first():
        with decoding():
            both.wait(10)
        first_is_out.set()

    def second():
        with decoding():
            both.wait(10)
            first_is_out.wait(10)
            inside.append(Image.MAX_IMAGE_PIXELS)

    threads = [threading.Thread(target=work) for work in (first, second)]
    for thread in threads:
        thread.start()
        time.sleep(0.05)  # so that the first one in is the first one out
    for thread in threads:
        thread.join()
    assert (inside, Image.MAX_IMAGE_PIXELS, list(warnings.filters)) == ([None], before, filters)


def test_all_gray_images_have_one_channel_and_keep_their_size(tmp_path):
    for name in ("a/1.png", "a/2.png", "b/1.png", "b/2.png"):
        put(tmp_path / "gray" / name, Image.new("L", (28, 28), 90))
    pool = load(tmp_path / "gray", tmp_path / "data")
    assert pool.images.shape == (1, 28, 28)
    assert pool.style.mean == pytest.approx((90 / 255,))
    put(tmp_path / "gray/a/3.png", Image.new("RGB", (900, 900)))
    assert load(tmp_path / "gray", tmp_path / "data").images.shape == (3, 28, 28), "the median short side"
    for name in ("a/4.png", "b/4.png", "b/5.png", "b/6.png"):
        put(tmp_path / "gray" / name, Image.new("L", (400, 300), 90))
    assert load(tmp_path / "gray", tmp_path / "data").images.shape == (3, 224, 224), "at most 224"


# --- cache ---

def test_a_second_start_decodes_nothing(tmp_path, monkeypatch):
    root = animals(tmp_path / "animals")
    first = load(root, tmp_path / "data")

    def forbidden(*_):
        raise AssertionError("decoded again")

    with monkeypatch.context() as patch:
        patch.setattr("ssl_lab.data.cache._decode_into", forbidden)
        second = load(root, tmp_path / "data")
        with pytest.raises(AssertionError, match="decoded again"):
            load(root, tmp_path / "data", image_size=5)
    assert second.split(4).manifest() == first.split(4).manifest()
    assert second.style == first.style

    put(root / "cat/0.png", Image.new("RGB", (12, 10), (99, 99, 99)))
    changed = load(root, tmp_path / "data")
    assert pixels_of(changed, "cat/0.png").max() == 99
    assert changed.split(4).manifest()["hash"] != first.split(4).manifest()["hash"]


@pytest.mark.parametrize("damage", ["remove", "truncate", "empty", "bad header", "no meta", "bad meta", "old meta"])
def test_a_damaged_cache_is_made_again(tmp_path, damage):
    root = animals(tmp_path / "animals")
    before = load(root, tmp_path / "data").split(4).manifest()
    (folder,) = [path.parent for path in (tmp_path / "data/cache").glob("*/meta.json")]
    if damage == "remove":
        for file in folder.iterdir():
            file.unlink()
    elif damage == "truncate":
        os.truncate(folder / "images.npy", 200)
    elif damage == "empty":
        os.truncate(folder / "images.npy", 0)
    elif damage == "bad header":
        (folder / "contents.npy").write_bytes(BAD_NPY)
    elif damage == "no meta":
        (folder / "meta.json").unlink()
    else:
        (folder / "meta.json").write_text("[]" if damage == "bad meta" else '{"sha256": ""}')
    assert load(root, tmp_path / "data").split(4).manifest() == before


def test_an_interrupted_decoding_leaves_nothing(tmp_path, monkeypatch):
    def interrupted(*_, **__):
        raise KeyboardInterrupt

    root = animals(tmp_path / "animals")
    with monkeypatch.context() as patch:
        patch.setattr("ssl_lab.data.cache._write_header", interrupted)
        with pytest.raises(KeyboardInterrupt):
            load(root, tmp_path / "data")
    (lock,) = (tmp_path / "data/cache").iterdir()
    assert lock.suffix == ".lock"
    left = tmp_path / f"data/cache/.{lock.stem}-killed"
    left.mkdir()
    assert len(load(root, tmp_path / "data")) == 11
    assert not left.exists(), "nor does one that was killed"


def test_of_several_that_want_a_cache_one_makes_it_and_the_others_wait(tmp_path):
    folder, made = tmp_path / "data/key", []  # threads, as each locks a file that it opened itself

    def make():
        made.append(folder)
        time.sleep(0.2)
        folder.mkdir()

    def rank():
        assert open_or_make(folder, lambda: folder if folder.exists() else None, make, "it is made") == folder

    ranks = [threading.Thread(target=rank) for _ in range(3)]
    for thread in ranks:
        thread.start()
    for thread in ranks:
        thread.join()
    assert made == [folder]


def test_a_file_system_without_locks(tmp_path, monkeypatch):
    def refuse(*_):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr("fcntl.flock", refuse)
    assert len(load(animals(tmp_path / "animals"), tmp_path / "data")) == 11


@pytest.mark.parametrize("failure", [OSError(errno.EMFILE, "Too many open files"),
                                     PermissionError(errno.EACCES, "Permission denied"), MemoryError()])
def test_a_passing_failure_leaves_no_image_out_for_good(tmp_path, monkeypatch, failure):
    root = animals(tmp_path / "animals")

    def fails(path, reading):
        if path.name == "3.png":
            raise failure
        return probe(path, reading)

    with monkeypatch.context() as patch:
        patch.setattr("ssl_lab.data.cache.probe", fails)
        with pytest.raises(UsageError, match=r"cannot read .*/3.png: (Too many|Permission|MemoryError).* start again"):
            load(root, tmp_path / "data")
    assert len(load(root, tmp_path / "data")) == 11


def test_a_cache_that_cannot_be_written(tmp_path):
    (tmp_path / "data").write_text("a file where the folder should be")
    with pytest.raises(UsageError, match=r"cannot write .*data/cache"):
        load(animals(tmp_path / "animals"), tmp_path / "data")


# --- layouts ---

def test_class_folders_loose_images_and_a_held_out_test(tmp_path):
    root = animals(tmp_path / "animals", count=10)
    put(root / "unlabeled/1.png")
    put(root / ".hidden/1.png")
    put(root / "cat/.hidden.png")
    (root / "cat/Thumbs.db").write_bytes(b"x")
    pool = load(root, tmp_path / "data")
    assert (pool.name, pool.class_names, len(pool)) == ("animals", ("cat", "dog"), 22)
    assert [pool.files[row] for row in np.flatnonzero(pool.truth < 0)] == ["loose.png", "unlabeled/1.png"]
    assert np.bincount(pool.truth[pool.test]).tolist() == [2, 2]
    assert "4 labeled ones, 20% of each class, are held out" in " ".join(pool.notes)
    assert len(pool.unlabeled) == 18
    assert len(pool.labeled) == 16
    assert pixels_of(pool, "dog/deep/7.png")[1].max() == 7
    assert len(pool.split(4, valid=0.25).valid) == 4
    with pytest.raises(UsageError, match="labels=17"):
        pool.split(17)


def test_split_folders(tmp_path):
    root = tmp_path / "animals"
    for part, count in [("train", 3), ("val", 2), ("test", 1)]:
        animals(root / part, count)
    put(root / "unlabeled/1.png")
    put(root / "extra/1.png")
    put(root / "top.png")
    pool = load(root, tmp_path / "data")
    assert [len(rows) for rows in (pool.train, pool.valid, pool.test)] == [6 + 1 + 2, 4, 2]
    assert pool.class_names == ("cat", "dog")
    assert {pool.files[row].split("/")[0] for row in pool.valid} == {"val"}
    assert np.array_equal(pool.split(2).valid, pool.valid)
    notes = " ".join(pool.notes)
    assert "beside train/ are left out: extra" in notes
    assert "2 images of valid or test have no label" in notes


@pytest.mark.parametrize(("train", "test"), [("Train", "Test"), ("training", "testing"), ("TRAIN", "Validation")])
def test_split_folders_by_other_names(tmp_path, train, test):
    for part in (train, test):
        animals(tmp_path / "animals" / part, 2)
    put(tmp_path / "animals/Unlabeled/1.png")
    pool = load(tmp_path / "animals", tmp_path / "data", image_size=8)
    assert pool.class_names == ("cat", "dog")
    assert np.count_nonzero(pool.truth < 0) == 2
    given = pool.valid if len(pool.valid) else pool.test
    assert {pool.files[row].split("/")[0] for row in given} == {test}


def test_a_class_of_trains(tmp_path):
    for name in ("bus", "car", "train"):
        put(tmp_path / f"vehicles/{name}/1.png")
    assert load(tmp_path / "vehicles", tmp_path / "data").class_names == ("bus", "car", "train")
    put(tmp_path / "vehicles/test/bus/1.png")
    pool = load(tmp_path / "vehicles", tmp_path / "data")
    assert (pool.class_names, len(pool.test)) == (("bus", "car", "train"), 1)
    assert any("train/ holds images, no class folders" in note for note in pool.notes)
    put(tmp_path / "alone/train/1.png")
    put(tmp_path / "alone/unlabeled/1.png")
    assert load(tmp_path / "alone", tmp_path / "data").classes == 0


def test_class_folders_without_images_are_noted(tmp_path):
    root = animals(tmp_path / "animals", 2)
    (root / "empty").mkdir()
    (root / "phone").mkdir()
    (root / "phone/1.heic").write_bytes(b"x")
    (root / "unlabeled").mkdir()
    pool = load(root, tmp_path / "data")
    assert pool.class_names == ("cat", "dog")
    assert pool.notes[0].startswith(f"2 class folders of {root} hold no file of .apng ")
    assert pool.notes[0].endswith(".webp: empty, phone")


def test_a_class_folder_that_cannot_be_read_is_named(tmp_path, monkeypatch):
    root = animals(tmp_path / "animals")
    scandir = os.scandir

    def refuse(path):
        if Path(path).name in closed:
            raise PermissionError(errno.EACCES, "Permission denied", str(path))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refuse)
    for closed in (["dog"], ["animals"]):
        with pytest.raises(UsageError, match=f"cannot read the folder .*{closed[0]}: Permission denied. Mend"):
            load(root, tmp_path / "data")


def test_folders_that_cannot_be_used(tmp_path):
    (tmp_path / "empty/cat").mkdir(parents=True)
    with pytest.raises(UsageError, match="holds no image"):
        load(tmp_path / "empty", tmp_path / "data")
    put(tmp_path / "one/cat/1.png")
    put(tmp_path / "one/2.png")
    with pytest.raises(UsageError, match="one class only, 'cat'"):
        load(tmp_path / "one", tmp_path / "data")
    for name in ("cat", "dog"):
        (tmp_path / "broken" / name).mkdir(parents=True)
        (tmp_path / "broken" / name / "1.png").write_bytes(b"")
    with pytest.raises(UsageError, match=r"none of the 2 images of .* The first, 'cat/1.png': the file is empty"):
        load(tmp_path / "broken", tmp_path / "data")
    put(tmp_path / "useless/test/1.png")
    (tmp_path / "useless/train").mkdir()
    with pytest.raises(UsageError, match="no image that could train"):
        load(tmp_path / "useless", tmp_path / "data")


def test_a_folder_without_any_label(tmp_path):
    for number in range(3):
        put(tmp_path / f"plain/{number}.png")
    pool = load(tmp_path / "plain", tmp_path / "data")
    assert (pool.classes, len(pool.unlabeled), len(pool.test)) == (0, 3, 0)
    assert [note.partition(" of ")[0] for note in pool.notes] == ["17%"]
