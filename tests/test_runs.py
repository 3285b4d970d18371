"""`ssl-lab runs`: what the runs of a study are doing, from their folders alone."""

import json
import os
import time

import pytest

import ssl_lab as sl
from ssl_lab.cli import main
from ssl_lab.engine.folder import alone_in
from ssl_lab.errors import UsageError
from ssl_lab.runs import looked_at, runs


@pytest.fixture
def study(tmp_path):
    """A run that is done, one that waits, one that failed, one cut off; a cell; a folder of none."""
    for name in ("done", "planned", "failed", "cut"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "settings.yaml").write_text("steps: 100\n")
    (tmp_path / "done" / "summary.json").write_text('{"test_accuracy": 0.9, "valid_accuracy": null, "seconds": 90}')
    (tmp_path / "failed" / "log.txt").write_text("step 1\nerror: no such net\n")
    (tmp_path / "cut" / "metrics.jsonl").write_text('{"step": 25, "seconds": 30, "test_accuracy": 0.5}\n{"step": 26')
    cell = tmp_path / "margin" / "seed-0"
    cell.mkdir(parents=True)
    (cell / "settings.json").write_text("{}")
    (cell / "result.json").write_text('{"accuracy": [0.1, 0.2], "seconds": [60, 60]}')
    (tmp_path / "done" / "round-0").mkdir()
    (tmp_path / "done" / "round-0" / "config.yaml").write_text("steps: 1\n")
    (tmp_path / "empty").mkdir()
    return tmp_path


def test_each_state_is_told_apart(study, capsys):
    runs(study, json=True)
    rows = {row["run"]: row for row in json.loads(capsys.readouterr().out)}
    states = {name: (row["state"], row["share"], row["accuracy"], row["minutes"]) for name, row in rows.items()}
    assert states == {"done": ("done", 1.0, 0.9, 1.5), "planned": ("waiting", 0.0, None, None),
                      "failed": ("failed", 0.0, None, None), "cut": ("stopped", 0.25, 0.5, 0.5),
                      "margin/seed-0": ("done", 1.0, 0.2, 2.0)}
    assert rows["failed"]["reason"] == "error: no such net"
    assert all(row["minutes_to_go"] is None for row in rows.values())


def test_a_run_that_goes_on_says_since_when_and_how_long_yet(study):
    with alone_in(study / "cut"):
        row = looked_at(study / "cut", study)
    assert (row["state"], row["minutes_to_go"]) == ("running", 1.5)
    assert row["reason"].startswith("since ")
    assert time.strptime(row["reason"], "since %H:%M:%S")


def test_a_clock_that_differs_changes_only_since_when(study):
    """Locks tell what runs, and a run's own seconds how long yet: nothing is told from times of files."""
    before = looked_at(study / "cut", study)
    with alone_in(study / "cut"):
        now = looked_at(study / "cut", study)
        os.utime(study / "cut" / ".lock", (2e9, 2e9))
        assert {**looked_at(study / "cut", study), "reason": ""} == {**now, "reason": ""}
    assert looked_at(study / "cut", study) == before


def test_the_table_names_whole_runs_in_a_pipe(study, capsys):
    main(["runs", str(study)])
    out = " ".join(capsys.readouterr().out.split())
    assert ": 1 stopped, 2 done, 1 failed, 1 waiting" in out  # in the order in which they are found
    assert all(word in out for word in ("margin/seed-0", "90.00%", "error: no such net", "25%", "1 stopped"))


def test_a_trained_run_is_done(tmp_path):
    pool = sl.load("digits").split(labels=10, seed=0)
    net = sl.net("tiny_4", classes=pool.class_names, style=pool.style)
    sl.Trainer(steps=2, out=tmp_path / "run", callbacks=[]).fit(sl.Supervised(net), pool, labeled=8, unlabeled=0)
    row = looked_at(tmp_path / "run", tmp_path)
    assert (row["state"], row["share"]) == ("done", 1.0)
    assert row["accuracy"] == json.loads((tmp_path / "run" / "summary.json").read_text())["test_accuracy"]


def test_folders_without_runs(tmp_path):
    with pytest.raises(UsageError, match="there is no run in "):
        runs(tmp_path)
    with pytest.raises(UsageError, match="there is no folder "):
        runs(tmp_path / "nowhere")
