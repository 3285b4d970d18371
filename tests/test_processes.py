"""A parent that is killed, a terminal that is closed, a reader that has gone, memory that runs out: a line, or none."""

import os
import pty
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import torch
from small_runs import ROOT, finish, start, train

from ssl_lab.engine.signals import StopRequest
from ssl_lab.errors import RunFailedError
from ssl_lab.exits import exit_with_status
from ssl_lab.processes import PARENT, out_of_memory, stopping_signals

TOO_MUCH = 2**60  # bytes


def until(holds, seconds=60):
    """Waits; False if it never holds."""
    end = time.monotonic() + seconds
    while not holds() and time.monotonic() < end:
        time.sleep(0.02)
    return holds()


# Parents


def test_a_child_ends_with_a_parent_that_is_killed(tmp_path):
    child = ("import sys, time; from pathlib import Path; from ssl_lab.exits import exit_with_status\n"
             "def wait():\n"
             f"    Path({str(tmp_path)!r}, 'begun').touch()\n"
             "    try: time.sleep(60)\n"
             f"    finally: Path({str(tmp_path)!r}, 'ended').touch()\n"
             "exit_with_status(wait)")
    parent = (f"import os, subprocess, sys; os.environ['{PARENT}'] = str(os.getpid())\n"
              f"subprocess.run([sys.executable, '-c', {child!r}])")
    process = start("-c", parent)
    assert until((tmp_path / "begun").exists)
    process.kill()
    process.communicate()
    assert until((tmp_path / "ended").exists)


def test_what_no_parent_is_named_for_goes_on_by_itself():
    script = ("import os, subprocess, sys, time; from ssl_lab.exits import exit_with_status\n"
              f"exit_with_status(lambda: (time.sleep(0.7), print(os.environ.get('{PARENT}'))))")
    assert finish(start("-c", script)) == (0, "None\n", "")
    assert finish(start("-c", script, **{PARENT: str(os.getpid())})) == (0, "None\n", "")  # its children are not told


def test_why_a_rank_failed_is_said_although_it_is_ended_meanwhile():
    script = ("import os, signal; from ssl_lab.errors import RunFailedError\n"
              "from ssl_lab.exits import exit_with_status\n"
              "def fails():\n"
              "    try: raise RunFailedError('rank 0 lost another rank')\n"
              "    finally: os.kill(os.getpid(), signal.SIGTERM)\n"
              "exit_with_status(fails)")
    assert finish(start("-c", script)) == (1, "", "error: rank 0 lost another rank\n")


# Threads


def test_threads_look_for_a_moment_before_they_sleep_unless_the_user_says_otherwise(monkeypatch):
    for name in ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT"):
        monkeypatch.delenv(name, raising=False)
    script = ("import os; from ssl_lab.exits import exit_with_status\n"
              "exit_with_status(lambda: print(os.environ.get('OMP_WAIT_POLICY'), os.environ.get('GOMP_SPINCOUNT')))")
    assert finish(start("-c", script)) == (0, "passive 1000\n", "")
    assert finish(start("-c", script, GOMP_SPINCOUNT="7")) == (0, "passive 7\n", "")
    assert finish(start("-c", script, OMP_WAIT_POLICY="active")) == (0, "active None\n", "")


# Terminals


def test_a_closed_terminal_is_a_request_to_stop(tmp_path):
    script = ("import sys, time; from pathlib import Path; from ssl_lab.engine.signals import StopRequest\n"
              "from ssl_lab.exits import exit_with_status\n"
              "def run():\n"
              "    with StopRequest() as stop:\n"
              f"        Path({str(tmp_path)!r}, 'begun').touch()\n"
              "        while not stop.asked:\n"
              "            time.sleep(0.01)\n"
              "        for _ in range(100):\n"
              "            print('a line of progress', file=sys.stderr, flush=True)\n"
              "            print('another', flush=True)\n"
              f"    Path({str(tmp_path)!r}, 'saved').touch()\n"
              "exit_with_status(run)\n")
    (tmp_path / "script.py").write_text(script)
    child, terminal = pty.fork()
    if not child:
        signal.signal(signal.SIGHUP, signal.SIG_DFL)  # also where these tests run under nohup
        os.environ["PYTHONPATH"] = str(ROOT)
        os.execv(sys.executable, [sys.executable, str(tmp_path / "script.py")])
    assert until((tmp_path / "begun").exists)
    os.close(terminal)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert (tmp_path / "saved").exists()


def test_under_nohup_a_closed_terminal_is_no_request(request):
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    request.addfinalizer(lambda: signal.signal(signal.SIGHUP, before))
    assert signal.SIGHUP not in stopping_signals()
    with StopRequest() as stop:
        os.kill(os.getpid(), signal.SIGHUP)
        assert not stop.asked


# Readers


@pytest.mark.parametrize("said", [
    "[print(i) for i in range(100_000)]",
    "[print(i, file=sys.stderr) for i in range(100_000)]",
    "(print('a line'), print('more', file=sys.stderr), time.sleep(0.3), print('late'))",
    "(print('a line', flush=True), time.sleep(0.3), sys.exit('a word'))",
    "(print('a line', flush=True), time.sleep(0.3), torn())",
])
def test_a_reader_who_has_seen_enough_is_no_error(said, tmp_path):
    script = ("import sys, time; from ssl_lab.exits import exit_with_status; from ssl_lab.errors import UsageError\n"
              "def torn():\n    raise UsageError('nobody reads this')\n"
              f"exit_with_status(lambda: {said})")
    command = '"$0" -c "$1" 2>&1 | head -1; echo "status ${PIPESTATUS[0]}"'
    done = subprocess.run(["bash", "-c", command, sys.executable, script], capture_output=True, text=True,
                          env=os.environ | {"PYTHONPATH": str(ROOT)}, check=True)
    line, status = done.stdout.splitlines()
    assert status in ("status 0", "status 1") if "sys.exit" in said else status == "status 0"
    assert "Traceback" not in line
    assert done.stderr == ""


def test_help_may_be_read_in_part():
    command = '"$0" recipes/fixmatch.py --help 2>&1 | head -1; echo "status ${PIPESTATUS[0]}"'
    done = subprocess.run(["bash", "-c", command, sys.executable], capture_output=True, text=True, cwd=ROOT,
                          env=os.environ | {"PYTHONPATH": str(ROOT)}, check=True)
    assert done.stdout.splitlines()[-1] in ("status 0", "status 141")
    assert done.stderr == ""


# Imports


@pytest.mark.parametrize(("raised", "words"), [("KeyboardInterrupt", "interrupted\n"), ("ValueError", "Traceback")])
def test_ctrl_c_while_modules_are_imported_is_a_word(tmp_path, raised, words):
    (tmp_path / "slow.py").write_text(f"raise {raised}\n")
    status, out, err = finish(start("-c", f"import sys; sys.path.insert(0, {str(tmp_path)!r})\n"
                                          "import ssl_lab\nimport slow"))
    assert (status, out) == (-signal.SIGINT if raised == "KeyboardInterrupt" else 1, "")
    assert err == words if raised == "KeyboardInterrupt" else err.startswith(words)


def test_ctrl_c_in_a_program_of_ones_own_keeps_its_traceback():
    _, _, err = finish(start("-c", "import ssl_lab\nraise KeyboardInterrupt"))
    assert "Traceback" in err


# Memory


def on_a_gpu():
    raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB. GPU 0 has a total capacity of ...")


@pytest.mark.parametrize("allocate", [lambda: torch.empty(TOO_MUCH, dtype=torch.uint8),
                                      lambda: np.empty(TOO_MUCH, dtype=np.uint8), on_a_gpu])
def test_memory_that_runs_out_is_one_line(allocate, capsys, request, tmp_path):
    before = {number: signal.getsignal(number) for number in stopping_signals()}
    request.addfinalizer(lambda: [signal.signal(number, handler) for number, handler in before.items()])
    with pytest.raises(SystemExit) as stopped:
        exit_with_status(allocate)
    err = capsys.readouterr().err
    assert (stopped.value.code, err.count("\n")) == (1, 1)
    assert all(word in err for word in ("out of memory, when", "--micro-batches", "--unlabeled", "--image-size"))

    def update(closure, optimizer, at):
        return allocate()

    with pytest.raises(RunFailedError, match="out of memory in steps of 8 labeled and 16 unlabeled images of 8 x 8"):
        train(tmp_path, update=update)


def test_other_errors_are_not_for_lack_of_memory():
    for error in (RuntimeError("shapes cannot be multiplied"), OSError(5, "Input/output error"), KeyError("memory")):
        assert out_of_memory(error) is None
    assert "a smaller --image-size" not in str(out_of_memory(MemoryError(), side=28))
    assert "a smaller --image-size" in str(out_of_memory(MemoryError(), side=224))
