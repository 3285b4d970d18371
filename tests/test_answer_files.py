"""Files of answers of every make: which image a row means, what its label says, what several people come to."""

import csv
import io
import json
import os
from dataclasses import replace
from urllib.parse import unquote

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from ssl_lab.active.people.keys import Keys
from ssl_lab.active.people.label_studio import LabelStudio
from ssl_lab.active.people.oracle import Asked, FromFile, write_questions
from ssl_lab.active.people.votes import Vote, agree
from ssl_lab.data import Pool, load
from ssl_lab.data.cells import csv_text, read_table, rows_of, safe, unescaped
from ssl_lab.data.delimited import decoded
from ssl_lab.errors import UsageError

FILES = ("a/one.png", "a/two 2.png", "b/three.png", "b/four.png", "c/one.png", "top.jpg")
LABELS = {3: "cat", 0: "dog", 5: "owl", 1: "cat"}


def asked(*ids, **known):
    return Asked(np.array(ids, dtype=np.int64), **known)


@pytest.fixture(scope="module")
def pool():
    made = Pool.from_arrays(np.zeros((6, 6, 6), np.uint8), [-1] * 6, class_names=("cat", "dog", "owl", "3"))
    return replace(made, files=FILES)


def exported(kind, ours=True, url="/data/local-files/?d=photos/{}"):
    """What Label Studio exports of LABELS and of an image without a choice (row 2); its own numbers are 4 to 8."""
    tasks = []
    for number, (row, label) in enumerate({**LABELS, 2: None}.items(), start=4):
        data = {"image": url.format(FILES[row].replace(" ", "%20"))} | ({"ssl_lab_id": row} if ours else {})
        tasks.append((number, data, label))
    if kind == "json":
        return json.dumps([{"id": number, "data": data, "predictions": [], "annotations": [] if label is None else [
            {"id": number + 100, "completed_by": 1, "was_cancelled": False, "updated_at": "2026-01-01T00:00:00.1Z",
             "result": [{"from_name": "label", "to_name": "image", "type": "choices", "value": {"choices": [label]}}]}]}
            for number, data, label in tasks])
    flat = [data | {"id": number, "annotator": 1, "annotation_id": number + 100, "lead_time": 2.5,
                    "created_at": "2026-01-01T00:00:00Z", "updated_at": "2026-01-01T00:00:00Z"}
            | ({} if label is None else {"label": label}) for number, data, label in tasks]
    if kind == "json_min":
        return json.dumps(flat)
    text = io.StringIO()
    writer = csv.DictWriter(text, sorted({name for row in flat for name in row}), quoting=csv.QUOTE_NONNUMERIC,
                            delimiter={"csv": ",", "tsv": "\t"}[kind])
    writer.writeheader()
    writer.writerows(flat)
    return text.getvalue()


KINDS = {"json": "p.json", "json_min": "p.json", "csv": "p.csv", "tsv": "p.tsv"}
URLS = {"local storage": "/data/local-files/?d=photos/{}", "upload": "/data/upload/3/0a1b2c3d-{}",
        "absolute": "/home/me/photos/{}", "windows": "C:\\photos\\{}", "web": "https://bucket.example.org/x/{}?sig=1",
        "relative": "./{}"}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("ours", [True, False])
@pytest.mark.parametrize("url", URLS)
def test_whatever_label_studio_exports(tmp_path, pool, kind, ours, url):
    pattern = URLS[url]
    if url == "upload":  # which keeps the file's name alone; that of row 0 is there twice, so our id says which
        pattern = pattern.replace("{}", "{0}")
        text = exported(kind, ours, pattern)
        for file in FILES:
            name = file.rpartition("/")[2]
            text = text.replace(f"0a1b2c3d-{file.replace(' ', '%20')}", f"0a1b2c3d-{name.replace(' ', '_')}")
    else:
        text = exported(kind, ours, pattern)
    expected = {row: label for row, label in LABELS.items() if ours or url != "upload" or row != 0}
    (tmp_path / KINDS[kind]).write_text(text)
    file = FromFile(tmp_path / KINDS[kind], pool)
    assert file(asked(*range(6))) == expected
    folder = LabelStudio(tmp_path, pool)
    assert folder.read() == expected
    missing = len(LABELS) - len(expected)
    assert folder.notes[0].startswith(f"5 tasks read, {missing} without a known image")
    assert folder.notes[0].endswith(f"1 without a choice: {KINDS[kind]}")


def test_the_name_of_a_download_does_not_matter(tmp_path, pool):
    (tmp_path / "project-1-at-2026-01-01-00-00-abcdef12.json").write_text(exported("json"))
    (tmp_path / "project-1").mkdir()
    (tmp_path / "project-1" / "again.csv").write_text(exported("csv"))
    (tmp_path / "17").write_text(json.dumps({  # as a target storage writes them
        "id": 9, "completed_by": {"id": 3, "email": "a@b.org"}, "updated_at": "2026-01-02T00:00:00Z",
        "result": [{"from_name": "label", "type": "choices", "value": {"choices": ["dog"]}}],
        "task": {"id": 77, "data": {"ssl_lab_id": 4}}}))
    others = {"notes.txt": b"call Ann", "a.json": b"[1", "b.json": b'{"a": 1}', "c.zip": b"PK\3\4..", "d.csv": b"a\n1"}
    for name, content in others.items():
        (tmp_path / name).write_bytes(content)
    oracle = LabelStudio(tmp_path, pool)
    assert oracle.read() == {**LABELS, 4: "dog"}
    assert oracle.notes[0].startswith("11 tasks read, 0 without a known image, 2 without a choice")
    assert all(name in oracle.notes[1] for name in others)
    assert oracle(asked(0, 2)) == {0: "dog"}  # writes tasks.json, which is no answer
    assert oracle.read() == {**LABELS, 4: "dog"}
    (tmp_path / "tasks.json").write_text(exported("json").replace('"owl"', '"cat"').replace("2026-01-01", "2026-02-01"))
    assert oracle.read()[5] == "cat"  # but an export that was saved over it is


@pytest.mark.parametrize("value", ['"cat"', '{"choices": ["cat"]}', '[{"choices": ["cat"]}]', '["cat"]'])
@pytest.mark.parametrize("name", ["label", "kind", "my label"])
def test_how_json_min_writes_a_choice(tmp_path, pool, value, name):
    """Whatever the control is called, and however its choice stands there."""
    (tmp_path / "a.json").write_text(f'[{{"id": 9, "ssl_lab_id": 1, "{name}": {value}, "annotator": "me@x.org", '
                                     '"annotation_id": 3, "lead_time": 1.5, "note": "blurred"}]')
    assert LabelStudio(tmp_path, pool).read() == FromFile(tmp_path / "a.json", pool)(asked(1)) == {1: "cat"}


def test_two_columns_of_choices(tmp_path, pool):
    rows = [{"id": 9, "ssl_lab_id": 1, "kind": "cat", "second": "dog", "annotation_id": 3}]
    (tmp_path / "a.json").write_text(json.dumps(rows))
    with pytest.raises(UsageError, match="columns kind, second all hold choices"):
        FromFile(tmp_path / "a.json", pool)(asked(1))
    (tmp_path / "a.json").write_text(json.dumps([{**rows[0], "label": "owl"}]))
    assert FromFile(tmp_path / "a.json", pool)(asked(1)) == {1: "owl"}
    (tmp_path / "a.json").write_text(json.dumps([{"ssl_lab_id": 1, "label": {"choices": ["cat", "dog"]}}]))
    with pytest.raises(UsageError, match="has the choices cat, dog; expected one"):
        LabelStudio(tmp_path, pool).read()


def test_classes_that_answers_found_in_a_column_of_any_name(tmp_path, pool):
    bare = replace(pool, class_names=())
    (tmp_path / "a.json").write_text('[{"ssl_lab_id": 1, "kind": "yak", "annotation_id": 3, "image": "a/two 2.png"}]')
    assert LabelStudio(tmp_path, bare).read() == {1: "yak"}


# Ids and paths that do not agree

@pytest.mark.parametrize(("text", "words"), [
    ("id,path,label\n0,a/one.png,cat\n1,b/three.png,dog\n",
     r"row 2: id 1 is 'a/two 2.png', but the path beside it is 'b/three.png' \(id 2\)"),
    ("id,path,label\n0,a/one.png,cat\n1,other/zebra.png,dog\n",
     "id 1 is 'a/two 2.png', but the path beside it is 'other/zebra.png', which arrays does not have"),
    ("ssl_lab_id,id,image,label\n1,1,/data/local-files/?d=x/b/three.png,dog\n",
     r"'a/two 2.png', but the image .*\(id 2\)"),
])
def test_an_id_and_a_path_of_different_images(tmp_path, pool, text, words):
    (tmp_path / "a.csv").write_text(text)
    with pytest.raises(UsageError, match=words):
        FromFile(tmp_path / "a.csv", pool)(asked(1))


def test_which_image_a_path_means(pool):
    keys = Keys(pool)
    expected = {
        "a/one.png": [0], "/x/photos/a/one.png": [0], "one.png": [0, 4], "c\\one.png": [4], "three.png": [2],
        "z/three.png": [], "https://host/z/three.png": [2], "https://host/b/three.png": [2], "nothing.png": [],
        "/data/local-files/?d=p/a/two%202.png": [1], "http://h:8080/data/local-files/?d=p/a/two%202.png": [1],
        "/data/upload/7/0123abcd-two_2.png": [1], "/data/upload/0123abcd-three.png": [2], "a/two%202.png": [1],
        "file:///photos/b/four.png": [3], "http://[bad/four.png": [], "": [], "/": [], "xtop.jpg": [],
    }
    assert {path: keys.rows(path) for path in expected} == expected


def test_images_without_files_are_known_by_the_name_that_they_were_given(tmp_path, pool):
    bare = replace(pool, files=())
    keys = Keys(bare)
    assert keys.rows("/data/local-files/?d=images/5.png") == [5]
    assert keys.rows("/data/upload/1/0123abcd-5.png") == [5]
    (tmp_path / "a.csv").write_text("id,path,label\n5,,cat\n4,,dog\n")
    assert FromFile(tmp_path / "a.csv", bare)(asked(4, 5)) == {5: "cat", 4: "dog"}


def test_a_table_of_label_studio_whose_numbers_are_not_ours(tmp_path, pool):
    """With our id the image need not be known, as of images that were put elsewhere; without it, it must be."""
    (tmp_path / "a.csv").write_text("id,image,label,annotation_id\n1,https://h/three.png,dog,7\n2,x/zebra.png,cat,8\n")
    oracle = FromFile(tmp_path / "a.csv", pool)
    assert oracle(asked(0, 1, 2, 3)) == {2: "dog"}
    assert "2 tasks read, 1 without a known image (the first: " in oracle.notes[0]
    (tmp_path / "a.csv").write_text("id,annotator,image,label\n1,me,b/three.png,dog\n")
    assert oracle(asked(0, 1, 2, 3)) == {2: "dog"}
    (tmp_path / "a.csv").write_text("id,annotator,label\n1,me,dog\n")  # no mark of Label Studio's: a person's table
    assert oracle(asked(0, 1, 2, 3)) == {1: "dog"}


# Spreadsheets

ROWS = [("id", "path", "label"), ("0", "a/one.png", "cat"), ("1", "a/two 2.png", "dog"), ("3", "b/four.png", "")]


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "cp1252"])
@pytest.mark.parametrize("delimiter", [",", ";", "\t", "|"])
@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_a_table_of_any_spreadsheet(tmp_path, pool, encoding, delimiter, end):
    rows = [(" ID", "Path", " Label ", "comment"), *[(*row, "é, so; to | speak\t.") for row in ROWS[1:]], ("",) * 4,
            ("5.0", "", "3.0", "")]
    text = end.join(delimiter.join(f'"{cell}"' if "é" in cell else cell for cell in row) for row in rows) + end * 3
    for file in ("a.csv", "a.txt"):
        (tmp_path / file).write_bytes(text.encode(encoding))
        assert FromFile(tmp_path / file, pool)(asked(0, 1, 3, 5)) == {0: "cat", 1: "dog", 5: "3"}


def test_a_told_delimiter_and_names_in_an_old_encoding(tmp_path, pool):
    french = replace(pool, class_names=("café", "thé"), files=("é.png", *FILES[1:]))
    (tmp_path / "a.csv").write_bytes("sep=;\r\npath;label\r\né.png;thé\r\ntop.jpg;CAFÉ\r\n".encode("cp1252"))
    assert FromFile(tmp_path / "a.csv", french)(asked(0, 5)) == {0: "thé", 5: "café"}
    (tmp_path / "a.csv").write_text("path,label\ne\u0301.png,the\u0301\n")  # as a Mac takes names apart
    assert FromFile(tmp_path / "a.csv", french)(asked(0, 5)) == {0: "thé"}


def test_a_row_of_more_cells_than_columns(tmp_path, pool):
    (tmp_path / "a.csv").write_text("path,label\na, b.png,cat\n")
    with pytest.raises(UsageError, match="row 1: 3 cells under the 2 columns path, label; quote"):
        FromFile(tmp_path / "a.csv", pool)(asked(0))
    (tmp_path / "a.csv").write_text("path,label\na/one.png,cat,,\n")
    assert FromFile(tmp_path / "a.csv", pool)(asked(0)) == {0: "cat"}


@pytest.mark.parametrize(("content", "words"), [(b"PK\x03\x04rest", "Excel workbook"), (b"\x89PNG\0\0\0", "no text"),
                                                (b"\xff\xfe\x00", "no text"), (b"[1, 2]", "expected rows of id")])
def test_files_that_hold_no_answers(tmp_path, pool, content, words):
    (tmp_path / "a.csv").write_bytes(content)
    with pytest.raises(UsageError, match=words):
        FromFile(tmp_path / "a.csv", pool)(asked(0))


def test_json_lines_and_nothing_at_all(tmp_path, pool):
    (tmp_path / "a.jsonl").write_text('{"id": 0, "label": "cat"}\n\n{"path": "b/four.png", "label": 1}\n')
    assert FromFile(tmp_path / "a.jsonl", pool)(asked(0, 3)) == {0: "cat", 3: 1}
    for name in ("a.csv", "a.json"):
        (tmp_path / name).write_text("")
        assert FromFile(tmp_path / name, pool)(asked(0)) == {}


@pytest.mark.parametrize("word", ["", " ", "nan", "NaN", "None", "NULL", "NA", "-1", "-1.0", "?", "unlabeled", "<NA>"])
@pytest.mark.parametrize("kind", ["csv", "json", "object", "label studio"])
def test_a_missing_word_is_no_answer_but_a_class_of_that_name_is(tmp_path, pool, word, kind):
    named = replace(pool, class_names=("cat", word))
    text = {"csv": f'id,label\n0,cat\n1,"{word}"\n', "json": json.dumps([{"id": 0, "label": "cat"},
                                                                        {"id": 1, "label": word}]),
            "object": json.dumps({"0": "cat", "1": word}),
            "label studio": json.dumps([{"ssl_lab_id": i, "label": label} for i, label in ((0, "cat"), (1, word))])}
    path = tmp_path / ("a.csv" if kind == "csv" else "a.json")
    path.write_text(text[kind])
    assert FromFile(path, pool)(asked(0, 1)) == {0: "cat"}
    if word.strip():
        assert FromFile(path, named)(asked(0, 1)) == {0: "cat", 1: word}
    path.write_text('[{"id": 0, "label": NaN}, {"id": 1, "label": null}, {"id": 2, "label": -1}]')
    assert FromFile(path, pool)(asked(0, 1, 2)) == {}


@pytest.mark.parametrize(("label", "answer"), [
    ("3", "3"), ("3.0", "3"), (3, "3"), (3.0, "3"), ("1", 1), ("1.0", 1), (1.0, 1), (" Cat ", "cat"), ("-2", -2),
    ("Ignore", "ignore"), ("abstain", None), (None, None), ("zebra", "zebra"), ("2.5", "2.5")])
def test_what_a_label_says(pool, label, answer):
    found = Keys(pool).answer(label)
    assert (type(found), found) == (type(answer), answer)


# What we write for people

@given(st.lists(st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0")), min_size=1))
def test_any_cells_survive_and_none_is_a_formula(cells):
    text = csv_text([f"c{n}" for n in range(len(cells))], [["x", *cells[1:]]])
    (row,) = rows_of(text, "it")
    assert [row[f"c{n}"] for n in range(1, len(cells))] == cells[1:]
    for cell in cells:
        assert safe(cell)[:1] not in {*"=+-@\t\r"} or float(safe(cell)) is not None  # numbers are harmless


NAMES = [b"=1+1.png", b"+x.png", b"-y.png", b"@z.png", b"'=q.png", b"''@q.png", b"caf\xe9.png", b"caf\xc3\xa9.png",
         b"a,b;c.png", b"new\nline.png", b'quo"te.png', b"\\udce9.png", b" lead.png", b"\xff\xfe.png", b"tab\t.png"]


@pytest.fixture
def strange(tmp_path):
    """A pool of real files with names that strangers give, and its folder."""
    for n, name in enumerate(NAMES):
        for label in (b"cat", b"dog"):
            folder = os.path.join(os.fsencode(tmp_path), b"photos", label)
            os.makedirs(folder, exist_ok=True)
            with open(os.path.join(folder, name), "wb") as file:
                Image.fromarray(np.full((8, 8, 3), 10 * n + (label == b"dog"), np.uint8)).save(file, "png")
    return load(tmp_path / "photos", data_dir=tmp_path / "cache")


def test_questions_of_strange_names_come_back(tmp_path, strange):
    ids = strange.train
    question = Asked(ids, tuple(strange.files[i] for i in ids), class_names=strange.class_names)
    write_questions(tmp_path / "asked.csv", question)
    text = (tmp_path / "asked.csv").read_text(encoding="utf-8")  # it is UTF-8, whatever the names are
    expected = {int(i): strange.class_names[strange.truth[i]] for i in ids}
    rows = list(csv.DictReader(io.StringIO(text, newline="")))
    assert not any(row["path"].startswith(("=", "+", "-", "@")) for row in rows)
    for columns in (("id", "path", "label"), ("path", "label")):  # with our id, and by the path alone
        filled = io.StringIO(newline="")
        writer = csv.DictWriter(filled, columns, extrasaction="ignore", delimiter=";")
        writer.writeheader()
        writer.writerows(row | {"label": expected[int(row["id"])]} for row in rows)
        (tmp_path / "filled.csv").write_bytes(filled.getvalue().encode("utf-8-sig"))
        assert FromFile(tmp_path / "filled.csv", strange)(question) == expected
    (tmp_path / "raw.csv").write_bytes(b"path,label\n" + b"".join(  # a program that writes names as they are
        b'"%s",dog\n' % os.fsencode(strange.files[i]).replace(b'"', b'""') for i in ids))
    assert FromFile(tmp_path / "raw.csv", strange)(question) == dict.fromkeys(expected, "dog")
    (tmp_path / "raw.json").write_text(json.dumps({strange.files[i]: "cat" for i in ids}))
    assert FromFile(tmp_path / "raw.json", strange)(question) == dict.fromkeys(expected, "cat")


def test_what_stands_in_the_label_column_stays(tmp_path):
    question = asked(1, 2, 3, 4, paths=("", "", "", ""))
    write_questions(tmp_path / "a.csv", question)
    rows = {1: "-2", 2: "=odd", 3: "it, is"}
    for _ in range(3):
        cells = [(i, "", rows.get(i, "")) for i in range(1, 5)]
        (tmp_path / "a.csv").write_text(csv_text(("id", "path", "label"), cells))
        write_questions(tmp_path / "a.csv", question)
        assert {row["id"]: row["label"] for row in read_table(tmp_path / "a.csv")} == {
            "1": "-2", "2": "=odd", "3": "it, is", "4": ""}


def test_tasks_of_strange_names_show_their_images(tmp_path, strange):
    oracle = LabelStudio(tmp_path / "out", strange, tmp_path / "photos")
    ids = strange.train
    oracle.write(Asked(ids))
    top = oracle.document_root
    assert top == tmp_path  # above both storages
    for task in json.loads((tmp_path / "out" / "tasks.json").read_text()):
        i, image = task["data"]["ssl_lab_id"], task["data"]["image"]
        path = top / unquote(image.partition("?d=")[2])
        assert any(storage in path.parents for storage in oracle.storages)
        np.testing.assert_array_equal(np.asarray(Image.open(path)).transpose(2, 0, 1),
                                      strange.images.take(np.array([i])).numpy()[0])


def test_bytes_are_read_as_what_they_are():
    assert decoded("é".encode("cp1252")) == "\udce9"
    assert unescaped(safe("caf\udce9=.png")) == "caf\udce9=.png"
    assert decoded("cat".encode("utf-16-be")) == decoded("cat".encode("utf-16")) == "cat"


# Several people

def test_what_people_come_to():
    def votes(*said):
        return [Vote(0, answer, who, when, where=f"line {n}: 0") for n, (answer, who, when) in enumerate(said)]

    cases = {  # majority, first, newest, ask-again; "open" where nothing is decided
        "one": (votes(("cat", "a", 1.0)), "cat", "cat", "cat", "cat"),
        "agreed": (votes(("cat", "a", 1.0), ("cat", "b", 2.0)), "cat", "cat", "cat", "cat"),
        "a tie": (votes(("cat", "a", 2.0), ("dog", "b", 1.0)), "open", "dog", "cat", "open"),
        "two to one": (votes(("cat", "a", 1.0), ("dog", "b", 2.0), ("cat", "c", 3.0)), "cat", "cat", "cat", "open"),
        "corrected": (votes(("cat", "a", 1.0), ("dog", "a", 2.0)), "dog", "dog", "dog", "dog"),
        "corrected, read in another order": (votes(("dog", "a", 2.0), ("cat", "a", 1.0)), "dog", "dog", "dog", "dog"),
        "the first corrects": (votes(("cat", "a", 1.0), ("owl", "b", 2.0), ("dog", "a", 3.0)), "open", "dog", "dog",
                               "open"),
        "another one skips": (votes(("cat", "a", 1.0), (None, "b", 2.0)), "cat", "cat", "cat", "cat"),
        "all skip": (votes((None, "a", 1.0), (None, "b", 2.0)), None, None, None, None),
        "skipped after all": (votes(("cat", "a", 1.0), (None, "a", 2.0)), None, None, None, None),
        "no times": (votes(("cat", "a", None), ("dog", "b", None), ("dog", "a", None)), "dog", "dog", "dog", "dog"),
        "nobody's name": (votes(("cat", None, 1.0), ("dog", None, 2.0)), "dog", "dog", "dog", "dog"),
    }
    for name, (said, *expected) in cases.items():
        for how, answer in zip(("majority", "first", "newest", "ask-again"), expected, strict=True):
            found = agree(said, how)
            assert found.answers.get(0, "open") == answer, (name, how)
            assert (found.open == (0,)) == (answer == "open")
    with pytest.raises(UsageError, match="line 1: 0 is 'dog' there, but 'cat' before"):
        agree(votes(("cat", None, None), ("dog", None, None)))


def test_an_annotation_counts_once_however_often_it_was_exported():
    old, new = (Vote(0, answer, who, when, annotation="7") for answer, who, when in
                (("cat", "1", 1.0), ("dog", "a@b.org", 2.0)))  # who is a number in one format, an address in another
    for votes in ([old, new], [new, old]):
        assert agree([*votes, Vote(0, "dog", "c", 0.0)], "majority") == ({0: "dog"}, (), ())


@pytest.mark.parametrize("kind", ["json", "json_min", "csv", "rows"])
@pytest.mark.parametrize(("how", "answers"), [
    ("majority", {0: "dog", 2: "cat"}), ("first", {0: "cat", 1: "cat", 2: "cat"}),
    ("newest", {0: "dog", 1: "dog", 2: "cat"}), ("ask-again", {2: "cat"})])
def test_several_people_in_every_format(tmp_path, pool, kind, how, answers):
    said = [(0, "ann", "cat", 1), (0, "bob", "dog", 2), (0, "cy", "dog", 3), (1, "ann", "cat", 1), (1, "bob", "dog", 2),
            (2, "ann", "dog", 1), (2, "ann", "cat", 2)]
    flat = [{"ssl_lab_id": row, "id": 50 + row, "annotator": who, "label": label, "annotation_id": n,
             "updated_at": f"2026-01-0{day}T00:00:00Z"} for n, (row, who, label, day) in enumerate(said)]
    if kind == "json":
        text = json.dumps([{"id": 50 + row, "data": {"ssl_lab_id": row}, "annotations": [
            {"id": one["annotation_id"], "completed_by": {"email": one["annotator"]}, "updated_at": one["updated_at"],
             "result": [{"from_name": "label", "value": {"choices": [one["label"]]}}]}
            for one in flat if one["ssl_lab_id"] == row] + [{"id": 99, "completed_by": 9, "was_cancelled": True,
                                                            "updated_at": "2026-02-01T00:00:00Z", "result": []}]}
            for row in range(3)])
    elif kind == "json_min":
        text = json.dumps(flat)
    elif kind == "csv":
        text = csv_text(list(flat[0]), [list(row.values()) for row in flat])
    else:
        text = "id,label,annotator\n" + "".join(f"{row},{label},{who}\n" for row, who, label, _ in said)
    path = tmp_path / ("a.json" if kind.startswith("json") else "a.csv")
    path.write_text(text)
    file = FromFile(path, pool, how)
    assert file(asked(0, 1, 2)) == answers
    open_ = sorted({0, 1} - answers.keys())
    expected = f"people disagree on 2 images: {2 - len(open_)} settled by --agreement {how}"
    assert file.notes[-1].startswith(expected)
    assert (f"{len(open_)} stay without an answer until people agree (id {', '.join(map(str, open_))})"
            in file.notes[-1]) == bool(open_)
    if kind != "rows":
        oracle = LabelStudio(tmp_path, pool, agreement=how)
        assert oracle.read() == answers
        assert oracle.notes[-1].startswith(expected)
