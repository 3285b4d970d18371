"""Data may move where the images are the same; images that came to a loop are carried over; others are said."""

import io
import itertools
import os
import shutil
import tarfile
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from small_runs import assert_same_run

import ssl_lab as sl
from ssl_lab.active.loop import ActiveLoop
from ssl_lab.active.people import carry
from ssl_lab.active.people.oracle import Truth
from ssl_lab.active.queries.base import Query, rng
from ssl_lab.data import Ledger, Pool, load
from ssl_lab.data.inventory import change, inventory, read_inventory
from ssl_lab.errors import UsageError
from ssl_lab.methods import Supervised

RNG = np.random.default_rng(0)
PIXELS = RNG.integers(0, 255, (60, 8, 8, 3), dtype=np.uint8)
NAMES = [f"{i * 37 % 60:02}.png" for i in range(60)]  # in no order
CPU = {"device": "cpu", "precision": "fp32"}


def truth(i):
    return i // 2 % 2


def png(pixels) -> bytes:
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "png")
    return file.getvalue()


def folder(root, rows, name="photos", pixels=PIXELS):
    for i in rows:
        where = root / name / ("ab"[truth(i)] if i % 3 else "unlabeled")
        where.mkdir(parents=True, exist_ok=True)
        (where / NAMES[i]).write_bytes(png(pixels[i]))
    return load(root / name, data_dir=root / "caches", image_size=8)


def table(root, rows, name="photos"):
    (root / name).mkdir(exist_ok=True)
    lines = ["path,label"]
    for i in rows:
        (root / name / NAMES[i]).write_bytes(png(PIXELS[i]))
        lines.append(f"{name}/{NAMES[i]},{'ab'[truth(i)] if i % 3 else ''}")
    (root / f"{name}.csv").write_text("\n".join([lines[0], *sorted(lines[1:])]) + "\n")
    return load(root / f"{name}.csv", data_dir=root / "caches", image_size=8)


def arrays(root, rows):
    return Pool.from_arrays(PIXELS[list(rows)], [truth(i) if i % 3 else -1 for i in rows])


def dataset(root, rows):
    return Pool.from_dataset([(PIXELS[i], truth(i) if i % 3 else -1) for i in rows], class_names=["a", "b"])


def shards(root, rows):
    pytest.importorskip("webdataset")
    (root / "photos").mkdir(exist_ok=True)
    with tarfile.open(root / "photos" / "0.tar", "w") as tar:
        for i in rows:
            for suffix, content in (("png", png(PIXELS[i])), ("cls", ("ab"[truth(i)] if i % 3 else "").encode())):
                info = tarfile.TarInfo(f"{NAMES[i][:2]}.{suffix}")
                info.size = len(content)
                tar.addfile(info, io.BytesIO(content))
    return load(root / "photos", data_dir=root / "caches", image_size=8)


SOURCES = [folder, table, arrays, dataset, shards]



class Any(Query):
    name = "any"

    def select(self, view, budget, seed):
        return rng(seed, "any").permutation(view.candidates)[:budget]


def fit(pool, round):
    return sl.net("tiny_4", classes=pool.classes, style=pool.style, seed=0)


def loop(pool, out, **settings):
    return ActiveLoop(pool, fit, Any(), out=out, **{"budget": 4, "rounds": 4, **CPU} | settings)


def which(pool, rows):
    """Which of PIXELS each row is."""
    taken = pool.images.take(np.asarray(rows)).permute(0, 2, 3, 1).numpy()
    return [int(np.flatnonzero((image == PIXELS).all(axis=(1, 2, 3)))[0]) for image in taken]


def known(people):
    """What a loop knows, by image."""
    pool = people.pool
    rows = np.flatnonzero(pool.labels != -1)
    return ({i: int(label) for i, label in zip(which(pool, rows), pool.labels[rows], strict=True)},
            [which(pool, record.ids) for record in people.records if record.ids],
            which(pool, people.pending), set(which(pool, people.abstained)) if len(people.abstained) else set(),
            set(which(pool, pool.test)))


def answered(pool, out):
    """A loop with a round answered in part: labels, an ignored image, one that nobody would label, one open."""
    people = loop(pool, out)
    a, b, c, _ = people.ask().tolist()
    people.tell([a, b, c], [1, -2, None])
    people.write_asked()
    return people


OLD, MORE = range(0, 60, 2), range(60)


@pytest.mark.parametrize("source", SOURCES)
def test_images_that_came_are_carried_over(source, tmp_path, capsys):
    """By name and content, whatever the new row numbers are; ledger, rounds, abstentions and asked.csv alike."""
    before = known(answered(source(tmp_path, OLD), tmp_path / "out"))
    rows = MORE if source in (folder, table) else [*range(1, 60, 2), *OLD]
    pool = source(tmp_path, rows)
    capsys.readouterr()
    people = loop(pool, tmp_path / "out")
    said = [line for line in capsys.readouterr().err.splitlines() if "images came to" in line]
    assert len(said) == 1
    assert "30 added (of 30)" in said[0]
    labels, asked, pending, abstained, test = known(people)
    assert (asked, pending, abstained, test) == before[1:]
    assert {i: label for i, label in labels.items() if i % 2 == 0} == before[0]
    assert {i: label for i, label in labels.items() if i % 2} == {i: truth(i) for i in range(1, 60, 2) if i % 3}
    text = (tmp_path / "out" / "asked.csv").read_text().splitlines()[1:]
    assert which(pool, [int(line.split(",")[0]) for line in text]) == pending
    assert set(which(pool, people.pool.train)) == set(range(60)) - test
    again = loop(source(tmp_path, rows), tmp_path / "out")  # and they stay, without a word
    assert known(again) == known(people)
    assert "images came to" not in capsys.readouterr().err
    again.tell(again.pending, [0])
    again.ask()
    assert len(again.records) == 2
    assert known(loop(source(tmp_path, rows), tmp_path / "out")) == known(again)


def test_drawn_labels_stay_and_new_images_are_candidates(tmp_path):
    def labeled(rows):
        return Pool.from_arrays(PIXELS[rows], [truth(i) for i in rows]).split(labels=4, seed=0)

    pool = labeled(OLD)
    first = loop(pool, tmp_path / "out", oracle=Truth(pool), rounds=1)
    first.run()
    before = known(first)[0]
    pool = labeled([*range(1, 60, 2), *OLD])
    people = loop(pool, tmp_path / "out", oracle=Truth(pool), rounds=6)
    assert known(people)[0] == before
    people.run()
    labels = known(people)[0]
    assert len(labels) == 4 + 6 * 4
    assert all(label == truth(i) for i, label in labels.items())
    assert any(i % 2 for i in labels)


class Killed(BaseException):
    pass


def dying_after(number, patch):
    """The process ends before the call after so many that change something on disk."""
    calls = [0]

    def dying(real):
        def call(*arguments, **keywords):
            calls[0] += 1
            if calls[0] > number:
                raise Killed
            return real(*arguments, **keywords)
        return call

    for name in ("fsync", "rename", "replace", "rmdir", "mkdir"):
        patch.setattr(os, name, dying(getattr(os, name)))


def test_a_kill_at_any_instant_loses_nothing(tmp_path, monkeypatch):
    """Ended before each write, sync and rename of the carrying over, in turn, and begun again."""
    before = known(answered(folder(tmp_path, OLD), tmp_path / "whole"))
    after = folder(tmp_path, MORE)
    shutil.copytree(tmp_path / "whole", tmp_path / "fine")
    expected = known(loop(after, tmp_path / "fine"))
    assert expected[1:] == before[1:]
    kills = 0
    for number in itertools.count():
        out = tmp_path / f"killed-{number}"
        shutil.copytree(tmp_path / "whole", out)
        with monkeypatch.context() as patch:
            dying_after(number, patch)
            try:
                carry.carried(after, out)
                whole = True
            except Killed:
                whole = False
        kills += not whole
        assert known(loop(after, out)) == expected, number
        assert sorted(path.name for path in out.iterdir() if not path.name.startswith(".")) == sorted(
            path.name for path in (tmp_path / "fine").iterdir())
        if whole:
            break
    assert kills > 20


@pytest.mark.parametrize("source", [folder, arrays])
def test_images_that_went_are_counted(source, tmp_path):
    answered(source(tmp_path, OLD), tmp_path / "out")
    files = {path: path.read_bytes() for path in (tmp_path / "out").iterdir()}
    shutil.rmtree(tmp_path / "photos", ignore_errors=True)
    with pytest.raises(UsageError, match=r"other images: 1 added, 3 removed \(of 30\).*only added or renamed"):
        loop(source(tmp_path, [*range(6, 60, 2), 1]), tmp_path / "out")
    assert {path: path.read_bytes() for path in (tmp_path / "out").iterdir()} == files


def test_changed_and_renamed_images_are_counted(tmp_path):
    people = answered(folder(tmp_path, OLD), tmp_path / "out")
    before = known(people)
    file = tmp_path / "photos" / people.pool.files[int(people.records[0].ids[0])]
    file.rename(file.with_name("renamed.png"))
    assert known(loop(load(tmp_path / "photos", tmp_path / "caches", 8), tmp_path / "out")) == before
    file.with_name("renamed.png").write_bytes(png(PIXELS[1]))
    with pytest.raises(UsageError, match=r"1 changed under their names \(of 30\)"):
        loop(load(tmp_path / "photos", tmp_path / "caches", 8), tmp_path / "out")


def test_a_relabeled_image_is_said(tmp_path):
    answered(folder(tmp_path, OLD), tmp_path / "out")
    folder(tmp_path, MORE)
    loop(load(tmp_path / "photos", tmp_path / "caches", 8), tmp_path / "out")
    a, b = (tmp_path / "photos" / name for name in "ab")
    moved = next(path for path in sorted(a.iterdir()) if f"a/{path.name}" not in set(
        np.array(load(tmp_path / "photos", tmp_path / "caches", 8).files)[
            read_inventory(tmp_path / "out").parts == 2].tolist()))
    moved.rename(b / moved.name)
    with pytest.raises(UsageError, match="other labels of 1 images"):
        loop(load(tmp_path / "photos", tmp_path / "caches", 8), tmp_path / "out")


# Training runs

def run(pool, out, steps=4, stop=None, **config):
    class Stop(sl.Callback):
        def step(self, done):
            if done == stop:
                os.kill(os.getpid(), 2)

    trainer = sl.Trainer(steps=steps, out=out, resume="auto", callbacks=[Stop()], config=config, **CPU)
    return trainer.fit(Supervised(sl.net("tiny_4", classes=2, style=pool.style, seed=0)), pool, labeled=4)


def cut(pool, out, **config):
    with pytest.raises(KeyboardInterrupt):
        run(pool, out, stop=2, **config)


def test_a_run_goes_on_wherever_its_data_lie_now(tmp_path, monkeypatch):
    """imgs, imgs/, the whole path, ~, a link, another machine's folder, a CSV of the same files: one experiment."""
    pool = folder(tmp_path, OLD)
    run(pool, tmp_path / "whole")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "link").symlink_to(tmp_path / "photos")
    shutil.copytree(tmp_path / "photos", tmp_path / "elsewhere" / "photos")
    for number, data in enumerate(["photos", "photos/", str(tmp_path / "photos"), "~/photos", "link",
                                   str(tmp_path / "elsewhere" / "photos")]):
        out = tmp_path / f"run-{number}"
        cut(pool, out, data="photos", image_size=8)
        run(load(data, tmp_path / "caches", 8), out, data=data, image_size=None)
        assert_same_run(out, tmp_path / "whole")


@pytest.mark.parametrize("source", SOURCES)
def test_a_run_says_which_images_came_and_went(source, tmp_path):
    pool = source(tmp_path, OLD)
    cut(pool, tmp_path / "run", data="photos")
    shutil.rmtree(tmp_path / "photos", ignore_errors=True)
    with pytest.raises(UsageError, match=r"trains on other images: 2 added, 1 removed \(of 30\).*put them back"):
        run(source(tmp_path, [1, 3, *range(2, 60, 2)]), tmp_path / "run", data="photos")
    shutil.rmtree(tmp_path / "photos", ignore_errors=True)
    run(source(tmp_path, OLD), tmp_path / "run", data="photos")
    shutil.rmtree(tmp_path / "photos", ignore_errors=True)
    with pytest.raises(UsageError, match=r"start another one from its weights: --weights .*model.safetensors"):
        run(source(tmp_path, MORE), tmp_path / "run", data="photos")


def test_another_split_of_the_same_images_is_said(tmp_path):
    pool = arrays(tmp_path, OLD)
    cut(pool.split(labels=4, seed=0), tmp_path / "run")
    with pytest.raises(UsageError, match=r"another split: other [0-9]+ labeled images, of the same images"):
        run(pool.split(labels=6, seed=0), tmp_path / "run")
    with pytest.raises(UsageError, match="steps: 4 -> 5"):
        run(pool.split(labels=6, seed=0), tmp_path / "run", steps=5)


def test_another_way_to_write_a_path_is_no_change(tmp_path, monkeypatch):
    pool = arrays(tmp_path, OLD)
    monkeypatch.chdir(tmp_path)
    Path("w.safetensors").touch()
    cut(pool, tmp_path / "run", weights="w.safetensors")
    with pytest.raises(UsageError, match=r"weights: 'w.safetensors' -> 'other.safetensors'"):
        run(pool, tmp_path / "run", weights="other.safetensors")
    run(pool, tmp_path / "run", weights=str(tmp_path / "w.safetensors"))


def test_what_became_of_images_by_a_slow_reference(tmp_path):
    """Against multisets of contents, for random subsets with twins."""
    for seed in range(20):
        draw = np.random.default_rng(seed)
        one, other = (draw.integers(0, 12, draw.integers(2, 15)) for _ in range(2))
        pools = [Pool.from_arrays(PIXELS[rows], np.full(len(rows), -1)) for rows in (one, other)]
        found = change(*map(inventory, pools))
        both = sum(min((one == i).sum(), (other == i).sum()) for i in range(12))
        assert (found.added, found.removed) == (len(other) - both, len(one) - both) or found.same
        kept = found.rows >= 0
        assert len(set(found.rows[kept].tolist())) == kept.sum() == both
        np.testing.assert_array_equal(other[found.rows[kept]], one[kept])


def test_ignored_rows_belong_to_the_split(tmp_path):
    pool = arrays(tmp_path, range(1, 31)).split(labels=6, seed=0)
    plain = pool.manifest()
    assert "ignored" not in plain
    row = int(np.setdiff1d(pool.train, pool.labeled)[0])
    pool.record([row], [-2])
    assert pool.manifest()["ignored"] == [row]
    assert pool.manifest()["hash"] != plain["hash"]
    pool.write_manifest(tmp_path / "split.json")
    again = arrays(tmp_path, range(1, 31)).split(labeled=tmp_path / "split.json")
    assert again.manifest()["hash"] == pool.manifest()["hash"]
    assert again.labels[row] == -2
    assert row not in again.unlabeled
    pool.record([row], [-1])
    assert pool.manifest()["hash"] == plain["hash"]
    assert torch.equal(pool.images.take(np.array([row])), again.images.take(np.array([row])))
    assert len(Ledger().entries) == 0
