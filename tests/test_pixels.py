"""How pixels are read, the same on every path: values, sizes, transparency, mirroring, and what is said of them."""

import csv
import io
import os
import tarfile

import numpy as np
import pytest
import torch
from PIL import Image

from ssl_lab.data import Pool, load
from ssl_lab.data.reading import Reading
from ssl_lab.data.remarks import remarks
from ssl_lab.data.sizes import Sizes, fit_batch, fit_picture
from ssl_lab.data.values import Values, decide, parse_range, survey
from ssl_lab.errors import UsageError

PATHS = ["folder", "csv", "arrays", "npz", "pictures", "tensors", "shards"]
FILES = ["folder", "csv", "pictures", "shards"]


def encoded(image):
    buffer = io.BytesIO()
    image.save(buffer, "TIFF")
    return buffer.getvalue()


def pool_of(path, folder, images, **options):
    """The pool of images (of arrays, or of PIL images) of two classes in turn, by one of the paths."""
    labels = np.arange(len(images)) % 2
    pictures = [image if isinstance(image, Image.Image) else Image.fromarray(image) for image in images]
    if path in ("folder", "csv"):
        for row, picture in enumerate(pictures):
            file = folder / "images" / f"{row % 2}" / f"{row:03}.tif"
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_bytes(encoded(picture))
        if path == "csv":
            with (folder / "list.csv").open("w", newline="") as out:
                csv.writer(out).writerows([("path", "label"), *((f"images/{row % 2}/{row:03}.tif", row % 2)
                                                               for row in range(len(images)))])
            return load(folder / "list.csv", folder / "data", **options)
        return load(folder / "images", folder / "data", **options)
    if path == "shards":
        with tarfile.open(folder / "all.tar", "w") as out:
            for row, picture in enumerate(pictures):
                for suffix, content in (("tif", encoded(picture)), ("cls", str(row % 2).encode())):
                    info = tarfile.TarInfo(f"{row:03}.{suffix}")
                    info.size = len(content)
                    out.addfile(info, io.BytesIO(content))
        return load(folder / "all.tar", folder / "data", **options)
    if path == "npz":
        np.savez(folder / "all.npz", images=np.stack(images), labels=labels)
        return load(folder / "all.npz", folder / "data", **options)
    if path == "arrays":
        return Pool.from_arrays(np.stack(images), labels, **options)
    rows = pictures if path == "pictures" else [torch.from_numpy(image.astype(image.dtype.newbyteorder("=")))
                                                for image in images]
    return Pool.from_dataset(list(zip(rows, labels.tolist(), strict=True)), **options)


def pixels_of(pool):
    """In the order in which the images were given."""
    order = np.argsort(pool.files) if pool.files else np.arange(len(pool))
    names = [file.rpartition("/")[2] for file in pool.files]
    order = np.argsort(names) if names else order
    return pool.images.take(order).numpy()[:, 0]


def said(pool):
    """Its notes on pixels."""
    return " | ".join(note for note in pool.notes if "no test images" not in note)


RAMP = np.arange(120).reshape(10, 12)[:, :10]  # 0 to 117


def images_of(top, dtype, low=0):
    """Six images that rise from `low` to `top`, the last one darker than the rest."""
    rising = low + (top - low) * (RAMP / RAMP.max())
    whole = np.issubdtype(dtype, np.integer)
    images = [np.rint(rising) if whole else rising] * 5
    darker = low + (images[0] - low) / 2
    return [image.astype(dtype) for image in [*images, np.rint(darker) if whole else darker]]


# --- values ---

@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize(("top", "dtype", "white", "words"), [
    (1.0, np.float32, 1, "floats up to 1, are read as 0..1;"),
    (1.000001, np.float32, 1, "are read as 0..1;"),
    (255.0, np.float32, 255, "floats up to 255, are read as 0..255;"),
    (200.5, np.float32, 255, "are read as 0..255;"),
    (4000.5, np.float32, 4095, "are read as 0..4095;"),
    (1000, np.uint16, 1023, "are read as 0..1023 (10 bits);"),
    (4000, np.uint16, 4095, "whole numbers up to 4000, are read as 0..4095 (12 bits); --value-range LOW-HIGH"),
    (16000, np.uint16, 16383, "are read as 0..16383 (14 bits);"),
    (65000, np.uint16, 65535, ""),
    (250, np.uint16, 255, "are read as 0..255;"),
    (3000, np.int32, 4095, "are read as 0..4095 (12 bits);"),
    (1, np.int32, 1, "are read as 0..1;"),
    (1, np.uint8, 1, "all pixels are 0 or 1, and 1 is read as white"),
    (250, np.uint8, 255, ""),
])
def test_the_whole_set_says_what_white_is(tmp_path, path, top, dtype, white, words):
    images = images_of(top, dtype)
    pool = pool_of(path, tmp_path, images)
    expected = np.rint(np.stack(images).astype(np.float64) * 255 / white).clip(0, 255)
    assert np.abs(pixels_of(pool) - expected).max() <= (0 if np.issubdtype(dtype, np.integer) else 1)
    assert words in said(pool)
    assert ("are read" in said(pool)) == ("are read" in words)
    assert pool.reading.values.of("bytes" if dtype == np.uint8 else "floats" if dtype == np.float32 else
                                  "whole numbers") == (0, white)


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize(("images", "given", "expected"), [
    (images_of(1.0, np.float32, low=-1.0), None, lambda x: (x + 1) * 127.5),
    (images_of(1.0, np.float32), "0-2", lambda x: x * 127.5),
    (images_of(4000, np.uint16), (0, 65535), lambda x: x / 257),
    (images_of(4000, np.uint16), "1000-2000", lambda x: ((x - 1000) * 0.255).clip(0, 255)),
    (images_of(900, np.int32, low=-100), "-100-900", lambda x: (x + 100) * 0.255),
    (images_of(200, np.uint8), "0-200", lambda x: x * 1.275),
    (images_of(2, np.uint8), "0..2", lambda x: x * 127.5),
])
def test_a_person_says_what_black_and_white_are(tmp_path, path, images, given, expected):
    pool = pool_of(path, tmp_path, images, value_range=given)
    assert np.abs(pixels_of(pool) - expected(np.stack(images).astype(np.float64))).max() <= 0.51
    assert ("are read as -1..1" in said(pool)) == (given is None)
    assert ("clipped to 1000..2000" in said(pool)) == (given == "1000-2000")


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize(("images", "words"), [
    (images_of(3.2, np.float32), "floats from 0 to 3.2, expected"),
    (images_of(1.07, np.float32, low=-0.06), "floats from -0.06 to 1.07, expected"),
    (images_of(2.6, np.float32, low=-2.1), "before any normalization"),
    (images_of(100000, np.int32), "whole numbers from 0 to 100000, expected"),
    (images_of(900, np.int32, low=-100), "value_range=.-100, 900"),
    (images_of(250.5, np.float32)[:5] + images_of(0.9, np.float32)[:1], "spans 0 to 1 at most, others reach 250.5"),
])
def test_values_that_fit_nothing_are_refused(tmp_path, path, images, words):
    with pytest.raises(UsageError, match=words):
        pool_of(path, tmp_path, images)


@pytest.mark.parametrize("path", PATHS)
def test_few_levels_are_noted(tmp_path, path):
    images = images_of(32000, np.uint16, low=30000)
    pool = pool_of(path, tmp_path, images)
    assert "only 8 of 256 levels; --value-range 30000-32000" in said(pool)
    (tmp_path / "again").mkdir()
    assert np.ptp(pixels_of(pool_of(path, tmp_path / "again", images, value_range="30000-32000"))) == 255


@pytest.mark.parametrize("path", ["arrays", "tensors"])
def test_booleans_are_black_and_white(tmp_path, path):
    masks = [row <= RAMP for row in range(4)]
    assert np.array_equal(pixels_of(pool := pool_of(path, tmp_path, masks)), 255 * np.stack(masks))
    assert said(pool) == ""


@pytest.mark.parametrize("path", FILES)
def test_bytes_beside_wide_grays(tmp_path, path):
    images = [*images_of(4000, np.uint16)[:3], *images_of(200, np.uint8)[:3]]
    tops = pixels_of(pool_of(path, tmp_path, images)).reshape(6, -1).max(axis=1)
    assert tops.tolist() == [249] * 3 + [200] * 3


def test_floats_of_one_scale_beside_bytes_and_pictures():
    """Each kind is read as it is, whatever a data set mixes."""
    rgb = np.random.default_rng(0).integers(0, 256, (3, 10, 10), dtype=np.uint8)
    rows = [(torch.from_numpy(rgb) / 255, 0), (Image.fromarray(rgb.transpose(1, 2, 0)), 1), (torch.from_numpy(rgb), 0),
            (Image.fromarray(rgb[0].astype(np.uint16) * 257), 1)]
    pool = Pool.from_dataset(rows)
    taken = pool.images.take(np.arange(4)).numpy()
    assert [np.array_equal(image, rgb) for image in taken] == [True, True, True, False]
    assert np.array_equal(taken[3], np.stack([rgb[0]] * 3))


def test_train_and_test_on_different_scales_are_refused():
    unit, wide = np.stack(images_of(1.0, np.float32)), np.stack(images_of(255.0, np.float32))
    signed = np.stack(images_of(1.0, np.float32, low=-1.0))
    labels = np.arange(6) % 2
    for train, test in [(unit, wide), (wide, unit), (unit, signed), (signed, unit),
                        ((wide * 200).astype(np.int64), (wide / 2).astype(np.int64))]:
        with pytest.raises(UsageError, match="different scales"):
            Pool.from_arrays(train, labels, test, labels)
        with pytest.raises(UsageError, match="different scales"):
            Pool.from_dataset(list(zip(train, labels, strict=True)), list(zip(test, labels, strict=True)))
    pool = Pool.from_arrays(unit, labels, unit / 20, labels)
    assert pool.images.take(pool.test).max() == 13, "dark test images are read as the train images"


def pool_with_test(path, folder, train, test, **options):
    """The pool of these arrays of two classes in turn, train and test, by one of the paths."""
    labels, images = np.arange(len(train)) % 2, [*train, *test]
    each = np.concatenate([labels, np.arange(len(test)) % 2]).tolist()
    parts = ["train"] * len(train) + ["test"] * len(test)
    files = [f"{part}/{label}/{row:03}.tif" for row, (part, label) in enumerate(zip(parts, each, strict=True))]
    if path == "npz":
        np.savez(folder / "all.npz", images=np.stack(train), labels=labels, test_images=np.stack(test),
                 test_labels=each[len(train):])
        return load(folder / "all.npz", folder / "data", **options)
    if path == "arrays":
        return Pool.from_arrays(np.stack(train), labels, np.stack(test), each[len(train):], **options)
    if path in ("tensors", "pictures"):
        rows = [torch.from_numpy(image) if path == "tensors" else Image.fromarray(image) for image in images]
        pairs = list(zip(rows, each, strict=True))
        return Pool.from_dataset(pairs[:len(train)], pairs[len(train):], **options)
    for file, image, label in zip(files, images, each, strict=True):
        (folder / "images" / file).parent.mkdir(parents=True, exist_ok=True)
        (folder / "images" / file).write_bytes(encoded(Image.fromarray(image)))
        if path == "shards":
            with tarfile.open(folder / f"{file.partition('/')[0]}.tar", "a") as out:
                out.add(folder / "images" / file, file[-7:])
                info = tarfile.TarInfo(f"{file[-7:-4]}.cls")
                info.size = 1
                out.addfile(info, io.BytesIO(str(label).encode()))
    if path == "csv":
        (folder / "list.csv").write_text("path,label,split\n" + "".join(
            f"images/{file},{label},{part}\n" for file, label, part in zip(files, each, parts, strict=True)))
        return load(folder / "list.csv", folder / "data", **options)
    return load(str(folder / "{train,test}.tar") if path == "shards" else folder / "images", folder / "data", **options)


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize(("train", "test", "white"), [(1000, 4000, 4095), (4000, 1000, 4095), (16000, 60000, 65535)])
def test_parts_of_different_bits_are_read_alike(tmp_path, path, train, test, white):
    train, test = images_of(train, np.uint16), images_of(test, np.uint16)
    pool = pool_with_test(path, tmp_path, train, test)
    assert (len(pool.train), len(pool.test)) == (6, 6)
    assert pool.reading.values.of("whole numbers") == (0, white)
    expected = np.rint(np.stack([*train, *test]).astype(np.float64) * 255 / white)
    for rows, part in ((pool.train, expected[:6]), (pool.test, expected[6:])):
        found = np.sort(pool.images.take(rows).numpy().reshape(6, -1).max(axis=1))
        assert np.array_equal(found, np.sort(part.reshape(6, -1).max(axis=1))), "each as bright as it was"


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize(("train", "test"), [
    (images_of(4000, np.uint16), images_of(65000, np.uint16)), (images_of(65000, np.uint16), images_of(200, np.uint16)),
    (images_of(200.5, np.float32), images_of(0.9, np.float32)),
])
def test_parts_on_different_scales_are_refused(tmp_path, path, train, test):
    with pytest.raises(UsageError, match=r"images on different scales. Bring them to one, or say .*--value-range"):
        pool_with_test(path, tmp_path, train, test)
    (tmp_path / "said").mkdir()
    assert len(pool_with_test(path, tmp_path / "said", train, test, value_range="0-65535")) == 12


def test_memory_maps_of_bytes_stay_mapped_and_are_not_read_through(tmp_path, monkeypatch):
    np.save(tmp_path / "a.npy", np.full((5000, 4, 4), 7, np.uint8))
    mapped = np.load(tmp_path / "a.npy", mmap_mode="r")
    found = survey(mapped[:, None], str)
    assert found["bytes"].high == 255
    pool = Pool.from_arrays(mapped, np.arange(5000) % 2)
    assert np.shares_memory(pool.images.pixels, mapped)


@pytest.mark.parametrize(("text", "pair"), [
    ("0-1", (0, 1)), ("0..255", (0, 255)), ("-1-1", (-1, 1)), ("-1--0.5", (-1, -0.5)), ("-1024:3071", (-1024, 3071)),
    ((0, 1), (0, 1)), ([0, 4095], (0, 4095)), (None, None), ("auto", None), (" 0 - 1e3 ", (0, 1000)),
])
def test_ranges(text, pair):
    assert parse_range(text) == pair


@pytest.mark.parametrize("text", ["", "1", "1-0", "0-0", "0-nan", "0-1-2", "black", (1,), 5, ("a", "b"), (0, np.inf)])
def test_ranges_that_are_none(text):
    with pytest.raises(UsageError, match=r"value_range=.*expected auto"):
        parse_range(text)


def test_named_data_sets_hold_bytes():
    with pytest.raises(UsageError, match="digits holds bytes"):
        load("digits", value_range="0-16")


def test_sixteen_bits_a_color_are_noted(tmp_path):
    (tmp_path / "a").mkdir()
    for row in range(4):
        (tmp_path / f"a/{row}.ppm").write_bytes(b"P6 4 4 255\n" + bytes(48))
    import struct
    import zlib

    def chunk(name, content):
        return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))

    rows = b"".join(b"\0" + np.full((4, 3), 4095, ">u2").tobytes() for _ in range(4))
    (tmp_path / "a/deep.png").write_bytes(
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", struct.pack(">IIBBBBB", 4, 4, 16, 2, 0, 0, 0))
        + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b""))
    (tmp_path / "list.csv").write_text("path,label\n" + "".join(f"a/{name},\n" for name in ["0.ppm", "deep.png"]))
    assert "1 images have 16 bits a color channel" in said(load(tmp_path / "list.csv", tmp_path / "data"))


# --- sizes ---

def ramps(sizes):
    """Gray images of (width, height) that rise from left to right."""
    return [np.tile(np.linspace(0, 255, width).astype(np.uint8), (height, 1)) for width, height in sizes]


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize(("resize", "shape", "left", "word"), [
    ("crop", (1, 8, 8), 64, "50% of the area is cropped"), ("pad", (1, 8, 8), 0, ""), ("squash", (1, 8, 8), 0, "")])
def test_wide_images_come_to_a_square(tmp_path, path, resize, shape, left, word):
    pool = pool_of(path, tmp_path, ramps([(32, 16)] * 4), image_size=8, resize=resize)
    assert pool.images.shape == shape
    pixels = pixels_of(pool).astype(int)
    assert pixels[0, :, 0] == pytest.approx(left + 8, abs=16)
    assert pixels[0, :, -1] == pytest.approx(255 - left - 8, abs=16)
    assert (np.diff(pixels[0], axis=0) == 0).all(), "padded by the rows at the edges"
    assert said(pool).startswith(word) if word else said(pool) == ""
    assert (pool.reading.image_size, pool.reading.resize) == (8, resize)


@pytest.mark.parametrize("path", PATHS)
def test_without_a_size(tmp_path, path):
    def shape(name, **options):
        (tmp_path / name).mkdir()
        return pool_of(path, tmp_path / name, ramps([(32, 16)] * 4), **options).images.shape

    in_memory = path not in ("folder", "csv", "shards")
    assert shape("none", resize="none") == (1, 16, 32)
    assert shape("crop") == ((1, 16, 32) if in_memory else (1, 16, 16))
    assert shape("pad", resize="pad") == (1, 32, 32)
    assert shape("squash", resize="squash") == (1, 16, 16)


@pytest.mark.parametrize("path", ["folder", "csv", "shards", "pictures", "tensors"])
def test_different_sizes(tmp_path, path):
    images = ramps([(32, 16), (16, 32), (40, 40), (20, 10)])
    with pytest.raises(UsageError, match=r"32x16 and (16x32|40x40)|row 1 of the data set is 16x32"):
        pool_of(path, tmp_path, images, resize="none")
    assert pool_of(path, tmp_path, images, image_size=12, resize="pad").images.shape == (1, 12, 12)


def test_train_and_test_arrays_of_different_sizes_come_to_one():
    train, test = np.stack(ramps([(8, 8)] * 4)), np.stack(ramps([(16, 16)] * 2))
    with pytest.raises(UsageError, match="the same channels, height and width"):
        Pool.from_arrays(train, [0, 1] * 2, test, [0, 1])
    assert Pool.from_arrays(train, [0, 1] * 2, test, [0, 1], image_size=6).images.shape == (1, 6, 6)


@pytest.mark.parametrize("resize", ["crop", "pad", "squash"])
@pytest.mark.parametrize(("width", "height"), [(40, 17), (17, 40), (9, 9), (1, 30), (64, 63)])
def test_batches_and_pictures_are_resized_alike(resize, width, height):
    y, x = np.mgrid[0:1:height * 1j, 0:1:width * 1j]
    picture = np.rint(120 * y + 120 * x).astype(np.uint8)
    ours = np.asarray(fit_picture(Image.fromarray(picture), 16, resize)).astype(int)
    batch = fit_batch(torch.from_numpy(picture)[None, None], 16, resize)[0, 0].numpy()
    assert ours.shape == batch.shape == (16, 16)
    assert np.abs(ours - batch).max() <= (4 if resize == "crop" else 2), "Pillow crops between pixels"


def test_words_on_sizes():
    sizes = Sizes.of([(640, 480)] * 3 + [(500, 500)])
    crop, shrunk = sizes.notes(None, "crop")
    assert crop.startswith("19% of the area is cropped")
    assert shrunk.startswith("images of usually 480 pixels (shorter side) are resized to 224; --image-size N")
    assert sizes.notes(64, "pad") == []
    assert (sizes.side(None, "pad"), sizes.side(None, "squash"), sizes.side(9, "crop")) == (224, 224, 9)
    for reading, word in [({"resize": "fit"}, "unknown resize"), ({"resize": "none", "image_size": 8}, "one of them"),
                          ({"background": "red"}, "unknown background"), ({"image_size": 0}, "image_size=0")]:
        with pytest.raises(UsageError, match=word):
            Reading(**reading)


def test_turned_photographs_keep_the_size_that_is_seen(tmp_path):
    """Of a camera: half of them lie on their side and say so."""
    exif = Image.Exif()
    exif[0x0112] = 6
    for row in range(4):
        path = tmp_path / f"a/{row % 2}/{row}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (12, 20) if row < 2 else (20, 12)).save(path, exif=exif if row < 2 else Image.Exif())
    assert load(tmp_path / "a", tmp_path / "data", resize="none").images.shape == (3, 12, 20)


# --- transparency ---

@pytest.mark.parametrize("path", FILES)
@pytest.mark.parametrize(("background", "value"), [("white", 255), ("black", 0)])
def test_transparent_images_are_noted(tmp_path, path, background, value):
    opaque, clear = np.full((8, 8, 4), 200, np.uint8), np.full((8, 8, 4), 200, np.uint8)
    opaque[..., 3], clear[..., 3] = 255, 0
    pool = pool_of(path, tmp_path, [opaque, clear, opaque, clear], background=background)
    assert pixels_of(pool)[:, 0, 0].tolist() == [200, value] * 2
    other = "black" if background == "white" else "white"
    assert said(pool) == (f"2 images are transparent in places, shown on {background}; --background {other} shows them "
                          f"on {other}")


# --- mirroring ---

@pytest.mark.parametrize("path", PATHS)
def test_views_mirror_unless_they_are_told_not_to(tmp_path, path):
    images = ramps([(8, 8)] * 4)
    for name, flip, expected in [("auto", None, True), ("on", True, True), ("off", False, False)]:
        (tmp_path / name).mkdir()
        pool = pool_of(path, tmp_path / name, images, flip=flip)
        assert (pool.style.flip, pool.reading.flip) == (expected, flip)


def test_named_data_sets_mirror_as_they_should():
    assert [load("digits", flip=flip).style.flip for flip in (None, True, False)] == [False, True, False]
    assert remarks(load("digits")) == remarks(load("digits", flip=True)) == ()


# --- starts ---

@pytest.mark.parametrize("path", ["folder", "csv", "shards"])
def test_a_second_start_says_the_same_and_reads_no_file(tmp_path, path, monkeypatch):
    images = [*images_of(4000, np.uint16)[:3], np.tile(images_of(200, np.uint8)[0], (1, 3))]
    first = pool_of(path, tmp_path, images)
    place = tmp_path / {"folder": "images", "csv": "list.csv", "shards": "all.tar"}[path]
    monkeypatch.setattr("ssl_lab.data.cache.probe", lambda *_, **__: pytest.fail("read again"))
    monkeypatch.setattr("ssl_lab.data.shard_index.scan_shard", lambda *_, **__: pytest.fail("read again"))
    again = load(place, tmp_path / "data")
    assert again.notes == first.notes
    assert "12 bits" in said(again)
    assert "17% of the area" in said(again)
    assert (again.reading, again.images.fingerprint()) == (first.reading, first.images.fingerprint())


def test_settings_that_change_no_pixel_find_the_cache(tmp_path, capsys):
    pool_of("folder", tmp_path, ramps([(8, 8)] * 4))
    assert "decoded into" in capsys.readouterr().err
    load(tmp_path / "images", tmp_path / "data", flip=False)
    assert "decoded into" not in capsys.readouterr().err


def test_a_changed_file_of_the_same_size_and_date_is_decoded_again(tmp_path):
    for row in range(4):
        path = tmp_path / f"a/{row % 2}/{row}.bmp"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("L", (8, 8), 100 + row).save(path)
    before, status = load(tmp_path / "a", tmp_path / "data"), os.stat(path)
    content = path.stat().st_size
    Image.new("L", (8, 8), 7).save(path)
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
    assert (path.stat().st_size, path.stat().st_mtime_ns) == (content, status.st_mtime_ns)
    after = load(tmp_path / "a", tmp_path / "data")
    assert sorted(pixels_of(before)[:, 0, 0].tolist()) == [100, 101, 102, 103]
    assert sorted(pixels_of(after)[:, 0, 0].tolist()) == [7, 100, 101, 102]


def test_values_by_kind_without_a_survey():
    assert decide([]) == (Values(), [])
