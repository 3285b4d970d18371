"""Averages and edits of weights against slow references, and the identities of their papers."""

import copy

import pytest
import torch
from small_runs import digits, flat_net, tiny_net, train
from torch import nn

import ssl_lab as sl
from ssl_lab.batch import At
from ssl_lab.engine import predict
from ssl_lab.engine.runtime import Runtime
from ssl_lab.methods import FixMatch, Supervised
from ssl_lab.nets.start import freeze_statistics
from ssl_lab.optim.named import optimizer
from ssl_lab.techniques.weights.swa import renew_statistics

CPU = Runtime(torch.device("cpu"), "fp32", "asked")


@pytest.mark.parametrize(("start", "every", "averaged"), [(0.5, 1, range(5, 10)), (0.5, 2, (5, 7, 9)),
                                                          (0.41, 3, (5, 8))])
def test_swa_is_the_mean_of_the_last_weights(start, every, averaged):
    technique = sl.SWA(start, every).around(Supervised(flat_net()), digits(), 0)
    draw, kept = torch.Generator().manual_seed(0), []
    for step in range(10):
        with torch.no_grad():
            for p in technique.net.parameters():
                p.copy_(torch.randn(p.shape, generator=draw))
        kept.append([p.detach().double().clone() for p in technique.net.parameters()])
        technique.after_step(At(step, 10))
        assert (technique.predictor() is technique.ema.net) == (step < averaged[0])
        if step == averaged[0]:  # of one point it is that point
            assert all(torch.equal(a, b) for a, b in zip(technique.average.parameters(), technique.net.parameters(),
                                                         strict=True))
    for i, p in enumerate(technique.predictor().parameters()):
        expected = torch.stack([kept[step][i] for step in averaged]).mean(dim=0)
        torch.testing.assert_close(p.detach().double(), expected, rtol=1e-5, atol=1e-6)


def test_swa_trains_as_ever_and_is_what_is_reported(tmp_path):
    make = lambda: FixMatch(tiny_net(digits()), threshold=0.1)  # noqa: E731
    plain = train(tmp_path / "plain", make(), steps=4, evaluations=1)
    result = train(tmp_path / "swa", make(), steps=4, evaluations=1, techniques=["swa(start=0.5)"])
    for name, value in plain.method.state_dict().items():
        assert torch.equal(value, result.method.base.state_dict()[name])
    saved = sl.net("tiny_8", 10, digits().style, weights=tmp_path / "swa" / "model.safetensors")
    saved.to(memory_format=torch.channels_last)
    rows = digits().test[:50]
    assert torch.equal(predict(saved, digits(), rows, CPU), predict(result.method.average, digits(), rows, CPU))


@pytest.mark.parametrize("text", ["adamw(lr=0.01)", "padam(lr=0.01)"])
def test_gadam_and_gadamx_are_averages_of_adaptive_optimizers(tmp_path, text):
    rule = optimizer(text, sl.SGD())
    kept = [train(tmp_path / str(steps), Supervised(flat_net()), steps=steps, evaluations=1, optimizer=rule,
                  techniques=["swa(start=0.5)"]).method for steps in (3, 4)]
    nets = (kept[1].predictor(), *(each.net for each in kept))
    for average, *points in zip(*(net.parameters() for net in nets), strict=True):
        torch.testing.assert_close(average, (points[0] + points[1]).detach() / 2)
        assert not torch.equal(*points)


def test_statistics_made_anew_are_those_of_the_images():
    net = nn.Sequential(nn.Conv2d(1, 3, 3), nn.BatchNorm2d(3), nn.ReLU(), nn.Flatten(), nn.Linear(3 * 36, 2),
                        nn.BatchNorm1d(2), nn.Dropout(0.5)).double()
    batches = [torch.randn(16, 1, 8, 8, dtype=torch.float64) for _ in range(3)]
    expected, seen = copy.deepcopy(net), []
    expected[6].eval()
    for batch in batches:
        first = expected[0](batch)
        seen.append((first.mean((0, 2, 3)), first.var((0, 2, 3))))
        expected(batch)
    renew_statistics(net, batches)
    torch.testing.assert_close(net[1].running_mean, torch.stack([mean for mean, _ in seen]).mean(0))
    torch.testing.assert_close(net[1].running_var, torch.stack([var for _, var in seen]).mean(0))
    assert net[1].momentum == 0.1
    assert net.training
    assert not torch.equal(net[5].running_mean, torch.zeros(2, dtype=torch.float64))


def test_frozen_statistics_stay():
    net = tiny_net(digits())
    freeze_statistics(net)
    before = copy.deepcopy(dict(net.named_buffers()))
    renew_statistics(net, [torch.rand(8, 1, 8, 8)])
    torch.testing.assert_close(dict(net.named_buffers()), before)


def test_prior_correction_divides_probabilities_by_those_of_the_classes():
    pool = sl.load("digits").split(labeled=[0, 10, 20, 30, 1, 11, 2, 3])  # digits: row r shows r % 10
    method = Supervised(flat_net())
    around = sl.PriorCorrection().around(method, pool, 0)
    priors = torch.bincount(torch.from_numpy(pool.labels[pool.labeled]), minlength=10).clamp(min=1) / len(pool.labeled)
    x = torch.rand(5, 1, 8, 8)
    before = method.predictor()(x).logits.softmax(dim=1)
    expected = before / priors
    torch.testing.assert_close(around.predictor()(x).logits.softmax(dim=1), expected / expected.sum(1, keepdim=True))
    assert torch.equal(method.predictor()(x).logits.softmax(dim=1), before)  # what is trained stays


def test_equal_priors_change_nothing():
    method = Supervised(flat_net())
    even = sl.PriorCorrection().around(method, digits(100), 0)
    assert torch.equal(even.predictor().head.bias, method.predictor().head.bias)
