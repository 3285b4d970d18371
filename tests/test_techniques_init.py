"""First weights, and how they are kept, against slow references in float64, and the identities of the papers."""

import copy
import math

import pytest
import torch
import torch.nn.functional as F
from small_runs import digits, flat_net, tiny_net, train
from torch import nn

import ssl_lab as sl
from ssl_lab.batch import Style
from ssl_lab.engine import predict
from ssl_lab.engine.runtime import Runtime
from ssl_lab.errors import UsageError
from ssl_lab.methods import Supervised
from ssl_lab.nets import Net
from ssl_lab.nets.residual import ResNet
from ssl_lab.nets.stored import plain
from ssl_lab.techniques.images import pixels, some
from ssl_lab.techniques.net.autoinit import initialize
from ssl_lab.techniques.net.dropout import LeavingOut
from ssl_lab.techniques.net.gradinit import objective
from ssl_lab.techniques.net.moments import Moments, activated
from ssl_lab.techniques.net.rewire import attached, drawn_in_order, rewired

SMALL = Style(3, 16, 16)
CPU = Runtime(torch.device("cpu"), "fp32", "asked")


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


# Rewiring


def test_columns_are_drawn_without_replacement_by_their_weight():
    likely, draw = torch.tensor([1.0, 2.0, 5.0], dtype=torch.float64), generator()
    orders = torch.stack([drawn_in_order(likely, draw) for _ in range(4000)])
    assert all(sorted(order) == [0, 1, 2] for order in orders[:20].tolist())
    for first in range(3):
        assert float((orders[:, 0] == first).double().mean()) == pytest.approx(float(likely[first] / 8), abs=0.03)
    after_last = orders[orders[:, 0] == 2]  # of the other two, twice as often the second
    assert float((after_last[:, 1] == 1).double().mean()) == pytest.approx(2 / 3, abs=0.03)


def test_a_pass_gives_small_weights_to_what_is_drawn_first():
    matrix = torch.randn(5, 7, generator=generator(), dtype=torch.float64)
    found, draw = attached(matrix, generator(1)), generator(1)
    expected, strength = matrix.clone().tolist(), [0.0] * 7
    for i in range(1, 5):
        strength = [s + w for s, w in zip(strength, expected[i - 1], strict=True)]
        order = drawn_in_order(torch.tensor([s + abs(min(strength)) + 1 for s in strength], dtype=torch.float64), draw)
        for column, weight in zip(order.tolist(), sorted(matrix[i].tolist()), strict=True):
            expected[i][column] = weight
    torch.testing.assert_close(found, torch.tensor(expected, dtype=torch.float64))
    torch.testing.assert_close(found.sum(dim=1), matrix.sum(dim=1))
    assert torch.equal(found[0], matrix[0])


def test_rewiring_keeps_the_weights_and_evens_out_strengths():
    weight = torch.randn(64, 16, 3, 3, generator=generator(), dtype=torch.float64)
    found = rewired(weight, generator(1))
    assert torch.equal(found.flatten().sort().values, weight.flatten().sort().values)
    for axis in (0, 1):
        assert found.flatten(1).sum(dim=axis).var() < 0.8 * weight.flatten(1).sum(dim=axis).var()
    torch.testing.assert_close(attached(weight.flatten(1), generator(1)).sum(0), found.flatten(1).sum(0))  # stay


def test_rewiring_a_net_is_of_the_seed():
    nets = [sl.Rewire()(tiny_net(digits()), digits(), seed) for seed in (0, 0, 1)]
    weights = [dict(net.named_parameters()) for net in nets]
    torch.testing.assert_close(weights[0], weights[1], rtol=0, atol=0)
    assert not torch.equal(nets[0].head.weight, nets[2].head.weight)
    heads = [net.head.weight.flatten().sort().values for net in (nets[0], tiny_net(digits()))]
    assert torch.equal(*heads)


# AutoInit


def test_moments_of_a_rectified_normal_and_the_rules_of_he_and_lecun():
    mean, var = activated(torch.relu, Moments(0, 1))
    assert mean == pytest.approx(1 / math.sqrt(2 * math.pi), abs=1e-6)
    assert var == pytest.approx(1 / 2 - 1 / (2 * math.pi), abs=1e-6)
    assert var + mean**2 == pytest.approx(1 / 2)
    layer = nn.Linear(400, 500)
    for given, expected in ((Moments(mean, var), 2 / 400), (Moments(0, 1), 1 / 400)):
        assert initialize(layer, given, generator()) == (0, 1)
        assert float(layer.weight.detach().var()) == pytest.approx(expected, rel=0.02)
        assert layer.weight.abs().max() <= 2.3 * math.sqrt(expected)  # cut at two standard deviations
        assert not layer.bias.any()


@pytest.mark.parametrize("activation", [nn.ReLU(), nn.Tanh(), nn.SiLU(), nn.LeakyReLU(0.1), nn.ReLU6(), nn.Sigmoid()])
def test_moments_are_those_of_samples(activation):
    x = 0.7 + 1.3 * torch.randn(400_000, generator=generator(), dtype=torch.float64)
    mean, var = activated(activation, Moments(0.7, 1.69))
    assert mean == pytest.approx(float(activation(x).mean()), abs=0.01)
    assert var == pytest.approx(float(activation(x).var()), abs=0.02)


class Branching(nn.Module):
    """Sums, concatenations, pooling, a norm, dropout, functions and methods."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 96, 3), nn.Conv2d(96, 96, 1)
        self.third, self.fourth = nn.Conv2d(192, 64, 3), nn.Linear(64, 200)
        self.norm, self.drop = nn.BatchNorm2d(64), nn.Dropout(0.5)

    def forward(self, x):
        x = self.first(x)
        x = torch.cat([F.leaky_relu(x + self.second(F.relu(x)), 0.1), torch.tanh(x)], dim=1)
        x = self.norm(self.third(F.max_pool2d(x, 2))).relu()
        return self.fourth(self.drop(x.mean((2, 3)))).sigmoid()


def test_every_layers_output_has_variance_one():
    net = Net(Branching(), nn.Linear(200, 300), mean=(0.0,) * 3, std=(1.0,) * 3)
    sl.AutoInit()(net, digits_like(SMALL), 0)
    seen = {}
    for name, layer in net.named_modules():
        if isinstance(layer, nn.Conv2d | nn.Linear):
            layer.register_forward_hook(lambda _, __, output, name=name: seen.update({name: output.detach()}))
    torch.manual_seed(0)
    net.train()(torch.randn(128, 3, 16, 16))
    assert seen.keys() == {"backbone.first", "backbone.second", "backbone.third", "backbone.fourth", "head"}
    for name, output in seen.items():
        spread = 0.35 if name in ("backbone.fourth", "head") else 0.12  # means over a map are not independent
        assert float(output.square().mean().sqrt()) == pytest.approx(1, abs=spread), name


def digits_like(style):
    """A stand-in for a pool of which only the style is read."""
    return type("Styled", (), {"style": style})()


@pytest.mark.parametrize("name", ["tiny_8", "wrn_10_1", "timm/resnet10t"])
def test_autoinit_follows_the_nets_of_the_house(name):
    net = sl.net(name, 10, SMALL)
    before = copy.deepcopy(net)
    sl.prepared(net, ["drop_path", "dropout", "autoinit"], digits_like(SMALL))
    assert net.state_dict().keys() == before.state_dict().keys()
    for weights, old in zip(net.named_parameters(), before.parameters(), strict=True):
        assert weights[1].ndim < 2 or not torch.equal(weights[1], old), weights[0]
    assert net.training == before.training


def test_what_autoinit_cannot_follow_is_said():
    with pytest.raises(UsageError, match=r"autoinit cannot follow timm/vit_tiny_patch16_224"):
        sl.AutoInit()(sl.net("timm/vit_tiny_patch16_224", 10, SMALL), digits_like(SMALL), 0)
    odd = Net(nn.Sequential(nn.Flatten(), nn.Softmax(dim=1)), nn.Linear(64, 10), mean=(0.0,), std=(1.0,))
    with pytest.raises(UsageError, match=r"autoinit cannot follow custom: what .*oftmax.* does to means"):
        sl.AutoInit()(odd, digits(), 0)


# Weight normalization


def normalizable():
    torch.manual_seed(0)
    backbone = nn.Sequential(nn.Conv2d(1, 6, 3), nn.Tanh(), nn.Conv2d(6, 5, 3, bias=False), nn.Flatten(),
                             nn.Linear(5 * 16, 7), nn.ReLU())
    return Net(backbone, nn.Linear(7, 10), mean=(0.3,), std=(0.4,)).double()


def test_weight_norm_starts_with_outputs_of_mean_0_and_variance_1_before_the_head():
    """The head's logits stay as small as they were, or all gradients would be larger than the learning rate is for."""
    net, pool = normalizable(), digits()
    before = copy.deepcopy(net)
    net = sl.WeightNorm()(net, pool, 0)
    x = pixels(pool, some(pool.train, 256, 0, "weight_norm"), torch.device("cpu")).double()
    seen = (x - net.mean) / net.std
    torch.testing.assert_close(net.head.weight, before.head.weight)
    assert torch.equal(net.head.bias, before.head.bias)
    for layer, plain_layer in zip(net.backbone, before.backbone, strict=True):
        seen = layer(seen)
        if isinstance(layer, nn.Conv2d | nn.Linear):
            others = [axis for axis in range(seen.ndim) if axis != 1]
            torch.testing.assert_close(seen.var(others, correction=0), torch.ones(seen.shape[1], dtype=torch.float64),
                                       rtol=1e-5, atol=1e-5)
            if layer.bias is not None:
                torch.testing.assert_close(seen.mean(others), torch.zeros(seen.shape[1], dtype=torch.float64),
                                           rtol=1e-5, atol=1e-6)
            g, v = layer.parametrizations.weight.original0, layer.parametrizations.weight.original1
            assert torch.equal(v, plain_layer.weight)  # directions stay
            for k in range(len(v)):
                torch.testing.assert_close(layer.weight[k], g[k] * v[k] / v[k].square().sum().sqrt())


def test_weight_norm_alone_is_the_net_and_is_exported_as_plain_weights(tmp_path):
    net, pool = tiny_net(digits()), digits()
    same = sl.WeightNorm(data=False)(copy.deepcopy(net), pool, 0)
    x = torch.rand(4, 1, 8, 8)
    torch.testing.assert_close(same.eval()(x).logits, net.eval()(x).logits)
    state = plain(same.state_dict())
    assert state.keys() == net.state_dict().keys()
    torch.testing.assert_close(state, dict(net.state_dict()))
    method = Supervised(sl.prepared(tiny_net(pool), ["weight_norm"], pool))
    result = train(tmp_path, method, steps=2, evaluations=1, techniques=["weight_norm"])
    for file in ("model.safetensors", "checkpoint.pt"):
        again = sl.net("tiny_8", pool.class_names, pool.style, weights=tmp_path / file)
        assert not any("original" in name for name in again.state_dict())
        nets = (again.to(memory_format=torch.channels_last), result.method.predictor())
        torch.testing.assert_close(*[predict(each, pool, pool.test[:20], CPU) for each in nets], rtol=1e-4, atol=1e-5)


# Dropout


def test_dropout_leaves_out_units_in_training_alone():
    torch.manual_seed(0)
    hook, x = LeavingOut(0.25), torch.ones(200, 100, dtype=torch.float64)
    (dropped,) = hook(nn.Identity().train(), (x,))
    assert set(dropped.flatten().tolist()) == {0.0, 1 / 0.75}
    assert float(dropped.mean()) == pytest.approx(1, abs=0.02)
    assert torch.equal(hook(nn.Identity().eval(), (x,))[0], x)


@pytest.mark.parametrize(("name", "places"), [("tiny_4", 3), ("wrn_10_1", 3)])
def test_dropout_stands_where_it_says(name, places):
    net = sl.prepared(sl.net(name, 10, SMALL), [sl.Dropout(0.5, inputs=0.2, blocks=0.3)], digits())
    found = [(part, hook.rate) for part in net.modules() for hook in part._forward_pre_hooks.values()]
    assert [rate for part, rate in found if part is net.head] == [0.5]
    assert [rate for part, rate in found if part is net.backbone] == [0.2]
    assert len([part for part, rate in found if isinstance(part, nn.Conv2d) and rate == 0.3]) == places
    assert net.state_dict().keys() == sl.net(name, 10, SMALL).state_dict().keys()


def test_dropout_stands_before_the_last_convolution_of_a_bottleneck():
    backbone = ResNet((1, 1), 4, 1, bottlenecks=True)
    net = Net(backbone, nn.Linear(backbone.features_dim, 10), mean=(0.3,), std=(0.4,))
    sl.prepared(net, ["dropout(rate=0.0, blocks=0.3)"], digits())
    assert [name for name, part in backbone.named_modules() if part._forward_pre_hooks] == [
        "blocks.0.branch.6", "blocks.1.branch.6"]


def test_dropout_that_would_do_nothing_is_refused():
    with pytest.raises(UsageError, match="dropout leaves out what the head classifies, and simclr trains none"):
        sl.Dropout().check(sl.SimCLR(flat_net()), digits())
    with pytest.raises(UsageError, match="custom has no residual blocks"):
        sl.prepared(flat_net(), ["dropout(blocks=0.1)"], digits())


# GradInit


@pytest.mark.parametrize("by", ["sgd", "adam"])
@pytest.mark.parametrize(("gamma", "kind"), [(1e9, "loss"), (1e-3, "constraint")])
def test_what_gradinit_lowers(by, gamma, kind):
    """Softmax regression, whose gradient is known: x (p - y)."""
    net = Net(nn.Flatten(), nn.Linear(64, 10), mean=(0.3,), std=(0.4,)).double()
    draw = generator()
    batches = [(torch.rand(6, 1, 8, 8, generator=draw, dtype=torch.float64), torch.arange(6)) for _ in range(2)]
    scales, eta = torch.tensor([0.7, 2.0], dtype=torch.float64, requires_grad=True), 0.1

    def reference(m, moves=None):
        W, b = m[0] * net.head.weight.detach(), m[1] * net.head.bias.detach()  # noqa: N806
        x = ((batches[0][0] - 0.3) / 0.4).flatten(1)
        away = (x @ W.T + b).softmax(dim=1) - F.one_hot(batches[0][1], 10)
        g = [away.T @ x / 6, away.mean(dim=0)]
        size = (torch.cat([each.flatten() for each in g]).norm() if by == "sgd" else
                sum(each.abs().sum() for each in g))
        if size > gamma:
            return size, None
        moves = moves or [each / size if by == "sgd" else each.sign() for each in g]
        x2 = ((batches[1][0] - 0.3) / 0.4).flatten(1)
        logits = x2 @ (W - eta * moves[0]).T + b - eta * moves[1]
        picked = logits.log_softmax(dim=1)[torch.arange(6), batches[1][1]]
        return -picked.mean() / eta, moves

    found, value = objective(net, scales, *batches, eta, gamma, by)
    expected, moves = reference(scales.detach())
    assert found == kind
    assert float(value.detach()) == pytest.approx(float(expected), rel=1e-6)
    slopes = torch.autograd.grad(value, scales)[0]
    for i in range(2):  # by differences, the move held
        shift = torch.zeros(2, dtype=torch.float64)
        shift[i] = 1e-5
        rise = (reference(scales.detach() + shift, moves)[0] - reference(scales.detach() - shift, moves)[0]) / 2e-5
        assert float(slopes[i]) == pytest.approx(float(rise), rel=1e-4, abs=1e-7)


def test_gradinit_scales_tensors_and_lowers_the_loss_after_a_step():
    pool = digits()
    nets = [tiny_net(pool), sl.GradInit(steps=15, lr=0.05)(tiny_net(pool), pool, 0)]
    losses = []
    for (name, before), after in zip(nets[0].named_parameters(), nets[1].parameters(), strict=True):
        ratio = (after / before).flatten()
        if before.abs().min() > 0:
            torch.testing.assert_close(ratio, ratio[:1].expand_as(ratio), rtol=1e-4, atol=1e-5)
            assert ratio[0] >= 0.01, name
        else:
            assert torch.equal(before == 0, after == 0)
    for name, buffer in nets[0].named_buffers():
        assert torch.equal(buffer, nets[1].get_buffer(name))
    for net in nets:
        batch = pixels(pool, pool.labeled[:64], torch.device("cpu")), torch.from_numpy(pool.labels[pool.labeled[:64]])
        ones = torch.ones(len(list(net.parameters())), requires_grad=True)
        losses.append(float(objective(net.train(), ones, batch, batch, 0.1, 1e9, "sgd")[1].detach()))
    assert losses[1] < losses[0]
