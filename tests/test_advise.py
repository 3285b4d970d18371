"""Advice: what it compares, what it may read, and when it says that a difference is noise."""

import shlex
from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy import stats
from small_runs import digits
from test_export import run_folder

from ssl_lab import advise as advising
from ssl_lab import ways as ways_of
from ssl_lab.advise import Advice, advise
from ssl_lab.cli import main
from ssl_lab.command_line import run_command
from ssl_lab.config import ReadingSettings
from ssl_lab.data import load
from ssl_lab.errors import NonFiniteLossError, UsageError
from ssl_lab.features import LEARNERS, probe, weighted_knn
from ssl_lab.nets.start import start_net
from ssl_lab.ways import Way, blind, cross_validated, deal

pytestmark = pytest.mark.usefixtures("few_strengths")

TINY = {"net": "tiny_4", "steps": 2, "device": "cpu", "backbones": ()}


@pytest.fixture(autouse=True)
def _few_strengths_and_no_nets_here(monkeypatch, tmp_path):
    monkeypatch.setenv("SSL_LAB_DATA", str(tmp_path / "nothing"))
    monkeypatch.setattr(probe, "L2_GRID", (0.01, 1.0))


def ways(**rights):
    return [Way(name, np.array(right, dtype=float), 1.0, f"do {name}") for name, right in rights.items()]


# --- Numbers ----------------------------------------------------------------------------------------


def test_accuracy_and_its_standard_error_are_over_folds():
    folds = np.array([0, 0, 0, 1, 1, 2, 2, 2])
    advice = Advice(ways(one=[1, 1, 0, 1, 0, 1, 1, 1]), folds)
    each = [2 / 3, 1 / 2, 1]
    mean, error = advice.accuracy(advice.ways[0])
    assert mean == pytest.approx(np.mean(each))
    assert error == pytest.approx(stats.sem(each))


def test_the_margin_is_paired_and_no_narrower_than_mcnemars():
    rng = np.random.default_rng(0)
    folds = np.repeat(range(5), 20)
    one, other = rng.random((2, 100)) < np.array([[0.9], [0.6]])
    advice = Advice(ways(one=one, other=other), folds)
    each = [one[folds == fold].mean() - other[folds == fold].mean() for fold in range(5)]
    difference, half = advice.margin(*advice.ways)
    assert difference == pytest.approx(np.mean(each))
    low, high = stats.t.interval(0.95, 4, loc=0, scale=stats.sem(each))
    assert half == pytest.approx(max((high - low) / 2, 1.96 * np.sqrt((one != other).sum()) / 100))
    swapped, same = advice.margin(*reversed(advice.ways))
    assert (swapped, same) == (pytest.approx(-difference), pytest.approx(half))
    steady = np.ones(100), np.where(np.arange(100) % 20 == 0, 0, 1)  # one more in each fold: no spread over folds
    assert Advice(ways(a=steady[0], b=steady[1]), folds).margin(*ways(a=steady[0], b=steady[1]))[1] == pytest.approx(
        1.96 * np.sqrt(5) / 100)


def test_a_clear_winner_is_said_to_win():
    folds = np.repeat(range(5), 20)
    good, bad = np.ones(100), np.arange(100) % 2
    advice = Advice(ways(bad=bad, good=good), folds)
    assert advice.best.name == "good"
    assert advice.rivals == []
    assert advice.text().startswith("Recommended: good\n  do good\n")
    assert "beats each other way by more than noise" in advice.text()
    assert "Within noise" not in advice.text()
    assert [row[0] for row in advice.table().rows] == ["good", "bad"]
    assert [row[3] for row in advice.table().rows] == ["best", "worse"]


def test_what_labels_cannot_tell_apart_is_said():
    folds = np.repeat(range(5), 4)
    cheap, better, bad = np.ones(20), np.ones(20), np.zeros(20)
    cheap[[0, 9]] = 0
    better[5] = 0
    seconds = {"dear": 5.0, "cheap": 1.0, "bad": 0.5, "better": 2.0}
    found = [replace(way, seconds=seconds[way.name]) for way in ways(dear=cheap, cheap=cheap, bad=bad, better=better)]
    advice = Advice(found, folds)
    assert advice.best.name == "better"
    assert [way.name for way in advice.rivals] == ["cheap", "dear"]
    text = advice.text()
    assert text.startswith("Recommended: better\n  do better\nWithin noise of it: cheap; dear. 20 labels do not tell")
    assert "The cheapest of these:\n  do cheap\n" in text
    assert {row[0]: row[3] for row in advice.table().rows} == {
        "better": "best", "cheap": "within noise", "dear": "within noise", "bad": "worse"}
    text = Advice([way for way in found if way.name != "cheap"], folds).text()
    assert "more would.\nIt is the cheapest of these too.\n" in text
    assert "Of 2001 labels 2000 were compared by" in replace(advice, given=2001).text()


def test_of_equals_the_cheapest_is_best():
    dear, cheap = ways(dear=[1, 1, 0, 1], cheap=[1, 0, 1, 1])
    assert Advice([replace(dear, seconds=2.0), cheap], np.array([0, 0, 1, 1])).best.name == "cheap"


# --- Folds ------------------------------------------------------------------------------------------


def test_folds_are_balanced_and_never_hold_out_the_only_label_of_a_class():
    labels = np.array([0] * 11 + [1] * 6 + [2] + [3] * 2)
    folds = deal(labels, seed=1)
    assert folds[labels == 2].tolist() == [-1]
    sizes = np.bincount(folds[folds >= 0], minlength=5)
    assert sizes.sum() == 19
    assert np.ptp(sizes) <= 1
    for label in (0, 1, 3):
        assert np.ptp(np.bincount(folds[labels == label], minlength=5)) <= 1
    assert np.array_equal(folds, deal(labels, seed=1))
    assert not np.array_equal(folds, deal(labels, seed=2))
    assert set(deal(np.array([0, 0, 1]), 0).tolist()) == {0, 1, -1}
    with pytest.raises(UsageError, match="3 labels, no class with two"):
        deal(np.arange(3), 0)


def test_cross_validation_against_a_loop():
    pool = digits(40)
    pixels = pool.images.take(pool.labeled).flatten(1).float().numpy()
    labels = pool.labels[pool.labeled]
    folds = deal(labels, 0)
    folds[:3] = -1
    found = cross_validated(pixels, labels, folds, "knn", 10)
    for row in range(40):
        others = folds != folds[row]
        probs = weighted_knn(pixels[others], labels[others], pixels[[row]], 10)
        assert np.isnan(found[row]) if row < 3 else found[row] == (probs.argmax() == labels[row])


# --- The command ------------------------------------------------------------------------------------


def test_a_blind_pool_knows_nothing_but_the_labels_given():
    pool = blind(digits(30))
    assert np.array_equal(np.flatnonzero(pool.truth >= 0), pool.labeled)
    assert len(pool.labeled) == 30
    assert len(pool.test) == len(pool.valid) == 0
    assert len(pool.unlabeled) == len(digits(30).train)


def test_no_label_but_those_given_changes_the_advice(monkeypatch):
    """Other labels of test images and of images without a label: the same advice."""
    pool = load("digits").split(labels=30, seed=0)
    first = advise("digits", 30, methods=("supervised",), **TINY)
    shuffled = np.random.default_rng(0).permutation(pool.truth)
    shuffled[pool.labeled] = pool.truth[pool.labeled]

    class Loaded:
        def split(self, **arguments):
            return replace(pool, truth=shuffled)

    monkeypatch.setattr(advising, "load", lambda *arguments, **more: Loaded())
    second = advise("digits", 30, methods=("supervised",), **TINY)
    assert [way.name for way in first.ways] == [way.name for way in second.ways]
    for one, other in zip(first.ways, second.ways, strict=True):
        assert np.array_equal(one.right, other.right)


def test_it_compares_pixels_random_features_backbones_and_training(tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    run = run_folder(tmp_path / "run")
    advice = advise("digits", 40, methods=("supervised", "fixmatch"), read=ReadingSettings(image_size=32),
                    **TINY | {"net": "tiny_8", "backbones": (str(run), "timm/resnet10t")})
    names = [way.name for way in advice.ways]
    assert names == ["raw pixels, knn", "tiny_8 at random init, knn", "tiny_8 at random init, probe",
                     f"frozen {run}, knn", f"frozen {run}, probe", "timm/resnet10t at random init, knn",
                     "timm/resnet10t at random init, probe", "tiny_8 trained by supervised",
                     "tiny_8 trained by fixmatch"]
    assert all(np.isin(way.right, (0, 1)).all() and len(way.right) == 40 for way in advice.ways)
    assert advice.accuracy(advice.ways[0])[0] > 0.5  # pixels of digits
    out = capsys.readouterr().out
    assert "Accuracy on 40 held-out labels" in out
    assert f"Recommended: {advice.best.name}" in out
    commands = dict(zip(names, (way.command for way in advice.ways), strict=True))
    shared = "ssl-lab train digits --labels 40"
    assert commands["tiny_8 at random init, probe"] == (
        f"{shared} --recipe features --net tiny_8 --method probe --image-size 32 --minutes 5")
    assert commands[f"frozen {run}, knn"] == (
        f"{shared} --recipe features --net {run} --method knn --image-size 32 --minutes 5")
    assert commands["tiny_8 trained by fixmatch"] == (
        f"{shared} --recipe scratch --net tiny_8 --method fixmatch --image-size 32 --minutes 5")


def test_with_labels_enough_the_first_backbone_is_fine_tuned(tmp_path):
    run = run_folder(tmp_path / "run")
    advice = advise("digits", 100, methods=(), minutes=60, **TINY | {"backbones": (str(run),)})
    (way,) = [way for way in advice.ways if "fine-tuned" in way.name]
    assert way.name == f"{run} fine-tuned by supervised"
    assert way.command == (f"ssl-lab train digits --labels 100 --recipe finetune --net {run} --method supervised "
                           "--minutes 60")
    assert 0.3 < advice.accuracy(way)[0] <= 1  # its head is a probe


def test_of_many_labels_some_are_compared_by(monkeypatch, capsys):
    monkeypatch.setattr(advising, "MOST", 50)
    advice = advise("digits", 0.1, methods=("supervised",), **TINY)
    given = round(0.1 * len(load("digits").train))
    assert len(advice.folds) == 50
    assert all(len(way.right) == 50 for way in advice.ways)
    assert f"Of {given} labels 50 were compared by" in capsys.readouterr().out
    assert " --labels 0.1 " in advice.ways[1].command


def test_frozen_features_are_the_backbones(tmp_path):
    """The number of a way is that of its learner on the features of its net."""
    run = run_folder(tmp_path / "run")
    advice = advise("digits", 40, methods=(), **TINY | {"backbones": (str(run),)})
    pool = digits(40)
    model = start_net(str(run), 10, pool.style).eval()
    features = model(pool.images.take(pool.labeled) / 255).features.detach().numpy()
    labels = pool.labels[pool.labeled]
    for learner in ("knn", "probe"):
        (way,) = [way for way in advice.ways if way.name == f"frozen {run}, {learner}"]
        right = np.empty(40)
        for fold in range(5):
            held = advice.folds == fold
            probs = LEARNERS[learner](features[~held], labels[~held], features[held], 10)
            right[held] = probs.argmax(axis=1) == labels[held]
        assert np.abs(way.right - right).sum() <= 1  # rounding of channels_last


def test_training_sees_no_held_out_image(monkeypatch):
    seen, fit = [], ways_of.Trainer.fit

    def watched(trainer, method, pool, *batches):
        seen.append(pool)
        return fit(trainer, method, pool, *batches)

    monkeypatch.setattr(ways_of.Trainer, "fit", watched)
    advice = advise("digits", 25, methods=("supervised",), **TINY)
    labeled = digits(25).labeled
    assert len(seen) == 5
    for fold, pool in enumerate(seen):
        assert np.array_equal(pool.labeled, labeled[advice.folds != fold])
        assert np.array_equal(pool.valid, labeled[advice.folds == fold])
        assert not np.isin(pool.valid, pool.unlabeled).any()
        assert len(pool.test) == 0


def test_training_that_fits_the_labels_is_recognized(monkeypatch):
    """A net that is given the answers gets them counted."""
    truth = load("digits").truth

    def know(net, pool, rows, runtime):
        return torch.eye(10)[truth[rows]]

    monkeypatch.setattr(ways_of, "predict", know)
    advice = advise("digits", 60, methods=("supervised",), **TINY)
    assert advice.ways[-1].right.all()
    assert advice.best is advice.ways[-1]


def test_minutes_are_shared_and_too_few_are_said(capsys, monkeypatch):
    lengths = []

    def trained(plan, pool, folds, seed, runtime, length):
        lengths.append(length["minutes"])
        return Way(plan.name, np.ones(len(folds)), 0.0, "", plan)

    monkeypatch.setattr(advising, "trained", trained)
    settings = TINY | {"steps": None}
    advise("digits", 25, minutes=10, **settings)
    assert lengths[0] == pytest.approx(10 / 2 / 5, rel=0.2)
    assert lengths[1] == pytest.approx(10 / 5, rel=0.2)  # the first took no time here
    capsys.readouterr()
    advise("digits", 25, minutes=0.1, **settings)
    assert "tiny_4 trained by supervised is left out: " in capsys.readouterr().out
    assert len(lengths) == 2


def test_a_command_that_it_recommends_runs(tmp_path, capsys):
    advice = advise("digits", 40, methods=(), read=ReadingSettings(data_dir=tmp_path), **TINY)
    (way,) = [way for way in advice.ways if way.name == "tiny_4 at random init, knn"]
    program, *words = shlex.split(way.command)
    assert program == "ssl-lab"
    main([*words, "--out", str(tmp_path / "run")])
    assert "test images right" in capsys.readouterr().out
    assert (tmp_path / "run" / "model.json").exists()


@pytest.mark.parametrize(("arguments", "words"), [
    ({"minutes": 0}, "must be positive"), ({"steps": 0}, "must be positive"),
    ({"methods": ("fixmach",)}, "unknown method 'fixmach'"), ({"labels": 10}, "no class with two"),
    ({"backbones": ("none",)}, "there is no none"), ({"labels": 5}, "fewer than the 10 classes")])
def test_bad_use(arguments, words):
    with pytest.raises(UsageError, match=words):
        advise("digits", **{"labels": 40, "methods": (), **TINY, **arguments})


def test_what_cannot_run_is_known_before_anything_is_computed(monkeypatch):
    monkeypatch.setattr(ways_of, "cross_validated", lambda *_: pytest.fail("it computed"))
    wrong = ({"backbones": ("none",)}, "there is no none"), ({"methods": ("opencos",)}, "opencos needs")
    for arguments, words in wrong:
        with pytest.raises(UsageError, match=words):
            advise("digits", **{"labels": 40, "methods": (), **TINY, **arguments})


def test_a_method_that_diverges_is_left_out_with_a_word(monkeypatch, capsys):
    trained = advising.trained

    def diverges(plan, *arguments):
        if plan.method == "fixmatch":
            raise NonFiniteLossError("the loss is not finite at step 3: loss = nan; no checkpoint had been saved yet")
        return trained(plan, *arguments)

    monkeypatch.setattr(advising, "trained", diverges)
    advice = advise("digits", 40, methods=("fixmatch", "supervised"), **TINY)
    said = capsys.readouterr().out
    assert "tiny_4 trained by fixmatch is left out: the loss is not finite at step 3: loss = nan\n" in said
    assert [way.name for way in advice.ways if "trained by" in way.name] == ["tiny_4 trained by supervised"]


def test_methods_that_train_no_classifier_are_refused(monkeypatch):
    class Pretraining:
        classifies = False

    monkeypatch.setattr(ways_of, "get", lambda name: Pretraining)
    with pytest.raises(UsageError, match="simclr trains no classifier"):
        advise("digits", 40, methods=("simclr",), **TINY)


def test_it_is_a_command(monkeypatch, capsys):
    monkeypatch.setenv("COLUMNS", "200")
    run_command({"advise": advise, "other": advise}, "ssl-lab", [
        "advise", "digits", "--labels", "30", "--net", "tiny_4", "--methods", "supervised", "--steps", "1",
        "--device", "cpu"])
    assert "tiny_4 trained by supervised" in capsys.readouterr().out


# --- What is not compared ---------------------------------------------------------------------------


@pytest.mark.parametrize(("minutes", "labels", "expected"), [(10, 100, True), (4, 100, False), (10, 600, False)])
def test_an_ensemble_is_offered_where_half_of_the_time_embeds_and_few_have_labels(
        tmp_path, monkeypatch, capsys, minutes, labels, expected):
    """1,797 digits at a 180th of a second each; a hundred steps of 80 take longer than to embed them."""
    start = run_folder(tmp_path / "start")
    monkeypatch.setattr(advising, "seconds_an_image", lambda *_: 1 / 180)
    monkeypatch.setattr(advising, "compared", lambda *_: Advice(ways(one=[1, 0, 1], other=[1, 1, 1]), np.arange(3)))
    advise("digits", labels=labels, minutes=minutes, **TINY | {"backbones": (str(start),)})
    said = capsys.readouterr().out
    assert ("Not compared, for it takes all of the time" in said) == expected
    command = f"ssl-lab train digits --labels {labels} --recipe ensemble --net {start} --minutes {minutes}"
    assert (command in said) == expected


@pytest.mark.parametrize(("looked_at", "said", "expected"), [(96, None, 160), (224, None, 160), (64, 64, 64),
                                                             (224, 224, 224), (None, None, None)])
def test_an_ensemble_sees_larger_images_than_all_of_them_allow(looked_at, said, expected):
    plan = advising.taught(ways_of.Plan("features", "lite0", "probe", looked_at), said)
    assert (plan.recipe, plan.net, plan.image_size) == ("ensemble", "lite0", expected)


def test_an_ensemble_is_not_offered_without_a_pretrained_net():
    plan = ways_of.Plan("features", "tiny_4", "probe")
    assert advising.ensemble(plan, digits(10), 60, None) is None
