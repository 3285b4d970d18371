"""What makes a step fast (forward policy, micro-batches by timing), and the benchmarks that show it."""

import json
import re
import runpy
from contextlib import contextmanager

import pytest
import torch
import yaml
from small_runs import (
    ROOT,
    SMALL_PARTS,
    assert_same_run,
    digits,
    flat_net,
    nothing_waits_for_the_gpu,
    rows,
    tiny_net,
    train,
)
from torch._dynamo.exc import TorchDynamoException

import ssl_lab
from ssl_lab import build
from ssl_lab.batch import At, Batch, Rows, Style
from ssl_lab.bench import measure
from ssl_lab.bench import step as step_bench
from ssl_lab.bench.nets import bench_nets
from ssl_lab.bench.step import PARTS, Step, bench_step, random_pool
from ssl_lab.bench.views import bench_views
from ssl_lab.engine import Feed, Runtime, resolve, timing
from ssl_lab.errors import UsageError
from ssl_lab.methods import METHODS, FixMatch, Supervised
from ssl_lab.nets import describe, net
from ssl_lab.techniques import TECHNIQUES, together
from ssl_lab.views import Weak, dense

CPU = Runtime(torch.device("cpu"), "fp32", "asked")
SPLITS = [name for name, method in METHODS.items() if method.splits and method.family != "distillation"]


# Forward policy


def _double(part: Rows) -> Rows:
    return Rows({name: view.double() for name, view in part.views.items()}, part.targets, part.truth, part.indices)


def _gradients(name, forward, precision=torch.float64):
    """Terms and gradients of a method around a net without BatchNorm, sure enough of itself to give pseudo-labels."""
    pool = digits()
    method = build.method(name, flat_net(), pool, {}).train()
    with torch.no_grad():
        method.net.head.weight.mul_(30)
    method.set_forward(forward)
    batch = Feed(pool, method.views, 16, 32, 0, CPU.device)(At(3, 10))
    if precision == torch.float64:
        method, batch = method.double(), Batch(_double(batch.labeled), _double(batch.unlabeled))
    with torch.autocast("cpu", torch.bfloat16, enabled=precision == torch.bfloat16):
        loss = method(batch, At(3, 10))
    loss.total.backward()
    return loss.terms, [p.grad for p in method.parameters() if p.requires_grad]


@pytest.mark.parametrize("name", SPLITS)
def test_split_gives_the_gradient_of_joint_where_rows_do_not_meet(name):
    (joint, expected), (split, got) = (_gradients(name, forward) for forward in ("joint", "split"))
    assert joint["unlabeled"] > 0.01  # else the view that is passed by itself plays no part
    torch.testing.assert_close(split, joint, rtol=1e-10, atol=0)
    torch.testing.assert_close(got, expected, rtol=1e-8, atol=1e-12)


def test_split_learns_under_autocast():
    """Weights that were cast to bf16 without gradient must not be taken from autocast's cache."""
    _, split = _gradients("fixmatch", "split", torch.bfloat16)
    _, joint = _gradients("fixmatch", "joint", torch.bfloat16)
    torch.testing.assert_close(split, joint, rtol=0.05, atol=0.05)
    assert all(gradient.any() for gradient in split)


def test_split_passes_the_constant_view_by_its_own_statistics():
    pool = digits()
    views = [torch.rand(rows, 1, 8, 8, generator=torch.Generator().manual_seed(rows)) for rows in (4, 6, 8)]
    joint, split, plain = (FixMatch(tiny_net(pool)).train() for _ in range(3))
    split.set_forward("split")
    together = joint.joint(*views, constant=1)
    assert all(torch.equal(a.logits, b.logits) for a, b in zip(together, plain.joint(*views), strict=True))
    assert together[1].logits.requires_grad
    first, constant, last = split.joint(*views, constant=1)
    assert not constant.logits.requires_grad
    assert first.logits.requires_grad
    assert last.logits.requires_grad
    other = tiny_net(pool).train()
    assert torch.equal(constant.logits, other(views[1]).logits)
    rest = other(torch.cat([views[0], views[2]]))
    assert torch.equal(torch.cat([first.features, last.features]), rest.features)
    for (name, mine), theirs in zip(split.net.named_buffers(), other.buffers(), strict=True):
        assert torch.equal(mine, theirs), name  # both passes moved the running statistics


@pytest.mark.parametrize(("method", "policy", "words"), [
    (FixMatch, "spilt", "unknown forward policy 'spilt'. Did you mean split"),
    (Supervised, "split", "supervised has no view that only makes targets"),
])
def test_a_wrong_forward_policy_says_so(tmp_path, method, policy, words):
    with pytest.raises(UsageError, match=words):
        train(tmp_path, method(flat_net()), forward=policy)


def test_the_trainer_splits_and_records_it(tmp_path):
    split, joint = (train(tmp_path / forward, forward=forward, steps=4) for forward in ("split", "joint"))
    config = yaml.safe_load((split.out / "config.yaml").read_text())
    assert config["forward"] == "split"
    assert rows(split.out)[0]["loss"] != rows(joint.out)[0]["loss"]  # BatchNorm has other batches
    with pytest.raises(UsageError, match="forward: 'split' -> 'joint'"):
        train(split.out, forward="joint", steps=4, resume="auto")


# Micro-batches by timing


def _chosen(monkeypatch, seconds, sizes=(64, 448)):
    """What is chosen if a step in k parts takes seconds[k], and which k were tried."""
    clock, tried = [0.0], []

    def step(parts):
        clock[0] += seconds[parts] + (10 if parts not in tried else 0)  # the first one sets up kernels
        tried.append(parts)
        return ssl_lab.Loss({"loss": torch.tensor(0.0)})

    monkeypatch.setattr(timing.time, "perf_counter", lambda: clock[0])
    return timing.fastest_micro_batches(sizes, CPU, step), tried


@pytest.mark.parametrize(("seconds", "best"), [
    ({1: 1.0, 2: 0.8, 4: 0.7, 8: 0.9}, 4),
    ({1: 1.0, 2: 0.97, 4: 0.96, 8: 0.98}, 1),  # not worth smaller batches
    ({1: 1.0, 2: 0.9, 4: 0.88, 8: 0.87}, 2),
])
def test_the_least_number_that_no_other_beats_is_chosen(monkeypatch, seconds, best):
    chosen, tried = _chosen(monkeypatch, seconds)
    assert chosen == best
    assert tried[:8] == [1, 2, 4, 8] * 2  # in turn; 16 would leave 32 images


@pytest.mark.parametrize(("sizes", "numbers"), [
    ((64, 448), {1, 2, 4, 8}), ((6, 448), {1, 2}), ((5, 448), set()), ((32, 0), set()), ((128, 0), {1, 2})])
def test_numbers_divide_both_batches_and_leave_enough_rows(monkeypatch, sizes, numbers):
    assert set(_chosen(monkeypatch, dict.fromkeys((1, 2, 4, 8), 1.0), sizes)[1]) == numbers


def test_auto_leaves_no_trace_and_is_resumed_with_what_it_chose(tmp_path, monkeypatch):
    monkeypatch.setattr(timing, "LEAST_ROWS", 6)
    monkeypatch.setattr(timing, "WORTH_IT", 1e-9)  # on a busy machine, any
    first = train(tmp_path / "auto", micro_batches="auto", steps=4)
    assert_same_run(first.out, train(tmp_path / "one", micro_batches=1, steps=4).out)
    monkeypatch.setattr(resolve, "fastest_micro_batches", lambda rows, runtime, step: [step(2), step(4), 4][-1])
    other = train(tmp_path / "four", micro_batches="auto", steps=None, minutes=0.005)
    config = yaml.safe_load((other.out / "config.yaml").read_text())
    assert config["micro_batches"] == 4
    assert_same_run(other.out, train(tmp_path / "again", micro_batches=4, steps=config["steps"]).out)
    monkeypatch.delattr(resolve, "fastest_micro_batches")
    train(other.out, micro_batches="auto", steps=config["steps"], resume="auto")
    with pytest.raises(UsageError, match="micro_batches: 4 -> 2"):
        train(other.out, micro_batches=2, steps=config["steps"], resume="auto")


# Compiling by timing


@pytest.mark.parametrize(("plain", "compiled", "steps", "answer", "said"), [
    (1.0, 0.8, 1000, True, "a step takes 800 ms compiled, else 1000 ms; compiling took 41 s"),
    (1.0, 0.97, 1000, False, "not compiled: a step takes 970 ms compiled, else 1000 ms"),
    (1.0, 0.1, 179, False, "not compiled: the run is short (179 s)"),
    (1.0, None, 1000, False, "not compiled: no compiler"),
    (1.0, 0.8, None, True, "a step takes 800 ms"),  # 1000 seconds
])
def test_nets_are_compiled_where_that_is_faster(monkeypatch, capsys, plain, compiled, steps, answer, said):
    clock, stances = [0.0], []

    @contextmanager
    def stance(name):
        stances.append(name)
        yield

    def step():
        if stances[-1] == "default" and compiled is None:
            raise TorchDynamoException("no compiler\nand many lines more")
        clock[0] += plain if stances[-1] == "force_eager" else compiled + 40.2 * (stances.count("default") == 1)
        return ssl_lab.Loss({"loss": torch.tensor(0.0)})

    monkeypatch.setattr(timing.time, "perf_counter", lambda: clock[0])
    monkeypatch.setattr(timing.torch.compiler, "set_stance", stance)
    assert timing.compiling_pays(step, steps, 1000.0, CPU) is answer
    assert said in capsys.readouterr().err


def test_auto_without_gain_is_off_and_is_resumed_with_what_it_chose(tmp_path, monkeypatch):
    first = train(tmp_path / "auto", compile="auto", steps=4)  # a short run
    assert_same_run(first.out, train(tmp_path / "off", steps=4).out)
    assert yaml.safe_load((first.out / "config.yaml").read_text())["compile"] == "off"
    monkeypatch.setattr(resolve, "compiling_pays", lambda *_: True)
    train(first.out, compile="auto", steps=4, resume="auto")
    with pytest.raises(UsageError, match="compile: 'off' -> 'on'"):
        train(first.out, compile="on", steps=4, resume="auto")


# What the benchmarks measure with


def test_laps_are_in_turn_and_the_first_round_is_dropped():
    order = []
    laps = measure.in_turn({"a": lambda: order.append("a") or len(order), "b": lambda: order.append("b")}, 3)
    assert "".join(order) == "abababab"
    assert laps["a"] == [3, 5, 7]
    with pytest.raises(UsageError, match="repeats=0"):
        measure.in_turn({}, 0)


def test_the_clock_counts_time_for_the_inner_part(monkeypatch):
    now = iter([0.0, 1.0, 5.0, 7.0, 10.0, 12.0])
    monkeypatch.setattr(measure.time, "perf_counter", lambda: next(now))
    clock = measure.Clock()
    with clock.part("outer"), clock.part("inner"):
        pass
    with clock.part("outer"):
        pass
    assert clock.seconds == {"outer": 1.0 + 2.0 + 2.0, "inner": 4.0}


def test_flops_of_a_linear_layer():
    layer, x = torch.nn.Linear(30, 20), torch.ones(10, 30)
    assert measure.flops(lambda: layer(x).sum().backward()) == 2 * 2 * 10 * 30 * 20  # x needs no gradient


def test_peak_memory_is_that_of_the_action():
    measure.peak_memory(lambda: torch.ones(2**28, dtype=torch.uint8), CPU)
    nothing = measure.peak_memory(lambda: None, CPU)
    assert measure.peak_memory(lambda: torch.ones(2**28, dtype=torch.uint8), CPU) - nothing > 2**27


# ssl-lab bench step

TINY = {"net": "tiny_4", "labeled": 8, "unlabeled": 16, "size": 8, "device": "cpu"}


def test_a_step_is_the_trainers(tmp_path):
    pool = random_pool(8, 24)
    mine, trained = (FixMatch(net("tiny_4", style=pool.style)) for _ in range(2))
    step = Step(mine, pool, 8, 16, CPU, 2, False)
    step(), step()
    train(tmp_path, trained, pool, 8, 16, steps=2, micro_batches=2)
    state = trained.state_dict()
    assert all(torch.equal(value, state[name]) for name, value in mine.state_dict().items())


def test_bench_step_prints_what_a_step_costs(capsys):
    bench_step(**TINY, micro_batches=2, forward="split", repeats=2, reference=True, json=True)
    row = json.loads(capsys.readouterr().out)
    assert {"method": "fixmatch", "net": "tiny_4", "micro_batches": 2, "forward": "split"}.items() <= row.items()
    assert row["step_ms_least"] <= row["step_ms"] <= row["step_ms_most"]
    assert row["images_per_second"] == pytest.approx(24e3 / row["step_ms"])
    assert row["tflops"] == pytest.approx(row["flops"] / row["step_ms"] / 1e9)
    assert row["peak_fraction"] == pytest.approx(row["tflops"] / row["peak_tflops"])
    assert row["peak_memory_bytes"] > 2**20
    assert row["ratio"] == pytest.approx(row["reference_step_ms"] / row["step_ms"])
    assert list(row["parts_ms"]) == list(PARTS)
    assert all(value > 0 for value in row["parts_ms"].values())
    assert sum(row["parts_ms"].values()) < 1.1 * row["step_ms_most"]


@pytest.mark.parametrize(("forward", "passes"), [("joint", 3 * 40), ("split", 3 * 24 + 16)])
def test_flops_are_those_of_the_passes(forward, passes):
    found, = bench_step(**TINY, forward=forward, micro_batches=1, repeats=1, json=True)
    style = random_pool(8, 24).style
    _, one = describe(net("tiny_4", style=style), style)
    stem = 2 * 4 * 3 * 9 * 64  # no gradient for its input: 4 channels from 3, 3x3, 64 pixels
    rows_with_gradient = 40 if forward == "joint" else 24
    assert found["flops"] == passes * one - rows_with_gradient * stem


def test_methods_take_turns_and_fixmatch_is_the_unit(capsys):
    found = bench_step("fixmatch,supervised", **TINY, micro_batches="auto", repeats=1)
    out = capsys.readouterr().out
    assert [row["to_fixmatch"] for row in found] == [1.0, found[1]["step_ms"] / found[0]["step_ms"]]
    assert found[1]["images_per_second"] == pytest.approx(8e3 / found[1]["step_ms"])
    assert "supervised" in out
    assert "gradient" in out


def test_a_step_with_techniques_is_beside_the_plain_one(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "120")
    plain, sharp, both = found = bench_step("supervised", **TINY, repeats=1, techniques=("sam", "swa + drop_path"))
    out = capsys.readouterr().out
    assert [row["method"] for row in found] == ["supervised", "supervised with sam", "supervised with swa + drop_path"]
    assert [row["to_plain"] for row in found] == [row["step_ms"] / plain["step_ms"] for row in found]
    assert sharp["flops"] == 2 * plain["flops"]  # two passes; the average costs none
    assert both["flops"] == plain["flops"]
    assert "of the plain" in out
    assert "+ swa + drop_path" in out
    with pytest.raises(UsageError, match="sam and gnp are both rules for a whole step"):
        bench_step("supervised", **TINY, repeats=1, techniques=("sam + gnp",))


def test_all_techniques_are_those_that_can_act(capsys, monkeypatch):
    monkeypatch.setattr(step_bench, "TECHNIQUES", {name: TECHNIQUES[name] for name in ("swa", "pof", "oversample")})
    found = bench_step("simclr", **TINY, repeats=1, techniques=("all", "swa"), json=True)
    assert [row["method"] for row in found] == ["simclr", "simclr with swa"]
    said = capsys.readouterr().err.splitlines()
    assert [line.partition(":")[0::2] for line in said] == [
        ("note", " simclr with pof is left out: pof moves the classifier's head, and simclr trains no classifier"),
        ("note", " simclr with oversample is left out: oversample draws labeled images, and simclr takes none")]


def test_a_step_with_techniques_is_the_trainers(tmp_path):
    pool, names = random_pool(8, 24), ["sam", "noise_consistency", "oversample"]
    mine, trained = (FixMatch(net("tiny_4", style=pool.style)) for _ in range(2))
    step = Step(mine, pool, 8, 16, CPU, 1, False, together(names))
    step(), step()
    train(tmp_path, trained, pool, 8, 16, steps=2, techniques=names)
    state = trained.state_dict()
    assert all(torch.equal(value, state[name]) for name, value in mine.state_dict().items() if "ema" not in name)


ALONE = [name for name, method in METHODS.items()
         if name not in {"opencos", "hiermatch", "mae"} and method.family != "distillation"]


def small_step(name, runtime):
    pool = random_pool(16, 24)
    method = build.method(name, net("tiny_4", style=pool.style), pool, SMALL_PARTS.get(name, {}))
    return Step(method, pool, 8, 16, runtime, 1, False)


@pytest.mark.parametrize("name", ALONE)
def test_every_method_has_a_step(name):
    _, parts = small_step(name, CPU)()
    assert parts["forward and backward"] > 0


VIEWS = {}


@pytest.fixture
def views_once(monkeypatch):
    """On the device of no values the pixels of weak and strong views are computed once for tensors of each shape: what
    comes out has nothing but a shape, and whatever waits for a value fails at the first time."""
    def augmented(images, moves, turns, squares, fixed):
        shapes = tuple(each.shape for each in (images, moves, *(turns or ()), *squares, *fixed))
        if shapes not in VIEWS:
            VIEWS[shapes] = dense.augmented(images, moves, turns, squares, fixed)
        return VIEWS[shapes].clone()

    monkeypatch.setattr(Weak, "augment", staticmethod(augmented))


@pytest.mark.usefixtures("views_once")
@pytest.mark.parametrize("name", ALONE)
def test_no_step_reads_anything_back(name):
    """From indices to averaged weights, on the device of no values: whatever waits for one of them fails there."""
    step = small_step(name, Runtime(torch.device("meta"), "fp32", "a test"))
    for _ in range(2):
        assert step.take(1).total.is_meta
    with pytest.raises(NotImplementedError, match="meta"):
        step.meter.check()  # as the trainer does now and then


@pytest.mark.usefixtures("views_once")
@pytest.mark.parametrize("name", [name for name, kind in TECHNIQUES.items() if kind.kind == "step"])
def test_no_update_rule_reads_anything_back(name):
    pool = random_pool(16, 24)
    step = Step(FixMatch(net("tiny_4", style=pool.style)), pool, 8, 16,
                Runtime(torch.device("meta"), "fp32", "a test"), 1, False, together([name]))
    for _ in range(2):
        assert step.take(1).total.is_meta


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("name", ALONE)
def test_no_step_waits_for_the_gpu(name):
    step = small_step(name, Runtime.start("cuda"))
    step.take(1)  # sets up kernels
    with nothing_waits_for_the_gpu():
        for _ in range(3):  # the next one's batch is made meanwhile, and what that raises comes with it
            step.take(1)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("name", ["fixmatch", "mixmatch", "labeled_simclr", "byol"])
def test_steps_are_the_same_again_on_a_gpu(name):
    one, other = (small_step(name, Runtime.start("cuda")) for _ in range(2))
    for step in (one, other):
        for _ in range(5):
            step.take(1)
    state = other.method.state_dict()
    assert all(torch.equal(value, state[key]) for key, value in one.method.state_dict().items())


def test_a_step_that_differentiates_twice_is_counted():
    found = bench_step("supervised,vat", **TINY, repeats=1)
    assert found[1]["flops"] > 2 * found[0]["flops"]


def test_teachers_and_hierarchies_are_made_for_those_that_need_them():
    small, large, hierarchical = bench_step("kd", **TINY, repeats=1) + bench_step(
        "kd,hiermatch", **TINY, teacher="tiny_8", repeats=1)
    assert small["flops"] < large["flops"]
    assert large["parts_ms"]["forward without gradient"] > 0
    assert hierarchical["method"] == "hiermatch"


def test_wrong_arguments_say_so(monkeypatch, tmp_path):
    with pytest.raises(UsageError, match="unknown method 'fixmach'"):
        bench_step("fixmach", **TINY)
    with pytest.raises(UsageError, match="says nothing of supervised"):
        bench_step("supervised", reference=True, **TINY)
    with pytest.raises(UsageError, match="supervised has no view that only makes targets"):
        bench_step("supervised", forward="split", **TINY)
    monkeypatch.setattr(ssl_lab, "__file__", str(tmp_path / "ssl_lab" / "__init__.py"))
    with pytest.raises(UsageError, match="run it in a clone"):
        bench_step(reference=True, **TINY)


def test_the_reference_learns():
    pool = random_pool(8, 48)
    made = net("tiny_4", style=pool.style)
    before = [p.clone() for p in made.parameters()]
    step = runpy.run_path(str(ROOT / "tests" / "benchmarks" / "reference.py"))["Reference"](
        made, pool, 16, 32, CPU.device)
    numbers = step()
    assert numbers["loss"] == pytest.approx(numbers["labeled"] + numbers["unlabeled"])
    for old, new, mean in zip(before, made.parameters(), step.average.parameters(), strict=True):
        torch.testing.assert_close(mean, 0.999 * old + 0.001 * new)
    assert not torch.equal(before[0], next(made.parameters()))


# ssl-lab bench views


def test_bench_views_compares_results_too(capsys):
    bench_views(size=(32, 33), rows=64, repeats=1, device="cpu", json=True)
    found = json.loads(capsys.readouterr().out)
    assert [(row["view"], row["size"]) for row in found[:len(found) // 2]] == [
        (name, 32) for name in ("weak", "strong", "simclr", "crop", "eval")]
    for row in found:
        if row["view"] not in ("crop", "eval"):
            assert row["kornia_ratio"] == pytest.approx(row["images_per_second"] / row["kornia_images_per_second"])
        assert row["images_per_second"] == pytest.approx(64e3 / row["ms"])
        if row["view"] in ("eval", "weak", "strong"):
            least = row["pillow_images_per_second"] / row["images_per_second"]
            assert row["ratio"] == pytest.approx(1 / least)
            assert row["differing"] <= (0.002 if row["view"] == "strong" else 0)  # see ops.auto_contrast


def test_bench_views_in_a_table(capsys):
    bench_views(size=(8,), rows=4, repeats=1, device="cpu")
    out = capsys.readouterr().out
    assert "strong" in out
    assert "Methods take ours on cpu: " in out
    with pytest.raises(UsageError, match="rows=0"):
        bench_views(rows=0)


# ssl-lab bench nets


def test_bench_nets_says_what_they_have_and_how_fast_they_are(capsys):
    bench_nets("tiny_4,timm/test_vit", size=16, rows=3, repeats=2, device="cpu", json=True)
    found = json.loads(capsys.readouterr().out)
    assert [row["net"] for row in found] == ["tiny_4", "timm/test_vit"]
    parameters, flops = describe(net("tiny_4", 10, Style(height=16, width=16)), Style(height=16, width=16))
    assert (found[0]["parameters"], found[0]["gflops"]) == (parameters, flops / 1e9)
    for row in found:
        assert row["tflops"] == pytest.approx(row["gflops"] * row["images_per_second"] / 1e3)
        assert row["trained_per_second"] > 0
    bench_nets("tiny_4", size=8, rows=2, repeats=1, device="cpu")
    assert re.search(r"tiny_4 +[\d,]+ +0\.00\d", capsys.readouterr().out)
    for wrong, words in ({"nets": "tiny"}, "unknown net 'tiny'"), ({"rows": 0}, "rows=0"):
        with pytest.raises(UsageError, match=words):
            bench_nets(**wrong)
