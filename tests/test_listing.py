"""What is listed, by whatever path it comes: a folder, a CSV file, tar shards, arrays."""

import csv
import io
import os
import tarfile
import unicodedata

import numpy as np
import pytest
from PIL import Image

from ssl_lab.data import Pool, load
from ssl_lab.errors import UsageError


def encoded(number):
    buffer = io.BytesIO()
    Image.new("RGB", (6, 5), (number % 256, number // 256, 90)).save(buffer, "PNG")
    return buffer.getvalue()


def put(path, number=0):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(encoded(number))
    return path


def as_folder(root, images):
    for n, (label, part) in enumerate(images):
        where = root / part if part else root
        put((where / label if label else where) / f"{n}.png", n)
    return root


def as_csv(root, images):
    with (root.with_suffix(".csv")).open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["path", "label", "split"])
        for n, (label, part) in enumerate(images):
            put(root / f"{n}.png", n)
            writer.writerow([f"{root.name}/{n}.png", label, part])
    return root.with_suffix(".csv")


def tar(path, members):
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as out:
        for name, content in members:
            info = tarfile.TarInfo(name)
            info.size = len(content)
            out.addfile(info, io.BytesIO(content))


def as_shards(root, images):
    for part in dict.fromkeys(part for _, part in images):
        members = [(f"{n:03}", n, label) for n, (label, its) in enumerate(images) if its == part]
        files = [pair for key, n, label in members
                 for pair in ((f"{key}.png", encoded(n)), (f"{key}.cls", label.encode())) if pair[1]]
        tar(root / f"{part or 'train'}-0.tar", files)
    return root


PATHS = pytest.mark.parametrize("written", [as_folder, as_csv, as_shards])


def counted(pool):
    """Images of each part, and how many of train have a known label."""
    return [len(pool.train), int((pool.truth[pool.train] >= 0).sum()), len(pool.valid), len(pool.test)]


# --- the same on every path ---

@PATHS
@pytest.mark.parametrize(("parts", "expected", "said"), [
    ({"train": 10}, [16, 16, 0, 4], "no test images given: 4"),
    ({"train": 10, "test": 3}, [20, 20, 0, 6], ""),
    ({"train": 10, "val": 3, "testing_images": 2}, [20, 20, 6, 4], ""),
    ({"val": 4}, [0, 0, 8, 0], "no image is there to train on: all 8 are of valid"),
    ({"test": 4}, [0, 0, 0, 8], "no image is there to train on: all 8 are of test"),
    ({"val": 2, "test": 4}, [0, 0, 4, 8], "all 12 are of test and valid"),
])
def test_every_mixture_of_parts(tmp_path, written, parts, expected, said):
    images = [(label, part) for part, count in parts.items() for label in ("cat", "dog") for _ in range(count)]
    pool = load(written(tmp_path / "mine", images), tmp_path / "data")
    assert (pool.class_names, counted(pool)) == (("cat", "dog"), expected)
    assert said in " ".join(pool.notes)


@PATHS
def test_images_without_any_label(tmp_path, written):
    pool = load(written(tmp_path / "mine", [("", "")] * 5), tmp_path / "data")
    assert (pool.classes, counted(pool)) == (0, [5, 0, 0, 0])
    for part in ("test", "val"):
        with pytest.raises(UsageError, match="no image that could train: those of valid and test have no label"):
            load(written(tmp_path / part, [("", part)] * 5), tmp_path / "data")
    pool = load(written(tmp_path / "part", [("", "train")] * 5 + [("cat", "test"), ("dog", "test"), ("", "test")]),
                tmp_path / "data")
    assert counted(pool) == [5, 0, 0, 2]
    assert "1 images of valid or test have no label" in " ".join(pool.notes)


@PATHS
def test_spellings_of_a_class_are_one_class(tmp_path, written):
    nfc, nfd = (unicodedata.normalize(form, "café") for form in ("NFC", "NFD"))
    labels = ["ant", "Ant", "ant", nfc, nfd, nfd, "Bee", "Bee", "bee ", "bee"]
    images = [(label, "train") for label in labels] + [("ANT", "test"), (nfc, "test"), ("BEE", "test")]
    pool = load(written(tmp_path / "mine", images), tmp_path / "data")
    assert pool.class_names in (("Bee", "ant", nfc), ("ant", "bee", nfc))
    assert np.bincount(pool.truth[pool.train]).tolist() == [4, 3, 3] or pool.class_names[0] == "ant"
    assert np.bincount(pool.truth[pool.test]).tolist() == [1, 1, 1]
    (note,) = [note for note in pool.notes if "are one class" in note]
    assert "'Ant' (1 images)" in note
    assert ascii(nfd) in note, "which prints as the other does"
    images = [(letter, "") for letter in "AaBb" for _ in range(2)]
    letters = load(written(tmp_path / "letters", images), tmp_path / "data")
    assert letters.class_names == ("A", "B", "a", "b")
    assert "'A' and 'a' are two classes" in " ".join(letters.notes)


@PATHS
def test_classes_of_test_alone(tmp_path, written):
    images = [(label, "train") for label in ("cat", "dog") for _ in range(4)]
    pool = load(written(tmp_path / "more", [*images, ("cat", "test"), ("owl", "test")]), tmp_path / "data")
    assert pool.class_names == ("cat", "dog", "owl")
    assert "no train image is labeled as one of 1 classes of valid or test: 'owl'" in " ".join(pool.notes)
    with pytest.raises(UsageError, match="class 'owl', which has no train image whose"):
        pool.split(3)
    with pytest.raises(UsageError, match=r"have images of 'a', 'b' only, train of 'cat', 'dog'. Call the same"):
        load(written(tmp_path / "other", [*images, ("a", "test"), ("b", "test")]), tmp_path / "data")


@PATHS
def test_classes_are_those_that_occur(tmp_path, written):
    images = [(str(n % 4 + 1), "train") for n in range(12)] + [("4", "test"), ("1", "test")]
    pool = load(written(tmp_path / "mine", images), tmp_path / "data")
    assert pool.class_names == ("1", "2", "3", "4")
    assert pool.truth[pool.test].tolist() in ([3, 0], [0, 3])


@pytest.mark.parametrize("written", [as_csv, as_shards])
@pytest.mark.parametrize("word", ["nan", "None", "NULL", "NA", "-1.0", "-1", "?", "unlabeled"])
def test_missing_labels_as_programs_write_them(tmp_path, written, word):
    images = [(f"{n // 3 % 3}.0" if n % 3 == 0 else word, "train") for n in range(27)]
    pool = load(written(tmp_path / "mine", images), tmp_path / "data")
    assert pool.class_names == ("0", "1", "2")
    assert pool.truth.tolist() == [n // 3 % 3 if n % 3 == 0 else -1 for n in range(27)]
    notes = " ".join(pool.notes)
    assert (f"no label is what 18 {word!r} mean" in notes) == (word != "-1")
    assert "labels like '0.0' are read as whole numbers" in notes


@pytest.mark.parametrize("written", [as_csv, as_shards])
def test_a_class_called_none(tmp_path, written):
    images = [(label, "") for label in ("rock", "none") for _ in range(3)]
    pool = load(written(tmp_path / "small", images), tmp_path / "data")
    assert pool.class_names == ("none", "rock")
    assert "'none' is read as a class, not as missing labels" in pool.notes
    images = [(label, "") for label in ("rock", "paper", "None", "?") for _ in range(3)]
    pool = load(written(tmp_path / "marked", images), tmp_path / "data")
    assert pool.class_names == ("None", "paper", "rock")


def test_arrays_and_their_files_with_gaps_between_class_numbers(tmp_path):
    images = np.random.default_rng(0).integers(0, 256, (8, 6, 6), dtype=np.uint8)
    labels = np.array([1, 2, 4, -1, 1, 2, 4, 4])
    np.savez(tmp_path / "mine.npz", images=images, labels=labels, test_images=images[:2], test_labels=labels[1:3])
    for pool in (Pool.from_arrays(images, labels, images[:2], labels[1:3]), load(tmp_path / "mine.npz"),
                 Pool.from_dataset(list(zip(images, labels.tolist(), strict=True)),
                                   list(zip(images[:2], [2, 4], strict=True)))):
        assert pool.class_names == ("1", "2", "4")
        assert pool.truth.tolist() == [0, 1, 2, -1, 0, 1, 2, 2, 1, 2]
        assert pool.notes == ("labels are 1, 2, 4: they name the classes, which are numbered 0 to 2; class_names=[...] "
                              "keeps numbers as they are",)
    assert Pool.from_arrays(images, labels, class_names="abcde").truth.max() == 4
    assert Pool.from_arrays(images, np.arange(8) % 3).notes == ()


# --- folders ---

def test_folders_that_are_called_as_missing_labels_are(tmp_path):
    images = [(label, "") for label in ("rock", "paper", "None", "nan", "-1") for _ in range(2)]
    pool = load(as_folder(tmp_path / "mine", images), tmp_path / "data")
    assert (pool.class_names, int((pool.truth < 0).sum())) == (("None", "paper", "rock"), 4)
    assert "'None' is read as a class, not as missing labels" in pool.notes
    assert "no label is what 2 'nan' mean; a class must have another name" in pool.notes


def test_a_folder_of_images_beside_a_table(tmp_path):
    (tmp_path / "labels.csv").write_text("path,label\n")
    pool = load(tree(tmp_path, "1.png", "2.png"), tmp_path / "data")
    assert pool.passed_over == {".csv": 1}
    assert "no folder names a class; if the .csv file there holds labels" in pool.notes[0]


def tree(root, *paths):
    for n, path in enumerate(paths):
        put(root / path, n)
    return root


def both(*folders):
    return [f"{folder}/{name}/{n}.png".lstrip("/") for folder in folders for name in ("cat", "dog") for n in range(5)]


@pytest.mark.parametrize(("train", "test", "valid"), [
    ("", "test", "val"), ("", "Test_Set", "validation-data"), ("", "testing_images", "val2017"), ("", "holdout", "dev"),
    ("train_images", "test", "eval"), ("training_set", "test_set", "valid_set"), ("labeled", "test", "val"),
    ("train/images", "test/images", "val/images"), ("TrainImages", "TestImages", "ValImages")])
def test_parts_beside_classes_and_beside_train(tmp_path, train, test, valid):
    root = tree(tmp_path / "photos", *both(train, test, valid), "unlabelled_images/1.png", "unlabelled_images/x/2.png")
    pool = load(root, tmp_path / "data")
    assert (pool.class_names, counted(pool)) == (("cat", "dog"), [12, 10, 10, 10])
    if not train:
        assert f"{test}/ as test" in " ".join(pool.notes)


@pytest.mark.parametrize("name", ["dev", "eval", "holdout"])
def test_words_that_may_be_parts_are_classes_where_they_hold_none(tmp_path, name):
    assert load(tree(tmp_path / "a", *both(""), f"{name}/1.png", f"{name}/2.png"), tmp_path / "data").classes == 3
    assert load(tree(tmp_path / "b", *both(""), f"{name}/x/1.png", f"{name}/y/2.png"), tmp_path / "data").classes == 3


def test_images_in_a_part_without_class_folders(tmp_path):
    pool = load(tree(tmp_path / "photos", *both(""), "test/1.png", "test/2.png"), tmp_path / "data")
    assert (pool.class_names, counted(pool)) == (("cat", "dog"), [8, 8, 0, 2])
    assert "test/ holds images, no class folders" in " ".join(pool.notes)
    assert "2 images of valid or test have no label and are left out" in pool.notes
    pool = load(tree(tmp_path / "other", *both(""), "test/1.png", "train/2.png"), tmp_path / "data")
    assert (pool.class_names, len(pool.unlabeled)) == (("cat", "dog"), 9)


@pytest.mark.parametrize("wrap", ["photos/", "data/photos/", "images/"])
def test_a_folder_around_it_all(tmp_path, wrap):
    for name, parts in (("plain", ("",)), ("split", ("train", "test"))):
        root = tree(tmp_path / name, *both(*(wrap + part for part in parts)))
        (root / "labels").mkdir()
        pool = load(root, tmp_path / "data")
        assert (pool.class_names, len(pool)) == (("cat", "dog"), 10 * len(parts))
        assert f"{wrap}holds all images".replace("//", "/") in " ".join(pool.notes).replace("/ holds", "/holds")


def test_classes_below_years(tmp_path):
    root = tree(tmp_path / "photos", *both("2019", "2020"), "2019/cat/deep/a.png")
    pool = load(root, tmp_path / "data")
    assert pool.class_names == ("2019", "2020")
    assert "sub-folders cat, dog: if these are the classes, give --class-level 2" in " ".join(pool.notes)
    pool = load(root, tmp_path / "data", class_level=2)
    assert (pool.class_names, len(pool)) == (("cat", "dog"), 21)
    with pytest.raises(UsageError, match=r"class_level=4: no folder of .* lies that deep"):
        load(root, tmp_path / "data", class_level=4)
    with pytest.raises(UsageError, match="--class-level 2 is for a folder"):
        load("digits", class_level=2)


def test_folders_that_look_like_something_else(tmp_path):
    pool = load(tree(tmp_path / "plain", "images/1.png", "images/2.png"), tmp_path / "data")
    assert (pool.classes, len(pool.unlabeled)) == (0, 2)
    pool = load(tree(tmp_path / "inner", *both("train"), "train/test/1.png", "train/test/2.png"), tmp_path / "data")
    assert pool.class_names == ("cat", "dog", "test")
    assert "train/ holds test, read as a class though it is called like a part" in " ".join(pool.notes)
    pool = load(tree(tmp_path / "office", *both("amazon/images", "dslr/images")), tmp_path / "data")
    assert "sub-folders cat, dog: if these are the classes, give --class-level 3" in " ".join(pool.notes)


def test_parts_inside_classes(tmp_path):
    root = tree(tmp_path / "photos", *[f"{name}/{part}/{n}.png" for name in ("cat", "dog") for n in range(3)
                                       for part in ("train", "test", "unlabeled")])
    pool = load(root, tmp_path / "data")
    assert (pool.class_names, counted(pool)) == (("cat", "dog"), [12, 6, 0, 6])
    assert "class folders hold parts: test, train, unlabeled" in " ".join(pool.notes)


def test_files_that_are_left_out_are_counted(tmp_path):
    root = tree(tmp_path / "photos", *both(""), "cat/a.JFIF", "cat/b.jpe", "dog/without", "dog/.c.png", ".git/d.png",
                "dog/IMG_2020.01.20", "dog/e.heic", "dog/f.heic")
    (root / "notes.txt").write_text("x")
    (root / "dog/README").write_text("x")
    pool = load(root, tmp_path / "data")
    assert {"cat/a.JFIF", "cat/b.jpe", "dog/without", "dog/IMG_2020.01.20"} <= set(pool.files)
    assert len(pool) == 14
    assert pool.passed_over == {".heic": 2, ".txt": 1, "without suffix": 1, "hidden files": 1, "hidden folders": 1}
    (tmp_path / "none").mkdir()
    for name in "ab":
        (tmp_path / f"none/{name}.heic").write_bytes(b"x")
    with pytest.raises(UsageError, match=r"holds no image. .* Passed over: 2 .heic"):
        load(tmp_path / "none", tmp_path / "data")


def test_links(tmp_path):
    root = tree(tmp_path / "photos", *both(""))
    outside = tree(tmp_path / "outside", "1.png", "2.png")
    (root / "here").symlink_to(".")
    (root / "kitty").symlink_to("cat")
    (root / "owl").symlink_to(outside)
    (root / "cat/more").symlink_to(outside)
    (root / "cat/again.png").symlink_to("0.png")
    os.link(root / "dog/0.png", root / "dog/again.png")
    put(tmp_path / "far.png", 7)
    (root / "dog/far.png").symlink_to(tmp_path / "far.png")
    pool = load(root, tmp_path / "data")
    assert (pool.class_names, len(pool)) == (("cat", "dog", "owl"), 13)
    assert pool.passed_over == {"links": 3, "links to images that are listed": 2}
    assert "dog/far.png" in pool.files
    (root / "dog/cat.png").symlink_to("../cat/1.png")
    with pytest.raises(UsageError, match=r"cat/1.png and dog/cat.png are one image, labeled 'cat' and 'dog'"):
        load(root, tmp_path / "data")


def test_an_unlabeled_link_to_a_labeled_image(tmp_path):
    root = tree(tmp_path / "photos", *both("train", "test"))
    (root / "unlabeled").mkdir()
    for n, name in enumerate(both("train", "test")):
        os.link(root / name, root / f"unlabeled/{n}.png")
    pool = load(root, tmp_path / "data")
    assert counted(pool) == [10, 10, 0, 10], "no test image is trained on"
    os.link(root / "train/cat/0.png", root / "test/cat/again.png")
    with pytest.raises(UsageError, match="are one image, in test and in train: leave it in one part"):
        load(root, tmp_path / "data")


# --- shards ---

def test_samples_of_a_shard_by_any_names(tmp_path):
    tar(tmp_path / "a.tar", [
        ("1.png", encoded(1)), ("2.png", encoded(2)), ("2.cls", b"dog"), ("1.cls", b"cat"),
        ("img_1.5x.png", encoded(3)), ("img_1.5x.cls", b"cat"), ("img_1.7x.png", encoded(4)), ("img_1.7x.cls", b"dog"),
        ("3.seg.png", encoded(9)), ("3.cls", b"cat"), ("3.png", encoded(5)),
        ("4.left.png", encoded(6)), ("4.right.png", encoded(9)), ("4.json", b'{"label": "dog"}'),
        ("./d.e/5.png", encoded(7)), ("d.e/5.txt", b"cat"), ("6.cls", b"cat"), ("7.heic", b"x"), ("._8.png", b"x")])
    pool = load(tmp_path / "a.tar", tmp_path / "data")
    first = pool.images.take(np.arange(len(pool)))[:, 0, 0, 0].tolist()
    assert first == [1, 2, 3, 4, 5, 6, 7]
    assert [pool.class_names[label] for label in pool.truth] == ["cat", "dog", "cat", "dog", "cat", "dog", "cat"]
    assert pool.passed_over == {"further images of samples": 2, "labels without an image": 1, ".heic": 1,
                                "hidden files": 1}
    tar(tmp_path / "plain.tar", [("cat/1.png", encoded(1)), ("dog/2.png", encoded(2))])
    pool = load(tmp_path / "plain.tar", tmp_path / "data")
    assert "no sample has a label" in " ".join(pool.notes)


def test_files_beside_shards_are_counted(tmp_path):
    root = as_shards(tmp_path / "mine", [("cat", "train"), ("dog", "train"), ("cat", "test"), ("dog", "test")])
    (root / "index.json").write_text("{}")
    pool = load(root, tmp_path / "data")
    assert (counted(pool), pool.passed_over) == ([2, 2, 0, 2], {".json": 1})
    assert counted(load(f"{root}/*.tar", tmp_path / "data")) == [2, 2, 0, 2]
