"""Training in fp16: how the loss is scaled, what is left out where gradients overflow, exact resume. On a CPU too."""

import signal

import pytest
import torch
from small_runs import assert_same_run, digits, flat_net, signal_at, tiny_net, train
from torch import nn

import ssl_lab as sl
from ssl_lab.batch import At
from ssl_lab.engine import Feed, Runtime, scale
from ssl_lab.engine.closure import StepClosure
from ssl_lab.engine.scale import LossScale, scaling
from ssl_lab.errors import Interrupted, NonFiniteLossError, UsageError
from ssl_lab.machine import resolve_precision
from ssl_lab.methods import FixMatch

CPU = torch.device("cpu")


def stepped(optimizer, weight, gradient, loss_scale):
    """One step with a gradient that was scaled."""
    weight.grad = torch.full_like(weight, gradient * loss_scale.scale)
    loss_scale.unscale(nn.ParameterList([weight]))
    optimizer.step()
    loss_scale.update()


def test_the_scale_goes_as_torchs_does(monkeypatch):
    monkeypatch.setattr(scale, "PATIENCE", 3)
    ours, theirs = LossScale(), torch.amp.GradScaler("cpu", growth_interval=3)
    here, there = (nn.Parameter(torch.ones(2)) for _ in range(2))
    mine, other = (torch.optim.SGD([weight], lr=0.5, momentum=0.9) for weight in (here, there))
    ours.guard(mine)
    for gradient in (1.0, float("inf"), 2.0, float("nan"), 1.0, 1.0, 1.0, 3.0, 1.0, 1.0, float("-inf"), 1.0):
        theirs.scale(torch.ones(1))  # makes its tensors
        there.grad = torch.full_like(there, gradient * theirs.get_scale())
        theirs.step(other)
        theirs.update()
        stepped(mine, here, gradient, ours)
        assert ours.scale == theirs.get_scale()
        assert torch.equal(here, there)
        assert mine.state_dict()["state"].keys() == other.state_dict()["state"].keys()


def test_a_step_that_overflows_leaves_weights_and_momenta_alone():
    weight, loss_scale = nn.Parameter(torch.ones(3)), LossScale()
    optimizer = torch.optim.SGD([weight], lr=0.1, momentum=0.9)
    loss_scale.guard(optimizer)
    stepped(optimizer, weight, float("inf"), loss_scale)
    assert weight.tolist() == [1, 1, 1]
    assert not optimizer.state
    stepped(optimizer, weight, 1.0, loss_scale)
    torch.testing.assert_close(weight.detach(), torch.full((3,), 0.9))


def test_gradients_that_are_never_finite_end_the_run():
    weight, loss_scale = nn.Parameter(torch.ones(1)), LossScale()
    optimizer = torch.optim.SGD([weight], lr=0.1)
    for _ in range(26):  # from 2 ** 16 to 2 ** -10
        stepped(optimizer, weight, float("nan"), loss_scale)
    with pytest.raises(NonFiniteLossError, match="not finite in fp16"):
        stepped(optimizer, weight, float("nan"), loss_scale)


def test_sharded_runs_do_not_compute_in_fp16():
    optimizer = torch.optim.SGD([nn.Parameter(torch.ones(1))], lr=0.1)
    with pytest.raises(UsageError, match="leave out --shard"):
        scaling(Runtime(CPU, "fp16", "a test", world=2, shard=True), optimizer)
    assert scaling(Runtime(CPU, "bf16", "a test"), optimizer) is None


def test_gradients_are_those_without_a_scale():
    """To the bit, in fp32: the scale is a power of two."""
    pool, runtime, found = digits(), Runtime(CPU, "fp32", "a test"), []
    for loss_scale in (None, LossScale()):
        method = FixMatch(tiny_net(pool), threshold=0.5).train()
        optimizer = sl.SGD().build(method)
        batch = Feed(pool, method.views, 8, 16, 0, CPU)(At(0, 1))
        StepClosure(method, optimizer, runtime, batch.chunk(2), At(0, 1), 1.0, scale=loss_scale)()
        found.append([p.grad for p in method.parameters() if p.grad is not None])
    assert all(torch.equal(*pair) for pair in zip(*found, strict=True))


def test_a_run_in_fp16_stops_and_goes_on(tmp_path, monkeypatch):
    monkeypatch.setattr(scale, "FIRST", 2.0**40)  # overflows at first
    result = train(tmp_path / "whole", FixMatch(flat_net()), steps=30, precision="fp16")
    assert result.summary["precision"] == "fp16"
    kept = torch.load(tmp_path / "whole/checkpoint.pt")["scale"]
    assert kept["scale"] < 2.0**40
    assert kept["good"] > 0
    with pytest.raises(Interrupted):
        train(tmp_path / "run", FixMatch(flat_net()), steps=30, precision="fp16",
              callbacks=[signal_at(7, signal.SIGTERM)])
    assert torch.load(tmp_path / "run/checkpoint.pt")["scale"]["scale"] > kept["scale"]
    train(tmp_path / "run", FixMatch(flat_net()), steps=30, precision="fp16", resume="auto")
    assert_same_run(tmp_path / "run", tmp_path / "whole")


@pytest.mark.parametrize(("bf16", "capability", "picked"), [(True, (8, 0), "bf16"), (False, (7, 5), "fp16"),
                                                            (False, (7, 0), "fp16"), (False, (6, 1), "fp32")])
def test_which_gpus_compute_in_fp16(monkeypatch, bf16, capability, picked):
    monkeypatch.setattr("torch.cuda.is_bf16_supported", lambda including_emulation: bf16)
    monkeypatch.setattr("torch.cuda.get_device_capability", lambda device: capability)
    assert resolve_precision(torch.device("cuda", 0), "auto")[0] == picked
