"""Update rules against slow references in float64, and the identities of their papers."""

from types import SimpleNamespace

import pytest
import torch
from small_runs import digits, flat_net, tiny_net, train

import ssl_lab as sl
from ssl_lab.batch import At, Loss
from ssl_lab.engine import Feed, Runtime
from ssl_lab.engine.closure import StepClosure
from ssl_lab.errors import UsageError
from ssl_lab.methods import Supervised
from ssl_lab.nets import Net
from ssl_lab.seeds import generator
from ssl_lab.techniques.step.nearby import along, gradients, learning, moved

START = At(0, 10)


class Bowls:
    """A closure of L(w) = mean over rows of (w - c_b)' A (w - c_b) / 2, in float64; its parts have some of the rows."""

    def __init__(self, weights, rows=4, centers=None) -> None:
        draw = torch.Generator().manual_seed(0)
        self.weights, self.size = weights, sum(w.numel() for w in weights)
        root = torch.randn(self.size, self.size, generator=draw, dtype=torch.float64)
        self.matrix = root @ root.T / self.size
        self.centers = torch.randn(rows, self.size, generator=draw, dtype=torch.float64) if centers is None else centers
        self.seen = []

    def loss_at(self, w):
        away = w - self.centers
        return ((away @ self.matrix) * away).sum(dim=1).mean() / 2

    def gradient_at(self, w):
        return (w - self.centers).mean(dim=0) @ self.matrix

    def __call__(self):
        flat = torch.cat([w.flatten() for w in self.weights])
        self.seen.append(flat.detach().clone())
        for w in self.weights:
            w.grad = None
        loss = self.loss_at(flat)
        loss.backward()
        return Loss({"bowl": loss})

    def curvature(self, weights, direction):
        products = self.matrix @ flat(direction)
        return [part.view_as(w) for w, part in zip(weights, products.split([w.numel() for w in weights]), strict=True)]

    def parts(self, count):
        return [self] if count == 1 else [Bowls(self.weights, centers=c) for c in self.centers.chunk(count)]


@pytest.fixture
def weights():
    draw = torch.Generator().manual_seed(1)
    return [torch.nn.Parameter(torch.randn(*shape, generator=draw, dtype=torch.float64)) for shape in ((2, 3), (4,))]


def flat(tensors):
    return torch.cat([t.detach().flatten() for t in tensors])


def step(rule, bowls, lr=0.1, at=START):
    """The weights after one plain SGD step of the rule, and the loss that it reports."""
    optimizer = torch.optim.SGD(bowls.weights, lr=lr)
    loss = rule(bowls, optimizer, at)
    return flat(bowls.weights), loss


def test_moved_weights_come_back_exactly(weights):
    before = flat(weights)
    with moved(weights, along([torch.ones_like(w) for w in weights], 0.5)):
        assert (flat(weights) - before).norm() == pytest.approx(0.5)
    assert torch.equal(flat(weights), before)


@pytest.mark.parametrize("parts", [1, 2, 4])
def test_sam_is_the_gradient_at_the_worst_point_nearby(weights, parts):
    bowls, w, rho, lr = Bowls(weights), flat(weights), 0.3, 0.1
    gradients = []
    for centers in bowls.centers.chunk(parts):
        some = Bowls(weights, centers=centers)
        g = some.gradient_at(w)
        gradients.append(some.gradient_at(w + rho * g / g.norm()))
    found, loss = step(sl.SAM(rho, parts=parts), bowls, lr)
    torch.testing.assert_close(found, w - lr * torch.stack(gradients).mean(dim=0), rtol=1e-12, atol=1e-12)
    assert float(loss.total.detach()) == pytest.approx(float(bowls.loss_at(w)))


def test_sam_without_radius_or_before_its_time_is_the_plain_step(weights):
    bowls, w = Bowls(weights), flat(weights)
    plain = w - 0.1 * bowls.gradient_at(w)
    assert torch.equal(step(sl.SAM(0.0), bowls)[0], step_from(bowls, w, sl.optim.plain))
    assert torch.equal(step_from(bowls, w, sl.SAM(0.3, after=0.8), at=At(7, 10)), step_from(bowls, w, sl.optim.plain))
    assert len(bowls.seen) == 5
    late = step_from(bowls, w, sl.SAM(0.3, after=0.8), at=At(8, 10))
    assert not torch.allclose(late, plain)


def step_from(bowls, w, rule, at=START):
    with torch.no_grad():
        for weight, part in zip(bowls.weights, w.split([p.numel() for p in bowls.weights]), strict=True):
            weight.copy_(part.view_as(weight))
    return step(rule, bowls, at=at)[0]


def test_sams_second_pass_sees_the_same_views_and_leaves_statistics_alone(tmp_path):
    plain = train(tmp_path / "plain", Supervised(tiny_net(digits())), steps=1)
    sharp = train(tmp_path / "sharp", Supervised(tiny_net(digits())), steps=1, techniques=[sl.SAM(0.5)])
    ours, theirs = (dict(result.method.net.named_buffers()) for result in (sharp, plain))
    torch.testing.assert_close(ours, theirs, rtol=0, atol=0)
    assert not torch.equal(sharp.method.net.head.weight, plain.method.net.head.weight)


class Recorder(Supervised):
    """Keeps which rows each pass has, and as which rank it draws."""

    def forward(self, batch, at):
        self.passes.append((batch.labeled.indices.tolist(), at.rank, at.world))
        return super().forward(batch, at)


def test_parts_of_a_batch_are_parts_of_each_micro_batch():
    """So that two ranks have the groups of one rank with two micro-batches."""
    method = Recorder(flat_net())
    whole = Feed(digits(), method.views, 8, 8, 0, torch.device("cpu"))(At(0, 1))
    rows = whole.labeled.indices.tolist()
    runtime, optimizer = Runtime(torch.device("cpu"), "fp32", "asked"), sl.SGD().build(method)
    closure = StepClosure(method, optimizer, runtime, whole.chunk(2), At(0, 1), None)
    method.passes = []
    losses = [part().total.detach() for part in closure.parts(2)]
    assert method.passes == [(rows[0:2], 0, 4), (rows[4:6], 2, 4), (rows[2:4], 1, 4), (rows[6:8], 3, 4)]
    torch.testing.assert_close(torch.stack(losses).mean(), closure().total.detach())
    method.passes = []
    ranks = [StepClosure(method, optimizer, runtime, [whole.chunk(2)[r]], At(0, 1, 0, r, 2), None) for r in (0, 1)]
    for part in range(2):
        for each in ranks:
            each.parts(2)[part]()
    assert method.passes == [(rows[0:2], 0, 4), (rows[4:6], 2, 4), (rows[2:4], 1, 4), (rows[6:8], 3, 4)]


def test_the_product_with_the_hessian_is_that_of_the_whole_batch():
    """Of two micro-batches, beside rows of the Hessian by differences of the gradient."""
    method = Supervised(flat_net().double())
    batch = Feed(digits(), method.views, 8, 8, 0, torch.device("cpu"))(At(0, 1))
    runtime, optimizer = Runtime(torch.device("cpu"), "fp32", "asked"), sl.SGD().build(method)
    closure = StepClosure(method, optimizer, runtime, batch.chunk(2), At(0, 1), None)
    closure()
    weights = learning(optimizer)
    draw = torch.Generator().manual_seed(0)
    direction = [torch.randn(w.shape, generator=draw, dtype=w.dtype) for w in weights]
    sides = []
    for sign in (1, -1):
        with moved(weights, [sign * 1e-3 * d for d in direction]):
            closure()
            sides.append([g.double() for g in gradients(weights)])
    found = closure.curvature(weights, direction)
    for product, ahead, behind in zip(found, *sides, strict=True):
        torch.testing.assert_close(product, (ahead - behind) / 2e-3, rtol=5e-2, atol=2e-3)


def test_gnp_weighs_both_gradients(weights):
    bowls, w, radius = Bowls(weights), flat(weights), 0.3
    g = bowls.gradient_at(w)
    there = bowls.gradient_at(w + radius * g / g.norm())
    for alpha in (0.0, 0.3, 1.0):
        found = step_from(bowls, w, sl.GNP(radius, alpha))
        torch.testing.assert_close(found, w - 0.1 * ((1 - alpha) * g + alpha * there), rtol=1e-10, atol=1e-10)
    assert torch.equal(step_from(bowls, w, sl.GNP(radius, 1.0)), step_from(bowls, w, sl.SAM(radius)))
    assert torch.equal(step_from(bowls, w, sl.GNP(radius, 0.0)), step_from(bowls, w, sl.optim.plain))


def test_hero_of_a_bowl():
    """L = w'Aw / 2 of one tensor with n entries: the direction is A (w + e) + (2 l / n) A A e."""
    weight = torch.nn.Parameter(torch.randn(2, 5, generator=torch.Generator().manual_seed(1), dtype=torch.float64))
    bowls, w = Bowls([weight], centers=torch.zeros(1, 10, dtype=torch.float64)), flat([weight])
    a, h, strength = bowls.matrix, 0.4, 1.5
    g = a @ w
    e = h * w**2 * g / (w.abs() * g).norm()
    expected = a @ (w + e) + 2 * strength / 10 * a @ a @ e
    torch.testing.assert_close(step_from(bowls, w, sl.HERO(h, strength)), w - 0.1 * expected, rtol=1e-8, atol=1e-8)
    adaptive = w - 0.1 * a @ (w + e)
    torch.testing.assert_close(step_from(bowls, w, sl.HERO(h, 0.0)), adaptive, rtol=1e-8, atol=1e-8)
    assert torch.equal(step_from(bowls, w, sl.HERO(0.0, strength)), step_from(bowls, w, sl.optim.plain))


def test_hero_leaves_vectors_out_of_its_penalty(weights):
    """Of a bias the change of the gradient does not count, but it moves by what the weights' change does to it."""
    bowls, w = Bowls(weights), flat(weights)
    g = bowls.gradient_at(w)
    e = 0.4 * w**2 * g / (w.abs() * g).norm()
    change = bowls.gradient_at(w + e) - g
    change[6:] = 0
    expected = bowls.gradient_at(w + e) + 2 * 1.5 / 6 * bowls.matrix @ change
    torch.testing.assert_close(step_from(bowls, w, sl.HERO(0.4, 1.5)), w - 0.1 * expected, rtol=1e-8, atol=1e-8)


class Holding(Supervised):
    """A method whose parameters are some weights."""

    def __init__(self, weights):
        torch.nn.Module.__init__(self)
        self.own = torch.nn.ParameterList(weights)


@pytest.mark.parametrize("momentum", [0.0, 0.7])
def test_entropy_sgd_is_its_loop(weights, momentum):
    bowls, w, method = Bowls(weights), flat(weights), Holding(weights)
    rule = sl.EntropySGD(steps=3, gamma=0.5, pull=0.8, noise=0.0, average=0.6, momentum=momentum)
    rule.begin(method, 0)
    optimizer = torch.optim.SGD(method.own, lr=0.1, weight_decay=0.01)
    for number in range(5):  # the last step ends a loop that was begun
        rule(bowls, optimizer, At(number, 5))
    x, v = w, 0.0
    for inner in (3, 2):
        moving, mean, velocity = x, x, 0.0
        for _ in range(inner):
            d = bowls.gradient_at(moving) + 0.5 * (moving - x) + 0.01 * moving
            velocity = momentum * velocity + d
            moving = moving - 0.1 * (d + momentum * velocity)
            mean = 0.6 * mean + 0.4 * moving
        v = momentum * v + (x - mean)
        x = x - 0.8 * (x - mean + momentum * v)
    torch.testing.assert_close(flat(method.own), x, rtol=1e-6, atol=1e-8)


def test_entropy_sgd_without_its_parts_is_gradient_descent(weights):
    bowls, method, rules = Bowls(weights), Holding(weights), []
    for rule in (sl.EntropySGD(steps=4, gamma=0.0, noise=0.0, average=0.0, momentum=0.0), sl.optim.plain):
        with torch.no_grad():
            for p in method.own:
                p.fill_(0.5)
        if rule is not sl.optim.plain:
            rule.begin(method, 0)
        for number in range(6):
            step(rule, bowls, at=At(number, 6))
        rules.append(flat(method.own))
    torch.testing.assert_close(*rules, rtol=1e-12, atol=1e-12)


def test_its_noise_has_the_size_of_langevin_dynamics():
    method = Holding([torch.nn.Parameter(torch.zeros(200, 100))])
    rule = sl.EntropySGD(steps=1, gamma=0.0, noise=0.5, average=0.0, momentum=0.0)
    rule.begin(method, 0)

    def still():
        method.own[0].grad = torch.zeros(200, 100)
        return Loss({"none": torch.zeros(())})

    rule(still, torch.optim.SGD(method.own, lr=0.02), At(0, 1))
    assert method.own[0].std().item() == pytest.approx(0.5 * (2 * 0.02) ** 0.5, rel=0.03)


@pytest.mark.parametrize("rule", [sl.EntropySGD(), sl.ReplicatedSGD(), sl.SAM(), sl.GNP()], ids=lambda rule: rule.name)
def test_a_rule_keeps_the_pace_of_the_optimizer(rule):
    """Down a straight slope, at equal numbers of gradients and SGD's learning rate and momentum."""
    gone = []
    for each in (rule, sl.optim.plain):
        method = Holding([torch.nn.Parameter(torch.zeros(3, 2, dtype=torch.float64))])

        def slope(w=method.own[0]):
            w.grad = torch.ones_like(w)
            return Loss({"slope": w.sum()})

        slope.parts = lambda count, whole=slope: [whole]
        if each is rule:
            rule.begin(method, 0)
        learned = [*method.own, *(p for p in rule.parameters() if p.requires_grad)] if each is rule else method.own
        optimizer = torch.optim.SGD(learned, lr=0.01, momentum=0.9, nesterov=True)
        for number in range(100):
            each(slope, optimizer, At(number, 100))
        gone.append(float(method.own[0].detach().mean()))
    assert 0.5 < gone[0] / gone[1] < 2


def test_replicas_attract_each_other_and_the_net_is_their_mean(weights):
    bowls, method, gamma, lr = Bowls(weights), Holding(weights), 0.7, 0.1
    rule = sl.ReplicatedSGD(replicas=3, gamma=gamma, spread=0.5)
    rule.begin(method, 0)
    before = [flat(replica.parameters()) for replica in rule.weights]
    mean = torch.stack(before).mean(dim=0)
    torch.testing.assert_close(flat(method.own), mean)
    assert all((w - before[0]).norm() > 0.1 for w in before[1:])
    optimizer = torch.optim.SGD([*method.own, *rule.weights.parameters()], lr=lr)
    loss = rule(bowls, optimizer, START)
    expected = [w - lr * (bowls.gradient_at(w) + 2 * gamma * (w - mean)) for w in before]
    for replica, w in zip(rule.weights, expected, strict=True):
        torch.testing.assert_close(flat(replica.parameters()), w, rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(flat(method.own), torch.stack(expected).mean(dim=0), rtol=1e-10, atol=1e-10)
    assert loss.total.item() == pytest.approx(sum(bowls.loss_at(w).item() for w in before) / 3)


def test_pof_moves_the_head_for_the_features_and_never_trains_it():
    """L = (f v - c)^2 / 2 of one feature f and one head v, with a target c for each half of the batch."""
    features, head = (torch.nn.Parameter(torch.tensor([[float(x)]], dtype=torch.float64)) for x in (2.0, 1.0))
    targets = torch.tensor([1.0, 5.0], dtype=torch.float64)
    seen = []

    def half(number):
        def closure():
            features.grad = head.grad = None
            seen.append((number, head.item()))
            loss = (features * head - targets[number]).square().sum() / 2
            loss.backward()
            return Loss({"half": loss})
        return closure

    def whole():
        raise AssertionError("it needs the halves alone")

    whole.parts = lambda count: [half(i) for i in range(count)]
    rule = sl.PoF(after=0.3, reach=2.0, first=0.05, searched=4)
    rule.begin(SimpleNamespace(net=SimpleNamespace(head=torch.nn.ParameterList([head]))), 0)
    rule(whole, torch.optim.SGD([features, head], lr=0.1, momentum=0.9, weight_decay=0.1), At(3, 10, seed=5))
    assert head.item() == 1.0
    tried = [v for number, v in seen if number == 1]
    assert tried == pytest.approx([1 + rate * 6 for rate in (0, 0.05, 0.1, 0.2, 0.4)])
    u = torch.rand((), generator=generator(5, "pof", 3)).item()
    moved_head = 1 + u * 2 * 0.2 * 6  # of these rates 0.2 lowers (2 v - 5)^2 most: 2.2, where 0.1 gives 1.6, 0.4 3.4
    assert seen[-1] == (0, pytest.approx(moved_head))
    slope = (2 * moved_head - 1) * moved_head
    assert features.item() == pytest.approx(2 - 0.1 * (slope + 0.1 * 2))


def moved_by(rule, method, lr=0.1, at=START):
    """What one step of SGD without momentum adds to each parameter, by name."""
    batch = Feed(digits(), method.views, 8, 8, 0, torch.device("cpu"))(At(0, 1))
    runtime = Runtime(torch.device("cpu"), "fp32", "asked")
    optimizer = torch.optim.SGD(method.parameters(), lr=lr)
    before = {name: p.detach().clone() for name, p in method.named_parameters()}
    rule(StepClosure(method, optimizer, runtime, batch.chunk(2), At(0, 1), None), optimizer, at)
    return {name: p.detach() - before[name] for name, p in method.named_parameters() if p.requires_grad}


def layered(*activations):
    """Linear layers with these activations behind them."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        sizes = [64, *[6] * len(activations)]
        parts = [part for i, act in enumerate(activations) for part in (torch.nn.Linear(sizes[i], 6), act)]
        return Net(torch.nn.Sequential(torch.nn.Flatten(), *parts), torch.nn.Linear(6, 10), (0.3,), (0.4,)).double()


def test_svi_leaves_out_the_derivative_of_a_layers_own_activation():
    net = layered(torch.nn.LeakyReLU(0.2), torch.nn.Tanh())
    method, rule = Supervised(net), sl.SVI()
    batch = Feed(digits(), method.views, 8, 8, 0, torch.device("cpu"))(At(0, 1)).labeled
    x0 = ((batch["view"].double() - net.mean) / net.std).flatten(1)
    _, one, _, two, _ = net.backbone
    z1 = one(x0)
    x1 = torch.where(z1 > 0, z1, 0.2 * z1)
    x2 = two(x1).tanh()
    p = net.head(x2).softmax(dim=1)
    error = (p - torch.nn.functional.one_hot(batch.targets, 10)) / len(x0)
    g2 = error @ net.head.weight
    g1 = (g2 * (1 - x2**2)) @ two.weight
    expected = {"net.head.weight": error.T @ x2, "net.backbone.3.weight": g2.T @ x1, "net.backbone.3.bias": g2.sum(0),
                "net.backbone.1.weight": g1.T @ x0, "net.backbone.1.bias": g1.sum(0)}
    rule.begin(method, 0)
    found = moved_by(rule, method)
    for name, slope in expected.items():
        torch.testing.assert_close(found[name], -0.1 * slope.detach(), rtol=1e-4, atol=1e-6)


def test_svi_of_identities_is_gradient_descent():
    same = layered(torch.nn.LeakyReLU(1.0), torch.nn.LeakyReLU(1.0))
    plain, rule = moved_by(sl.optim.plain, Supervised(same)), sl.SVI()
    method = Supervised(layered(torch.nn.LeakyReLU(1.0), torch.nn.LeakyReLU(1.0)))
    rule.begin(method, 0)
    torch.testing.assert_close(moved_by(rule, method), plain, rtol=1e-9, atol=1e-12)


def test_svi_of_a_residual_net_moves_its_layers_and_not_its_statistics():
    plain, method, rule = Supervised(tiny_net(digits())), Supervised(tiny_net(digits())), sl.SVI()
    rule.begin(method, 0)
    usual, found = moved_by(sl.optim.plain, plain), moved_by(rule, method)
    others = {name for name in usual if not torch.allclose(usual[name], found[name], atol=1e-7)}
    assert others == {name for name in usual if ".backbone." in name and usual[name].any()}
    torch.testing.assert_close(dict(method.net.named_buffers()), dict(plain.net.named_buffers()))


def test_svi_is_for_the_first_steps():
    """A tenth of them, unless told otherwise."""
    for step, total, until, acts in ((0, 20, 0.1, True), (1, 20, 0.1, True), (2, 20, 0.1, False), (0, 1, 0.0, False)):
        method, rule = Supervised(layered(torch.nn.Tanh())), sl.SVI(until)
        rule.begin(method, 0)
        found = moved_by(rule, method, at=At(step, total))
        plain = moved_by(sl.optim.plain, Supervised(layered(torch.nn.Tanh())))
        assert acts != all(torch.equal(found[name], plain[name]) for name in plain)
    assert sl.SVI().until == 0.1


def test_svi_needs_layers_that_it_knows():
    with pytest.raises(UsageError, match=r"svi knows convolutions and linear layers .* pixels has none"):
        sl.SVI().check(Supervised(sl.net("pixels", 10, digits().style)), digits())
