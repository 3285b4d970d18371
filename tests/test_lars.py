"""LARS against its equations in float64; learning rates by part."""

import copy

import pytest
import torch
from torch import nn

from ssl_lab.batch import At
from ssl_lab.errors import UsageError
from ssl_lab.optim import LARS, SGD, AdamW, with_rates
from ssl_lab.schedule import cosine, linear
from ssl_lab.seeds import generator

AT = At(0, 10)


def _net() -> nn.Sequential:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return nn.Sequential(nn.Conv2d(2, 3, 3), nn.BatchNorm2d(3), nn.Flatten(), nn.Linear(3 * 4, 2)).double()


def _gradients(net, step):
    for number, parameter in enumerate(net.parameters()):
        draw = generator("gradient", step, number)
        parameter.grad = torch.randn(parameter.shape, generator=draw, dtype=torch.float64)


def _stepped(spec, net, steps, optimizer=None, start=0):
    optimizer = optimizer or spec.build(net)
    for step in range(start, start + steps):
        spec.set(optimizer, At(step, 10))
        _gradients(net, step)
        optimizer.step()
    return optimizer


def test_against_the_equations():
    spec = LARS(lr=linear(0.5, 0.1), weight_decay=0.01, momentum=0.8, eta=0.02)
    net, slow = _net(), [parameter.detach().clone() for parameter in _net().parameters()]
    velocities = [torch.zeros_like(w) for w in slow]
    _stepped(spec, net, 4)
    for step in range(4):
        for number, (w, v) in enumerate(zip(slow, velocities, strict=True)):
            d = torch.randn(w.shape, generator=generator("gradient", step, number), dtype=torch.float64)
            if w.ndim > 1:
                d = d + 0.01 * w
                d = d * (0.02 * w.square().sum().sqrt() / d.square().sum().sqrt())
            v.copy_(0.8 * v + d)
            w.sub_((0.5 - 0.4 * step / 10) * v)
    for mine, expected in zip(net.parameters(), slow, strict=True):
        torch.testing.assert_close(mine.detach(), expected)


def test_biases_and_norms_are_neither_decayed_nor_scaled():
    """They move as by SGD with momentum and without decay."""
    net, plain = _net(), _net()
    _stepped(LARS(lr=0.1, weight_decay=0.5), net, 3)
    _stepped(SGD(lr=0.1, weight_decay=0.0, nesterov=False), plain, 3)
    for (name, mine), other in zip(net.named_parameters(), plain.parameters(), strict=True):
        assert torch.allclose(mine, other) == (mine.ndim < 2), name


def test_the_step_does_not_depend_on_the_size_of_the_gradient():
    moved = []
    for factor in (1.0, 1000.0):
        net = _net()
        optimizer = LARS(lr=0.1, weight_decay=0.0, eta=0.01).build(net)
        LARS(lr=0.1, weight_decay=0.0).set(optimizer, AT)
        _gradients(net, 0)
        for parameter in net.parameters():
            parameter.grad *= factor
        before = net[0].weight.detach().clone()
        optimizer.step()
        moved.append((net[0].weight.detach() - before).norm() / before.norm())
    assert moved[0].item() == pytest.approx(0.1 * 0.01)
    assert moved[1].item() == pytest.approx(0.1 * 0.01)


@pytest.mark.parametrize("zero", ["weight", "gradient"])
def test_the_ratio_is_one_where_a_norm_is_zero(zero):
    net = nn.Linear(2, 2, bias=False).double()
    spec = LARS(lr=0.1, weight_decay=0.0)
    optimizer = spec.build(net)
    spec.set(optimizer, AT)
    with torch.no_grad():
        net.weight.fill_(0.0 if zero == "weight" else 2.0)
    net.weight.grad = torch.full((2, 2), 1.0 if zero == "weight" else 0.0, dtype=torch.float64)
    optimizer.step()
    assert torch.allclose(net.weight, torch.tensor(-0.1 if zero == "weight" else 2.0, dtype=torch.float64))


def test_its_state_goes_on_where_it_was():
    spec = LARS(lr=cosine(0.3), weight_decay=0.01, eta=0.1)
    straight, resumed = _net(), _net()
    _stepped(spec, straight, 4)
    saved = copy.deepcopy(_stepped(spec, resumed, 2).state_dict())
    other = spec.build(resumed)
    other.load_state_dict(saved)
    _stepped(spec, resumed, 2, other, start=2)
    assert all(torch.equal(a, b) for a, b in zip(straight.parameters(), resumed.parameters(), strict=True))


def test_it_reads_nothing_back():
    net = _net().to("meta")
    optimizer = LARS().build(net)
    for parameter in net.parameters():
        parameter.grad = torch.empty_like(parameter)
    optimizer.step()  # there are no values on this device: reading one raises


def test_parameters_without_gradient_stay():
    net = _net()
    optimizer = LARS(lr=0.1).build(net)
    optimizer.step()
    assert all(torch.equal(a, b) for a, b in zip(net.parameters(), _net().parameters(), strict=True))


# --- Learning rates by part ------------------------------------------------------------------------


@pytest.mark.parametrize("base", [SGD, AdamW, LARS])
def test_parts_have_their_own_rates(base):
    spec = with_rates(base(lr=cosine(0.1), weight_decay=0.3), {"3": linear(0.2, 0.0), "0": 0.5})
    net = _net()
    optimizer = spec.build(net)
    assert spec.set(optimizer, At(5, 10)) == pytest.approx(0.05)
    found = {id(p): group for group in optimizer.param_groups for p in group["params"]}
    assert len(found) == len(list(net.parameters()))
    for name, parameter in net.named_parameters():
        group = found[id(parameter)]
        assert group["lr"] == pytest.approx({"0": 0.5, "1": 0.05, "3": 0.1}[name[0]]), name
        assert group["weight_decay"] == (0.3 if parameter.ndim > 1 else 0.0), name


def test_parts_move_as_by_an_optimizer_of_their_own():
    net, alone = _net(), _net()
    _stepped(with_rates(SGD(lr=0.1), {"3": 0.5}), net, 3)
    _stepped(SGD(lr=0.5), alone, 3)
    assert torch.allclose(net[3].weight, alone[3].weight)
    assert not torch.allclose(net[0].weight, alone[0].weight)


@pytest.mark.parametrize("base", [SGD, AdamW, LARS])
def test_biases_and_norms_have_their_own_rate_outside_of_parts_with_one(base):
    spec = with_rates(base(lr=cosine(0.1), weight_decay=0.3), {"3": 0.5}, biases=linear(0.02, 0.0))
    net = _net()
    optimizer = spec.build(net)
    assert spec.set(optimizer, At(5, 10)) == pytest.approx(0.05)
    found = {id(p): group for group in optimizer.param_groups for p in group["params"]}
    for name, parameter in net.named_parameters():
        expected = 0.5 if name[0] == "3" else 0.05 if parameter.ndim > 1 else 0.01
        assert found[id(parameter)]["lr"] == pytest.approx(expected), name


def test_biases_move_as_by_an_optimizer_of_their_own():
    net, alone = _net(), _net()
    _stepped(with_rates(SGD(lr=0.1), {}, biases=0.5), net, 3)
    _stepped(SGD(lr=0.5), alone, 3)
    assert torch.allclose(net[0].bias, alone[0].bias)
    assert not torch.allclose(net[0].weight, alone[0].weight)


def test_a_part_is_a_whole_name():
    with pytest.raises(UsageError, match="no parameter that learns is in backbone"):
        with_rates(SGD(), {"backbone": 0.1}).build(nn.ModuleDict({"backbone2": nn.Linear(2, 2)}))
