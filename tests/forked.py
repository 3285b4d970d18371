"""Processes that are forked from one that has imported what they need: importing takes longer than what they do.

What a process of Python's own would do with the same words, environment and signals, one of these does; but it has no
start of its own, so that what is tested of that (what a module imports, a script's first second) needs a real one.
"""

import atexit
import contextlib
import multiprocessing
import os
import runpy
import signal
import socket
import subprocess
import sys
import threading
import warnings
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, TextIO

import torch
import torch.distributed as dist
from small_runs import ROOT

from ssl_lab.active.study import benchmark
from ssl_lab.processes import PARENT

CONTEXT = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload([
    "torch.distributed.run", "ssl_lab.testing", "ssl_lab.command_line", "ssl_lab.comparison", "ssl_lab.report.run",
    "ssl_lab.active.study.benchmark", "ssl_lab.label.server", "sklearn.datasets", "tyro", "rich.progress",
    "matplotlib.backends.backend_svg", "forked"])


def forked(*arguments: object, **environment: str) -> "Forked":
    """As `small_runs.start`: this interpreter on the arguments, in the repository's root."""
    variables = os.environ | {"PYTHONPATH": os.pathsep.join(map(str, (ROOT, ROOT / "tests")))} | environment
    return Forked([sys.executable, *arguments], subprocess.PIPE, subprocess.PIPE, variables, ROOT)


def torchrun(*arguments: object) -> "Forked":
    """Two ranks of a script under torchrun, whose agent and ranks are all forked."""
    return forked("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", 2, "--run-path",
                  "--start-method", "fork", *arguments)


def as_two_ranks(*arguments: object) -> tuple[str, str]:
    """What two ranks of a script printed, and said on stderr: started with torchrun's variables, but without it."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    both = [forked(*arguments, RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE="2", LOCAL_WORLD_SIZE="2",
                   MASTER_ADDR="127.0.0.1", MASTER_PORT=port) for rank in range(2)]
    with ThreadPoolExecutor(2) as readers:
        said = [*readers.map(lambda each: each.communicate(300), both)]
    assert [each.returncode for each in both] == [0, 0], said
    return said[0][0] + said[1][0], said[0][1] + said[1][1]


def two_ranks(work: Callable[[int], Any], folder: Path) -> list[Any]:
    """What work(rank), a function of a test file, returns on each of two ranks."""
    return several_ranks(work, folder, 2)


def several_ranks(work: Callable[[int], Any], folder: Path, world: int) -> list[Any]:
    """What work(rank), a function of a test file, returns on each of so many ranks."""
    ranks = [CONTEXT.Process(target=_rank, args=(work, folder / "store", rank, world)) for rank in range(world)]
    for each in ranks:
        each.start()
    for each in ranks:
        each.join(120)
        each.kill()
        each.join()
    assert not any(each.exitcode for each in ranks)
    return [torch.load(f"{folder / 'store'}{rank}") for rank in range(world)]


def _rank(work: Callable[[int], Any], store: Path, rank: int, world: int) -> None:
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=world)
    torch.save(work(rank), f"{store}{rank}")
    dist.destroy_process_group()


def begin_cells(threads: int, parent: int) -> None:
    """What processes of `ssl_lab.active.study.benchmark` begin with, where these are forked and have another parent."""
    benchmark._begin(threads, os.getppid())


class Forked:
    """As `subprocess.Popen` of a script, of `-c TEXT` or of `-m MODULE` under this interpreter."""

    def __init__(self, command: Sequence[object], stdout: TextIO | int = 1, stderr: TextIO | int = 2,
                 env: Mapping[str, str] = os.environ, cwd: Path | None = None) -> None:
        assert command[0] == sys.executable
        ours, theirs = zip(*map(_end, (stdout, stderr)), strict=True)
        self.stdout, self.stderr = ours
        self.returncode: int | None = None
        self._process = CONTEXT.Process(target=_become, args=(
            [str(word) for word in command[1:]], dict(env), str(cwd or Path.cwd()), *theirs))
        self._process.start()
        self.pid = self._process.pid
        for each in theirs:
            each.close()

    def wait(self, timeout: float | None = None) -> int:
        self._process.join(timeout)
        if self._process.exitcode is None:
            raise subprocess.TimeoutExpired("forked", timeout or 0)
        self.returncode = self._process.exitcode
        return self.returncode

    def poll(self) -> int | None:
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.wait(0)
        return self.returncode

    def send_signal(self, number: int) -> None:
        if self.poll() is None:
            os.kill(self.pid, number)

    def terminate(self) -> None:
        self.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)

    def communicate(self, timeout: float | None = None) -> tuple[str, str]:
        said = ["", ""]

        def read(number: int, stream: TextIO) -> None:
            said[number] = stream.read()

        readers = [threading.Thread(target=read, args=each) for each in enumerate((self.stdout, self.stderr))
                   if not each[1].closed]
        for each in readers:
            each.start()
        try:
            self.wait(timeout)
        except subprocess.TimeoutExpired:
            self.kill()
            raise
        finally:
            for each in readers:
                each.join()
        self.__exit__()
        return said[0], said[1]

    def __enter__(self) -> "Forked":
        return self

    def __exit__(self, *failure: object) -> None:
        for each in (self.stdout, self.stderr):
            if each is not None:
                each.close()
        self.wait()


def _end(stream: TextIO | int) -> tuple[TextIO | None, Connection]:
    """What is read here, if anything, and what a process writes into."""
    if stream != subprocess.PIPE:
        return None, Connection(os.dup(stream if isinstance(stream, int) else stream.fileno()), readable=False)
    read, write = os.pipe()
    return os.fdopen(read), Connection(write, readable=False)


def _become(words: list[str], env: dict[str, str], cwd: str, out: Connection, err: Connection) -> None:
    """Does what an interpreter that is started with these words does."""
    for number, connection in ((1, out), (2, err)):
        os.dup2(connection.fileno(), number)
        connection.close()
    sys.stdout = open(1, "w", buffering=1 if env.get("PYTHONUNBUFFERED") else -1, closefd=False)  # noqa: SIM115
    sys.stderr = open(2, "w", buffering=1, errors="backslashreplace", closefd=False)  # noqa: SIM115
    os.chdir(cwd)
    os.environ.clear()
    os.environ.update(env)
    if PARENT in env:
        os.environ[PARENT] = str(os.getppid())  # that of a forked process is the one that it was forked from
    atexit._clear()
    while words[0] == "-W":
        warnings.simplefilter(words[1])
        words = words[2:]
    installed = [path for path in sys.path if path.startswith((sys.prefix, sys.base_prefix))]
    first = {"-c": "", "-m": cwd}.get(words[0], str(Path(words[0]).parent))
    sys.path[:] = [first, *filter(None, env.get("PYTHONPATH", "").split(os.pathsep)), *installed]
    try:
        if words[0] == "-c":
            sys.argv = ["-c", *words[2:]]
            exec(compile(words[1], "<string>", "exec"), {"__name__": "__main__"})
        elif words[0] == "-m":
            sys.argv = words[1:]
            sys.modules.pop(words[1], None)  # run anew, under the name of __main__
            runpy.run_module(words[1], run_name="__main__", alter_sys=True)
        else:
            sys.argv = words
            runpy.run_path(words[0], run_name="__main__")
    except SystemExit:
        raise
    except BaseException:
        sys.excepthook(*sys.exc_info())
        raise SystemExit(1) from None
    finally:
        atexit._run_exitfuncs()
