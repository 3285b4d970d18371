"""A finished run on new images: what it says is what it said in training, wherever the images come from."""

import csv
import io
import json
import tarfile
import threading
from pathlib import Path

import numpy as np
import pytest
import torch
from hf_stand_in import Table
from PIL import Image
from small_runs import tiny_net, train

import ssl_lab as sl
from ssl_lab.data import Pool
from ssl_lab.data.pictures import find_pictures
from ssl_lab.errors import UsageError
from ssl_lab.features import LEARNERS
from ssl_lab.features.run import save_run
from ssl_lab.methods import SimCLR, Supervised
from ssl_lab.predict import predict

COLORS = {"ant": (200, 40, 40), "bee": (40, 200, 40), "cow": (40, 40, 200)}


def picture(name: str, i: int, size: tuple[int, int] = (20, 16)) -> Image.Image:
    pixels = np.random.default_rng(i).integers(0, 60, (size[1], size[0], 3)) + np.array(COLORS[name])
    return Image.fromarray(pixels.clip(0, 255).astype(np.uint8))


@pytest.fixture(scope="module")
def photos(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("photos")
    for part in ("train", "val", "test"):
        for name in COLORS:
            (root / part / name).mkdir(parents=True)
            for i in range(12):
                picture(name, i + 100 * len(part)).save(root / part / name / f"{i}.png")
    return root


@pytest.fixture(scope="module")
def pool(photos, tmp_path_factory) -> Pool:
    return sl.load(photos, tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="module")
def run(pool, tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("run") / "supervised"
    net = sl.net("tiny_8", classes=pool.class_names, style=pool.style, seed=0, bn_momentum=0.1)
    result = train(out, Supervised(net, ema=0.5), pool, labeled=18, unlabeled=0, steps=20)
    assert result.test_accuracy > 0.9
    return out


def test_it_says_what_was_measured_at_the_end_of_training(run, photos, pool):
    model = sl.open(run, precision="fp32")
    assert model.classes == ("ant", "bee", "cow")
    with np.load(run / "predictions.npz") as kept:
        logits = kept["test_logits"]
    files = [photos / pool.files[row] for row in pool.test]
    found = model.predict(files)
    np.testing.assert_allclose(found.probabilities, model.card.calibration.probabilities(logits), atol=1e-5)
    assert found.names == [str(file) for file in files]
    assert found.labels == [pool.class_names[logits[row].argmax()] for row in range(len(files))]
    assert model.card.calibration.source == "36 validation images"
    assert found.confidence == pytest.approx(found.probabilities.max(axis=1))


@pytest.mark.parametrize("batch", [1, 3, 32])
def test_side_by_side_is_one_after_another(run, photos, tmp_path, batch):
    (tmp_path / "bad.png").write_bytes(b"no image")
    files = [*sorted((photos / "test").rglob("*.png"))[:7], tmp_path / "bad.png"]
    one, several = sl.open(run, precision="fp32"), sl.open(run, precision="fp32")
    one.lanes, several.lanes, several.batch = 1, 2, batch
    expected, found = one.predict(files), several.predict(files)
    assert found.names == expected.names
    assert found.reasons == expected.reasons
    np.testing.assert_allclose(found.probabilities, expected.probabilities, atol=1e-5)
    np.testing.assert_allclose(several.embed(iter(files)), one.embed(files), rtol=1e-4, atol=1e-5)


def test_who_stops_reading_leaves_the_threads_as_they_were(run, photos):
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    try:
        model = sl.open(run)
        assert model.lanes == 3
        model.batch = 2
        parts = model.stream(photos / "test")
        assert len(next(parts)) == 2
        parts.close()
        seen = []
        asking = threading.Thread(target=lambda: seen.append(torch.get_num_threads()))
        asking.start()
        asking.join()
        assert [torch.get_num_threads(), *seen] == [3, 3]
        assert not [each for each in threading.enumerate() if each.name.startswith("abreast")]
    finally:
        torch.set_num_threads(before)


def test_the_data_need_not_be_there(run, photos, tmp_path):
    file = tmp_path / "new.png"
    picture("cow", 7).save(file)
    moved = photos.rename(photos.with_name("away"))
    try:
        assert sl.open(run).predict(file).labels == ["cow"]
    finally:
        moved.rename(photos)


@pytest.mark.parametrize("given", ["folder", "files", "pattern", "tar", "pil", "array", "floats", "first", "tensor",
                                   "npy", "texts", "objects", "rows", "table"])
def test_images_come_from_anywhere(run, tmp_path, given):
    pictures = [picture("ant", 1, (16, 16)), picture("bee", 2, (16, 16)), picture("cow", 3, (16, 16))]
    files = [tmp_path / f"{n}.png" for n in range(3)]
    for image, file in zip(pictures, files, strict=True):
        image.save(file)
    arrays = np.stack([np.asarray(image) for image in pictures])
    with tarfile.open(tmp_path / "all.tar", "w") as tar:
        for file in files:
            tar.add(file, file.name)
    np.save(tmp_path / "all.npy", arrays)
    images = {"folder": tmp_path, "files": [str(file) for file in files], "pattern": f"{tmp_path}/*.png",
              "tar": tmp_path / "all.tar", "pil": pictures, "array": arrays, "floats": arrays.astype(np.float32) / 255,
              "first": arrays.transpose(0, 3, 1, 2), "tensor": torch.from_numpy(arrays),
              "npy": str(tmp_path / "all.npy"), "texts": np.array([str(file) for file in files]),
              "objects": np.array([*files, None], dtype=object)[:3],
              "rows": torch.utils.data.TensorDataset(torch.from_numpy(arrays), torch.zeros(3)),
              "table": Table({"label": [0, 1, 2], "image": [pictures[0], files[1].read_bytes(), arrays[2]]})}[given]
    found = sl.open(run).predict(images)
    assert found.labels == ["ant", "bee", "cow"]
    expected = sl.open(run).predict(files)
    np.testing.assert_allclose(found.probabilities, expected.probabilities, atol=1e-6)


def test_turned_transparent_and_gray_images_are_read_as_in_training(run, tmp_path):
    image = picture("ant", 1, (30, 10))
    exif = Image.Exif()
    exif[0x0112] = 6
    image.save(tmp_path / "turned.jpg", exif=exif, quality=95)
    clear = image.convert("RGBA")
    clear.putalpha(255)
    clear.save(tmp_path / "clear.png")
    Image.new("L", (8, 8), 100).save(tmp_path / "gray.png")
    found = sl.open(run).predict(tmp_path)
    assert found.reasons == [None, None, None]
    assert [Path(name).name for name in found.names] == ["clear.png", "gray.png", "turned.jpg"]
    assert [found.labels[0], found.labels[2]] == ["ant", "ant"]


def test_a_damaged_image_is_a_row_with_its_reason(run, tmp_path):
    picture("bee", 1).save(tmp_path / "a.png")
    (tmp_path / "b.png").write_bytes(b"no image")
    (tmp_path / "c.png").write_bytes((tmp_path / "a.png").read_bytes()[:60])
    model = sl.open(run)
    found = model.predict([tmp_path / "a.png", tmp_path / "b.png", tmp_path / "c.png", tmp_path / "a.png"])
    assert found.labels == ["bee", None, None, "bee"]
    assert found.reasons[1] == "not an image of a known format, or its header is damaged"
    assert found.reasons[2]
    assert np.isnan(found.probabilities[1:3]).all()
    features = model.embed([tmp_path / "a.png", tmp_path / "b.png"])
    assert features.shape == (2, model.net.features_dim)
    assert np.isnan(features).all(axis=1).tolist() == [False, True]
    assert model.predict([tmp_path / "b.png"]).labels == [None]


def test_a_damaged_row_of_a_data_set_has_its_reason(run):
    table = Table({"image": [picture("bee", 1), b"no image", np.zeros((4, 4, 7)), None, picture("bee", 2)]})
    found = sl.open(run).predict(table)
    assert found.names == [f"row {n}" for n in range(5)]
    assert found.labels == ["bee", None, None, None, "bee"]
    assert [bool(why) for why in found.reasons] == [False, True, True, True, False]


def test_a_cut_tar_ends_with_a_word(run, tmp_path):
    with tarfile.open(tmp_path / "all.tar", "w") as tar:
        for n in range(3):
            picture("bee", n).save(tmp_path / f"{n}.png")
            tar.add(tmp_path / f"{n}.png", f"{n}.png")
    content = (tmp_path / "all.tar").read_bytes()
    (tmp_path / "all.tar").write_bytes(content[:3000])
    found = sl.open(run).predict(tmp_path / "all.tar")
    assert found.labels[0] == "bee"
    assert found.labels[-1] is None
    assert "damaged, only the images before that are read" in found.reasons[-1]


def test_a_class_below_the_threshold_is_not_given(run, tmp_path):
    Image.new("RGB", (16, 16), (120, 120, 120)).save(tmp_path / "between.png")
    model = sl.open(run)
    sure = model.predict(tmp_path).confidence[0]
    assert model.predict(tmp_path, threshold=sure - 1e-6).labels != [None]
    assert model.predict(tmp_path, threshold=sure + 1e-6).labels == [None]


def test_sets_hold_the_class_as_often_as_promised_or_it_says_why_not(run, photos):
    model = sl.open(run)
    found = model.predict(photos / "test", coverage=0.9)
    truth = [Path(name).parent.name for name in found.names]
    assert np.mean([label in found.set_of(row) for row, label in enumerate(truth)]) >= 0.85
    with pytest.raises(UsageError, match="99% of images need 99 that the run was not trained on, and it has 36"):
        model.predict(photos / "test", coverage=0.99)
    with pytest.raises(UsageError, match="between 0 and 1"):
        model.predict(photos / "test", coverage=1.0)


@pytest.mark.parametrize(("given", "match"), [
    ("nowhere.png", "there is no file or folder nowhere.png"), ("no/*.png", "no file matches"), (17, "int is no image"),
    ([], "there is no image to predict"), (b"bytes", "bytes is no image")])
def test_what_is_no_image_is_refused(run, given, match):
    with pytest.raises(UsageError, match=match):
        sl.open(run).predict(given)


def test_an_empty_folder_is_refused(run, tmp_path):
    with pytest.raises(UsageError, match="holds no image"):
        sl.open(run).predict(tmp_path)


def test_a_folder_that_is_no_run_is_refused(tmp_path):
    with pytest.raises(UsageError, match="is no folder of a finished run"):
        sl.open(tmp_path)
    (tmp_path / "model.json").write_text('{"format": 1}')
    with pytest.raises(UsageError, match="cannot be read"):
        sl.open(tmp_path)


def test_a_run_without_classes_embeds_and_does_not_predict(pool, photos, tmp_path):
    method = SimCLR(sl.net("tiny_8", classes=3, style=pool.style))
    train(tmp_path / "simclr", method, pool, labeled=0, unlabeled=8, steps=2)
    model = sl.open(tmp_path / "simclr")
    assert model.classes == ()
    assert model.embed(photos / "test").shape == (36, model.net.features_dim)
    with pytest.raises(UsageError, match="learned no classes"):
        model.predict(photos / "test")


def test_numbered_digits_of_one_channel(digits, tmp_path):
    train(tmp_path / "run", Supervised(tiny_net(digits)), digits, labeled=10, unlabeled=0, steps=3)
    pixels = digits.images.take(digits.test[:5]).numpy()
    rgb = Image.fromarray(pixels[0, 0]).convert("RGB")
    model = sl.open(tmp_path / "run")
    found = model.predict(pixels)
    assert found.names == [f"image {n}" for n in range(5)]
    np.testing.assert_allclose(model.predict(rgb).probabilities[0], found.probabilities[0], atol=1e-5)
    with pytest.raises(UsageError, match="another class in a mirror; leave out --mirror"):
        sl.open(tmp_path / "run", mirror=True)


# Learners on frozen features

@pytest.mark.parametrize("learner", LEARNERS)
def test_a_learner_on_features_is_a_run(pool, photos, tmp_path, learner):
    net = sl.net("pixels", classes=pool.class_names, style=pool.style)
    features = np.asarray(pool.images.take(np.arange(len(pool))).flatten(1)).astype(np.float32)
    features = (features / 255 - net.mean.repeat_interleave(16 * 16).numpy()) / net.std.repeat_interleave(256).numpy()
    runtime = sl.Runtime.start("cpu", "fp32")
    few = pool.split(labels=6, valid=0, seed=0)
    summary = save_run(tmp_path / "run", learner, [net], [features], few, LEARNERS, {"data": "photos"}, runtime)
    files = [photos / few.files[row] for row in few.test]
    model = sl.open(tmp_path / "run", precision="fp32")
    found = model.predict(files)
    probs = LEARNERS[learner](features[few.train], few.labels[few.train], features[few.test], 3)
    assert found.labels == [few.class_names[row] for row in probs.argmax(axis=1)]
    assert summary["test_accuracy"] == (probs.argmax(axis=1) == few.truth[few.test]).mean()
    assert model.card.calibration.source == "not calibrated: 6 labels held out in turn, and it takes 20"
    np.testing.assert_allclose(found.probabilities, probs, atol=1e-4)


def test_several_nets_are_an_ensemble(pool, photos, tmp_path):
    nets = [sl.net(name, classes=pool.class_names, style=pool.style, seed=1) for name in ("pixels", "tiny_4")]
    runtime = sl.Runtime.start("cpu", "fp32")
    from ssl_lab.features import embed

    features = [embed(net, pool, np.arange(len(pool)), runtime) for net in nets]
    save_run(tmp_path / "run", "probe", nets, features, pool, LEARNERS, {}, runtime)
    found = sl.open(tmp_path / "run", precision="fp32").predict([photos / pool.files[row] for row in pool.test])
    each = [LEARNERS["probe"](part[pool.train], pool.labels[pool.train], part[pool.test], 3) for part in features]
    assert found.labels == [pool.class_names[row] for row in np.mean(each, axis=0).argmax(axis=1)]


def test_the_mean_of_images_and_their_mirror_images(run, pool):
    x = pool.images.take(pool.test[:9])
    plain = sl.open(run, precision="fp32")
    seen = [plain.see(each) for each in (x, x.flip(3))]
    both = sl.open(run, precision="fp32", mirror=True)
    logits, features = (np.mean(each, axis=0) for each in zip(*seen, strict=True))
    np.testing.assert_allclose(both.embed(x.numpy()), features, atol=1e-6)
    np.testing.assert_allclose(both.predict(x.numpy()).probabilities, plain.card.calibration.probabilities(logits),
                               atol=1e-6)
    assert not np.allclose(logits, seen[0][0], atol=1e-4)


# The command

def test_csv(run, photos, tmp_path, capsys):
    (tmp_path / "bad.png").write_bytes(b"x")
    predict(run, (f"{photos}/test/cow/0.png", str(tmp_path / "bad.png")), top=2, coverage=0.9)
    out, err = capsys.readouterr()
    good, bad = csv.DictReader(io.StringIO(out))
    assert good["label"] == "cow"
    assert float(good["probability"]) > float(good["probability_2"])
    assert "cow" in good["set"].split("|")
    assert (bad["label"], bad["note"]) == ("", "not an image of a known format, or its header is damaged")
    assert "2 images in" in err
    assert "1 cannot be read" in err


def test_mirror_images_by_a_flag(run, photos, capsys):
    predict(run, (str(photos / "test"),), mirror=True, top=3)
    found = list(csv.DictReader(capsys.readouterr().out.splitlines()))
    expected = sl.open(run, mirror=True).predict(photos / "test")
    assert [float(row["probability"]) for row in found] == pytest.approx(expected.confidence, abs=1e-3)


def test_jsonl_and_standard_input(run, photos, tmp_path, monkeypatch):
    monkeypatch.setattr("sys.stdin", io.StringIO(f"{photos}/test/ant/0.png\n\n{photos}/test/bee/1.png\n"))
    predict(run, ("-",), to="jsonl", out=tmp_path / "found.jsonl")
    rows = [json.loads(line) for line in (tmp_path / "found.jsonl").read_text().splitlines()]
    assert [row["label"] for row in rows] == ["ant", "bee"]
    assert all(row["error"] is None and len(row["top"]) == 1 for row in rows)


def test_folders_hold_copies_and_lose_none(run, tmp_path):
    for folder in ("a", "b"):
        (tmp_path / "new" / folder).mkdir(parents=True)
        picture("bee", len(folder) + ord(folder)).save(tmp_path / "new" / folder / "same.png")
    for _ in range(2):  # again: the same files
        predict(run, (str(tmp_path / "new"),), to="folders", out=tmp_path / "sorted")
        found = sorted(path.relative_to(tmp_path / "sorted") for path in (tmp_path / "sorted").rglob("*.png"))
        assert found == [Path("bee/same-2.png"), Path("bee/same.png")]
    predict(run, (str(tmp_path / "new"),), to="folders", out=tmp_path / "unsure", threshold=1.0)
    assert len([*(tmp_path / "unsure" / "_unsure").iterdir()]) == 2
    with pytest.raises(UsageError, match="--out FOLDER"):
        predict(run, (str(tmp_path / "new"),), to="folders")


def test_tasks_for_label_studio(run, photos, tmp_path):
    predict(run, (str(photos / "test"),), to="label-studio", out=tmp_path / "tasks")
    tasks = json.loads((tmp_path / "tasks" / "tasks.json").read_text())
    assert len(tasks) == 36
    assert tasks[0]["data"]["image"] == f"/data/local-files/?d={(photos / 'test').name}/ant/0.png"
    assert tasks[0]["predictions"][0]["result"][0]["value"]["choices"] == ["ant"]
    assert '<Choice value="cow"/>' in (tmp_path / "tasks" / "label_config.xml").read_text()


def test_a_task_of_an_image_at_an_address_has_that(run, photos, tmp_path, monkeypatch):
    fsspec = pytest.importorskip("fsspec")
    fsspec.filesystem("memory").pipe("/new/0.png", (photos / "test" / "ant" / "0.png").read_bytes())
    predict(run, ("memory://new/0.png", str(photos / "test" / "bee")), to="label-studio", out=tmp_path / "tasks",
            data_dir=tmp_path)
    images = [task["data"]["image"] for task in json.loads((tmp_path / "tasks" / "tasks.json").read_text())]
    assert images[:2] == ["memory://new/0.png", "/data/local-files/?d=bee/0.png"]
    fsspec.filesystem("memory").store.clear()


def test_a_folder_says_what_it_passes_over(run, photos, tmp_path):
    picture("ant", 1).save(tmp_path / "a.png")
    (tmp_path / "b.heic").write_bytes(b"x")
    found = find_pictures(tmp_path)
    assert (found.known, found.passed_over) == (1, {".heic": 1})
