"""The `ssl-lab` command: its words, and what it says to bad usage."""

import importlib
import sys
import tomllib
from importlib import metadata

import pytest
import torch
import yaml
from small_runs import ROOT

import ssl_lab as sl
from ssl_lab.cli import WORDS, main
from ssl_lab.command_line import run_command
from ssl_lab.errors import UsageError
from ssl_lab.versions import versions

HERE = [word for words in WORDS.values() for word in words]
FORMS = ROOT / ".github/ISSUE_TEMPLATE"


@pytest.mark.parametrize("word", sorted({*HERE} - {"list", "bench", "cache", "env"}))
def test_each_word_is_a_function_too(word):
    assert callable(getattr(sl, word.replace("-", "_")))


def test_a_word_in_code_does_what_is_typed(tmp_path):
    assert sl.train is importlib.import_module("ssl_lab.train")  # whose functions others use
    for call, match in [(lambda: sl.train("digits", minutes=0), "minutes=0"), (lambda: sl.fetch(()), "fetch what"),
                        (lambda: sl.predict(tmp_path, ("a.png",)), "is no folder of a finished run"),
                        (lambda: sl.labels(tmp_path), "holds no labels"),
                        (lambda: sl.advise("digits", minutes=0), "must be positive"),
                        (lambda: sl.query("margin", 3), "give the arrays of the pool"),
                        (lambda: sl.report(tmp_path), "no"), (lambda: sl.export(tmp_path, "onnx"), "no")]:
        with pytest.raises(sl.UsageError, match=match):
            call()


def test_env_says_versions_device_and_precision(capsys):
    main(["env"])
    lines = dict(line.split(maxsplit=1) for line in capsys.readouterr().out.splitlines())
    assert lines["torch"] == torch.__version__.partition("+")[0]
    assert lines["threads"] == str(torch.get_num_threads())
    assert lines["precision"].startswith(("fp32 (", "bf16 ("))
    assert "TFLOP/s" in lines["matrix-product"]


def test_versions_where_nothing_is_installed(monkeypatch):
    """As on a machine that finds the checkout by PYTHONPATH alone."""
    def missing(name):
        raise metadata.PackageNotFoundError(name)

    monkeypatch.setattr(metadata, "version", missing)
    assert versions("torch") == {"ssl_lab": sl.__version__, "torch": "not installed"}


@pytest.mark.parametrize(("arguments", "says"), [
    (["lsit"], "unknown word 'lsit'. Did you mean list?"), (["list", "nonsense"], "nonsense"),
    (["list", "--jason"], "--jason"),
    (["quickstart", "--steps", "many"], "many"), (["quickstart", "--step-count", "5"], "--step-count")])
def test_bad_usage_is_one_line_and_status_2(arguments, says, capsys):
    with pytest.raises(SystemExit) as stop:
        main(arguments)
    assert stop.value.code == 2
    out, line = capsys.readouterr()
    assert line.startswith("error: ")
    assert line.count("\n") == 1
    assert says in line
    assert "None" not in line
    assert out == ""


def test_version(capsys):
    main(["--version"])
    assert capsys.readouterr().out == f"ssl_lab {sl.__version__}\n"
    changes = (ROOT / "CHANGELOG.md").read_text()
    assert f"\n## [{sl.__version__}]" in changes
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    assert project["tool"]["setuptools"]["dynamic"]["version"] == {"attr": "ssl_lab.versions.VERSION"}


@pytest.mark.parametrize("form", sorted(path.name for path in FORMS.glob("[!c]*.yml")))
def test_forms_ask_for_what_is_needed(form):
    fields = yaml.safe_load((FORMS / form).read_text())["body"]
    assert len({field["id"] for field in fields}) == len(fields)
    assert all(field["attributes"]["label"] for field in fields)
    required = {field["id"]: field["attributes"]["label"] for field in fields
                if field.get("validations", {}).get("required")}
    assert required.get("env") == "`ssl-lab env`" if form == "bug.yml" else "situation" in required


def test_a_command_speaks_to_stderr_while_it_runs(capsys):
    def greet(name: str) -> None:
        print(f"hello {name}", file=sys.stderr)

    run_command({"greet": greet, "other": greet}, "program", ["greet", "--name", "you"])
    assert capsys.readouterr().err == "hello you\n"


def test_what_a_command_raises_comes_through():
    def fail() -> None:
        raise UsageError("no such thing")

    with pytest.raises(UsageError, match="no such thing"):
        run_command({"fail": fail, "other": fail}, "program", ["fail"])
