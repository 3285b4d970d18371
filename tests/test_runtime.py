"""Devices, precision, and two ranks on one machine."""

import functools
import json
import platform
import resource
import shutil
import signal
import threading
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from forked import as_two_ranks
from small_runs import (
    assert_equal,
    assert_same_run,
    digits,
    flat_net,
    keeping,
    rows,
    signal_at,
    tiny_net,
    train,
)
from torch import nn

import ssl_lab as sl
from ssl_lab.batch import At
from ssl_lab.engine import Feed, Runtime, accuracy, checkpoint
from ssl_lab.engine.evaluate import LEAST, monitored, rows_at_once
from ssl_lab.engine.feed import Ahead, in_batches
from ssl_lab.errors import Interrupted, RunFailedError, UsageError
from ssl_lab.machine import (
    BF16_WINS,
    bf16_gain,
    matmul_tflops,
    resolve_device,
    resolve_precision,
    set_up_gpu,
    share_processors,
)
from ssl_lab.methods import FixMatch, SimCLR
from ssl_lab.optim import AdamW
from ssl_lab.optim.spec import kernels

CPU = torch.device("cpu")


def test_devices():
    assert resolve_device("cpu") == CPU
    assert resolve_device("auto").type == ("cuda" if torch.cuda.is_available() else "cpu")
    for name in ("cuda:99", "nonsense", ""):
        with pytest.raises(UsageError, match=rf"device '{name}' cannot be used here .*try --device cpu"):
            resolve_device(name)


def test_fp32_is_fp32_on_a_gpu_and_convolutions_are_the_same_in_every_run():
    flags = [(torch.backends.cudnn, "deterministic"), (torch.backends.cudnn, "benchmark"),
             (torch.backends.cudnn, "allow_tf32"), (torch.backends.cuda.matmul, "allow_tf32")]
    before = [getattr(*flag) for flag in flags]
    try:
        torch.backends.cudnn.benchmark = torch.backends.cuda.matmul.allow_tf32 = True
        set_up_gpu()
        assert [getattr(*flag) for flag in flags] == [True, False, False, False]
    finally:
        for flag, value in zip(flags, before, strict=True):
            setattr(*flag, value)


def test_a_rank_touches_no_gpu_but_its_own(monkeypatch):
    asked = []

    def empty(size, device):
        asked.append(device)
        if device.index > 3:
            raise RuntimeError("CUDA error: invalid device ordinal\nand more")

    monkeypatch.setattr("torch.empty", empty)
    monkeypatch.setattr("torch.cuda.set_device", asked.append)
    monkeypatch.setattr("torch.cuda.device_count", lambda: 4)
    for name, index in (("cuda", 3), ("cuda:1", 1)):
        assert resolve_device(name, 3) == torch.device("cuda", index)
        assert asked == [torch.device("cuda", index)] * 2
        asked.clear()
    with pytest.raises(UsageError, match=r"invalid device ordinal\); start at most 4 processes here \(--nproc-per-n"):
        resolve_device("cuda", 4)


@pytest.mark.parametrize(("ratio", "picked"), [(0.5, "fp32"), (BF16_WINS - 0.05, "fp32"), (BF16_WINS + 0.05, "bf16")])
def test_auto_picks_bf16_where_it_is_faster(monkeypatch, ratio, picked):
    speeds, asked = {torch.float32: 2.0, torch.bfloat16: 2 * ratio}, []

    def measured(device, dtype, size):
        asked.append(dtype)
        return speeds[dtype]

    monkeypatch.setattr("ssl_lab.machine.matmul_tflops", measured)
    monkeypatch.setattr("ssl_lab.machine.bf16_gain", functools.cache(bf16_gain.__wrapped__))
    assert resolve_precision(CPU, "auto")[0] == picked
    assert f"{ratio:.1f} times" in resolve_precision(CPU, "auto")[1]
    assert asked == [*speeds]  # once in a process
    assert resolve_precision(CPU, "bf16") == ("bf16", "as asked")
    with pytest.raises(UsageError, match="unknown precision 'fp61'"):
        resolve_precision(CPU, "fp61")


def test_the_matrix_product_is_measured():
    assert 0 < matmul_tflops(CPU, torch.float32, size=64, seconds=0.001) < 1000


def test_matrices_that_would_take_too_long_are_not_multiplied(monkeypatch):
    """At 1 GFLOP/s, 2048 x 2048 would take 17 s."""
    asked = []

    def seconds(device, dtype, size, given):
        asked.append(size)
        return 2 * size**3 / 1e9

    monkeypatch.setattr("ssl_lab.machine._seconds", seconds)
    assert matmul_tflops(CPU, torch.bfloat16, seconds=0.5) == pytest.approx(1e-3)
    assert asked == [128, 256, 512, 512]
    assert matmul_tflops(CPU, torch.bfloat16, size=512, seconds=1000.0) == pytest.approx(1e-3)
    assert asked[-1] == 512


@pytest.mark.parametrize(("ranks", "given", "threads"), [("4", "1", 3), ("4", None, 3), ("4", "2", 5), ("40", "1", 1),
                                                         ("1", "1", 5), (None, None, 5)])
def test_ranks_share_the_processors_unless_told_otherwise(monkeypatch, ranks, given, threads):
    for name, value in (("LOCAL_WORLD_SIZE", ranks), ("OMP_NUM_THREADS", given)):
        monkeypatch.delenv(name, raising=False)
        if value is not None:
            monkeypatch.setenv(name, value)
    monkeypatch.setattr("os.sched_getaffinity", lambda process: range(14), raising=False)
    before = torch.get_num_threads()
    torch.set_num_threads(5)
    try:
        share_processors()
        assert torch.get_num_threads() == threads
    finally:
        torch.set_num_threads(before)


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="of glibc's allocator")
def test_memory_of_freed_tensors_is_kept_for_the_next():
    Runtime.start("cpu", "fp32")

    def faults() -> int:
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
        for _ in range(4):
            torch.ones(2**24)  # 16,384 pages
        return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

    faults()
    assert min(faults() for _ in range(5)) < 1000  # the system may take pages back at any time


def test_autocast_is_of_the_runtime():
    x = torch.ones(2, 2)
    for precision, dtype in (("fp32", torch.float32), ("bf16", torch.bfloat16)):
        with Runtime(CPU, precision, "asked").autocast():
            assert (x @ x).dtype == dtype


def test_one_process_is_its_own_sum():
    runtime = Runtime.start("cpu", "fp32")
    assert (runtime.rank, runtime.world, runtime.main) == (0, 1, True)
    assert runtime.totals([1.5, 2]) == [1.5, 2]
    assert runtime.any(True, False) == [True, False]
    assert runtime.peak_memory_bytes() > 2**20


def test_a_rank_that_the_others_wait_for_in_vain_is_named(monkeypatch):
    def late():
        raise torch.distributed.DistStoreError("wait timeout after 300000ms")

    for name, value in (("WORLD_SIZE", "2"), ("RANK", "1")):
        monkeypatch.setenv(name, value)
    monkeypatch.setattr("ssl_lab.engine.runtime.meeting_place", late)
    with pytest.raises(RunFailedError, match=r"rank 1 lost another rank.*wait timeout"):
        Runtime.start("cpu", "fp32")


# Ranks

METHODS = {
    "flat": lambda: FixMatch(flat_net(), threshold=0.12),
    "supervised": lambda: sl.Supervised(flat_net()),
    "simclr": lambda: sl.SimCLR(flat_net(), temperature=0.3),  # the negatives are those of all ranks
}
READ_STATISTICS = {  # of BatchNorm: in the loss, and by a teacher that the averaged net becomes at steps 3, 6 and 9
    "so_teacher": lambda: sl.SoTeacher(tiny_net(digits()), len(digits()), lipschitz=1e-3),
    "noisy_student": lambda: sl.NoisyStudent(tiny_net(digits()), threshold=0.1),
}
WITH_BATCH_NORM = {
    "supervised_tiny": lambda: sl.Supervised(tiny_net(digits())),
    "fixmatch_tiny": lambda: FixMatch(tiny_net(digits()), threshold=0.12),
}
WITH = {  # and into how many micro-batches one rank is cut to take the steps of two
    "sam": ({"techniques": ["sam(rho=0.5)"]}, 1), "parts": ({"techniques": ["sam(rho=0.5, parts=2)"]}, 2),
    "hero": ({"techniques": ["hero(radius=0.5, weight=5)"]}, 1),
    "entropy_sgd": ({"techniques": ["entropy_sgd(steps=2)"]}, 1),
    "replicated_sgd": ({"techniques": ["replicated_sgd(replicas=2)"]}, 1), "pof": ({"techniques": ["pof(after=0)"]}, 2),
    "others": ({"techniques": ["noise_consistency(strength=2)", "swa(start=0.3)", "oversample", "lookahead(k=2)"]}, 1),
    "labeled": ({"techniques": ["cyclical_focal", "vs(beta=0.9)", "temperature(value=2)", "cutmix"]}, 2),
    "edits": ({"techniques": ["reinit(generations=3, blocks=1)", "shrink_perturb"]}, 1),
    "koala": ({"optimizer": sl.optim.KOALA()}, 1), "insgd": ({"optimizer": sl.optim.INSGD()}, 1),
}
EDITED = {  # where BatchNorm is, whose statistics are those of a rank's own rows
    "grown": ["gradmax(times=2)", "weight_rescaling(every=2)"], "layerwise": ["layerwise_reinit", "sphere"],
    "normed": ["weight_norm", "gradinit(steps=2)"]}
JOB = """
import os, runpy, signal, sys, torch, warnings
from contextlib import suppress
from pathlib import Path
from small_runs import digits, flat_net, keeping, signal_at, train
from ssl_lab.engine import trainer
from ssl_lab.errors import Interrupted, UsageError
from ssl_lab.methods import FixMatch, Supervised
from test_runtime import EDITED, METHODS, READ_STATISTICS, WITH, WITH_BATCH_NORM, edited

out, pool = Path(sys.argv[1]), digits()
rank = int(os.environ["RANK"])
for name, make in (METHODS | WITH_BATCH_NORM).items():
    train(out / name, make(), pool, steps=3, update=keeping(out / f"{name}{rank}.pt"))
for name, (settings, _) in WITH.items():
    train(out / name, METHODS["flat"](), pool, steps=3, **settings)
result = train(out / "tiny", pool=pool, steps=12, labeled=16, unlabeled=16)
torch.save(result.method.state_dict(), out / f"state{rank}.pt")
try:
    train(out / "cut", pool=pool, steps=12, labeled=16, unlabeled=16, callbacks=[signal_at(5, signal.SIGTERM)])
except Interrupted:
    train(out / "cut", pool=pool, steps=12, labeled=16, unlabeled=16, resume="auto")
for name, done in (("long", 21), ("short", 5), ("short", 21)):
    with suppress(Interrupted):  # between two rows of metrics: one comes at every second step
        train(out / name, FixMatch(flat_net(), threshold=0.12), pool, steps=202, resume="auto",
              callbacks=[signal_at(done, signal.SIGUSR1)])
try:
    train(out / "none", pool=pool, resume=out / "nowhere")
except UsageError as error:
    (out / f"error{rank}.txt").write_text(str(error))
train(out / "timed", Supervised(flat_net()), pool, steps=None, minutes=0.002)
trainer.ROWS = 3
warnings.filterwarnings("ignore", "Grad strides")  # of 1x1 kernels, by SoTeacher and weight norm
for name in EDITED:
    torch.save(edited(out / name, name).method.state_dict(), out / f"{name}{rank}.pt")
for name, make in READ_STATISTICS.items():
    train(out / name, make(), pool)
    for done in (5, 12):  # the first is between two rows
        with suppress(Interrupted):
            train(out / f"{name}_cut", make(), pool, resume="auto", callbacks=[signal_at(done, signal.SIGTERM)])
sys.argv = ["recipes/fixmatch.py", "--labels", "40", "--net", "tiny_8", "--labeled", "4", "--unlabeled", "8",
            "--steps", "2", "--device", "cpu", "--precision", "fp32", "--out", str(out / "recipe")]
runpy.run_path(sys.argv[0], run_name="__main__")
"""


def edited(out, name):
    """A run with the techniques of EDITED."""
    net = sl.prepared(tiny_net(digits()), EDITED[name], digits())
    return train(out, FixMatch(net, threshold=0.12), digits(), steps=4, techniques=EDITED[name])


@pytest.fixture(scope="module")
def ranks(tmp_path_factory):
    """What two ranks left behind."""
    out = tmp_path_factory.mktemp("ranks")
    (out / "job.py").write_text(JOB)
    printed, err = as_two_ranks(out / "job.py", out)
    assert "Warning" not in err
    (out / "printed.txt").write_text(printed)
    return out


@pytest.mark.parametrize("name", METHODS)
def test_two_ranks_take_the_steps_of_one(ranks, tmp_path, name):
    one = train(tmp_path / name, METHODS[name](), digits(), steps=3, update=keeping(tmp_path / "one.pt"))
    expected = torch.load(tmp_path / "one.pt")
    kept = [torch.load(ranks / f"{name}{rank}.pt") for rank in (0, 1)]
    for step in range(3):
        assert all(torch.equal(a, b) for a, b in zip(kept[0][step], kept[1][step], strict=True))
        torch.testing.assert_close(kept[0][step], expected[step], atol=1e-5, rtol=0)
    saved = torch.load(ranks / name / "checkpoint.pt", weights_only=True)["method"]
    torch.testing.assert_close(saved, dict(one.method.state_dict()), atol=1e-5, rtol=0)
    for ours, theirs in zip(rows(tmp_path / name), rows(ranks / name), strict=True):
        assert theirs == pytest.approx(ours, abs=1e-5)  # the averages are those of the global batch


@pytest.mark.parametrize("name", WITH)
def test_two_ranks_with_techniques_and_optimizers_take_the_steps_of_one(ranks, tmp_path, name):
    settings, parts = WITH[name]
    one = train(tmp_path, METHODS["flat"](), digits(), steps=3, micro_batches=parts, **settings)
    saved = torch.load(ranks / name / "checkpoint.pt", weights_only=True)["method"]
    torch.testing.assert_close(saved, dict(one.method.state_dict()), atol=1e-5, rtol=0)
    losses = [[row["loss"] for row in rows(out)] for out in (tmp_path, ranks / name)]
    assert losses[0] == pytest.approx(losses[1], abs=1e-5)


@pytest.mark.parametrize("name", EDITED)
def test_edits_of_weights_are_the_same_on_all_ranks(ranks, name):
    one, other = (torch.load(ranks / f"{name}{rank}.pt") for rank in (0, 1))
    assert one.keys() == other.keys()
    for key, value in one.items():
        assert torch.equal(value, other[key]), key


@pytest.mark.parametrize("name", WITH_BATCH_NORM)
def test_two_ranks_take_the_steps_of_two_micro_batches(ranks, tmp_path, name):
    """BatchNorm normalizes the rows of a rank by themselves, as it does those of a micro-batch."""
    one = train(tmp_path / name, WITH_BATCH_NORM[name](), digits(), steps=3, micro_batches=2,
                update=keeping(tmp_path / "one.pt"))
    expected = torch.load(tmp_path / "one.pt")
    for rank in (0, 1):
        torch.testing.assert_close(torch.load(ranks / f"{name}{rank}.pt"), expected, atol=1e-5, rtol=0)
    saved = torch.load(ranks / name / "checkpoint.pt", weights_only=True)["method"]
    for key, parameter in one.method.named_parameters():  # the running statistics move once per micro-batch
        torch.testing.assert_close(saved[key], parameter.detach(), atol=1e-5, rtol=0)
    for ours, theirs in zip(rows(tmp_path / name), rows(ranks / name), strict=True):
        losses = [key for key in ours if key.startswith("loss")]
        assert [theirs[key] for key in losses] == pytest.approx([ours[key] for key in losses], abs=1e-5)
        assert len(losses) > 1


def test_the_first_rank_writes_and_speaks_for_all(ranks):
    assert (ranks / "printed.txt").read_text().startswith("fixmatch on digits with 40 labels: test ")
    assert (ranks / "printed.txt").read_text().count("\n") == 1
    assert [row["step"] for row in rows(ranks / "recipe")] == [1, 2]
    summary = json.loads((ranks / "tiny" / "summary.json").read_text())
    assert summary["ranks"] == 2
    assert [row["step"] for row in rows(ranks / "tiny")] == list(range(1, 13))
    states = [torch.load(ranks / f"state{rank}.pt") for rank in (0, 1)]
    assert states[0].keys() == states[1].keys()
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])  # BatchNorm's statistics too


def test_ranks_resume_exactly(ranks):
    assert_same_run(ranks / "cut", ranks / "tiny")


@pytest.mark.parametrize("name", READ_STATISTICS)
def test_ranks_resume_exactly_where_batch_norm_is_read(ranks, name):
    assert [row["step"] for row in rows(ranks / name)] == [4, 8, 12]
    assert_same_run(ranks / f"{name}_cut", ranks / name)


def test_ranks_stop_at_any_step_and_each_goes_on_with_its_part_of_a_row(ranks):
    states = [checkpoint.load(ranks / name / "checkpoint.pt") for name in ("short", "long")]
    for part in ("method", "optimizer", "meter", "step"):
        assert_equal(states[0][part], states[1][part], part)
    assert [len(rows) for rows in states[0]["meter"]] == [1, 1]
    assert states[0]["meter"][0] != states[0]["meter"][1]
    assert rows(ranks / "short") == rows(ranks / "long")
    assert [row["step"] for row in rows(ranks / "short")] == list(range(2, 21, 2))


def test_one_rank_goes_on_with_a_run_of_two(ranks, tmp_path):
    def until(out, done):
        with pytest.raises(Interrupted):
            train(out, METHODS["flat"](), steps=202, resume="auto", callbacks=[signal_at(done, signal.SIGTERM)])
        found = rows(out)
        for row in found:
            row.pop("pseudo_label_accuracy", None)  # a ratio on each rank
        return found

    shutil.copytree(ranks / "short", tmp_path / "both")
    for ours, theirs in zip(until(tmp_path / "one", 24), until(tmp_path / "both", 24), strict=True):
        if ours["step"] != 22:  # its means take in a step of two ranks and one of one rank, by their counts
            assert theirs == pytest.approx(ours, abs=1e-4)


def test_what_the_first_rank_cannot_read_all_of_them_say(ranks):
    for rank in (0, 1):
        assert (ranks / f"error{rank}.txt").read_text().startswith(f"no checkpoint at {ranks / 'nowhere'}")


def test_evaluation_in_parts_is_evaluation(ranks):
    pool = digits()
    exported = sl.net("tiny_8", classes=10, style=pool.style, weights=ranks / "tiny" / "model.safetensors")
    exported.to(memory_format=torch.channels_last)
    summary = json.loads((ranks / "tiny" / "summary.json").read_text())
    asked, (_, curve) = Runtime(CPU, "fp32", "asked"), monitored(pool, LEAST)  # so few, of so short a run
    assert accuracy(exported, pool, pool.test, asked) == summary["test_accuracy"]
    assert rows(ranks / "tiny")[-1]["test_accuracy"] == accuracy(exported, pool, curve, asked)
    assert len(curve) == 250 < len(pool.test)


def test_ranks_agree_on_the_steps_that_fit(ranks):
    assert rows(ranks / "timed")[-1]["step"] == json.loads((ranks / "timed" / "summary.json").read_text())["steps"]


def test_a_batch_that_does_not_divide_over_ranks_says_so():
    views = FixMatch(flat_net()).views
    with pytest.raises(UsageError, match="batch of 9 labeled images does not divide into 1 micro-batches on each of 2"):
        Feed(digits(), views, 9, 16, 0, CPU, world=2)
    Feed(digits(), sl.Supervised(flat_net()).views, 8, 7, 0, CPU, world=2)  # it reads no unlabeled images


# Reading ahead, for devices other than the CPU


def test_the_next_steps_are_read_while_this_one_is_computed():
    asked, main = [], threading.get_ident()

    def make(at):
        asked.append((at.step, threading.get_ident() == main))
        if at.step == 9:
            raise UsageError("a broken file")
        return [at.step, at.rank]

    ahead = Ahead(make, 2, CPU)
    for step in (3, 4, 5, 8):
        assert ahead(At(step, 20, rank=1, world=2)) == [step, 1]
    assert {at.step for at in ahead._begun} == {9, 10}
    with pytest.raises(UsageError, match="a broken file"):
        ahead(At(9, 20, rank=1, world=2))
    ahead._threads.shutdown()
    here = [step for step, on_main in asked if on_main]
    assert here == [3, 8]  # the first, and after a jump
    away = [step for step, on_main in asked if not on_main]
    assert {4, 5, 9, 10, 11} <= {*away} <= {4, 5, 6, 7, 9, 10, 11}
    assert len(away) == len({*away})


def test_what_is_read_ahead_is_what_would_be_read():
    pool, views = digits(), FixMatch(flat_net()).views
    here, away = (Feed(pool, views, 8, 16, 0, device).streams["unlabeled"] for device in (CPU, torch.device("meta")))
    for step in (0, 1, 2, 200, 201):  # from one epoch to another
        assert torch.equal(here.read(At(step, 300)), away.read(At(step, 300)))
    rows = away(At(202, 300))
    assert rows.indices.is_meta
    assert all(view.is_contiguous(memory_format=torch.channels_last) for view in rows.views.values())


@pytest.mark.parametrize("kind", [FixMatch, SimCLR])
def test_a_batch_that_is_made_ahead_is_the_one_that_would_be_made(kind):
    here = Feed(digits(), kind(flat_net()).views, 8, 16, 0)
    away = Feed(digits(), kind(flat_net()).views, 8, 16, 0)
    assert here.made == here._made  # on a CPU nothing is
    away.made = Ahead(away._made, 1, CPU)
    for step in (0, 1, 2, 200, 201):
        one, other = (feed(At(step, 300)) for feed in (here, away))
        for name in ("labeled", "unlabeled"):
            mine, theirs = getattr(one, name), getattr(other, name)
            assert torch.equal(mine.indices, theirs.indices)
            assert torch.equal(mine.targets, theirs.targets)
            assert all(torch.equal(mine[view], theirs[view]) for view in mine.views)


def test_images_are_read_in_batches_for_any_device(monkeypatch):
    pool, rows = digits(), np.arange(23)[::-1].copy()
    here = [*in_batches(pool.images, rows, 10, CPU)]
    assert [len(part) for part in here] == [10, 10, 3]
    assert torch.equal(torch.cat(here), pool.images.take(rows))
    copied = []
    monkeypatch.setattr("ssl_lab.engine.feed.pinned", lambda tensor, device: copied.append(tensor) or tensor)
    away = [*in_batches(pool.images, rows, 10, torch.device("meta"))]
    assert [(part.shape, part.device.type) for part in away] == [(part.shape, "meta") for part in here]
    assert sorted(int(part.sum()) for part in copied) == sorted(int(part.sum()) for part in here)
    assert [*in_batches(pool.images, rows[:0], 10, CPU)] == []


def test_how_many_images_pass_a_net_that_only_predicts():
    pool, meta = digits(), torch.device("meta")
    assert rows_at_once(pool, CPU) == 256
    for side, most in ((8, 2048), (32, 2048), (224, 334), (2000, 64)):
        sized = replace(pool, style=replace(pool.style, height=side, width=side))
        assert rows_at_once(sized, meta) == most


# One kernel for all of an optimizer's step


@pytest.mark.parametrize("spec", [sl.SGD(0.1, 1e-2), AdamW(0.1, 1e-2)])
def test_fused_steps_are_the_same(monkeypatch, spec):
    def learned(**kernels):
        monkeypatch.setattr("ssl_lab.optim.spec.kernels", lambda module: kernels)
        torch.manual_seed(0)
        layer, x = nn.Linear(5, 3).double(), torch.randn(4, 5).double()
        optimizer = spec.build(layer)
        for step in range(4):
            spec.set(optimizer, At(step, 4))
            optimizer.zero_grad()
            layer(x).square().sum().backward()
            optimizer.step()
        return torch.cat([p.detach().flatten() for p in layer.parameters()])

    torch.testing.assert_close(learned(fused=True), learned(foreach=True))


def test_gpus_have_fused_steps():
    assert kernels(nn.Linear(2, 2)) == {"foreach": True}
    on_gpu = SimpleNamespace(parameters=lambda: [SimpleNamespace(device=torch.device("cuda"))])
    assert kernels(on_gpu) == {"fused": True}
