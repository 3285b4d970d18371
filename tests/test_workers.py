"""Where the runs of a study run: here, as jobs of a cluster, as tasks of Ray."""

import importlib.util
import os
import signal
import sys
import threading
import time

import pytest

from ssl_lab.engine import jobs
from ssl_lab.engine.jobs import Job
from ssl_lab.errors import Interrupted, RunFailedError, UsageError
from ssl_lab.workers import Here, There, run_command, workers_of

SCRIPT = """
import json, os, pathlib, signal, sys, time, yaml
given = yaml.safe_load(open(sys.argv[2]))
out = pathlib.Path(given['out'])
(out / 'pid').write_text(str(os.getpid()))
(out / 'starts').open('a').write('x')
def save(*_):
    (out / 'saved').touch()
    sys.exit(130)
signal.signal(signal.SIGTERM, save)
while given.get('wait') and not (out / 'go').exists():
    time.sleep(0.02)
(out / 'summary.json').write_text(json.dumps({'test_accuracy': given['n'] / 10, 'seconds': 1, 'valid_accuracy': None}))
"""


def runs_of(folder, count, **settings):
    script = folder / "recipe.py"
    script.write_text(SCRIPT)
    return [Job(script, {"n": n, **settings}, folder / f"run-{n}") for n in range(count)]


@pytest.fixture(autouse=True)
def no_long_wait(monkeypatch):
    """For the result of a job that ended without one: 15 seconds, as the disks of clusters may be slow."""
    if importlib.util.find_spec("submitit"):
        monkeypatch.setattr("submitit.core.core.Job._results_timeout_s", 0.1)


def cluster(folder):
    pytest.importorskip("submitit")
    return workers_of('slurm(most=3, cluster="local")', folder)


@pytest.mark.parametrize(("text", "words"), [
    ("0", "--workers 0: expected at least one"),
    ("-1", "describes no workers"),
    ("slurm(most=0)", "--workers 0: expected at least one"),
    ("slurm(most='many')", "--workers many: expected at least one"),
    ("slumr", "unknown workers 'slumr'. Did you mean slurm?"),
    ("slurm(most=3, cluster='local', gpu=1)", "gpu"),
    ("slurm(cluster='moon')", "moon"),
    ("ray(cores=2)", "cores"),
])
def test_texts_that_mean_no_workers(tmp_path, text, words):
    if text.startswith("slurm"):
        pytest.importorskip("submitit")
    if text.startswith("ray"):
        pytest.importorskip("ray")
    with pytest.raises(UsageError, match=words):
        workers_of(text, tmp_path)


def test_a_missing_package_is_named(tmp_path, monkeypatch):
    for name, package in (("slurm", "submitit"), ("ray", "ray")):
        monkeypatch.setitem(sys.modules, package, None)
        with pytest.raises(UsageError, match=rf'--workers {name} needs {package}: pip install "ssl_lab\[cluster\]"'):
            workers_of(name, tmp_path)


def test_a_study_on_a_cluster_is_that_of_one_machine(tmp_path):
    """With three workers, one of whose runs is killed twice: the same command ends what is missing, and no more."""
    (tmp_path / "serial").mkdir()
    (tmp_path / "cluster").mkdir()
    serial, spread = (runs_of(tmp_path / name, 5) for name in ("serial", "cluster"))
    assert jobs.run_all(serial, Here(1)) == []
    spread[2] = Job(spread[2].recipe, {**spread[2].settings, "wait": True}, spread[2].out)

    def kill():
        pid = spread[2].out / "pid"
        while not pid.exists() or not pid.read_text():
            time.sleep(0.02)
        os.kill(int(pid.read_text()), signal.SIGKILL)
        pid.unlink()

    for _ in range(2):
        threading.Thread(target=kill, daemon=True).start()
        (failed,) = jobs.run_all(spread, cluster(tmp_path / "cluster"))
        assert failed.startswith("run-2 was killed by signal 9")
    (spread[2].out / "go").touch()
    assert jobs.run_all(spread, cluster(tmp_path / "cluster")) == []
    assert [job.summary for job in spread] == [job.summary for job in serial]
    assert [(job.out / "starts").read_text() for job in spread] == ["x", "x", "xxx", "x", "x"]


def test_where_a_disk_is_full_the_other_runs_go_on(tmp_path, monkeypatch):
    """One run cannot begin, as its log cannot be made, and one cannot say why it ended."""
    runs = runs_of(tmp_path, 4)
    for job in runs:
        job.prepare()
    runs[1].recipe.with_name("mute.py").write_text("raise SystemExit(1)")
    runs[1] = Job(runs[1].recipe.with_name("mute.py"), runs[1].settings, runs[1].out)
    whole = Here.command

    def command(self, given, log):
        if log.parent == runs[2].out:
            raise OSError(28, "No space left on device", str(log))
        return whole(self, given, log)

    monkeypatch.setattr(Here, "command", command)
    mute, full = jobs.run_all(runs, Here(2))
    assert mute.startswith("run-1 failed: with exit status 1, and no words: is the disk full? (see ")
    assert full == f"run-2 could not be started: [Errno 28] No space left on device: '{runs[2].out / 'log.txt'}'"
    assert [job.summary is None for job in runs] == [False, True, True, False]


def test_ctrl_c_reaches_runs_on_a_cluster_which_save(tmp_path, request):
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    request.addfinalizer(lambda: signal.signal(signal.SIGINT, before))
    runs = runs_of(tmp_path, 1, wait=True)

    def interrupt():
        while not (runs[0].out / "pid").exists():
            time.sleep(0.02)
        os.kill(os.getpid(), signal.SIGINT)

    threading.Thread(target=interrupt, daemon=True).start()
    with pytest.raises(Interrupted):
        jobs.run_all(runs, cluster(tmp_path))
    assert (runs[0].out / "saved").exists()


def test_a_job_that_fails_or_is_lost_says_why(tmp_path):
    with pytest.raises(RunFailedError, match=r"ValueError: .+'many'"):
        cluster(tmp_path).call(int, "many")
    with pytest.raises(RunFailedError, match=r"job \d+ was lost \(see .*_log.err\): "):
        cluster(tmp_path).call(os._exit, 1)


def test_a_worker_without_the_package_says_so(tmp_path, monkeypatch):
    (tmp_path / "ssl_lab.py").write_text("raise ModuleNotFoundError(\"No module named 'ssl_lab'\")")
    monkeypatch.chdir(tmp_path)  # where the job looks first; this process has imported it
    with pytest.raises(RunFailedError, match=r"job \d+ was lost \(see .*_log.err\): ModuleNotFoundError: No module "
                                             "named 'ssl_lab'; a worker needs the packages that are here$"):
        cluster(tmp_path).call(run_command, ["true"], tmp_path / "log.txt")


def test_a_folder_that_is_not_shared_is_named(tmp_path, monkeypatch):
    with pytest.raises(RunFailedError, match=r"gone is not on .*: --out must be on a disk that all workers share"):
        run_command(["true"], tmp_path / "gone" / "log.txt")
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    there = There(len)
    monkeypatch.chdir(tmp_path)
    assert there("four") == 4
    assert os.getcwd() == str(tmp_path / "here")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "here").rmdir()
    assert "here is not on " in there("four").reason


def test_a_job_that_is_cut_off_is_queued_again(tmp_path):
    pytest.importorskip("submitit")
    again = There(len).checkpoint("four")
    assert again.function("four") == 4


def test_a_study_on_ray(tmp_path):
    ray = pytest.importorskip("ray")
    runs = runs_of(tmp_path, 3)
    workers = workers_of("ray(most=2)", tmp_path)
    try:
        assert jobs.run_all(runs, workers) == []
        assert [job.summary["test_accuracy"] for job in runs] == [0.0, 0.1, 0.2]
        with pytest.raises(RunFailedError, match=r"ValueError: .+'many'"):
            workers.call(int, "many")
        with pytest.raises(RunFailedError, match="a task of Ray was lost: "):
            workers.call(os._exit, 1)
    finally:
        ray.shutdown()
