"""An audit: planted faults are found on every path of data, and what is written can be gone on with."""

import csv
import json
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import ssl_lab as sl
from ssl_lab.auditing.looks import BLANK, bits_apart, blank, brightness, look, odd_colors, perceptual_hash
from ssl_lab.auditing.pairs import SIDE, copies, correlation, exact_pairs
from ssl_lab.cli import main
from ssl_lab.data import Pool, load
from ssl_lab.data.images import ArrayImages
from ssl_lab.errors import UsageError

RNG = np.random.default_rng(0)
WRONG = (4, 45, 83)


def pictures(count=120, classes=4, side=24):
    """Images of smooth noise in a color of the class, with labels."""
    rng = np.random.default_rng(1)
    labels = np.arange(count) % classes
    coarse = torch.from_numpy(rng.normal(size=(count, 1, 6, 6))).float()
    light = torch.nn.functional.interpolate(coarse, size=(side, side), mode="bicubic").numpy()
    colors = np.array([[1, .2, .2], [.2, 1, .2], [.2, .2, 1], [1, 1, .2]])[labels % 4]
    images = np.clip(128 * colors[:, :, None, None] + 50 * light, 0, 255)
    return np.rint(images).astype(np.uint8), labels


def faulty():
    """Pictures with wrong labels, twins of rows 10 and 11 (exact, JPEG) in train, of 12 in test, and a blank one."""
    images, labels = pictures()
    labels[list(WRONG)] = (labels[list(WRONG)] + 1) % 4
    test, test_labels = images[100:], labels[100:]
    jpeg = copies(images[11:12])[:1]
    train = np.concatenate([images[:100], images[10:11], jpeg, np.full((1, 3, 24, 24), 77, np.uint8)])
    labels = np.concatenate([labels[:100], labels[[10, 11]], [0]])
    return train, labels, np.concatenate([test, images[12:13]]), np.concatenate([test_labels, labels[[12]]])


def arrays(folder: Path):
    return Pool.from_arrays(*faulty(), class_names=["a", "b", "c", "d"])


def files(folder: Path, names="abcd"):
    train, labels, test, test_labels = faulty()
    for part, images, known in (("train", train, labels), ("test", test, test_labels)):
        for row, (image, label) in enumerate(zip(images, known, strict=True)):
            path = folder / "photos" / part / names[label] / f"{row:03d}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(image.transpose(1, 2, 0)).save(path)
    return folder / "photos"


def folder_pool(folder: Path):
    return load(files(folder), data_dir=folder / "caches")


def table(folder: Path):
    root = files(folder)
    lines = [f"photos/{path.relative_to(root)},{path.parent.name},{path.parent.parent.name}"
             for path in sorted(root.rglob("*.png"))]
    (folder / "list.csv").write_text("\n".join(["path,label,split", *lines]) + "\n")
    return load(folder / "list.csv", data_dir=folder / "caches")


def audited(pool, folder, **more):
    return sl.audit(pool, "pixels", data_dir=folder / "data", device="cpu", **more)


def pixels_of(pool, row):
    return pool.images.take(np.array([row]))[0].numpy()


@pytest.mark.parametrize("source", [arrays, folder_pool, table])
def test_planted_faults_are_found_on_every_path(source, tmp_path):
    pool = source(tmp_path)
    audit = audited(pool, tmp_path)
    train = faulty()[0]

    def row_of(image):
        return next(row for row in range(len(pool)) if np.array_equal(pixels_of(pool, row), image))

    assert audit.doubts.agreement > 0.9
    first = audit.doubts.rows[audit.doubts.wrong]
    assert len(first) <= len(WRONG) + 2  # the blank image has a label too
    assert {pixels_of(pool, row).tobytes() for row in first} >= {train[row].tobytes() for row in WRONG}
    likelier = {pixels_of(pool, row).tobytes(): pool.class_names[label]
                for row, label in zip(first, audit.doubts.likelier, strict=False)}
    assert all(likelier[train[row].tobytes()] == "abcd"[row % 4] for row in WRONG)

    exact = {frozenset(map(int, pair)) for pair in audit.pairs.rows[audit.pairs.exact]}
    twins = [[i for i in range(len(pool)) if np.array_equal(pixels_of(pool, i), image)] for image in train[[10, 12]]]
    assert exact == {frozenset(pair) for pair in twins}
    near = {frozenset(map(int, pair)) for pair in audit.pairs.rows[~audit.pairs.exact]}
    assert frozenset((row_of(train[11]), row_of(train[101]))) in near
    assert [set(pair) for pair in audit.pairs.rows[audit.leaks].tolist()] == [set(twins[1])]
    leak, = (issue for issue in audit.issues() if issue.kind == "leak")
    assert (leak.row in pool.train, leak.other in pool.test) == (True, True)
    assert audit.blank.rows.tolist() == [row_of(train[102])]
    assert {kind: count for kind, count in audit.counts.items() if kind in ("size", "shape")} == {"size": 0, "shape": 0}
    assert len(audit.issues()) == sum(audit.counts.values())


def test_an_audit_changes_nothing_and_is_the_same_again(tmp_path):
    pool = arrays(tmp_path)
    before = pool.labels.copy()
    one, other = audited(pool, tmp_path), audited(pool, tmp_path)
    assert one.issues() == other.issues()
    np.testing.assert_array_equal(pool.labels, before)
    corrected = one.corrected()
    np.testing.assert_array_equal(corrected.labels[list(WRONG)], np.array(WRONG) % 4)
    assert pool.ledger.entries[-1].source == "audit"


def test_labels_of_test_are_judged_by_those_of_train_and_teach_nothing(tmp_path):
    pool = arrays(tmp_path)
    swapped = pool.truth.copy()
    swapped[pool.test] = (swapped[pool.test] + 1) % 4
    audit = audited(replace(pool, truth=swapped), tmp_path)
    known = dict(zip(audit.doubts.rows.tolist(), audit.doubts.likelier.tolist(), strict=True))
    first, again = audited(pool, tmp_path).doubts, {int(row) for row in pool.test}
    other = {row: like for row, like in zip(first.rows.tolist(), first.likelier.tolist(), strict=True)
             if row not in again}
    assert {row: known[row] for row in other} == other  # of train, whatever test says
    assert np.mean([known[row] == pool.truth[row] for row in again]) > 0.9


def run(tmp_path, data, *more):
    main(["audit", str(data), "--net", "pixels", "--out", str(tmp_path / "out"), "--data-dir", str(tmp_path / "data"),
          "--device", "cpu", *more])
    return tmp_path / "out"


def rows(path):
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def test_the_command_writes_a_page_a_list_and_labels_to_go_on_with(tmp_path, capsys):
    data = files(tmp_path)
    out = run(tmp_path, data)
    pool = load(data, data_dir=tmp_path / "data")
    assert (pool.split(labeled=out / "labels.csv").labels == pool.labels).all()
    first = rows(out / "labels.csv")[:len(WRONG)]
    assert all(row["likelier"] not in ("", row["label"]) and row["given"] == row["label"] for row in first)
    (out / "labels.csv").unlink()
    capsys.readouterr()
    run(tmp_path, data, "--correct")
    said = capsys.readouterr()
    assert "report.html" in said.out
    assert "images are compared by their values at 24x24 px" in said.err
    assert sorted(path.name for path in out.iterdir() if path.suffix != ".lock" and not path.name.startswith(".")) == [
        "audit.json", "issues.csv", "labels.csv", "report.html"]
    issues = rows(out / "issues.csv")
    assert [row["likelier"] for row in issues if row["issue"] == "label"][:3] != ["", "", ""]
    assert all((tmp_path / "out" / row["path"]).is_file() for row in issues)
    summary = json.loads((out / "audit.json").read_text())
    assert len(summary["issues"]) == len(issues) == sum(summary["counts"].values())

    again = pool.split(labeled=out / "labels.csv")
    assert len(again.labeled) == len(pool.labeled)
    changed = np.flatnonzero(again.labels != pool.labels)
    assert {Path(pool.files[row]).name for row in changed} >= {f"{row:03d}.png" for row in WRONG}
    assert load(out / "labels.csv", data_dir=tmp_path / "data").classes == 4

    edited = (out / "labels.csv").read_text().replace(",audit,", ",me,")
    (out / "labels.csv").write_text(edited)
    run(tmp_path, data, "--correct")
    assert (out / "labels.1.csv").read_text() == edited
    assert "kept as labels.1.csv" in capsys.readouterr().err
    run(tmp_path, data, "--correct")
    assert not (out / "labels.2.csv").exists()


def test_the_page_is_one_file_and_its_names_are_escaped(tmp_path):
    data = files(tmp_path, names=["<b>a", "b&", "c'", 'd"'])
    text = (run(tmp_path, data) / "report.html").read_text()
    assert "<b>a" not in text
    assert "&lt;b&gt;a" in text
    assert "http" not in text.replace("http-equiv", "")
    for heading in ("Labels", "Leaks", "Duplicates", "Blank images"):
        assert f"<h2>{heading}</h2>" in text
    assert "<h2>Sizes</h2>" not in text  # nothing there
    assert len(text) < 3_000_000


def test_other_labels_are_audited_if_given(tmp_path, capsys):
    data = files(tmp_path)
    names = sorted(path for path in (data / "train").rglob("*.png"))
    lines = [f"{path},{path.parent.name}" for path in names[:60]]
    (tmp_path / "some.csv").write_text("\n".join(["path,label", *lines]) + "\n")
    out = run(tmp_path, data, "--labels", str(tmp_path / "some.csv"))
    assert len(rows(out / "labels.csv")) == 60


@pytest.mark.parametrize("count", [1, 2, 5, 15])
@pytest.mark.parametrize("known", [True, False])
def test_few_images_and_images_without_labels_are_audited_as_far_as_they_go(count, known, tmp_path):
    images, labels = pictures(count)
    labels = np.where(known and count > 1, labels, -1)
    audit = audited(Pool.from_arrays(images, labels), tmp_path)
    assert (audit.doubts is None) == (not known or count < 15)
    if audit.doubts is None:
        assert "labels are not looked at" in audit.notes[-1]
    assert len(audit.off_topic.rows) <= count
    assert not len(audit.color.rows)


def test_unlabeled_images_with_twins_have_a_page_too(tmp_path, capsys):
    images, _ = pictures(30)
    for row, image in enumerate([*images, images[3], np.zeros_like(images[0])]):
        path = tmp_path / "photos" / f"{row}.png"
        path.parent.mkdir(exist_ok=True)
        Image.fromarray(image.transpose(1, 2, 0)).save(path)
    (tmp_path / "photos" / "damaged.png").write_bytes(b"\x89PNG nothing")
    out = run(tmp_path, tmp_path / "photos")
    text = capsys.readouterr()
    assert "damaged.png" in text.err
    assert "no image has a label" in text.err
    assert "damaged.png" in (out / "report.html").read_text()
    found = {(row["issue"], Path(row["path"]).name, Path(row["other"]).name) for row in rows(out / "issues.csv")}
    assert ("duplicate", "30.png", "3.png") in found or ("duplicate", "3.png", "30.png") in found
    assert not (out / "labels.csv").exists()


def test_the_only_label_of_a_class_is_said_to_be_passed_over(tmp_path):
    images, labels = pictures(41)
    labels[40] = 4
    audit = audited(Pool.from_arrays(images, labels), tmp_path)
    assert 40 not in audit.doubts.rows
    assert any("1 labels are the only ones" in note for note in audit.notes)


def test_a_learner_that_knows_little_says_so(tmp_path):
    images, labels = pictures(60)
    random = np.random.default_rng(3).integers(0, 4, 60)
    weak, able = (audited(Pool.from_arrays(images, each), tmp_path) for each in (random, labels))
    assert any("its own mistakes" in note for note in weak.notes)
    assert not any("its own mistakes" in note for note in able.notes)


def test_many_classes_are_judged_by_neighbors(tmp_path, monkeypatch):
    monkeypatch.setattr(sys.modules["ssl_lab.auditing.findings"], "QUICK", 10)
    images, labels = pictures(60)
    audit = audited(Pool.from_arrays(images, labels), tmp_path)
    assert audit.doubts.learner == "knn"
    assert any("--learner probe" in note for note in audit.notes)
    assert audited(Pool.from_arrays(images, labels), tmp_path, learner="probe").doubts.learner == "probe"


@pytest.mark.parametrize(("more", "says"), [
    ({"learner": "oracle"}, "oracle"), ({"net": "tiny"}, "tiny"), ({"net": "no/such/run"}, "no/such/run"),
    ({"weights": "none.safetensors"}, "name it"), ({"net": "pixels", "weights": "no.pt"}, "no.pt")])
def test_bad_arguments_are_errors_of_one_line(more, says, tmp_path):
    images, labels = pictures(20)
    with pytest.raises(UsageError, match=says):
        sl.audit(Pool.from_arrays(images, labels), data_dir=tmp_path, device="cpu", **more)


# --- Looks ------------------------------------------------------------------------------------------


def test_files_of_odd_size_shape_and_mode_are_found_by_their_headers(tmp_path):
    images, labels = pictures(60)
    root = tmp_path / "photos"
    for row, (image, label) in enumerate(zip(images, labels, strict=True)):
        picture = Image.fromarray(image.transpose(1, 2, 0))
        if row == 7:
            picture = picture.resize((240, 240))
        elif row == 8:
            picture = picture.resize((24, 96))
        elif row == 9:
            picture = picture.convert("L")
        elif row == 10:
            picture = picture.convert("CMYK")
        path = root / "abcd"[label] / f"{row}.{'tif' if row == 10 else 'png'}"
        path.parent.mkdir(parents=True, exist_ok=True)
        picture.save(path)
    pool = load(root, data_dir=tmp_path / "data", image_size=24)
    audit = audited(pool, tmp_path)

    def names(odd):
        return [Path(pool.files[row]).name for row in odd.rows]

    assert names(audit.size) == ["7.png", "8.png"]
    assert audit.size.notes[0] == "240x240 px, usually about 24 px a side"
    assert names(audit.shape) == ["8.png"]
    assert set(names(audit.color)) == {"9.png", "10.tif"}
    assert "CMYK, 58 of 60 images: RGB" in audit.color.notes


def test_gray_images_among_colored_ones_are_found_in_arrays_too():
    images, labels = pictures(60)
    images[5] = images[5].mean(axis=0).astype(np.uint8)
    looks = look(Pool.from_arrays(images, labels).images)
    assert odd_colors(looks, []).rows.tolist() == [5]
    images[:] = images.mean(axis=1, keepdims=True).astype(np.uint8)
    assert not len(odd_colors(look(ArrayImages(images)), []).rows)


def test_looks_are_those_of_each_image_whatever_the_blocks(monkeypatch):
    from ssl_lab.auditing import looks as module

    images, _ = pictures(50)
    images[3] = 9
    whole = look(ArrayImages(images))
    monkeypatch.setattr(module, "_BLOCK", 7)
    for one, other in zip(whole, look(ArrayImages(images)), strict=True):
        np.testing.assert_array_equal(one, other)
    np.testing.assert_allclose(whole.spread, images.mean(axis=1).std(axis=(1, 2)), rtol=1e-4, atol=1e-4)
    assert blank(whole).rows.tolist() == [3] == np.flatnonzero(whole.spread < BLANK).tolist()


def test_contents_that_were_not_hashed_before_are_hashed_now():
    class Large(ArrayImages):
        def contents(self):
            return None

    images, _ = pictures(20)
    np.testing.assert_array_equal(look(Large(images)).contents, ArrayImages(images).contents())


# --- Pairs ------------------------------------------------------------------------------------------


def test_equal_images_are_paired_with_the_first_of_them():
    contents = np.array([5, 3, 5, 7, 3, 5], dtype=np.uint64)
    assert {tuple(pair) for pair in exact_pairs(contents).tolist()} == {(0, 2), (0, 5), (1, 4)}
    assert exact_pairs(contents[:2]).shape == exact_pairs(contents[:0]).shape == (0, 2)


def test_correlation_is_that_of_loops():
    one, other = RNG.uniform(0, 255, size=(2, 5, SIDE, SIDE)).astype(np.float32)
    other[0] = np.roll(one[0], (2, -3), axis=(0, 1)) * 0.5 + 20
    other[1] = 9
    found = correlation(one, other)
    inner = SIDE - 6
    for number in range(5):
        scores = [0.0 if np.ptp(window := other[number, y:y + inner, x:x + inner]) == 0 else
                  np.corrcoef(one[number, 3:3 + inner, 3:3 + inner].ravel(), window.ravel())[0, 1]
                  for y in range(7) for x in range(7)]
        assert found[number] == pytest.approx(max(scores), abs=1e-5)
    assert found[0] == pytest.approx(1, abs=1e-5)


def test_a_hash_stays_when_an_image_is_slightly_changed():
    images, _ = pictures(60)
    hashes = perceptual_hash(brightness(images)[0])
    changed = perceptual_hash(brightness(copies(images))[0])
    assert (hashes < 2**63).all()
    apart = bits_apart(np.tile(hashes, 3), changed)
    assert [bin(int(a) ^ int(b)).count("1") for a, b in zip(np.tile(hashes, 3), changed, strict=True)] == apart.tolist()
    strangers = bits_apart(hashes[:-1], hashes[1:])
    assert np.quantile(apart, 0.9) < np.quantile(strangers, 0.1)
    assert perceptual_hash(np.full((1, SIDE, SIDE), 7, np.uint8)).tolist() == [0]


def test_one_drawing_in_two_colors_is_no_duplicate(tmp_path):
    images, labels = pictures(40)
    images[20] = images[4] // 4  # the class's color, much darker
    images[21] = images[5][[1, 2, 0]]
    images[22] = np.rint(images[6] * 0.8)
    pairs = audited(Pool.from_arrays(images, labels), tmp_path).pairs.rows.tolist()
    assert [6, 22] in pairs
    assert [4, 20] not in pairs
    assert [5, 21] not in pairs


@pytest.mark.parametrize("shape", [(1, 8, 8), (3, 24, 40), (4, 24, 24)])
def test_copies_are_of_the_same_size(shape):
    images = RNG.integers(0, 256, size=(2, *shape), dtype=np.uint8)
    made = copies(images)
    assert made.shape == (6, *shape)
    if shape[1] == 8:
        np.testing.assert_array_equal(made[2:4], images)  # 3% are no pixel
    assert (made[4:] <= images).all()


def test_more_twins_than_are_looked_for_are_still_chained(tmp_path):
    images, labels = pictures(60)
    images[20:45] = images[20]
    audit = audited(Pool.from_arrays(images, labels), tmp_path)
    assert audit.pairs.exact.sum() == 24
    assert set(audit.pairs.rows[audit.pairs.exact, 0].tolist()) == {20}
