"""A method of one's own, from outside of the package, by its path; and methods with arguments."""

import dataclasses
import json
import re
import sys
from functools import partial
from types import SimpleNamespace
from typing import Literal, get_origin, get_type_hints

import pytest
import yaml
from forked import Forked, forked
from small_runs import ROOT, digits, finish, flat_net, rows, tiny_net
from test_comparison import started_jobs
from test_recipes import recipe

import ssl_lab as sl
from ssl_lab import build, methods, workers
from ssl_lab.command_line import parse
from ssl_lab.comparison import Runs
from ssl_lab.engine.jobs import Job, run_all
from ssl_lab.errors import UsageError
from ssl_lab.methods import FixMatch
from ssl_lab.nets.start import learned_classes
from ssl_lab.views import Eval, Strong, Weak
from ssl_lab.workers import Here

TINY = ("--labels", "40", "--net", "tiny_4", "--device", "cpu", "--precision", "fp32", "--steps", "2")
GUIDE = (ROOT / ".github/CONTRIBUTING.md").read_text()
# The example for contributors, and what else people write: arguments with and without types, **others, no average.
OWN = """
import ssl_lab as sl
{example}

class Sharper(MinimumEntropy):
    name = "sharper"

    def __init__(self, net, power: float = 1.0, view: sl.views.ViewFactory = sl.Weak, word="no", **others):
        super().__init__(net, **others)
        self.power, self.word, self.view = power, word, view

class Bare(sl.Supervised):
    name = "bare"

    def __init__(self, net):
        super().__init__(net)

class Teaching(sl.KD):
    name = "teaching"

class Features(sl.SimCLR):
    name, family = "my_features", "mine"

class Needs(MinimumEntropy):
    def __init__(self, net, other):
        super().__init__(net)

class Nameless(sl.Method):
    pass

def plain(style, size=1):
    return sl.Eval(style)
"""


@pytest.fixture
def here(tmp_path, monkeypatch):
    """A folder with a package of methods, in which the person is."""
    block = next(block for block in re.findall(r"```python\n(.*?)```", GUIDE, flags=re.DOTALL)
                 if "class MinimumEntropy" in block)
    (tmp_path / "mine").mkdir()
    unchecked = block.replace("check_method(", "(lambda method: 0)(")
    (tmp_path / "mine" / "soft.py").write_text(OWN.format(example=unchecked))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    for name in ("mine", "mine.soft"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    return tmp_path


def run(name, out, *arguments):
    module = recipe(name)
    module.main(parse(module.Settings, [*TINY, "--out", str(out), *map(str, arguments)]))
    return json.loads((out / "summary.json").read_text())


@pytest.mark.parametrize(("name", "method", "called", "arguments"), [
    ("consistency", "mine.soft:MinimumEntropy", "minimum_entropy", ("--unlabeled", 8)),
    ("consistency", "mine.soft:Sharper(power=2, ema=0.5)", "sharper", ("--unlabeled", 8, "--arguments", "word", "yes")),
    ("consistency", "mine.soft:Bare", "bare", ()),
    ("distill", "mine.soft:Teaching(temperature=2)", "teaching", ("--teacher", "supervised", "--teacher-steps", 1)),
    ("distill", "kd", "kd", ("--teacher", "mine.soft:Sharper(power=3)", "--teacher-steps", 1)),
])
def test_a_method_of_ones_own_trains(here, name, method, called, arguments):
    out = here / "run"
    assert run(name, out, "--method", method, *arguments)["method"] == called
    written = yaml.safe_load((out / "config.yaml").read_text())
    assert written["method"] == method
    again = here / "again"  # a file of settings imports nothing; with the method given beside it, it repeats the run
    module = recipe(name)
    if ":" in method:
        with pytest.raises(UsageError, match=r"method: 'mine.* in --config .* would run a program or import a module"):
            parse(module.Settings, ["--config", str(out / "config.yaml")])
    flags = [f"--{key}={written[key]}" for key in ("method", "teacher") if key in written]
    module.main(parse(module.Settings, ["--config", str(out / "config.yaml"), *flags, "--out", str(again)]))
    assert rows(again) == rows(out)


def test_it_pretrains_and_is_fine_tuned_from_by_another(here, capsys):
    own = ("--method", "mine.soft:Features(temperature=0.2)", "--unlabeled", 16)
    assert run("pretrain", here / "pretrained", *own)["method"] == "my_features"
    assert not learned_classes(here / "pretrained")
    for number, method in enumerate(("mine.soft:Bare", "mine.soft:MinimumEntropy", "fixmatch(threshold=0)")):
        out = here / f"finetuned-{number}"
        run("finetune", out, "--from", here / "pretrained", "--method", method, "--unlabeled", 8)
        config = yaml.safe_load((out / "config.yaml").read_text())
        assert (config["statistics"], config["lr"]) == (("frozen", 0.01) if number == 0 else ("batch", 0.03))
    assert rows(out)[-1]["mask_rate"] == 1.0
    with pytest.raises(UsageError, match=r"mine.soft:Features trains no classifier"):
        run("finetune", here / "x", "--from", here / "pretrained", "--method", "mine.soft:Features")
    with pytest.raises(UsageError, match=r"mine.soft:Bare does not pretrain"):
        run("pretrain", here / "x", "--method", "mine.soft:Bare")


def test_a_comparison_shows_methods_by_their_texts(here, monkeypatch):
    """And gives them to its runs, which are processes, on their command lines."""
    named = ["fixmatch(threshold=0.5)", "fixmatch", "mine.soft:Sharper(power=2)"]
    shared = ("--net", "tiny_4", "--labels", 20, "--seeds", 1, "--out", here / "runs")
    started_jobs(monkeypatch, *shared, "--methods", "fixmatch( threshold = .50 ), fixmatch ,mine.soft:Sharper(power=2),"
                                                    "fixmatch")
    assert sorted(path.name for path in (here / "runs").iterdir() if path.is_dir()) == [
        "fixmatch,threshold=0.5-0", "fixmatch-0", "mine.soft.Sharper,power=2-0"]
    written = yaml.safe_load((here / "runs" / "mine.soft.Sharper,power=2-0" / "settings.yaml").read_text())
    assert written["method"] == named[2]
    module = recipe("compare")
    shown = []
    monkeypatch.setattr(sl.engine.jobs, "run_all", lambda runs, workers: [])
    monkeypatch.setattr(sl.engine.jobs, "best", lambda runs, key: runs[0])
    monkeypatch.setattr(sl.comparison, "show", lambda pool, baseline, runs, *rest, **_: shown.extend(runs))
    module.main(parse(module.Settings, ["--steps", "3", *map(str, shared), "--methods", ",".join(named)]))
    assert [runs.name for runs in shown] == named
    assert isinstance(shown[0], Runs)
    assert [dict(runs.jobs[0].flags) for runs in shown] == [
        {"method": name, "with": (), "optimizer": ()} for name in named]


def test_a_run_of_a_comparison_finds_the_module_in_the_folder_that_it_was_started_in(here, monkeypatch):
    monkeypatch.setattr(workers, "subprocess", SimpleNamespace(Popen=Forked))
    flags = {"method": "mine.soft:Sharper(power=2)"}
    settings = {"steps": 1, "labels": 20, "labeled": 8, "unlabeled": 8, "net": "tiny_4",
                "device": "cpu", "precision": "fp32"}
    job = Job(ROOT / "recipes" / "consistency.py", settings | flags, here / "run", flags)
    assert run_all([job], Here(1)) == []
    assert job.summary["method"] == "sharper"
    status, _, err = finish(forked(ROOT / "recipes" / "consistency.py", "--steps", 1, "--method", "mine.soft:Sharper"))
    assert status == 2  # from another folder
    assert err.startswith("error: cannot load the method 'mine.soft:Sharper': No module named 'mine'")


@pytest.mark.parametrize(("text", "words"), [
    ("mine.soft:Sharpr", "has no attribute 'Sharpr'; it has MinimumEntropy, Sharper, Bare"),
    ("mine.soft.Sharper", "unknown method 'mine.soft.Sharper'.*your own is package.module:Class"),
    ("mine.soft:sl", "mine.soft:sl is not a subclass of ssl_lab.methods.base.Method"),
    ("mine.soft:Nameless", "mine.soft:Nameless needs a name and views"),
    ("mine.soft:Needs", "mine.soft:Needs needs other, as in mine.soft:Needs[(]other=...[)]"),
    ("mine.soft:MinimumEntropy(2, 3)", "has 2 arguments without a name; mine.soft:MinimumEntropy takes ema"),
    ("mine.soft:Sharper(power='high')", "mine.soft:Sharper: power is 'high'; expected a number"),
    ("mine.soft:Sharper(view=stron)", "unknown view 'stron'. Did you mean strong"),
    ("mine.soft:Sharper(view=strong(opps=3))", "got an unexpected keyword argument 'opps'; its arguments are"),
    ("fixmatch(treshold=0.7)", "fixmatch has no argument 'treshold'; it has threshold, weight, ema. Did you mean thr"),
    ("fixmatch(0.7, threshold=0.7)", "threshold is given twice"),
    ("fixmatch(threshold=abc)", "fixmatch: threshold is 'abc'; expected a number, or a schedule"),
    ("fixmatch(threshold=linear(0))", "is no schedule; expected e.g. linear"),
    ("fixmatch(net=1)", "fixmatch has no argument 'net'"),
    ("fixmtch(threshold=0.7)", "unknown method 'fixmtch'. Did you mean fixmatch"),
    ("fixmatch(threshold=0.7", "describes no method; expected a name, with arguments as in fixmatch[(]threshold=0.7"),
])
def test_texts_that_describe_no_method_say_why(here, text, words):
    pool = digits()
    with pytest.raises(UsageError, match=words) as refused:
        build.method(text, tiny_net(pool), pool, {})
    assert "\n" not in str(refused.value)


def built(text, arguments=None, defaults=None):
    pool = digits()
    student = flat_net() if "hiermatch" not in text else tiny_net(pool)
    return build.method(text, student, pool, arguments or {}, defaults)


def test_arguments_in_a_text_have_the_types_of_the_method(here):
    assert built("fixmatch(0.7)").threshold == 0.7
    ramp = built("fixmatch(threshold=linear(0.5, 0.9))").threshold
    assert (ramp(0.0), ramp(1.0)) == (0.5, 0.9)
    assert built("uda(tsa=log)").tsa == built("uda(tsa='log')").tsa == "log"
    assert built("pi_model(stop_gradient=True)").stop_gradient is True
    assert built("supervised(view=eval)").views.labeled["view"] is Eval
    assert built("supervised", {"view": "strong"}).views.labeled["view"] is Strong
    view = built("supervised(view=strong(ops=3))").views.labeled["view"]
    assert isinstance(view, partial)
    assert (view.func, view.keywords) == (Strong, {"ops": 3})
    inner = built("hiermatch(parents=[[0,0,0,0,0,1,1,1,1,1]], base=fixmatch(threshold=0.3))").bases[0]
    assert (type(inner), inner.threshold) == (FixMatch, 0.3)
    own = built("mine.soft:Sharper(power=3, word=some, view=mine.soft:plain(size=2))")
    assert (own.power, own.word) == (3, "some")
    assert isinstance(own.view(digits().style), Eval)


def test_the_text_wins_over_defaults_and_contradicts_no_argument(here):
    assert built("fixmatch(threshold=0.7)", defaults={"threshold": 0.9, "weight": 2.0}).weight == 2.0
    assert built("fixmatch(threshold=0.7)", defaults={"threshold": 0.9}).threshold == 0.7
    assert built("fixmatch(threshold=0.7)", {"threshold": 0.7}).threshold == 0.7
    with pytest.raises(UsageError, match=r"fixmatch\(threshold=0.7\): threshold is also given as 0.9; leave out one"):
        built("fixmatch(threshold=0.7)", {"threshold": 0.9})
    assert built("mine.soft:Bare", defaults={"ema": 0.5}).ema.decay == 0.999  # it has no such argument
    assert built("mine.soft:Sharper", {"ema": 0.5}).ema.decay == 0.5


@pytest.mark.parametrize("name", sorted(path.stem for path in (ROOT / "recipes").glob("*.py")))
def test_every_setting_that_takes_a_method_is_for_the_command_line_alone(name):
    """Where it can name a module, see `may_run`; a trainer of active learning is one of a few."""
    open_to_files = {"trainer", "trainers"}
    for field in dataclasses.fields(recipe(name).Settings):
        if isinstance(field.default, str) and field.default and field.name not in open_to_files:
            named = all(map(methods.is_described, field.default.split(",")))
            assert not named or "runs" in field.metadata or get_origin(get_type_hints(
                recipe(name).Settings)[field.name]) is Literal, field.name


def test_a_file_of_settings_cannot_import_through_arguments(here):
    with pytest.raises(UsageError, match=r"unknown view 'mine.soft:sl'"):
        built("supervised", {"view": "mine.soft:sl"})
    assert built("supervised", {"view": "weak"}).views.labeled["view"] is Weak
    assert "mine.soft" not in sys.modules
