"""What short runs take where nobody names a net: by the images, by the views that a method has, and by the net."""

from dataclasses import replace

import numpy as np
import pytest
import yaml
from test_recipes import recipe

import ssl_lab as sl
from ssl_lab import arms, notes
from ssl_lab.errors import UsageError
from ssl_lab.methods import METHODS, Method, get
from ssl_lab.nets.start import net_of_run
from ssl_lab.optim import SGD, MuonNormed
from ssl_lab.presets import LONG, SHORT, WIDE, Preset, fill, for_pool, net_for


@pytest.fixture(autouse=True)
def _said_anew():
    notes.once.cache_clear()


def _pool(channels: int = 3, side: int = 16, count: int = 24) -> sl.Pool:
    images = np.random.default_rng(0).integers(0, 256, (count, channels, side, side), dtype=np.uint8)
    return sl.Pool.from_arrays(images, np.arange(count) % 3).split(labels=6)


class Mine(Method):
    name, family, paper, arxiv, recipe = "mine", "consistency", "mine", "", ""
    views = sl.Views(labeled={"weak": sl.Weak}, unlabeled={"weak": sl.Weak, "strong_1": sl.Strong})


@pytest.mark.parametrize(("method", "channels", "side", "net"), [
    ("fixmatch", 3, 32, WIDE.net), ("fixmatch", 3, 8, WIDE.net), ("fixmatch", 1, 33, WIDE.net),
    ("fixmatch", 3, 2, WIDE.net), ("fixmatch", 3, 1, "tiny_16"),
    ("fixmatch", 1, 32, "tiny_16"), ("freematch", 3, 32, WIDE.net), ("comatch", 3, 32, WIDE.net),
    ("mixmatch", 3, 32, "tiny_16"), ("mean_teacher", 3, 32, "tiny_16"), ("noisy_student", 3, 64, "tiny_16"),
    ("supervised", 3, 64, "tiny_16")])
def test_the_net_goes_by_the_images_and_by_the_views(method, channels, side, net):
    pool = _pool(channels, side)
    assert net_for(get(method), pool) == for_pool(get(method), pool).net == net
    for kind, steps in (("auto", LONG), ("paper", 5), ("short", 5)):
        assert for_pool(get(method), pool, kind, steps).net == "tiny_16"
    assert for_pool(get(method), pool, "wide").net == WIDE.net


def test_own_methods_and_every_one_of_ours_have_a_net():
    pool = _pool()
    assert net_for(Mine, pool) == WIDE.net
    assert {net_for(method, pool) for method in METHODS.values()} == {WIDE.net, "tiny_16"}


@pytest.mark.parametrize(("name", "steps", "net"), [
    ("fixmatch", 5, WIDE.net), ("fixmatch", LONG, WIDE.net), ("consistency", 5, WIDE.net),
    ("consistency", LONG, "tiny_16")])
def test_techniques_are_checked_on_the_net_that_the_recipe_takes(name, steps, net):
    assert arms._net(name, recipe(name).Settings(steps=steps), _pool()).name == net


@pytest.mark.parametrize("name", ["fixmatch", "consistency"])
def test_a_check_of_techniques_speaks_of_crops_only_where_they_are_taken(name, capsys):
    arms._net(name, recipe(name).Settings(steps=5, view=("weak=weak",)), _pool(side=40))
    assert "crops" not in capsys.readouterr().err
    arms._net(name, recipe(name).Settings(steps=5), _pool(side=40))
    assert "images of 40 px are seen in crops of 20 px" in capsys.readouterr().err


@pytest.mark.parametrize(("kind", "steps", "net", "lr"), [
    ("auto", 100, "tiny_16", 0.1), ("auto", None, "wrn_16_2", 0.1), ("auto", LONG, "rapid_8_8_8", 0.03),
    ("paper", 5, "rapid_8_8_8", 0.03), ("short", LONG, "rapid_8_8_8", 0.1), ("short", 5, "timm/resnet18", 0.1)])
def test_other_nets_and_other_presets_train_by_sgd(kind, steps, net, lr):
    found = for_pool(sl.FixMatch, _pool(side=64), kind, steps, net)
    assert (found.net, found.lr, found.ema, found.prepared, found.views) == (net, lr, 0.999, (), ())
    assert isinstance(found.optimizer_of(found.lr, found.weight_decay), SGD)


def test_no_other_net_is_trained_so():
    with pytest.raises(UsageError, match=r"--preset wide is for nets rapid_\.\.\., and the net is tiny_16"):
        for_pool(sl.FixMatch, _pool(), "wide", net="tiny_16")


def test_a_wide_net_is_whitened_and_trained_by_muon():
    pool = _pool()
    found = for_pool(sl.FixMatch, pool, net="rapid_4_4_4")
    assert (found.kind, found.labeled, found.unlabeled, found.ema, found.bn_momentum) == ("wide", 32, 128, 0.99, 0.02)
    rule = found.optimizer_of(found.lr, found.weight_decay)
    assert isinstance(rule, MuonNormed)
    assert callable(rule.lr)
    assert [round(rule.lr(t), 4) for t in (0.0, 0.05, 0.1, 0.55, 1.0)] == [0.0, 0.04, 0.08, 0.04, 0.0]
    assert found.optimizer_of(0.5, 0.1) == MuonNormed(sl.presets.up_and_down(0.5), 0.1)
    assert found.optimizer_of(sl.schedule.linear(1, 0), 0.0).lr == sl.schedule.linear(1, 0)
    net = sl.net("rapid_4_4_4", 3, pool.style)
    before = net.backbone.whitening.weight.clone()
    begun = found.begun(net, pool, 0)
    assert begun.prepared == ("whiten",)
    assert not begun.backbone.whitening.weight.equal(before)
    assert SHORT.begun(net, pool, 0).prepared == ("whiten",)  # which has nothing to do


def test_methods_keep_the_arguments_that_short_runs_have():
    assert for_pool(get("freematch"), _pool()).arguments == {"momentum": 0.99}


@pytest.mark.parametrize(("method", "side", "seen"), [
    ("fixmatch", 32, 32), ("fixmatch", 33, 16), ("fixmatch", 64, 32), ("mixmatch", 64, 64)])
def test_images_of_more_than_32_px_are_seen_in_crops(method, side, seen):
    found = for_pool(get(method), _pool(side=side), net="rapid_4_4_4")
    assert (seen == side) == (found.views == ())
    learner = sl.FixMatch(sl.net("rapid_4_4_4", 3, sl.Style(3, side, side))).with_views(*found.views)
    batch = sl.Feed(_pool(side=side), learner.views, 2, 4, seed=0)(sl.At(0, 10))
    for view in (batch.labeled["weak"], batch.unlabeled["weak"], batch.unlabeled["strong"]):
        assert tuple(view.shape[2:]) == (seen, seen)


def test_what_auto_took_is_said_once(capsys):
    for _ in range(2):
        for_pool(sl.FixMatch, _pool())
    for_pool(sl.FixMatch, _pool(), net="tiny_4")
    said = capsys.readouterr().err.splitlines()
    assert said == ["note: the net is rapid_32_64_128, trained by Muon; --net tiny_16 is a smaller one, by SGD"]
    for side in (64, 64, 32):
        for_pool(sl.FixMatch, _pool(side=side), net="rapid_4_4_4")
    said = capsys.readouterr().err.splitlines()
    assert said == ["note: images of 64 px are seen in crops of 32 px; whole by --view weak=weak"]


def test_only_what_was_not_given_is_filled_in():
    settings = recipe("fixmatch").Settings(lr=0.5, net="tiny_4")
    filled = fill(settings, for_pool(sl.FixMatch, _pool(), net=settings.net))
    assert (filled.lr, filled.net, filled.ema, filled.weight_decay) == (0.5, "tiny_4", 0.999, 5e-4)
    filled = fill(recipe("fixmatch").Settings(), for_pool(sl.FixMatch, _pool()))
    assert (filled.lr, filled.net, filled.ema, filled.weight_decay) == (0.08, WIDE.net, 0.99, 0.0)
    assert Preset.__dataclass_fields__.keys() & vars(sl.Settings()).keys() == {"net"}


@pytest.mark.parametrize("name", ["fixmatch", "consistency"])
def test_recipes_train_so_and_go_on_from_their_own_weights(name, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("ssl_lab.presets.WIDE", replace(WIDE, net="rapid_4_4_4"))
    images = np.random.default_rng(0).integers(0, 256, (60, 3, 40, 40), dtype=np.uint8)
    np.savez(tmp_path / "mine.npz", images=images, labels=np.arange(60) % 3)
    module, out = recipe(name), tmp_path / "first"
    shared = {"data": str(tmp_path / "mine.npz"), "labels": 9, "steps": 2, "labeled": 4, "unlabeled": 8,
              "device": "cpu"}
    module.main(module.Settings(out=out, **shared))
    config = yaml.safe_load((out / "config.yaml").read_text())
    assert (config["net"], config["lr"], config["ema"]) == ("rapid_4_4_4", 0.08, 0.99)
    assert config.get("preset", "wide") == "wide"
    assert "views: labeled weak=crop(area=0.3, size=20);" in capsys.readouterr().err
    whole = {"view": ("strong=strong(ops=1)",)}  # who names one has no other one changed
    module.main(module.Settings(out=tmp_path / "second", weights=out / "model.safetensors", **shared, **whole))
    said = capsys.readouterr().err
    assert "views: labeled weak; unlabeled weak, strong=strong(ops=1);" in said
    assert "crops" not in said
    assert yaml.safe_load((tmp_path / "second" / "config.yaml").read_text())["net"] == "rapid_4_4_4"
    first, second = (sl.net("rapid_4_4_4", 3, sl.Style(3, 40, 40), weights=tmp_path / run / "model.safetensors")
                     for run in ("first", "second"))
    assert first.backbone.whitening.weight.equal(second.backbone.whitening.weight)  # not whitened anew


def test_the_classifier_trains_so(monkeypatch):
    monkeypatch.setattr("ssl_lab.presets.WIDE", replace(WIDE, net="rapid_4_4_4"))
    images = np.random.default_rng(0).integers(0, 256, (30, 3, 16, 16), dtype=np.uint8)
    labels = np.where(np.arange(30) < 9, np.arange(30) % 3, -1)
    learner = sl.Classifier(steps=2, labeled=4, unlabeled=8, device="cpu").fit(images, labels)
    assert learner.card_.net == "rapid_4_4_4"
    assert sl.Classifier("supervised", steps=1, device="cpu").fit(images, labels).card_.net == "tiny_16"


def test_train_goes_so_where_nobody_names_a_net(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("ssl_lab.presets.WIDE", replace(WIDE, net="rapid_4_4_4"))
    images = np.random.default_rng(0).integers(0, 256, (60, 3, 40, 40), dtype=np.uint8)
    np.savez(tmp_path / "mine.npz", images=images, labels=np.arange(60) % 3)
    for net, views in ((None, "weak=crop(area=0.3, size=20)"), ("tiny_4", "weak")):
        notes.once.cache_clear()
        out = sl.train(str(tmp_path / "mine.npz"), labels=9, minutes=0.02, recipe="scratch", method="fixmatch", net=net,
                       out=tmp_path / f"run-{net}", device="cpu")
        assert net_of_run(out) == (net or "rapid_4_4_4")
        assert f"views: labeled {views};" in capsys.readouterr().err
