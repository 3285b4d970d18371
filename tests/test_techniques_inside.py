"""Techniques that look into the net: slow references in float64, and the identities of the papers."""

import math

import pytest
import torch
from small_runs import digits, flat_net, tiny_net

import ssl_lab as sl
from ssl_lab.batch import At
from ssl_lab.engine import Feed
from ssl_lab.errors import UsageError
from ssl_lab.losses import cross_entropy
from ssl_lab.methods import FixMatch, Supervised
from ssl_lab.methods.distillation.hooks import see
from ssl_lab.techniques.term.batch_entropy import batch_entropy, entropy_layers
from ssl_lab.techniques.term.deep_supervision import squared_hinge
from ssl_lab.techniques.term.relay import stages_of

START = At(0, 10)


@pytest.fixture(scope="module")
def pool():
    return digits()


def around(technique, pool, make=Supervised):
    """The technique around a method on a net of three stages, all in float64; and a batch."""
    made = technique.around(make(tiny_net(pool)), pool, 0).double()
    return made, Feed(pool, made.views, 4, 4, 0, torch.device("cpu"))(START)


def gradients(method, batch, at=START, term=None):
    """By name, of all terms or of one; None where there is none."""
    method.zero_grad(set_to_none=True)
    loss = method(batch, at)
    (loss.total if term is None else loss.terms[term]).backward()
    return {name: p.grad for name, p in method.named_parameters() if p.requires_grad}, loss


def test_squared_hinge_is_its_equation():
    scores = torch.randn(5, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    targets = torch.tensor([3, 0, 1, 1, 2])
    expected = sum(max(0.0, 1 - (1 if c == y else -1) * float(scores[b, c])) ** 2
                   for b, y in enumerate(targets.tolist()) for c in range(4)) / 5
    assert float(squared_hinge(scores, targets)) == pytest.approx(expected, rel=1e-12)
    assert float(squared_hinge(torch.zeros(5, 4), targets)) == 4  # C


@pytest.mark.parametrize("loss", ["hinge", "softmax"])
def test_deep_supervision_is_the_sum_over_companions(pool, loss):
    made, batch = around(sl.DeepSupervision(weight=0.5, slack=1.0, loss=loss), pool)
    maps = see(made.net, batch.labeled["view"], ["blocks.0", "blocks.1"]).maps
    assert [each.shape[1:] for each in maps] == [(8, 8, 8), (16, 4, 4)]
    expected = 0.0
    for each, head, cell in zip(maps, made.heads, (2, 1), strict=True):
        cells = each.unflatten(2, (4, cell)).unflatten(4, (4, cell)).mean((3, 5))
        scores = head(cells.flatten(1))
        criterion = squared_hinge if loss == "hinge" else cross_entropy
        expected = expected + (criterion(scores, batch.labeled.targets) - 1.0).clamp(min=0)
    torch.testing.assert_close(made(batch, START).terms["deep_supervision"], 0.5 * expected)


def test_deep_supervision_ends_and_slack_takes_its_gradient_away(pool):
    made, batch = around(sl.DeepSupervision(), pool)
    assert made(batch, At(5, 12)).terms["deep_supervision"] == 0
    assert made(batch, At(4, 12)).terms["deep_supervision"] > 1
    slack, batch = around(sl.DeepSupervision(slack=1e6), pool)
    found, _ = gradients(slack, batch, term="deep_supervision")
    assert all(g is None or not g.any() for g in found.values())
    late, loss = gradients(made, batch, At(9, 12), term="deep_supervision")
    assert loss.terms["deep_supervision"] == 0
    assert all(not g.any() for name, g in late.items() if name.startswith("heads"))  # none, but ranks get one


def test_statistics_stay_those_of_the_methods_own_pass(pool):
    plain, batch = around(sl.NoiseConsistency(weight=0.0), pool, FixMatch)
    plain(batch, START)
    for technique in (sl.DeepSupervision(), sl.BatchEntropy(), sl.Relay()):
        made, _ = around(technique, pool, FixMatch)
        made(batch, START)
        torch.testing.assert_close(dict(made.net.named_buffers()), dict(plain.net.named_buffers()), rtol=0, atol=0)


def companion_gradients(pool, number, reach=9):
    """Of one companion's loss alone, by name, as plain backward has them."""
    made, batch = around(sl.Relay(reach=reach), pool)
    made.zero_grad(set_to_none=True)
    maps = made.inside(batch, made._paths).maps
    (0.3 * cross_entropy(made.scores(maps)[number], batch.labeled.targets)).backward()
    return {name: p.grad for name, p in made.named_parameters() if p.requires_grad}


def test_parameters_belong_to_the_first_stage_that_depends_on_them(pool):
    net = tiny_net(pool)
    found = stages_of(net, ["blocks.0", "blocks.1"], torch.rand(2, 1, 8, 8))
    names = [name for name, _ in net.backbone.named_parameters()]
    expected = {"stem": 0, "blocks.0": 0, "blocks.1": 1, "blocks.2": 2}
    assert found == [next(v for k, v in expected.items() if name.startswith(k)) for name in names]


@pytest.mark.parametrize("reach", [1, 2])
def test_each_loss_of_a_relay_reaches_its_own_stretch_and_overlaps_sum(pool, reach):
    made, batch = around(sl.Relay(reach=reach), pool)
    found, _ = gradients(made, batch)
    method, _ = around(sl.Relay(), pool)
    plain, _ = gradients(method.base, batch)
    companions = [companion_gradients(pool, number) for number in range(2)]
    for name, gradient in found.items():
        inner = name.removeprefix("base.net.backbone.")
        place = next((p for start, p in (("stem", 0), ("blocks.0", 0), ("blocks.1", 1), ("blocks.2", 2))
                      if inner.startswith(start)), None)
        sources = [each[name] for number, each in enumerate(companions)
                   if each[name] is not None and (place is None or number - reach < place <= number)]
        if name.startswith("base.") and (place is None or place > 2 - reach):
            sources.append(plain[name.removeprefix("base.")])
        assert sources, name
        torch.testing.assert_close(gradient, torch.stack(sources).sum(0), msg=name)


def test_a_relay_over_the_whole_net_is_deep_supervision(pool):
    relay, batch = around(sl.Relay(reach=3, weight=0.3), pool)
    deep, _ = around(sl.DeepSupervision(weight=0.3, loss="softmax"), pool)
    deep.heads.load_state_dict(relay.heads.state_dict())
    (found, loss), (expected, other) = gradients(relay, batch), gradients(deep, batch)
    torch.testing.assert_close(found, expected)
    torch.testing.assert_close(loss.total.detach(), other.total.detach())


def test_batch_entropy_is_its_equation(pool):
    values = torch.randn(5, 2, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    units = [[float(values[b, i, j]) for b in range(5)] for i in range(2) for j in range(3)]
    variances = [sum((v - sum(unit) / 5) ** 2 for v in unit) / 4 for unit in units]
    expected = sum(0.5 * math.log(math.pi * math.e * v + 1) for v in variances) / 6
    assert float(batch_entropy(values)) == pytest.approx(expected, rel=1e-12)
    assert float(batch_entropy(torch.ones(4, 3))) == 0  # a layer that tells no images apart
    made, batch = around(sl.BatchEntropy(weight=0.7, target=0.5, least=0.6), pool)
    with torch.no_grad():
        seen = see(made.net, batch.labeled["view"], ["blocks.0", "blocks.1", "blocks.2"])
    gaps = [0.7 * (float(batch_entropy(each)) - 0.6) ** 2 for each in seen.maps]
    expected = float(cross_entropy(seen.logits, batch.labeled.targets)) * sum(gaps) / 3
    assert made(batch, START).terms["batch_entropy"].item() == pytest.approx(expected, rel=1e-9)


def test_targets_of_entropy_are_learned_above_the_least(pool):
    made, batch = around(sl.BatchEntropy(target=-2.0), pool)
    found, _ = gradients(made, batch)
    assert found["targets"].all()
    least, batch = around(sl.BatchEntropy(target=0.1, least=0.2), pool)
    assert not gradients(least, batch)[0]["targets"].any()


def test_where_entropy_is_measured():
    assert entropy_layers(flat_net(), None) == ("layers.2",)  # the activation
    assert entropy_layers(sl.net("wrn_10_1", 10), None) == ("blocks.0", "blocks.1", "blocks.2")


@pytest.mark.parametrize(("technique", "make", "words"), [
    (lambda: sl.DeepSupervision(), Supervised, "deep_supervision: pixels has no maps"),
    (lambda: sl.Relay("layers.1"), Supervised, "relay: unknown layer 'layers.1'"),
    (lambda: sl.BatchEntropy("nowhere"), Supervised, "batch_entropy: pixels has no layer nowhere"),
    (lambda: sl.BatchEntropy(), Supervised, "batch_entropy: pixels has no residual block and no activation"),
    (lambda: sl.BatchEntropy(), sl.SimCLR, "batch_entropy passes labeled images .* simclr takes none"),
])
def test_what_cannot_be_is_said(pool, technique, make, words):
    with pytest.raises(UsageError, match=words):
        technique().check(make(sl.net("pixels", 10, pool.style)), pool)


def test_what_is_no_setting_is_said(pool):
    with pytest.raises(UsageError, match="reach=0; expected 1 stage"):
        sl.Relay(reach=0)
    with pytest.raises(UsageError, match="unknown companion loss 'hing'"):
        sl.DeepSupervision(loss="hing")
    made, batch = around(sl.BatchEntropy(), pool)
    with pytest.raises(UsageError, match="2 labeled ones or more"):
        made(batch.chunk(4)[0], START)
