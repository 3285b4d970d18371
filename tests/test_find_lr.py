"""The test of learning rates, rules for other batch sizes, and the largest stable rate."""

import json

import numpy as np
import pytest
import torch
from small_runs import digits

import ssl_lab as sl
from ssl_lab import cli
from ssl_lab.batch import At
from ssl_lab.engine import Feed, Runtime
from ssl_lab.engine.closure import StepClosure
from ssl_lab.errors import UsageError
from ssl_lab.find_lr import SMOOTH, find_lr, smoothed
from ssl_lab.optim import largest_eigenvalue, scaled_rate, stable_rate


def test_the_average_of_losses_counts_the_first_in_full():
    losses = [3.0, 1.0, 2.0]
    weights = [[SMOOTH ** (n - i) for i in range(n + 1)] for n in range(3)]
    assert smoothed(losses) == pytest.approx([np.average(losses[: n + 1], weights=weights[n]) for n in range(3)])


def test_a_rate_a_picture_and_the_numbers(tmp_path, capsys):
    cli.main(["find-lr", "digits", "--net", "pixels", "--labels", "50", "--steps", "40", "--low", "0.001", "--high",
              "1000", "--out", str(tmp_path)])
    said = capsys.readouterr().out
    found = json.loads((tmp_path / "find-lr.json").read_text())
    rates, losses = found["rates"], found["losses"]
    assert rates == pytest.approx([0.001 * 10 ** (6 * i / 40) for i in range(len(rates))])
    assert found["least_at"] == rates[int(smoothed(losses).argmin())]
    assert found["rate"] == pytest.approx(found["least_at"] / 10)
    assert losses[-1] > 4 * smoothed(losses).min()  # it ends where the loss has left
    assert len(rates) < 40
    assert f"take {found['rate']:.2g}" in said
    assert "<svg" in (tmp_path / "find-lr.html").read_text()
    assert sorted(each.name for each in tmp_path.iterdir()) == ["find-lr.html", "find-lr.json"]


@pytest.mark.parametrize(("settings", "words"), [
    ({"low": 0.0}, "expected 0 < low < high"), ({"low": 1.0, "high": 0.1}, "expected 0 < low < high"),
    ({"steps": 3}, "10 steps or more"), ({"optimizer": "nothing"}, "unknown optimizer 'nothing'"),
    ({"method": "nothing"}, "unknown method"),
])
def test_what_cannot_be_is_said(tmp_path, settings, words):
    with pytest.raises(UsageError, match=words):
        find_lr("digits", out=tmp_path, **settings)


def test_rules_for_other_batches():
    assert scaled_rate(0.1, 256, 64) == pytest.approx(0.4)  # linear, for SGD
    assert scaled_rate(0.1, 256, 64, "sqrt") == pytest.approx(0.2)  # for Adam
    assert scaled_rate(0.1, 64, 64) == scaled_rate(0.1, 64, 64, "sqrt") == 0.1
    assert scaled_rate(0.1, 4096, 64, most=2.0) == 2.0
    assert scaled_rate(0.1, 16, 64, most=2.0) == pytest.approx(0.025)
    with pytest.raises(UsageError, match="unknown scaling rule 'cubic'"):
        scaled_rate(0.1, 1, 1, "cubic")
    with pytest.raises(UsageError, match="1 or more"):
        scaled_rate(0.1, 0, 1)


@pytest.mark.parametrize("seed", range(3))
def test_lanczos_finds_the_largest_eigenvalue(seed):
    draw = torch.Generator().manual_seed(seed)
    root = torch.randn(30, 30, generator=draw, dtype=torch.float64)
    matrix = root + root.T
    weights = [torch.empty(5, 4, dtype=torch.float64), torch.empty(10, dtype=torch.float64)]

    def product(direction):
        image = matrix @ torch.cat([each.flatten() for each in direction])
        return [image[:20].view(5, 4), image[20:]]

    top = float(torch.linalg.eigvalsh(matrix)[-1])
    assert largest_eigenvalue(product, weights, steps=30) == pytest.approx(top, rel=1e-9)
    assert largest_eigenvalue(product, weights, steps=12) == pytest.approx(top, rel=0.05)
    assert largest_eigenvalue(product, weights, steps=5) <= top
    assert stable_rate(product, weights, steps=30) == pytest.approx(2 / top)
    assert stable_rate(lambda d: [-each for each in d], weights) == float("inf")
    assert largest_eigenvalue(lambda d: [3 * each for each in d], weights) == pytest.approx(3)  # ends after a step


def test_curvature_of_a_batch_is_that_of_its_hessian():
    """Softmax regression, whose Hessian is known: gradient descent is stable below 2 / lambda and not above."""
    pool, method = digits(), sl.Supervised(sl.net("pixels", 10, digits().style))
    batch = Feed(pool, method.views, 8, 8, 0, torch.device("cpu"))(At(0, 1))
    optimizer = sl.SGD().build(method)
    closure = StepClosure(method, optimizer, Runtime(torch.device("cpu"), "fp32", "asked"), [batch], At(0, 1), None)
    weights = [p for group in optimizer.param_groups for p in group["params"]]
    found = largest_eigenvalue(lambda direction: closure.curvature(weights, direction), weights, steps=40)
    x = (batch.labeled["view"].flatten(1) - method.net.mean.flatten()) / method.net.std.flatten()
    x = torch.cat([x, torch.ones(8, 1)], dim=1).double()
    p = method.net(batch.labeled["view"]).logits.double().softmax(dim=1).detach()
    hessian = sum(torch.kron(torch.diag(q) - torch.outer(q, q), torch.outer(row, row))
                  for q, row in zip(p, x, strict=True)) / 8
    assert found == pytest.approx(float(torch.linalg.eigvalsh(hessian)[-1]), rel=1e-3)
