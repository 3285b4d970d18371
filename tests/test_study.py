"""What techniques are worth: what is tried, what is run, and what the numbers may say."""

import json
import math
from contextlib import redirect_stdout
from pathlib import Path

import pytest
import yaml
from test_comparison import finished
from test_recipes import TINY, recipe

from ssl_lab import study
from ssl_lab.arms import FOR_ACCURACY, Arm, arms
from ssl_lab.command_line import parse
from ssl_lab.engine import jobs
from ssl_lab.errors import RunFailedError, UsageError
from ssl_lab.report.charts import difference_chart
from ssl_lab.study import worth
from ssl_lab.techniques import TECHNIQUES
from ssl_lab.workers import Here


def test_techniques_and_settings_are_tried_alone_and_together():
    alone, both, setting, mixed = arms(["sam( rho = 0.1 )", "swa + sam(rho=0.1)", "lr=triangular(0.01, 0.1)",
                                        "swa+weight-decay = 0.001"])
    assert (alone.text, alone.kind, alone.techniques) == ("sam(rho=0.1)", "step", ("sam(rho=0.1)",))
    assert (both.text, both.kind) == ("swa + sam(rho=0.1)", "weights, step")
    assert (setting.kind, setting.settings, setting.techniques) == ("settings", {"lr": "triangular(0.01, 0.1)"}, ())
    assert (mixed.techniques, mixed.settings) == (("swa",), {"weight_decay": 0.001})
    every = [arm.text for arm in arms(["all", "sam", "rigl"])]
    assert every == [*(name for name, kind in TECHNIQUES.items() if kind.serves == "accuracy"), "rigl"]
    assert "sam" in every
    assert "dp" not in every
    assert [arm.text for arm in arms(["sam", "all", "swa"]) if not arm.of_all] == ["sam", "swa"]


@pytest.mark.parametrize(("given", "said"), [
    (["samm"], "sam"),
    (["sam + sam"], "same technique"),
    ([""], "technique"),
    ([], "nothing to try"),
    (["lr={"], "no value of a setting"),
])
def test_what_cannot_be_tried_is_one_line(given, said):
    with pytest.raises(UsageError, match=said):
        arms(given)


def of(tmp_path, name, accuracies, base, **numbers):
    return worth(Arm(name, "step"), finished(tmp_path, name, accuracies, **numbers), base)


def test_differences_are_paired_by_seed(tmp_path):
    base = finished(tmp_path, "base", (0.5, 0.7, 0.9), seconds=2.0)
    better = of(tmp_path, "better", (0.52, 0.71, 0.93), base, seconds=5.0)
    assert better.difference.difference == pytest.approx(0.02)
    assert better.difference.half_width == pytest.approx(4.302653 * 0.01 / math.sqrt(3), rel=1e-5)
    assert (better.cost, better.verdict) == (pytest.approx(2.5), "cannot be told")
    assert of(tmp_path, "helped", (0.52, 0.72, 0.92), base).verdict == "helped"
    assert of(tmp_path, "harmed", (0.48, 0.68, 0.88), base).verdict == "did harm"
    assert of(tmp_path, "nothing", (0.5, 0.7, 0.9), base).verdict == "cannot be told"
    failed = of(tmp_path, "failed", (None, None, None), base)
    assert (failed.verdict, failed.pairs) == ("did not run", ())
    part = of(tmp_path, "part", (0.6, None, 0.8), base)
    assert part.pairs == pytest.approx((0.1, -0.1))


def test_a_page_and_a_table_say_which_helped(tmp_path, capsys):
    base = finished(tmp_path, "base", (0.5, 0.7, 0.9), seconds=2.0)
    found = [of(tmp_path, "worse", (0.4, 0.6, 0.8), base, seconds=2.0),
             of(tmp_path, "noisy", (0.9, 0.7, 0.6), base, seconds=2.0),
             of(tmp_path, "good", (0.6, 0.8, 1.0), base, seconds=4.0),
             of(tmp_path, "broken", (None, None, None), base)]
    study.show("fixmatch", base, found, ["a note"], tmp_path, "test_accuracy")
    said = capsys.readouterr().out
    assert "Helped (1): good." in said
    assert "Did harm (1): worse." in said
    assert "Cannot be told from nothing (1): noisy." in said
    assert "Did not run (1): broken." in said
    assert "of 3 techniques without any effect, about 0.2 would be told apart by accident" in said
    rows = [line.split("|")[1].split()[0] for line in (tmp_path / "table.md").read_text().splitlines() if " | " in line]
    assert rows[-5:] == ["base", "good", "noisy", "worse", "broken"]
    assert "2.0 x" in said
    assert "Differences from the base" in (tmp_path / "report.html").read_text()


def test_with_two_seeds_nothing_is_ranked(tmp_path, capsys):
    base = finished(tmp_path, "base", (0.5, 0.7))
    study.show("t", base, [of(tmp_path, "worse", (0.4, 0.6), base), of(tmp_path, "good", (0.6, 0.8), base)], [],
               tmp_path, "test_accuracy")
    said = capsys.readouterr().out
    assert "With 2 seeds nothing is ranked" in said
    assert "elped" not in said
    assert "verdict" not in said
    table = (tmp_path / "table.md").read_text()
    assert table.index("worse") < table.index("good")  # as given


def test_without_the_base_there_is_no_table(tmp_path):
    base = finished(tmp_path, "base", (None,))
    with pytest.raises(RunFailedError, match="no run of the base"):
        study.show("t", base, [], [], tmp_path, "test_accuracy")


def test_the_chart_holds_every_interval():
    chart = str(difference_chart([("one", 1.0, 0.5), ("two", -3.0, 4.0), ("three", 0.2, math.nan)]))
    assert "one: +1.0 points ± 0.5" in chart
    assert "three: +0.2 points<" in chart
    xs = [float(part.split('"')[0]) for part in chart.split('x1="')[1:]]
    assert min(xs) >= 0


def in_this_process(children, command, log):
    """In place of a process of the recipe, of which tests/test_comparison.py has some: they take seconds to begin."""
    module = recipe(Path(command[1]).stem)
    with log.open("a") as file, redirect_stdout(file):
        module.main(parse(module.Settings, command[2:]))
    return 0


def test_the_recipe_keeps_what_is_finished(tmp_path, monkeypatch, capsys):
    module = recipe("techniques")
    monkeypatch.setattr(Here, "command", in_this_process)
    arguments = [*TINY[:4], *TINY[6:], "--recipe", "supervised", "--base", "view", "strong", "--try",
                 "sam(rho=0.1) + lr=0.05", "--steps", "3", "--seeds", "1", "--out", str(tmp_path)]
    module.main(parse(module.Settings, arguments))
    out = capsys.readouterr().out
    assert "With 1 seed nothing is ranked" in out
    (other,) = (path for path in tmp_path.iterdir() if path.name.startswith("sam"))
    base, tried = (yaml.safe_load((path / "config.yaml").read_text()) for path in (tmp_path / "base-0", other))
    assert {name for name in base if base[name] != tried[name]} == {"techniques", "lr", "out"}
    assert tried["techniques"] == ["sam(rho=0.1)"]
    assert base["view"] == ["strong"]
    splits = {json.loads((path / "summary.json").read_text())["split"] for path in (tmp_path / "base-0", other)}
    assert len(splits) == 1
    monkeypatch.setattr(Here, "command", None)  # nothing is left to run
    module.main(parse(module.Settings, arguments))
    assert capsys.readouterr().out == out


def started(monkeypatch, tmp_path, *arguments):
    """The names of what the recipe starts, without starting it, and the notes that its page has."""
    module, names, notes = recipe("techniques"), [], []
    monkeypatch.setattr(jobs, "run_all", lambda runs, workers: names.extend(job.out.name for job in runs) or [])
    monkeypatch.setattr(study, "show", lambda title, base, found, said, *rest: notes.extend(said))
    module.main(parse(module.Settings, ["--labels", "40", "--net", "tiny_4", "--device", "cpu", "--steps", "3",
                                        "--seeds", "1", "--out", str(tmp_path / "study"), *map(str, arguments)]))
    return [name.removesuffix("-0") for name in names], notes


def test_all_is_what_the_base_can_take(tmp_path, monkeypatch, capsys):
    some = ["whiten", "autoinit", "gradinit", "mixup", "ldam", "sam", "sphere", "oversample"]
    assert {*some} <= {*FOR_ACCURACY}
    monkeypatch.setattr("ssl_lab.arms.FOR_ACCURACY", some)
    names, notes = started(monkeypatch, tmp_path)
    said = capsys.readouterr().err
    why = "whiten is left out: whiten: tiny_4 has no layer for it; rapid_64_128_256 and the like have."
    assert why in notes
    assert f"note: {why}\n" in said
    assert {"base", *some} - {"whiten"} == {*names}


@pytest.mark.parametrize(("name", "base", "left_out"), [
    ("supervised", ("labeled", "8"), {"whiten"}),
    ("consistency", ("method", "mixmatch"), {"whiten", "mixup"}),  # which mixes already
    ("openset", ("method", "opencos"), {"whiten", "mixup"}),  # which has unlabeled images in its labeled loss
    ("distill", ("method", "fitnet"), {"whiten"}),
    ("finetune", ("start", "run"), {"whiten", "autoinit"}),  # which would leave nothing of what was learned
])
def test_what_can_be_taken_goes_by_the_recipe(tmp_path, monkeypatch, name, base, left_out):
    monkeypatch.setattr("ssl_lab.arms.FOR_ACCURACY", ["whiten", "autoinit", "mixup", "sam"])
    monkeypatch.chdir(tmp_path)
    if name == "finetune":
        own = recipe("supervised")
        own.main(parse(own.Settings, [*TINY, "--steps", "1", "--out", "run"]))
    names, _ = started(monkeypatch, tmp_path, "--recipe", name, "--base", *base)
    assert {"whiten", "autoinit", "mixup", "sam"} - {*names} == left_out


def test_all_takes_what_fits_the_net_and_the_techniques_of_the_base(tmp_path, monkeypatch):
    monkeypatch.setattr("ssl_lab.arms.FOR_ACCURACY", ["whiten", "gnp", "drop_path"])
    names, notes = started(monkeypatch, tmp_path, "--net", "rapid_4_8_8", "--with", "sam")
    assert names == ["base", "whiten"]
    assert "gnp is left out: sam and gnp are both rules for a whole step; give one of them." in notes
    assert any(note.startswith("drop_path is left out: drop_path leaves out residual branches") for note in notes)


@pytest.mark.parametrize(("given", "said"), [
    (("--try", "all", "--try", "whiten"), "--try 'whiten': whiten: tiny_4 has no layer for it"),
    (("--with", "whiten", "--try", "swa"), "the base: whiten: tiny_4 has no layer for it"),
    (("--with", "sam", "--try", "gnp"), "--try 'gnp': sam and gnp are both rules"),
])
def test_what_was_named_and_cannot_run_is_refused_before_anything_trains(tmp_path, monkeypatch, given, said):
    monkeypatch.setattr("ssl_lab.arms.FOR_ACCURACY", ["sam", "whiten"])
    with pytest.raises(UsageError, match=said):
        started(monkeypatch, tmp_path, *given)


def test_minutes_are_refused(tmp_path):
    module = recipe("techniques")
    with pytest.raises(UsageError, match="equal steps"):
        module.main(parse(module.Settings, ["--minutes", "1", "--out", str(tmp_path)]))


@pytest.mark.parametrize(("given", "said"), [
    (["--try", "swa", "--try", "samm"], r"unknown technique 'samm'\. Did you mean .*sam"),
    (["--with", "samm"], r"the base: unknown technique 'samm'"),
    (["--try", "swa", "--try", "lrr=0.1"], r"unknown setting 'lrr'\. Did you mean lr\? It is given by --try 'lrr=0.1'"),
    (["--base", "weight-dekay", "0.1"], r"unknown setting .weight_dekay.\. Did you mean weight_decay .*by the base"),
    (["--try", "lr=fast"], r"--try 'lr=fast': .*fast"),
    (["--base", "labeled", "many"], r"the base: .*labeled.*many"),
    (["--base", "view", "strog"], r"the base: unknown view 'strog'"),
    (["--try", "optimizer=radm"], r"--try 'optimizer=radm': unknown optimizer 'radm'"),
    (["--recipe", "consistency", "--base", "method", "fixmtch"], r"the base: unknown method 'fixmtch'"),
])
def test_what_the_recipe_would_not_take_is_refused_before_anything_is_read_or_trained(monkeypatch, given, said):
    module = recipe("techniques")
    for name in ("load", "announce"):
        monkeypatch.setattr(module.sl, name, None)
    with pytest.raises(UsageError, match=said) as refused:
        module.main(parse(module.Settings, ["--recipe", "supervised", "--steps", "3", "--seeds", "1", *given]))
    assert "settings.yaml" not in str(refused.value)


def test_what_names_a_module_is_handed_on_by_the_command_line(tmp_path, monkeypatch):
    (tmp_path / "mine_of_study.py").write_text(
        "import ssl_lab as sl\nclass Soft(sl.FixMatch): ...\nclass View(sl.views.Weak): ...\nclass Mine(sl.SGD): ...\n")
    monkeypatch.syspath_prepend(tmp_path)
    module, started = recipe("techniques"), []
    monkeypatch.setattr(jobs, "run_all", lambda runs, workers: started.extend(runs) or [])
    monkeypatch.setattr(study, "show", lambda *given: None)
    module.main(parse(module.Settings, ["--steps", "3", "--labels", "40", "--seeds", "1", "--out", str(tmp_path),
                                        "--recipe", "consistency", "--base", "method", "mine_of_study:Soft",
                                        "--view", "strong=mine_of_study:View", "--try", "optimizer=mine_of_study:Mine",
                                        "--try", "view=strong=weak"]))
    base, optimizer, view = (job.flags for job in started)
    assert base == {"with": [], "method": "mine_of_study:Soft", "view": ["strong=mine_of_study:View"]}
    assert optimizer == {**base, "optimizer": "mine_of_study:Mine"}
    assert view == {**base, "view": ["strong=weak"]}


@pytest.mark.parametrize(("given", "net"), [((), None), (("--net", "tiny_16"), "tiny_16")])
def test_a_net_that_is_named_is_the_bases_even_where_it_is_the_usual_one(given, net, tmp_path, monkeypatch):
    module, started = recipe("techniques"), []
    monkeypatch.setattr(jobs, "run_all", lambda runs, workers: started.extend(runs) or [])
    monkeypatch.setattr(study, "show", lambda *given: None)
    module.main(parse(module.Settings, ["--steps", "3", "--labels", "40", "--seeds", "1", "--out", str(tmp_path),
                                        "--try", "swa", *given]))
    assert [job.settings.get("net") for job in started] == [net, net]
