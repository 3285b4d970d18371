"""Attacks, curvature, margins and corrupted labels against slow references in float64, and their identities."""

import itertools
import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from small_runs import digits, flat_net, tiny_net
from torch import nn

import ssl_lab as sl
from ssl_lab.batch import At
from ssl_lab.engine import Feed
from ssl_lab.errors import UsageError
from ssl_lab.methods import FixMatch, Supervised
from ssl_lab.nets import Net
from ssl_lab.techniques.attack import krylov, lead, pgd, second_order
from ssl_lab.techniques.data.corrupt_labels import corrupted
from ssl_lab.techniques.term.cure import bending
from ssl_lab.techniques.term.perturbation_margin import margins, worst_change


def some(rows=5, seed=0):
    draw = torch.Generator().manual_seed(seed)
    return torch.rand(rows, 1, 8, 8, generator=draw, dtype=torch.float64), torch.arange(rows) % 10


def batch_of(method):
    return Feed(digits(), method.views, 4, 4, 0, torch.device("cpu"))(At(0, 1))


# --- Attacks ----------------------------------------------------------------------------------------


def test_pgd_is_projected_ascent_row_by_row():
    net, (x, y) = flat_net(0.5).double(), some()
    noise = 2 * some(seed=1)[0] - 1
    found = pgd(net, x, y, radius=0.1, steps=3, size=0.06, noise=noise)
    net.eval()
    for row in range(len(x)):
        at = (x[row] + 0.1 * noise[row]).clamp(0, 1)
        for _ in range(3):
            at = at.detach().requires_grad_()
            slope, = torch.autograd.grad(F.cross_entropy(net(at[None]).logits, y[row : row + 1]), at)
            at = at.detach() + 0.06 * slope.sign()
            at = torch.minimum(torch.maximum(at, x[row] - 0.1), x[row] + 0.1).clamp(0, 1)
        torch.testing.assert_close(found[row], at)
    assert not found.requires_grad


def test_an_attack_raises_the_loss_stays_in_its_ball_and_leaves_the_net_alone():
    net, (x, y) = tiny_net(digits()).double(), some()
    net.train()
    net.backbone.blocks[0].eval()  # a part whose mode is its own
    before = {name: value.clone() for name, value in net.state_dict().items()}
    box, ball = pgd(net, x, y, 0.05), second_order(net, x, y, 0.5)
    assert (box - x).abs().max() <= 0.05 + 1e-12
    assert (ball - x).flatten(1).norm(dim=1).max() <= 0.5 + 1e-9
    assert net.training
    assert not net.backbone.blocks[0].training
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())
    assert all(p.grad is None for p in net.parameters())
    net.eval()
    clean, *others = (F.cross_entropy(net(each).logits, y) for each in (x, box, ball))
    assert min(others) > clean
    assert all(each.min() >= 0 and each.max() <= 1 for each in (box, ball))


def test_an_attack_of_radius_0_changes_nothing():
    net, (x, y) = flat_net().double(), some()
    assert torch.equal(pgd(net, x, y, 0.0, noise=torch.ones_like(x)), x)
    assert torch.equal(second_order(net, x, y, 0.0), x)


def test_the_gap_is_plain_ascent_at_1_and_holds_still_below_minus_1():
    net, (x, y) = flat_net().double(), some()
    start = (x + 0.1 * torch.ones_like(x)).clamp(0, 1)
    assert torch.equal(pgd(net, x, y, 0.1, noise=torch.ones_like(x), gap=-1.1), start)
    assert torch.equal(pgd(net, x, y, 0.1, gap=1.0), pgd(net, x, y, 0.1))
    probs = net.eval()(x).logits.detach().softmax(dim=1)
    slow = [max(float(p[j]) for j in range(10) if j != label) - float(p[label])
            for p, label in zip(probs, y.tolist(), strict=True)]
    np.testing.assert_allclose(lead(net(x).logits, y).detach().numpy(), slow)
    middle = sorted(slow)[2]  # moves rows up to this one, and looks before each step
    moved = (pgd(net, x, y, 0.1, steps=1, gap=middle) != x).flatten(1).any(dim=1)
    assert moved.tolist() == [each <= middle for each in slow]


def test_sats_gap_rises_from_30_to_70_percent_of_training():
    sat = sl.SAT()
    assert [round(At(step, 100).value(sat.gap), 9) for step in (0, 30, 50, 70, 99)] == [0, 0, 0.2, 0.4, 0.4]
    assert isinstance(sat, sl.Adversarial)


def test_krylov_is_along_b_at_size_1_and_solves_at_full_size():
    draw = torch.Generator().manual_seed(0)
    root = torch.randn(4, 6, 6, generator=draw, dtype=torch.float64)
    h, b = root + root.mT, torch.randn(4, 6, generator=draw, dtype=torch.float64)
    h[3], b[2] = torch.eye(6), 0  # a space of one dimension, and of none

    def product(d):
        return (h @ d[:, :, None])[:, :, 0]

    one = krylov(product, b, 1)
    for row in (0, 1, 3):
        assert abs(float(F.cosine_similarity(one[row], b[row], dim=0))) == pytest.approx(1)
        hb = h[row] @ b[row]
        torch.testing.assert_close(one[row], float(hb @ b[row] / (hb @ hb)) * b[row])
    full = krylov(product, b, 6)
    torch.testing.assert_close(product(full), b, rtol=1e-6, atol=1e-6)
    lengths = [(product(krylov(product, b, size)) - b).norm(dim=1)[:2] for size in range(1, 7)]
    assert all((later <= earlier + 1e-9).all() for earlier, later in itertools.pairwise(lengths))




def test_the_second_order_step_is_no_worse_than_the_gradient_by_the_quadratic_model():
    net, (x, y) = flat_net().double().eval(), some()
    radius = 0.01  # small, so that the model is the loss
    x = 0.4 + 0.2 * x  # and far from where pixels are clipped
    gain = [F.cross_entropy(net(second_order(net, x, y, radius, size)).logits, y, reduction="none") for size in (1, 4)]
    assert (gain[1] >= gain[0] - 1e-9).all()
    slope, = torch.autograd.grad(F.cross_entropy(net(x.requires_grad_()).logits, y, reduction="sum"), x)
    along = (x + radius * F.normalize(slope.flatten(1)).view_as(x)).detach()
    torch.testing.assert_close(second_order(net, x.detach(), y, radius, 1), along)


@pytest.mark.parametrize("text", ["adversarial(radius=0.1, steps=2)", "sat(radius=0.1, steps=2)",
                                  "second_order(radius=1.0)"])
def test_the_method_sees_attacked_labeled_images_alone(text):
    method = FixMatch(flat_net(), threshold=0.0)
    around = sl.techniques.technique(text).around(method, digits(), 0)
    batch, seen = batch_of(method), []
    method.register_forward_pre_hook(lambda _, given: seen.append(given[0]))
    around(batch, At(0, 1))
    assert seen[0].unlabeled is batch.unlabeled
    assert torch.equal(seen[0].labeled.targets, batch.labeled.targets)
    assert not torch.equal(seen[0].labeled["weak"], batch.labeled["weak"])
    halves = [around.attack(part.labeled["weak"], part.labeled.targets, At(0, 1, 0, rank, 2), "weak")
              for rank, part in enumerate(batch.chunk(2))]
    torch.testing.assert_close(torch.cat(halves), seen[0].labeled["weak"])  # two ranks have the rows of one


# --- CURE -------------------------------------------------------------------------------------------


def test_cure_is_the_change_of_the_gradient_row_by_row():
    net, (x, y), h = flat_net(0.5).double(), some(), 0.7
    found = bending(net, x, y, h)
    net.eval()
    expected = 0.0
    for row in range(len(x)):
        def slope(z, row=row):
            z = z.detach().requires_grad_()
            logits = net.head(net.backbone(z[None]))
            return torch.autograd.grad(F.cross_entropy(logits, y[row : row + 1]), z)[0]

        z = (x[row] - net.mean) / net.std
        sign = slope(z).sign()
        expected += (slope(z + h * sign / sign.norm()) - slope(z)).norm() / len(x)
    torch.testing.assert_close(found, expected)
    assert all(p.grad is not None for p in _backward(found, net))


def _backward(loss, net):
    loss.backward()
    return [p for name, p in net.named_parameters() if name != "head.bias"]


def test_cure_goes_to_the_product_with_the_hessian_and_is_0_at_h_0():
    net, (x, y) = flat_net().double(), some(1)
    x, y = x[:1], y[:1]
    assert bending(net, x, y, 0.0).item() == 0
    z = (x - net.mean) / net.std
    net.eval()

    def loss(z):
        return F.cross_entropy(net.head(net.backbone(z.view_as(x))), y)

    hessian = torch.autograd.functional.hessian(loss, z.flatten())
    sign = torch.autograd.functional.jacobian(loss, z.flatten()).sign()
    limit = float((hessian @ sign / sign.norm()).norm())
    assert bending(net, x, y, 1e-5).item() / 1e-5 == pytest.approx(limit, rel=1e-3)


def test_cure_of_a_loss_that_does_not_bend_is_0():
    """Of two classes with equal weights, the loss is log 2 everywhere."""
    net = Net(nn.Flatten(), nn.Linear(64, 2), mean=(0.3,), std=(0.4,)).double()
    nn.init.zeros_(net.head.weight)
    x, _ = some()
    assert bending(net, x, torch.zeros(5, dtype=torch.int64), 1.0).item() == 0


def test_cure_adds_its_term():
    method = Supervised(flat_net())
    batch = batch_of(method)
    loss = sl.CURE(weight=2.0, h=0.5).around(method, digits(), 0)(batch, At(0, 1))
    expected = 2 * bending(method.net, batch.labeled["view"], batch.labeled.targets, 0.5)
    torch.testing.assert_close(loss.terms["cure"], expected)


# --- Margins under changes of the weights ------------------------------------------------------------


def chain(*sizes):
    layers = [nn.Flatten()]
    for one, other in itertools.pairwise(sizes[:-1]):
        layers += [nn.Linear(one, other, bias=False), nn.ReLU()]
    head = nn.Linear(sizes[-2], sizes[-1], bias=False)
    return Net(nn.Sequential(*layers), head, mean=(0.0,), std=(1.0,)).double()


def norms(net):
    return [part.weight.abs().sum(dim=1).max() for part in net.modules() if isinstance(part, nn.Linear)]


def test_the_bound_is_below_the_product_formula_and_equal_where_inputs_are_as_large_as_they_can_be():
    torch.manual_seed(0)
    net, (x, _), radius = chain(64, 6, 5, 3), some(), 0.1
    weights = norms(net)
    product = 2 * x.flatten(1).amax(dim=1) * (math.prod((1 + radius) * w for w in weights) - math.prod(weights))
    assert (worst_change(net, x, radius)[1] <= product + 1e-9).all()
    for part in net.modules():  # one unit that has all of the norm
        if isinstance(part, nn.Linear):
            nn.init.constant_(part.weight, 0.5)
    x = torch.full_like(x, 0.3)
    weights = norms(net)
    product = 2 * 0.3 * (math.prod((1 + radius) * w for w in weights) - math.prod(weights))
    torch.testing.assert_close(worst_change(net, x, radius)[1], torch.full((5,), product.item(), dtype=torch.float64))


@pytest.mark.parametrize("make", [lambda: chain(64, 6, 5, 3), lambda: tiny_net(digits()).double()])
def test_no_change_of_the_weights_passes_the_bound(make):
    torch.manual_seed(0)
    net, (x, _), radius = make().eval(), some(), 0.02
    logits, bound = worst_change(net, x, radius)
    torch.testing.assert_close(logits, net(x).logits)
    assert worst_change(net, x, 0.0)[1].abs().max() == 0
    layers = [part for part in net.modules() if isinstance(part, nn.Linear | nn.Conv2d)]
    before = [part.weight.detach().clone() for part in layers]
    largest = torch.zeros(len(x), dtype=torch.float64)
    for _ in range(30):
        with torch.no_grad():
            for part, weight in zip(layers, before, strict=True):
                noise = torch.randn_like(weight).sign()
                rows = noise.abs().flatten(1).sum(dim=1).max()
                part.weight.copy_(weight + radius * weight.abs().flatten(1).sum(dim=1).max() / rows * noise)
            gaps = logits[:, :, None] - logits[:, None]
            now = net(x).logits
            largest = torch.maximum(largest, (now[:, :, None] - now[:, None] - gaps).abs().amax(dim=(1, 2)))
    assert (largest <= bound).all()
    assert (largest > 0).all()


def test_the_term_is_the_margin_that_is_missing():
    method = Supervised(tiny_net(digits()))
    batch = batch_of(method)
    around = sl.PerturbationMargin(weight=0.5, radius=0.05).around(method, digits(), 0)
    loss = around(batch, At(0, 1))
    logits, change = worst_change(method.net, batch.labeled["view"], 0.05)
    short = 0.0
    for row, label in enumerate(batch.labeled.targets.tolist()):
        z = logits[row].tolist()
        margin = z[label] - max(z[j] for j in range(10) if j != label)
        log = math.copysign(math.log1p(abs(margin)), margin)
        short += max(0.0, math.log1p(change[row].item()) - log) / len(logits)
    assert loss.terms["perturbation_margin"].item() == pytest.approx(0.5 * short, rel=1e-5)
    assert margins(torch.tensor([[1.0, 3.0, 2.0]]), torch.tensor([1])).item() == 1
    assert margins(torch.tensor([[1.0, 3.0, 2.0]]), torch.tensor([0])).item() == -2


def test_nets_without_a_known_bound_are_named():
    class Odd(nn.Sequential):
        def forward(self, x):
            return 2 * super().forward(x)

    odd = Net(Odd(nn.Flatten()), nn.Linear(64, 10), mean=(0.3,), std=(0.4,))
    for net in (odd, flat_net()):
        with pytest.raises(UsageError, match=r"perturbation_margin knows no bound for (Odd|Flat)"):
            sl.PerturbationMargin().check(Supervised(net), digits())


# --- Corrupted labels ---------------------------------------------------------------------------------


def test_corrupted_labels_are_a_share_drawn_uniformly_by_the_seed():
    labels = np.repeat(np.arange(10), 2000)
    found = corrupted(labels, 10, 0.4, seed=3)
    assert (found == corrupted(labels, 10, 0.4, seed=3)).all()
    assert (found != corrupted(labels, 10, 0.4, seed=4)).any()
    wrong = found != labels
    assert abs(wrong.mean() - 0.4 * 0.9) < 0.015
    assert (np.bincount(found[wrong], minlength=10) > 600).all()  # of 720
    assert (corrupted(labels, 10, 0.0, seed=3) == labels).all()
    assert (corrupted(labels, 10, 1.0, seed=3) != labels).mean() == pytest.approx(0.9, abs=0.02)


def test_training_sees_corrupted_labels_and_nothing_else_does():
    pool = digits(100)
    other = sl.CorruptLabels(0.5)(pool, seed=1)
    rows = pool.labeled
    assert (other.labeled == rows).all()
    assert (other.labels[rows] == corrupted(pool.labels[rows], 10, 0.5, 1)).all()
    assert (other.labels[rows] != pool.labels[rows]).any()
    assert (np.delete(other.labels, rows) == np.delete(pool.labels, rows)).all()
    assert (other.truth == pool.truth).all()
    assert (other.test == pool.test).all()
    assert pool.manifest()["hash"] == digits(100).manifest()["hash"]  # the run's own stays
    batch = Feed(other, FixMatch(flat_net()).views, 16, 16, 0, torch.device("cpu"))(At(0, 1))
    assert (batch.labeled.targets.numpy() == other.labels[batch.labeled.indices]).all()


@pytest.mark.parametrize(("text", "words"), [
    ("corrupt_labels(1.5)", "share=1.5; expected .* 0 to 1"), ("adversarial(steps=0)", "steps=0"),
    ("adversarial(radius=-1)", "radius=-1"), ("sat(size=-1)", "sat: .*size=-1"), ("second_order(size=0)", "size=0"),
])
def test_bad_arguments_are_named(text, words):
    with pytest.raises(UsageError, match=words):
        sl.techniques.technique(text)


@pytest.mark.parametrize("name", ["adversarial", "sat", "second_order", "cure", "perturbation_margin",
                                  "corrupt_labels"])
def test_methods_without_labels_are_refused_by_name(name):
    with pytest.raises(UsageError, match=f"{name}.* simclr"):
        sl.techniques.technique(name).check(sl.SimCLR(tiny_net(digits())), digits())
