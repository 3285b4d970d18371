"""Pseudo-label ensembles: what members say, who takes part, one net that learns it, and a kill in each part."""

import json

import numpy as np
import pytest
from safetensors.torch import save_file
from small_runs import assert_same_run, digits
from test_features_recipe import few, module  # noqa: F401 (a fixture)

import ssl_lab as sl
from ssl_lab import ensemble, members
from ssl_lab.command_line import parse
from ssl_lab.data import load
from ssl_lab.engine import records
from ssl_lab.ensemble import Ensembling, side_by_side, with_labels
from ssl_lab.errors import UsageError
from ssl_lab.features import embed, self_training
from ssl_lab.model import open as open_run
from ssl_lab.nets import net
from ssl_lab.nets.stored import read_weights

pytestmark = pytest.mark.usefixtures("few_strengths")


@pytest.fixture
def nets(tmp_path, few):  # noqa: F811
    """Two runs to start from."""
    folders = [tmp_path / f"net-{seed}" for seed in (1, 2)]
    for seed, folder in enumerate(folders):
        folder.mkdir()
        (folder / "config.yaml").write_text("net: tiny_8")
        save_file(net("tiny_8", 10, load(few).style, seed=seed).state_dict(), folder / "model.safetensors")
    return folders


def run(data, out, nets, *arguments):
    recipe = module("recipes", "ensemble")
    recipe.main(parse(recipe.Settings, [
        "--data", str(data), "--labels", "40", "--nets", *map(str, nets), "--image-size", "8", "--tuning-steps", "2",
        "--tuned", "biases", "--steps", "4", "--unlabeled", "16", "--labeled", "8", "--micro-batches", "1",
        "--device", "cpu", "--precision", "fp32", "--data-dir", str(out.parent), "--out", str(out),
        *map(str, arguments)]))
    return json.loads((out / "summary.json").read_text())


def probs(file):
    return np.exp(read_weights(file)["logits"].numpy())


def test_one_net_learns_what_the_members_say(tmp_path, few, nets, monkeypatch, capsys):  # noqa: F811
    monkeypatch.setattr(members, "MEASURED", 40)
    out = tmp_path / "run"
    summary = run(few, out, nets)
    pool = load(few, image_size=8).split(labels=40)
    starts = [net("tiny_8", 10, pool.style, weights=folder / "model.safetensors") for folder in nets]
    features = side_by_side([embed(each, pool, np.arange(len(pool)), sl.Runtime.start("cpu", "fp32"))
                             for each in starts])
    expected = self_training(features[pool.train], pool.labels[pool.train], features, 10)
    frozen, biases = (probs(out / "members" / name / "logits.safetensors") for name in ("frozen", "biases"))
    np.testing.assert_allclose(frozen, expected, atol=1e-4)
    soft, rest = probs(out / "soft_labels.safetensors"), np.setdiff1d(np.arange(len(pool)), pool.labeled)
    np.testing.assert_allclose(soft[rest], (frozen + biases)[rest] / 2, atol=1e-5)
    assert (soft[pool.labeled].argmax(axis=1) == pool.truth[pool.labeled]).all()
    assert summary["method"] == "soft_labels"
    assert not (out / "members" / "biases" / "features").exists()
    three = load(few).images.take(np.arange(3)).numpy()
    for folder in (out, out / "members" / "biases"):  # ordinary runs
        assert open_run(folder, "cpu", "fp32").predict(three).probabilities.shape == (3, 10)
    assert summary["loaded"][-1].startswith("views: labeled strong; unlabeled weak, strong;")
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    said = {line[0]: line for line in lines if line and line[0] in ("frozen", "biases", "ensemble", "one")}
    right = (frozen[pool.test].argmax(axis=1) == pool.truth[pool.test]).mean()
    assert said["frozen"][2] == f"{100 * right:.1f}"
    assert said["one"][3] == f"{100 * summary['test_accuracy']:.1f}"
    with np.load(out / "members" / "biases" / "predictions.npz") as measured:
        assert len(measured["test_truth"]) == 40 < len(pool.test)
    with pytest.raises(UsageError, match="holds a run that is finished"):
        run(few, out, nets)
    with pytest.raises(UsageError, match="tuning_steps: 2 -> 3"):
        run(few, out, nets, "--tuning-steps", 3, "--resume", "auto")


def test_a_kill_in_any_part_costs_that_part_alone(tmp_path, few, nets, monkeypatch):  # noqa: F811
    run(few, tmp_path / "whole", nets)
    asked, step, learner = [], sl.engine.trainer.Run.step, ensemble.self_training
    fatal = {0, 2}

    def counted(*arguments):
        asked.append("learner")
        if len(asked) - 1 in fatal:
            raise KeyboardInterrupt
        return learner(*arguments)

    def stepped(self, at, parts):
        if at.step == 3 and len(asked) < 9:
            asked.extend(["stopped"] * 9)
            records.save(self, 3)
            raise KeyboardInterrupt
        return step(self, at, parts)

    monkeypatch.setattr(ensemble, "self_training", counted)
    monkeypatch.setattr(sl.engine.trainer.Run, "step", stepped)
    for _ in range(3):  # before the first member has spoken, the second one, and in training
        with pytest.raises(KeyboardInterrupt):
            run(few, tmp_path / "cut", nets, "--resume", "auto")
    run(few, tmp_path / "cut", nets, "--resume", "auto")
    assert asked.count("learner") == 4
    assert_same_run(tmp_path / "whole", tmp_path / "cut")
    assert_same_run(tmp_path / "whole" / "members" / "biases", tmp_path / "cut" / "members" / "biases")


def test_one_net_learns_of_those_images_that_the_members_were_asked_of(tmp_path, few, nets, monkeypatch):  # noqa: F811
    monkeypatch.setattr(members, "MEASURED", 40)
    monkeypatch.setattr(ensemble, "members", lambda *_: members.Members(2, {"biases": 2}, 200))
    drawn, step = list[np.ndarray](), sl.SoftLabels.forward

    def seen(self, batch, at):
        drawn.append(batch.unlabeled.indices.numpy())
        return step(self, batch, at)

    monkeypatch.setattr(sl.SoftLabels, "forward", seen)
    out = tmp_path / "run"
    summary = run(few, out, nets)
    pool = load(few, image_size=8).split(labels=40)
    rows = members.some_of(pool, 200, seed=0)
    train = np.intersect1d(rows, pool.train)
    assert drawn
    assert np.isin(np.concatenate(drawn), train).all()
    for file in (out / "soft_labels.safetensors", out / "members" / "biases" / "logits.safetensors"):
        known = ~np.isnan(probs(file)).any(axis=1)
        assert np.flatnonzero(known).tolist() == rows.tolist()
    starts = [net("tiny_8", 10, pool.style, weights=folder / "model.safetensors") for folder in nets]
    features = side_by_side([embed(each, pool, np.arange(len(pool)), sl.Runtime.start("cpu", "fp32"))
                             for each in starts])
    expected = self_training(features[train], pool.labels[train], features[rows], 10)
    np.testing.assert_allclose(probs(out / "members" / "frozen" / "logits.safetensors")[rows], expected, atol=1e-4)
    predicted = open_run(out, "cpu", "fp32").predict(pool.images.take(pool.test)).probabilities.argmax(axis=1)
    assert summary["test_accuracy"] == pytest.approx((predicted == pool.truth[pool.test]).mean())  # of all test images


def test_with_many_labels_fine_tuned_nets_speak_and_the_first_of_them_learns_on(
        tmp_path, few, nets, monkeypatch, capsys):  # noqa: F811
    monkeypatch.setattr(members, "MANY", 4)
    begun, learn = [], ensemble._Work.learn

    def learned(self, start, minutes):
        begun.append({name: value.clone() for name, value in start.state_dict().items()})
        return learn(self, start, minutes)

    monkeypatch.setattr(ensemble._Work, "learn", learned)
    out = tmp_path / "run"
    summary = run(few, out, nets, "--tuned", "all", "biases")
    assert "each class has 4 labels: fine-tuned nets are asked, no frozen ones" in capsys.readouterr().out
    assert summary["loaded"][-1].startswith("views: labeled strong=weak; unlabeled strong=weak;")
    said_by = out / "members"
    assert {each.name for each in said_by.iterdir() if each.is_dir()} == {"all", "biases"}
    pool, (first,) = load(few, image_size=8).split(labels=40), begun
    images = pool.images.take(np.arange(len(pool)))
    said = [open_run(said_by / name, "cpu", "fp32").predict(images).probabilities for name in ("all", "biases")]
    rest = np.setdiff1d(np.arange(len(pool)), pool.labeled)
    np.testing.assert_allclose(probs(out / "soft_labels.safetensors")[rest], np.mean(said, axis=0)[rest], atol=1e-5)
    for name, value in read_weights(said_by / "all" / "model.safetensors").items():
        assert first[name].equal(value)


def test_labels_take_the_place_of_guesses():
    pool = digits(20)
    guessed = np.full((len(pool), 10), 0.1, dtype=np.float32)
    known = with_labels(guessed, pool)
    assert (known[pool.labeled, pool.labels[pool.labeled]] == 1).all()
    assert known.sum() == pytest.approx(len(pool), rel=1e-5)
    assert guessed.max() < 0.2


def test_each_net_has_the_same_say_in_a_cosine():
    one, other = (np.random.default_rng(seed).normal(size=(5, dim)) for seed, dim in ((0, 3), (1, 7)))
    both = side_by_side([100 * one, other]).astype(np.float64)
    cosines = [(each / np.linalg.norm(each, axis=1, keepdims=True)) for each in (one, other)]
    np.testing.assert_allclose(both @ both.T, sum(each @ each.T for each in cosines) / 2, atol=1e-6)


def test_without_a_net_or_with_one_class_there_is_nothing_to_do(tmp_path):
    with pytest.raises(UsageError, match="0 nets and 10 classes"):
        Ensembling(()).fit(digits(), sl.Runtime.start("cpu", "fp32"), tmp_path)


@pytest.mark.parametrize("steps", [0, -1])
def test_no_steps_of_fine_tuning_are_not_the_usual_ones(tmp_path, steps):
    with pytest.raises(UsageError, match=f"tuning_steps={steps}: expected at least 1"):
        Ensembling(("lite0",), tuning_steps=steps).fit(digits(), sl.Runtime.start("cpu", "fp32"), tmp_path)
