"""The robustness recipe, as a person runs it."""

import re
import sys
from types import ModuleType, SimpleNamespace

import pytest
import torch
from small_runs import digits, tiny_net, train
from test_features_recipe import module

import ssl_lab as sl
from ssl_lab.analysis.robustness import foreign, noise
from ssl_lab.command_line import parse
from ssl_lab.errors import UsageError
from ssl_lab.methods import Supervised


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "plain"
    train(folder, Supervised(tiny_net(digits()), view=sl.Eval), steps=40, labeled=20, config={"data": "digits"},
          optimizer=sl.AdamW(lr=0.01))
    return folder


@pytest.fixture(scope="module")
def recipe():
    return module("recipes", "robustness")


def test_the_recipe_says_how_a_run_stands_it(run, recipe, tmp_path, capsys):
    settings = parse(recipe.Settings, ["--from", str(run), "--out", str(tmp_path), "--images", "20", "--radii",
                                       "0,0.1,1", "--attack-steps", "2", "--device", "cpu"])
    recipe.main(settings)
    said, page = capsys.readouterr().out, (tmp_path / "report.html").read_text()
    assert "PGD-2, radius 255/255" in said
    assert "corruptions, mean of 75" in said
    for part in ("Attacks", "motion_blur", "Gaussian noise by level", "Calibration", "supervised on digits"):
        assert part in page
    clean, attacked = (float(re.search(rf"{name}.*? ([\d.]+)% +[\d.]+%", said)[1]) for name in
                       (r"clean \(.*\)", "PGD-2, radius 255/255"))
    assert attacked < clean
    for wrong, words in ([["--radii", "2"], "--radii 2"], [["--radii", "a"], "--radii a"],
                         [["--valid", "3"], "leave them out"]):
        with pytest.raises(UsageError, match=words):
            recipe.main(parse(recipe.Settings, ["--from", str(run), *wrong]))


def test_attacks_of_installed_packages_are_asked_by_their_own_words(monkeypatch):
    """By stand-ins with the signatures of torchattacks 3.5 and autoattack 0.1."""
    asked = []

    class PGD:
        def __init__(self, model, eps=8 / 255, alpha=2 / 255, steps=10, random_start=True):
            asked.append((eps, steps))
            self.model = model

        def __call__(self, inputs, labels):
            assert self.model(inputs).shape == (len(inputs), 10)
            return inputs

    class AutoAttack:
        def __init__(self, model, norm="Linf", eps=0.3, seed=None, verbose=True, version="standard", device="cuda"):
            asked.append((eps, device))

        def run_standard_evaluation(self, x_orig, y_orig, bs=250, return_labels=False):
            return x_orig

    for name, parts in (("torchattacks", {"PGD": PGD}), ("autoattack", {"AutoAttack": AutoAttack})):
        stand_in = ModuleType(name)
        stand_in.__spec__ = SimpleNamespace(name=name)
        vars(stand_in).update(parts)
        monkeypatch.setitem(sys.modules, name, stand_in)
    net = tiny_net(digits()).eval()
    found = foreign(net, 7)
    assert list(found) == ["torchattacks PGD-7", "AutoAttack"]
    x, y = torch.rand(3, 1, 8, 8), torch.tensor([1, 2, 3])
    assert all(make(0.2)(x, y) is x for make in found.values())
    assert asked == [(0.2, 7), (0.2, "cpu")]


def test_noise_of_level_0_is_the_image():
    images = torch.randint(0, 256, (3, 1, 8, 8), dtype=torch.uint8)
    assert torch.equal(noise(images, 0.0, 0), images / 255)
    assert not torch.equal(noise(images, 0.1, 0), images / 255)
