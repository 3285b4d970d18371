"""Smaller nets: sparse and slim ones against slow references and their papers' identities, and recipes/compress.py."""

import copy
import importlib
import json
import math
import sys

import numpy as np
import pytest
import torch
from small_runs import digits, flat_net, tiny_net, train
from test_recipes import recipe
from torch import nn

import ssl_lab as sl
from ssl_lab import compress
from ssl_lab.analysis import effective_depth
from ssl_lab.batch import At, Style, generator
from ssl_lab.command_line import parse
from ssl_lab.errors import UsageError
from ssl_lab.methods import Supervised
from ssl_lab.methods.distillation import load_teacher
from ssl_lab.nets.capsules import Momentum, Routing, squash, step_back
from ssl_lab.nets.capsules import step as momentum_step
from ssl_lab.nets.parametrized import baked
from ssl_lab.nets.quantized import rounded_input, rounded_weight, with_float_inputs
from ssl_lab.nets.saturated import saturated
from ssl_lab.nets.slopes import slopes_of
from ssl_lab.nets.start import net_of_run, start_net
from ssl_lab.optim import SGD, AdamW, forget
from ssl_lab.techniques.term.bitat import Signs, second_moments, signs_in
from ssl_lab.techniques.term.csq import Bits
from ssl_lab.techniques.term.linearize import bend
from ssl_lab.techniques.term.noise_tempering import Noisy
from ssl_lab.techniques.term.scl import Gates
from ssl_lab.techniques.term.symreg import asymmetry
from ssl_lab.techniques.weights.channels import check_slim, groups_of, silence, slim
from ssl_lab.techniques.weights.lottery import tickets
from ssl_lab.techniques.weights.masks import largest
from ssl_lab.techniques.weights.pruning import contributions, survivors
from ssl_lab.techniques.weights.rigl import erk, rewired
from ssl_lab.techniques.weights.taylor import gate_slopes


def random(*shape, key=0):
    return torch.randn(shape, generator=generator("compress", key), dtype=torch.float64)


def sparse(net):
    """How many weights of convolutions and linear layers are not zero, and how many there are."""
    weights = [part.weight for part in net.modules() if isinstance(part, nn.Conv2d | nn.Linear)]
    return sum(int(w.count_nonzero()) for w in weights), sum(w.numel() for w in weights)


# --- Weights at zero -----------------------------------------------------------------------------


@pytest.mark.parametrize("density", [1.0, 0.5, 0.1, 0.01])
def test_erdos_renyi_kernel_densities(density):
    shapes = [(16, 1, 3, 3), (16, 16, 3, 3), (32, 16, 3, 3), (32, 16, 1, 1), (10, 64)]
    sizes, raw = [math.prod(s) for s in shapes], [sum(s) / math.prod(s) for s in shapes]
    low, high = 0.0, 1e6  # of the scale: a slow search
    for _ in range(200):
        scale = (low + high) / 2
        total = sum(n * min(1, scale * r) for n, r in zip(sizes, raw, strict=True))
        low, high = (scale, high) if total < density * sum(sizes) else (low, scale)
    found = erk(shapes, density)
    assert sum(n * d for n, d in zip(sizes, found, strict=True)) == pytest.approx(density * sum(sizes))
    assert found == pytest.approx([min(1, low * r) for r in raw], rel=1e-6)


@pytest.mark.parametrize("share", [0.0, 0.3, 1.0])
def test_one_edit_of_rigl_entry_by_entry(share):
    w, g = random(6, 5, key=1), random(6, 5, key=2)
    mask = largest(random(6, 5, key=3), 11)
    after, k = rewired(w * mask, g, mask, share), int(share * 11)
    active = sorted((i for i in range(30) if mask.flatten()[i]), key=lambda i: -abs(float((w * mask).flatten()[i])))
    kept = active[:11 - k]
    grown = sorted((i for i in range(30) if i not in kept), key=lambda i: -abs(float(g.flatten()[i])))[:k]
    assert sorted(after.flatten().nonzero().flatten().tolist()) == sorted(kept + grown)
    assert int(after.sum()) == 11


def test_an_edit_of_rigl_keeps_the_number_of_nonzeros_and_grows_zeros():
    technique = sl.RigL(density=0.3, every=2, until=1.0).around(Supervised(tiny_net(digits())), digits(), 0)
    counts = [int(technique.mask(i).sum()) for i in range(len(technique._names))]
    assert sum(counts) == pytest.approx(0.3 * sparse(technique.net)[1], abs=len(counts))
    optimizer = SGD().build(technique)
    for step in range(4):
        before = [technique.mask(i).clone() for i in range(len(counts))]
        technique._at = At(step, 8)
        optimizer.zero_grad()
        nn.functional.cross_entropy(technique.net(torch.rand(8, 1, 8, 8)).logits, torch.arange(8)).backward()
        for weight, mask in zip(technique.weights(), before, strict=True):
            assert not weight.grad[~mask].any()
        optimizer.step()
        held = [weight.detach().clone() for weight in technique.weights()]
        technique.after_step(At(step, 8))
        for edit in technique.edited():
            forget(optimizer, *edit)
        assert len(technique.edited()) == (len(counts) if step % 2 else 0)
        assert [int(technique.mask(i).sum()) for i in range(len(counts))] == counts
        changed = 0
        for i, weight in enumerate(technique.weights()):
            grown, mask = technique.mask(i) & ~before[i], technique.mask(i)
            changed += int(grown.sum())
            assert not weight[grown].any()
            assert not technique.ema.net.get_parameter(technique._names[i])[~mask].any()
            assert not optimizer.state[weight]["momentum_buffer"][grown | ~mask].any()
            kept = mask & before[i]
            assert torch.equal(weight[kept], held[i][kept])
            assert optimizer.state[weight]["momentum_buffer"][kept].any()
        assert bool(changed) == bool(step % 2)


@pytest.mark.parametrize("optimizer", [SGD(), AdamW()])
def test_the_optimizer_forgets_entries_or_all(optimizer):
    net = flat_net()
    made = optimizer.build(net)
    net(torch.rand(4, 1, 8, 8)).logits.square().sum().backward()
    made.step()
    weight, where = net.head.weight, torch.zeros(10, 16, dtype=torch.bool)
    where[3] = True
    before = {key: value.clone() for key, value in made.state[weight].items() if value.shape == weight.shape}
    forget(made, weight, where)
    assert before
    for key, value in before.items():
        assert not made.state[weight][key][3].any()
        assert torch.equal(made.state[weight][key][~where], value[~where])
    forget(made, weight)
    assert weight not in made.state


def test_tickets_are_the_largest_of_what_is_left():
    weights = [random(4, 5, key=1), random(7, key=2)]
    masks = [largest(w, 9) if w.ndim == 2 else torch.ones(7, dtype=torch.bool) for w in weights]
    found = tickets(weights, masks, 10 / 27)
    left = sorted([abs(float(v)) for w, m in zip(weights, masks, strict=True) for v in w[m]], reverse=True)[:10]
    kept = sorted([abs(float(v)) for w, m in zip(weights, found, strict=True) for v in w[m]], reverse=True)
    assert kept == left
    assert all((m | ~f).all() for m, f in zip(masks, found, strict=True))


@pytest.mark.parametrize("rewind", [0.0, 0.5])
def test_the_lottery_rewinds_what_it_leaves(rewind):
    technique = sl.Lottery(rounds=2, prune=0.4, rewind=rewind).around(Supervised(tiny_net(digits())), digits(), 0)
    total = sparse(technique.net)[1]
    goal = copy.deepcopy(technique.net.state_dict())
    for step in range(12):
        with torch.no_grad():
            for i, p in enumerate(technique.net.parameters()):
                p.add_(0.1 * torch.randn(p.shape, generator=generator("move", step, i)))
        technique.net.train()(torch.rand(8, 1, 8, 8, generator=generator("x", step)))
        technique.after_step(At(step, 12))
        if rewind and step == 1:
            goal = copy.deepcopy(technique.net.state_dict())
        done = {3: 1, 7: 2}.get(step)
        assert len(technique.edited()) == (len(list(technique.net.parameters())) if done else 0)
        if done:
            assert sum(int(m.sum()) for m in technique.masks.buffers()) == round(0.6**done * total)
            for net in (technique.net, technique.ema.net):
                for name, value in net.state_dict().items():
                    mask = technique.mask(technique._names.index(name)) if name in technique._names else 1
                    assert torch.equal(value, goal[name] * mask), name
    assert sparse(technique.net)[0] == sparse(technique.predictor())[0] == round(0.36 * total)


def test_a_mask_without_a_gradient_of_the_task_comes_down_by_the_penalty():
    w, gates = random(3, 4).requires_grad_(), Gates(torch.ones(3, 4), 0.5, normalize=False).double()
    slope = random(3, 4, key=1)
    (gates(w) * slope).sum().backward()
    torch.testing.assert_close(gates.m.grad, slope * w.detach())
    torch.testing.assert_close(w.grad, slope)  # H = 1
    gates.m.grad = None
    (0.1 * gates.open().sum()).backward()
    torch.optim.SGD([gates.m], lr=0.5).step()
    torch.testing.assert_close(gates.m.detach(), torch.full((3, 4), 0.5 - 0.5 * 0.1, dtype=torch.float64))
    with torch.no_grad():
        gates.m[0] = -0.01
        gates.m[1] = 0.0
    assert torch.equal(gates(w)[:2], torch.zeros(2, 4, dtype=torch.float64))
    assert torch.equal(gates(w)[2], w[2])
    gates.m.grad, gates.normalize = None, True
    (gates(w) * slope).sum().backward()
    torch.testing.assert_close(gates.m.grad.abs().amax(1), torch.ones(3, dtype=torch.float64))


def test_learned_masks_end_as_zeros_in_a_plain_net(tmp_path):
    result = train(tmp_path, Supervised(tiny_net(digits()), ema=0.0), steps=6, evaluations=1,
                   techniques=["scl(start=0.01, weight=0.5)"])
    net = result.method.predictor()
    nonzero, total = sparse(net)
    assert 0 < nonzero < total
    gates = [part for part in result.method.net.modules() if isinstance(part, Gates)]
    assert nonzero == sum(int((gate.m > 0).sum()) for gate in gates)
    again = sl.open(tmp_path, "cpu", "fp32")
    assert again.card.net == "tiny_8"
    x = torch.rand(4, 1, 8, 8)
    torch.testing.assert_close(again.net.eval()(x).logits, result.method.ema.net.eval()(x).logits)
    assert baked(result.method.net).state_dict().keys() == tiny_net(digits()).state_dict().keys()
    assert torch.equal(result.method.net.head.weight, baked(result.method.net).head.weight)  # which is left as it was


# --- Channels that go ----------------------------------------------------------------------------

needs_pruning = pytest.mark.skipif(importlib.util.find_spec("torch_pruning") is None,
                                   reason='needs torch-pruning: pip install "ssl_lab[compress]"')


def test_survivors_one_by_one():
    importance, sizes = random(12).float(), [4, 3, 5]
    alive = torch.ones(12, dtype=torch.bool)
    alive[[0, 5]] = False
    groups = [range(4), range(4, 7), range(7, 12)]
    for count in (2, 5, 9, 12):
        left = survivors(importance, alive, sizes, count)
        gone = {0, 5}
        for i in sorted(set(range(12)) - gone, key=lambda i: float(importance[i])):
            last = any(set(group) - gone == {i} for group in groups)
            if len(gone) < count and not last:
                gone.add(i)
        assert set((~left).nonzero().flatten().tolist()) == gone


@needs_pruning
@pytest.mark.parametrize("name", ["tiny_4", "wrn_10_1", "densenet_10_4"])
def test_a_slim_net_is_the_silenced_one(name):
    style = Style(1, 8, 8, (0.5,), (0.5,))
    net = sl.net(name, 10, style).double()
    net.train()(torch.rand(8, 1, 8, 8, dtype=torch.float64))
    groups = groups_of(net, style)
    alive = [torch.rand(g.size, generator=generator("alive", i)) < 0.6 for i, g in enumerate(groups)]
    for keep in alive:
        keep[0] = True
    small = slim(net, style, groups, alive)
    silence(net, groups, alive)
    x = torch.rand(4, 1, 8, 8, dtype=torch.float64)
    torch.testing.assert_close(small.eval()(x).logits, net.eval()(x).logits, rtol=1e-9, atol=1e-9)
    assert small.name == f"{name}+slim"
    assert sum(p.numel() for p in small.parameters()) < sum(p.numel() for p in net.parameters())


@needs_pruning
def test_a_gate_after_batch_norm_has_the_slope_that_its_parameters_say():
    pool = digits()
    net = tiny_net(pool).double().train()
    groups = groups_of(net, pool.style)
    gates = {m.name: torch.ones(len(m.rows), dtype=torch.float64, requires_grad=True) for g in groups for m in g.gates}
    for name, gate in gates.items():
        net.get_submodule(name).register_forward_hook(lambda _, __, out, gate=gate: out * gate.view(1, -1, 1, 1))
    x, y = torch.rand(16, 1, 8, 8, dtype=torch.float64), torch.arange(16) % 10
    nn.functional.cross_entropy(net(x).logits, y).backward()
    for name, gate in gates.items():
        norm = net.get_submodule(name)
        slopes = gate_slopes([norm.weight.detach(), norm.bias.detach()], [norm.weight.grad, norm.bias.grad])
        torch.testing.assert_close(slopes, gate.grad)
    of_groups = contributions(net, groups, {name: gate.grad for name, gate in gates.items()})
    assert len(of_groups) == sum(group.size for group in groups)


@needs_pruning
@pytest.mark.parametrize("text", ["taylor(ratio=0.5, rounds=2)", "slimming(ratio=0.4)"])
def test_a_slim_run_is_opened_and_trained_on(tmp_path, text):
    pool = digits()
    result = train(tmp_path / "one", Supervised(tiny_net(pool)), pool, steps=6, evaluations=2, techniques=[text])
    around, small = result.method, result.method.predictor()
    ratio = sl.techniques.technique(text).ratio
    assert int((~around.alive).sum()) == int(ratio * len(around.alive))
    assert sum(p.numel() for p in small.parameters()) < 0.8 * sum(p.numel() for p in around.net.parameters())
    x = torch.rand(4, 1, 8, 8)
    torch.testing.assert_close(small.eval()(x).logits, around.ema.net.eval()(x).logits, rtol=1e-5, atol=1e-5)
    again = sl.open(tmp_path / "one", "cpu", "fp32")
    assert again.net.name == again.card.net == "tiny_8+slim"
    torch.testing.assert_close(again.net.eval()(x).logits, small.eval()(x).logits, rtol=1e-5, atol=1e-5)
    other = start_net(str(tmp_path / "one"), ["cat", "dog"], pool.style)  # with a head of its own
    assert other(x).logits.shape == (4, 2)
    smaller = train(tmp_path / "two", Supervised(again.net), pool, steps=4, evaluations=1, techniques=["taylor(0.2)"])
    assert sl.open(tmp_path / "two", "cpu").net.name == "tiny_8+slim"
    assert smaller.method.predictor().head.in_features == sl.open(tmp_path / "two", "cpu").net.features_dim


@pytest.mark.parametrize(("text", "words"), [
    ("rigl(density=0)", "rigl: density=0.*expected a density above 0"),
    ("rigl(first='some')", "rigl: first='some'; expected 'largest' or 'random'"),
    ("lottery(prune=1.0)", "lottery: .*prune=1.0.*expected"),
    ("taylor(ratio=1.0)", "taylor: ratio=1.0.*expected a ratio from 0 to below 1"),
    ("slimming(until=0)", "slimming: .*until=0.*expected"),
    ("scl(start=0)", "scl: start=0; expected a positive number"),
])
def test_what_cannot_be_is_said(text, words):
    with pytest.raises(UsageError, match=words):
        sl.techniques.technique(text)


def test_a_damaged_card_leaves_the_name_to_the_settings(tmp_path):
    (tmp_path / "config.yaml").write_text("net: tiny_4\n")
    (tmp_path / "model.json").write_text('{"net": "tiny_4+slim"}')
    assert net_of_run(tmp_path) == "tiny_4+slim"
    (tmp_path / "model.json").write_text('{"net": "tiny')
    assert net_of_run(tmp_path) == "tiny_4"


def test_nets_that_cannot_be_made_smaller_say_so(monkeypatch):
    tokens = sl.net("timm/vit_tiny_patch16_224", 10, Style(3, 32, 32), depth=1)
    with pytest.raises(UsageError, match="taylor takes channels out, and in timm/vit_tiny_patch16_224 others depend"):
        check_slim(tokens, Style(3, 32, 32), "taylor")
    with pytest.raises(UsageError, match=r"tiny_8\+slim has the channels that its weights say"):
        sl.net("tiny_8+slim")
    for name in ("taylor", "slimming"):
        with pytest.raises(UsageError, match=r"no channels that could|goes by the scales of BatchNorm"):
            sl.techniques.technique(name).check(Supervised(sl.net("pixels", 10, digits().style)), digits())
    for name in ("scl", "rigl", "taylor"):
        normed = sl.prepared(flat_net(), ["weight_norm"], digits())
        with pytest.raises(UsageError, match=name):
            sl.techniques.technique(name).check(Supervised(normed), digits())
    net, style = tiny_net(digits()), digits().style
    monkeypatch.setitem(sys.modules, "torch_pruning", None)  # as where it is not installed
    with pytest.raises(UsageError, match=r'torch-pruning: pip install "ssl_lab\[compress\]"'):
        groups_of(net, style)


# --- Few bits ------------------------------------------------------------------------------------


@pytest.mark.parametrize("bits", [1, 2, 4, 8, 24, 32])
def test_a_rounded_weight_entry_by_entry(bits):
    w = random(3, 4, 2).requires_grad_()
    with torch.no_grad():
        w[0, 0, 0] = 0.0
    found, slope = rounded_weight(w, bits), random(3, 4, 2, key=1)
    for row, rounded in zip(w.tolist(), found.tolist(), strict=True):
        flat = [v for part in row for v in part]
        most = max(map(abs, flat))
        for v, q in zip(flat, [q for part in rounded for q in part], strict=True):
            if bits >= 24:
                assert q == v
            elif bits == 1:
                assert q == (1 if v >= 0 else -1)
            else:
                steps = 2 ** (bits - 1) - 1
                nearest = min(range(-steps, steps + 1), key=lambda k: abs(k * most / steps - v))
                assert q == pytest.approx(nearest * most / steps)
    (found * slope).sum().backward()
    assert torch.equal(w.grad, slope)  # unmasked


def test_a_rounded_input_and_where_its_gradient_passes():
    low, high = torch.tensor(-0.5, dtype=torch.float64), torch.tensor(1.0, dtype=torch.float64)
    x = torch.tensor([-2.0, -0.5, -0.1, 0.3, 1.0, 1.5], dtype=torch.float64, requires_grad=True)
    found = rounded_input(x, low, high, 2)
    torch.testing.assert_close(found.detach(), torch.tensor([-0.5, -0.5, 0.0, 0.5, 1.0, 1.0], dtype=torch.float64))
    found.sum().backward()
    assert x.grad[[0, 5]].tolist() == [0, 0]
    assert x.grad[[2, 3]].tolist() == [1, 1]
    x.grad = None
    signs = rounded_input(x, low, high, 1)
    assert signs.tolist() == [-1, -1, -1, 1, 1, 1]
    signs.sum().backward()
    assert x.grad[[0, 5]].tolist() == [0, 0]  # a = 1.5 gets none
    assert torch.equal(rounded_input(x, low, high, 32), x)


def test_a_weight_of_one_bit_gets_its_gradient_and_is_then_clipped():
    technique = sl.QNN(weights=1).around(Supervised(tiny_net(digits())), digits(), 0)
    layer = technique.net.backbone.blocks[0].branch[0]
    kernel = layer.parametrizations.weight.original
    with torch.no_grad():
        kernel.fill_(1.5)
    (layer.weight * 2).sum().backward()
    assert torch.equal(layer.weight, torch.ones_like(kernel))
    assert torch.equal(kernel.grad, torch.full_like(kernel, 2.0))
    technique.after_step(At(0, 2))
    assert torch.equal(kernel, torch.ones_like(kernel))
    assert technique.net.backbone.stem[0].parametrizations.weight[0].bits == 8


@pytest.mark.parametrize("text", ["qnn(weights=2, inputs=4)", "qnn(weights=1, inputs=32)", "saq(weights=2, inputs=4)"])
def test_a_net_of_few_bits_is_opened(tmp_path, text):
    result = train(tmp_path, Supervised(tiny_net(digits())), steps=4, evaluations=1, techniques=[text])
    net, again = result.method.predictor().eval(), sl.open(tmp_path, "cpu", "fp32")
    assert again.net.name == again.card.net == ("tiny_8+in4" if "inputs=4" in text else "tiny_8")
    x = torch.rand(4, 1, 8, 8)
    torch.testing.assert_close(again.net(x).logits, net(x).logits)
    torch.testing.assert_close(net(x).logits, result.method.ema.net.eval()(x).logits)
    kernel = again.net.backbone.blocks[0].branch[0].weight
    assert max(len(row.unique()) for row in kernel.flatten(1)) <= (3 if "weights=2" in text else 2)
    plain = with_float_inputs(copy.deepcopy(again.net))
    assert plain.name == "tiny_8"
    assert plain.state_dict().keys() == tiny_net(digits()).state_dict().keys()


def test_saq_adds_its_step_after_rounding():
    technique = Supervised(flat_net())
    rule = sl.SAQ(rho=0.7, weights=3, inputs=32)
    rule.begin(technique, 0)
    x, y, seen, slopes = torch.rand(6, 1, 8, 8), torch.arange(6), [], []
    optimizer = torch.optim.SGD(technique.net.parameters(), lr=0.1)

    def closure():
        optimizer.zero_grad()
        seen.append([technique.net.head.weight.detach().clone(), technique.net.head.bias.detach().clone()])
        loss = nn.functional.cross_entropy(technique.net(x).logits, y)
        loss.backward()
        slopes.append([p.grad.clone() for p in technique.net.parameters()])
        return sl.Loss({"loss": loss})

    before = [p.detach().clone() for p in technique.net.parameters()]
    rule(closure, optimizer, At(0, 2))
    length = math.sqrt(sum(float((g**2).sum()) for g in slopes[0]))
    names = [name for name, _ in technique.net.named_parameters()]
    for ours, name in ((0, "head.parametrizations.weight.original"), (1, "head.bias")):
        expected = seen[0][ours] + 0.7 * slopes[0][names.index(name)] / length
        torch.testing.assert_close(seen[1][ours], expected)
    for p, start, slope in zip(technique.net.parameters(), before, slopes[1], strict=True):
        torch.testing.assert_close(p.detach(), start - 0.1 * slope)


def test_signs_of_inputs_that_are_never_negative_are_refused():
    with pytest.raises(UsageError, match=r"qnn: inputs=1 takes signs, .* never negative"):
        sl.QNN(inputs=1).check(Supervised(tiny_net(digits())), digits())
    sl.QNN(inputs=1).check(Supervised(sl.net("wrn_10_1", 10, digits().style)), digits())
    with pytest.raises(UsageError, match="qnn: weights=0; expected 1 to 32 bits"):
        sl.QNN(weights=0)


# --- Bits, bases and slopes that are learned ------------------------------------------------------


def test_bits_are_exact_where_they_are_hard_and_nothing_where_they_cancel():
    w = random(3, 4)
    part = Bits(w, until=0.8).double()
    with torch.no_grad():
        part.hard = True
        scale = float(w.abs().max())
        expected = [[round(float(v) / scale * 255) * scale / 255 for v in row] for row in w]
        torch.testing.assert_close(part(w), torch.tensor(expected, dtype=torch.float64))
        part.m.copy_(torch.tensor([-1.0] * 4 + [1.0] * 4))  # the four high bits
        kept = [[math.copysign((abs(round(float(v) / scale * 255)) >> 4 << 4) * scale / 255, v) for v in row]
                for row in w]
        torch.testing.assert_close(part(w), torch.tensor(kept, dtype=torch.float64))
        part.hard = False
        part.at(1.0)
        for each in (part.p, part.q):
            each.copy_(2 * each - 1)
        torch.testing.assert_close(part(w), torch.tensor(kept, dtype=torch.float64))  # beta is large
        part.q.copy_(part.p)
        assert not part(w).any()


def test_the_gates_of_bits_move_to_the_budget():
    technique = sl.CSQ(target=4, weight=0.5, until=1.0).around(Supervised(tiny_net(digits())), digits(), 0)
    parts = [part for part in technique.net.modules() if isinstance(part, Bits)]
    with torch.no_grad():
        parts[0].m.fill_(-1.0)
    batch = sl.Feed(digits(), technique.views, 8, 0, 0, torch.device("cpu"))(At(0, 4))
    loss = technique(batch, At(0, 4))
    share = sum(float((part.m >= 0).sum()) for part in parts) / (8 * len(parts))
    opened = sum(float(torch.sigmoid(part.m.detach()).sum()) for part in parts)
    assert float(loss.terms["bits"].detach()) == pytest.approx(0.5 * (share - 0.5) * opened, rel=1e-5)
    assert float(loss.logs["bits"]) == pytest.approx(8 * share)


def test_tempered_noise_fades_and_its_scale_learns():
    w, slope = random(5, 6).requires_grad_(), random(5, 6, key=1)
    part = Noisy(3, decay=2.0).double().train()
    rounded, noises = rounded_weight(w.detach(), 3), []
    for now in (0.0, 1.0):
        part.at(now)
        torch.manual_seed(0)
        noises.append(part(w).detach() - rounded)
    assert (noises[0].abs() <= (w.detach() - rounded).abs()).all()
    torch.testing.assert_close(noises[1], noises[0] * math.exp(-2))
    with torch.no_grad():
        part.c.fill_(0.7)
    (part(w) * slope).sum().backward()
    torch.testing.assert_close(w.grad, 0.7 * slope)
    torch.testing.assert_close(part.c.grad, (slope * (w.detach() - rounded)).sum())
    assert torch.equal(part.eval()(w), rounded)


def test_symmetric_weights_are_not_penalized():
    half = random(4, 5)
    assert float(asymmetry(torch.cat([half, -half], 1))) == pytest.approx(0, abs=1e-12)
    w = random(3, 7) + 1
    rows = [((sum(r) / 7) ** 2 / (sum(v * v for v in r) / 7) + (sum(v**3 for v in r) / 7) ** 2 /
             (sum(v * v for v in r) / 7) ** 3) for r in w.tolist()]
    assert float(asymmetry(w)) == pytest.approx(sum(rows) / 3)
    assert float(asymmetry(5 * w)) == pytest.approx(sum(rows) / 3)


def test_signs_in_a_basis_entry_by_entry():
    moments = (lambda x: x.T @ x / 20)(random(20, 6))
    part, w = Signs(moments, since=0.5), random(3, 6).float()
    basis, importance = part.basis, part.importance
    torch.testing.assert_close(basis @ basis.T, torch.eye(6), atol=1e-5, rtol=0)
    torch.testing.assert_close((basis * importance) @ basis.T * moments.trace().float(), moments.float(), atol=1e-5,
                               rtol=1e-4)
    found = signs_in(w, basis, importance)
    for row, made in zip(w, found, strict=True):
        turned = [sum(float(row[i] * basis[i, j]) for i in range(6)) for j in range(6)]
        scale = sum(float(importance[j]) * abs(turned[j]) for j in range(6))
        expected = [sum(scale * math.copysign(1, turned[j]) * float(basis[i, j]) for j in range(6)) for i in range(6)]
        assert made.tolist() == pytest.approx(expected, abs=1e-5)
    assert torch.equal(part(w), w)  # before its time
    part.at(0.5)
    torch.testing.assert_close(part(w), found)


def test_what_inputs_of_a_convolution_are_like():
    layer, x = nn.Conv2d(2, 3, 3, stride=2, padding=1, bias=False), torch.rand(2, 2, 5, 5)
    moments = second_moments(layer, x)
    energy = layer(x).double().square().mean((0, 2, 3))
    w = layer.weight.detach().flatten(1).double()
    torch.testing.assert_close(((w @ moments) * w).sum(1), energy.detach(), rtol=1e-5, atol=1e-8)


def test_saturation_begins_as_the_identity_and_keeps_below_its_limit():
    x = torch.linspace(-9, 9, 50, dtype=torch.float64)
    assert torch.equal(saturated(x, torch.tensor(torch.inf)), x)
    torch.testing.assert_close(saturated(x, torch.tensor(2.0, dtype=torch.float64)), 2 * torch.tanh(x / 2))


def test_slopes_change_nothing_at_first_and_at_one_leave_no_depth():
    style = digits().style
    net = sl.net("tiny_4+prelu", 10, style).eval()
    plain, x = sl.net("tiny_4", 10, style).eval(), torch.rand(6, 1, 8, 8)
    torch.testing.assert_close(net(x).logits, plain(x).logits)
    rectifiers = 1 + 3 * (0.5 + 1)  # the stem's; in each block one on one of two ways, and one after
    assert effective_depth(net, x) == pytest.approx(rectifiers)
    with torch.no_grad():
        for slopes in slopes_of(net):
            slopes.fill_(1.0)
    assert effective_depth(net, x) == 0
    torch.testing.assert_close(bend(torch.tensor([1.0, 0.0, 0.75]), 0.5), torch.tensor([0.0, 1.0, 0.5]))
    with pytest.raises(UsageError, match="wrn_10_1 has no rectifier"):
        sl.net("wrn_10_1+prelu", 10, style)


@pytest.mark.parametrize(("text", "name"), [
    ("csq(target=3, weight=0.1)", "tiny_8+in8"), ("noise_tempering(inputs=32)", "tiny_8"),
    ("bitat(inputs=32)", "tiny_8"), ("satnl(deviations=1)", "tiny_8+sat"),
    ("linearize(weight=0.05, near=0.5)", "tiny_8+prelu")])
def test_nets_of_learned_bits_and_slopes_are_opened(tmp_path, text, name):
    result = train(tmp_path, Supervised(tiny_net(digits())), steps=3, evaluations=1, techniques=[text])
    again, x = sl.open(tmp_path, "cpu", "fp32"), torch.rand(4, 1, 8, 8)
    assert again.net.name == again.card.net == name
    torch.testing.assert_close(again.net(x).logits, result.method.predictor().eval()(x).logits)


# --- Capsules ------------------------------------------------------------------------------------


def capsules(depth, momentum=0.9):
    torch.manual_seed(0)
    return Momentum([Routing(5, 5, 4).double() for _ in range(depth)], momentum), random(3, 5, 4).requires_grad_()


@pytest.mark.parametrize("momentum", [0.0, 0.5, 0.9])
def test_gradients_of_reversible_capsules_are_those_of_plain_ones(momentum):
    net, x = capsules(3, momentum)
    slope = random(3, 5, 4, key=1)
    (net(x) * slope).sum().backward()
    found = [p.grad.clone() for p in (x, *net.parameters())]
    for p in (x, *net.parameters()):
        p.grad = None
    plain = net.plainly(x)
    torch.testing.assert_close(net(x), plain)
    (plain * slope).sum().backward()
    for ours, p in zip(found, (x, *net.parameters()), strict=True):
        torch.testing.assert_close(ours, p.grad)
    if not momentum:
        once = Momentum([net.layers[0]], 0.0)
        torch.testing.assert_close(once(x), x + net.layers[0](x))
        return
    v = random(3, 5, 4, key=2)
    back = step_back(net.layers[0], *momentum_step(net.layers[0], x, v, momentum), momentum)
    torch.testing.assert_close(back[0], x)
    torch.testing.assert_close(back[1], v)


def test_activations_of_capsule_layers_are_not_kept():
    def kept(depth, plainly):
        net, x = capsules(depth)
        mine, sizes = {p.data_ptr() for p in net.parameters()}, []
        def pack(tensor):
            sizes.append(0 if tensor.data_ptr() in mine else tensor.nbytes)
            return tensor
        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            (net.plainly if plainly else net)(x)
        return sum(sizes)

    assert kept(2, False) == kept(8, False) == 2 * 3 * 5 * 4 * 8  # x and v
    assert kept(8, True) > 3 * kept(2, True)


def test_a_capsule_net_by_name():
    net = sl.net("mocapsnet_2", 10, digits().style)
    assert net(torch.rand(2, 1, 8, 8)).features.shape == (2, 256)
    assert len(net.backbone.blocks.layers) == 2
    lengths = squash(random(4, 7)).norm(dim=1)
    torch.testing.assert_close(lengths, (n := random(4, 7).norm(dim=1)) ** 2 / (1 + n**2))


# --- The recipe ----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def first_run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("first")
    train(folder, Supervised(tiny_net(digits(40))), digits(40), steps=3, evaluations=1,
          config={"net": "tiny_8", "data": "digits"})
    return folder


def run(*arguments):
    module = recipe("compress")
    module.main(parse(module.Settings, ["--labels", "40", "--labeled", "8", "--unlabeled", "8", "--device", "cpu",
                                        "--precision", "fp32", "--steps", "4", *map(str, arguments)]))


@needs_pruning
def test_the_recipe_prints_one_table_and_leaves_runs(tmp_path, capsys, monkeypatch, first_run):
    pytest.importorskip("onnxruntime", reason='needs onnxruntime: pip install "ssl_lab[export]"')
    given = ("--from", first_run, "--how", "taylor(ratio=0.5, rounds=2)", "--out", tmp_path, "--int8")
    run(*given)
    out = " ".join(capsys.readouterr().out.split())
    for word in ("the run", "the run, int8", "parameters", "nonzero", "agreement", "599 test images"):
        assert word in out
    measured = []
    monkeypatch.setattr(compress, "candidate_of", lambda *given: measured.append(given))
    monkeypatch.setattr(compress, "compared", lambda found, pool: "")
    run(*given[:-1], "--how", "rigl(density=0.5, every=2) + sam", "--resume", "auto")
    assert [(name, net.name) for name, net, _ in measured] == [
        ("the run", "tiny_8"), ("taylor(ratio=0.5, rounds=2)", "tiny_8+slim"),
        ("rigl(density=0.5, every=2) + sam", "tiny_8")]
    folders = sorted(path.name for path in tmp_path.iterdir())
    assert len(folders) == 2
    for folder in folders:
        model = sl.open(tmp_path / folder, "cpu", "fp32")
        assert len(model.predict(np.zeros((2, 8, 8), np.uint8))) == 2
        config = json.loads((tmp_path / folder / "summary.json").read_text())
        assert config["method"] == "kd"
    pool = digits(40)
    for folder in folders:
        assert load_teacher(tmp_path / folder, pool.class_names, pool.style).net.name.startswith("tiny_8")
    with pytest.raises(UsageError, match="which way"):
        run("--from", first_run)
    with pytest.raises(UsageError, match="unknown technique 'tailor'"):
        run("--from", first_run, "--how", "tailor", "--out", tmp_path / "other")
    with pytest.raises(UsageError, match="holds a run that is finished"):
        run(*given)
