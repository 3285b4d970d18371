"""How pretraining methods are trained: what was published, and that recipes train so."""

import importlib.util
import json
import sys

import pytest
import torch
import yaml
from small_runs import ROOT, assert_same_run, digits, rows

import ssl_lab as sl
from ssl_lab import build
from ssl_lab.batch import At
from ssl_lab.command_line import parse
from ssl_lab.errors import UsageError
from ssl_lab.methods import METHODS
from ssl_lab.optim import LARS, SGD, AdamW
from ssl_lab.presets import LONG
from ssl_lab.pretraining_presets import PAPER, SHORT, preset
from ssl_lab.schedule import cyclical

NAMES = [name for name, method in METHODS.items() if method.family == "pretraining"]
SMALL = {"byol": ("hidden", 16), "simsiam": ("dim", 16), "barlow_twins": ("hidden", 16, "dim", 16),
         "vicreg": ("hidden", 16, "dim", 16), "moco_v2": ("queue", 64), "moco_v3": ("hidden", 16),
         "dino": ("hidden", 16, "outputs", 32), "swav": ("queue", 32, "prototypes", 16, "hidden", 16),
         "nnclr": ("hidden", 16, "predictor_hidden", 16, "queue", 64)}

# Images per step; rule; its learning rate there, at the start, the peak and the end; weight decay at start and end.
# Read in the files named in pretraining_presets.py: a rate is that for 256 images times the images / 256.
PUBLISHED = {
    "simclr": (512, LARS, (0.0, 2.0, 0.0), (1e-4, 1e-4)),
    "byol": (4096, LARS, (0.0, 3.2, 0.0), (1.5e-6, 1.5e-6)),
    "simsiam": (512, SGD, (0.1, 0.1, 0.0), (1e-4, 1e-4)),
    "barlow_twins": (2048, LARS, (0.0, 1.6, 0.0016), (1e-6, 1e-6)),
    "vicreg": (2048, LARS, (0.0, 1.6, 0.0016), (1e-6, 1e-6)),
    "moco_v2": (256, SGD, (0.03, 0.03, 0.0), (1e-4, 1e-4)),
    "moco_v3": (4096, LARS, (0.0, 4.8, 0.0), (1.5e-6, 1.5e-6)),
    "dino": (1024, AdamW, (0.0, 0.002, 1e-6), (0.04, 0.4)),
    "swav": (256, LARS, (0.6, 0.6, 0.0006), (1e-6, 1e-6)),
    "nnclr": (4096, LARS, (0.0, 4.8, 0.0), (1e-6, 1e-6)),
    "rotation": (128, SGD, (0.1, 0.1, 0.0008), (5e-4, 5e-4)),
    "mae": (4096, AdamW, (0.0, 0.0024, 0.0), (0.05, 0.05)),
}


def recipe():
    spec = importlib.util.spec_from_file_location("recipe_pretrain", ROOT / "recipes" / "pretrain.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def pretrain(*arguments):
    module = recipe()
    module.main(parse(module.Settings, ["--net", "tiny_4", "--labels", "40", "--device", "cpu", "--precision", "fp32",
                                        *map(str, arguments)]))


def value(scalar, t):
    return scalar(t) if callable(scalar) else scalar


def test_every_pretraining_method_has_both():
    assert PAPER.keys() == SHORT.keys() == PUBLISHED.keys() == {*NAMES}


@pytest.mark.parametrize("name", PUBLISHED)
def test_the_paper_preset_is_what_was_published(name):
    images, rule, (start, peak, end), decay = PUBLISHED[name]
    found = preset(name, "paper")
    assert found.unlabeled == images
    spec = found.optimizer(found.lr * images / 256)
    assert type(getattr(spec, "base", spec)) is rule
    curve = [value(spec.lr, step / 3000) for step in range(3001)]
    assert (curve[0], max(curve), curve[-1]) == pytest.approx((start, peak, end), abs=1e-9)
    assert tuple(value(spec.weight_decay, t) for t in (0.0, 1.0)) == pytest.approx(decay)
    plain = getattr(spec, "base", spec)
    assert getattr(plain, "nesterov", None) == {"simsiam": False, "moco_v2": False, "rotation": True}.get(name)
    assert getattr(plain, "eta", 0.001) == 0.001
    assert getattr(plain, "betas", None) == {"dino": (0.9, 0.999), "mae": (0.9, 0.95)}.get(name)


# What the method's arguments are in the paper, given or by its defaults; of schedules the values at start and end.
ARGUMENTS = {
    "simclr": {"temperature": 0.5}, "byol": {"tau": (0.996, 1.0)},
    "barlow_twins": {"redundancy": 0.0051}, "vicreg": {"invariance": 25.0, "variance": 25.0, "covariance": 1.0},
    "moco_v2": {"momentum": 0.999, "temperature": 0.2}, "moco_v3": {"momentum": (0.996, 1.0), "temperature": 1.0},
    "dino": {"momentum": (0.996, 1.0), "teacher_temperature": (0.04, 0.07), "temperature": 0.1, "center_momentum": 0.9},
    "swav": {"temperature": 0.1, "epsilon": 0.05, "iterations": 3, "queue_from": 0.075, "frozen": 0.005},
    "nnclr": {"temperature": 0.1},
}


@pytest.mark.parametrize("name", ARGUMENTS)
def test_the_arguments_of_the_paper_preset(name):
    pool = digits()
    small = dict(zip(SMALL.get(name, ())[::2], SMALL.get(name, ())[1::2], strict=True))
    net = sl.net("tiny_4", classes=pool.classes, style=pool.style)
    method = build.method(name, net, pool, {**preset(name, "paper").arguments, **small})
    for argument, expected in ARGUMENTS[name].items():
        found = getattr(method, argument)
        found = (found(0.0), found(1.0)) if callable(found) else found
        assert found == pytest.approx(expected), argument


def test_dinos_teacher_warms_up_over_a_tenth_and_its_rate_over_a_thirtieth():
    found = preset("dino", "paper")
    assert found.arguments["teacher_temperature"](0.05) == pytest.approx(0.055)
    lr = found.optimizer(1.0).lr
    assert lr(1 / 60) == pytest.approx(0.5)
    assert lr(1 / 30) == pytest.approx(1.0)


def test_barlow_twins_has_a_rate_for_biases_of_its_own():
    pool = digits()
    net = sl.net("tiny_4", classes=pool.classes, style=pool.style)
    method = build.method("barlow_twins", net, pool, {"hidden": 16, "dim": 16})
    spec = preset("barlow_twins", "paper").optimizer(1.6)
    optimizer = spec.build(method)
    for step, share in ((5, 0.5), (10, 1.0)):
        assert spec.set(optimizer, At(step, 1000)) == pytest.approx(1.6 * share)
        for group in optimizer.param_groups:
            many = group["params"][0].ndim > 1
            assert all((p.ndim > 1) == many for p in group["params"])
            assert group["lr"] == pytest.approx((1.6 if many else 0.0048 * 8) * share)


@pytest.mark.parametrize("kind", ["paper", "short"])
@pytest.mark.parametrize("name", SHORT)
def test_a_schedule_of_the_rate_is_taken_as_it_is(name, kind):
    wave = cyclical(0.01, 0.1)
    made = preset(name, kind).optimizer(wave)
    assert made.lr is wave
    if (name, kind) == ("barlow_twins", "paper"):
        assert made.biases(0.3) == pytest.approx(0.024 * wave(0.3))
    elif name == "simsiam":
        assert made.rates == {"prediction": pytest.approx(0.1, rel=1e-3)}  # fixed, at the peak


def test_the_preset_follows_the_number_of_steps_and_what_is_given_counts(tmp_path, monkeypatch):
    seen = []

    def fit(trainer, method, pool, unlabeled):
        seen.append((type(getattr(trainer.optimizer, "base", trainer.optimizer)).__name__, unlabeled,
                     max(value(trainer.optimizer.lr, t / 100) for t in range(100)), trainer.config, pool.notes))
        raise UsageError("enough")

    monkeypatch.setattr(sl.Trainer, "fit", fit)
    for arguments in (("--steps", LONG), ("--steps", 10), ("--minutes", 1), ("--steps", 10, "--preset", "paper"),
                      ("--steps", LONG, "--preset", "short", "--unlabeled", 64),
                      ("--steps", LONG, "--unlabeled", 128, "--lr", 0.7)):
        with pytest.raises(UsageError, match="enough"):
            pretrain("--method", "simclr", *arguments, "--out", tmp_path)
    paper, short = ("LARS", 512, pytest.approx(2.0)), ("SGD", 256, pytest.approx(0.12))
    assert [each[:3] for each in seen] == [paper, short, short, paper, ("SGD", 64, pytest.approx(0.03)),
                                           ("LARS", 128, pytest.approx(0.7))]
    assert [each[3]["preset"] for each in seen] == ["paper", "short", "short", "paper", "short", "paper"]
    said = [any("--preset short" in note for note in each[4]) for each in seen]
    assert said == [True, False, False, False, False, True]  # where nobody asked for it


@pytest.mark.parametrize("name", [name for name in NAMES if name != "mae"])
def test_the_papers_settings_train_a_small_net(tmp_path, name):
    small = ("--arguments", *SMALL[name]) if name in SMALL else ()
    pretrain("--method", name, "--preset", "paper", "--unlabeled", 32, "--steps", 3, "--out", tmp_path, *small)
    assert json.loads((tmp_path / "summary.json").read_text())["method"] == name
    assert all(torch.isfinite(torch.tensor(row["loss"])) for row in rows(tmp_path))


def test_its_config_repeats_a_run_of_the_papers_settings(tmp_path):
    pretrain("--method", "dino", "--preset", "paper", "--unlabeled", 32, "--steps", 3, "--out", tmp_path / "a",
             "--arguments", *SMALL["dino"])
    config = yaml.safe_load((tmp_path / "a" / "config.yaml").read_text())
    assert (config["preset"], config["unlabeled"]) == ("paper", 32)
    assert config["lr"] == pytest.approx(5e-4 * 32 / 256)
    module = recipe()
    module.main(parse(module.Settings, ["--config", str(tmp_path / "a/config.yaml"), "--out", str(tmp_path / "b")]))
    assert_same_run(tmp_path / "a", tmp_path / "b")


@pytest.mark.parametrize("kind", ["paper", "short"])
def test_a_method_that_does_not_pretrain_is_refused(kind):
    with pytest.raises(UsageError, match="unknown pretraining method 'fixmatch'"):
        preset("fixmatch", kind)
