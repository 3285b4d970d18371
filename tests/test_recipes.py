"""The recipes as a person runs them, at a tiny size."""

import ast
import importlib.util
import io
import json
import signal
import sys
import time
import tokenize
from dataclasses import fields
from pathlib import Path

import pytest
import yaml
from forked import forked
from small_runs import ROOT, assert_same_run, finish, rows, start

import ssl_lab as sl
from ssl_lab.command_line import parse
from ssl_lab.errors import UsageError
from ssl_lab.methods import METHODS

RECIPES = sorted(path.stem for path in (ROOT / "recipes").glob("*.py"))
# Tested in files of their own.
ELSEWHERE = {"active", "active_benchmark", "analyze", "compare", "compress", "ensemble", "evaluate", "features",
             "finetune", "pretrain", "rapid", "robustness", "techniques", "workflow"}
UNTRAINED = {"analyze", "evaluate", "features", "robustness"}
SMALL = {"distill": ("--teacher-net", "tiny_4", "--teacher-steps", 20, "--unlabeled", 16)}  # what else is small of some
TINY = ("--net", "tiny_8", "--labels", "40", "--labeled", "8", "--device", "cpu", "--precision", "fp32")


def recipe(name):
    """The module of recipes/<name>.py."""
    spec = importlib.util.spec_from_file_location(f"recipe_{name}", ROOT / "recipes" / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def run(name, *arguments):
    """What the recipe does with these arguments, in this process."""
    module = recipe(name)
    module.main(parse(module.Settings, [*TINY, *map(str, arguments)]))


def in_a_process(name, *arguments, **environment):
    return start(ROOT / "recipes" / f"{name}.py", *TINY, *arguments, **environment)


@pytest.mark.parametrize("name", sorted({*RECIPES} - ELSEWHERE))
def test_a_recipe_runs_and_its_config_repeats_it(tmp_path, capsys, name):
    first, again = tmp_path / "first", tmp_path / "again"
    run(name, "--minutes", "0.01", "--valid", "50", "--out", first, *SMALL.get(name, ()))
    out, err = capsys.readouterr()
    method = getattr(recipe(name).Settings(), "method", name)
    assert out.startswith(f"{method} on digits with 40 labels: valid ")
    assert str(first) in out
    assert "valid " in err  # a line per evaluation where there is no terminal
    config = yaml.safe_load((first / "config.yaml").read_text())
    module = recipe(name)
    assert config.keys() == module.Settings().plain().keys()
    assert config["steps"] > 0
    module.main(parse(module.Settings, ["--config", str(first / "config.yaml"), "--out", str(again)]))
    assert_same_run(first, again)
    written = yaml.safe_load((again / "config.yaml").read_text())
    assert written == config | {"out": str(again)}


def lines_of_code(text):
    """Those that hold more than a docstring or a comment."""
    texts = [node.value for node in ast.walk(ast.parse(text)) if isinstance(node, ast.Expr)
             and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str)]
    said = {line for node in texts for line in range(node.lineno, node.end_lineno + 1)}
    kinds = {tokenize.COMMENT, tokenize.NL, tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT, tokenize.ENDMARKER}
    tokens = [each for each in tokenize.generate_tokens(io.StringIO(text).readline) if each.type not in kinds]
    return {line for each in tokens for line in range(each.start[0], each.end[0] + 1)} - said


@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_is_short_and_shows_its_command(name):
    text = (ROOT / "recipes" / f"{name}.py").read_text()
    docstring = recipe(name).__doc__
    assert len(lines_of_code(text)) < 60  # what it does lies in the package
    assert len(text.splitlines()) - len(docstring.splitlines()) <= 80  # the docstring holds what it gave, too
    assert f"python recipes/{name}.py --" in docstring


@pytest.mark.parametrize("name", [name for name in RECIPES if name not in UNTRAINED])
def test_what_may_be_a_schedule_takes_its_text(name):
    kinds, text = recipe(name).Settings, "linear(0.5, 1.0, until=0.3)"
    names = [each.name for each in fields(kinds) if each.name in (
        "lr", "weight_decay", "ema", "threshold", "weight", "clip", "batch")]
    settings = parse(kinds, ["--steps=1", *(f"--{each.replace('_', '-')}={text}" for each in names)])
    assert {each: settings.plain()[each] for each in names} == dict.fromkeys(names, text)
    assert all(getattr(settings, each)(0.15) == pytest.approx(0.75) for each in names)


def test_constant_schedules_are_the_numbers(tmp_path, capsys):
    flags = ("--steps", 2, "--unlabeled", 8)
    run("fixmatch", *flags, "--threshold", 0.3, "--out", tmp_path / "numbers")
    texts = ("--lr", "cosine_7_16(0.1)", "--weight-decay", "constant(0.0005)", "--threshold", "constant(0.3)",
             "--weight", "constant(1)", "--ema", "constant(0.999)", "--batch", "constant(1)")
    run("fixmatch", *flags, *texts, "--out", tmp_path / "schedules")
    assert_same_run(tmp_path / "numbers", tmp_path / "schedules")
    respelled = [str(text).replace("(", "( ") for text in texts]
    run("fixmatch", *flags, *respelled, "--out", tmp_path / "schedules", "--resume", "auto")
    with pytest.raises(UsageError, match=r"other settings \(threshold: 'constant\(0.3\)' -> 0.3"):
        run("fixmatch", *flags, *texts, "--threshold", 0.3, "--out", tmp_path / "schedules", "--resume", "auto")


@pytest.mark.parametrize("method", [name for name, method in METHODS.items()
                                    if method.family == "consistency" and method.recipe != "recipes/openset.py"])
def test_every_consistency_method_runs(tmp_path, method):
    run("consistency", "--method", method, "--steps", 2, "--unlabeled", 16, "--out", tmp_path)
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert (summary["method"], summary["steps"]) == (method, 2)


def test_arguments_of_a_method_reach_it(tmp_path):
    run("consistency", "--method", "fixmatch", "--steps", 2, "--arguments", "threshold", 0, "--out", tmp_path)
    assert [row["mask_rate"] for row in rows(tmp_path)] == [1.0, 1.0]
    with pytest.raises(UsageError, match="fixmatch has no argument 'tau'; it has threshold, weight, ema"):
        run("consistency", "--method", "fixmatch", "--steps", 2, "--arguments", "tau", 0, "--out", tmp_path)


def test_settings_reach_the_run(tmp_path):
    run("fixmatch", "--steps", 2, "--threshold", 0.0, "--unlabeled", 24, "--seed", 5, "--lr", 0.5, "--image-size", 16,
        "--out", tmp_path)
    metrics = rows(tmp_path)
    assert [row["mask_rate"] for row in metrics] == [1.0, 1.0]
    assert metrics[0]["lr"] == 0.5
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert (summary["seed"], summary["steps"], summary["labels"]) == (5, 2, 40)


def test_a_run_starts_from_the_weights_of_another(tmp_path):
    run("supervised", "--steps", 60, "--lr", 0.1, "--ema", 0.5, "--bn-momentum", 0.1, "--out", tmp_path / "a")
    run("supervised", "--steps", 1, "--lr", 0.0, "--out", tmp_path / "b",
        "--weights", tmp_path / "a" / "model.safetensors")
    last, first = rows(tmp_path / "a")[-1], rows(tmp_path / "b")[0]
    assert first["test_accuracy"] == pytest.approx(last["test_accuracy"], abs=0.1)
    assert first["test_accuracy"] > 0.3


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_saves_and_the_run_goes_on(tmp_path, number):
    arguments = ("--steps", "150", "--out", tmp_path / "cut", "--resume", "auto")
    process = forked(ROOT / "recipes" / "supervised.py", *TINY, *arguments)
    metrics, end = tmp_path / "cut" / "metrics.jsonl", time.monotonic() + 60
    while process.poll() is None and time.monotonic() < end and not (metrics.exists() and metrics.read_text()):
        time.sleep(0.01)
    process.send_signal(number)
    status, out, err = finish(process)
    assert (status, out) == (130, ""), err
    last = err.splitlines()[-1]
    assert last.startswith("stopped at step ")
    assert last.endswith(f"{tmp_path / 'cut' / 'checkpoint.pt'} is saved, go on with --resume auto")
    assert not (tmp_path / "cut" / "summary.json").exists()
    if number == signal.SIGINT:
        run("supervised", *arguments)
        run("supervised", "--steps", "150", "--out", tmp_path / "whole")
        assert_same_run(tmp_path / "cut", tmp_path / "whole")


def test_changed_settings_are_named(tmp_path):
    run("supervised", "--steps", 2, "--out", tmp_path)
    with pytest.raises(UsageError, match=r"started with other settings \(seed: 0 -> 1, lr: 0.03 -> 0.1\)"):
        run("supervised", "--steps", 2, "--out", tmp_path, "--resume", "auto", "--lr", 0.1, "--seed", 1)


@pytest.mark.parametrize(("arguments", "words"), [
    (("--data", "digit"), r"unknown data set 'digit'. Did you mean digits\?"),
    (("--data", "no/such/folder"), "there is no file or folder no/such/folder"),
    (("--net", "tiny8"), r"unknown net 'tiny8'. Did you mean tiny_"),
    (("--net", "timm/resnet19"), "unknown .*resnet19"),
    (("--data", "mnist"), r"mnist is not in .*. Fetch it: ssl-lab fetch mnist"),
    (("--labels", "9"), "labels=9 is fewer than the 10 classes"),
    (("--labels", "1190"), "labels=1190"),
    (("--labels", "99999"), "labels=99999: expected 1 to 1198"),
    (("--valid", "1199"), "valid"),
    (("--device", "cuda:77"), "device 'cuda:77' cannot be used here"),
    (("--resume", "no/such/run"), "no checkpoint at no/such/run/checkpoint.pt"),
    (("--weights", "no/such/file"), "no/such/file"),
])
def test_bad_input_says_what_to_do(tmp_path, monkeypatch, arguments, words):
    monkeypatch.setenv("SSL_LAB_DATA", str(tmp_path / "nothing"))
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UsageError, match=words) as refused:
        run("supervised", "--steps", 1, "--out", tmp_path / "out", *arguments)
    assert "\n" not in str(refused.value)
    assert not (tmp_path / "out" / "checkpoint.pt").exists()


def test_a_mistake_exits_with_2_and_one_line(tmp_path):
    status, out, err = finish(in_a_process("fixmatch", "--data", "mnist", "--steps", "1", SSL_LAB_DATA=str(tmp_path)))
    assert (status, out) == (2, "")
    assert err == f"error: mnist is not in {tmp_path}. Fetch it: ssl-lab fetch mnist\n"


def test_the_sketch_of_the_package(tmp_path):
    pool = sl.load("digits").split(labels=10)
    method = sl.FixMatch(sl.net("tiny_8", classes=pool.classes, style=pool.style))
    result = sl.Trainer(steps=2, out=tmp_path, callbacks=[]).fit(method, pool, labeled=4, unlabeled=8)
    assert 0 <= result.test_accuracy <= 1
    assert isinstance(result.out, Path)
