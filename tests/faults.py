"""Kills a FixMatch run on digits again and again, and compares what comes out with the run that nobody stopped.

    python tests/faults.py --kills 30 [--seed 0] [--every 4096] [--out FOLDER]

The run asks an oracle for 12 labels, one by one, which go to a ledger; trains, saving a checkpoint after every step;
and writes its predictions. Each life of it is ended by SIGKILL, in one of these ways in turn, and the next resumes it:

    ledger bytes         when a random part of an entry is written
    any instant          after a random time
    checkpoint bytes     when a random part of a checkpoint is written
    checkpoint renames   before or after one of the calls that put it in place
    metrics bytes        when a random part of a row is written

Ledger, weights, optimizer, metrics and predictions must be bit-identical, with each step once in metrics.jsonl, and no
label lost whose call had returned. Then the last checkpoint is cut at every 4096 bytes, and a byte in every 4096 is
changed: it is read as it was, or the previous one is, with a word, or the error is a clear one. Exits with 1 at the
first difference.
"""

import argparse
import contextlib
import io
import itertools
import json
import os
import random
import shutil
import signal
import sys
import tempfile
import time
import warnings
from collections import Counter
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")
sys.path.insert(0, str(Path(__file__).parent.parent))

import numpy as np
from small_runs import assert_equal, assert_same_run, rows, tiny_net, train

import ssl_lab as sl
from ssl_lab.data import Ledger, load
from ssl_lab.engine import Runtime, checkpoint
from ssl_lab.engine.evaluate import predict
from ssl_lab.errors import UsageError
from ssl_lab.methods import FixMatch

STEPS, LABELS = 20, 12
LEDGER = "ledger bytes"
KINDS = ("any instant", "checkpoint bytes", "checkpoint renames", "metrics bytes")


def live(out: Path) -> None:
    """One life of the run: goes on from wherever the last one ended."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of a torn line in the ledger
        pool = load("digits").split(labels=20, seed=0, ledger=out / "labels.jsonl")
    first = pool.ledger.entries[0].indices
    queries = np.setdiff1d(pool.train, first)[:LABELS]
    given, returned = len(pool.ledger.entries) - 1, len(lines(out / "returned.txt"))
    assert given - returned in (0, 1), f"{returned} calls had returned, but {given} labels are in the ledger"
    for i in range(returned, LABELS):
        if i == given:
            pool.record(queries[i:i + 1], pool.truth[queries[i:i + 1]])
            given += 1
        with (out / "returned.txt").open("a") as file:
            file.write(f"{i}\n")
    method = FixMatch(tiny_net(pool), threshold=sl.schedule.linear(0.2, 0.6))
    train(out / "run", method, pool, steps=STEPS, resume="auto", checkpoint_seconds=0)
    logits = predict(method.predictor(), pool, pool.test, Runtime.start("cpu", "fp32"))
    np.save(out / "predictions.npy", logits.detach().numpy())


def lines(path: Path) -> list[str]:
    return path.read_text().splitlines() if path.exists() else []


def in_a_fork(out: Path, fault=lambda: None, after: float | None = None) -> bool:
    """A life in a process of its own; True if it was killed. after: seconds until it is, if not by its fault."""
    pid = os.fork()
    if not pid:
        status = 1
        try:
            with (out / "stderr.txt").open("a") as file, contextlib.redirect_stderr(file):
                fault()
                live(out)
            status = 0
        except BaseException:
            import traceback
            traceback.print_exc()
        finally:
            os._exit(status)
    if after is not None:
        time.sleep(after)
        os.kill(pid, signal.SIGKILL)
    status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    assert status in (0, -signal.SIGKILL), f"the run ended with status {status}"
    return status != 0


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


class Dying:
    """A file in whose write the process dies, once `room` bytes are written."""

    def __init__(self, file, room: int) -> None:
        self.file, self.room = file, room

    def write(self, content) -> int:
        if len(content) > self.room:
            self.file.write(content[:self.room])
            self.file.flush()
            die()
        self.room -= len(content)
        return self.file.write(content)

    def __getattr__(self, name: str):
        return getattr(self.file, name)

    def __enter__(self):
        return self

    def __exit__(self, *error) -> None:
        self.file.close()


def at_the_write_of(part: str, count: int, room: int):
    """A fault: die in the count-th write of a file with `part` in its name, after `room` bytes."""
    def install() -> None:
        opened, numbers = Path.open, itertools.count(1)

        def open_dying(path, mode="r", *arguments, **settings):
            file = opened(path, mode, *arguments, **settings)
            mine = part in path.name and mode in ("a", "wb")
            return Dying(file, room) if mine and next(numbers) == count else file

        Path.open = open_dying
    return install


def at_the_rename_of(part: str, count: int, before: bool):
    """A fault: die before or after the count-th renaming to a file with `part` in its name."""
    def install() -> None:
        renamed, numbers = Path.replace, itertools.count(1)

        def replace(path, target):
            mine = part in target.name and next(numbers) == count
            if mine and before:
                die()
            renamed(path, target)
            if mine:
                die()

        Path.replace = replace
    return install


def at_the_append_of_a_label(count: int, share: float):
    """A fault: die in the count-th write to the ledger, when a part of the bytes is written."""
    def install() -> None:
        write, numbers = os.pwrite, itertools.count(1)

        def pwrite(handle, content, offset):
            if next(numbers) == count:
                write(handle, content[:int(share * len(content))], offset)
                die()
            return write(handle, content, offset)

        os.pwrite = pwrite
    return install


def kill_once(kind: str, out: Path, whole: Path, seconds: float, chance: random.Random) -> bool:
    """A life with a fault of the kind; False if it came to its end before."""
    if kind == "any instant":
        return in_a_fork(out, after=chance.uniform(0, seconds))
    if kind == LEDGER:
        return in_a_fork(out, at_the_append_of_a_label(chance.randint(1, LABELS), chance.random()))
    count = chance.randint(1, 4)
    if kind == "checkpoint renames":
        return in_a_fork(out, at_the_rename_of("checkpoint", 3 * count + chance.randrange(3), chance.random() < 0.5))
    name, file = (("checkpoint.new", "checkpoint.pt") if kind == "checkpoint bytes" else ("metrics.jsonl",) * 2)
    size = (whole / "run" / file).stat().st_size // (1 if kind == "checkpoint bytes" else STEPS)
    return in_a_fork(out, at_the_write_of(name, count, int(0.9 * chance.random() * size)))


def assert_same(out: Path, whole: Path) -> None:
    assert_same_run(out / "run", whole / "run")
    assert [row["step"] for row in rows(out / "run")] == list(range(1, STEPS + 1))
    for name in ("predictions.npy", "returned.txt"):
        assert (out / name).read_bytes() == (whole / name).read_bytes(), name
    ours, theirs = ([{key: value for key, value in json.loads(line).items() if key != "when"}
                     for line in lines(folder / "labels.jsonl")] for folder in (out, whole))
    assert ours == theirs, "labels.jsonl"
    left = {path.name for path in (out / "run").iterdir()}
    assert left == {path.name for path in (whole / "run").iterdir()}, left


def kills(number: int, folder: Path, whole: Path, seconds: float, chance: random.Random) -> Counter[str]:
    """Kills runs until `number` lives or more were ended, in each way one or more; compares every run that came to
    its end. Returns the kinds and their counts."""
    hit = Counter(dict.fromkeys((LEDGER, *KINDS), 0))
    kinds = itertools.cycle(KINDS)
    wanted = next(kinds)
    for run in itertools.count(1):
        if hit.total() >= number and all(hit.values()):
            return hit
        out = folder / f"run{run}"
        out.mkdir()
        kind = LEDGER  # only a run that has just begun appends to it
        while (hit.total() < number or not all(hit.values())) and kill_once(kind, out, whole, seconds, chance):
            hit[kind] += 1
            wanted = wanted if kind == LEDGER else next(kinds)
            kind = wanted
        assert not in_a_fork(out)
        assert_same(out, whole)
    raise AssertionError


def read(path: Path) -> tuple[dict | None, str]:
    """The state that `load` returns, None if it refuses, and what it says."""
    said = io.StringIO()
    try:
        with contextlib.redirect_stderr(said):
            return checkpoint.load(path), said.getvalue()
    except UsageError as error:
        return None, str(error)


def damaged(run: Path, every: int, chance: random.Random) -> tuple[int, int]:
    """Cuts the run's checkpoint at `every` so many bytes, and changes one of these; leaves the last cut.

    Returns how many times it was cut, and how many changes were noticed: not those in bytes without a meaning.
    """
    path = run / "checkpoint.pt"
    content, state, before = path.read_bytes(), checkpoint.load(path), checkpoint.load(checkpoint.previous(path))
    kept = checkpoint.previous(path).read_bytes()
    noticed, cuts = 0, range(0, len(content), every)
    for cut in cuts:
        path.write_bytes(content[:cut])
        found, said = read(path)
        assert said.startswith(f"note: {path} cannot be read ("), said
        assert said.count("\n") == 1, said
        assert_equal(found, before, f"cut at {cut}")
        changed = bytearray(content)
        changed[chance.randrange(cut, min(cut + every, len(content)))] ^= 1 << chance.randrange(8)
        path.write_bytes(changed)
        found, said = read(path)
        assert_equal(found, before if said else state, f"changed after {cut}")
        noticed += bool(said)
        checkpoint.previous(path).unlink()
        path.write_bytes(content[:cut])
        found, said = read(path)
        assert found is None, f"cut at {cut}"
        assert "cannot be read as a checkpoint" in said, said
        assert "\n" not in said, said
        checkpoint.previous(path).write_bytes(kept)
    return len(cuts), noticed


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=30)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--every", type=int, default=4096)
    parser.add_argument("--out", type=Path, help="keeps the runs here (default: a temporary folder)")
    settings = parser.parse_args()
    folder = settings.out or Path(tempfile.mkdtemp(prefix="ssl_lab-faults-"))
    whole, chance = folder / "whole", random.Random(settings.seed)
    whole.mkdir(parents=True)
    sl.SGD().build(FixMatch(tiny_net(load("digits"))))  # imports once what each fork would
    begun = time.perf_counter()
    assert not in_a_fork(whole)
    seconds = time.perf_counter() - begun
    hit = kills(settings.kills, folder, whole, seconds, chance)
    for kind, count in hit.items():
        print(f"{count:4d} kills: {kind}")
    cuts, noticed = damaged(folder / "run1" / "run", settings.every, chance)
    print(f"{cuts:4d} cut checkpoints: each refused, or replaced by the previous one")
    print(f"{cuts:4d} changed bytes: {noticed} noticed, {cuts - noticed} of no meaning")
    assert not in_a_fork(folder / "run1")  # the last damage is still there: the last step is repeated
    assert_same(folder / "run1", whole)
    print(f"bit-identical: {len(Ledger(whole / 'labels.jsonl').entries)} ledger entries, weights, optimizer, metrics, "
          f"predictions; {time.perf_counter() - begun:.0f} s")
    if not settings.out:
        shutil.rmtree(folder)


if __name__ == "__main__":
    main()
