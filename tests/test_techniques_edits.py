"""Edits of weights while they are trained against slow references, and the identities of their papers."""

import copy

import pytest
import torch
from small_runs import digits, flat_net, tiny_net, train
from torch import nn

import ssl_lab as sl
from ssl_lab.batch import At, Style
from ssl_lab.errors import UsageError
from ssl_lab.methods import Supervised
from ssl_lab.nets import Net
from ssl_lab.nets.normed import blocks_of, moments
from ssl_lab.optim import SGD, AdamW
from ssl_lab.techniques.images import as_seen
from ssl_lab.techniques.weights.invariant import free_layers
from ssl_lab.techniques.weights.renewal import after_block, generations_done


def moved(net, seed):
    """New weights, as a step of training would leave them."""
    draw = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for p in net.parameters():
            p.copy_(torch.randn(p.shape, generator=draw))


@pytest.mark.parametrize("k", [1, 3, 5])
def test_lookahead_is_steps_forward_and_one_back(k):
    technique = sl.Lookahead(k, 0.5).around(Supervised(flat_net(), ema=0.0), digits(), 0)
    weights = list(technique.net.parameters())
    slow = [p.detach().double().clone() for p in weights]
    for step in range(7):
        moved(technique.net, step)
        fast = [p.detach().double().clone() for p in weights]
        technique.after_step(At(step, 7))
        if (step + 1) % k == 0 or step == 6:
            slow = [s + 0.5 * (f - s) for s, f in zip(slow, fast, strict=True)]
            fast = slow
        for p, expected in zip(weights, fast, strict=True):
            torch.testing.assert_close(p.detach().double(), expected, rtol=1e-5, atol=1e-6)
    for p, s in zip(technique.predictor().parameters(), slow, strict=True):  # which are what is evaluated
        torch.testing.assert_close(p.detach().double(), s, rtol=1e-5, atol=1e-6)


# Weights whose length does not matter


@pytest.mark.parametrize(("name", "free", "seen"), [
    ("tiny_4", {"stem.0", *(f"blocks.{i}.branch.{j}" for i in range(3) for j in (0, 3)), "blocks.1.shortcut.0",
                "blocks.2.shortcut.0"}, None),
    ("wrn_10_1", {"stem", *(f"blocks.{i}.conv1" for i in range(3))}, {"stem": "blocks.0.norm1"}),
])
def test_layers_whose_length_does_not_matter_are_found(name, free, seen):
    net = sl.net(name, 10, Style(3, 16, 16))
    found = {layer.name.removeprefix("backbone."): layer for layer in free_layers(net, Style(3, 16, 16))}
    assert found.keys() == free
    assert all(layer.rows and len(layer.norms) == 1 for layer in found.values())
    for layer, norm in (seen or {}).items():
        assert found[layer].norms == (f"backbone.{norm}",)


def biased_net():
    """With a bias before BatchNorm, which is not scaled."""
    backbone = nn.Sequential(nn.Conv2d(1, 6, 3), nn.BatchNorm2d(6), nn.ReLU(), nn.Flatten(), nn.Linear(6 * 36, 5),
                             nn.BatchNorm1d(5), nn.Tanh())
    return Net(backbone, nn.Linear(5, 10), mean=(0.3,), std=(0.4,))


@pytest.mark.parametrize("per", ["filter", "layer"])
@pytest.mark.parametrize("make", [lambda: tiny_net(digits()), biased_net])
def test_weight_rescaling_changes_no_output(make, per):
    net = make().double()
    for norm in net.modules():
        if hasattr(norm, "eps"):
            norm.eps = 1e-12
    x = torch.rand(12, 1, 8, 8, dtype=torch.float64)
    net.train()(x)  # moves the running statistics
    technique = sl.WeightRescaling(per, every=2).around(Supervised(net), digits(), 0)
    technique.ema.net.load_state_dict(net.state_dict())
    before = copy.deepcopy(net)
    for step in (0, 1):
        technique.after_step(At(step, 4))
        assert torch.equal(net.head.weight, before.head.weight)
        for mode in (True, False):
            ours, theirs = copy.deepcopy(net).train(mode)(x), copy.deepcopy(before).train(mode)(x)
            torch.testing.assert_close(ours.logits, theirs.logits, rtol=1e-7, atol=1e-7)
    assert technique._layers
    for layer in technique._layers:
        for each in (net, technique.ema.net):
            lengths = layer.weight(each).flatten(1).norm(dim=1) if per == "filter" else layer.weight(each).norm()
            torch.testing.assert_close(lengths, torch.ones_like(lengths))


def test_what_has_no_batch_norm_is_refused():
    for technique in (sl.WeightRescaling(), sl.Sphere()):
        with pytest.raises(UsageError, match=f"{technique.name} .* follows, and custom has none"):
            technique.check(Supervised(flat_net()), digits())


def length(weights):
    return float(torch.cat([w.detach().flatten() for w in weights]).norm())


def test_on_the_sphere_directions_do_not_depend_on_the_radius():
    """At lr = ELR r^2, under plain SGD; and gradients are orthogonal to weights."""
    paths = []
    for radius in (0.5, 3.0):
        net = tiny_net(digits()).double()
        for norm in net.modules():
            if hasattr(norm, "eps"):
                norm.eps = 1e-16
        technique = sl.Sphere(radius, alone=True).around(Supervised(net), digits(), 0)
        weights = technique._weights()
        assert {id(p) for p in technique.parameters() if p.requires_grad} == {id(w) for w in weights}
        optimizer = torch.optim.SGD(weights, lr=1e-3 * radius**2)
        draw = torch.Generator().manual_seed(0)
        for step in range(3):
            x = torch.rand(8, 1, 8, 8, generator=draw, dtype=torch.float64)
            loss = nn.functional.cross_entropy(net.train()(x).logits, torch.arange(8))
            optimizer.zero_grad()
            loss.backward()
            for w in weights:
                assert (w * w.grad).sum().abs() < 1e-9 * w.norm() * w.grad.norm()
            optimizer.step()
            technique.after_step(At(step, 3))
            assert length(weights) == pytest.approx(radius)
        paths.append([w.detach() / radius for w in weights])
    for ours, theirs in zip(*paths, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-8, atol=1e-10)


def test_the_sphere_is_by_default_that_of_the_first_weights():
    technique = sl.Sphere().around(Supervised(tiny_net(digits())), digits(), 0)
    first = float(technique.length)
    moved(technique.net, 0)
    technique.after_step(At(0, 3))
    assert length(technique._weights()) == pytest.approx(first, rel=1e-5)


# Weights drawn anew


def test_generations_have_equal_lengths():
    ends = [step + 1 for step in range(10) if generations_done(At(step, 10), 4)]
    assert ends == [2, 5, 7]
    assert [generations_done(At(step - 1, 10), 4) for step in ends] == [1, 2, 3]
    assert not any(generations_done(At(step, 10), 1) for step in range(10))


def test_blocks_and_what_comes_after_them():
    net = tiny_net(digits())
    assert blocks_of(net) == ["backbone.blocks.0", "backbone.blocks.1", "backbone.blocks.2"]
    assert after_block(net, 3) == ["head.weight", "head.bias"]
    names = [name for name, _ in net.named_parameters()]
    assert after_block(net, 0) == [name for name in names if "stem" not in name]
    assert after_block(net, 2) == [name for name in names if "blocks.2" in name or "head" in name]


def renewed(technique, net, steps=4):
    """The technique after a generation over which weights, statistics and the average have moved; what they were."""
    around = technique.around(Supervised(net, ema=0.5), digits(), 0)
    first = copy.deepcopy(around.net)
    moved(around.net, 1)
    around.net.train()(torch.rand(8, 1, 8, 8, generator=torch.Generator().manual_seed(0)))
    before = copy.deepcopy(around.net)
    assert around.edited() == []
    around.after_step(At(steps // 2 - 1, steps))
    return around, first, before


@pytest.mark.parametrize(("blocks", "names"), [(0, ("head",)), (1, ("backbone.blocks.2", "head")), (None, ("",))])
def test_reinit_draws_the_last_blocks_anew(blocks, names):
    around, first, before = renewed(sl.Reinit(blocks=blocks), tiny_net(digits()))
    edited = {id(p) for p in around.edited()}
    for name, p in around.net.named_parameters():
        fresh = name.startswith(names)
        assert (id(p) in edited) == fresh
        if not fresh:
            assert torch.equal(p, before.get_parameter(name))
            continue
        start = first.get_parameter(name)
        assert torch.equal(p.flatten().sort().values, start.flatten().sort().values)
        assert torch.equal(p, around.ema.net.get_parameter(name))
        assert start.unique().numel() == 1 or not torch.equal(p, start)
    for name, buffer in around.net.named_buffers():
        if name.startswith(names) and "running" in name:
            assert torch.equal(buffer, first.get_buffer(name))
            assert torch.equal(buffer, around.ema.net.get_buffer(name))
        elif "running" in name:
            assert torch.equal(buffer, before.get_buffer(name))
    again, _, _ = renewed(sl.Reinit(blocks=blocks), tiny_net(digits()))
    torch.testing.assert_close(dict(again.net.state_dict()), dict(around.net.state_dict()), rtol=0, atol=0)
    around.after_step(At(3, 4))  # the last generation ends, and stays
    assert around.edited() == []


def test_shrink_and_perturb():
    around, first, before = renewed(sl.ShrinkPerturb(0.4, 0.1), tiny_net(digits()))
    for name, p in around.net.named_parameters():
        fresh = (p - 0.4 * before.get_parameter(name)) / 0.1
        expected = first.get_parameter(name).flatten().sort().values
        torch.testing.assert_close(fresh.flatten().sort().values, expected, rtol=1e-3, atol=1e-4)
    restart, first, _ = renewed(sl.ShrinkPerturb(0.0, 1.0), tiny_net(digits()))
    for name, p in restart.net.named_parameters():
        assert torch.equal(p.flatten().sort().values, first.get_parameter(name).flatten().sort().values)
    same, _, before = renewed(sl.ShrinkPerturb(1.0, 0.0), tiny_net(digits()))
    torch.testing.assert_close(dict(same.net.named_parameters()), dict(before.named_parameters()), rtol=0, atol=0)
    assert same.edited() == []


@pytest.mark.parametrize("optimizer", [SGD(), AdamW()])
def test_the_optimizer_forgets_what_is_drawn_anew(optimizer):
    """In the step itself: see `test_the_optimizer_forgets_the_momenta_of_what_is_edited` for what the Trainer does."""
    around = sl.Reinit(blocks=0).around(Supervised(tiny_net(digits())), digits(), 0)
    torch_optimizer = optimizer.build(around)
    for p in around.net.parameters():
        p.grad = torch.ones_like(p)
    torch_optimizer.step()
    around.after_step(At(1, 4))
    for p in around.edited():
        torch_optimizer.state.pop(p, None)
    known = set(torch_optimizer.state)
    assert known == {p for name, p in around.net.named_parameters() if not name.startswith("head")}


def test_a_normed_net_is_at_first_the_net(tmp_path):
    style = digits().style
    plain, net = sl.net("tiny_4", 10, style), sl.net("tiny_4+normed", 10, style)
    x = torch.rand(4, 1, 8, 8)
    assert torch.equal(net.eval()(x).logits, plain.eval()(x).logits)
    extra = net.state_dict().keys() - plain.state_dict().keys()
    assert extra == {f"backbone.blocks.{i}.fixed_{what}" for i in range(3) for what in ("mean", "sd")}
    tokens = sl.net("timm/vit_tiny_patch16_224+normed", 10, Style(3, 32, 32))
    assert tokens.backbone.blocks[0].fixed_mean.shape == (192,)


@pytest.mark.parametrize(("rounds", "generation", "kept"), [(1, 1, 1), (1, 3, 3), (2, 3, 2), (2, 2, 1)])
def test_layerwise_reinit_keeps_blocks_at_their_first_norms(rounds, generation, kept):
    pool = digits()
    technique = sl.LayerwiseReinit(rounds).around(Supervised(tiny_net(pool)), pool, 0)
    net, first = technique.net, tiny_net(pool)
    assert net.name == technique.ema.net.name == "tiny_8+normed"
    with torch.no_grad():
        for p in net.parameters():
            p.mul_(torch.rand(p.shape, generator=torch.Generator().manual_seed(0)) + 1).add_(0.01)
    total = 3 * rounds + 1
    before = copy.deepcopy(net)
    technique.after_step(At(generation - 1, total))
    anew = set(after_block(first, kept))
    for name, p in net.named_parameters():
        start, now = first.get_parameter(name), before.get_parameter(name)
        if name in anew:
            assert torch.equal(p.flatten().sort().values, start.flatten().sort().values), name
        else:
            assert float(p.detach().norm()) == pytest.approx(float(start.detach().norm()), rel=1e-5), name
            torch.testing.assert_close(p / p.norm().clamp(min=1e-9), start.norm().sign() * now / now.norm())
    assert {id(p) for p in technique.edited()} == {id(p) for p in net.parameters()}
    images, seen = as_seen(technique, pool, 256, 0, "layerwise_reinit"), []
    net.get_submodule(f"backbone.blocks.{kept - 1}").register_forward_hook(lambda _, __, output: seen.append(output))
    net.train()(images)
    assert len(images) == 100
    mean, sd = moments(seen[0].detach())
    alive = sd > 0  # a channel that its rectifier closes stays constant, and has scale 1
    assert (net.get_submodule(f"backbone.blocks.{kept - 1}").fixed_sd[~alive] == 1).all()
    torch.testing.assert_close(mean, torch.zeros(8 * 2 ** (kept - 1)), rtol=0, atol=1e-5)
    torch.testing.assert_close(sd[alive], torch.ones(int(alive.sum())), rtol=1e-4, atol=1e-4)
    assert alive.sum() > len(alive) / 2
    assert torch.equal(technique.ema.net.backbone.blocks[kept - 1].fixed_mean, net.backbone.blocks[kept - 1].fixed_mean)
    for name, buffer in technique.ema.net.named_buffers():
        assert "fixed" not in name or torch.equal(buffer, net.get_buffer(name))
    assert torch.equal(net.backbone.blocks[kept % 3].fixed_sd, torch.ones_like(net.backbone.blocks[kept % 3].fixed_sd))


def test_a_net_that_comes_out_of_layerwise_reinit_is_opened_again(tmp_path):
    result = train(tmp_path, Supervised(tiny_net(digits())), steps=4, evaluations=1, techniques=["layerwise_reinit"])
    pixels = digits().images.pixels[:6]
    again = sl.open(tmp_path, device="cpu", precision="fp32")
    assert again.card.net == "tiny_8+normed"
    assert (again.net.backbone.blocks[0].fixed_sd != 1).any()
    x = torch.from_numpy(pixels).float() / 255
    ours, theirs = (net.eval()(x).logits for net in (again.net, result.method.predictor()))
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)


def test_a_copy_of_the_net_that_would_not_follow_is_refused():
    with pytest.raises(UsageError, match="layerwise_reinit: byol keeps a copy of the net"):
        sl.LayerwiseReinit().check(sl.BYOL(tiny_net(digits()), hidden=8, dim=4), digits())


def test_what_cannot_be_drawn_anew():
    with pytest.raises(UsageError, match=r"reinit: blocks=4; tiny_8 has 3"):
        sl.Reinit(blocks=4).check(Supervised(tiny_net(digits())), digits())
    with pytest.raises(UsageError, match="generations=0; expected 1 or more"):
        sl.ShrinkPerturb(generations=0)
