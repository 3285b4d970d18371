"""Labels of every type, and images as arrays, files and data sets, PyTorch's or Hugging Face's: read alike everywhere.
"""

import csv
import io

import numpy as np
import pytest
import torch
from hf_stand_in import ClassLabel, Table
from hf_stand_in import Image as ImageType
from PIL import Image

from ssl_lab.data import Pool, load
from ssl_lab.data.labels import written
from ssl_lab.errors import UsageError

PATHS = ("csv", "files", "arrays", "npz", "rows", "table")


def pixels(count: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (count, 8, 8, 3), dtype=np.uint8)


def pictures(count: int) -> list[Image.Image]:
    return [Image.fromarray(image) for image in pixels(count)]


def files(tmp_path, count: int) -> list[str]:
    paths = [tmp_path / f"{n}.png" for n in range(count)]
    for path, picture in zip(paths, pictures(count), strict=True):
        picture.save(path)
    return [str(path) for path in paths]


def pool_by(path: str, labels, tmp_path) -> Pool:
    """A pool of images with these labels, without test images."""
    if path == "arrays":
        return Pool.from_arrays(pixels(len(labels)), labels)
    if path == "npz":
        plain = ["" if label is None else label for label in labels]
        np.savez(tmp_path / "mine.npz", images=pixels(len(labels)), labels=np.array(plain))
        return load(tmp_path / "mine.npz")
    if path == "rows":
        return Pool.from_dataset(list(zip(pictures(len(labels)), labels, strict=True)))
    if path == "table":
        return load(Table({"id": [*range(len(labels))], "image": pictures(len(labels)), "label": list(labels)},
                          image=ImageType()))
    listed = files(tmp_path, len(labels))
    if path == "files":
        return Pool.from_files(listed, labels, data_dir=tmp_path / "data", hold_out=0)
    with (tmp_path / "mine.csv").open("w", newline="") as file:
        csv.writer(file).writerows([["path", "label"], *zip(listed, labels, strict=True)])  # None becomes ""
    return load(tmp_path / "mine.csv", tmp_path / "data")


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize(("labels", "names", "truth", "notes"), [
    (["dog", "cat", None, "dog"] * 3, ("cat", "dog"), [1, 0, -1, 1], []),
    (["dog", "cat", "nan", "Dog"] * 3, ("Dog", "cat"), [0, 1, -1, 0],
     ["no label is what 3 'nan' mean", "'Dog' (3 images) and 'dog' (3 images) are one class, 'Dog'"]),
    (["10", "9", "?", "9"] * 3, ("9", "10"), [1, 0, -1, 0], ["no label is what 3 '?' mean"]),
    (["a", "None", None, "b"] * 3, ("None", "a", "b"), [1, 0, -1, 2], ["'None' is read as a class"]),
    (["0.5", "1.5", "-1", "0.5"] * 3, ("0.5", "1.5"), [0, 1, -1, 0], ["labels like '0.5' are numbers with a fraction"]),
])
def test_texts_are_read_alike_on_every_path(path, labels, names, truth, notes, tmp_path):
    pool = pool_by(path, labels, tmp_path)
    assert (pool.class_names, pool.truth.tolist()) == (names, truth * 3)
    said = [note for note in pool.notes if "held out" not in note]
    assert len(said) == len(notes), said
    for note in notes:
        assert any(note in text for text in said), said


@pytest.mark.parametrize("path", PATHS)
def test_floats_that_are_whole_are_numbers_and_nan_is_no_label(path, tmp_path):
    pool = pool_by(path, [1.0, float("nan"), 0.0, 2.0] * 3, tmp_path)
    assert (pool.class_names, pool.truth.tolist()) == (("0", "1", "2"), [1, -1, 0, 2] * 3)
    assert any("are read as whole numbers" in note for note in pool.notes)


@pytest.mark.parametrize("path", PATHS)
def test_minus_one_is_no_class(path, tmp_path):
    with pytest.raises(UsageError, match=r"-1"):
        pool_by(path, [-1, 1] * 6, tmp_path)
    named = Pool.from_arrays(pixels(4), [-1, 1, 1, -1], class_names=["no", "yes"])
    assert named.truth.tolist() == [-1, 1, 1, -1]
    assert "labels are -1 and 1 only, of which -1 means no label" in named.notes[0]


class Missing:
    """As pandas writes a missing value."""


Missing.__name__ = "NAType"


class Series:
    """As pandas has a column, or a Categorical: it says itself what array it is."""

    def __init__(self, *values):
        self.values = values

    def __array__(self, dtype=None, copy=None):
        return np.array(self.values, dtype=object)


@pytest.mark.parametrize(("given", "expected", "notes"), [
    ([0, 2, -1], [0, 2, -1], 0),
    (np.array([3, 1], np.uint8), [3, 1], 0),
    (np.array([[3], [1]]), [3, 1], 0),
    (torch.tensor([0, 1]), [0, 1], 0),
    ([torch.tensor(1), np.int64(0), None], [1, 0, -1], 0),
    (np.array([2.0, np.nan, 0.0, -1.0]), [2, -1, 0, -1], 1),
    (np.array([np.nan, -1.0]), [-1, -1], 0),
    (Series(1, Missing(), 0), [1, -1, 0], 0),
    (Series("a", float("nan"), Missing(), "b"), ["a", "", "", "b"], 0),
    (np.ma.masked_array([1, 2, 3], [False, True, False]), [1, -1, 3], 0),
    ([True, False], ["True", "False"], 0),
    (np.array([True, False]), ["True", "False"], 0),
    ([b"caf\xc3\xa9", "a"], ["café", "a"], 0),
    (["a", 1, None], ["a", "1", ""], 0),
    (np.array([0.1, 2], np.float32), ["0.1", "2.0"], 0),
    ([], [], 0),
])
def test_what_labels_are_written_in(given, expected, notes):
    said = []
    found = written(given, "labels", said)
    assert (found if isinstance(found, list) else found.tolist()) == expected
    assert len(said) == notes


@pytest.mark.parametrize(("given", "message"), [
    (np.eye(3)[[0, 1, 2, 0]], r"shape \(4, 3\), one column for each class .*argmax"),
    (np.zeros((4, 2)), r"have shape \(4, 2\), expected class numbers"),
    ([["a"], ["a", "b"], ["b"], ["a"]], "are not one label for each image"),
    ([1, 2, float("inf"), 0], "entry 2 is 'inf'"),
    ([1, {}, 0, 0], r"entry 1 is '{}', expected class numbers"),
    (np.zeros(4, complex), "an array of complex128"),
    (5, r"have shape \(\)"),
    ([0, 1, 2], "labels have length 3, but there are 4 images"),
    (["a", "b", "a"], "labels have length 3, but there are 4 images"),
    ([0, 1, -3, 0], "entry 2 is -3"),
])
def test_what_is_no_label_is_refused(given, message):
    with pytest.raises(UsageError, match=message):
        Pool.from_arrays(pixels(4), given)


def test_texts_go_by_the_names_of_classes_that_are_given():
    for given in (["Dog", "cat ", "None", ""], ["dog", "CAT", "none", None]):
        pool = Pool.from_arrays(pixels(4), given, class_names=["dog", "None", "cat"])
        assert pool.truth.tolist() == [0, 2, 1, -1]
    letters = Pool.from_arrays(pixels(3), ["a", "A", "b"], class_names=["A", "a", "b"])
    assert letters.truth.tolist() == [1, 0, 2]
    with pytest.raises(UsageError, match=r"entry 1 is 'owl', which is none of the classes: dog, cat"):
        Pool.from_arrays(pixels(2), ["dog", "owl"], class_names=["dog", "cat"])


def test_train_and_test_name_their_classes_together():
    pool = Pool.from_arrays(pixels(4), ["b", "c", None, "b"], pixels(2), np.array(["a", "c"]))
    assert (pool.class_names, pool.truth.tolist()) == (("a", "b", "c"), [1, 2, -1, 1, 0, 2])
    mixed = Pool.from_arrays(pixels(3), np.array(["1", "2", "x"]), pixels(2), [2, -1])
    assert (mixed.class_names, mixed.truth.tolist()) == (("1", "2", "x"), [0, 1, 2, 1, -1])


# --- files ---

def test_files_by_their_paths(tmp_path):
    listed = files(tmp_path, 8)
    parts = ["train"] * 4 + ["val", None, "Testing", "unlabeled"]
    pool = Pool.from_files(np.array(listed), ["b", "a", "b", None, "a", "a", "b", "a"], parts,
                           data_dir=tmp_path / "data")
    assert (pool.class_names, pool.root) == (("a", "b"), str(tmp_path))
    assert pool.truth.tolist() == [1, 0, 1, -1, 0, 0, 1, -1]
    assert (pool.train.tolist(), pool.valid.tolist(), pool.test.tolist()) == ([0, 1, 2, 3, 5, 7], [4], [6])
    assert pool.files == tuple(f"{n}.png" for n in range(8))
    assert np.array_equal(pool.images.take(np.array([3]))[0].permute(1, 2, 0), pixels(8)[3])
    numbers = Pool.from_files(listed, [0, 1, 2, -1] * 2, class_names=["a", "b", "c", "d"], data_dir=tmp_path / "data",
                              hold_out=0)
    assert (numbers.class_names, numbers.truth.tolist()) == (("a", "b", "c", "d"), [0, 1, 2, -1] * 2)
    held = Pool.from_files(listed, [0, 1] * 4, data_dir=tmp_path / "data", hold_out=0.5)
    assert len(held.test) == 4
    assert "no test images given: 4 labeled ones, 50% of each class, are held out" in held.notes


def test_a_file_that_is_there_twice_or_cannot_be_read_is_noted(tmp_path):
    listed = files(tmp_path, 4)
    (tmp_path / "bad.png").write_bytes(b"no image")
    pool = Pool.from_files([*listed, listed[0], tmp_path / "bad.png"], [0, 1, 0, 1, -1, 0], data_dir=tmp_path / "data",
                           hold_out=0)
    assert pool.truth.tolist() == [0, 1, 0, 1]
    assert any("1 files are there twice" in note for note in pool.notes)
    assert any("bad.png" in note for note in pool.notes)


@pytest.mark.parametrize(("given", "more", "message"), [
    ("one.png", {}, "is one path, 'one.png'; expected a list"),
    ([], {}, "lists no image"),
    ([3, 4], {}, "entry 0 is '3', expected the path"),
    (["0.png", "1.png"], {"parts": ["train"]}, "parts have length 1"),
    (["0.png", "1.png"], {"parts": ["train", "fold 3"]}, "parts: entry 1 is 'fold 3'"),
    (["0.png", "1.png"], {"hold_out": 1.5}, "hold_out=1.5"),
    (["0.png", "1.png", "2.png"], {}, "labels have length 2, but there are 3 images"),
    (["0.png", "0.png"], {}, r"file 0 .* and file 1 .* are one image, labeled 'a' and 'b'"),
])
def test_what_is_no_list_of_files(given, more, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    files(tmp_path, 3)
    with pytest.raises(UsageError, match=message):
        Pool.from_files(given, ["a", "b"], data_dir=tmp_path / "data", **more)


# --- tables of named columns ---

def table(labels, names=("cat", "dog"), **more) -> Table:
    return Table({"image": pictures(len(labels)), "label": labels, **more}, image=ImageType(),
                 label=ClassLabel(list(names)))


def test_a_table_brings_the_names_of_its_classes_and_its_parts():
    whole = {"train": table([0, 1, 0]), "validation": table([1, 0], ("dog", "cat")), "test": table([-1, 1]),
             "unsupervised": table([0, 0])}
    for pool in (load(whole), Pool.from_dataset(whole)):
        assert pool.class_names == ("cat", "dog")
        assert pool.truth[pool.train].tolist() == [0, 1, 0, -1, -1]
        assert pool.truth[pool.valid].tolist() == [0, 1]
        assert pool.truth[pool.test].tolist() == [-1, 1]
        assert pool.notes == ()
    texts = Pool.from_dataset(list(zip(pictures(2), "ba", strict=True)), table([1, 0], ("b", "a")))
    assert (texts.class_names, texts.truth.tolist()) == (("a", "b"), [1, 0, 0, 1])
    for bad, message in [({"fold1": table([0, 1])}, "'fold1' is no known part"), ({"test": table([0])}, "none of them"),
                         ({"train": table([0]), "training": table([0])}, "'training' is train again")]:
        with pytest.raises(UsageError, match=message):
            load(bad)


def test_columns_are_found_or_named():
    several = Table({"fine": [0, 1, 2], "coarse": [0, 1, 0], "thumb": pictures(3), "img": pictures(3)[::-1]},
                    fine=ClassLabel(["a", "b", "c"]), coarse=ClassLabel(["x", "y"]), img=ImageType(), thumb=ImageType())
    pool = load(several)
    assert (pool.class_names, pool.notes) == (
        ("a", "b", "c"), ("labels are those in column 'fine' (not 'coarse'); label_column=... names another",))
    assert np.array_equal(pool.images.take(np.array([2]))[0].permute(1, 2, 0), pixels(3)[0]), "img is a usual name"
    named = Pool.from_dataset(several, image_column="thumb", label_column="coarse")
    assert (named.class_names, named.truth.tolist(), named.notes) == (("x", "y"), [0, 1, 0], ())
    assert np.array_equal(named.images.take(np.array([2]))[0].permute(1, 2, 0), pixels(3)[2])
    assert load(several, path_column="thumb", label_column="coarse").truth.tolist() == [0, 1, 0]
    rows = [{"pixel_values": image, "target": n % 2} for n, image in enumerate(torch.from_numpy(pixels(4)))]
    assert Pool.from_dataset(rows).truth.tolist() == [0, 1, 0, 1]
    bare = load(Table({"image": pictures(3), "caption": ["a", "b", "c"]}, image=ImageType()))
    assert bare.classes == 0
    assert "none of the columns image, caption is known to hold labels" in bare.notes[0]


@pytest.mark.parametrize(("given", "more", "message"), [
    (Table({"image": pictures(2), "label": [0, 1]}), {"label_column": "lable"}, "unknown label column 'lable'. Did"),
    (Table({"what": pictures(2), "label": [0, 1]}), {}, "columns what, label, and it is not clear which one holds im"),
    ([(image, 0) for image in pictures(2)], {"label_column": "y"}, "rows of type tuple, without columns to name"),
    ([{"image": None, "label": 0}], {}, "row 0 of the data set have dtype object"),
    (Table({"image": [b"no image"], "label": [0]}), {}, "row 0 of the data set cannot be read: not an image"),
    (Table({"image": ["nowhere.png"], "label": [0]}), {}, "row 0 of the data set cannot be read: No such file"),
    (Table({"image": [], "label": []}), {}, "the data set is empty"),
    (iter([]), {}, "has no length or no rows by number"),
])
def test_what_is_no_table_of_images(given, more, message):
    with pytest.raises(UsageError, match=message):
        Pool.from_dataset(given, **more)


def test_images_in_a_table_may_lie_in_files(tmp_path):
    listed = files(tmp_path, 2)
    with open(listed[0], "rb") as file:
        content = file.read()
    for first in ({"bytes": content, "path": None}, {"bytes": None, "path": listed[0]}, content, listed[0],
                  io.BytesIO(content).getvalue(), pictures(1)[0], pixels(1)[0], pixels(1)[0].tolist()):
        pool = load(Table({"image": [first, listed[1]], "label": [0, 1]}, image=ImageType()))
        assert np.array_equal(pool.images.take(np.arange(2)).permute(0, 2, 3, 1), pixels(2))


def test_load_names_the_way_for_what_it_does_not_take():
    with pytest.raises(UsageError, match=r"given a ndarray, expected a name, a path or a data set .*Of arrays"):
        load(pixels(3))
    with pytest.raises(UsageError, match="are for CSV files and folders"):
        load(table([0, 1]), split_column="part")


def test_the_package_itself():
    """Where it is installed: it is no dependency."""
    hf = pytest.importorskip("datasets")
    features = hf.Features({"image": hf.Image(), "label": hf.ClassLabel(names=["cat", "dog"])})
    data = hf.Dataset.from_dict({"image": pictures(6), "label": [0, 1, 0, 1, 0, -1]}, features=features)
    pool = load(hf.DatasetDict({"train": data, "test": data.select([1, 2])}))
    assert (pool.class_names, pool.truth.tolist()) == (("cat", "dog"), [0, 1, 0, 1, 0, -1, 1, 0])
    assert np.array_equal(pool.images.take(np.arange(6)).permute(0, 2, 3, 1), pixels(6))
    for same in (data.with_format("torch"), data.with_format("numpy"), torch.utils.data.Subset(data, range(6)),
                 data.cast_column("image", hf.Image(decode=False))):
        again = load(same)
        assert again.class_names == ("cat", "dog")
        assert again.images.fingerprint() == load(data).images.fingerprint()
    texts = hf.Dataset.from_dict({"picture": pictures(3), "species": ["owl", None, "ant"]},
                                 features=hf.Features({"picture": hf.Image(), "species": hf.Value("string")}))
    assert (load(texts).class_names, load(texts).truth.tolist()) == (("ant", "owl"), [1, -1, 0])
    with pytest.raises(UsageError, match="load it without streaming=True"):
        load(data.to_iterable_dataset())
