"""Comparing methods: what is run, kept and resumed, and what the numbers may say."""

import json
import math
import sys

import numpy as np
import pytest
import torch
import yaml
from small_runs import digits, tiny_net, train
from test_recipes import TINY, recipe

from ssl_lab import comparison
from ssl_lab.comparison import Job, Runs, interval, verdicts
from ssl_lab.config import parse
from ssl_lab.engine import PseudoLabels, Runtime, predict
from ssl_lab.errors import RunFailedError, UsageError
from ssl_lab.methods import METHODS, FixMatch, Supervised
from ssl_lab.presets import LONG, build, fill, kind_for, preset
from ssl_lab.report import Band, heat_map

CPU = Runtime(torch.device("cpu"), "fp32", "asked")


def finished(folder, name, accuracies, **numbers):
    """Runs that gave these test accuracies."""
    jobs = []
    for seed, accuracy in enumerate(accuracies):
        out = folder / f"{name}-{seed}"
        out.mkdir()
        content = {"test_accuracy": accuracy, "labels": 10, "steps": 5, **numbers}
        (out / "summary.json").write_text(json.dumps(content))
        (out / "metrics.jsonl").write_text(json.dumps({"step": 1, "test_accuracy": accuracy}) + "\n")
        jobs.append(Job(folder / "recipe.py", {}, out))
    return Runs(name, jobs)


def test_the_interval_is_students():
    mean, half = interval([0.1, 0.2, 0.3])
    assert (mean, half) == (pytest.approx(0.2), pytest.approx(4.302653 * 0.1 / math.sqrt(3), rel=1e-6))
    assert math.isnan(interval([0.5])[1])
    assert math.isnan(interval([])[0])


@pytest.mark.parametrize(("accuracies", "words"), [
    ((0.80, 0.79, 0.81), "unlabeled images did not help (-10.0 points ± 0.0"),
    ((0.95, 0.94, 0.96), "unlabeled images helped (+5.0 points ± 0.0"),
    ((0.99, 0.80, 0.95), "the difference could be chance"),
    ((0.95,), "+5.0 points over the baseline in a single run, which decides nothing"),
])
def test_what_is_said_follows_the_paired_difference(tmp_path, accuracies, words):
    baseline = finished(tmp_path, "supervised", (0.90, 0.89, 0.91)[: len(accuracies)])
    (said,) = verdicts([finished(tmp_path, "fixmatch", accuracies)], baseline, balanced=False)
    assert words in said


def test_the_table_ranks_and_the_report_says_who_was_not_helped(tmp_path, capsys):
    baseline = finished(tmp_path, "supervised", (0.90, 0.91), test_ece=0.1)
    methods = [finished(tmp_path, "good", (0.95, 0.97)), finished(tmp_path, "bad", (0.5, 0.6))]
    comparison.show(digits(), baseline, methods, ["A note."], tmp_path)
    table = (tmp_path / "table.md").read_text()
    assert table.index("good") < table.index("supervised") < table.index("bad")
    assert "96.0 ± 12.7" in table
    page = (tmp_path / "report.html").read_text()
    for said in ("A note.", "bad: unlabeled images did not help"):
        assert said in page
        assert said in capsys.readouterr().out or said in page


def test_a_folder_with_other_settings_is_refused(tmp_path):
    Job(tmp_path / "a.py", {"lr": 0.1, "out": "x"}, tmp_path / "run").prepare()
    Job(tmp_path / "a.py", {"lr": 0.1, "out": "elsewhere"}, tmp_path / "run").prepare()
    with pytest.raises(UsageError, match=r"other settings \(lr: 0.1 -> 0.2\)"):
        Job(tmp_path / "a.py", {"lr": 0.2}, tmp_path / "run").prepare()


def test_a_run_that_fails_is_named_and_the_others_go_on(tmp_path, capsys):
    script = tmp_path / "recipe.py"
    script.write_text("import json, sys, yaml, pathlib\n"
                      "given = yaml.safe_load(open(sys.argv[2]))\n"
                      "if given['bad']: sys.exit('error: no such thing')\n"
                      "summary = {'test_accuracy': 0.5, 'seconds': 1, 'valid_accuracy': 0.25}\n"
                      "(pathlib.Path(given['out']) / 'summary.json').write_text(json.dumps(summary))\n")
    jobs = [Job(script, {"bad": bad}, tmp_path / name) for name, bad in (("one", True), ("two", False))]
    (failed,) = comparison.run_all(jobs, processes=2)
    assert "one failed: error: no such thing (see " in failed
    assert "2/2 two: 50.00% in 1 s" in capsys.readouterr().err
    assert comparison.best(jobs, "valid_accuracy") is jobs[1]
    with pytest.raises(RunFailedError, match="none of the 1 runs"):
        comparison.best(jobs[:1], "valid_accuracy")


def test_the_recipe_keeps_what_is_finished(tmp_path, monkeypatch, capsys):
    module = recipe("compare")
    monkeypatch.setattr(module, "GRID", [("weak", 0.1)])
    arguments = [*TINY[:4], *TINY[6:], "--methods", "fixmatch", "--steps", "3", "--out", str(tmp_path)]
    module.main(parse(module.Settings, [*arguments, "--seeds", "1"]))
    out, err = capsys.readouterr()
    assert "fixmatch" in out
    assert "single run, which decides nothing" in out or "did not help" in out
    assert "3 steps" not in err
    config = yaml.safe_load((tmp_path / "fixmatch-0" / "config.yaml").read_text())
    assert (config["labeled"], config["lr"], config["preset"]) == (32, 0.1, "short")
    splits = {json.loads((tmp_path / f"{name}-0" / "summary.json").read_text())["split"]
              for name in ("fixmatch", "supervised")}
    assert len(splits) == 1
    monkeypatch.setattr(sys, "executable", "/nowhere")  # nothing is left to run
    module.main(parse(module.Settings, [*arguments, "--seeds", "1"]))
    assert capsys.readouterr().out == out


def test_pseudo_labels_agree_with_a_loop(tmp_path):
    pool = digits(labels=20)
    method = train(tmp_path, FixMatch(tiny_net(pool), ema=0.5), pool, 16, 32, steps=60).method
    given = PseudoLabels(threshold=0.6, rows=10**6)(method, pool, CPU)
    rows = [i for i in pool.unlabeled if i not in set(pool.labeled)]
    p = predict(method.predictor(), pool, np.array(rows), CPU).softmax(1)
    confidence, said = p.max(1)
    for c in range(10):
        claimed = [i for i in range(len(rows)) if said[i] == c and confidence[i] >= 0.6]
        there = [i for i in range(len(rows)) if pool.truth[rows[i]] == c]
        right = [i for i in claimed if pool.truth[rows[i]] == c]
        covered = [i for i in there if confidence[i] >= 0.6]
        assert given[f"pseudo_coverage/{c}"] == pytest.approx(len(covered) / len(there))
        if claimed:
            assert given[f"pseudo_precision/{c}"] == pytest.approx(len(right) / len(claimed))
        else:
            assert math.isnan(given[f"pseudo_precision/{c}"])
    assert 0 < given["pseudo_coverage"] < 1
    assert len(PseudoLabels(rows=50)(method, pool, CPU)) == len(given)


def test_a_preset_fills_only_what_was_not_given():
    module = recipe("consistency")
    settings = module.Settings(lr=0.7)
    filled = fill(settings, preset("mixmatch", "cifar100", "paper"))
    assert (filled.lr, filled.labeled, filled.unlabeled, filled.weight_decay) == (0.7, 64, 64, 1e-3)
    assert fill(module.Settings(), preset("fixmatch", "svhn", "paper")).unlabeled == 448
    assert preset("mixmatch", "cifar100", "paper").arguments["weight"](1.0) == 150
    assert preset("mixmatch", "cifar10", "paper").arguments == {}
    assert [kind_for(steps) for steps in (None, 1000, LONG)] == ["short", "short", "paper"]


@pytest.mark.parametrize("kind", ["paper", "short"])
@pytest.mark.parametrize("name", [name for name, method in METHODS.items()
                                  if name not in {"opencos", "mae"} and method.family != "distillation"])
def test_presets_name_arguments_that_methods_have(name, kind):
    pool = digits()
    build(name, tiny_net(pool), pool, preset(name, "cifar100", kind).arguments)


def test_build_refuses_an_argument_that_is_not_there():
    pool = digits()
    assert isinstance(build("supervised", tiny_net(pool), pool, {}), Supervised)
    with pytest.raises(UsageError, match="fixmatch has no argument 'tau'; it has threshold, weight, ema"):
        build("fixmatch", tiny_net(pool), pool, {"tau": 0.5})
    with pytest.raises(UsageError, match=r"opencos needs in_class, .*, which recipes/openset\.py finds for it"):
        build("opencos", tiny_net(pool), pool, {})


def test_a_heat_map_names_its_rows_and_darkens_with_its_values():
    line = Band(np.array([10.0, 20.0]), np.array([0.25, 1.0]), np.zeros(2))
    empty = Band(np.empty(0), np.empty(0), np.empty(0))
    svg = heat_map({"cat": line, "<dog>": empty}, "coverage")
    assert svg == heat_map({"cat": line, "<dog>": empty}, "coverage")
    assert "cat" in svg
    assert "&lt;dog&gt;" in svg
    assert svg.count("opacity: 0.25") == 1
