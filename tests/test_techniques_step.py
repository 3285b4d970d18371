"""Update rules against slow references in float64, and the identities of their papers."""

import pytest
import torch
from small_runs import digits, flat_net, tiny_net, train

import ssl_lab as sl
from ssl_lab.batch import At, Loss
from ssl_lab.engine import Feed, Runtime
from ssl_lab.engine.closure import StepClosure
from ssl_lab.methods import Supervised
from ssl_lab.techniques.step.nearby import along, moved

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
