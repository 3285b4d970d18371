"""Other losses of labeled images than cross-entropy: slow references in float64, and the identities of the papers."""

import math

import numpy as np
import pytest
import torch
from small_runs import digits, flat_net, tiny_net, train

import ssl_lab as sl
from ssl_lab import methods
from ssl_lab.batch import At, Loss
from ssl_lab.data import Pool
from ssl_lab.engine import Feed
from ssl_lab.errors import UsageError
from ssl_lab.losses import cross_entropies
from ssl_lab.methods import KD, FixMatch, MixMatch, Supervised
from ssl_lab.nets.normed import NORMED
from ssl_lab.techniques import prepared, technique, together
from ssl_lab.techniques.term.class_weights import balanced
from ssl_lab.techniques.term.cyclical_focal import focal_weights
from ssl_lab.techniques.term.deferred import DEFERRED, effective
from ssl_lab.techniques.term.ldam import margins
from ssl_lab.techniques.term.vs import vector_scaled

LOGITS = torch.randn(6, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
TARGETS = torch.tensor([0, 3, 1, 1, 2, 0])
COUNTS = torch.tensor([40.0, 10.0, 5.0, 1.0])


@pytest.fixture(scope="module")
def uneven():
    """Digits of which 20, 10, 5 and 1 of the first classes have a label, and 2 of each other one."""
    pool = sl.load("digits")
    counts = [20, 10, 5, 1, *[2] * 6]
    chosen = [row for c, count in enumerate(counts) for row in pool.train[pool.truth[pool.train] == c][:count]]
    return pool.split(labeled=chosen)


def batch_of(pool, method, seed=0):
    return Feed(pool, method.views, 8, 8, seed, torch.device("cpu"))(At(0, 1))


@pytest.mark.parametrize(("t", "factor", "eta"), [
    (0.0, 4, 1.0), (0.1, 4, 0.6), (0.25, 4, 0.0), (0.625, 4, 0.5), (1.0, 4, 1.0), (0.3, 1, 0.7), (1.0, 1, 0.0),
])
def test_cyclical_focal_is_its_equation(t, factor, eta):
    at = At(round(t * 1000), 1000)
    found = sl.CyclicalFocal(factor, confident=3, hard=2).row_losses(LOGITS, TARGETS, at, cross_entropies)
    for row, target in enumerate(TARGETS.tolist()):
        powers = [math.exp(z) for z in LOGITS[row].tolist()]
        p = powers[target] / sum(powers)
        expected = -(eta * (1 + p) ** 3 + (1 - eta) * (1 - p) ** 2) * math.log(p)
        assert float(found[row]) == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize("eta", [0.0, 0.3, 1.0])
def test_cyclical_focal_without_exponents_is_cross_entropy(eta):
    assert focal_weights(LOGITS, TARGETS, eta, 0, 0).tolist() == pytest.approx([1] * 6, rel=1e-15)


def test_focal_weights_have_a_gradient_where_a_prediction_is_certain():
    logits = torch.tensor([[60.0, 0.0]], requires_grad=True)
    focal_weights(logits, torch.tensor([0]), 0.5, 3, 0.5).sum().backward()
    assert logits.grad.isfinite().all()


def test_weights_of_classes():
    weights = balanced(COUNTS, 1.0)
    assert weights.tolist() == pytest.approx([56 / (4 * n) for n in (40, 10, 5, 1)])  # scikit-learn's balanced
    assert float((balanced(COUNTS, 0.5) * COUNTS).sum()) == pytest.approx(56)
    assert balanced(COUNTS, 0).tolist() == [1] * 4
    assert effective(COUNTS, 0.0).tolist() == [1] * 4
    raw = [(1 - 0.9) / (1 - 0.9**n) for n in (40, 10, 5, 1)]
    assert effective(COUNTS, 0.9).tolist() == pytest.approx([4 * each / sum(raw) for each in raw])
    assert (effective(COUNTS, 1 - 1e-9) / balanced(COUNTS, 1.0)).std() < 1e-6  # in the limit 1 / n_k


def test_vs_and_ldam_are_their_equations():
    scaled = vector_scaled(LOGITS, COUNTS.double(), 0.3, 1.5)
    expected = [[LOGITS[b, k] / (40 / COUNTS[k]) ** 0.3 + 1.5 * math.log(COUNTS[k] / 56) for k in range(4)]
                for b in range(6)]
    torch.testing.assert_close(scaled, torch.tensor(expected, dtype=torch.float64), rtol=1e-6, atol=1e-6)
    assert torch.equal(vector_scaled(LOGITS, COUNTS.double(), 0, 0), LOGITS)
    taken = margins(COUNTS.double(), TARGETS, 0.5)
    for row, target in enumerate(TARGETS.tolist()):
        assert taken[row].tolist() == pytest.approx(
            [0.5 * (1 / float(COUNTS[k])) ** 0.25 if k == target else 0 for k in range(4)])
    shares = torch.nn.functional.one_hot(TARGETS, 4).double()
    assert torch.equal(margins(COUNTS.double(), shares, 0.5), taken)
    assert [DEFERRED(t) for t in (0, 0.799, 0.8, 1)] == [0, 0, 0.9999, 0.9999]


def test_ldam_has_the_margin_of_scaled_cosines(uneven):
    """The loss of the authors' normalized layer, written out in float64."""
    net = flat_net().double()
    with torch.no_grad():
        net.head.weight[4] = 0  # has no direction, and gets one
    around = sl.LDAM().around(Supervised(net), uneven, 0)
    batch, at = batch_of(uneven, around), At(0, 10)
    features = net.backbone((batch.labeled["view"].double() - net.mean) / net.std).detach()
    first = net.head.parametrizations.weight.original1.detach()
    total = 0.0
    for f, y in zip(features, batch.labeled.targets.tolist(), strict=True):
        cosines = [float(f @ w / (f.norm() * w.norm())) for w in first]
        cosines[y] -= 0.5 * (1 / float(around.counts[y])) ** 0.25
        total += math.log(sum(math.exp(30 * c) for c in cosines)) - 30 * cosines[y]
    batch.labeled.views["view"] = batch.labeled["view"].double()
    assert float(around(batch, at).total.detach()) == pytest.approx(total / len(features), rel=1e-7)


def test_a_net_of_cosines_is_opened_again(tmp_path, uneven):
    result = train(tmp_path, FixMatch(tiny_net(uneven), threshold=0.1), pool=uneven, steps=3, evaluations=1,
                   techniques=["ldam", "layerwise_reinit"])
    learner, predictor = result.method.net, result.method.predictor()
    assert learner.name == predictor.name == "tiny_8+unit" + NORMED
    again = sl.open(tmp_path, device="cpu", precision="fp32").net
    for net in (learner, predictor, again):
        torch.testing.assert_close(net.head.weight.norm(dim=1), torch.full((10,), 30.0))
        assert not net.head.bias.any()
        assert net.name == learner.name
    x = torch.rand(4, 1, 8, 8)
    torch.testing.assert_close(again.eval()(x).logits, predictor.eval()(x).logits, rtol=1e-4, atol=1e-4)
    first = sl.LDAM().around(Supervised(tiny_net(uneven)), uneven, 0).net
    assert not torch.equal(learner.head.weight, first.head.weight)


def test_counts_are_those_of_the_pool(uneven):
    around = sl.LDAM().around(Supervised(flat_net()), uneven, 0)
    assert around.counts.tolist() == [20, 10, 5, 1, *[2] * 6]
    one = Pool.from_arrays(np.zeros((6, 8, 8), np.uint8), [0, 0, 0, 1, 1, 2]).split(labeled=[0, 1, 3])
    assert sl.VS().around(Supervised(flat_net()), one, 0).counts.tolist() == [2, 1, 1]


EACH = ["cyclical_focal", "class_weights", "ldam", "vs(beta=0.9)", "temperature(value=2)"]
BASES = {"supervised": Supervised, "fixmatch": FixMatch, "mixmatch": MixMatch, "uda": methods.UDA,
         "kd": lambda net: KD(net, flat_net())}


@pytest.mark.parametrize("base", BASES)
@pytest.mark.parametrize("text", EACH)
def test_only_the_labeled_loss_changes(uneven, base, text):
    method = BASES[base](flat_net())
    made = technique(text)
    made.check(method, uneven)
    around = made.around(method, uneven, 0)
    batch, at = batch_of(uneven, method), At(0, 1)
    plain, loss, again = method(batch, at), around(batch, at), method(batch, at)
    assert loss.terms.keys() == plain.terms.keys()
    assert [name for name in plain.terms if not torch.equal(plain.terms[name], loss.terms[name])] == ["labeled"]
    assert all(torch.equal(plain.terms[name], again.terms[name]) for name in plain.terms)


@pytest.mark.parametrize("text", EACH)
def test_micro_batches_have_the_loss_of_the_whole(uneven, text):
    around = technique(text).around(Supervised(flat_net()), uneven, 0)
    batch, at = batch_of(uneven, around), At(9, 10)
    halves = [around(part, at).total for part in batch.chunk(2)]
    torch.testing.assert_close(torch.stack(halves).mean(), around(batch, at).total)


def test_several_are_made_from_each_other(uneven):
    """The first one given changes the logits first."""
    net = flat_net()
    method = Supervised(net)
    batch, at = batch_of(uneven, method), At(0, 1)
    around = together(["temperature(value=2)", "class_weights", "cyclical_focal"]).around(
        method, uneven, 0)
    logits, y = net(batch.labeled["view"]).logits, batch.labeled.targets
    weights = balanced(torch.tensor([20.0, 10, 5, 1, *[2] * 6]), 1.0)[y] * focal_weights(logits / 2, y, 1.0, 3, 2)
    expected = (weights * cross_entropies(logits / 2, y)).mean()
    torch.testing.assert_close(around(batch, at).total, expected)


def test_a_target_that_does_not_count_has_no_part_in_the_mean(uneven):
    method = Supervised(flat_net())
    targets = TARGETS.where(TARGETS != 1, -100)
    plain = method.labeled_loss(LOGITS, targets)
    with method.labeled_by(lambda then: then):
        torch.testing.assert_close(method.labeled_loss(LOGITS, targets), plain)
    with pytest.raises(ZeroDivisionError), method.labeled_by(lambda then: 1 / 0):
        pass
    assert torch.equal(method.labeled_loss(LOGITS, targets), plain)


class Deaf(Supervised):
    name = "deaf"

    def forward(self, batch, at):
        return Loss({"labeled": cross_entropies(self.net(batch.labeled["view"]).logits, batch.labeled.targets).mean()})


def test_a_method_that_does_not_ask_is_told(uneven):
    around = sl.CyclicalFocal().around(Deaf(flat_net()), uneven, 0)
    with pytest.raises(UsageError, match=r"cyclical_focal changes .* deaf has none of its own: .*self.labeled_loss"):
        around(batch_of(uneven, around), At(0, 1))


@pytest.mark.parametrize(("make", "words"), [
    (lambda: sl.CyclicalFocal(factor=0.5), "factor=0.5; expected 1 or more"),
    (lambda: sl.LDAM(scale=0.0), "ldam: scale=0.0; expected a positive number, or None"),
    (lambda: sl.LDAM().check(Supervised(prepared(tiny_net(digits()), ["weight_norm"], digits())), digits()),
     "weight_norm one that learns"),
    (lambda: sl.LDAM().check(methods.MutualLearning(flat_net(), flat_net()), digits()), "trains other classifiers"),
    (lambda: sl.ClassWeights("some"), "weights='some'; expected \"auto\", or a number"),
    (lambda: sl.ClassWeights([1, -1]), "expected \"auto\", or a number for each class, 0 or more"),
    (lambda: sl.ClassWeights([1, 2]).check(Supervised(flat_net()), digits()), "2 weights are given, and digits has 10"),
    (lambda: sl.VS().check(sl.SimCLR(flat_net()), digits()), "vs changes the loss of labeled images, and simclr has"),
    (lambda: together(["oversample", "class_weights"]), "exclude each other: both make up"),
])
def test_what_cannot_be_is_said(make, words):
    with pytest.raises(UsageError, match=words):
        make()


def test_weights_can_be_given(uneven):
    given = technique("class_weights(weights=[1, 0, 2, 1, 1, 1, 1, 1, 1, 1])")
    around = given.around(Supervised(flat_net()), uneven, 0)
    batch = batch_of(uneven, around)
    y = batch.labeled.targets
    rows = cross_entropies(around.net(batch.labeled["view"]).logits, y)
    torch.testing.assert_close(around(batch, At(0, 1)).total, (rows * torch.tensor([1.0, 0, 2, *[1] * 7])[y]).mean())
    assert technique(given.text).weights == given.weights


def test_a_hierarchy_has_it_at_the_level_of_the_classes(uneven):
    method = methods.HierMatch(flat_net(), [[c // 2 for c in range(10)]], base=FixMatch)
    around = sl.CyclicalFocal().around(method, uneven, 0)
    batch, at = batch_of(uneven, method), At(0, 1)
    plain, loss = method(batch, at), around(batch, at)
    assert [name for name in plain.terms if not torch.equal(plain.terms[name], loss.terms[name])] == ["labeled"]
