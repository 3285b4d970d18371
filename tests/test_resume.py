"""A run that is stopped and resumed is the run that was never stopped; what cannot be resumed says why."""

import errno
import json
import os
import pickle
import signal
import threading
import time
from contextlib import nullcontext

import pytest
import torch
from forked import forked
from small_runs import (
    At,
    assert_same_run,
    digits,
    finish,
    flat_net,
    room_for,
    rows,
    signal_at,
    summary,
    tiny_net,
    train,
)

import ssl_lab as sl
from ssl_lab.engine import checkpoint
from ssl_lab.engine.folder import RunFolder, alone_in
from ssl_lab.engine.signals import SAME
from ssl_lab.errors import Interrupted, NonFiniteLossError, UsageError
from ssl_lab.methods import FixMatch, Supervised

METHODS = {
    "fixmatch": lambda pool: FixMatch(tiny_net(pool), threshold=sl.schedule.linear(0.2, 0.6)),
    "dropout": lambda pool: Supervised(flat_net(dropout=0.5)),
}


@pytest.fixture(scope="module", params=METHODS)
def whole(request, tmp_path_factory):
    """A method, and a run of it that nobody stopped."""
    pool = digits()
    out = tmp_path_factory.mktemp(request.param)
    make = METHODS[request.param]
    train(out, make(pool), pool)
    return make, pool, out


def test_stopped_twice_is_never_stopped(whole, tmp_path):
    make, pool, expected = whole
    for done, number in ((1, signal.SIGTERM), (7, signal.SIGINT)):
        with pytest.raises(Interrupted, match=rf"stopped at step {done} of 12; .*checkpoint.pt is saved"):
            train(tmp_path, make(pool), pool, resume="auto", callbacks=[signal_at(done, number)])
        assert not (tmp_path / "summary.json").exists()
    train(tmp_path, make(pool), pool, resume="auto")
    assert_same_run(tmp_path, expected)


def test_a_named_run_goes_on_in_its_folder(whole, tmp_path):
    make, pool, expected = whole
    with pytest.raises(Interrupted):
        train(tmp_path / "a", make(pool), pool, callbacks=[signal_at(5, signal.SIGINT)])
    result = train(tmp_path / "b", make(pool), pool, resume=tmp_path / "a")
    assert result.out == tmp_path / "a"
    assert not (tmp_path / "b").exists()
    assert_same_run(tmp_path / "a", expected)


def test_a_finished_run_reports_the_same(whole):
    make, pool, expected = whole
    before, metrics = summary(expected), rows(expected)
    result = train(expected, make(pool), pool, resume="auto", callbacks=[At(1, lambda: pytest.fail("it trained"))])
    assert summary(expected) == before
    assert rows(expected) == metrics
    last = json.loads((expected / "metrics.jsonl").read_text().splitlines()[-1])
    assert result.summary["seconds"] == round(last["seconds"], 2)


def test_a_checkpoint_between_two_rows(tmp_path):
    """Of 402 steps every third has a row; the averages of a row that was begun go on too."""
    pool = digits()
    train(tmp_path / "whole", Supervised(flat_net()), pool, steps=402)
    for done in (100, 203):
        with pytest.raises(Interrupted):
            train(tmp_path / "cut", Supervised(flat_net()), pool, steps=402, resume="auto",
                  callbacks=[signal_at(done, signal.SIGINT)])
    train(tmp_path / "cut", Supervised(flat_net()), pool, steps=402, resume="auto")
    assert [row["step"] for row in rows(tmp_path / "cut")] == list(range(3, 403, 3))
    assert_same_run(tmp_path / "cut", tmp_path / "whole")


KILLED = """
import signal, sys
from small_runs import At, FixMatch, Trainer, digits, signal_at, tiny_net

pool = digits()
trainer = Trainer(steps=12, out=sys.argv[1], device="cpu", precision="fp32", resume="auto", checkpoint_seconds=0)
trainer.callbacks = [At(5, lambda: setattr(trainer, "checkpoint_seconds", 1e9)), signal_at(8, signal.SIGKILL)]
trainer.fit(FixMatch(tiny_net(pool), threshold=0.5), pool, 8, 16)
"""


def test_killed_between_checkpoints(tmp_path):
    cut, pool = tmp_path / "cut", digits()
    status, _, err = finish(forked("-c", KILLED, cut))
    assert status == -signal.SIGKILL, err
    assert torch.load(cut / "checkpoint.pt", weights_only=True)["step"] == 4
    assert [row["step"] for row in rows(cut)] == [1, 2, 3, 4, 5, 6, 7]  # beyond the checkpoint: to be dropped
    with (cut / "metrics.jsonl").open("a") as file:
        file.write('{"step": 8, "los')  # and torn
    again = []
    train(cut, pool=pool, resume="auto", callbacks=[At(5, lambda: again.extend(rows(cut)))])
    assert [row["step"] for row in again] == [1, 2, 3, 4]
    train(tmp_path / "whole", pool=pool)
    assert_same_run(cut, tmp_path / "whole")


def test_a_second_signal_stops_at_once(tmp_path):
    class Twice(At):
        def __init__(self):
            super().__init__(6, self.twice)

        def twice(self):
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(SAME + 0.1)
            os.kill(os.getpid(), signal.SIGINT)

    handler = signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt) as stopped:
        train(tmp_path, checkpoint_seconds=0, callbacks=[Twice()])
    assert not isinstance(stopped.value, Interrupted)
    assert signal.getsignal(signal.SIGINT) is handler
    assert torch.load(tmp_path / "checkpoint.pt", weights_only=True)["step"] == 5


# What cannot be resumed


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A run, and the bytes of its checkpoint."""
    out = tmp_path_factory.mktemp("finished")
    train(out, steps=2)
    return out, (out / "checkpoint.pt").read_bytes()


def resume(out, **settings):
    return train(out, **{"steps": 2, "resume": "auto"} | settings)


@pytest.mark.parametrize("share", [0.0, 0.001, 0.3, 0.6, 0.9, 0.999])
def test_a_truncated_checkpoint_says_so(finished, tmp_path, share):
    content = finished[1][:int(share * len(finished[1]))]
    (tmp_path / "checkpoint.pt").write_bytes(content)
    with pytest.raises(UsageError, match=r"cannot be read as a checkpoint .* may be truncated") as refused:
        resume(tmp_path)
    assert "\n" not in str(refused.value)
    assert (tmp_path / "checkpoint.pt").read_bytes() == content


class Foreign:
    def __reduce__(self):
        return os.mkdir, ("ran_code",)


def test_a_foreign_file_is_refused_and_runs_no_code(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    file = tmp_path / "checkpoint.pt"
    for write in (lambda: file.write_bytes(pickle.dumps(Foreign())), lambda: torch.save(Foreign(), file)):
        write()
        with pytest.raises(UsageError, match="cannot be read as a checkpoint"):
            resume(tmp_path)
    for content in ({"state_dict": {}}, [1, 2], {"format": "ssl_lab checkpoint 99"}):
        torch.save(content, file)
        with pytest.raises(UsageError, match="is not a checkpoint of ssl_lab"):
            resume(tmp_path)
    assert not (tmp_path / "ran_code").exists()


def test_a_missing_run_says_so(tmp_path):
    with pytest.raises(UsageError, match=r"no checkpoint at .*checkpoint.pt; start the run without --resume"):
        resume(tmp_path / "out", resume=tmp_path / "nowhere")


@pytest.mark.parametrize(("settings", "words"), [
    ({"steps": 3}, "steps: 2 -> 3"),
    ({"seed": 1, "labeled": 16}, "seed: 0 -> 1, labeled: 8 -> 16"),
    ({"micro_batches": 2}, "micro_batches: 1 -> 2"),
    ({"clip": 1.0}, "clip: None -> 1.0"),
    ({"optimizer": sl.SGD(lr=0.5)}, r"optimizer: .*lr=0.03.* -> .*lr=0.5"),
    ({"precision": "bf16"}, "precision: 'fp32' -> 'bf16'"),
    ({"pool": digits(labels=90)}, "split: "),
    ({"method": Supervised(flat_net())}, "method: 'fixmatch' -> 'supervised'"),
    ({"method": FixMatch(flat_net(), threshold=0.5)}, "has another method than this one"),
    ({"method": FixMatch(tiny_net(digits()), threshold=sl.schedule.linear(0, 1), ema=0.9)},
     r"method.threshold: 0.5 -> 'linear\(0, 1, until=1.0\)', method.ema.decay: 0.999 -> 0.9\)"),
])
def test_changed_settings_are_named_and_nothing_is_touched(finished, settings, words):
    out, _ = finished
    before = {path.name: path.read_bytes() for path in out.iterdir()}
    with pytest.raises(UsageError, match=words) as refused:
        resume(out, **settings)
    assert "\n" not in str(refused.value)
    assert {path.name: path.read_bytes() for path in out.iterdir()} == before


def test_what_does_not_change_a_run_may_change(finished):
    out, _ = finished
    before = rows(out)
    resume(out, precision="auto", steps=None, minutes=7.0, device="auto", evaluations=3)
    assert rows(out) == before


# Two processes


def test_a_second_run_in_the_folder_is_refused_while_the_first_one_lasts(tmp_path):
    def second():
        for resume in (None, "auto"):
            with pytest.raises(UsageError, match=rf"another process writes into {tmp_path}: wait for it, or choose "):
                train(tmp_path, resume=resume)

    for ends in (NonFiniteLossError, None):
        callbacks = [At(5, second), At(7, lambda ends=ends: raises(ends))]
        with pytest.raises(ends) if ends else nullcontext():
            train(tmp_path, callbacks=callbacks)
    assert [row["step"] for row in rows(tmp_path)] == list(range(1, 13))
    assert not (tmp_path / ".lock").exists()


def raises(error):
    if error:
        raise error


def test_what_a_killed_run_left_locks_nothing(tmp_path):
    (tmp_path / ".lock").touch()
    child = os.fork()
    if not child:
        with alone_in(tmp_path):
            os.kill(os.getpid(), signal.SIGKILL)
    os.waitpid(child, 0)
    with alone_in(tmp_path), pytest.raises(UsageError, match="another process"), alone_in(tmp_path):
        pass


def test_a_file_system_without_locks_is_trusted(tmp_path, monkeypatch):
    def flock(handle, how):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr("fcntl.flock", flock)
    with alone_in(tmp_path), alone_in(tmp_path):
        pass


def test_a_lock_that_its_holder_has_just_removed_is_none(tmp_path, monkeypatch):
    monkeypatch.setattr("fcntl.flock", lambda handle, how: (tmp_path / ".lock").unlink())
    with pytest.raises(UsageError, match="another process"), alone_in(tmp_path):
        pass


# Disks


def test_a_disk_that_fills_up_keeps_the_last_checkpoint(tmp_path):
    pool = digits()

    class Full(At):
        def __init__(self):
            super().__init__(6, self.fill)

        def fill(self):
            self.room = room_for(100_000)
            self.room.__enter__()

        def __exit__(self, *error):
            self.room.__exit__(None, None, None)

    with pytest.raises(UsageError, match=r"^cannot write .*checkpoint.new.pt: File too large. Free some space"):
        train(tmp_path, pool=pool, checkpoint_seconds=0, callbacks=[Full()])
    assert torch.load(tmp_path / "checkpoint.pt", weights_only=True)["step"] == 5
    assert not list(tmp_path.glob(".*"))  # no half-written file is left
    train(tmp_path, pool=pool, resume="auto")
    train(tmp_path / "whole", pool=pool)
    assert_same_run(tmp_path, tmp_path / "whole")


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs /dev/full")
def test_metrics_that_do_not_fit_say_so(tmp_path):
    def fill():
        (tmp_path / "metrics.jsonl").unlink()
        (tmp_path / "metrics.jsonl").symlink_to("/dev/full")

    with pytest.raises(UsageError, match=r"^cannot write .*metrics.jsonl: No space left on device"):
        train(tmp_path, callbacks=[At(3, fill)])


def test_a_folder_that_cannot_be_written_says_so_before_training(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UsageError, match=r"^cannot write .*file/run"):
        train(tmp_path / "file" / "run", callbacks=[At(1, lambda: pytest.fail("it trained"))])


# Checkpoints that a thread writes, as on a GPU


def test_checkpoints_written_behind_are_the_same(tmp_path, monkeypatch):
    """Stopped and resumed, with a checkpoint after each step: what a later step changes is not in an earlier one."""
    train(tmp_path / "whole", steps=6)
    monkeypatch.setattr("ssl_lab.engine.trainer.writes_behind", lambda device: True)
    with pytest.raises(Interrupted):
        train(tmp_path / "run", steps=6, checkpoint_seconds=0.0, callbacks=[signal_at(3, signal.SIGTERM)])
    assert torch.load(tmp_path / "run/checkpoint.pt")["step"] == 3  # on the disk, as the message says
    assert torch.load(tmp_path / "run/checkpoint.previous.pt")["step"] == 2
    train(tmp_path / "run", steps=6, checkpoint_seconds=0.0, resume="auto")
    assert_same_run(tmp_path / "run", tmp_path / "whole")


def test_a_checkpoint_behind_is_of_the_moment_it_was_asked_for(tmp_path, monkeypatch):
    weights, go = torch.zeros(3), threading.Event()
    save = checkpoint.save
    monkeypatch.setattr(checkpoint, "save", lambda path, state: go.wait(10) and save(path, state))
    folder = RunFolder(tmp_path, behind=True)
    folder.save({"step": 1, "method": {"weights": weights}})
    weights += 1
    folder.rows += "later"
    go.set()
    folder.written()
    found = checkpoint.load(tmp_path / "checkpoint.pt")
    assert (found["method"]["weights"].tolist(), found["rows"]) == ([0, 0, 0], "")


def test_what_a_thread_could_not_write_is_said_by_the_next_checkpoint(tmp_path, monkeypatch):
    def full(path, state):
        raise UsageError("cannot write: the disk is full")

    monkeypatch.setattr(checkpoint, "save", full)
    folder = RunFolder(tmp_path, behind=True)
    folder.save({"step": 1})
    with pytest.raises(UsageError, match="the disk is full"):
        folder.save({"step": 2})
    folder.save({"step": 3})
    with pytest.raises(UsageError, match="the disk is full"), folder.naming_last_checkpoint():
        pass  # nor is a run over before
