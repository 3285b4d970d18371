"""Trackers: what TensorBoard, MLflow and Weights & Biases are told of a run, by their own files and stores."""

import json
import math
import signal
import struct
import time
from importlib.util import find_spec

import pytest
import yaml
from small_runs import assert_same_run, rows, signal_at, train
from test_recipes import run as run_recipe

from ssl_lab.engine import Callback, trackers
from ssl_lab.engine.trackers import TRACKERS, Tracker
from ssl_lab.errors import Interrupted, NonFiniteLossError, UsageError

CONFIG = {"net": "tiny_8", "arguments": {"threshold": 0.7}, "valid": None}


class Seen:
    """What a tracker shows of the runs in its store: settings, metrics by key as {step: value}, summary, states."""

    def __init__(self, settings, metrics, summary, states):
        self.settings, self.metrics, self.summary, self.states = settings, metrics, summary, states


def tensorboard(folder):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(folder / "run" / "tensorboard"), purge_orphaned_data=True)
    events.Reload()
    metrics = {key: [(event.step, event.value) for event in events.Scalars(key)] for key in events.Tags()["scalars"]}
    texts = {key: events.Tensors(f"{key}/text_summary") for key in ("settings", "summary")
             if f"{key}/text_summary" in events.Tags()["tensors"]}
    tables = {key: dict(line.strip("| ").split(" | ") for line in found[-1].tensor_proto.string_val[0].decode()
                        .splitlines()[2:]) for key, found in texts.items()}
    assert all(len(found) == 1 for found in texts.values())
    return Seen(tables["settings"], metrics, tables.get("summary", {}), None)


def mlflow(folder):
    client = __import__("mlflow").MlflowClient()
    experiment = client.get_experiment_by_name("ssl_lab")
    (run,) = client.search_runs([experiment.experiment_id])
    history = {key: [(point.step, point.value) for point in client.get_metric_history(run.info.run_id, key)]
               for key in run.data.metrics}
    summary = {key.removeprefix("summary/"): found[-1][1] for key, found in history.items() if "summary/" in key}
    assert run.info.run_name == str(folder / "run")
    return Seen(run.data.params, {key: found for key, found in history.items() if "summary/" not in key},
                summary | run.data.tags, run.info.status)


def records(file):
    """Of a .wandb file: a LevelDB log, blocks of 32 KiB of parts of records, after a head of 7 bytes."""
    data, place, whole = file.read_bytes(), 7, b""
    while place + 7 <= len(data):
        left = 32768 - place % 32768
        if left < 7:  # too little for the head of a part
            place += left
            continue
        _, length, kind = struct.unpack("<IHB", data[place : place + 7])
        whole += data[place + 7 : place + 7 + length]
        place += 7 + length
        if kind in (1, 4):  # whole, or the last part
            yield whole
            whole = b""


def wandb(folder):
    """From the files that `wandb sync` would send: of each process of a run one."""
    from wandb.proto.wandb_internal_pb2 import Record

    def named(items):
        return {item.key or "/".join(item.nested_key): json.loads(item.value_json) for item in items}

    def read(file):
        end = time.monotonic() + 30
        while time.monotonic() < end:  # a process of its own writes it
            found = [Record.FromString(data) for data in records(file)]
            if any(record.HasField("exit") for record in found):
                return found
            time.sleep(0.05)
        raise TimeoutError(f"{file} does not end")

    settings, metrics, summary, ids, states = {}, {}, {}, set(), []
    for file in sorted((folder / "run" / "wandb").glob("offline-run-*/run-*.wandb")):
        for record in read(file):
            if record.HasField("run"):
                ids.add(record.run.run_id)
                assert (record.run.project, record.run.display_name) == ("ssl_lab", str(folder / "run"))
            settings |= named([*record.run.config.update, *record.config.update])
            row = named(record.history.item)
            for key, value in row.items():
                metrics.setdefault(key, []).append((row["_step"], value))
            summary |= named(record.summary.update)
            states += [record.exit.exit_code] * record.HasField("exit")
    assert len(ids) == 1
    return Seen(settings, metrics, summary, states)


STORES = {"tensorboard": tensorboard, "mlflow": mlflow, "wandb": wandb}
STATES = {"tensorboard": (None, None, None), "mlflow": ("FINISHED", "KILLED", "FAILED"), "wandb": ([0], [1], [1])}


@pytest.fixture
def store(tmp_path, monkeypatch):
    """Trackers write into this folder; nothing leaves the machine."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/mlflow.db")
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    for name in ("MLFLOW_EXPERIMENT_NAME", "MLFLOW_EXPERIMENT_ID", "WANDB_PROJECT"):
        monkeypatch.delenv(name, raising=False)
    return tmp_path


each = pytest.mark.parametrize("name", [pytest.param(name, marks=pytest.mark.skipif(
    not find_spec(name), reason=f"{name} is not installed")) for name in TRACKERS])
theirs = pytest.mark.filterwarnings("ignore")  # warnings of their own


def finite(out, key):
    return [(row["step"], row[key]) for row in map(json.loads, (out / "metrics.jsonl").read_text().splitlines())
            if row.get(key) is not None]


@theirs
@each
def test_settings_rows_and_the_summary_arrive(store, name):
    result = train(store / "run", track=name, config=CONFIG, monitors=[lambda *_: {"undefined": math.nan}])
    seen = STORES[name](store)
    config = yaml.safe_load((store / "run" / "config.yaml").read_text())
    assert {key: str(value) for key, value in seen.settings.items() if key in config or "." in key} == {
        "arguments.threshold": "0.7", **{key: str(value) for key, value in config.items() if key != "arguments"}}
    keys = {key for row in rows(store / "run") for key in row} - {"step", "undefined"}
    assert {"loss", "lr", "mask_rate", "test_accuracy"} <= keys <= seen.metrics.keys()
    for key in (*keys, "seconds"):
        told = finite(store / "run", key)
        assert [step for step, _ in seen.metrics[key]] == [step for step, _ in told]
        assert [value for _, value in seen.metrics[key]] == pytest.approx([value for _, value in told], rel=1e-6)
    assert "undefined" not in seen.metrics
    assert float(seen.summary["test_accuracy"]) == pytest.approx(result.test_accuracy)
    assert seen.summary["selection"] == result.summary["selection"]
    assert "valid_accuracy" not in seen.summary
    assert seen.states == STATES[name][0]


@theirs
@each
def test_a_resumed_run_is_the_same_one_there_and_no_step_is_told_twice(store, name):
    """Killed between a checkpoint and a later row: these rows are trained again, and are there already."""
    class Ends(Callback):
        def row(self, row):
            if row["step"] == 8:
                raise RuntimeError("killed")

    given = {"track": name, "config": CONFIG}
    with pytest.raises(Interrupted):
        train(store / "run", callbacks=[signal_at(5, signal.SIGTERM)], **given)
    assert STORES[name](store).states == STATES[name][1]
    with pytest.raises(RuntimeError, match="killed"):
        train(store / "run", resume="auto", checkpoint_seconds=1e9, callbacks=[Ends()], **given)
    train(store / "run", resume="auto", **given)
    train(store / "whole", config=CONFIG)
    assert_same_run(store / "run", store / "whole")
    seen = STORES[name](store)
    told = finite(store / "run", "loss")
    if name == "wandb":  # of what is sent again, its server keeps the first
        assert dict(seen.metrics["loss"]) == pytest.approx(dict(told))
    else:
        assert [step for step, _ in seen.metrics["loss"]] == [step for step, _ in told]
        assert dict(seen.metrics["loss"]) == pytest.approx(dict(told))
    assert seen.states == (STATES[name][0] if name != "wandb" else [1, 1, 0])


@theirs
@each
def test_a_run_that_diverges_has_failed(store, name):
    with pytest.raises(NonFiniteLossError):
        train(store / "run", track=name, config=CONFIG, clip=None, optimizer=__import__("ssl_lab").SGD(lr=1e30))
    assert STORES[name](store).states == STATES[name][2]


class Away(Tracker):
    """A server that is not there for a while."""

    name, module = "away", "json"

    def __init__(self, sends, refuses=()):
        super().__init__()
        self.got, self.sends, self.refuses = [], iter(sends), refuses

    def _open(self, method, out, settings, known, step):
        if "open" in self.refuses:
            raise OSError("no route\nto host")
        return "7"

    def _send(self, given):
        if not next(self.sends):
            raise ConnectionError("connection refused")
        self.got += [row["step"] for row in given]

    def _close(self, summary, status):
        if "close" in self.refuses:
            raise ConnectionError("gone")
        self.got.append(summary["test_accuracy"])


def test_a_tracker_that_fails_does_not_end_the_run(tmp_path, monkeypatch, capsys):
    def trained(out, *given, **named):
        made = Away(*given, **named)
        monkeypatch.setitem(TRACKERS, "away", lambda: made)
        return train(tmp_path / out, track="away", steps=4), made, capsys.readouterr().err

    result, made, err = trained("a", [True, False, True])
    assert made.got == [1, 2, 3, 4, result.test_accuracy]  # sent when it was over, not tried in between
    assert err.count("note: away does not take metrics (connection refused); training goes on, and what is ") == 1
    result, made, err = trained("b", [True, False, False])
    assert made.got == [1]
    assert "(connection refused); what is missing there is in metrics.jsonl and summary.json" in err
    _, made, err = trained("c", [True] * 5, refuses=("close",))
    assert made.got == [1, 2, 3, 4]
    assert "note: away does not take metrics (gone)" in err
    with pytest.raises(UsageError, match=r"--track away cannot start: no route to host\. Mend that, or leave it out"):
        trained("d", [], refuses=("open",))
    assert not (tmp_path / "d" / "metrics.jsonl").read_text()


def test_names_that_are_not_there(tmp_path, monkeypatch):
    with pytest.raises(UsageError, match=r"unknown tracker 'tensorbord'. Did you mean tensorboard"):
        train(tmp_path, track="tensorbord")
    with pytest.raises(UsageError, match=r"tensorbord.*--track"):
        run_recipe("supervised", "--steps", 1, "--track", "tensorbord", "--out", tmp_path)
    monkeypatch.setattr(trackers.MLflow, "module", "no_such_module")
    with pytest.raises(UsageError, match=r'--track mlflow: No module .*; pip install "ssl_lab\[mlflow\]"'):
        train(tmp_path, track="mlflow")


@theirs
@pytest.mark.skipif(not find_spec("tensorboard"), reason="tensorboard is not installed")
def test_a_recipe_takes_it_and_a_resumed_run_may_change_it(store):
    given = ("--steps", 2, "--out", store / "run")
    run_recipe("supervised", *given, "--track", "tensorboard")
    run_recipe("supervised", *given, "--resume", "auto")
    assert yaml.safe_load((store / "run" / "config.yaml").read_text())["track"] is None
    assert tensorboard(store).summary["method"] == "supervised"
