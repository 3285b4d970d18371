"""What goes wrong with machines: kills, torn files, full disks, data that go away, signals, ranks that die; and files
from strangers."""

import ast
import io
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tarfile
import time
from functools import partial
from types import SimpleNamespace

import pytest
import torch
from forked import forked, torchrun
from small_runs import (
    ROOT,
    At,
    assert_same_run,
    digit_files,
    finish,
    rows,
    signal_at,
    start,
    tiny_net,
    train,
)

from ssl_lab import files
from ssl_lab.active.show import show_loop
from ssl_lab.command_line import parse
from ssl_lab.config import Settings
from ssl_lab.data import load
from ssl_lab.engine import checkpoint, signals
from ssl_lab.engine.runtime import Runtime
from ssl_lab.errors import Interrupted, RunFailedError, UsageError
from ssl_lab.files import write_text
from ssl_lab.methods import FixMatch

TORCHRUN = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", 2)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A run that nobody stopped."""
    out = tmp_path_factory.mktemp("whole")
    train(out)
    return out


@pytest.fixture(scope="module")
def _stopped(tmp_path_factory):
    out = tmp_path_factory.mktemp("stopped")
    with pytest.raises(Interrupted):
        train(out, checkpoint_seconds=0, callbacks=[signal_at(5, signal.SIGTERM)])
    return out


@pytest.fixture
def stopped(_stopped, tmp_path):
    """A copy of a run that was stopped after 5 steps, with a checkpoint at each."""
    return shutil.copytree(_stopped, tmp_path / "run")


# Kills and torn files


def test_killed_in_every_way():
    status, out, err = finish(forked("tests/faults.py", "--kills", 5, "--every", 2**15))
    assert status == 0, out + err
    for kind in ("any instant", "checkpoint bytes", "checkpoint renames", "ledger bytes", "metrics bytes"):
        assert f"kills: {kind}" in out
    assert "bit-identical" in out


TEARS = {
    "last row torn": lambda text: text[:-10],
    "without its end of line": lambda text: text[:-1],
    "a row in the middle lost": lambda text: text[:300] + text[900:],
    "zeros after a power cut": lambda text: text[:-200] + b"\0" * 200,
    "empty": lambda text: b"",
}


def said(capsys) -> str:
    """What went to stderr beside the line on what was loaded, which each run begins with."""
    lines = capsys.readouterr().err.splitlines(keepends=True)
    return "".join(line for line in lines if not line.startswith("digits: 10 classes"))


@pytest.mark.parametrize("tear", TEARS.values(), ids=TEARS)
def test_metrics_are_repaired_with_a_word(stopped, whole, tear, capsys):
    metrics = stopped / "metrics.jsonl"
    metrics.write_bytes(tear(metrics.read_bytes()))
    train(stopped, resume="auto")
    assert said(capsys) == (f"note: {metrics} is torn or damaged; its rows up to step 5 are taken from the checkpoint, "
                            "later steps are run again\n")
    assert_same_run(stopped, whole)


def test_a_row_of_a_step_beyond_the_checkpoint_needs_no_word(stopped, whole, capsys):
    with (stopped / "metrics.jsonl").open("a") as file:
        file.write('{"step": 6}\n')
    train(stopped, resume="auto")
    assert said(capsys) == ""
    assert [row["step"] for row in rows(stopped)] == list(range(1, 13))
    assert_same_run(stopped, whole)


def halve(path):
    path.write_bytes(path.read_bytes()[:path.stat().st_size // 2])


def flip(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 4
    path.write_bytes(content)


@pytest.mark.parametrize(("damage", "reason"), [
    (halve, "File is not a zip file"),
    (flip, "wrong checksum of "),
    (lambda path: path.write_bytes(b""), "File is not a zip file"),
    (lambda path: path.unlink(), "it is missing"),
])
def test_a_torn_checkpoint_is_replaced_by_the_previous_one(stopped, whole, damage, reason, capsys):
    last = stopped / "checkpoint.pt"
    damage(last)
    train(stopped, resume="auto")
    err = said(capsys)
    assert err.startswith(f"note: {last} cannot be read ({reason}")
    assert err.endswith("; going on from checkpoint.previous.pt, step 4\n")
    assert err.count("\n") == 1
    assert_same_run(stopped, whole)


def test_two_torn_checkpoints_are_an_error(stopped):
    for name in ("checkpoint.pt", "checkpoint.previous.pt"):
        halve(stopped / name)
    before = {path.name: path.read_bytes() for path in stopped.iterdir()}
    with pytest.raises(UsageError, match=r"checkpoint.pt cannot be read as a checkpoint \(File is not a zip file\)"):
        train(stopped, resume="auto")
    assert {path.name: path.read_bytes() for path in stopped.iterdir()} == before


def test_a_torn_checkpoint_never_replaces_the_previous_one(tmp_path):
    path = tmp_path / "checkpoint.pt"
    for step in (1, 2):
        checkpoint.save(path, {"step": step})
    halve(path)
    checkpoint.save(path, {"step": 3})
    assert checkpoint.load(path)["step"] == 3
    assert checkpoint.load(checkpoint.previous(path))["step"] == 1


def test_a_new_run_inherits_nothing(stopped):
    for checkpoints in ("checkpoint.pt", "checkpoint.previous.pt"):  # as if it had been killed before the first one
        (stopped / checkpoints).unlink()
    (stopped / ".checkpoint.new.pt.123.tmp").write_text("of a kill in the middle of a write")
    (stopped / "checkpoint.new.pt").write_text("of a kill before it was renamed")
    train(stopped, steps=1)
    assert {path.name for path in stopped.iterdir()} == {
        "checkpoint.pt", "config.yaml", "images.npz", "metrics.jsonl", "model.json", "model.safetensors",
        "predictions.npz", "split.json", "summary.json"}


# Disks

DISK = """
import os, subprocess, sys
from pathlib import Path
from small_runs import At, assert_same_run, digits, train
from ssl_lab.engine import checkpoint
from ssl_lab.errors import UsageError

disk, pool = Path(sys.argv[1]), digits()
out = disk / "run"

def fill():
    with open(disk / "ballast", "wb", buffering=0) as file:
        for size in (65536, 64):
            try:
                while file.write(bytes(size)):
                    pass
            except OSError:
                pass

def fails(**settings):
    try:
        train(out, pool=pool, resume="auto", checkpoint_seconds=0, **settings)
    except UsageError as error:
        print(error)
    print(checkpoint.load(out / "checkpoint.pt")["step"], sorted(path.name for path in out.glob(".*")))

fails(callbacks=[At(6, fill)])
subprocess.run(["mount", "-o", "remount,ro", str(disk)], check=True)
fails()
subprocess.run(["mount", "-o", "remount,rw", str(disk)], check=True)
(disk / "ballast").unlink()
train(out, pool=pool, resume="auto")
train(Path(sys.argv[2]), pool=pool)
assert_same_run(out, Path(sys.argv[2]))
"""


def test_a_full_and_a_read_only_disk_keep_the_last_checkpoint(tmp_path):
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = ("unshare", "--map-root-user", "--mount", "sh", "-c",
               f'mount -t tmpfs -o size=3m none "{disk}" && exec "$@"', "sh")
    if not shutil.which("unshare") or subprocess.run([*mounted, "true"], capture_output=True).returncode:
        pytest.skip("may not mount a disk here")
    (tmp_path / "job.py").write_text(DISK)
    path = os.pathsep.join([str(ROOT), str(ROOT / "tests")])
    done = subprocess.run([*mounted, sys.executable, tmp_path / "job.py", disk, tmp_path / "whole"], timeout=90,
                          env=os.environ | {"PYTHONPATH": path}, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    full, step, read_only, same = done.stdout.splitlines()
    assert full.startswith(f"cannot write {disk}/run/")
    assert full.endswith("No space left on device. Free some space there, or choose another folder.")
    assert read_only.startswith(f"cannot write {disk}/run/")
    assert "Read-only file system" in read_only
    assert step == same == "5 []"


# Data

def test_each_new_folder_above_a_file_is_synced_into_the_one_that_holds_it(tmp_path, monkeypatch):
    synced = []
    monkeypatch.setattr(files, "sync", synced.append)
    write_text(tmp_path / "a/b/c/file", "x")
    assert set(synced) == {tmp_path / name for name in (".", "a", "a/b", "a/b/c")}


def write_digits(root, kind, skip=()):
    """The first 120 digits, less some, in folders by class or in three shards."""
    root.mkdir(parents=True)
    for row, (content, label) in enumerate(digit_files(120)):
        if row in skip:
            continue
        if kind == "folder":
            (root / label).mkdir(exist_ok=True)
            (root / label / f"{row:05}.png").write_bytes(content)
        else:
            with tarfile.open(root / f"{row // 40}.tar", "a") as shard:
                for suffix, part in (("png", content), ("cls", label.encode())):
                    info = tarfile.TarInfo(f"{row:05}.{suffix}")
                    info.size = len(part)
                    shard.addfile(info, io.BytesIO(part))
    return root


def fit(out, data, **settings):
    pool = load(data, data.parent / "cache").split(labels=20, seed=0)
    return train(out, FixMatch(tiny_net(pool), threshold=0.5), pool, steps=6, **settings)


@pytest.mark.parametrize(("kind", "made"), [("folder", "120 image files of .* are decoded"),
                                            ("shards", "3 shards of .* are indexed")])
def test_a_removed_cache_is_not_missed_in_mid_run_and_made_again_with_a_word(kind, made, tmp_path, capsys):
    data = write_digits(tmp_path / "digits", kind)
    fit(tmp_path / "whole", data)
    cache = tmp_path / "cache"
    (before,) = [path.parent for path in (cache / "cache").glob("*/meta.json")]
    with pytest.raises(Interrupted):
        fit(tmp_path / "cut", data, callbacks=[At(2, lambda: shutil.rmtree(cache)), signal_at(4, signal.SIGTERM)])
    assert not cache.exists()
    capsys.readouterr()
    fit(tmp_path / "cut", data, resume="auto")
    assert re.match(rf"note: {made} into {before}\n", capsys.readouterr().err)
    assert_same_run(tmp_path / "cut", tmp_path / "whole")


def spoil(path, name):
    """Overwrites an image in the middle of a shard."""
    with tarfile.open(path) as shard:
        info = shard.getmember(name)
    with path.open("r+b") as file:
        file.seek(info.offset_data + info.size // 2)
        file.write(b"\xff" * 20)
    return info


def test_a_corrupt_shard_is_named_with_its_member_and_the_other_samples_train(tmp_path, capsys):
    data = write_digits(tmp_path / "a" / "digits", "shards")
    spoil(data / "1.tar", "00050.png")
    with tarfile.open(data / "2.tar") as shard:
        last = shard.getmember("00100.png")
    os.truncate(data / "2.tar", last.offset_data + 10)
    fit(tmp_path / "damaged", data)
    err = capsys.readouterr().err
    assert "note: 2 samples or shards could not be read and are left out: '1.tar/00050' (" in err
    assert "'2.tar' (damaged, only the 19 images before that are used: '00100.png' is cut off)" in err
    skip = (50, *range(99, 120))  # the sample before a damaged place may have gone on there
    good = write_digits(tmp_path / "b" / "digits", "shards", skip)
    fit(tmp_path / "good", good)
    for run in ("damaged", "good"):  # but for what they say of the samples that were left out
        file = tmp_path / run / "summary.json"
        file.write_text(json.dumps(json.loads(file.read_text()) | {"loaded": None}))
    assert_same_run(tmp_path / "damaged", tmp_path / "good")


def test_a_shard_that_is_damaged_in_mid_run_is_named_and_the_run_goes_on_once_it_is_restored(tmp_path):
    data = write_digits(tmp_path / "digits", "shards")
    fit(tmp_path / "whole", data)
    whole = {path: path.read_bytes() for path in data.iterdir()}

    def spoil_all():
        for path in data.iterdir():
            with tarfile.open(path) as shard:
                names = [name for name in shard.getnames() if name.endswith("png")]
            for name in names:
                spoil(path, name)

    with pytest.raises(UsageError, match=r"the image '000\d\d.png' at byte \d+ of .*/\d.tar could be read when"):
        fit(tmp_path / "cut", data, checkpoint_seconds=0, callbacks=[At(3, spoil_all)])
    assert checkpoint.load(tmp_path / "cut" / "checkpoint.pt")["step"] == 2  # step 3 could not be evaluated
    for path, content in whole.items():
        path.write_bytes(content)
    fit(tmp_path / "cut", data, resume="auto")
    assert_same_run(tmp_path / "cut", tmp_path / "whole")


# Signals


@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM", "SIGUSR1", "SIGHUP"])
def test_each_signal_finishes_the_step(name, tmp_path, whole, request):
    number = getattr(signal, name)
    before = signal.SIG_DFL if name == "SIGHUP" else signal.getsignal(number)
    outer = signal.signal(number, before)  # which is another one where these tests run under nohup
    request.addfinalizer(lambda: signal.signal(number, outer))
    with pytest.raises(Interrupted, match="stopped at step 3 of 12"):
        train(tmp_path, callbacks=[signal_at(3, number)])
    assert signal.getsignal(number) is before
    train(tmp_path, resume="auto")
    assert_same_run(tmp_path, whole)


def test_a_signal_that_comes_twice_by_two_ways_is_one():
    with signals.StopRequest() as stop:
        assert not stop.asked
        for _ in range(3):
            os.kill(os.getpid(), signal.SIGUSR1)
        assert stop.asked
        time.sleep(signals.SAME + 0.05)
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGTERM)


def test_a_second_signal_inside_a_checkpoint_write(tmp_path, whole, monkeypatch):
    save = torch.save

    def interrupted(state, file):
        if state["step"] == 6:
            file.write(b"half of it")
            time.sleep(signals.SAME + 0.05)
            os.kill(os.getpid(), signal.SIGINT)
        save(state, file)

    monkeypatch.setattr(torch, "save", interrupted)
    with pytest.raises(KeyboardInterrupt) as stopped:
        train(tmp_path, checkpoint_seconds=0, callbacks=[signal_at(6, signal.SIGTERM)])
    assert not isinstance(stopped.value, Interrupted)
    monkeypatch.undo()
    assert checkpoint.load(tmp_path / "checkpoint.pt")["step"] == 5
    assert not list(tmp_path.glob(".*"))
    train(tmp_path, resume="auto")
    assert_same_run(tmp_path, whole)


# Ranks

JOB = """
import os, signal, sys, time
from datetime import timedelta
from pathlib import Path
from small_runs import At, digits, train
from ssl_lab.exits import exit_with_status
from ssl_lab.engine import runtime

out, fault = Path(sys.argv[1]), sys.argv[2]
rank, first = int(os.environ["RANK"]), os.environ["TORCHELASTIC_RESTART_COUNT"] == "0"

def faulty(closure, optimizer, at):
    loss = closure()
    if at.step == 5 and first and rank == 1:
        (out / "died").write_text(str(os.getpid()))
        os.kill(os.getpid(), getattr(signal, fault))
    optimizer.step()
    return loss

def signaled(closure, optimizer, at):
    if at.step == 5:
        if rank == 1:
            os.kill(os.getppid(), signal.SIGUSR1)  # torchrun passes it on to both
        time.sleep(1)
    loss = closure()
    optimizer.step()
    return loss

def main():
    settings = {"pool": digits(), "labeled": 16, "unlabeled": 16, "resume": "auto"}
    if fault == "SIGUSR1":
        train(out / "run", update=signaled, **settings)
    if fault == "SIGKILL":
        train(out / "whole", **settings)
        settings["checkpoint_seconds"] = 0
    if fault == "SIGSTOP":
        runtime.PATIENCE = timedelta(seconds=3)
    train(out / "run", update=faulty, **settings)

try:
    exit_with_status(main)
finally:
    if first and rank == 0:
        (out / "ended").touch()
    if fault == "SIGSTOP" and rank == 0:  # torchrun would wait 30 s before it does so
        os.kill(int((out / "died").read_text()), signal.SIGKILL)
"""


def job(tmp_path, fault, *flags, run=torchrun):
    """Status, what was said, and the seconds from the death of a rank to the end of the other, under torchrun."""
    (tmp_path / "job.py").write_text(JOB)
    status, _, err = finish(run(*flags, tmp_path / "job.py", tmp_path, fault))
    died, ended = tmp_path / "died", tmp_path / "ended"
    return status, err, ended.stat().st_mtime - died.stat().st_mtime if died.exists() else None


def test_a_dead_rank_is_named_and_torchrun_goes_on_by_itself(tmp_path):
    status, err, seconds = job(tmp_path, "SIGKILL", "--max-restarts", 1)
    assert status == 0, err
    assert "error: rank 0 lost another rank" in err
    assert seconds < 60
    assert_same_run(tmp_path / "run", tmp_path / "whole")
    assert [row["step"] for row in rows(tmp_path / "run")] == list(range(1, 13))


def test_a_rank_that_hangs_ends_the_job(tmp_path):
    status, err, seconds = job(tmp_path, "SIGSTOP")
    assert status == 1
    assert "error: rank 0 lost another rank, which ended or was silent for 0:00:03" in err
    assert "Traceback" not in err.partition("error: rank 0")[0]
    assert seconds < 60


def test_torchrun_passes_the_time_limit_on(tmp_path):
    """Of processes that are started as those of people are, by Python itself."""
    status, err, _ = job(tmp_path, "SIGUSR1", "--signals-to-handle", "SIGTERM,SIGINT,SIGHUP,SIGQUIT,SIGUSR1",
                         run=partial(start, *TORCHRUN))
    assert status != 0
    assert err.count(f"stopped at step 6 of 12; {tmp_path / 'run' / 'checkpoint.pt'} is saved") == 2
    assert checkpoint.load(tmp_path / "run" / "checkpoint.pt")["step"] == 6


def test_only_the_loss_of_a_rank_is_called_so():
    two, one = (Runtime(torch.device("cpu"), "fp32", "asked", world=world) for world in (2, 1))
    lost = "[gloo/transport/tcp/pair.cc:561] Connection closed by peer [10.0.0.2]:29500"
    for runtime, message, kind in ((two, lost, RunFailedError), (two, "shapes differ", RuntimeError),
                                   (one, lost, RuntimeError)):
        with pytest.raises(RuntimeError) as raised, runtime.explaining_failures():
            raise RuntimeError(message)
        assert type(raised.value) is kind


# Files from strangers


def test_no_reader_can_run_code():
    """Every call that could is made so that it cannot: by the keyword it must have, or not at all."""
    asked = {"torch.load": ("weights_only", True), "tar.extractall": ("filter", "data")}
    never = {"yaml.load", "yaml.load_all", "yaml.full_load", "yaml.unsafe_load", "shutil.unpack_archive", "eval",
             "exec"}
    files = [path for folder in ("ssl_lab", "recipes", "data_scripts") for path in (ROOT / folder).rglob("*.py")]
    files.remove(ROOT / "ssl_lab" / "signatures.py")  # reads the package's own files alone
    seen = []
    for node in (node for path in files for node in ast.walk(ast.parse(path.read_text()))):
        if isinstance(node, ast.Import | ast.ImportFrom):
            names = {alias.name for alias in node.names} | {getattr(node, "module", None)}
            assert not names & {"pickle", "shelve", "marshal", "joblib", "dill", "cloudpickle"}
        if isinstance(node, ast.Call):
            call, given = ast.unparse(node.func), {word.arg: ast.unparse(word.value) for word in node.keywords}
            assert call not in never
            assert given.get("allow_pickle", "False") == "False"
            assert not call.endswith((".extractall", ".extract")) or call in asked, call
            if call in asked:
                name, value = asked[call]
                assert given.get(name) == repr(value), f"{call} without {name}={value!r}"
                seen.append(call)
    assert set(seen) == set(asked)


def test_names_of_classes_and_files_stay_text_on_a_page(tmp_path):
    evil = "<img src=x onerror=alert(1)>"
    root = tmp_path / f"{evil} pictures"
    for name in (evil, "cat"):
        (root / name).mkdir(parents=True)
        for number, (content, _) in enumerate(digit_files(8)):
            (root / name / f"{evil}{number}.png").write_bytes(content)
    pool = load(root, tmp_path / "cache").split(labels=4, seed=0)
    record = SimpleNamespace(round=0, labels=4, accuracy=0.5, ids=pool.labeled.tolist(), seconds={}, like=None)
    loop = SimpleNamespace(pool=pool, records=[record], abstained=[], folder=tmp_path, advice=SimpleNamespace(lines=()))
    show_loop(loop, f"Labels for {pool.name}")
    page = (tmp_path / "report.html").read_text()
    assert "&lt;img src=x onerror=alert(1)&gt; pictures" in page
    assert page.count("&lt;img src=x onerror=alert(1)&gt;") > 3
    assert "<img src=x" not in page


def test_yaml_runs_no_code(tmp_path):
    file = tmp_path / "settings.yaml"
    file.write_text(f"steps: !!python/object/apply:os.mkdir [{tmp_path / 'ran_code'}]\n")
    with pytest.raises(UsageError, match="is not YAML: could not determine a constructor"):
        parse(Settings, ["--config", str(file)])
    assert not (tmp_path / "ran_code").exists()
