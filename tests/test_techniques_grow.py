"""Growth in mid-run against slow references in float64, and the identities of the paper."""

import pytest
import torch
from small_runs import digits, tiny_net, train
from torch import nn

import ssl_lab as sl
from ssl_lab.batch import At, Style
from ssl_lab.engine import Feed
from ssl_lab.methods import Supervised
from ssl_lab.optim import SGD, AdamW
from ssl_lab.techniques.weights.growth import growth_matrix, pairs, wake

EPS = {"tiny_4": 1e-5, "wrn_10_1": 1e-3}
SLOPE = {"tiny_4": 1.0, "wrn_10_1": 0.1}  # of the rectifier at 0


def batch_of(method, rows=6):
    return Feed(digits(), method.views, rows, rows, 0, torch.device("cpu"))(At(0, 1))


@pytest.mark.parametrize("name", ["tiny_4", "wrn_10_1"])
@pytest.mark.parametrize("block", [0, 1])
def test_gradients_of_a_new_fan_in_are_linear_in_its_fan_out(name, block):
    """For strides of 1 and 2, through BatchNorm: dL/dw = slope / sqrt(eps) * M' u."""
    net = sl.net(name, 10, Style(3, 9, 9)).double()
    technique = sl.GradMax(0.5).around(Supervised(net), digits(), 0)
    pair = list(pairs(technique.net))[block]
    draw, new = torch.Generator().manual_seed(0), pair.first.out_channels - 1
    x = torch.rand(5, 3, 9, 9, generator=draw, dtype=torch.float64)
    seen = {}
    handles = [pair.first.register_forward_pre_hook(lambda _, given: seen.update(x=given[0].detach())),
               pair.second.register_forward_hook(lambda _, __, output: seen.update(out=output))]
    loss = nn.functional.cross_entropy(net.train()(x).logits, torch.arange(5))
    matrix = growth_matrix(pair, seen["x"], torch.autograd.grad(loss, seen["out"])[0])
    for handle in handles:
        handle.remove()
    u = torch.randn(pair.second.weight[:, 0].shape, generator=draw, dtype=torch.float64)
    with torch.no_grad():
        pair.second.weight[:, new] = u
    nn.functional.cross_entropy(net(x).logits, torch.arange(5)).backward()
    expected = SLOPE[name] / EPS[name] ** 0.5 * (u.flatten() @ matrix).view(pair.first.weight[0].shape)
    torch.testing.assert_close(pair.first.weight.grad[new], expected, rtol=1e-8, atol=1e-12)


def test_fan_outs_are_the_directions_of_the_largest_gradients():
    net = sl.net("tiny_8", 10, Style(3, 8, 8)).double()
    sl.GradMax(0.5).around(Supervised(net), digits(), 0)
    pair = next(iter(pairs(net)))
    matrix = torch.randn(72, 72, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    wake(pair, slice(4, 6), matrix, 2.0)
    fan_outs = pair.second.weight.detach().transpose(0, 1).flatten(1)
    torch.testing.assert_close(fan_outs[4:6].norm(dim=1), 2 * fan_outs[:4].norm(dim=1).mean().expand(2))
    gains = (fan_outs[4:6] @ matrix).norm(dim=1) / fan_outs[4:6].norm(dim=1)
    torch.testing.assert_close(gains, torch.linalg.svdvals(matrix)[:2])
    assert abs(float(fan_outs[4] @ fan_outs[5])) < 1e-9
    assert not fan_outs[6:].any()
    assert not pair.first.weight[4:].any()


@pytest.mark.parametrize("name", ["tiny_8", "wrn_10_1"])
def test_growing_changes_no_output(name):
    pool = digits()
    technique = sl.GradMax(0.5, times=2).around(Supervised(sl.net(name, 10, pool.style), ema=0.0), pool, 0)
    x, batch = torch.rand(6, 1, 8, 8), batch_of(technique)
    before = [technique.net.train(mode)(x).logits for mode in (False, True)]
    technique.train()
    technique(batch, At(1, 6))  # a generation ends after this step
    statistics = {key: value.clone() for key, value in technique.net.named_buffers()}
    asleep = [pair.second.weight.detach().clone() for pair in pairs(technique.net)]
    technique.after_step(At(1, 6))
    torch.testing.assert_close(dict(technique.net.named_buffers()), statistics, rtol=0, atol=0)
    for pair, old in zip(pairs(technique.net), asleep, strict=True):
        width = pair.first.out_channels
        grown = (pair.second.weight != old).flatten(2).any(dim=2).any(dim=0)
        assert grown.tolist() == [False] * (width // 2) + [True] * (width // 4) + [False] * (width // 4)
        assert not pair.first.weight[width // 2:].any()
    after = technique.net.train()(x).logits
    torch.testing.assert_close(after, before[1], rtol=1e-6, atol=1e-6)
    assert technique.edited() == ()


def test_what_sleeps_stays_asleep():
    """Weights of 0 have gradients of 0."""
    technique = sl.GradMax().around(Supervised(tiny_net(digits())), digits(), 0)
    rule = SGD().build(technique)
    for group in rule.param_groups:
        group["lr"], group["weight_decay"] = 0.1, 5e-4
    for _ in range(2):
        rule.zero_grad()
        technique(batch_of(technique), At(0, 100)).total.backward()
        rule.step()
    for pair in pairs(technique.net):
        half = pair.first.out_channels // 2
        assert not pair.first.weight[half:].any()
        assert not pair.second.weight[:, half:].any()
        assert pair.first.weight[:half].any()


@pytest.mark.parametrize("optimizer", [SGD(), AdamW()])
def test_what_is_woken_learns(tmp_path, optimizer):
    result = train(tmp_path, Supervised(tiny_net(digits())), steps=4, evaluations=1, optimizer=optimizer,
                   techniques=["gradmax(times=3)", "sam"])
    for pair in pairs(result.method.net):  # all are awake after three of four steps
        half = pair.first.out_channels // 2
        assert pair.first.weight[half:].flatten(1).any(dim=1).all()
        assert pair.second.weight[:, half:].transpose(0, 1).flatten(1).any(dim=1).all()


def test_the_growth_matrix_is_the_mean_over_micro_batches():
    pool, found = digits(), []
    technique = sl.GradMax(0.5, times=1).around(Supervised(tiny_net(pool)), pool, 0)
    technique.train()
    parts = batch_of(technique, 8).chunk(2)
    for part in parts:
        technique(part, At(0, 2))
        found.append(technique._notes.mean())
    for rank, part in enumerate(parts):
        technique(part, At(0, 2, rank=rank, world=2))
    for both, one, two in zip(technique._notes.mean(), *found, strict=True):
        torch.testing.assert_close(both, (one + two) / 2, rtol=1e-4, atol=1e-6)
        assert both.any()


def test_the_growth_matrix_is_not_rounded_by_autocast():
    """It runs within the step's autocast; on some processors convolutions of two types are refused."""
    net = sl.net("tiny_16", 10, Style(3, 28, 28))
    pair, draw = next(iter(pairs(net))), torch.Generator().manual_seed(0)
    x, slope = (torch.randn(3, 16, 28, 28, generator=draw) for _ in range(2))
    expected = growth_matrix(pair, x, slope)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = growth_matrix(pair, x, slope)
    assert found.equal(expected)
