"""Settings: where they come from, which wins, and what a mistake is told."""

import signal
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from small_runs import finish, start

from ssl_lab import texts
from ssl_lab.cli import main
from ssl_lab.command_line import launch, parse
from ssl_lab.config import MaybeQuantity, Quantity, ReadingSettings, Settings
from ssl_lab.errors import Interrupted, NonFiniteLossError, UsageError
from ssl_lab.exits import exit_with_status


@dataclass
class Example(Settings):
    view: Literal["weak", "strong"] = "weak"
    threshold: Quantity = 0.95
    """Least confidence."""
    lr: MaybeQuantity = None


def read(*arguments: str) -> Example:
    return parse(Example, [*arguments, "--steps", "5"])


@pytest.fixture
def file(tmp_path):
    """Writes a YAML file; gives the flags that name it."""
    def write(text: str) -> tuple[str, str]:
        (tmp_path / "settings.yaml").write_text(text)
        return "--config", str(tmp_path / "settings.yaml")
    return write


def test_defaults_then_file_then_flags(file):
    config = file("labels: 40\nthreshold: 0.9\nseed: 3\nout: runs/x\n")
    settings = read(*config, "--threshold", "0.8", "--seed=4")
    assert (settings.view, settings.labels, settings.out) == ("weak", 40, Path("runs/x"))
    assert (settings.threshold, settings.seed) == (0.8, 4)
    assert read("--seed", "4", *config).seed == 4  # wherever --config stands
    assert read(f"--config={config[1]}").seed == 3


@pytest.mark.parametrize("given", [["--minutes", "2"], ["--minutes=2"]])
def test_a_flag_for_the_length_replaces_both(file, given):
    settings = parse(Example, [*file("steps: 7\nlabels: 3"), *given])
    assert (settings.steps, settings.minutes, settings.labels) == (None, 2.0, 3)
    other = parse(Example, [*file("minutes: 7"), "--steps", "9"])
    assert (other.steps, other.minutes) == (9, None)


@pytest.mark.parametrize(("arguments", "words"), [
    (["--steps", "1", "--minutes", "2"], "--steps 1 and --minutes 2.0 exclude each other"),
    (["--labels", "4"], "Give --steps N or --minutes M"),
    (["--lables", "4", "--steps", "1"], r"unknown flag '--lables'. Did you mean --labels"),
    (["--lables=4", "--steps", "1"], r"unknown flag '--lables'. Did you mean --labels"),
    (["--steps"], "--steps"),
    (["--steps", "many"], "--steps.*'many'"),
    (["--labels", "many", "--steps", "1"], "^--labels: 'many' is no NUMBER; "),
    (["--image-size", "big", "--steps", "1"], "^--image-size: 'big' is no N; "),
    (["--balance", "random", "--steps", "1"], r"'random'.*--balance.*'class', 'natural'"),
    (["stray", "--steps", "1"], "unknown flag 'stray'"),
    (["--threshold", "high", "--steps", "1"], r"--threshold: 'high' is no number, and no schedule such as linear"),
    (["--threshold", "None", "--steps", "1"], "--threshold: 'None' is no number"),
    (["--lr", "wave(0, 1)", "--steps", "1"], r"--lr: 'wave\(0, 1\)' is no schedule; .* one of constant, linear"),
    (["--clip", "linear(1)", "--steps", "1"], r"--clip: 'linear\(1\)' is no schedule"),
    (["--config"], "--config needs a value"),
    (["--config", "/nowhere/x.yaml"], "cannot read --config /nowhere/x.yaml: No such file"),
    (["--config", "/"], "cannot read --config /: Is a directory"),
])
def test_bad_flags_are_one_line(arguments, words):
    with pytest.raises(UsageError, match=words) as refused:
        parse(Example, arguments)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(("text", "words"), [
    ("treshold: 0.5", r"unknown setting 'treshold'. Did you mean threshold.* It stands in --config"),
    ("steps: 1\nminutes: 2", "exclude each other"),
    ("- 1\n- 2", "holds a list"),
    ("labels", "holds a str"),
    ("a: [1", "is not YAML"),
    ("labels: many", "--labels.*'many'"),
    ("labels: [1, 2]", "--labels"),
    ("seed: null", "--seed"),
    ("seed: true", "--seed"),
    ("pretrained: maybe", "pretrained: maybe in --config .*: expected true or false"),
    ("pretrained:", "pretrained: None in --config .*: expected true or false"),
    ("1: 2", "unknown setting '1'"),
])
def test_bad_files_are_one_line(file, text, words):
    with pytest.raises(UsageError, match=words) as refused:
        parse(Example, [*file(text)])
    assert "\n" not in str(refused.value)


def test_a_file_that_is_not_text(tmp_path):
    (tmp_path / "x.yaml").write_bytes(b"labels: \xff\xfe")
    with pytest.raises(UsageError, match="is not YAML"):
        parse(Example, ["--config", str(tmp_path / "x.yaml")])


def test_nothing_truth_and_odd_words_in_a_file(file):
    settings = read(*file("labels: null\nresume:\npretrained: true\ncompile: on\ndata: --odd\nvalid: 1e-1\n"))
    assert (settings.labels, settings.resume, settings.pretrained) == (None, None, True)
    assert (settings.compile, settings.data, settings.valid) == ("on", "--odd", 0.1)
    settings = read(*file("pretrained: true\nshard: false\ncompile: off"), "--no-pretrained", "--shard")
    assert (settings.pretrained, settings.shard, settings.compile) == (False, True, "off")
    assert read(*file("")) == read(*file("# nothing\n")) == read()


def printed(capsys, *arguments: str) -> str:
    with pytest.raises(SystemExit) as stopped:
        parse(Example, [*arguments, "--print-config"])
    assert stopped.value.code == 0
    return capsys.readouterr().out


def test_what_is_printed_reads_back(file, capsys):
    arguments = ("--labels", "40", "--minutes", "0.5", "--pretrained", "--compile", "on", "--out", "a b/c", "--view",
                 "strong")
    text = printed(capsys, *arguments)
    assert yaml.safe_load(text) == parse(Example, arguments).plain()
    assert parse(Example, [*file(text)]) == parse(Example, arguments)
    assert printed(capsys, *file(text)) == text
    assert yaml.safe_load(printed(capsys)) == Example().plain()  # also before a length is chosen


def test_a_quantity_is_a_number_or_a_schedule(file, capsys):
    arguments = ("--threshold", "cyclical(.8,.9,cycles=4)", "--lr", "warm_up(0.1, cosine(0.1))", "--clip=2", "--batch",
                 "linear(0.5,1)", "--steps", "5")
    settings = parse(Example, arguments)
    assert [settings.threshold(t) for t in (0, 0.125, 1)] == pytest.approx([0.8, 0.9, 0.8])
    assert (settings.clip, read("--threshold", "1").threshold, read("--lr", "None").lr) == (2.0, 1.0, None)
    text = printed(capsys, *arguments)
    content = yaml.safe_load(text)
    assert content["threshold"] == "cyclical(0.8, 0.9, cycles=4, factor=2.0)"
    assert content["lr"] == "warm_up(0.1, cosine(0.1, 0.0, cycles=0.5))"
    assert parse(Example, [*file(text)]) == settings
    assert printed(capsys, *file(text)) == text
    assert read(*file(text), "--threshold", "0.7").threshold == 0.7


@given(st.fixed_dictionaries({}, optional={
    "data": st.text(st.characters(codec="ascii", categories=["L", "N", "P"]), min_size=1).filter(
        lambda text: text != "None" and not texts.names_module(text)),  # which a file may not say
    "labels": st.none() | st.integers(0, 10**9), "valid": st.none() | st.floats(0, 1e6), "seed": st.integers(0, 2**62),
    "threshold": st.floats(allow_nan=False), "pretrained": st.booleans(), "compile": st.sampled_from(["on", "off"]),
    "steps": st.integers(1, 9)}))
def test_any_settings_survive_the_file(tmp_path_factory, settings):
    file = tmp_path_factory.getbasetemp() / "any.yaml"
    expected = Example(**{"steps": 5} | settings)
    file.write_text(yaml.safe_dump(expected.plain()))
    assert parse(Example, ["--config", str(file)]) == expected


# Exit status


@pytest.mark.parametrize(("error", "status", "words"), [
    (UsageError("give it"), 2, "error: give it\n"),
    (Interrupted("stopped at step 3"), 130, "stopped at step 3\n"),
    (KeyboardInterrupt(), 130, "interrupted\n"),
    (NonFiniteLossError("nan at step 3"), 1, "error: nan at step 3\n"),
    (OSError(5, "Input/output error"), 1, "error: [Errno 5] Input/output error\n"),
])
def test_what_goes_wrong_is_one_line_and_a_status(monkeypatch, capsys, error, status, words):
    handler = signal.getsignal(signal.SIGTERM)

    def fail(settings):
        raise error

    monkeypatch.setattr(sys, "argv", ["recipe", "--steps", "1"])
    with pytest.raises(SystemExit) as stopped:
        launch(fail, Example)
    signal.signal(signal.SIGTERM, handler)
    assert stopped.value.code == status
    assert capsys.readouterr() == ("", words)


def test_a_bug_keeps_its_traceback(monkeypatch):
    handler = signal.getsignal(signal.SIGTERM)
    with pytest.raises(ZeroDivisionError):
        exit_with_status(lambda: 1 / 0)
    signal.signal(signal.SIGTERM, handler)


def test_sigterm_before_training_is_an_interrupt():
    script = ("import os, signal; from ssl_lab.exits import exit_with_status;"
              "exit_with_status(lambda: os.kill(os.getpid(), signal.SIGTERM))")
    assert finish(start("-c", script)) == (130, "", "interrupted\n")


@dataclass
class WithArguments(Settings):
    arguments: dict[str, float] = field(default_factory=dict)


def test_a_dictionary_goes_through_yaml_and_a_flag_replaces_the_whole_of_it(tmp_path):
    file = tmp_path / "config.yaml"
    file.write_text("steps: 3\narguments: {threshold: 0.9, weight: -2}\nseed: 5\n")
    settings = parse(WithArguments, ["--config", str(file)])
    assert settings.arguments == {"threshold": 0.9, "weight": -2.0}
    assert settings.seed == 5
    assert parse(WithArguments, ["--config", str(file), "--arguments", "weight", "1"]).arguments == {"weight": 1.0}
    file.write_text("steps: 3\narguments: {}\n")
    assert parse(WithArguments, ["--config", str(file)]).arguments == {}


@pytest.mark.parametrize("given", [("--weights", "runs/a/model.safetensors"), ("--weights", "runs/a"),
                                   ("--out", "runs/latest", "--weights", "runs/latest/model.safetensors")])
def test_a_run_does_not_begin_from_what_makes_way_for_it(given):
    with pytest.raises(UsageError, match=r"lies in --out runs/\w+, where the new run is written: name another --out"):
        parse(Settings, ["--steps", "1", "--out", "runs/a", *given])
    assert parse(Settings, ["--steps", "1", "--out", "runs/b", "--weights", "runs/a/model.safetensors"]).steps == 1


READ = [f"--{each}" for each in (
    "data-dir=here", "image-size=8", "path-column=p", "label-column=l", "split-column=s", "class-level=2", "resize=pad",
    "value-range=-1-1", "background=black", "flip=off", "remote-gb=3.5")]


@pytest.mark.parametrize("command", ["train", "advise", "audit", "label", "recipe"])
def test_every_command_that_takes_images_reads_them_by_the_same_flags(command, monkeypatch, tmp_path):
    """A way of reading has one place: ReadingSettings. Each of its flags reaches `load`, from each command."""
    modules = {"train": "train", "advise": "advise", "audit": "auditing.command", "label": "label.command"}
    given = {}
    monkeypatch.chdir(tmp_path)

    def load(data, **reading):
        given.update(reading)
        raise KeyboardInterrupt

    if command == "recipe":
        with pytest.raises(KeyboardInterrupt):
            load("x", **parse(Settings, ["--steps", "5", *READ]).reading())
    else:
        monkeypatch.setattr(f"ssl_lab.{modules[command]}.load", load)
        with pytest.raises(SystemExit):
            main([command, "x", *READ])
    named = {flag[2:].replace("-", "_"): value for flag, _, value in (each.partition("=") for each in READ)}
    assert named.keys() == vars(ReadingSettings()).keys() == given.keys()
    assert {name: str(value) for name, value in given.items()} == named | {"flip": "False"}
    assert ReadingSettings().said() == {}
