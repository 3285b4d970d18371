"""`ssl-lab labels`: what people said leaves as a CSV, which load, --split-file and --oracle read."""

import csv
import json
import shutil
from datetime import datetime

import numpy as np
import pytest
from test_moved_data import CPU, OLD, PIXELS, arrays, fit, folder, png, run, table, truth, which
from test_moved_data import Any as AnyQuery

from ssl_lab.active.loop import ActiveLoop
from ssl_lab.active.people.oracle import FromFile
from ssl_lab.cli import main
from ssl_lab.data import Ledger, Pool, load
from ssl_lab.errors import UsageError
from ssl_lab.label.session import Session


def answered(pool, out):
    people = ActiveLoop(pool, fit, AnyQuery(), out=out, budget=4, rounds=4, **CPU)
    a, b, c, _ = people.ask().tolist()
    people.tell([a, b, c], [1, -2, None])
    return people


def rows(path):
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


@pytest.mark.parametrize("source", [folder, table])
@pytest.mark.parametrize("place", ["labels.csv", "elsewhere/labels.csv"])
def test_labels_of_a_loop_make_the_round_trip(source, place, tmp_path, capsys):
    pool = source(tmp_path, OLD)
    people = answered(pool, tmp_path / "out")
    ledger = people.pool.labels
    to = tmp_path / place
    main(["labels", str(tmp_path / "out"), "--to", str(to)])
    assert f"{(ledger != -1).sum()} labels are in {to}" in capsys.readouterr().out
    written = rows(to)
    assert list(written[0]) == ["path", "label", "source", "when"]
    assert all(datetime.fromisoformat(row["when"]).utcoffset().total_seconds() == 0 for row in written)
    assert {row["source"] for row in written} == {"split", "told in round 0"}
    whole = [to.parent / row["path"] for row in written]
    assert all(path.is_file() for path in whole)
    assert all(row["path"].startswith("/") == place.startswith("elsewhere") for row in written)

    again = load(to, data_dir=tmp_path / "caches", image_size=8)  # load
    known = {i: int(label) for i, label in zip(which(again, range(len(again))), again.truth, strict=True)}
    expected = {i: int(ledger[row]) for row, i in enumerate(which(pool, range(len(pool)))) if ledger[row] >= 0}
    assert known == expected
    assert again.passed_over["ignored"] == 1

    for data in (pool, source(tmp_path, range(60))):  # --split-file, with more images too
        if set(which(data, data.test)) & set(expected):
            continue  # 20% are held out anew, of which some have a label here
        few = data.split(labeled=to)
        assert dict(zip(which(few, few.labeled), few.labels[few.labeled].tolist(), strict=True)) == expected
        assert (few.labels == -2).sum() == 1

    bare = pool.split(labeled=[])
    loop = ActiveLoop(bare, fit, AnyQuery(), FromFile(to, bare), budget=20, rounds=1, out=tmp_path / "new", **CPU)
    loop.run()
    told = {i: int(ledger[i]) for i in loop.records[0].ids if ledger[i] != -1}
    assert told
    assert {i: int(loop.pool.labels[i]) for i in told} == told


def test_labels_of_arrays_are_by_row(tmp_path, capsys):
    pool = arrays(tmp_path, OLD)
    people = answered(pool, tmp_path / "out")
    for source in (tmp_path / "out", tmp_path / "out" / "labels.jsonl"):
        main(["labels", str(source), "--to", str(tmp_path / "labels.csv")])
        written = rows(tmp_path / "labels.csv")
        assert list(written[0]) == ["id", "label", "source", "when"]
        few = pool.split(labeled=tmp_path / "labels.csv")
        np.testing.assert_array_equal(few.labels, people.pool.labels)
    main(["labels", str(tmp_path / "out")])
    assert "id,label,source,when" in capsys.readouterr().out


def test_labels_of_the_page_leave_by_path_and_are_carried_over(tmp_path):
    pool = folder(tmp_path, OLD).split(labeled=[])
    session = Session(pool, tmp_path / "out", np.ones((len(pool.train), 2), np.float32))
    session.answer("me", [int(pool.train[0])], "b")
    session.answer("me", [int(pool.train[1])], -2)
    main(["labels", str(tmp_path / "out"), "--to", str(tmp_path / "labels.csv")])
    assert [(row["path"], row["label"], row["source"]) for row in rows(tmp_path / "labels.csv")] == [
        (f"photos/{pool.files[pool.train[0]]}", "b", "me"), (f"photos/{pool.files[pool.train[1]]}", "-2", "me")]
    more = folder(tmp_path, range(60)).split(labeled=[])
    session = Session(more, tmp_path / "out", np.ones((len(more.train), 2), np.float32))
    assert {more.files[row]: int(session.pool.labels[row]) for row in np.flatnonzero(session.pool.labels != -1)} == {
        pool.files[pool.train[0]]: 1, pool.files[pool.train[1]]: -2}


def test_labels_of_a_run(tmp_path):
    pool = folder(tmp_path, OLD).split(labels=6, seed=0)
    pool.record(np.setdiff1d(pool.train, pool.labeled)[:1], [-2])
    run(pool, tmp_path / "run", steps=1)
    main(["labels", str(tmp_path / "run"), "--to", str(tmp_path / "labels.csv")])
    few = folder(tmp_path, OLD).split(labeled=tmp_path / "labels.csv")
    assert few.manifest()["hash"] == pool.manifest()["hash"]
    assert {row["when"] for row in rows(tmp_path / "labels.csv")} == {""}


def test_labels_of_images_that_moved_since(tmp_path):
    pool = folder(tmp_path, OLD)
    people = answered(pool, tmp_path / "out")
    (tmp_path / "far").mkdir()
    main(["labels", str(tmp_path / "out"), "--to", str(tmp_path / "far" / "labels.csv")])
    shutil.move(tmp_path / "photos", tmp_path / "moved")
    moved = load(tmp_path / "moved", tmp_path / "caches", 8)
    np.testing.assert_array_equal(moved.split(labeled=tmp_path / "far" / "labels.csv").labels, people.pool.labels)


def test_the_place_of_moved_images_is_said(tmp_path, capsys):
    answered(folder(tmp_path, OLD), tmp_path / "out")
    shutil.move(tmp_path / "photos", tmp_path / "moved")
    main(["labels", str(tmp_path / "out"), "--to", str(tmp_path / "labels.csv")])
    assert f"note: the images are no longer in {tmp_path / 'photos'}" in capsys.readouterr().err
    ActiveLoop(load(tmp_path / "moved", tmp_path / "caches", 8), fit, AnyQuery(), out=tmp_path / "out", budget=4,
               rounds=4, **CPU)
    main(["labels", str(tmp_path / "out"), "--to", str(tmp_path / "labels.csv")])
    assert "no longer" not in capsys.readouterr().err
    assert all((tmp_path / row["path"]).is_file() for row in rows(tmp_path / "labels.csv"))


def test_names_that_a_spreadsheet_would_run(tmp_path):
    for name, i in (("=1+1.png", 1), ("-2.png", 2), ("@a, 'b'.png", 4), ("+c.png", 5), ("'=d.png", 7), ("é.png", 8)):
        (tmp_path / name).write_bytes(png(PIXELS[i]))
    for i in (10, 11, 13, 14):
        where = tmp_path / ("=cat" if truth(i) else "@dog")
        where.mkdir(exist_ok=True)
        (where / f"{i}.png").write_bytes(png(PIXELS[i]))
    pool = load(tmp_path, tmp_path / "caches", 8)
    people = ActiveLoop(pool, fit, AnyQuery(), out=tmp_path / "out", budget=6, rounds=1, **CPU)
    people.tell(people.ask(), [0, 1, 0, 1, 0, 1])
    main(["labels", str(tmp_path / "out"), "--to", str(tmp_path / "labels.csv")])
    with (tmp_path / "labels.csv").open(newline="") as file:
        assert all(cell[:1] not in ("=", "+", "-", "@") for line in csv.reader(file) for cell in line)
    np.testing.assert_array_equal(pool.split(labeled=tmp_path / "labels.csv").labels, people.pool.labels)
    again = load(tmp_path / "labels.csv", tmp_path / "caches", 8)
    assert again.class_names == pool.class_names
    assert len(again) == (people.pool.labels >= 0).sum()
    bare = pool.split(labeled=[])
    answers = FromFile(tmp_path / "labels.csv", bare)
    loop = ActiveLoop(bare, fit, AnyQuery(), oracle=answers, out=tmp_path / "new", budget=6, rounds=1, **CPU)
    loop.run()
    asked = [i for i in loop.records[0].ids if people.pool.labels[i] >= 0]
    np.testing.assert_array_equal(loop.pool.labels[asked], people.pool.labels[asked])


def test_what_holds_no_labels_is_said(tmp_path):
    for content, words in (("id,label\n1,mouse\n", "unknown class 'mouse'"),
                           ("id,label\n99,0\n", "id '99' is no row"), ("path,label\nx.png,0\n", "'x.png' is no image"),
                           ("id,label\n1,0\n1,1\n", "a second label"), ("a,b\n1,2\n", "no rows of path")):
        (tmp_path / "l.csv").write_text(content)
        with pytest.raises(UsageError, match=words):
            arrays(tmp_path, OLD).split(labeled=tmp_path / "l.csv")
    with pytest.raises(SystemExit):
        main(["labels", str(tmp_path)])
    (tmp_path / "empty").mkdir()
    Ledger(tmp_path / "empty" / "labels.jsonl").append([], [])
    with pytest.raises(SystemExit):
        main(["labels", str(tmp_path / "empty")])


@pytest.mark.parametrize(("how", "expected"), [
    ("newest", "ant"), ("first", "bee"), ("majority", None), ("ask-again", None), ("dawid-skene", "bee")])
def test_people_who_disagree_are_settled_as_was_asked(tmp_path, capsys, how, expected):
    pool = Pool.from_arrays(PIXELS[:40], [0, 1, *[-1] * 38], class_names=["ant", "bee"])
    session = Session(pool, tmp_path / "out", np.eye(40, dtype=np.float32))
    for row in range(2, 30):  # cat is right as dan is, bob guesses
        truth, guess = ("ant", "bee")[row % 2], ("ant", "bee")[row // 2 % 2]
        for who, said in (("bob", guess), ("cat", truth), ("dan", truth)):
            session.answer(who, [row], said)
    session.answer("cat", [30], "bee")
    session.answer("bob", [30], "bee")
    session.undo("bob")
    session.answer("bob", [30], "ant")
    main(["labels", str(tmp_path / "out"), "--to", str(tmp_path / "labels.csv"), "--agreement", how])
    labels = {row["id"]: row for row in rows(tmp_path / "labels.csv")}
    assert labels.get("30", {}).get("label") == expected
    assert labels.get("2", {}).get("label") == {"first": "bee", "ask-again": None}.get(how, "ant")
    assert "people disagree on 15 images" in capsys.readouterr().err
    if expected:
        assert (labels["30"]["source"], labels["2"]["source"]) == ("bob, cat", "bob, cat, dan")


def test_old_ledgers_without_times_are_read(tmp_path):
    ledger = Ledger(tmp_path / "labels.jsonl")
    ledger.append([0, 1], [1, 0])
    ledger.append([2], [1], "me")
    assert all(datetime.fromisoformat(entry.when) for entry in ledger.entries)
    header, *lines = (tmp_path / "labels.jsonl").read_text().splitlines()
    old = [{key: value for key, value in json.loads(line).items() if key != "when"} for line in lines]
    (tmp_path / "labels.jsonl").write_text("\n".join([header, *map(json.dumps, old)]) + "\n")
    assert [(entry.source, entry.when) for entry in Ledger(tmp_path / "labels.jsonl").entries] == [
        ("oracle", ""), ("me", "")]
    main(["labels", str(tmp_path / "labels.jsonl"), "--to", str(tmp_path / "labels.csv")])
    assert [(row["id"], row["label"], row["source"], row["when"]) for row in rows(tmp_path / "labels.csv")] == [
        ("0", "1", "oracle", ""), ("1", "0", "oracle", ""), ("2", "1", "me", "")]


def test_a_csv_of_other_tools_keeps_its_numbers(tmp_path):
    """-2 is an image to leave out in our file alone, which says source and when."""
    for i in range(8):
        (tmp_path / f"{i}.png").write_bytes(png(PIXELS[i]))
    lines = [f"{i}.png,{-2 if i % 2 else 2}" for i in range(8)]
    (tmp_path / "ratings.csv").write_text("\n".join(["path,label", *lines]) + "\n")
    assert isinstance(pool := load(tmp_path / "ratings.csv", tmp_path / "caches", 8), Pool)
    assert set(pool.class_names) == {"-2", "2"}
