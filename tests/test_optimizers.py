"""Optimizers against slow references in float64, and the identities of their papers; optimizers by text."""

import math
import re

import pytest
import torch
from small_runs import assert_same_run, digits, flat_net, signal_at, tiny_net, train
from torch import nn

import ssl_lab as sl
from ssl_lab import optim
from ssl_lab.batch import At
from ssl_lab.errors import Interrupted, UsageError
from ssl_lab.methods import FixMatch
from ssl_lab.notes import once
from ssl_lab.optim import OPTIMIZERS, adam_condition, adam_remark, muon
from ssl_lab.optim.inputs import size_of_input
from ssl_lab.optim.mini_block_fisher import as_blocks, outer
from ssl_lab.schedule import cosine, cyclical, linear, triangular, warm_up


def tensors(*shapes, seed=0):
    draw = torch.Generator().manual_seed(seed)
    return [torch.randn(*shape, generator=draw, dtype=torch.float64) for shape in shapes]


class Holding(nn.Module):
    def __init__(self, *values):
        super().__init__()
        self.values = nn.ParameterList(nn.Parameter(value.clone()) for value in values)


def steps(spec, values, gradients, losses=None):
    """The tensors after steps with these gradients, one list of them for each step."""
    module = Holding(*values)
    optimizer = spec.build(module)
    for number, each in enumerate(gradients):
        spec.set(optimizer, At(number, len(gradients)))
        for p, g in zip(module.values, each, strict=True):
            p.grad = g.clone()
        if losses is not None:
            optimizer.observe(losses[number])
        optimizer.step()
    return [p.detach() for p in module.values]


SHAPES = ((4, 3), (5,))


def close(found, expected):
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-8)


def test_padam_is_its_equation():
    values, gradients = tensors(*SHAPES), [tensors(*SHAPES, seed=k) for k in range(1, 6)]
    found = steps(optim.Padam(lr=0.1, weight_decay=0.01, betas=(0.8, 0.9), power=0.2), values, gradients)
    for i, w in enumerate(values):
        m = v = most = torch.zeros_like(w)
        for t, each in enumerate(gradients, start=1):
            m, v = 0.8 * m + 0.2 * each[i], 0.9 * v + 0.1 * each[i] ** 2
            most = torch.maximum(most, v)
            rate = 0.1 * math.sqrt(1 - 0.9**t) / (1 - 0.8**t)
            w = w * (1 - 0.1 * (0.01 if i == 0 else 0)) - rate * m / (most.sqrt() + 1e-8) ** 0.4
        torch.testing.assert_close(found[i], w)


def test_padam_between_amsgrad_and_momentum():
    values, gradients = tensors(*SHAPES), [tensors(*SHAPES, seed=1)]
    signs = [w - 0.1 * g.sign() for w, g in zip(values, gradients[0], strict=True)]
    close(steps(optim.Padam(lr=0.1, weight_decay=0.0, power=0.5), values, gradients), signs)
    plain = [w - 0.1 * math.sqrt(0.001) * g for w, g in zip(values, gradients[0], strict=True)]
    close(steps(optim.Padam(lr=0.1, weight_decay=0.0, power=0.0), values, gradients), plain)


def test_radam_begins_as_momentum_and_decays_apart():
    values, gradients = tensors(*SHAPES), [tensors(*SHAPES, seed=1)] * 2
    found = steps(optim.RAdam(lr=0.1, weight_decay=0.5), values, gradients)
    for i, (w, decay) in enumerate(zip(values, (0.5, 0.0), strict=True)):
        for t in (1, 2):  # the corrected mean of equal gradients is their value
            w = w * (1 - 0.1 * decay) - 0.1 * gradients[t - 1][i]
        torch.testing.assert_close(found[i], w)


def test_adamw_without_a_gradient_only_decays():
    values, nothing = tensors(*SHAPES), [[torch.zeros(shape, dtype=torch.float64) for shape in SHAPES]]
    close(steps(optim.AdamW(lr=0.1, weight_decay=0.5), values, nothing), [values[0] * 0.95, values[1]])


def test_muon_makes_matrices_orthogonal_and_leaves_the_rest_to_adam():
    torch.manual_seed(0)
    module = nn.ModuleDict({"body": nn.Conv2d(4, 6, 2), "head": nn.Linear(6, 3)}).double()
    before = {name: p.detach().clone() for name, p in module.named_parameters()}
    spec = optim.Muon(lr=0.1, weight_decay=0.0)
    optimizer = spec.build(module)
    spec.set(optimizer, At(0, 1))
    for p in module.parameters():
        p.grad = torch.randn_like(p)
    gradients = {name: p.grad.clone() for name, p in module.named_parameters()}
    optimizer.step()
    moved = {name: p.detach() - before[name] for name, p in module.named_parameters()}
    matrix = moved["body.weight"].reshape(6, 16) / (0.1 * 0.2 * 4)
    singular = torch.linalg.svdvals(matrix)
    assert 0.6 < singular.min() < singular.max() < 1.3  # five iterations of Newton and Schulz are that near to 1
    u, _, v = torch.linalg.svd(gradients["body.weight"].reshape(6, 16), full_matrices=False)
    assert torch.nn.functional.cosine_similarity((u @ v).flatten(), -matrix.flatten(), dim=0) > 0.95
    for name in ("body.bias", "head.weight", "head.bias"):
        torch.testing.assert_close(moved[name], -0.1 * gradients[name].sign(), rtol=1e-5, atol=1e-6)


def test_muon_is_its_equation():
    torch.manual_seed(0)
    module = nn.ModuleDict({"body": nn.Conv2d(4, 6, 2), "wide": nn.Linear(3, 40)}).double()
    w = {name: p.detach().clone() for name, p in module.named_parameters() if name.endswith("weight")}
    spec = optim.Muon(lr=0.1, weight_decay=0.5, momentum=0.8)
    optimizer, m = spec.build(module), {name: torch.zeros_like(value) for name, value in w.items()}
    for step in range(3):
        spec.set(optimizer, At(step, 3))
        for name, p in module.named_parameters():
            p.grad = g = torch.randn_like(p)
            if name in w:
                m[name] = 0.8 * m[name] + 0.2 * g
                u, s, vt = torch.linalg.svd((0.2 * g + 0.8 * m[name]).flatten(1), full_matrices=False)
                s = s / s.norm()
                for _ in range(5):
                    s = 3.4445 * s - 4.7750 * s**3 + 2.0315 * s**5
                size = 0.2 * {"body.weight": 16, "wide.weight": 40}[name] ** 0.5
                w[name] = w[name] * 0.95 - 0.1 * size * (u @ s.diag() @ vt).view(w[name].shape)
        optimizer.step()
    for name, value in w.items():
        torch.testing.assert_close(module.get_parameter(name).detach(), value, rtol=1e-5, atol=1e-7)


def test_muon_is_torchs():
    torch.manual_seed(0)
    found, theirs = nn.Linear(24, 16, bias=False), nn.Linear(24, 16, bias=False)
    theirs.load_state_dict(found.state_dict())
    spec = optim.Muon(lr=0.1, weight_decay=0.5)
    optimizer = spec.build(found)
    oracle = torch.optim.Muon(theirs.parameters(), lr=0.1, weight_decay=0.5, adjust_lr_fn="match_rms_adamw")
    for step in range(3):
        spec.set(optimizer, At(step, 3))
        found.weight.grad = theirs.weight.grad = torch.randn(16, 24)
        optimizer.step()
        oracle.step()
    torch.testing.assert_close(found.weight, theirs.weight, rtol=0.05, atol=0.01)  # in bfloat16


@pytest.mark.parametrize("quick", ["fp32", "bf16", "fp16"])
def test_muon_multiplies_in_bf16_only_where_that_is_faster(monkeypatch, quick):
    used = []
    monkeypatch.setattr(muon, "resolve_precision", lambda *_: (quick, "as measured"))
    monkeypatch.setattr(torch, "addmm", lambda x, *_, **__: used.append(x.dtype) or x)
    muon._quickest.cache_clear()
    muon.orthogonalized(torch.randn(4, 6), iterations=1)
    muon._quickest.cache_clear()
    assert set(used) == {torch.bfloat16 if quick == "bf16" else torch.float32}


def test_muon_normed_is_its_equation():
    torch.manual_seed(0)
    module = nn.ModuleDict({"body": nn.Conv2d(4, 6, 2), "wide": nn.Linear(3, 40), "head": nn.Linear(6, 3)}).double()
    w = {name: p.detach().clone() for name, p in module.named_parameters()}
    spec = optim.MuonNormed(lr=0.1, weight_decay=0.5, momentum=0.8, iterations=2, beside=0.3, betas=(0.7, 0.9))
    optimizer = spec.build(module)
    m, v = ({name: torch.zeros_like(value) for name, value in w.items()} for _ in range(2))
    for step in (1, 2, 3):
        spec.set(optimizer, At(step - 1, 3))
        for name, p in module.named_parameters():
            p.grad = g = torch.randn_like(p)
            decay = 0.0 if name.endswith("bias") else 0.5
            if name in ("body.weight", "wide.weight"):
                m[name] = 0.8 * m[name] + g
                u, s, vt = torch.linalg.svd((g + 0.8 * m[name]).flatten(1), full_matrices=False)
                s = s / s.norm()
                for _ in range(2):
                    s = 3.4445 * s - 4.7750 * s**3 + 2.0315 * s**5
                unit = len(w[name]) ** 0.5 * w[name] / w[name].norm()
                w[name] = unit * (1 - 0.1 * decay) - 0.1 * (u @ s.diag() @ vt).view(w[name].shape)
            else:
                m[name], v[name] = 0.7 * m[name] + 0.3 * g, 0.9 * v[name] + 0.1 * g**2
                move = m[name] / (1 - 0.7**step) / ((v[name] / (1 - 0.9**step)).sqrt() + 1e-8)
                w[name] = w[name] * (1 - 0.03 * decay) - 0.03 * move
        optimizer.step()
    for name, p in module.named_parameters():
        torch.testing.assert_close(p.detach(), w[name], rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("r", [None, 2.0])
def test_koala_is_its_filter(r):
    values, gradients = tensors(*SHAPES), [tensors(*SHAPES, seed=k) for k in range(1, 5)]
    losses = [torch.tensor(value, dtype=torch.float64) for value in (2.0, 1.5, 1.7, 0.4)]
    found = steps(optim.KOALA(lr=0.5, weight_decay=0.1, sigma=0.3, q=0.2, r=r), values, gradients, losses)
    s, kept, w = 0.3, 1.0, [v.clone() for v in values]
    for each, loss in zip(gradients, losses, strict=True):
        s, kept = s + 0.2, 0.9 * kept + 0.1 * loss**2
        entries = []
        for i, decay in enumerate((0.1, 0.0)):
            g, total = each[i] + decay * w[i], loss + decay / 2 * w[i].norm() ** 2
            whole = s * g.norm() ** 2 + (kept if r is None else r)
            entries.append(g.norm() ** 2 / whole)
            w[i] = w[i] - 0.5 * total * s / whole * g
        s = s - s**2 * max(entries)
    for a, b in zip(found, w, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6)


def test_koala_m_is_its_filter():
    values, gradients = tensors(*SHAPES), [tensors(*SHAPES, seed=k) for k in range(1, 5)]
    losses = [torch.tensor(value, dtype=torch.float64) for value in (2.0, 1.5, 1.7, 0.4)]
    spec = optim.KOALAM(lr=0.5, weight_decay=0.0, momentum=0.8, sigma=0.3, sigma_v=0.2, q=0.05, qv=0.02)
    found = steps(spec, values, gradients, losses)
    f, q = torch.tensor([[1, 1], [0, 0.8]]).double(), torch.diag(torch.tensor([0.05, 0.02])).double()
    p, kept, w, v = torch.diag(torch.tensor([0.3, 0.2])).double(), 1.0, values, [0 * x for x in values]
    for each, loss in zip(gradients, losses, strict=True):
        p = f @ p @ f.T + q  # the prediction; that of weights and velocities is below
        kept = 0.9 * kept + 0.1 * loss**2
        whole = [p[0, 0] * g.norm() ** 2 + kept for g in each]
        w = [a - 0.5 * loss * p[0, 0] / s * g for a, s, g in zip(w, whole, each, strict=True)]
        v = [a - 0.5 * loss * p[1, 0] / s * g for a, s, g in zip(v, whole, each, strict=True)]
        h = max(g.norm() ** 2 / s for g, s in zip(each, whole, strict=True))
        p = p - p @ torch.diag(torch.stack([h, torch.zeros_like(h)])) @ p.T
        w, v = [a + b for a, b in zip(w, v, strict=True)], [0.8 * b for b in v]
    for a, b in zip(found, w, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6)


def test_sizes_of_inputs():
    draw = torch.Generator().manual_seed(0)
    maps, rows = torch.randn(3, 2, 4, 5, generator=draw), torch.randn(3, 7, generator=draw)
    columns = [[max(sum(abs(maps[b, c, :, k])) for k in range(5)) for c in range(2)] for b in range(3)]
    torch.testing.assert_close(size_of_input(maps, "sum"), torch.tensor(columns).mean(dim=0))
    torch.testing.assert_close(size_of_input(rows, "sum"), rows.abs().sum(dim=1).mean().view(1))
    # n numbers that are standardized by n - 1 have n - 1 as their sum of squares
    torch.testing.assert_close(size_of_input(maps, "log"), torch.full((2,), 19.0))
    torch.testing.assert_close(size_of_input(rows, "log"), torch.full((1,), 6.0))
    assert torch.equal(size_of_input(torch.zeros(3, 2, 4, 4), "log"), torch.zeros(2))


@pytest.mark.parametrize(("spec", "divisor"), [
    (optim.NSGD(lr=0.1, weight_decay=0.0, momentum=0.0), lambda x: 0.01 + x.abs().sum(dim=1).mean()),
    (optim.INSGD(lr=0.1, weight_decay=0.0, momentum=0.0), lambda x: max(0.01, math.log(0.1 * 19))),
])
@pytest.mark.parametrize("zero", [False, True])
def test_steps_are_divided_by_what_a_layer_is_given(spec, divisor, zero):
    torch.manual_seed(0)
    layer = nn.Linear(20, 2)
    optimizer = spec.build(layer)
    spec.set(optimizer, At(0, 1))
    x = torch.zeros(4, 20) if zero else torch.randn(4, 20)
    before = [p.detach().clone() for p in (layer.weight, layer.bias)]
    layer(x)
    layer.weight.grad, layer.bias.grad = torch.ones(2, 20), torch.ones(2)
    optimizer.step()
    by = 0.01 if zero else divisor(x)
    torch.testing.assert_close(layer.weight.detach(), before[0] - 0.1 / by)
    torch.testing.assert_close(layer.bias.detach(), before[1] - 0.1)


@pytest.mark.parametrize("groups", [1, 2])
def test_each_weight_of_a_convolution_goes_by_its_own_input_channel(groups):
    layer = nn.Conv2d(4, 6, 3, groups=groups, bias=False)
    spec = optim.NSGD(lr=0.1, weight_decay=0.0, momentum=0.0)
    optimizer = spec.build(layer)
    spec.set(optimizer, At(0, 1))
    x = torch.arange(1.0, 5.0).view(1, 4, 1, 1).expand(2, 4, 5, 5).contiguous()
    before = layer.weight.detach().clone()
    layer(x)
    layer.weight.grad = torch.ones_like(layer.weight)
    optimizer.step()
    for out in range(6):
        for place in range(4 // groups):
            channel = place + (out // (6 // groups)) * (4 // groups)
            moved = before[out, place] - layer.weight.detach()[out, place]
            expected = torch.full((3, 3), 0.1 / (0.01 + 5 * (channel + 1)))
            torch.testing.assert_close(moved, expected, rtol=1e-4, atol=1e-6)


def test_mini_blocks_are_those_of_the_dense_matrix():
    shapes = ((2, 3, 2, 2), (3, 4), (5,))
    values, gradients = tensors(*shapes), [tensors(*shapes, seed=1)]
    spec = optim.MiniBlockFisher(lr=0.1, weight_decay=0.0, momentum=0.0, forgets=1.0, damping=0.3, every=1)
    found = steps(spec, values, gradients)
    kernel, matrix, vector = gradients[0]
    expected = torch.zeros_like(kernel)
    for out in range(2):
        for inner in range(3):
            g = kernel[out, inner].flatten()
            block = torch.outer(g, g) + 0.3 * torch.eye(4, dtype=torch.float64)
            expected[out, inner] = torch.linalg.solve(block, g).view(2, 2)
    torch.testing.assert_close(found[0], values[0] - 0.1 * expected)
    shared = sum(torch.outer(row, row) for row in matrix) / 3 + 0.3 * torch.eye(4, dtype=torch.float64)
    torch.testing.assert_close(found[1], values[1] - 0.1 * torch.linalg.solve(shared, matrix.T).T)
    torch.testing.assert_close(found[2], values[2] - 0.1 * vector / (vector**2 + 0.3))  # a block of one has no root
    assert outer(as_blocks(vector), shared=False).shape == (5, 1, 1)


@pytest.mark.parametrize("name", [name for name in OPTIMIZERS if name not in ("sgd", "adamw", "lars")])
def test_it_trains_and_is_resumed_exactly(tmp_path, name):
    def go(out, **settings):
        return train(out, FixMatch(tiny_net(digits()), threshold=0.3), steps=4, evaluations=1,
                     optimizer=optim.optimizer(name, sl.SGD(lr=cosine(0.1))), **settings)

    go(tmp_path / "whole")
    with pytest.raises(Interrupted):
        go(tmp_path / "cut", callbacks=[signal_at(2, 2)])
    go(tmp_path / "cut", resume="auto")
    assert_same_run(tmp_path / "cut", tmp_path / "whole")


# By text


def test_texts(capsys):
    usual = sl.SGD(lr=cosine(0.5))
    assert optim.optimizer(None, usual) is usual
    assert optim.optimizer("radam(lr=0.002)", usual) == optim.RAdam(lr=0.002)
    assert optim.optimizer("padam(0.05, power=0.25)", usual) == optim.Padam(lr=0.05, power=0.25)
    assert optim.optimizer("adamw(lr=linear(0.0, 1.0))", usual).lr(0.3) == linear(0.0, 1.0)(0.3)
    once.cache_clear()
    capsys.readouterr()
    made, peak = optim.optimizer("muon(momentum=0.9)", usual), optim.Muon().lr * 0.5 / 0.03
    for t in (0.0, 0.5, 1.0):
        assert made.lr(t) == pytest.approx(peak * cosine(1.0)(t), rel=1e-2)
    said = f"rate of muon is {peak:.3g} at its peak, 16.7 times its default, as this recipe's is SGD's, in the course"
    assert said in capsys.readouterr().err


class Own(optim.AdamW):
    pass


def test_a_rate_that_is_not_given_goes_with_that_of_sgd(capsys):
    """Where a recipe's own is SGD; defaults are what SGD's 0.03 is to a task. Else it is the default, or one's own."""
    adamw, own = optim.AdamW().lr, f"{__name__}:Own"
    for text, usual, peak in (("adamw", sl.SGD(lr=0.03), adamw), ("adamw", sl.SGD(lr=0.3), 10 * adamw),
                              ("adamw", optim.LARS(lr=0.3), adamw), (own, sl.SGD(lr=0.3), adamw)):
        assert optim.optimizer(text, usual).lr == pytest.approx(peak)
    warm = optim.optimizer("radam", sl.SGD(lr=sl.schedule.warm_up(0.1, cosine(0.3)))).lr
    assert max(warm(t / 100) for t in range(100)) == pytest.approx(10 * optim.RAdam().lr, rel=0.01)
    assert optim.optimizer("radam", sl.SGD(lr=linear(0.0, 0.0))).lr == 0
    assert optim.optimizer("sgd(momentum=0.5)", sl.SGD(lr=0.1)).lr == 0.1
    assert optim.optimizer("adamw(lr=0.5)", sl.SGD(lr=0.3)).lr == 0.5
    once.cache_clear()
    capsys.readouterr()
    assert optim.described("muon(momentum=0.9)") == optim.Muon(momentum=0.9)
    assert not capsys.readouterr().err


@pytest.mark.parametrize(("text", "words"), [
    ("adm", "unknown optimizer 'adm'. Did you mean .*adamw"),
    ("radam(rate=1)", r"radam: .*rate.*; its arguments are \(lr, weight_decay, betas\)"),
    ("linear(0, 1)", "unknown optimizer"),
    ("nowhere:Mine", "cannot load the optimizer"),
])
def test_a_text_that_describes_none(text, words):
    with pytest.raises(UsageError, match=words):
        optim.optimizer(text, sl.SGD())


def test_the_condition_of_generic_adam():
    assert adam_condition(lambda t: 0.1 / math.sqrt(t), lambda t: 1 - 1 / (t + 1), 1000) is None
    assert adam_condition(lambda t: 0.1, lambda t: 0.999, 1000) == "sum of rate sqrt(1 - beta2) does not vanish"
    assert adam_condition(lambda t: 0.1, lambda t: 0.9 - t / 1e5, 1000) == "beta2 falls, or is not below 1"
    assert adam_condition(lambda t: 0.1 * t, lambda t: 0.999, 1000) == "rate / sqrt(1 - beta2) rises"


@pytest.mark.parametrize(("spec", "words"), [
    (optim.AdamW(), None),
    (optim.AdamW(cosine(0.1)), None),
    (optim.Padam(warm_up(0.05, cosine(0.1))), None),
    (optim.RAdam(linear(0.1, 0.0, until=0.5)), None),
    (optim.SGD(triangular(0.001, 0.1)), None),
    (optim.RAdam(triangular(0.001, 0.1, cycles=2)), r"the learning rate triangular\(0.001, 0.1, cycles=2\) rises ten"),
    (optim.with_rates(optim.AdamW(cyclical(0.0, 0.1, cycles=3)), {"net.head": 1.0}), "the .* cyclical.* rises tenfold"),
    (optim.AdamW(betas=(0.9, 1.0)), r"betas=\(0.9, 1.0\): beta2 falls, or is not below 1"),
])
def test_what_breaks_adams_condition_is_said(spec, words):
    said = adam_remark(spec)
    assert said is None if words is None else re.match(words, said)


def test_a_run_says_it_when_it_begins(tmp_path, capsys):
    once.cache_clear()
    train(tmp_path, sl.Supervised(flat_net()), steps=1, evaluations=1, optimizer=optim.AdamW(triangular(0.001, 0.1, 2)))
    assert "note: the learning rate triangular(0.001, 0.1, cycles=2) rises tenfold" in capsys.readouterr().err


def test_replicas_and_optimizers_of_ones_own_go_together(tmp_path):
    result = train(tmp_path, sl.Supervised(flat_net()), steps=2, optimizer=optim.KOALA(), techniques=["sam"])
    assert math.isfinite(result.summary["test_accuracy"])
