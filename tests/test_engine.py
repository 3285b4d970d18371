"""The loop: that it trains, what it writes, update rules, micro-batches, numbers that are not finite."""

import json
import math
import shutil
from contextlib import nullcontext
from dataclasses import replace

import numpy as np
import pytest
import torch
import yaml
from small_runs import At, Flat, assert_same_run, flat_net, rows, tiny_net, train
from torch import nn

import ssl_lab as sl
from ssl_lab.batch import At as Moment
from ssl_lab.batch import Loss
from ssl_lab.calibration import calibrate
from ssl_lab.data import Pool, load
from ssl_lab.engine import Feed, Runtime, Trainer, accuracy, predict, scores
from ssl_lab.engine.card import Card
from ssl_lab.engine.closure import StepClosure
from ssl_lab.engine.evaluate import rates, tallies
from ssl_lab.engine.folder import LATEST, alone_in
from ssl_lab.engine.meter import Meter
from ssl_lab.engine.records import _lagging
from ssl_lab.engine.timing import steps_within
from ssl_lab.errors import NonFiniteLossError, UsageError
from ssl_lab.methods import FixMatch, Supervised
from ssl_lab.nets import Output, frozen_statistics
from ssl_lab.notes import once
from ssl_lab.optim import SGD, AdamW, parameter_groups
from ssl_lab.schedule import linear

CPU = Runtime(torch.device("cpu"), "fp32", "asked")


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    out = tmp_path_factory.mktemp("trained")
    pool = sl.load("digits").split(labels=200, valid=100, seed=0)
    return train(out, FixMatch(tiny_net(pool), ema=0.9), pool, 32, 32, steps=80), pool


def test_training_learns(trained):
    result, _ = trained
    losses = [row["loss"] for row in rows(result.out)]
    assert sum(losses[-10:]) < 0.5 * sum(losses[:10])
    assert result.test_accuracy > 0.75  # chance is 0.1
    assert result.summary["valid_accuracy"] > 0.75


def test_its_last_predictions_and_its_card_stay(trained):
    result, pool = trained
    card = Card.read(result.out)
    assert (card.net, card.class_names, card.style, card.labels) == ("tiny_8", pool.class_names, pool.style, 200)
    with np.load(result.out / "predictions.npz") as kept:
        for split, rows_ in (("valid", pool.valid), ("test", pool.test)):
            assert np.array_equal(kept[f"{split}_rows"], rows_)
            right = kept[f"{split}_logits"].argmax(axis=1) == pool.truth[rows_]
            assert right.mean() == pytest.approx(result.summary[f"{split}_accuracy"])
        assert card.calibration == calibrate(kept["valid_logits"], pool.truth[pool.valid], "validation images")
    assert card.calibration.temperature != 1


def test_a_run_writes_what_it_promises(trained):
    result, _ = trained
    assert sorted(path.name for path in result.out.iterdir()) == [
        "checkpoint.pt", "config.yaml", "images.npz", "metrics.jsonl", "model.json", "model.safetensors",
        "predictions.npz", "split.json", "summary.json"]
    summary = json.loads((result.out / "summary.json").read_text())
    assert summary == result.summary
    assert summary | {"method": "fixmatch", "data": "digits", "labels": 200, "seed": 0, "steps": 80} == summary
    assert {"seconds", "images_per_second", "peak_memory_bytes", "valid_accuracy", "test_accuracy",
            "selection"} <= summary.keys()
    assert summary["images_per_second"] == pytest.approx(64 * 80 / summary["seconds"], rel=0.01)
    assert summary["peak_memory_bytes"] > 2**20
    assert summary["split"] == json.loads((result.out / "split.json").read_text())["hash"]
    metrics = rows(result.out)
    assert [row["step"] for row in metrics] == list(range(1, 81))
    assert {"loss", "loss/labeled", "loss/unlabeled", "mask_rate", "lr"} <= metrics[0].keys()
    assert [row["step"] for row in metrics if "valid_accuracy" in row] == list(range(8, 81, 8))
    assert metrics[-1]["valid_accuracy"] == summary["valid_accuracy"]
    assert "test_accuracy" not in metrics[-1]  # with a validation split, the test split is read once, at the end
    config = yaml.safe_load((result.out / "config.yaml").read_text())
    assert (config["steps"], config["minutes"], config["precision"]) == (80, None, "fp32")


def test_the_model_reloads_to_the_same_predictions(trained):
    result, pool = trained
    again = sl.net("tiny_8", classes=10, style=pool.style, seed=5, weights=result.out / "model.safetensors")
    again.to(memory_format=torch.channels_last)  # as in training: another layout rounds differently
    expected = predict(result.method.predictor(), pool, pool.test, CPU)
    assert torch.equal(predict(again, pool, pool.test, CPU), expected)
    right = (expected.argmax(dim=1).numpy() == pool.truth[pool.test]).mean()
    assert result.test_accuracy == accuracy(again, pool, pool.test, CPU) == pytest.approx(right)


def test_evaluation_leaves_the_mode_alone_and_bears_no_images(digits):
    net = tiny_net(digits)
    before = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    assert predict(net, digits, digits.test[:0], CPU).shape == (0, 10)
    assert math.isnan(accuracy(net, digits, digits.test[:0], CPU))
    assert net.training
    accuracy(net.eval(), digits, digits.test[:40], CPU)
    assert not net.training
    assert all(torch.equal(tensor, before[name]) for name, tensor in net.state_dict().items())


def contents(folder):
    return {path.relative_to(folder): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize(("ended", "words"), [
    (True, "holds a run that is finished, and it is not overwritten: report it again with --resume auto, choose "),
    (False, "holds a run that was not finished, and it is not overwritten: go on with --resume auto, choose another"),
])
def test_a_new_run_overwrites_no_other(tmp_path, ended, words):
    with nullcontext() if ended else pytest.raises(ZeroDivisionError):
        train(tmp_path, steps=3, checkpoint_seconds=0, callbacks=[] if ended else [At(2, lambda: 1 / 0)])
    before = contents(tmp_path)
    with pytest.raises(UsageError, match=words):
        train(tmp_path, steps=2)
    assert contents(tmp_path) == before
    train(tmp_path, steps=3, resume="auto")


def test_a_run_without_checkpoints_whose_weights_are_kept_is_not_overwritten(tmp_path):
    train(tmp_path, steps=2)
    for checkpoints in tmp_path.glob("checkpoint*"):
        checkpoints.unlink()
    with pytest.raises(UsageError, match="holds a run that is finished"):
        train(tmp_path, steps=2)


def test_the_default_folder_is_made_free_with_a_word(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert sl.Trainer(steps=1).folder == sl.Settings().out == LATEST
    runs = []
    for seed in range(3):
        train(LATEST, steps=2, seed=seed)
        runs.append(contents(tmp_path / LATEST))
        assert capsys.readouterr().err.count("note: the earlier run in runs/latest lies in runs/latest-") == (seed > 0)
    assert [contents(tmp_path / "runs" / name) for name in ("latest-1", "latest-2", "latest")] == runs
    train(LATEST, steps=2, seed=2, resume="auto")  # the last one
    with alone_in(LATEST), pytest.raises(UsageError, match="another process writes into runs/latest"):
        train(LATEST, steps=2)
    assert contents(tmp_path / LATEST).keys() == runs[2].keys()


@pytest.mark.parametrize(("settings", "words"), [
    ({"steps": None}, "give either steps or minutes"),
    ({"steps": 5, "minutes": 1.0}, "give either steps or minutes"),
    ({"steps": 0}, "positive length"),
    ({"steps": None, "minutes": -1.0}, "positive length"),
    ({"micro_batches": 3}, "batch of 8 labeled images does not divide into 3 micro-batches"),
    ({"micro_batches": 0}, "does not divide into 0 micro-batches"),
    ({"labeled": 0}, "batch of 0 labeled"),
    ({"evaluations": 0}, "evaluations=0"),
    ({"clip": 0.0}, "clip=0.0"),
    ({"device": "cuda:99"}, "device 'cuda:99' cannot be used here"),
    ({"device": "gpu"}, "try --device cpu"),
    ({"precision": "fp8"}, "unknown precision 'fp8'"),
])
def test_bad_settings_say_so(tmp_path, settings, words):
    with pytest.raises(UsageError, match=words):
        train(tmp_path, **settings)
    assert not (tmp_path / "checkpoint.pt").exists()


def test_a_net_for_other_classes_says_so(tmp_path, digits):
    method = Supervised(sl.net("tiny_8", classes=7, style=digits.style))
    with pytest.raises(UsageError, match=r"7 classes apart, but digits has 10; build it with classes=pool\.class_n"):
        train(tmp_path, method, digits)


def test_a_pool_without_labels_says_so(tmp_path):
    pool = sl.Pool.from_arrays(torch.zeros(20, 8, 8, dtype=torch.uint8), [-1] * 20, class_names="0123456789")
    with pytest.raises(UsageError, match="no labeled training images"):
        train(tmp_path, Supervised(flat_net()), pool)


@pytest.fixture
def untested(digits):
    """A pool without test images."""
    return sl.Pool.from_arrays(digits.images.take(digits.labeled), digits.truth[digits.labeled])


def test_a_pool_without_test_images_trains(tmp_path, untested):
    result = train(tmp_path, Supervised(flat_net()), untested, steps=None, minutes=0.002)
    assert math.isnan(result.test_accuracy)
    assert (result.summary["test_accuracy"], result.summary["valid_accuracy"]) == (None, None)


# Minutes


def test_minutes_become_steps_and_leave_no_trace(tmp_path):
    timed = train(tmp_path / "timed", steps=None, minutes=0.01)
    config = yaml.safe_load((timed.out / "config.yaml").read_text())
    assert config["steps"] == timed.summary["steps"] == rows(timed.out)[-1]["step"]
    assert config["minutes"] is None
    counted = train(tmp_path / "counted", steps=config["steps"])
    assert_same_run(timed.out, counted.out)


def steps_by_a_clock(monkeypatch, seconds, first, per_image=0.001, images=1000):
    """How many steps of 10 ms fit, by a clock that only steps and predictions move on. first: seconds of the first
    prediction, beyond those of the others."""
    pool = sl.load("digits").split(labels=100, seed=0)
    clock, predicted = [0.0], []

    def predict(net, pool, indices, runtime):
        clock[0] += len(indices) * per_image + (0 if predicted else first)
        predicted.append(len(indices))

    def step():
        clock[0] += 0.01
        return Loss({"all": torch.zeros(())})

    monkeypatch.setattr("ssl_lab.engine.timing.predict", predict)
    monkeypatch.setattr("ssl_lab.engine.timing.time.perf_counter", lambda: clock[0])
    pool = replace(pool, test=pool.test[:100], valid=pool.test[:0])
    method = Supervised(tiny_net(pool))
    steps = steps_within(seconds, 0.0, step, method, pool, CPU, 10, images)
    return steps, clock[0]


def test_a_slow_first_evaluation_costs_its_time_and_no_more(monkeypatch, capsys):
    for first in (0, 20):
        steps, spent = steps_by_a_clock(monkeypatch, 60, first)
        assert first <= spent < first + 5
        assert steps == pytest.approx((60 - spent - 2 * 11 * 100 * 0.001) / 0.01, abs=1)
    assert not capsys.readouterr().err


def test_where_measuring_takes_the_time_there_is_a_word(monkeypatch, capsys):
    steps, _ = steps_by_a_clock(monkeypatch, 60, first=0, per_image=0.04)
    assert steps == 5  # all ten points of the curve would take 88 s: a run of few steps has as few of them
    assert f"leaves room for {steps} steps of 10 ms; give more --minutes, or --steps" in capsys.readouterr().err


# Update rules


class Recorder(Supervised):
    """Notes what each forward pass sees."""

    def __init__(self, net):
        super().__init__(net)
        self.seen = []

    def forward(self, batch, at):
        loss = super().forward(batch, at)
        statistics = {name: buffer.clone() for name, buffer in self.net.named_buffers()}
        self.seen.append((batch.labeled["view"].clone(), statistics, loss.total.item()))
        return loss


def sharpness_aware(closure, optimizer, at, rho=0.05):
    """Foret et al. 2020: the gradient at the worst point nearby, applied here."""
    loss = closure()
    learned = [p for group in optimizer.param_groups for p in group["params"]]
    shifts = [rho * p.grad / torch.nn.utils.get_total_norm([q.grad for q in learned]) for p in learned]
    with torch.no_grad():
        torch._foreach_add_(learned, shifts)
        with torch.enable_grad():
            closure()
        torch._foreach_sub_(learned, shifts)
    optimizer.step()
    return loss


def test_an_update_rule_may_call_the_closure_twice(tmp_path, digits):
    method = Recorder(tiny_net(digits))
    start = {name: buffer.clone() for name, buffer in method.net.named_buffers()}
    result = train(tmp_path, method, digits, steps=2, update=sharpness_aware)
    first, second, third, _ = method.seen
    assert torch.equal(first[0], second[0])
    assert not torch.equal(first[0], third[0])
    assert second[2] > first[2]  # uphill by construction
    assert all(torch.equal(first[1][name], second[1][name]) for name in start)
    moved = {name for name in start if not torch.equal(start[name], first[1][name])}
    assert any(name.endswith("running_mean") for name in moved)
    assert {int(first[1][name]) for name in moved if name.endswith("num_batches_tracked")} == {1}
    assert rows(result.out)[0]["loss"] == pytest.approx(first[2])  # the loss to report is the rule's


def test_the_closure_repeats_its_random_numbers(digits):
    method = Supervised(flat_net(dropout=0.5))
    batch = Feed(digits, method.views, 8, 8, 0, CPU.device)(Moment(0, 1))
    optimizer = SGD().build(method)
    closure = StepClosure(method, optimizer, CPU, batch.chunk(2), Moment(0, 1), None)
    assert closure().total == closure().total
    later = StepClosure(method, optimizer, CPU, batch.chunk(2), Moment(1, 2), None)
    assert closure().total != later().total


@pytest.mark.parametrize("momentum", [0.1, None])
def test_frozen_statistics_normalize_by_the_batch_and_stay(momentum):
    norm, fixed = nn.BatchNorm2d(3, momentum=momentum), nn.BatchNorm2d(3, track_running_stats=False)
    both, x = nn.Sequential(norm, fixed), torch.randn(8, 3, 4, 4)
    before = {name: buffer.clone() for name, buffer in norm.named_buffers()}
    with frozen_statistics(both):
        frozen = norm(x)
        norm.eval()
        torch.testing.assert_close(norm(x), x, atol=1e-4, rtol=1e-4)  # in eval mode, by the statistics as they were
        norm.train()
    assert all(torch.equal(buffer, before[name]) for name, buffer in norm.named_buffers())
    assert torch.equal(norm(x), frozen)
    assert int(norm.num_batches_tracked) == 1
    assert not fixed.track_running_stats


# Micro-batches and clipping


def gradients(method, pool, parts, clip=None):
    batch = Feed(pool, method.views, 16, 32, 0, CPU.device, parts=parts)(Moment(0, 1))
    optimizer = SGD().build(method)
    loss = StepClosure(method, optimizer, CPU, batch.chunk(parts), Moment(0, 1), clip)()
    return loss, [p.grad for p in method.parameters() if p.grad is not None]


@pytest.mark.parametrize("kind", [Supervised, lambda net: FixMatch(net, threshold=0.12)])
def test_micro_batches_give_the_gradient_of_the_whole_batch(digits, kind):
    (whole, expected), (cut, got) = (gradients(kind(flat_net()), digits, parts) for parts in (1, 2))
    torch.testing.assert_close(got, expected, atol=1e-6, rtol=0)
    torch.testing.assert_close(cut.terms, whole.terms, atol=1e-6, rtol=0)
    torch.testing.assert_close(cut.logs, whole.logs)  # also shares of rows, of which the parts have not equally many


def test_micro_batches_have_their_own_batch_statistics(digits):
    (_, whole), (_, cut) = (gradients(Supervised(tiny_net(digits)), digits, parts) for parts in (1, 2))
    assert max((a - b).abs().max() for a, b in zip(whole, cut, strict=True)) > 1e-4


def test_the_gradient_is_clipped(digits):
    _, free = gradients(Supervised(flat_net()), digits, 1)
    norm = torch.nn.utils.get_total_norm(free)
    _, loose = gradients(Supervised(flat_net()), digits, 1, clip=2 * norm.item())
    _, tight = gradients(Supervised(flat_net()), digits, 1, clip=norm.item() / 4)
    torch.testing.assert_close(loose, free)
    torch.testing.assert_close(tight, [g / 4 for g in free], atol=1e-6, rtol=1e-4)


# Numbers


def loss_of(value, **logs):
    return Loss({"labeled": torch.tensor(value)}, {name: torch.tensor(each) for name, each in logs.items()})


def test_the_meter_averages_what_is_reported():
    meter, nan = Meter(), math.nan
    for step, (loss, logs) in enumerate([(1.0, {"a": nan}), (2.0, {"a": 0.5}), (6.0, {"b": 1.0})]):
        meter.add(step, loss_of(loss, **logs))
    assert meter.mean(CPU) == {"loss": 3.0, "loss/labeled": 3.0, "a": 0.5, "b": 1.0}
    meter.add(3, loss_of(1.0, a=nan))
    assert meter.mean(CPU) == {"loss": 1.0, "loss/labeled": 1.0}
    assert meter.mean(CPU) == {}


def test_the_meter_goes_on_where_it_was_saved():
    meter, again = Meter(), Meter()
    meter.add(0, loss_of(1.0))
    again.load(meter.state())
    for each in (meter, again):
        each.add(1, loss_of(4.0))
    assert meter.mean(CPU) == again.mean(CPU) == {"loss": 2.5, "loss/labeled": 2.5}


def test_the_meter_names_the_first_step_that_is_not_finite():
    meter = Meter()
    for step, value in enumerate([1.0, math.inf, math.nan]):
        meter.add(step, loss_of(value, a=1.0))
    with pytest.raises(NonFiniteLossError, match=r"at step 1: loss = inf, loss/labeled = inf$"):
        meter.mean(CPU)


class Breaks(Supervised):
    """Its loss, or its weights, stop being finite at a step."""

    def __init__(self, net, step, what):
        super().__init__(net)
        self.step, self.what = step, what

    def forward(self, batch, at):
        loss = super().forward(batch, at)
        factor = math.nan if at.step == self.step and self.what == "loss" else 1.0
        return Loss({name: term * factor for name, term in loss.terms.items()}, loss.logs)

    def after_step(self, at):
        super().after_step(at)
        if at.step == self.step and self.what == "weights":
            self.net.head.bias.data[3] = math.inf


@pytest.mark.parametrize("what", ["loss", "weights"])
def test_what_is_not_finite_stops_the_run_and_is_not_saved(tmp_path, what):
    with pytest.raises(NonFiniteLossError) as stopped:
        train(tmp_path, Breaks(flat_net(), 4, what), steps=9, checkpoint_seconds=0)
    message = str(stopped.value)
    assert "step 4" in message
    assert ("loss = nan, loss/labeled = nan" in message) == (what == "loss")
    assert f"the last good checkpoint is {tmp_path / 'checkpoint.pt'}" in message
    saved = torch.load(tmp_path / "checkpoint.pt", weights_only=True)
    assert saved["step"] == 4
    assert all(tensor.isfinite().all() for tensor in saved["method"].values())
    assert [row["step"] for row in rows(tmp_path)][:4] == [1, 2, 3, 4]
    shutil.rmtree(tmp_path)
    with pytest.raises(NonFiniteLossError, match="no checkpoint had been saved yet"):
        train(tmp_path, Breaks(flat_net(), 4, what), steps=9)
    assert not (tmp_path / "checkpoint.pt").exists()


# Optimizers and averages


def test_only_weights_decay():
    net = nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.Flatten(), nn.Linear(8, 3), Flat())
    net[4].requires_grad_(False)
    decayed, free = parameter_groups(net)
    assert (decayed["decay"], free["decay"]) == (True, False)
    assert {id(p) for p in decayed["params"]} == {id(net[0].weight), id(net[3].weight)}
    assert {id(p) for p in free["params"]} == {id(net[0].bias), id(net[1].weight), id(net[1].bias), id(net[3].bias)}


def test_sgd_follows_the_schedule_step_by_step():
    torch.manual_seed(0)
    layer, total = nn.Linear(3, 2).double(), 5
    spec = SGD(lr=linear(0.5, 0.1), weight_decay=0.1, momentum=0.9, nesterov=True)
    optimizer = spec.build(layer)
    by_hand = [p.detach().clone() for p in layer.parameters()]
    velocity = [torch.zeros_like(p) for p in by_hand]
    for step in range(total):
        lr = spec.set(optimizer, Moment(step, total))
        assert lr == pytest.approx(0.5 - 0.4 * step / total)
        for i, p in enumerate(layer.parameters()):
            gradient = torch.full_like(p, 0.3 * (step - 2))
            p.grad = gradient.clone()
            gradient = gradient + (0.1 * by_hand[i] if p.ndim == 2 else 0)
            velocity[i] = 0.9 * velocity[i] + gradient
            by_hand[i] = by_hand[i] - lr * (gradient + 0.9 * velocity[i])
        optimizer.step()
        torch.testing.assert_close([p.detach() for p in layer.parameters()], by_hand, rtol=1e-12, atol=1e-12)


def test_adamw_trains(tmp_path, digits):
    result = train(tmp_path, Supervised(tiny_net(digits), ema=0.0), digits, steps=60, labeled=32,
                   optimizer=AdamW(lr=linear(1e-2, 0.0)))
    assert result.test_accuracy > 0.5
    assert [row["lr"] for row in rows(tmp_path)][:2] == pytest.approx([1e-2, 1e-2 * 59 / 60])


def test_training_is_the_loop_by_hand(tmp_path, digits):
    steps, decay = 4, 0.15
    result = train(tmp_path, Supervised(tiny_net(digits), ema=decay), digits, steps=steps,
                   optimizer=SGD(lr=linear(0.2, 0.0), weight_decay=0.01))
    net = tiny_net(digits)
    learned = dict(net.named_parameters())
    average = {name: value.double() for name, value in net.state_dict().items()}
    velocity = {name: torch.zeros_like(p) for name, p in learned.items()}
    feed = Feed(digits, Supervised(net).views, 8, 0, 0, CPU.device)
    for step in range(steps):
        batch = feed(Moment(step, steps)).labeled
        loss = nn.functional.cross_entropy(net(batch["view"]).logits, batch.targets)
        found = torch.autograd.grad(loss, list(learned.values()))
        with torch.no_grad():
            for (name, p), gradient in zip(learned.items(), found, strict=True):
                gradient = gradient + 0.01 * p if p.ndim > 1 else gradient
                velocity[name] = 0.9 * velocity[name] + gradient
                p -= 0.2 * (1 - step / steps) * (gradient + 0.9 * velocity[name])
            kept = min(1 - 10 / (step + 10), decay)  # 0, 1/11, 0.15, 0.15
            for name, value in net.state_dict().items():
                average[name] = kept * average[name] + (1 - kept) * value if value.is_floating_point() else value
    torch.testing.assert_close(dict(result.method.net.named_parameters()), learned, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(result.method.predictor().state_dict(), average, atol=1e-5, rtol=1e-4,
                               check_dtype=False)


# Precision, compilation


def test_bf16_runs_on_a_cpu(tmp_path):
    result = train(tmp_path, steps=40, labeled=32, precision="bf16")
    assert result.summary["precision"] == "bf16"
    assert result.test_accuracy > 0.3
    assert {p.dtype for p in result.method.parameters()} == {torch.float32}


@pytest.mark.skipif(shutil.which("c++") is None, reason="torch.compile needs a C++ compiler on a CPU")
@pytest.mark.filterwarnings("ignore")  # of the compiler's own
def test_compiled_nets_train_alike(tmp_path, untested):
    plain, compiled = (train(tmp_path / mode, Supervised(flat_net()), untested, steps=3, compile=mode)
                       for mode in ("off", "on"))
    torch.testing.assert_close(compiled.method.state_dict(), plain.method.state_dict(), atol=1e-5, rtol=1e-4)
    assert compiled.method.state_dict().keys() == plain.method.state_dict().keys()


def test_one_trainer_is_good_for_many_runs(tmp_path, digits, monkeypatch):
    monkeypatch.chdir(tmp_path)
    trainer = Trainer(steps=3, device="cpu", precision="fp32", callbacks=[])
    first = trainer.fit(Supervised(flat_net()), digits, 8).summary
    second = trainer.fit(Supervised(flat_net()), digits, 8).summary
    assert first["test_accuracy"] == second["test_accuracy"]


class Fixed(torch.nn.Module):
    """A net whose logits are those given, row by row of the images' first pixel."""

    def __init__(self, logits):
        super().__init__()
        self.logits, self.classes = logits, logits.shape[1]

    def forward(self, x):
        return Output(x.flatten(1), self.logits[(x[:, 0, 0, 0] * 255).round().long()])


def test_scores_agree_with_a_loop():
    draw = np.random.default_rng(0)
    truth = np.concatenate([draw.integers(0, 3, 90), [-1] * 10])
    images = np.arange(100, dtype=np.uint8)[:, None, None].repeat(4, 1).repeat(4, 2)
    pool = Pool.from_arrays(images, truth)
    logits = torch.from_numpy(draw.normal(size=(100, 3))).float() * 3
    given = scores(Fixed(logits), pool, np.arange(100), Runtime.start("cpu", "fp32"))

    p = logits.double().softmax(1).numpy()
    recall, gap = [], 0.0
    for c in range(3):
        rows = [i for i in range(90) if truth[i] == c]
        recall.append(sum(p[i].argmax() == c for i in rows) / len(rows))
    for low in range(15):
        rows = [i for i in range(90) if low / 15 < p[i].max() <= (low + 1) / 15]
        gap += abs(sum((p[i].argmax() == truth[i]) - p[i].max() for i in rows)) / 90
    assert given["accuracy"] == pytest.approx(np.mean(p[:90].argmax(1) == truth[:90]))
    assert given["balanced_accuracy"] == pytest.approx(np.mean(recall))
    assert given["ece"] == pytest.approx(gap, abs=1e-6)
    assert given["accuracy"] != given["balanced_accuracy"]


def test_tallies_of_parts_add_up_and_leave_out_what_nobody_knows():
    probs = np.random.default_rng(0).dirichlet(np.ones(3), 20)
    truth = np.array([0, 1, 2, -1] * 5)
    whole = tallies(probs, truth)
    np.testing.assert_allclose(whole, tallies(probs[:7], truth[:7]) + tallies(probs[7:], truth[7:]))
    assert rates(whole) == pytest.approx(rates(tallies(probs[truth >= 0], truth[truth >= 0])))
    assert np.isnan(list(rates(tallies(probs, np.full(20, -1))).values())).all()


def test_monitors_join_the_metrics_and_the_summary(tmp_path):
    def monitor(method, pool, runtime):
        return {"length": float(method.net.head.weight.detach().norm()), "images": len(pool)}

    result = train(tmp_path, monitors=[monitor], evaluations=3)
    measured = [row for row in rows(tmp_path) if "images" in row]
    assert [row["step"] for row in measured] == [4, 8, 12]
    assert len({row["length"] for row in measured}) == 3
    assert result.summary["length"] == measured[-1]["length"]


def test_what_is_not_finite_is_null_in_json(tmp_path):
    result = train(tmp_path, Supervised(flat_net()), steps=1, monitors=[lambda *_: {"undefined": math.nan}])
    for name in ("summary.json", "metrics.jsonl"):
        assert json.loads((tmp_path / name).read_text(), parse_constant=pytest.fail)["undefined"] is None
    assert math.isnan(result.summary["undefined"])


def test_a_method_without_a_classifier_gets_no_accuracy(tmp_path, monkeypatch):
    monkeypatch.setattr(FixMatch, "classifies", False)
    result = train(tmp_path)
    assert result.summary["test_accuracy"] is None
    assert not [key for row in rows(tmp_path) for key in row if "test_accuracy" in key]


def test_a_run_begins_with_the_classes_that_its_labels_leave_out(tmp_path, capsys):
    train(tmp_path / "run", pool=sl.load("digits").split(3, seed=0, balance="natural"), steps=1)
    assert "of the 10 classes have no labeled train image: " in capsys.readouterr().err


# What is known of the unlabeled images


def pool_of_a_folder():
    """As people have it: nothing is known of the images but the labels that training has."""
    pool = sl.load("digits").split(labels=30, seed=0)
    truth = np.full_like(pool.truth, -1)
    truth[pool.labeled] = pool.labels[pool.labeled]
    truth[pool.test] = pool.truth[pool.test]
    return replace(pool, truth=truth)


def test_what_training_was_told_does_not_count_as_found_out(digits):
    method = FixMatch(tiny_net(digits))
    for pool, known in ((digits, True), (pool_of_a_folder(), False)):
        found = Feed(pool, method.views, 8, len(pool.unlabeled), 0, CPU.device)(Moment(0, 1)).unlabeled
        told = torch.isin(found.indices, torch.from_numpy(pool.labeled))
        assert told.any()
        assert torch.equal(found.targets, torch.from_numpy(pool.labels[found.indices.numpy()]))
        assert found.truth[told].eq(-1).all()
        assert torch.equal(found.truth[~told] >= 0, torch.full((int((~told).sum()),), known))


@pytest.mark.parametrize("known", [True, False])
def test_pseudo_labels_are_judged_without_the_labeled_images(tmp_path, known, capsys):
    pool = sl.load("digits").split(labels=30, seed=0) if known else pool_of_a_folder()
    train(tmp_path, FixMatch(tiny_net(pool), threshold=0.0), pool, 8, 32, steps=4, callbacks=None)
    assert all(("pseudo_label_accuracy" in row) == known for row in rows(tmp_path))
    assert ("pseudo -" in capsys.readouterr().err) != known


class Stuck(Supervised):
    """Its averages stay where they began."""

    def after_step(self, at):
        pass


def test_a_run_says_where_its_averages_know_less_than_its_last_weights(tmp_path, capsys):
    once.cache_clear()
    pool = load("digits").split(labels=200, valid=200, seed=0)
    for number, method in enumerate((Supervised, Stuck)):
        result = train(tmp_path / str(number), method(tiny_net(pool)), pool, steps=60)
        assert ("averaged weights, which are kept" in capsys.readouterr().err) is (method is Stuck)
    assert result.summary["valid_accuracy"] < result.summary["valid_accuracy_plain"] - 0.3


@pytest.mark.parametrize(("kept", "last", "images", "said"), [
    (0.384, 0.5, 2500, True), (0.49, 0.5, 2500, False), (0.5, 0.384, 2500, False), (0.384, 0.5, 0, False),
    (0.4, 0.5, 100, False), (1.0, 1.0, 100, False), (math.nan, math.nan, 100, False)])
def test_averages_lag_where_it_is_no_chance(kept, last, images, said):
    words = _lagging({"valid_accuracy": kept, "valid_accuracy_plain": last}, images)
    assert bool(words) is said
    assert not said or "38.4% of the validation images right, the last ones 50.0%" in words
