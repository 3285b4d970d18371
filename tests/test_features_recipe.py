"""The features recipe, as a person runs it."""

import importlib.util
import re
import sys

import numpy as np
import pytest
from safetensors.torch import save_file
from small_runs import ROOT

from ssl_lab.command_line import parse
from ssl_lab.data import load
from ssl_lab.engine import Runtime
from ssl_lab.errors import UsageError
from ssl_lab.features import LEARNERS, embed, self_training
from ssl_lab.model import open as open_run
from ssl_lab.nets import net

pytestmark = pytest.mark.usefixtures("few_strengths")


@pytest.fixture(scope="module")
def few(tmp_path_factory):
    """A third of the digits: learners that look at all pairs of images take a ninth of the time."""
    path, pool = tmp_path_factory.mktemp("data") / "few.npz", load("digits")
    train, test = pool.train[:480], pool.test[:120]
    np.savez(path, images=pool.images.take(train).numpy(), labels=pool.truth[train],
             test_images=pool.images.take(test).numpy(), test_labels=pool.truth[test])
    return path


def module(folder, name):
    spec = importlib.util.spec_from_file_location(f"{folder}_{name}", ROOT / folder / f"{name}.py")
    loaded = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = loaded
    spec.loader.exec_module(loaded)
    return loaded


def run(tmp_path, *arguments):
    recipe = module("recipes", "features")
    recipe.main(parse(recipe.Settings, ["--net", "tiny_8", "--device", "cpu", "--precision", "fp32", "--data-dir",
                                        str(tmp_path), "--resume", "auto", "--out", str(tmp_path / "run"),
                                        *map(str, arguments)]))


def test_the_recipe_embeds_once_and_prints_a_table(tmp_path, capsys, few):
    run(tmp_path, "--data", few, "--labels", 40, "--splits", 2)
    first = capsys.readouterr().out.splitlines()
    folder = first[0].rpartition(" in ")[2]
    assert first[0].startswith("few: 600 images embedded by tiny_8 in ")
    assert first[1] == "40 labels, 2 splits"
    assert [line.split()[0] for line in first[2:-1]] == list(LEARNERS)
    assert first[-1].startswith(f"self_training of seed 0 is in {tmp_path / 'run'}, ")
    table = {line.split()[0]: float(line.split()[1].rstrip("%")) for line in first[2:-1]}
    assert min(table.values()) > 25  # random features, ten classes
    written = (tmp_path / "features" / folder.rpartition("/")[2] / "features.npy").stat().st_mtime_ns
    with pytest.raises(UsageError, match=r"started with other settings .*splits: 2 -> 1.*learner: 'all' -> 'knn'|"
                                         r"started with other settings .*learner: 'all' -> 'knn'.*splits: 2 -> 1"):
        run(tmp_path, "--data", few, "--labels", 40, "--splits", 1, "--learner", "knn")
    run(tmp_path, "--data", few, "--labels", 40, "--splits", 1, "--learner", "knn", "--out", tmp_path / "other")
    capsys.readouterr()
    run(tmp_path, "--data", few, "--labels", 40, "--splits", 1, "--learner", "knn", "--out", tmp_path / "other")
    again = capsys.readouterr().out.splitlines()
    assert again[0] == first[0]  # the same store, with the seconds that it took then
    assert re.fullmatch(r"knn +\d+\.\d% +\d+\.\d s", again[2])
    assert (tmp_path / "features" / folder.rpartition("/")[2] / "features.npy").stat().st_mtime_ns == written


def test_several_backbones_are_one_more_learner(tmp_path, capsys, few):
    others = []
    for seed in (1, 2):
        others.append(tmp_path / f"{seed}.safetensors")
        save_file(net("tiny_8", 10, load(few).style, seed=seed).state_dict(), others[-1])
    run(tmp_path, "--data", few, "--labels", 40, "--splits", 1, "--learner", "self_training", "--also", *others)
    lines = capsys.readouterr().out.splitlines()
    assert [line.rpartition(" in ")[0].split(" in ")[0] for line in lines[:3]] == [
        "few: 600 images embedded by tiny_8"] * 3
    pool = load(few).split(labels=40)
    nets = [net("tiny_8", 10, pool.style, weights=path) for path in (None, *others)]
    train, asked = ([embed(each, pool, rows, Runtime.start("cpu", "fp32")) for each in nets]
                    for rows in (pool.train, pool.test))
    probs = [self_training(*pair, 10) for pair in zip(train, [pool.labels[pool.train]] * 3, asked, strict=True)]
    right = [(np.mean(some, axis=0).argmax(axis=1) == pool.truth[pool.test]).mean() for some in (probs[:1], probs)]
    assert [line.split()[:2] for line in lines[4:-1]] == [
        ["self_training", f"{100 * right[0]:.1f}%"], ["ensemble", f"{100 * right[1]:.1f}%"]]


@pytest.mark.parametrize(("learner", "also"), [("knn", False), ("all", False), ("probe", True)])
def test_it_leaves_a_run_that_predicts(tmp_path, capsys, few, learner, also):
    other = tmp_path / "other.safetensors"
    save_file(net("tiny_8", 10, load(few).style, seed=1).state_dict(), other)
    run(tmp_path, "--data", few, "--labels", 40, "--splits", 1, "--learner", learner,
        *(("--also", other) if also else ()))
    table = dict(line.split()[:2] for line in capsys.readouterr().out.splitlines()[2:-1] if "%" in line)
    kept = "ensemble" if also else {"all": "self_training"}.get(learner, learner)
    pool = load(few)
    found = open_run(tmp_path / "run", "cpu", "fp32").predict(pool.images.take(pool.test))
    right = np.mean([label == pool.class_names[row] for label, row in
                     zip(found.labels, pool.truth[pool.test], strict=True)])
    assert f"{100 * right:.1f}%" == table[kept]


def test_no_other_run_is_overwritten(tmp_path, few):
    run(tmp_path, "--data", few, "--labels", 40, "--splits", 1, "--learner", "knn")
    recipe = module("recipes", "features")
    with pytest.raises(UsageError, match="holds a run that is finished, and it is not overwritten"):
        recipe.main(parse(recipe.Settings, ["--out", str(tmp_path / "run")]))


def test_bad_input(tmp_path):
    with pytest.raises(UsageError, match=r"nearest.*learner"):
        run(tmp_path, "--learner", "nearest")
    with pytest.raises(UsageError, match="unknown data set 'digit'"):
        run(tmp_path, "--data", "digit")


def test_each_split_says_which_classes_it_leaves_out(tmp_path, capsys, few):
    run(tmp_path, "--data", few, "--labels", 5, "--balance", "natural", "--splits", 2, "--learner", "knn")
    said = re.findall(r"note: seed (\d): (\d+) of the 10 classes have no labeled train image", capsys.readouterr().err)
    assert [seed for seed, _ in said] == ["0", "1"]
    assert all(int(count) >= 5 for _, count in said)
