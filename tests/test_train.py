"""`ssl-lab train`: whatever it chooses, it says so, keeps to its minutes and leaves a run that predicts."""

import json
import re
import time
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import yaml
from PIL import Image
from small_runs import digits
from test_export import run_folder

import ssl_lab as sl
from ssl_lab import advise as advising
from ssl_lab import ladder, learners, rapid, rounds, ways
from ssl_lab import train as training
from ssl_lab.calibration import fit_temperature
from ssl_lab.config import ReadingSettings
from ssl_lab.engine import records
from ssl_lab.errors import Interrupted, UsageError
from ssl_lab.features import probe
from ssl_lab.train import train

COLORS = {"ant": (200, 40, 40), "bee": (40, 200, 40), "cow": (40, 40, 200)}


@pytest.fixture(autouse=True)
def _no_nets_here_and_few_learners(tmp_path, monkeypatch):
    monkeypatch.setenv("SSL_LAB_DATA", str(tmp_path / "data"))
    monkeypatch.setattr(probe, "L2_GRID", (0.01, 1.0))
    monkeypatch.setattr(learners, "ORDER", ("probe", "knn"))


def photos(root, each=4, unlabeled=6, mode="RGB"):
    rng = np.random.default_rng(0)
    for name, color in COLORS.items():
        for i in range(each + (unlabeled if name == "ant" else 0)):
            folder = root / (name if i < each else "unlabeled")
            folder.mkdir(parents=True, exist_ok=True)
            pixels = (rng.integers(0, 50, (12, 12, 3)) + color).clip(0, 255).astype(np.uint8)
            Image.fromarray(pixels).convert(mode).save(folder / f"{name}{i}.png")
    return root


def of_steps(monkeypatch, steps=3):
    """Trainings of so many steps, in place of minutes."""
    fit = training.Plan.fit

    def short(plan, pool, runtime, seed, **more):
        more = {name: value for name, value in more.items() if name != "minutes"} | {"steps": steps}
        return fit(plan, pool, runtime, seed, **more)

    monkeypatch.setattr(training.Plan, "fit", short)


@pytest.fixture(autouse=True)
def short_rounds(monkeypatch):
    """Of `--recipe rapid`: two, of few images."""
    monkeypatch.setattr(ladder, "LABELED", 8)
    monkeypatch.setattr(ladder, "UNLABELED", 16)
    monkeypatch.setattr(rounds, "PAIR", (ladder.Round(peak=1.0), ladder.Round(share=0.5)))
    monkeypatch.setattr(rounds, "TRIO", ())


@pytest.mark.parametrize(("arguments", "kind"), [
    ({"recipe": "features", "net": "pixels"}, "features"),
    ({"recipe": "rapid", "net": "rapid_4_4_8"}, "rapid"),
    ({"net": "pixels", "method": "knn"}, "features"),
    ({"net": "tiny_4", "method": "supervised"}, "scratch"),
    ({"net": "RUN"}, "features"),
    ({"net": "RUN", "recipe": "finetune"}, "finetune"),
    ({"net": "RUN", "recipe": "ensemble"}, "ensemble"),
    ({"net": "RUN", "method": "supervised"}, "finetune"),
    ({"net": "RUN", "method": "probe"}, "features")])
def test_every_way_leaves_a_run_that_predicts(tmp_path, monkeypatch, capsys, arguments, kind):
    of_steps(monkeypatch)
    monkeypatch.setattr(ways, "Ensembling", partial(ways.Ensembling, tuned=()))
    given = {name: str(run_folder(tmp_path / "start")) if value == "RUN" else value
             for name, value in arguments.items()}
    out = train("digits", 40, minutes=0.5, out=tmp_path / "run", device="cpu", **given)
    said = capsys.readouterr().out
    config = (out / "config.yaml").read_text()
    assert f"recipe: {kind}" in config
    summary = json.loads((out / "summary.json").read_text())
    pool = sl.load("digits")
    found = sl.open(out, "cpu").predict(pool.images.take(pool.test))
    right = np.mean([label == pool.class_names[row] for label, row in
                     zip(found.labels, pool.truth[pool.test], strict=True)])
    assert right == pytest.approx(summary["test_accuracy"], abs=0.03)  # of bf16
    assert f"{100 * summary['test_accuracy']:.1f}% of {len(pool.test)} test images right" in said
    assert f"ssl-lab predict {out} IMAGES" in said


def test_it_chooses_by_labels_and_says_why(tmp_path, monkeypatch, capsys):
    """Pixels of digits know more than three steps of training."""
    monkeypatch.setattr(advising, "LEAST_SECONDS", 0.0)
    of_steps(monkeypatch, 1)
    out = train("digits", 60, minutes=0.5, out=tmp_path / "run", device="cpu")
    said = capsys.readouterr().out
    assert said.startswith("raw pixels, knn: right on ")
    assert "of 60 labels held out in turn, tiny_16 trained by " in said
    assert "--recipe, --net and --method choose otherwise; no pretrained net is here" in said
    assert "ssl-lab fetch lite0" in said
    assert "learner on its features" in said
    assert sl.open(out, "cpu").card.labels == 60


def colored(monkeypatch, folder):
    """A folder of photos that are thought to suit short rounds, which suit a small net here."""
    monkeypatch.setattr(advising, "MANY", 40)
    monkeypatch.setattr(advising, "LEAST_SIDE", 12)
    monkeypatch.setattr(advising, "in_rounds", lambda *given, plan=advising.in_rounds: plan(*given) and replace(
        plan(*given), net="rapid_4_4_8"))
    monkeypatch.setattr(training, "in_rounds", advising.in_rounds)
    return str(photos(folder, 4, unlabeled=50))


def test_many_images_in_color_are_trained_on_in_short_rounds(tmp_path, monkeypatch, capsys):
    of_steps(monkeypatch, 2)
    folder = colored(monkeypatch, tmp_path / "photos")
    monkeypatch.setattr(rapid.Rapid, "worth", lambda *_: True)
    out = train(folder, minutes=0.2, out=tmp_path / "run", device="cpu")
    said = capsys.readouterr().out
    assert "rapid: rapid_4_4_8 trained in short rounds, which was right on more photos" in said
    assert "choose otherwise; no pretrained net is here" in said
    assert (out / "beliefs-1.npy").exists()
    assert len(sl.open(out, "cpu").predict(Path(folder) / "unlabeled")) == 50
    sl.advise(folder, minutes=0.1, steps=1, methods=("supervised",), net="tiny_4", device="cpu")
    assert f"ssl-lab train {folder} --recipe rapid --net rapid_4_4_8 --minutes 0.1" in capsys.readouterr().out
    monkeypatch.setattr(rapid.Rapid, "worth", lambda *_: False)
    assert "recipe: rapid" not in (train(folder, minutes=0.2, out=tmp_path / "other", device="cpu") / "config.yaml"
                                   ).read_text()


def test_images_are_plain_where_the_nearest_by_pixels_tells_the_class():
    truth, draws = np.arange(200) % 5, np.random.default_rng(0)
    noise = draws.integers(0, 256, (200, 8, 8), dtype=np.uint8)
    bars = noise // 2
    bars[np.arange(200), truth] += 128
    for images, each, plain in ((noise, 10, False), (bars, 10, True), (noise, 3, True), (noise, 4, False)):
        assert advising.plain(sl.Pool.from_arrays(images, truth).split(labels=5 * each, seed=0)) == plain
    uneven = np.where(np.arange(200) < 190, 0, 1)  # to name the frequent class is right as often
    assert not advising.plain(sl.Pool.from_arrays(noise, uneven).split())
    assert not advising.plain(sl.Pool.from_arrays(0 * noise, truth).split())  # black
    assert advising.plain(digits())


def test_labels_that_are_compared_by_pixels_are_not_too_many(monkeypatch):
    monkeypatch.setattr(advising, "MOST", 40)
    pool, asked = digits(), []
    kind = type(pool.images)
    take = kind.take
    monkeypatch.setattr(kind, "take", lambda images, rows: (asked.append(len(rows)), take(images, rows))[1])
    assert advising.plain(pool)
    assert 20 <= asked[0] <= 40


def test_short_rounds_are_for_photos_many_images_and_one_process(tmp_path, monkeypatch, capsys):
    pool = sl.load(colored(monkeypatch, tmp_path / "photos")).split()
    monkeypatch.setattr(rapid.Rapid, "worth", lambda *_: True)
    cpu = sl.Runtime.start("cpu")
    pool_in_gray = replace(pool, style=replace(pool.style, channels=1))
    assert advising.in_rounds(pool, 1.0, cpu).recipe == "rapid"
    for plain in (True, False):
        monkeypatch.setattr(advising, "plain", lambda pool, plain=plain: plain)
        assert (advising.in_rounds(pool_in_gray, 1.0, cpu) is None) == plain
        assert ("--recipe rapid takes them" in capsys.readouterr().err) == plain
    assert advising.in_rounds(replace(pool, style=replace(pool.style, width=11)), 1.0, cpu) is None
    assert advising.in_rounds(pool, 1.0, replace(cpu, world=2)) is None
    for name, value in (("MANY", len(pool.unlabeled) + 1), ("MORE", len(pool.unlabeled))):
        with monkeypatch.context() as patch:
            patch.setattr(advising, name, value)
            assert advising.in_rounds(pool, 1.0, cpu) is None


def test_a_round_is_worth_it_where_there_is_time_for_its_steps():
    pool, cpu, way = digits(), sl.Runtime.start("cpu"), rapid.Rapid("rapid_4_4_8", "")
    assert way.worth(pool, cpu, 100.0)
    assert not way.worth(pool, cpu, 1e-6)


@pytest.mark.parametrize("number", ["0", "1"])
def test_short_rounds_go_on_where_they_were_stopped(tmp_path, monkeypatch, number):
    of_steps(monkeypatch, 8)
    settings = {"labels": 40, "minutes": 0.5, "device": "cpu", "net": "rapid_4_4_8", "recipe": "rapid"}
    whole = train("digits", out=tmp_path / "whole", **settings)
    go_on = stopping(monkeypatch, 2, f"round-{number}")
    with pytest.raises(Interrupted):
        train("digits", out=tmp_path / "cut", **settings)
    go_on()
    with pytest.raises(UsageError, match="holds a run that was not finished"):
        train("digits", 40, net="pixels", method="knn", out=tmp_path / "cut")
    with pytest.raises(UsageError, match="seed: 0 -> 1"):
        train("digits", out=tmp_path / "cut", resume="auto", **settings, seed=1)
    cut = train("digits", out=tmp_path / "cut", resume="auto", **settings | {"net": None, "recipe": None})
    assert (cut / "model.safetensors").read_bytes() == (whole / "model.safetensors").read_bytes()


@pytest.mark.parametrize(("left", "tried"), [(60.0, ["knn", "probe", "self_training"]), (0.8, ["knn", "probe"]),
                                             (0.0, [])])
def test_learners_that_would_not_end_in_time_are_not_tried(monkeypatch, left, tried):
    """The quick ones come first, and self-training, which fits six times, only if the probe's time allows it."""
    seen = []

    def learner(name):
        def guess(rows, labels, asked, classes):
            seen.append(name)
            time.sleep(0.02 * (name == "probe"))
            return np.full((len(asked), classes), 1 / classes)
        return guess

    monkeypatch.setattr(learners, "ORDER", ("self_training", "probe", "knn"))
    monkeypatch.setattr(learners, "LEARNERS", {name: learner(name) for name in learners.ORDER})
    pool = digits().split(labels=20)
    learners.best_learner(np.zeros((len(pool), 2), np.float32), pool, time.perf_counter() + left, 0)
    assert list(dict.fromkeys(seen)) == tried


@pytest.mark.parametrize(("mode", "each"), [("RGB", 4), ("L", 2), ("RGB", 1)])
def test_a_small_folder_of_images(tmp_path, monkeypatch, capsys, mode, each):
    of_steps(monkeypatch)
    folder = photos(tmp_path / "photos", each, mode=mode)
    out = train(str(folder), minutes=0.2, out=tmp_path / "run", device="cpu")
    said = capsys.readouterr().out
    assert ("no test images to measure it by" in said) == (each == 1)  # of more, one of each class is held out
    assert ("no class has two labels" in said) == (each < 4)
    found = sl.open(out, "cpu").predict(folder / "unlabeled")
    assert len(found) == 6
    assert set(found.labels) <= set(COLORS)


def test_without_labels_it_says_what_to_do(tmp_path):
    photos(tmp_path / "photos", each=0)
    with pytest.raises(UsageError, match="no image has a label"):
        train(str(tmp_path / "photos"), minutes=0.1, out=tmp_path / "run")


def test_a_training_that_was_stopped_goes_on(tmp_path, monkeypatch):
    of_steps(monkeypatch, 4)
    settings = {"labels": 40, "minutes": 0.5, "device": "cpu", "net": "tiny_4", "method": "supervised"}
    whole = train("digits", out=tmp_path / "whole", **settings)
    go_on = stopping(monkeypatch, 2, "cut")
    with pytest.raises(Interrupted):
        train("digits", out=tmp_path / "cut", **settings)
    go_on()
    for decides in ("_allowed", "_chosen"):
        monkeypatch.setattr(training, decides, lambda *_: pytest.fail("it decided again"))
    cut = train("digits", out=tmp_path / "cut", resume="auto", **settings)
    assert (cut / "model.safetensors").read_bytes() == (whole / "model.safetensors").read_bytes()


def test_the_folder_of_a_run_imports_no_module_by_itself(tmp_path):
    settings = {"labels": 40, "minutes": 0.5, "device": "cpu", "out": tmp_path, "resume": "auto"}
    (tmp_path / "checkpoint.pt").touch()
    content = {"recipe": "scratch", "net": "tiny_4", "method": "evil:X", "image_size": None, "weights": None,
               "pretrained": False, "view": []}
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(content))
    with pytest.raises(UsageError, match=r"is trained by evil:X, which would import a module; .* --method evil:X"):
        train("digits", **settings)
    with pytest.raises(UsageError, match="cannot load the method 'evil:X': No module"):
        train("digits", method="evil:X", **settings)


def stopping(monkeypatch, at_step, of_run):
    """Saves and stops at this step of the run in a folder of this name; gives back what goes on."""
    step = sl.engine.trainer.Run.step

    def stop(run, at, parts):
        if at.step == at_step and run.folder.path.name == of_run:
            records.save(run, at_step)
            raise Interrupted("stopped")
        return step(run, at, parts)

    monkeypatch.setattr(sl.engine.trainer.Run, "step", stop)
    return lambda: monkeypatch.setattr(sl.engine.trainer.Run, "step", step)


@pytest.mark.parametrize("way", [{"net": "rapid_4_4_8", "recipe": "rapid"}, {"net": "tiny_4", "method": "fixmatch"},
                                 {"net": "RUN", "recipe": "finetune"}, {"net": "RUN", "recipe": "ensemble"}])
def test_nets_without_a_part_of_the_labels_calibrate(tmp_path, monkeypatch, capsys, way):
    """The temperature is that of the logits of two nets, each of the labels that the other one was trained on."""
    of_steps(monkeypatch)
    monkeypatch.setattr(ways, "Ensembling", partial(ways.Ensembling, tuned=()))
    given = {name: str(run_folder(tmp_path / "start")) if value == "RUN" else value for name, value in way.items()}
    settings = {"labels": 41, "minutes": 0.5, "device": "cpu", **given}
    out = train("digits", out=tmp_path / "run", calibrate=2, **settings)
    said = capsys.readouterr().out
    assert re.search(r"3 trainings of 0\.\d minutes each; the first has all 41 labels, each other one .* 1/2", said)
    halves = [json.loads((out / "refits" / name / "split.json").read_text()) for name in "01"]
    rows = set(json.loads((out / "split.json").read_text())["labeled"])
    for one, other in (halves, halves[::-1]):
        assert set(one["labeled"]) == rows - set(one["valid"])
        assert set(one["valid"]) <= set(other["labeled"])
    assert set(halves[0]["valid"]) | set(halves[1]["valid"]) == rows
    logits, truth = [], []
    for name in "01":
        with np.load(out / "refits" / name / "predictions.npz") as found:
            logits.append(found["valid_logits"])
            truth.append(found["valid_truth"])
    card = sl.open(out, "cpu").card.calibration
    assert card.temperature == fit_temperature(np.concatenate(logits), np.concatenate(truth)) != 1
    assert card.source == "41 labels held out in turn of 2 further trainings"
    assert f"divided by a temperature of {card.temperature:.3g}, fitted to 41 labels" in said
    assert len(card.scores) == 41
    assert "fitted to 41 labels held out in turn" in (out / "report.html").read_text()
    assert yaml.safe_load((out / "config.yaml").read_text())["calibrate"] == 2


def test_calibration_goes_on_where_it_was_stopped_and_may_come_later(tmp_path, monkeypatch, capsys):
    of_steps(monkeypatch)
    settings = {"labels": 40, "minutes": 0.5, "device": "cpu", "net": "tiny_4", "method": "supervised"}
    whole = train("digits", out=tmp_path / "whole", calibrate=2, **settings)
    go_on = stopping(monkeypatch, 2, "1")
    with pytest.raises(Interrupted):
        train("digits", out=tmp_path / "cut", calibrate=2, **settings)
    assert sl.open(tmp_path / "cut", "cpu").card.calibration.temperature == 1  # a run that can be used already
    go_on()
    cut = train("digits", out=tmp_path / "cut", calibrate=2, resume="auto", **settings)
    capsys.readouterr()
    late = train("digits", out=tmp_path / "late", **settings)
    said = capsys.readouterr().out
    assert "probabilities: not calibrated" in said
    assert "ssl-lab train --calibrate 5" in said
    train("digits", out=late, calibrate=2, resume="auto", **settings)
    assert "2 more trainings of as many steps as the run has" in capsys.readouterr().out
    assert (late / "model.safetensors").read_bytes() == (whole / "model.safetensors").read_bytes()
    cards = [json.loads((out / "model.json").read_text()) for out in (whole, cut, late)]
    assert cards[0] == cards[1] == cards[2]
    assert cards[0]["calibration"]["temperature"] != 1


def test_further_nets_that_are_not_needed_are_not_trained(tmp_path, monkeypatch, capsys):
    of_steps(monkeypatch)
    settings = {"minutes": 0.5, "device": "cpu", "calibrate": 2}
    out = train("digits", 40, out=tmp_path / "valid", valid=30, net="tiny_4", method="supervised", **settings)
    features = train("digits", 40, out=tmp_path / "features", net="pixels", method="knn", **settings)
    said = capsys.readouterr().out
    assert "the 30 validation images calibrate" in said
    assert "labels held out in turn anyway" in said
    assert not (out / "refits").exists()
    assert sl.open(out, "cpu").card.calibration.source == "30 validation images"
    assert sl.open(features, "cpu").card.calibration.source == "40 labels held out in turn"


CHANGED = [({"method": "fixmatch"}, "method: 'supervised' -> 'fixmatch'"),
           ({"net": "tiny_8"}, "net: 'tiny_4' -> 'tiny_8'"),
           ({"recipe": "features", "method": None, "net": "pixels"}, "recipe: 'scratch' -> 'features'"),
           ({"labels": 50}, "labels: 40 -> 50"), ({"seed": 1}, "seed: 0 -> 1"), ({"valid": 0.1}, "valid: None -> 0.1"),
           ({"view": ("labeled=strong",)}, r"view: \[\] -> \['labeled=strong'\]"),
           ({"pretrained": True}, "pretrained: False -> True"), ({"weights": Path("w.pt")}, "weights: None -> 'w.pt'"),
           ({"read": ReadingSettings(image_size=12)}, "image-size: None -> 12"),
           ({"read": ReadingSettings(flip="on")}, "flip: 'auto' -> 'on'")]


@pytest.mark.parametrize(("change", "words"), CHANGED)
def test_a_run_goes_on_with_its_own_settings_alone(one_run, change, words):
    settings = {"labels": 40, "minutes": 0.5, "device": "cpu", "net": "tiny_4", "method": "supervised"}
    with pytest.raises(UsageError, match=rf"was started with other settings .*{words}"):
        train("digits", out=one_run, resume="auto", **settings | change)


@pytest.fixture(scope="module")
def one_run(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        of_steps(patch, 1)
        return train("digits", 40, minutes=0.5, net="tiny_4", method="supervised", device="cpu",
                     out=tmp_path_factory.mktemp("runs") / "run")


def test_a_finished_run_on_features_is_told_again_and_never_replaced(tmp_path, monkeypatch, capsys):
    settings = {"minutes": 0.5, "device": "cpu", "net": "pixels", "resume": "auto", "out": tmp_path / "run"}
    train("digits", 40, method="knn", **settings)
    said = capsys.readouterr().out.splitlines()[-1]
    before = {path: path.read_bytes() for path in (tmp_path / "run").iterdir()}
    monkeypatch.setattr(training, "save_run", lambda *_: pytest.fail("it was written again"))
    train("digits", 40, **settings)
    assert capsys.readouterr().out.splitlines()[-1] == said
    for change, words in ({"method": "probe"}, "method: 'knn' -> 'probe'"), ({"labels": 50}, "labels: 40 -> 50"), (
            {"net": "tiny_4"}, "net: 'pixels' -> 'tiny_4'"):
        with pytest.raises(UsageError, match=words):
            train("digits", **{"labels": 40, **settings, **change})
    assert {path: path.read_bytes() for path in (tmp_path / "run").iterdir()} == before


@pytest.mark.parametrize(("arguments", "words"), [
    ({"minutes": 0}, "expected a positive number"), ({"method": "fixmach"}, "unknown method 'fixmach'"),
    ({"method": "knn", "recipe": "scratch"}, "is a learner on features"),
    ({"method": "fixmatch", "recipe": "features"}, "is no learner on features"),
    ({"method": "fixmatch", "recipe": "rapid"}, "has a method of its own, and begins from scratch"),
    ({"net": "lite0", "recipe": "rapid"}, "lite0 has learned before"),
    ({"recipe": "finetune"}, "needs a pretrained net: --net lite0"), ({"net": "lite0"}, "Fetch them"),
    ({"method": "simclr"}, "simclr trains no classifier"),
    ({"labels": 19, "method": "supervised", "calibrate": 5}, "a temperature takes 20 labels of classes that"),
    ({"calibrate": 1, "method": "supervised"}, "expected 2 parts of the labels or more")])
def test_bad_use(tmp_path, arguments, words):
    with pytest.raises(UsageError, match=words):
        train("digits", **{"labels": 40, "minutes": 1.0, "out": tmp_path / "run", "device": "cpu", **arguments})
