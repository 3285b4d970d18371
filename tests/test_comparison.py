"""Comparing methods: what is run, kept and resumed, and what the numbers may say."""

import json
import math
import os
import re
import signal
import sys
import threading
import time
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from small_runs import digits, start, tiny_net, train
from test_recipes import TINY, recipe

from ssl_lab import build, comparison
from ssl_lab.command_line import parse
from ssl_lab.comparison import Runs, interval, verdicts
from ssl_lab.engine import PseudoLabels, Runtime, jobs, predict
from ssl_lab.engine.folder import alone_in
from ssl_lab.engine.jobs import Job
from ssl_lab.errors import Interrupted, RunFailedError, UsageError
from ssl_lab.exits import BUSY
from ssl_lab.intervals import detectable
from ssl_lab.locks import is_taken
from ssl_lab.methods import METHODS, FixMatch, Supervised
from ssl_lab.presets import LONG, fill, kind_for, preset
from ssl_lab.report import Band, heat_map
from ssl_lab.workers import Here

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
    ((0.80, 0.79, 0.81), "unlabeled images did not help, they did harm (-10.0 points ± 0.0"),
    ((0.95, 0.94, 0.96), "unlabeled images helped (+5.0 points ± 0.0"),
    ((0.99, 0.80, 0.95), "cannot be told from the tuned supervised baseline with 3 seeds (+1.3 points ± "),
    ((0.40, 0.99, 0.99), "cannot be told from the tuned supervised baseline with 3 seeds (-10.7 points ± "),
    ((0.90, 0.89, 0.91), "cannot be told from the tuned supervised baseline with 3 seeds (+0.0 points ± 0.0"),
    ((0.95,), "+5.0 points against the tuned supervised baseline in a single run, which decides nothing"),
    ((0.85,), "-5.0 points against the tuned supervised baseline in a single run, which decides nothing"),
    ((0.95, None, 0.96), "unlabeled images helped (+5.0 points ± 0.0"),  # null: it was not finite
])
def test_what_is_said_follows_the_paired_difference(tmp_path, accuracies, words):
    baseline = finished(tmp_path, "supervised", (0.90, 0.89, 0.91)[: len(accuracies)])
    (said,) = verdicts([finished(tmp_path, "fixmatch", accuracies)], baseline, balanced=False)
    assert words in said


def test_what_cannot_be_told_says_what_could_have_been(tmp_path):
    baseline = finished(tmp_path, "supervised", (0.90, 0.89, 0.91))
    (said,) = verdicts([finished(tmp_path, "fixmatch", (0.99, 0.80, 0.95))], baseline, balanced=False)
    points = 100 * detectable([0.09, -0.09, 0.04])
    assert 20 < points < 40
    assert said.endswith(f"; so many find a difference of {points:.1f} points in four of five cases.")


def test_the_table_ranks_and_the_report_says_who_was_not_helped(tmp_path, capsys):
    baseline = finished(tmp_path, "supervised", (0.90, 0.91), test_ece=0.1)
    methods = [finished(tmp_path, "good", (0.95, 0.97)), finished(tmp_path, "bad", (0.5, 0.51))]
    comparison.show(digits(), baseline, methods, ["A note."], tmp_path)
    table = (tmp_path / "table.md").read_text()
    assert table.index("good") < table.index("supervised") < table.index("bad")
    assert "96.0 ± 12.7" in table
    page, printed = (tmp_path / "report.html").read_text(), capsys.readouterr().out
    for said in ("A note.", "bad: unlabeled images did not help, they did harm"):
        assert said in page
        assert said in printed
    assert "precision" not in table  # of what was not measured there is no column, no curve and no map
    assert "Not measured: of no unlabeled image is the class known" in page
    assert "nothing was logged" not in page
    assert page.count("<svg") == 1


def test_curves_are_of_what_was_measured(tmp_path):
    baseline, method = (finished(tmp_path, name, (0.9, 0.8), test_ece=0.1) for name in ("supervised", "good"))
    for each in (baseline, method):
        for job in each.jobs:
            rows = [{"step": step, "valid_accuracy": 0.5, **({"pseudo_precision/1": 0.7, "pseudo_precision": 0.6}
                                                            if each is method else {})} for step in (1, 2)]
            (job.out / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    comparison.show(digits(), baseline, [method], [], tmp_path)
    page = (tmp_path / "report.html").read_text()
    assert page.count("<svg") == 3  # the curve on validation images, precision, and its map of the one method
    assert all(words in page for words in ("valid accuracy", "pseudo precision", "good: precision"))
    assert not any(words in page for words in ("test accuracy (%)", "pseudo coverage", "supervised: precision",
                                               "good: coverage", "Not measured"))


def test_runs_that_failed_neither_rank_nor_stop_the_report(tmp_path):
    baseline = finished(tmp_path, "supervised", (0.90, 0.91))
    gone, good = finished(tmp_path, "gone", (0.5, 0.5)), finished(tmp_path, "good", (0.95, 0.97))
    for job in (baseline.jobs[0], *gone.jobs):
        (job.out / "summary.json").unlink()
    comparison.show(digits(), baseline, [gone, good, finished(tmp_path, "bad", (0.5, 0.6))], [], tmp_path)
    table = (tmp_path / "table.md").read_text()
    assert "digits with 10 labels" in (tmp_path / "report.html").read_text()
    assert table.index("good") < table.index("supervised") < table.index("bad") < table.index("gone")
    assert "supervised (1 of 2 seeds)" in table
    assert "gone (0 of 2 seeds)" in table
    with pytest.raises(RunFailedError, match="none of the runs in"):
        comparison.show(digits(), Runs("supervised", baseline.jobs[:1]), [gone], [], tmp_path)


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
                      "summary = {'test_accuracy': given['right'], 'seconds': 1, 'valid_accuracy': 0.25}\n"
                      "(pathlib.Path(given['out']) / 'summary.json').write_text(json.dumps(summary))\n")
    runs = [Job(script, {"bad": bad, "right": right}, tmp_path / name)
            for name, bad, right in (("one", True, 0), ("two", False, 0.5), ("three", False, 0), ("four", False, None))]
    (failed,) = jobs.run_all(runs, Here(2))
    assert "one failed: error: no such thing (see " in failed
    err = capsys.readouterr().err
    assert all(said in err for said in ("2/4 two: 50.00% in 1 s", "3/4 three: 0.00% in", "4/4 four: 25.00% in"))
    assert jobs.best(runs, "valid_accuracy") is runs[1]
    with pytest.raises(RunFailedError, match="none of the 1 runs"):
        jobs.best(runs[:1], "valid_accuracy")


def test_a_signal_is_handed_on_to_the_runs_which_save(tmp_path, request):
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # in the background, shells have it ignored
    request.addfinalizer(lambda: signal.signal(signal.SIGINT, before))
    script = tmp_path / "recipe.py"
    script.write_text("import pathlib, signal, sys, time\n"
                      "out = pathlib.Path(sys.argv[2]).parent\n"
                      "def save(*_):\n    (out / 'saved').touch()\n    sys.exit(130)\n"
                      "signal.signal(signal.SIGTERM, save)\n"
                      "(out / 'started').touch()\n"
                      "time.sleep(20)\n")
    runs = [Job(script, {}, tmp_path / name) for name in ("one", "two", "three")]

    def interrupt():
        while not all((job.out / "started").exists() for job in runs[:2]):
            time.sleep(0.05)
        os.kill(os.getpid(), signal.SIGINT)  # not of a terminal, which would send it to the runs too

    threading.Thread(target=interrupt, daemon=True).start()
    with pytest.raises(Interrupted, match="stopped; the same command goes on"):
        jobs.run_all(runs, Here(2))
    assert [(job.out / "saved").exists() for job in runs] == [True, True, False]
    assert not (runs[2].out / "started").exists()


def script_of(tmp_path, lines):
    """A recipe that does this with its settings, `given`, and its folder, `out`."""
    script = tmp_path / "recipe.py"
    script.write_text("import json, os, pathlib, sys, time, yaml\n"
                      "given = yaml.safe_load(open(sys.argv[2]))\nout = pathlib.Path(given['out'])\n"
                      "def done(): (out / 'summary.json').write_text(json.dumps(\n"
                      "    {'test_accuracy': 0.5, 'seconds': 1, 'valid_accuracy': 0.25}))\n" + lines)
    return script


def test_a_folder_that_another_process_has_is_waited_for(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(jobs, "PAUSE", 0.05)
    script = script_of(tmp_path, "(out / 'times').open('a').write('x')\ndone()\n")
    mine, theirs = (Job(script, {}, tmp_path / name) for name in ("mine", "theirs"))
    ended = threading.Event()

    def other():
        """A run that outlived the comparison that began it, and ends."""
        with alone_in(mine.out), alone_in(theirs.out):
            ended.wait()
            (theirs.out / "summary.json").write_text('{"test_accuracy": 1.0, "seconds": 2, "valid_accuracy": 0.5}')

    def end():
        while capsys.readouterr().err.count("waiting for it") < 1:
            time.sleep(0.02)
        ended.set()

    for work in (other, end):
        threading.Thread(target=work, daemon=True).start()
    while not is_taken(theirs.out):
        time.sleep(0.02)
    assert jobs.run_all([mine, theirs], Here(2)) == []
    assert (mine.out / "times").read_text() == "x"
    assert not (theirs.out / "times").exists()  # it was finished by the other
    assert theirs.summary["test_accuracy"] == 1.0


def test_a_run_that_ends_as_its_folder_is_looked_at_is_not_run_again(tmp_path, monkeypatch):
    """Taken at the first look; before the second one it has ended and the folder is free."""
    monkeypatch.setattr(jobs, "PAUSE", 0.0)
    job = Job(script_of(tmp_path, "raise SystemExit('run again')\n"), {}, tmp_path / "run")
    looks = []

    def is_taken(folder):
        looks.append(folder)
        if len(looks) == 2:
            (folder / "summary.json").write_text('{"test_accuracy": 1.0, "seconds": 2, "valid_accuracy": 0.5}')
        return len(looks) == 1

    monkeypatch.setattr(jobs, "is_taken", is_taken)
    assert jobs.run_all([job], Here(1)) == []
    assert len(looks) == 2


def test_a_run_that_finds_the_folder_taken_is_tried_again(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(jobs, "PAUSE", 0.05)
    script = script_of(tmp_path, "first = not (out / 'first').exists()\n(out / 'first').touch()\n"
                                 f"sys.exit({BUSY}) if first else done()\n")
    job = Job(script, {}, tmp_path / "run")
    assert jobs.run_all([job], Here(1)) == []
    assert job.summary is not None
    assert capsys.readouterr().err.count("waiting for it") == 1


def test_runs_end_with_a_comparison_that_is_killed(tmp_path):
    script = script_of(tmp_path, "from ssl_lab.exits import exit_with_status\n"
                                 "def train():\n"
                                 "    (out / 'begun').touch()\n"
                                 "    try: time.sleep(60)\n"
                                 "    finally: (out / 'saved').touch()\n"
                                 "exit_with_status(train)\n")
    process = start("-c", "import sys; from pathlib import Path; from ssl_lab.engine.jobs import Job, run_all\n"
                          "from ssl_lab.workers import Here\n"
                          f"run_all([Job(Path({str(script)!r}), {{}}, Path({str(tmp_path)!r}, 'run'))], Here(1))")
    while not (tmp_path / "run" / "begun").exists():
        assert process.poll() is None
        time.sleep(0.05)
    process.kill()
    process.communicate()
    end = time.monotonic() + 30
    while not (tmp_path / "run" / "saved").exists() and time.monotonic() < end:
        time.sleep(0.05)
    assert (tmp_path / "run" / "saved").exists()


def test_a_run_that_the_system_killed_says_so(tmp_path):
    (failed,) = jobs.run_all([Job(script_of(tmp_path, "os.kill(os.getpid(), 9)\n"), {}, tmp_path / "run")], Here(1))
    assert "run was killed by signal 9, as systems do where memory runs out (see " in failed


def started_jobs(monkeypatch, *arguments):
    """The runs that the recipe would begin with."""
    kept = []

    def run_all(runs, workers):
        kept.extend(runs)
        raise Interrupted

    monkeypatch.setattr(jobs, "run_all", run_all)
    module = recipe("compare")
    with pytest.raises(Interrupted):
        module.main(parse(module.Settings, ["--steps", "3", *map(str, arguments)]))
    return kept


def test_the_baseline_is_tuned_on_labels_that_are_not_asked_for(tmp_path, monkeypatch):
    images, labels = np.zeros((340, 4, 4), np.uint8), np.where(np.arange(340) < 40, np.arange(340) % 2, -1)
    np.savez(tmp_path / "few.npz", images=images, labels=labels, test_images=images[:2], test_labels=labels[:2])
    few = ("--data", tmp_path / "few.npz", "--out", tmp_path / "wrong")
    for labels_asked, valid in ((("--labels", 10), 6), (("--labels", 0.5), 4), ((), 8)):
        tuning = started_jobs(monkeypatch, *few, "--out", tmp_path / str(valid), *labels_asked)
        assert {job.settings["valid"] for job in tuning} == {valid}
    with pytest.raises(UsageError, match="40 train images have a label, and 32 are asked for: at least 10 more"):
        started_jobs(monkeypatch, *few, "--labels", 32)
    np.savez(tmp_path / "few.npz", images=images, labels=labels)
    with pytest.raises(UsageError, match=r"few.npz has no test image with a label, .* test_images and test_labels"):
        started_jobs(monkeypatch, *few, "--labels", 10)


def some_digits(tmp_path):
    pool = digits()
    images = pool.images.take(np.arange(400)).numpy()[:, 0]
    np.savez(tmp_path / "some.npz", images=images[:300], labels=pool.truth[:300], test_images=images[300:],
             test_labels=pool.truth[300:400])
    return "--data", tmp_path / "some.npz", "--labels", 20, "--net", "tiny_4", "--out", tmp_path / "runs"


def test_supervised_is_the_baseline_and_no_method(tmp_path, monkeypatch, capsys):
    given = ("--methods", "supervised, fixmatch,fixmatch,", "--seeds", 1)
    tuning = started_jobs(monkeypatch, *some_digits(tmp_path), *given)
    assert "note: supervised is the baseline" in capsys.readouterr().err
    assert len(tuning) == 6
    assert sorted(path.name for path in (tmp_path / "runs").iterdir()) == ["fixmatch-0", "images.npz"]


@pytest.mark.parametrize(("arguments", "words"), [
    (("--methods", "supervised"), "leaves nothing to compare"),
    (("--methods", "fixmatch,fixmach"), "unknown method 'fixmach'. Did you mean fixmatch"),
    (("--methods", "fixmatch,simclr"), r"simclr cannot be compared here.* see recipes/pretrain.py"),
    (("--methods", "opencos"), r"opencos cannot be compared here.* see recipes/openset.py"),
    (("--methods", "hiermatch"), "hiermatch: "),
    (("--seeds", "0"), "seeds=0"),
    (("--workers", "0"), "--workers 0"),
    (("--net", "tiny_x"), "tiny_x"),
    (("--device", "gpu"), "gpu"),
    (("--micro-batches", "7"), "does not divide into 7 micro-batches"),
    (("--labels", "5"), "5"),
])
def test_what_cannot_run_is_known_before_anything_trains(tmp_path, monkeypatch, arguments, words):
    with pytest.raises(UsageError, match=words):
        started_jobs(monkeypatch, *some_digits(tmp_path), *arguments)


def test_other_settings_are_known_before_the_tuning(tmp_path, monkeypatch):
    given = (*some_digits(tmp_path), "--methods", "fixmatch", "--seeds", 1)
    started_jobs(monkeypatch, *given)
    with pytest.raises(UsageError, match=r"fixmatch-0 holds a run with other settings \(preset: 'short' -> 'paper'\)"):
        started_jobs(monkeypatch, *given, "--preset", "paper")


def test_of_all_methods_those_that_want_more_of_the_data_are_left_out(tmp_path, monkeypatch, capsys):
    started_jobs(monkeypatch, *some_digits(tmp_path), "--methods", "all", "--seeds", 1)
    assert "note: hiermatch is left out: " in capsys.readouterr().err
    names = {path.name for path in (tmp_path / "runs").iterdir()}
    assert {"fixmatch-0", "mixmatch-0"} <= names
    assert "hiermatch-0" not in names


@pytest.mark.parametrize(("failure", "goes_on"), [
    ("0.1 failed: error: cannot write here: No space left", False),
    ("0.1 failed: error: the loss is not finite at step 3", True),
])
def test_a_baseline_that_could_not_be_tuned_ends_the_comparison(tmp_path, monkeypatch, failure, goes_on):
    class GoesOnError(Exception):
        pass

    def run_all(runs, workers):
        if "tuning" not in str(runs[0].out):
            raise GoesOnError
        for job in runs[:-1]:
            job.prepare()
            (job.out / "summary.json").write_text('{"valid_accuracy": 0.5}')
        return [failure]

    monkeypatch.setattr(jobs, "run_all", run_all)
    module = recipe("compare")
    settings = parse(module.Settings, ["--steps", "3", *map(str, some_digits(tmp_path)), "--methods", "fixmatch"])
    with pytest.raises(GoesOnError if goes_on else RunFailedError) as ended:
        module.main(settings)
    if not goes_on:
        assert "1 of the 6 settings of the baseline could not be tried" in str(ended.value)
        assert failure in str(ended.value)


def first_in_a_process(monkeypatch):
    """Of the runs that are started the first is a process; the others do the same here, where all is imported."""
    started, in_a_process = [], Here.command

    def run(self, command, log):
        started.append(command)
        if len(started) == 1:
            return in_a_process(self, command, log)
        module = recipe(Path(command[1]).stem)
        with log.open("a") as file, redirect_stdout(file), redirect_stderr(file):
            module.main(parse(module.Settings, command[2:]))
        return 0

    monkeypatch.setattr(Here, "command", run)


def test_the_recipe_keeps_what_is_finished(tmp_path, monkeypatch, capsys):
    module = recipe("compare")
    monkeypatch.setattr(module, "GRID", [("weak", 0.1)])
    first_in_a_process(monkeypatch)
    arguments = [*TINY[:4], *TINY[6:], "--methods", "fixmatch", "--steps", "3", "--out", str(tmp_path)]
    module.main(parse(module.Settings, [*arguments, "--seeds", "1"]))
    out, err = capsys.readouterr()
    assert "fixmatch" in out
    assert "single run, which decides nothing" in out
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
    assert [kind_for(steps) for steps in (None, 1000, LONG)] == ["short", "short", "paper"]


# What the papers' commands say: unlabeled images for each labeled one, peak learning rate, and arguments by data set
# where they are not the method's defaults (of schedules the value at the end). Read in the files named in presets.py.
PUBLISHED: dict[str, tuple[int, float, dict[str, dict[str, float]]]] = {
    "pi_model": (1, 0.03, {}), "temporal_ensembling": (1, 0.03, {}), "mean_teacher": (1, 0.03, {}),
    "pseudo_label": (1, 0.03, {}),
    "vat": (1, 0.03, {"cifar10": {"weight": 0.3}, "svhn": {"weight": 0.3, "epsilon": 1.0}}),
    "ict": (1, 0.03, {"svhn": {"alpha": 0.1}}),
    "mixmatch": (1, 0.03, {"cifar100": {"weight": 150}, "svhn": {"weight": 250}, "stl10": {"weight": 50}}),
    "remixmatch": (1, 0.03, {}), "s4l": (1, 0.03, {}), "s4l_exemplar": (1, 0.03, {}),
    "uda": (7, 0.03, {}), "fixmatch": (7, 0.03, {}), "flexmatch": (7, 0.03, {}),
    "freematch": (7, 0.03, {"svhn": {"least": 0.9, "most": 0.95}}),
    "softmatch": (7, 0.03, {}), "adamatch": (3, 0.03, {}), "defixmatch": (7, 0.03, {}), "dash": (7, 0.06, {}),
    "simmatch": (7, 0.03, {}), "comatch": (7, 0.03, {"stl10": {"contrast": 5.0}}),
    "abc": (1, 0.03, {}), "darp": (1, 0.03, {}), "finessl": (1, 0.03, {}),
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_the_paper_preset_is_what_was_published(name):
    ratio, lr, by_data = PUBLISHED[name]
    always = by_data.get("cifar10", {})
    for data in ("cifar10", "cifar100", "svhn", "stl10", "mine"):
        found = preset(name, data, "paper")
        assert (found.labeled, found.unlabeled, found.lr) == (64, 64 * ratio, lr)
        assert found.weight_decay == (1e-3 if data == "cifar100" else 5e-4)
        values = {key: value(1.0) if callable(value) else value for key, value in found.arguments.items()}
        assert values == by_data.get(data, always), data


def test_a_long_run_says_whose_settings_it_has(tmp_path, monkeypatch):
    module, seen = recipe("consistency"), []
    monkeypatch.setattr(module.sl.Trainer, "fit", lambda trainer, method, pool, **named: seen.append(pool.notes))
    for arguments in (["--steps", str(LONG)], ["--steps", str(LONG), "--preset", "paper"], ["--steps", "5"]):
        module.main(parse(module.Settings, ["--labels", "20", "--out", str(tmp_path), *arguments]))
    assert [any("--preset short" in note for note in notes) for notes in seen] == [True, False, False]


def test_the_paper_preset_of_a_method_around_another_one():
    assert preset("hiermatch", "cifar100", "paper").arguments["base"].keywords["weight"](1.0) == 150
    assert preset("hiermatch", "cifar100", "paper").unlabeled == 64


# By class: what a docstring says of a data set, and the preset that has it.
STATED = {("ict", "0.1 for SVHN"): ("svhn", "alpha", 0.1), ("vat", "who take 1 for SVHN"): ("svhn", "epsilon", 1.0),
          ("freematch", "0.9 and 0.95 for SVHN"): ("svhn", "least", 0.9)}


@pytest.mark.parametrize(("name", "words"), STATED)
def test_what_a_docstring_says_of_a_data_set_is_in_the_preset(name, words):
    data, argument, value = STATED[name, words]
    assert words in " ".join((METHODS[name].__doc__ or "").split())
    assert preset(name, data, "paper").arguments[argument] == value


def test_every_data_set_that_a_docstring_names_is_looked_at():
    """A setting for one data set belongs into the presets; other sentences that name one are listed here."""
    other = {"dash", "uda", "simmatch", "comatch"}  # the data of a command; BatchNorm and windows on CIFAR and ImageNet
    named = {name for name, method in METHODS.items() if method.family == "consistency"
             and re.search("SVHN|STL|CIFAR-100", method.__doc__ or "")}
    assert named - other == {name for name, _ in STATED}


@pytest.mark.parametrize("kind", ["paper", "short"])
@pytest.mark.parametrize("name", [name for name, method in METHODS.items()
                                  if name not in {"opencos", "mae"} and method.family != "distillation"])
def test_presets_name_arguments_that_methods_have(name, kind):
    pool = digits()
    build.method(name, tiny_net(pool), pool, preset(name, "cifar100", kind).arguments)


def test_build_refuses_an_argument_that_is_not_there():
    pool = digits()
    assert isinstance(build.method("supervised", tiny_net(pool), pool, {}), Supervised)
    with pytest.raises(UsageError, match="fixmatch has no argument 'tau'; it has threshold, weight, ema"):
        build.method("fixmatch", tiny_net(pool), pool, {"tau": 0.5})
    with pytest.raises(UsageError, match=r"opencos needs in_class, .*, which recipes/openset\.py finds for it"):
        build.method("opencos", tiny_net(pool), pool, {})


@pytest.mark.parametrize(("name", "argument", "value", "words"), [
    ("fixmatch", "net", 1, "fixmatch has no argument 'net'; it has threshold, weight, ema"),
    ("fixmatch", "weight", "abc", "weight is 'abc'; expected a number, or a schedule such as linear"),
    ("fixmatch", "weight", "True", "weight is True; expected a number"),
    ("mixmatch", "augmentations", 2.5, "mixmatch: augmentations is 2.5; expected a whole number"),
    ("pi_model", "stop_gradient", "no", "stop_gradient is 'no'; expected True or False"),
])
def test_build_refuses_a_value_that_the_argument_cannot_take(name, argument, value, words):
    pool = digits()
    with pytest.raises(UsageError, match=words):
        build.method(name, tiny_net(pool), pool, {argument: value})


def test_arguments_from_a_command_line_have_the_types_of_the_method():
    def built(recipe_name, name, *arguments):
        module = recipe(recipe_name)
        settings = parse(module.Settings, ["--steps", "1", "--arguments", *arguments])
        return build.method(name, tiny_net(pool), pool, settings.arguments)

    pool = digits()
    for recipe_name in ("consistency", "distill"):
        assert len(built(recipe_name, "mixmatch", "augmentations", "3").views.unlabeled) == 3
    assert built("consistency", "pi_model", "stop_gradient", "True").stop_gradient is True
    assert built("consistency", "pi_model", "stop_gradient", "False").stop_gradient is False
    assert built("consistency", "uda", "tsa", "log").tsa == "log"


def test_a_heat_map_names_its_rows_and_darkens_with_its_values():
    line = Band(np.array([10.0, 20.0]), np.array([0.25, 1.0]), np.zeros(2))
    empty = Band(np.empty(0), np.empty(0), np.empty(0))
    svg = heat_map({"cat": line, "<dog>": empty}, "coverage")
    assert svg == heat_map({"cat": line, "<dog>": empty}, "coverage")
    assert "cat" in svg
    assert "&lt;dog&gt;" in svg
    assert svg.count("opacity: 0.25") == 1
