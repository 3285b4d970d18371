"""CSV files, whoever wrote them: columns, delimiters, encodings, and the images that are meant."""

import gzip
import os

import numpy as np
import pytest
from PIL import Image

from ssl_lab.data import load
from ssl_lab.errors import UsageError


def put(path, number=0):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (12, 10), (number, 0, 0)).save(path)
    return path


def table(folder, text, name="list.csv", encoding="utf-8", images=8):
    """A CSV file beside images 0.png, 1.png, ..."""
    for number in range(images):
        put(folder / f"{number}.png", number)
    (folder / name).write_bytes(text.encode(encoding))
    return folder / name


def read(path, **more):
    return load(path, path.parent / "data", **more)


def test_a_csv_file(tmp_path):
    for number in range(6):
        put(tmp_path / f"images/{number}.png", number)
    (tmp_path / "list.csv").write_text("\ufeffpath, label,split\nimages/0.png,10,\nimages/1.png,9,train\n"
                                       "images/2.png,,\nimages/3.png,9,test\nimages/4.png,10,valid\n"
                                       "images/5.png,-1,Training\nimages/none.png,9,\n", encoding="utf-8")
    pool = load(tmp_path / "list.csv", tmp_path / "data")
    assert (pool.name, pool.class_names) == ("list", ("9", "10"))
    assert pool.files == tuple(f"images/{number}.png" for number in range(6))
    assert pool.truth.tolist() == [1, 0, -1, 0, 1, -1]
    assert (pool.train.tolist(), pool.valid.tolist(), pool.test.tolist()) == ([0, 1, 2, 5], [4], [3])
    assert "'images/none.png' (No such file or directory)" in pool.notes[0]
    assert "column" not in " ".join(pool.notes), "usual columns need no word"


@pytest.mark.parametrize(("text", "message"), [
    ("", "is empty; expected a first line"),
    ("this,that\nx,1\n", r"must name the columns of paths and labels, .*, it is 'this,that'. Name them"),
    ("path,label\n", "lists no image"),
    ("path,label\n0.png,1\n0.png,2\n", r"line 2 \('0.png'\) and line 3 \('0.png'\) are one image, labeled '1' and '2'"),
    ("path,label\n0.png,1\n./0.png,2\n", r"line 2 \('0.png'\) and line 3 \('./0.png'\) are one image"),
    ("path,label,split\n0.png,1,train\n0.png,1,test\n", "are one image, in train and in test"),
    ("path,label\n,1\n", r"line 2: the path is empty"),
    ("path,label,split\n0.png,1,later\n", "line 2: split is 'later', expected train, valid or test"),
    ("path,label\n0.png,cat\n1.png,cat\n", "one class only, 'cat'"),
    ("path,label\n0.png,cat\n1.png,-1\n", "which is what an empty one, -1 and nan say"),
    ("path,label\n0.png,cat\n1.png,cat, black\n", "line 3: 3 fields, but 2 columns: '1.png,cat,black'. Put a field"),
    ('path,label\n0.png,"cat\n1.png,dog\n', "goes on over lines.*left open"),
    ("path,cat,dog\n0.png,1,0\n1.png,0,1\n", "the columns cat, dog hold 0 and 1, one for each class"),
    ("path,label\n0.png,cat\n1.png,cat|dog\n", r"the label 'cat\|dog' seems to name several classes"),
    ('path,label\n0.png,cat\n1.png,"[\'cat\']"\n', "seems to name several classes"),
    ("path,label,label\n0.png,cat,a\n", "names 'label' twice"),
])
def test_bad_csv_files(tmp_path, text, message):
    with pytest.raises(UsageError, match=message):
        read(table(tmp_path, text))


@pytest.mark.parametrize("columns", [
    ("file", "class"), ("Filename", "Category"), ("image_path", "target"), ("img", "y"), ("image_id", "species"),
    ("File Path", "class-name"), ("picture of it", "label"), ("path", "kind of thing"), ("this", "that")])
@pytest.mark.parametrize("extra", ["", ",note"])
def test_columns_of_other_names(tmp_path, columns, extra):
    text = f"{columns[0]},{columns[1]}{extra}\n" + "".join(
        f"{n}.png,{'cat' if n % 2 else 'dog'}{',x' if extra else ''}\n" for n in range(8))
    if extra and columns[1] in ("kind of thing", "that"):
        with pytest.raises(UsageError, match="Name them with --path-column and --label-column"):
            read(table(tmp_path, text))
        pool = read(table(tmp_path, text), path_column=columns[0], label_column=columns[1])
    else:
        pool = read(table(tmp_path, text))
        if columns != ("path", "label"):
            assert f"paths in column {columns[0]!r}, labels in column {columns[1]!r}; --path-column" in pool.notes[0]
    assert pool.truth.tolist() == [1, 0] * 4


def test_columns_by_flag(tmp_path):
    path = table(tmp_path, "path,label,thing,when\n" + "".join(
        f"{n}.png,{n},{'ab'[n % 2]},{'test' if n > 5 else 'train'}\n" for n in range(8)))
    pool = read(path, label_column="thing", split_column="when")
    assert (pool.class_names, pool.test.tolist()) == (("a", "b"), [6, 7])
    with pytest.raises(UsageError, match=r"unknown label column 'things'. Did you mean thing"):
        read(path, label_column="things")
    with pytest.raises(UsageError, match="name columns of a CSV file, which digits is not"):
        load("digits", label_column="x")


@pytest.mark.parametrize(("column", "values", "part"), [
    ("set", ["train", "validation_data", "Testing"], "all"), ("Usage", ["Training", "val", "PublicTest"], "all"),
    ("fold", ["0", "1", "2"], None), ("is_valid", ["False", "True", "0"], "valid"),
    ("is_test", ["0.0", "1.0", ""], "test"), ("subset", ["a", "train", "b"], None),
    ("partition", ["", "dev", "holdout"], "all"), ("phase", ["nan", "eval", "test"], "all")])
def test_columns_that_look_like_parts(tmp_path, column, values, part):
    text = f"path,label,{column}\n" + "".join(f"{n}.png,{'ab'[n // 3 % 2]},{values[n % 3]}\n" for n in range(8))
    pool = read(table(tmp_path, text))
    second, third = list(range(1, 8, 3)), list(range(2, 8, 3))
    expected = {"all": (second, third), "valid": (second, None), "test": ([], second), None: ([], None)}[part]
    assert pool.valid.tolist() == expected[0]
    assert expected[1] is None or pool.test.tolist() == expected[1]
    said = " ".join(pool.notes)
    assert (f"column {column!r} (" in said and "is not read as parts" in said) == (part is None)
    assert (f"column {column!r} marks images of {part}" in said) == (part in ("valid", "test"))


def test_unlabeled_as_a_part(tmp_path):
    pool = read(table(tmp_path, "path,label,split\n" + "".join(
        f"{n}.png,{'ab'[n % 2]},{'unlabeled' if n > 3 else 'train'}\n" for n in range(8))))
    assert pool.truth.tolist() == [0, 1, 0, 1, -1, -1, -1, -1]


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-16-be", "cp1252"])
@pytest.mark.parametrize(("delimiter", "name"), [(",", "list.csv"), (";", "list.csv"), ("\t", "list.tsv"),
                                                 ("\t", "list.csv"), ("|", "list.csv")])
def test_encodings_and_delimiters(tmp_path, encoding, delimiter, name):
    decimal = "1.5" if delimiter == "," else "1,5"
    rows = [["path", "label", "note"], *([f"{n}.png", '"ca,fé"' if n % 2 else '"ol;é"', decimal] for n in range(8))]
    text = "".join(delimiter.join(row) + "\r\n" for row in rows)
    pool = read(table(tmp_path, text, name, encoding))
    assert pool.class_names == ("ca,fé", "ol;é")
    assert ("Windows-1252" in " ".join(pool.notes)) == (encoding == "cp1252")


def test_what_excel_is_told(tmp_path):
    pool = read(table(tmp_path, "sep=;\r\npath;label\r\n0.png;a\r\n1.png;b\r\n"))
    assert pool.class_names == ("a", "b")


def test_numbers_with_a_fraction_are_asked_about(tmp_path):
    pool = read(table(tmp_path, "path,label\n0.png,0.5\n1.png,1.25\n2.png,2\n"))
    assert "labels like '0.5' are numbers with a fraction; each of the 3 is read as a class" in pool.notes


def test_a_compressed_table(tmp_path):
    table(tmp_path, "")
    (tmp_path / "list.csv.gz").write_bytes(gzip.compress(b"path,label\n0.png,a\n1.png,b\n"))
    pool = read(tmp_path / "list.csv.gz")
    assert (pool.name, len(pool)) == ("list", 2)
    (tmp_path / "list.csv.gz").write_bytes(b"no gzip")
    with pytest.raises(UsageError, match="cannot read"):
        read(tmp_path / "list.csv.gz")


@pytest.mark.parametrize("row", ["{n}.png,{label}", "{label},{n}.png", "{n}.png,{label},{part}"])
def test_a_table_without_names_of_columns(tmp_path, row):
    text = "".join(row.format(n=n, label="ab"[n % 2], part="test" if n > 5 else "train") + "\n" for n in range(8))
    pool = read(table(tmp_path, text))
    assert pool.truth.tolist() == [0, 1] * 4
    assert "list.csv names no columns" in pool.notes[0]
    assert ("part" not in row) or pool.test.tolist() == [6, 7]


def test_one_image_by_many_paths(tmp_path):
    (tmp_path / "sub").mkdir()
    names = ["0.png", "./0.png", "sub/../0.png", str(tmp_path / "0.png"), ".\\0.png", "link.png"]
    path = table(tmp_path, "path,label\n" + "".join(f"{name},cat\n" for name in names) + "sub\\..\\1.png,dog\n0.png,\n")
    (tmp_path / "link.png").symlink_to("0.png")
    pool = read(path)
    assert pool.files == ("0.png", "1.png")
    assert pool.truth.tolist() == [0, 1]
    assert "6 lines of list.csv list an image again that is listed before: it counts once" in pool.notes


def test_paths_from_the_folder_or_without_a_suffix(tmp_path):
    for n in range(8):
        put(tmp_path / f"train_images/a{n}.jpg", n)
    text = "".join(f"{{}},{'cat' if n % 2 else 'dog'}\n" for n in range(8))
    for names, column in (([f"a{n}" for n in range(8)], "id"), ([f"a{n}.jpg" for n in range(8)], "image_id")):
        pool = read(table(tmp_path, f"{column},label\n" + text.format(*names)))
        assert pool.files == tuple(f"train_images/a{n}.jpg" for n in range(8))
        assert f"{names[0]!r} is 'train_images/a0.jpg'" in " ".join(pool.notes)
    there = read(table(tmp_path, "path,label\n0.png,a\n1.png,b\na1.jpg,b\n"))
    assert there.files == ("0.png", "1.png"), "what is not there is not sought elsewhere where others are"


def test_paths_that_no_file_can_have(tmp_path):
    path = table(tmp_path, f"path,label\n0.png,a\n1.png,b\n{'x' * 300}.png,a\n{'y/' * 3000}.png,b\n2\0.png,b\n")
    pool = read(path)
    assert len(pool) == 2
    assert pool.passed_over == {"paths that no file can have": 3}
    with pytest.raises(UsageError, match="none of its 1 paths in column 'path' can be one"):
        read(table(tmp_path, f"path,label\n{'x' * 300}.png,a\n"))


def test_lines_that_are_short_or_long_or_empty(tmp_path):
    pool = read(table(tmp_path, "path,label\n0.png,a,\n\n1.png,b,,\n ,\n2.png\n"))
    assert pool.truth.tolist() == [0, 1, -1]
    assert "1 lines of list.csv have fewer fields than columns" in " ".join(pool.notes)


def test_labels_that_are_no_classes_are_asked_about(tmp_path):
    pool = read(table(tmp_path, "path,label\n" + "".join(f"{n}.png,name{n}\n" for n in range(30)), images=30))
    assert "30 labels name 30 classes, from 'name0' to 'name9': are they classes?" in pool.notes


def test_the_index_column_of_pandas(tmp_path):
    pool = read(table(tmp_path, ",path,label\n" + "".join(f"{n},{n}.png,{n % 2}.0\n" for n in range(8))))
    assert pool.class_names == ("0", "1")
    assert np.array_equal(pool.truth, np.arange(8) % 2)


def test_a_table_that_cannot_be_read(tmp_path, monkeypatch):
    path = table(tmp_path, "path,label\n" + '"' + "x" * 200_000)
    with pytest.raises(UsageError, match=r"field larger than field limit .* left open"):
        read(path)
    os.unlink(path)
    path.mkdir()
    with pytest.raises(UsageError, match="holds no image"):
        read(path)


def test_columns_do_not_make_another_cache(tmp_path):
    path = table(tmp_path, "path,label,thing\n0.png,a,c\n1.png,b,d\n")
    assert read(path).class_names != read(path, label_column="thing").class_names
    assert len(list((tmp_path / "data/cache").glob("*/meta.json"))) == 1
