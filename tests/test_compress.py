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
from ssl_lab.batch import At, Style
from ssl_lab.command_line import parse
from ssl_lab.errors import UsageError
from ssl_lab.methods import Supervised
from ssl_lab.methods.distillation import load_teacher
from ssl_lab.nets.parametrized import baked
from ssl_lab.nets.start import net_of_run, start_net
from ssl_lab.optim import SGD, AdamW, forget
from ssl_lab.seeds import generator
from ssl_lab.techniques.term.scl import Gates
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
    monkeypatch.delenv("COLUMNS", raising=False)
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
