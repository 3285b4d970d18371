"""`ssl-lab train`: whatever it chooses, it says so, keeps to its minutes and leaves a run that predicts."""

import json
from functools import partial

import numpy as np
import pytest
import yaml
from PIL import Image
from test_export import run_folder

import ssl_lab as sl
from ssl_lab import advise as advising
from ssl_lab import train as training
from ssl_lab import ways
from ssl_lab.engine import records
from ssl_lab.errors import Interrupted, UsageError
from ssl_lab.features import probe
from ssl_lab.train import train

COLORS = {"ant": (200, 40, 40), "bee": (40, 200, 40), "cow": (40, 40, 200)}


@pytest.fixture(autouse=True)
def _no_nets_here_and_few_learners(tmp_path, monkeypatch):
    monkeypatch.setenv("SSL_LAB_DATA", str(tmp_path / "data"))
    monkeypatch.setattr(probe, "L2_GRID", (0.01, 1.0))
    monkeypatch.setattr(training, "ORDER", ("probe", "knn"))


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


@pytest.mark.parametrize(("arguments", "kind"), [
    ({"recipe": "features", "net": "pixels"}, "features"),
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
    step = sl.engine.trainer.Run.step

    def stop(run, at, parts):
        if at.step == 2:
            records.save(run, 2)
            raise Interrupted("stopped")
        return step(run, at, parts)

    monkeypatch.setattr(sl.engine.trainer.Run, "step", stop)
    with pytest.raises(Interrupted):
        train("digits", out=tmp_path / "cut", **settings)
    monkeypatch.setattr(sl.engine.trainer.Run, "step", step)
    monkeypatch.setattr(training, "_chosen", lambda *_: pytest.fail("it chose again"))
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


@pytest.mark.parametrize(("arguments", "words"), [
    ({"minutes": 0}, "expected a positive number"), ({"method": "fixmach"}, "unknown method 'fixmach'"),
    ({"method": "knn", "recipe": "scratch"}, "is a learner on features"),
    ({"method": "fixmatch", "recipe": "features"}, "is no learner on features"),
    ({"recipe": "finetune"}, "needs a pretrained net: --net lite0"), ({"net": "lite0"}, "Fetch them"),
    ({"method": "simclr"}, "simclr trains no classifier")])
def test_bad_use(tmp_path, arguments, words):
    with pytest.raises(UsageError, match=words):
        train("digits", **{"labels": 40, "minutes": 1.0, "out": tmp_path / "run", "device": "cpu", **arguments})
