"""The evaluation recipe and its protocols: against slow loops, and as a person runs it."""

import re
from functools import partial

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from scipy import stats
from test_export import run_folder
from test_features_recipe import module

from ssl_lab.command_line import parse
from ssl_lab.data import load
from ssl_lab.errors import UsageError
from ssl_lab.features import probe, uniformity, weighted_knn, worth
from ssl_lab.features.protocols import (
    Scores,
    few_label_curve,
    label_counts,
    label_free,
    small_data,
)
from ssl_lab.nets import net

RNG = np.random.default_rng(0)
KNN = partial(weighted_knn, k=3)


def clusters(rows, classes=3, noise=0.7, seed=0):
    """Features [rows, 5] around a center for each class, and the classes."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, classes, rows)
    centers = np.random.default_rng(9).normal(size=(classes, 5))
    return (centers[labels] + noise * rng.normal(size=(rows, 5))).astype(np.float32), labels


# --- Protocols --------------------------------------------------------------------------------------


@pytest.mark.parametrize(("sizes", "expected"), [
    ([100, 100, 100], {"1 per class": 3, "4 per class": 12, "10%": 30, "25 per class": 75}),  # 1% are 3 labels
    ([500, 500, 500], {"1 per class": 3, "4 per class": 12, "1%": 15, "25 per class": 75, "10%": 150}),
    ([60, 3, 60], {"1 per class": 3, "10%": 12}),
    ([1, 1, 1], {"1 per class": 3}),
    ([5, 0, 5], {}),
])
def test_the_label_counts_that_data_allow(sizes, expected):
    truth = np.concatenate([np.repeat(range(3), sizes), [-1] * 50])
    assert label_counts(truth, 3) == expected
    assert list(label_counts(truth, 3)) == list(expected)


def test_each_point_of_the_curve_is_the_learner_on_its_labels():
    """A learner that writes down what it was given shows the draws; a loop counts what is right."""
    features, truth = clusters(90)
    queries, answers = clusters(40, seed=1)
    truth[:20] = -1
    seen = []

    def spy(rows, labels, asked, classes):
        seen.append(labels)
        return KNN(rows, labels, asked, classes)

    counts = {"2 per class": 6, "5 per class": 15, "30%": 21}
    curve = few_label_curve(features, truth, queries, answers, 3, spy, seeds=[4, 5], counts=counts)
    assert [(point.name, point.labels) for point in curve] == list(counts.items())
    draws = iter(seen)
    known = truth[truth >= 0]
    for point in curve:
        for accuracy in point.accuracies:
            labels = next(draws)
            given = labels >= 0
            assert given.sum() == point.labels
            assert (labels[given] == truth[given]).all()
            if "per class" in point.name:
                assert (np.bincount(labels[given]) == point.labels // 3).all()
            else:
                shares = np.bincount(known) * point.labels / len(known)
                assert np.abs(np.bincount(labels[given]) - shares).max() <= 1
            right = 0
            for query, answer in zip(queries, answers, strict=True):
                near = sorted(np.flatnonzero(given), key=lambda row: -cosine(features[row], query))[:3]
                votes = [sum(np.exp(cosine(features[row], query) / 0.07) for row in near if truth[row] == label)
                         for label in range(3)]
                right += int(np.argmax(votes) == answer)
            assert accuracy == pytest.approx(right / 40)
    first, second = (np.flatnonzero(labels >= 0) for labels in (seen[0], seen[2]))
    assert set(first) < set(second)  # nested, for the same seed
    assert not np.array_equal(seen[0], seen[1])


def cosine(a, b):
    return np.float64(a) @ np.float64(b) / np.linalg.norm(np.float64(a)) / np.linalg.norm(np.float64(b))


def test_test_labels_choose_nothing():
    """What the learner is given does not depend on the answers, nor which candidate is chosen."""
    features, truth = clusters(60)
    queries, answers = clusters(30, seed=1)
    given = []

    def spy(rows, labels, asked, classes, k=3):
        given.append((labels.tolist(), len(asked), k))
        return weighted_knn(rows, labels, asked, classes, k)

    for right in (answers, answers[::-1].copy()):
        few_label_curve(features, truth, queries, right, 3, spy, seeds=[0])
        small_data(features, truth, queries, right, 3, 15, spy, [{"k": 1}, {"k": 9}], seeds=[0, 1])
    assert given[:len(given) // 2] == given[len(given) // 2:]


def test_more_labels_are_better_and_intervals_are_students():
    features, truth = clusters(600)
    queries, answers = clusters(300, seed=1)
    curve = few_label_curve(features, truth, queries, answers, 3, KNN, seeds=range(6))
    assert curve[-1].mean > curve[0].mean + 0.05
    point = curve[0]
    low, high = stats.t.interval(0.95, 5, loc=np.mean(point.accuracies), scale=stats.sem(point.accuracies))
    assert point.half_width == pytest.approx((high - low) / 2)
    assert point.mean == pytest.approx((high + low) / 2)
    assert np.isnan(Scores("one", 3, (0.5,)).half_width)


def test_small_data_tunes_on_validation_and_fits_again_on_all():
    features, truth = clusters(120, noise=1.0)
    queries, answers = clusters(50, seed=1, noise=1.0)
    calls = []

    def spy(rows, labels, asked, classes, k):
        probs = weighted_knn(rows, labels, asked, classes, k)
        calls.append((k, labels.copy(), np.asarray(asked).copy(), probs))
        return probs

    tried = [{"k": 1}, {"k": 4}, {"k": 8}]
    scores = small_data(features, truth, queries, answers, 3, 30, spy, tried, valid=0.3, seeds=[0, 1])
    assert len(calls) == 2 * 4
    for accuracy, start in zip(scores.accuracies, (0, 4), strict=True):
        *tunings, (k, labels, asked, probs) = calls[start:start + 4]
        drawn = set(np.flatnonzero(labels >= 0))
        assert len(drawn) == 30
        assert np.array_equal(asked, queries)
        values = []
        for _, fitted, held, found in tunings:
            train = set(np.flatnonzero(fitted >= 0))
            left = sorted(drawn - train)
            assert train < drawn
            assert np.bincount(truth[left]).tolist() == [3, 3, 3]
            assert np.array_equal(held, features[left])
            values.append(balanced(found, truth[left]))
        assert k == tried[int(np.argmax(values))]["k"]
        assert accuracy == pytest.approx(balanced(probs, answers))
    assert not np.array_equal(calls[3][1], calls[7][1])


def balanced(probs, truth):
    shares = []
    for label in sorted(set(truth.tolist())):
        mine = [row for row in range(len(truth)) if truth[row] == label]
        shares.append(sum(probs[row].argmax() == label for row in mine) / len(mine))
    return sum(shares) / len(shares)


@pytest.mark.parametrize(("features", "collapsed"), [
    (RNG.normal(size=(50, 8)), 0), (np.ones((50, 8)) + 1e-5 * RNG.normal(size=(50, 8)), 1),
    (np.outer(RNG.normal(size=50), np.ones(8)), 1), (np.full((50, 8), np.nan), 1)])
def test_health_without_labels(features, collapsed):
    found = label_free(features, (features, features))
    assert found["collapsed"] == collapsed
    assert list(found) == ["embedding_std", "effective_rank", "uniformity", "alignment", "collapsed"]
    if np.isfinite(features).all():
        assert found["uniformity"] == uniformity(features)
        assert found["alignment"] == 0
    else:
        assert all(np.isnan(value) for name, value in found.items() if name != "collapsed")
    assert "alignment" not in label_free(features)


def test_bad_protocols():
    features, truth = clusters(20)
    with pytest.raises(UsageError, match="answers for 20 queries"):
        few_label_curve(features, truth, features, truth[:5], 3)
    with pytest.raises(UsageError, match="expected a known class of each"):
        few_label_curve(features, truth, features, np.where(truth == 0, -1, truth), 3)
    with pytest.raises(UsageError, match="tuning needs a class with two labels"):
        small_data(features, truth, features, truth, 3, 3)


# --- The recipe -------------------------------------------------------------------------------------


@pytest.fixture(autouse=True)
def _few_strengths(monkeypatch):
    monkeypatch.setattr(probe, "L2_GRID", (0.01, 1.0))


def run(tmp_path, *arguments):
    recipe = module("recipes", "evaluate")
    recipe.main(parse(recipe.Settings, [
        "--device", "cpu", "--precision", "fp32", "--data-dir", str(tmp_path / "data"), "--out", str(tmp_path / "out"),
        "--splits", "2", "--learner", "prototype", *map(str, arguments)]))


def cells(text):
    """Measure -> the cells after it, of the printed table."""
    lines = [re.split(r"\s{2,}", line.strip()) for line in text.splitlines()]
    return {line[0]: line[1:] for line in lines if len(line) > 1}


@pytest.fixture
def wide(monkeypatch):
    monkeypatch.setenv("COLUMNS", "400")


def test_a_run_against_its_own_beginning(tmp_path, capsys, wide):
    run(tmp_path, "--from", run_folder(tmp_path / "run"), "--against", "init", "--labels", 60, "--shown", 40)
    table = cells(capsys.readouterr().out)
    assert table["collapsed"] == ["no", "no"]
    assert {"kNN accuracy", "linear probe accuracy", "prototype, 1 per class (10)", "prototype, 4 per class (40)",
            "small data (60), balanced accuracy", "class separation", "embedding std", "effective rank", "alignment",
            "uniformity", "CKA of features"} <= table.keys()
    assert all(float(value.rstrip("%")) > 20 for value in table["kNN accuracy"] + table["linear probe accuracy"])
    assert re.fullmatch(r"\d+\.\d ± \d+\.\d%", table["prototype, 4 per class (40)"][0])
    assert "25 per class" not in " ".join(table)
    first, *_, last = [name for name in table if name.startswith("CKA of ") and name != "CKA of features"]
    assert first == "CKA of stem.0"
    assert last.startswith("CKA of blocks.2")
    page = (tmp_path / "out" / "report.html").read_text()
    assert page.count('class="map"') == 2
    assert {"10", "40"} <= set(re.findall(r"<text[^>]*>(\d+)</text>", page.partition("<h2>Map")[0]))  # counts of labels
    assert page.count("<image") == 2 * 40
    assert "http" not in re.sub(r'xmlns="http://www\.w3\.org/2000/svg"|http-equiv', "", page)
    assert "<script" not in page
    assert "url(" not in re.sub(r"url\(#[\w-]+\)", "", page)


def test_a_run_against_the_images_themselves(tmp_path, capsys, wide):
    run(tmp_path, "--from", run_folder(tmp_path / "run"), "--against", "pixels", "--labels", 60)
    table = cells(capsys.readouterr().out)
    pool = load("digits").split(labels=60)
    bank, asked = ((pool.images.take(rows).flatten(1).numpy() / 255 - pool.style.mean) / pool.style.std
                   for rows in (pool.labeled, pool.test))
    right = weighted_knn(bank, pool.labels[pool.labeled], asked, 10).argmax(axis=1) == pool.truth[pool.test]
    assert table["kNN accuracy"][1] == f"{right.mean():.1%}"


def test_the_same_net_twice_is_alike_in_all_layers(tmp_path, capsys, wide):
    save_file(net("tiny_4", 10, load("digits").style, seed=3).state_dict(), tmp_path / "net.safetensors")
    (tmp_path / "copy.safetensors").write_bytes((tmp_path / "net.safetensors").read_bytes())
    run(tmp_path, "--from", tmp_path / "net.safetensors", "--against", tmp_path / "copy.safetensors", "--net", "tiny_4",
        "--labels", 10)
    table = cells(capsys.readouterr().out)
    alike = {name.removeprefix("CKA of "): cells[0] for name, cells in table.items() if name.startswith("CKA of ")}
    assert alike.pop("features") == "1.000"
    assert len(alike) == 5
    assert all(text == f"1.000 with {name}" for name, text in alike.items())
    assert table["kNN accuracy"][0] == table["kNN accuracy"][1]
    assert "small data" not in " ".join(table)  # one label per class


def test_from_init_is_a_random_net(tmp_path, capsys, wide):
    run(tmp_path, "--from", "init", "--against", "pixels", "--net", "tiny_4", "--labels", 10, "--shown", 5)
    table = cells(capsys.readouterr().out)
    assert len(table["kNN accuracy"]) == 2
    assert "CKA of stem.0" in table


def test_a_collapsed_net_sounds_the_alarm(tmp_path, capsys, wide):
    folder = run_folder(tmp_path / "run")
    state = net("tiny_4", 10, load("digits").style, seed=3)
    with torch.no_grad():
        for parameter in state.backbone.blocks[2].parameters():
            parameter.zero_()
    save_file(state.state_dict(), folder / "model.safetensors")
    run(tmp_path, "--from", folder, "--labels", 10)
    out = capsys.readouterr().out
    assert out.startswith(f"ALARM: the features of {folder} have collapsed")
    assert cells(out)["collapsed"] == ["YES"]


def test_without_labels_it_measures_health(tmp_path, capsys, wide):
    images = RNG.integers(0, 256, (60, 8, 8), dtype=np.uint8)
    np.savez(tmp_path / "bare.npz", images=images, labels=np.full(60, -1))
    run(tmp_path, "--from", "timm/resnet10t", "--data", tmp_path / "bare.npz", "--shown", 5, "--image-size", 32)
    table = cells(capsys.readouterr().out)
    assert list(table)[-5:] == ["collapsed", "embedding std", "effective rank", "uniformity", "alignment"]
    assert (tmp_path / "out" / "report.html").read_text().count("<title>unknown</title>") == 5


def test_validation_images_choose_where_there_are_some(tmp_path, capsys, wide, monkeypatch):
    recipe = module("recipes", "evaluate")
    seen = []

    def spy(features, labels, queries, classes, valid=None):
        seen.append((len(features), None if valid is None else valid.tolist()))
        return weighted_knn(features, labels, queries, classes)

    monkeypatch.setattr(worth, "linear_probe", spy)
    recipe.main(parse(recipe.Settings, [
        "--from", str(run_folder(tmp_path / "run")), "--data-dir", str(tmp_path), "--out", str(tmp_path / "out"),
        "--labels", "20", "--valid", "30", "--splits", "1", "--learner", "knn", "--shown", "3", "--device", "cpu"]))
    assert seen == [(50, list(range(20, 50)))]


def test_bad_use(tmp_path):
    with pytest.raises(UsageError, match="there is no"):
        run(tmp_path, "--from", tmp_path / "none")
    np.savez(tmp_path / "all.npz", images=np.zeros((9, 8, 8), np.uint8), labels=np.arange(9) % 3)
    with pytest.raises(UsageError, match="no test image whose class is known"):
        run(tmp_path, "--from", run_folder(tmp_path / "run"), "--data", tmp_path / "all.npz")
