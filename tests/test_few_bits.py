"""Nets of few bits, and of bits and slopes that are learned, against slow references and what can be opened again."""

import copy
import math

import pytest
import torch
from small_runs import digits, flat_net, tiny_net, train
from torch import nn

import ssl_lab as sl
from ssl_lab.analysis import effective_depth
from ssl_lab.batch import At
from ssl_lab.errors import UsageError
from ssl_lab.methods import Supervised
from ssl_lab.nets.quantized import (
    level_of,
    ranges_of,
    round_inputs,
    rounded_input,
    rounded_weight,
    with_float_inputs,
)
from ssl_lab.nets.saturated import saturated
from ssl_lab.nets.slopes import slopes_of
from ssl_lab.seeds import generator
from ssl_lab.techniques.term.bitat import Signs, second_moments, signs_in
from ssl_lab.techniques.term.csq import Bits
from ssl_lab.techniques.term.linearize import bend
from ssl_lab.techniques.term.noise_tempering import Noisy
from ssl_lab.techniques.term.symreg import asymmetry


def random(*shape, key=0):
    return torch.randn(shape, generator=generator("compress", key), dtype=torch.float64)


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


def test_a_net_that_is_in_few_bits_by_a_step_rule_is_exported_with_plain_weights():
    pytest.importorskip("onnxruntime", reason='needs onnxruntime: pip install "ssl_lab[export]"')
    method = Supervised(tiny_net(digits()))
    plain = sl.compress.candidate_of("plain", method.predictor(), digits())
    sl.SAQ(weights=2, inputs=32).begin(method, 0)
    found = sl.compress.candidate_of("saq", method.predictor(), digits())
    assert found.nonzero < plain.nonzero  # on a grid of three values, of which one is 0
    assert len(found.content) < 1.1 * len(plain.content)


def test_layers_that_round_the_same_input_differently_can_be_exported():
    pytest.importorskip("onnxruntime", reason='needs onnxruntime: pip install "ssl_lab[export]"')
    net = round_inputs(tiny_net(digits()), 4).train()
    for seed in range(2):  # two ranges of each layer's inputs, of which several are the output of one ReLU
        net(torch.rand(16, 1, 8, 8, generator=torch.Generator().manual_seed(seed)))
    for number, bound in enumerate(ranges_of(net)):
        bound += 0.01 * number
    assert level_of(net) == 1 / 15
    assert sl.compress.candidate_of("rounded", net, digits()).content  # which compares outputs
    assert level_of(tiny_net(digits())) == 0


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
            each.copy_(4 * each)
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


def test_bits_are_those_of_the_last_step_not_of_an_average():
    technique = sl.CSQ(target=8).around(Supervised(tiny_net(digits())), digits(), 0)
    part = next(part for part in technique.net.modules() if isinstance(part, Bits))
    with torch.no_grad():
        for each in (part.p, part.q):  # all bits change their places; an average would take its time
            each.copy_(torch.where(each > 0, -0.2, 0.2))
        part.hard = True
        expected = part(torch.zeros(part.p.shape[:-1]))
        part.hard = False
    found = technique.predictor()
    name = next(name for name, each in technique.net.named_modules() if each is part)
    layer = found.get_submodule(name.partition(".parametrizations")[0])
    assert torch.equal(layer.weight.flatten(), expected.flatten())


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
