"""Oracles: known labels with noise, files, commands, Label Studio's files."""

import json
import sys
from dataclasses import replace
from xml.etree import ElementTree

import numpy as np
import pytest
from PIL import Image

from ssl_lab.active.people.label_studio import LabelStudio, label_config
from ssl_lab.active.people.oracle import Asked, Command, FromFile, Truth
from ssl_lab.active.plugins import make_oracle
from ssl_lab.data import Pool
from ssl_lab.errors import UsageError


def asked(*ids, **known):
    return Asked(np.array(ids, dtype=np.int64), **known)


@pytest.fixture(scope="module")
def animals():
    """Four images with files and names, without known labels."""
    pool = Pool.from_arrays(np.arange(4 * 36, dtype=np.uint8).reshape(4, 6, 6), [-1] * 4,
                            class_names=("cat", "dog", "7"))
    return replace(pool, files=("a/one.png", "a/two 2.png", "b/three.png", "b/four.png"))


def test_truth_is_the_truth(digits):
    rows = digits.train[:50]
    assert Truth(digits)(asked(*rows)) == dict(zip(rows.tolist(), digits.truth[rows].tolist(), strict=True))


def test_noise_and_abstention_have_their_rates(digits):
    rows = digits.train
    answers = Truth(digits, noise=0.3, abstain=0.2, seed=1)(asked(*rows))
    given = {i: answer for i, answer in answers.items() if answer is not None}
    assert 1 - len(given) / len(rows) == pytest.approx(0.2, abs=0.04)
    wrong = {i: answer for i, answer in given.items() if answer != digits.truth[i]}
    assert len(wrong) / len(given) == pytest.approx(0.3, abs=0.05)
    shifts = np.bincount([(answer - digits.truth[i]) % 10 for i, answer in wrong.items()], minlength=10)
    assert shifts[1:].min() > 0.5 * len(wrong) / 9  # spread over all nine other classes
    assert all(0 <= answer < 10 for answer in given.values())


def test_an_answer_is_a_function_of_seed_and_id(digits):
    oracle, again, other = (Truth(digits, 0.5, 0.1, seed) for seed in (0, 0, 1))
    rows = digits.train[:100]
    assert oracle(asked(*rows)) == again(asked(*rows[::-1]))
    assert oracle(asked(rows[7]))[int(rows[7])] == oracle(asked(*rows))[int(rows[7])]
    assert oracle(asked(*rows)) != other(asked(*rows))


def test_all_noise_is_never_right(digits):
    answers = Truth(digits, noise=1.0)(asked(*digits.train))
    assert all(answer != digits.truth[i] for i, answer in answers.items())


def test_truth_says_what_it_does_not_know(animals, digits):
    with pytest.raises(UsageError, match=r"label of row 1 .* not known \(2 such rows"):
        Truth(animals)(asked(1, 2))
    with pytest.raises(UsageError, match="probabilities from 0 to 1"):
        Truth(digits, noise=1.5)


@pytest.mark.parametrize(("name", "content"), [
    ("a.csv", "id,label\n0,cat\n1,1\n2,ignore\n3,abstain\n"),
    ("a.csv", "﻿path,label\na/one.png,cat\na/two 2.png,dog\n2,-2\nb/four.png,abstain\n"),
    ("a.json", '{"0": "cat", "a/two 2.png": 1, "2": -2, "3": "abstain"}'),
    ("a.json", '[{"id": 0, "label": 0}, {"path": "a/two 2.png", "label": "dog"}, {"id": 2, "label": "ignore"},'
               ' {"id": 3, "label": "abstain"}]'),
])
def test_files_of_all_kinds(tmp_path, animals, name, content):
    (tmp_path / name).write_text(content, encoding="utf-8")
    answers = FromFile(tmp_path / name, animals)(asked(3, 0, 2, 1))
    numbers = {name: number for number, name in enumerate(animals.class_names)} | {"ignore": -2, "abstain": None}
    assert {i: numbers.get(a, a) for i, a in answers.items()} == {0: 0, 1: 1, 2: -2, 3: None}


def test_a_file_that_contradicts_itself(tmp_path, animals):
    (tmp_path / "a.csv").write_text("id,label\n0,cat\na/one.png,cat\n0,dog\n")
    with pytest.raises(UsageError, match="row 3: '0' is 'dog' there, but 'cat' before"):
        FromFile(tmp_path / "a.csv", animals)(asked(1))


def test_a_file_that_grows(tmp_path, animals):
    path = tmp_path / "answers.csv"
    oracle = FromFile(path, animals)
    assert oracle(asked(0, 1)) == {}
    path.write_text("id,path,label\n0,a/one.png,\n1,a/two 2.png,dog\n2,b/three.png,cat\n")
    assert oracle(asked(0, 1)) == {1: "dog"}  # 0 is not answered, 2 was not asked for
    path.write_text("id,label\n0,7\n")
    assert oracle(asked(0)) == {0: "7"}  # the name, not the number


@pytest.mark.parametrize(("content", "words"), [
    ("id,label\n9,cat\n", "row 1: id 9 is out of range; .* has 4 images"),
    ("path,label\nno.png,cat\n", "'no.png' is neither an id nor the path"),
    ("name,class\n0,cat\n", r"expected rows of id \(or path\) and label"),
])
def test_bad_files(tmp_path, animals, content, words):
    (tmp_path / "a.csv").write_text(content)
    with pytest.raises(UsageError, match=words):
        FromFile(tmp_path / "a.csv", animals)(asked(0))


def command(tmp_path, body, pool):
    script = tmp_path / "oracle.py"
    script.write_text("import json, sys\nrows = [json.loads(line) for line in sys.stdin]\n" + body)
    return Command([sys.executable, "-S", str(script)], pool)


def test_a_command_is_asked_and_answers(tmp_path, animals):
    oracle = command(tmp_path, """
for row in reversed(rows):
    label = {"a/one.png": None, "a/two 2.png": row["predicted"]}.get(row["path"], int(row["confidence"] * 10))
    print(json.dumps({"id": row["id"], "label": label}), flush=True)
""", animals)
    question = asked(1, 0, 3, paths=("a/two 2.png", "a/one.png", "b/four.png"), predicted=("dog", "cat", "cat"),
                     confidence=(0.5, 0.4, 0.2))
    assert list(oracle(question)) == [(3, 2), (0, None), (1, "dog")]


def test_a_command_that_fails_keeps_its_answers(tmp_path, animals):
    answers = command(tmp_path, """print('{"id": 0, "label": 1}', flush=True); sys.exit(3)""", animals)(asked(0, 1))
    assert next(answers) == (0, 1)
    with pytest.raises(UsageError, match="exited with status 3"):
        next(answers)


def test_a_command_may_answer_by_path_and_leave_out(tmp_path, animals):
    lines = ['{"path": "b/four.png", "label": 1}', '{"id": 1, "path": "a/two 2.png", "label": "cat"}',
             '{"id": 0, "label": "nan"}', '{"id": 2, "label": ""}']
    oracle = command(tmp_path, f"print({chr(10).join(lines)!r})", animals)
    assert list(oracle(asked(0, 1, 2, 3))) == [(3, 1), (1, "cat")]
    with pytest.raises(UsageError, match=r"id 1 is 'a/two 2.png', but the path beside it is 'b/four.png'"):
        list(command(tmp_path, """print('{"id": 1, "path": "b/four.png", "label": 0}')""", animals)(asked(1)))


def test_a_command_sees_names_that_are_no_utf_8(tmp_path, animals):
    odd = replace(animals, files=("caf\udce9.png", *animals.files[1:]))
    oracle = command(tmp_path, """
for row in rows:
    print(json.dumps({"path": row["path"], "label": 1}))
    sys.stdout.flush()
    sys.stdout.buffer.write(b'{"path": "caf\\xe9.png", "label": 2}\\n')
""", odd)
    assert list(oracle(asked(0, paths=("caf\udce9.png",)))) == [(0, 1), (0, 2)]


@pytest.mark.parametrize(("line", "words"), [
    ("hello", "wrote 'hello'; expected"), ('{"id": 0}', "expected"),
    ('{"id": 99, "label": 0}', "id 99 is out of range"),
    ('{"id": 0, "label": 1.5}', "a label is 1.5")])
def test_a_command_that_talks_nonsense(tmp_path, animals, line, words):
    with pytest.raises(UsageError, match=words):
        list(command(tmp_path, f"print({line!r})", animals)(asked(0)))


def test_a_command_that_is_not_there(animals):
    with pytest.raises(UsageError, match="cannot run the oracle no-such-program: No such file"):
        list(Command("no-such-program", animals)(asked(0)))


def annotate(folder, answers, name="export.json", when="2026-01-01T00:00:00Z"):
    """What Label Studio exports: its own task ids, our data, annotations."""
    tasks = json.loads((folder / "tasks.json").read_text())
    exported = []
    for number, task in enumerate(tasks):
        i = task["data"]["ssl_lab_id"]
        if i in answers:
            result = [] if answers[i] is None else [{"from_name": "label", "to_name": "image", "type": "choices",
                                                     "value": {"choices": [answers[i]]}}]
            exported.append(task | {"id": 1000 + number, "annotations": [
                {"id": number, "was_cancelled": answers[i] is None, "updated_at": when, "result": result}]})
    (folder / name).write_text(json.dumps(exported))


def test_label_studio_round_trip(tmp_path, animals):
    oracle = LabelStudio(tmp_path, animals)
    question = asked(1, 3, 0, predicted=("dog", "cat", "cat"), confidence=(0.5, 0.25, 0.9), scores=(3.0, 2.0, 1.0),
                     version="abc")
    assert oracle(question) == {}
    tasks = json.loads((tmp_path / "tasks.json").read_text())
    assert [task["data"]["ssl_lab_id"] for task in tasks] == [1, 3, 0]
    assert tasks[0]["data"]["image"] == "/data/local-files/?d=a/two%202.png"
    assert tasks[0]["data"]["query_score"] == 3.0
    assert tasks[0]["predictions"] == [{"model_version": "abc", "score": 0.5, "result": [
        {"from_name": "label", "to_name": "image", "type": "choices", "value": {"choices": ["dog"]}}]}]
    annotate(tmp_path, {1: "cat", 3: None, 0: "ignore"})
    assert oracle(question) == {1: "cat", 3: None, 0: "ignore"}
    assert oracle(asked(3)) == {3: None}


def test_label_studio_is_idempotent_by_id(tmp_path, animals):
    oracle = LabelStudio(tmp_path, animals)
    oracle(asked(1, 3))
    assert oracle.write(asked(3, 1)) == 0
    assert oracle.write(asked(3, 2)) == 1
    assert [task["data"]["ssl_lab_id"] for task in json.loads((tmp_path / "tasks.json").read_text())] == [1, 3, 2]
    annotate(tmp_path, {1: "dog", 2: "cat"}, "export-2.json", "2026-02-01T00:00:00Z")
    annotate(tmp_path, {1: "cat", 3: "cat"}, "export-9-exported-again.json", "2026-01-01T00:00:00Z")
    expected = {1: "dog", 2: "cat", 3: "cat"}  # the newest annotation, whatever the files' order
    assert oracle.read() == oracle.read() == expected


def test_label_studio_serves_a_folder_below_its_document_root(tmp_path, animals):
    """Where it may serve a folder only from below the root, which can be no storage itself."""
    oracle = LabelStudio(tmp_path / "out", animals, tmp_path / "my photos")
    oracle(asked(1))
    assert (oracle.storages, oracle.document_root) == ([tmp_path / "my photos"], tmp_path)
    (task,) = json.loads((tmp_path / "out" / "tasks.json").read_text())
    assert task["data"]["image"] == "/data/local-files/?d=my%20photos/a/two%202.png"
    said = oracle.instructions()
    assert f"LABEL_STUDIO_LOCAL_FILES_DOCUMENT_ROOT='{tmp_path}'" in said or f"DOCUMENT_ROOT={tmp_path} " in said
    assert f"absolute local path {tmp_path / 'my photos'} " in said
    assert f"Import {tmp_path / 'out' / 'tasks.json'}" in said
    oracle(asked(1, 3))  # what is new is also in a file of its own, so that nothing is imported twice
    (task,) = json.loads((tmp_path / "out" / "tasks-2.json").read_text())
    assert task["data"]["ssl_lab_id"] == 3
    assert f"Import {tmp_path / 'out' / 'tasks-2.json'}" in oracle.instructions()


def test_label_studio_serves_images_in_two_places(tmp_path, digits):
    mixed = replace(digits, files=tuple(f"../{i}.png" if i % 2 else f"{i}.png" for i in range(len(digits))))
    oracle = LabelStudio(tmp_path / "runs" / "out", mixed, tmp_path / "photos")
    i, j = (int(digits.train[digits.train % 2 == rest][0]) for rest in (0, 1))
    oracle(asked(i, j))
    first, second = json.loads((tmp_path / "runs" / "out" / "tasks.json").read_text())
    assert oracle.document_root == tmp_path
    assert first["data"]["image"] == f"/data/local-files/?d=photos/{i}.png"
    assert second["data"]["image"] == f"/data/local-files/?d=runs/out/images/{j}.png"
    assert oracle.read() == {}


def test_label_studio_writes_images_that_have_no_file(tmp_path, digits):
    i = int(digits.train[3])
    LabelStudio(tmp_path, digits)(asked(i))
    pixels = np.asarray(Image.open(tmp_path / "images" / f"{i}.png"))
    np.testing.assert_array_equal(pixels, digits.images.take(np.array([i])).numpy()[0, 0])


def test_label_config_is_xml_with_all_classes():
    root = ElementTree.fromstring(label_config(("a & b", '"quoted"', "ignore")))
    assert [choice.get("value") for choice in root.iter("Choice")] == ["a & b", '"quoted"', "ignore"]
    assert next(root.iter("Choices")).get("toName") == next(root.iter("Image")).get("name") == "image"


def test_label_studio_refuses_what_it_cannot_read(tmp_path, animals):
    oracle = LabelStudio(tmp_path, animals)
    oracle.write(asked(0))
    (tmp_path / "tasks.json").write_text('{"a": 1}')
    with pytest.raises(UsageError, match="not a list of tasks"):
        oracle(asked(1))
    (tmp_path / "export.json").write_text(json.dumps([{"data": {"ssl_lab_id": 0}, "annotations": [
        {"result": [{"value": {"choices": ["cat", "dog"]}}]}]}]))
    with pytest.raises(UsageError, match="choices cat, dog; expected one"):
        oracle.read()


def test_oracles_by_name(tmp_path, animals):
    (tmp_path / "answers").touch()
    kinds = {"truth": Truth, "label_studio": LabelStudio, "command: cat": Command, "answers.csv": FromFile,
             "answers.TSV": FromFile, str(tmp_path / "answers"): FromFile}
    for name, kind in kinds.items():
        assert isinstance(make_oracle(name, animals, tmp_path), kind)
    with pytest.raises(UsageError, match="unknown oracle 'people'"):
        make_oracle("people", animals, tmp_path)
    with pytest.raises(UsageError, match="only the oracle truth"):
        make_oracle("answers.csv", animals, tmp_path, noise=0.1)
