"""Methods that ask for equal answers nearby: contract, slow references in float64, identities, state."""

import copy
import math
from functools import partial

import pytest
import torch
from slow import softmax
from torch import nn

from ssl_lab import losses
from ssl_lab.batch import At, Batch, Rows, Style
from ssl_lab.errors import UsageError
from ssl_lab.methods.consistency import smoothness
from ssl_lab.methods.consistency.ict import ICT
from ssl_lab.methods.consistency.mean_teacher import MeanTeacher
from ssl_lab.methods.consistency.pi_model import PiModel
from ssl_lab.methods.consistency.pseudo_label import PseudoLabel
from ssl_lab.methods.consistency.temporal_ensembling import TemporalEnsembling
from ssl_lab.methods.consistency.vat import VAT
from ssl_lab.nets import Ema, frozen_statistics, net
from ssl_lab.schedule import linear
from ssl_lab.testing import check_method

STYLE = Style(1, 8, 8, mean=(0.3,), std=(0.4,))
AT = At(2, 4, seed=5)
METHODS = [PiModel, MeanTeacher, PseudoLabel, VAT, partial(TemporalEnsembling, images=16), ICT]


@pytest.fixture(autouse=True)
def _forget_compiled_nets():
    """All nets share code, and one process compiles only so many variants of it."""
    torch._dynamo.reset()


@pytest.mark.parametrize("build", [
    partial(PiModel, stop_gradient=True, weight=3.0), partial(MeanTeacher, ema=0.0, weight=linear(1.0, 2.0)),
    partial(PseudoLabel, threshold=0.0, weight=linear(0.0, 3.0)), partial(VAT, epsilon=linear(1.0, 2.0), iterations=2),
    partial(TemporalEnsembling, images=20, decay=linear(0.5, 0.9), weight=1.0), partial(ICT, alpha=linear(0.1, 1.0)),
])
def test_contract_with_other_arguments(build):
    check_method(build, compile=False)


def _rows(method, kind, count, seed):
    draw = torch.Generator().manual_seed(seed)
    targets = torch.arange(count) % 3
    images = {name: torch.rand(count, 1, 8, 8, generator=draw, dtype=torch.float64)
              for name in getattr(method.views, kind)}
    return Rows(images, targets, targets, torch.arange(count))


def _method(cls, **arguments):
    return cls(net("tiny_4", classes=3, style=STYLE), **arguments).double().train()


def _batch(method, labeled=6, unlabeled=10):
    return Batch(_rows(method, "labeled", labeled, 0), _rows(method, "unlabeled", unlabeled, 1))


def _cross_entropy(logits, targets):
    """Mean over rows of -log softmax(z)[y]."""
    return sum(-math.log(softmax(row)[y]) for row, y in zip(logits, targets, strict=True)) / len(logits)


def _distance(first, second):
    """Mean over rows and classes of the squared difference of softmaxes."""
    total = 0.0
    for a, b in zip(first, second, strict=True):
        for p, q in zip(softmax(a), softmax(b), strict=True):
            total += (p - q) ** 2
    return total / (len(first) * len(first[0]))


def _divergence(first, second):
    """Mean over rows of KL(softmax || softmax)."""
    total = 0.0
    for a, b in zip(first, second, strict=True):
        total += sum(p * math.log(p / q) for p, q in zip(softmax(a), softmax(b), strict=True))
    return total / len(first)


def _logits(model, *images):
    with torch.no_grad():
        return model(torch.cat(images)).logits.tolist()


def _gradients(method, term):
    method.zero_grad()
    term.backward()
    return [p.grad.clone() for p in method.net.parameters()]


def _shake(model, scale=0.3):
    """Makes weights that no initialization gives."""
    draw = torch.Generator().manual_seed(9)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += scale * torch.randn(parameter.shape, generator=draw, dtype=parameter.dtype)


# ---- equations

def test_equations_against_loops():
    draw = torch.Generator().manual_seed(0)
    a, b = (3 * torch.randn(5, 4, generator=draw, dtype=torch.float64) for _ in range(2))
    p, q = losses.probabilities(a), losses.probabilities(b)
    assert p.tolist() == [pytest.approx(softmax(row)) for row in a.tolist()]
    assert losses.squared_error(p, q).item() == pytest.approx(_distance(a.tolist(), b.tolist()))
    assert smoothness.divergence(a, b).item() == pytest.approx(_divergence(a.tolist(), b.tolist()))
    assert smoothness.divergence(a, a + 7).item() == pytest.approx(0, abs=1e-12)
    assert smoothness.divergence(a.bfloat16(), b.bfloat16()).dtype == torch.float32
    assert losses.probabilities(a.bfloat16()).dtype == torch.float32


@pytest.mark.parametrize("scale", [1.0, 1e-30, 1e30])
def test_unit_vectors_of_any_scale(scale):
    d = scale * torch.randn(3, 1, 4, 5, generator=torch.Generator().manual_seed(0))
    d[1] = 0
    norms = smoothness.unit(d).flatten(1).norm(dim=1)
    assert norms.tolist() == pytest.approx([1, 0, 1], rel=1e-5)
    assert torch.allclose(smoothness.unit(d)[0], smoothness.unit(d[:1] / scale)[0], atol=1e-6)


def test_frozen_statistics_normalize_by_the_batch_and_learn_nothing():
    model = net("tiny_4", classes=3, style=STYLE).train()
    images = torch.rand(4, 1, 8, 8)
    before = copy.deepcopy(model.state_dict())
    with frozen_statistics(model):
        frozen = model(images).logits
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    assert torch.equal(frozen, model(images).logits)
    assert any(not torch.equal(value, before[key]) for key, value in model.state_dict().items())


# ---- Pi-model

@pytest.mark.parametrize("stop_gradient", [True, False])
def test_pi_model_against_its_equation(stop_gradient):
    method = _method(PiModel, weight=7.0, stop_gradient=stop_gradient)
    batch = _batch(method)
    x, u = batch.labeled, batch.unlabeled
    first, second = _logits(method.net, x["first"], u["first"]), _logits(method.net, x["second"], u["second"])
    expected = _cross_entropy(first[:6], x.targets.tolist()) + 7 * _distance(first, second)
    assert method(batch, AT).total.item() == pytest.approx(expected, rel=1e-5)


def test_pi_model_has_gradient_through_both_passes_unless_stopped():
    both, one = _method(PiModel, weight=1.0), _method(PiModel, weight=1.0, stop_gradient=True)
    batch = _batch(both)
    swap = Batch(*(Rows({"first": rows["second"], "second": rows["first"]}, rows.targets, rows.truth, rows.indices)
                   for rows in (batch.labeled, batch.unlabeled)))
    whole = _gradients(both, both(batch, AT).terms["consistency"])
    halves = zip(_gradients(one, one(batch, AT).terms["consistency"]),
                 _gradients(one, one(swap, AT).terms["consistency"]), strict=True)
    for gradient, (first, second) in zip(whole, halves, strict=True):
        assert torch.allclose(gradient, first + second, rtol=1e-6, atol=1e-9)


def test_pi_model_of_two_equal_views_is_consistent():
    method = _method(PiModel)
    batch = _batch(method)
    same = Batch(*(Rows({"first": rows["first"], "second": rows["first"]}, rows.targets, rows.truth, rows.indices)
                   for rows in (batch.labeled, batch.unlabeled)))
    assert method(same, AT).terms["consistency"].item() == pytest.approx(0, abs=1e-12)


@pytest.mark.parametrize("cls", [PiModel, MeanTeacher, VAT])
def test_consistency_weight_zero_leaves_the_labeled_loss(cls):
    loss = _method(cls, weight=0.0)
    loss = loss(_batch(loss), AT)
    assert loss.terms["consistency"] == 0
    assert loss.total.item() == pytest.approx(loss.terms["labeled"].item())


def test_weight_ramps_up_by_default():
    method = _method(PiModel)
    batch = _batch(method)
    values = [method(batch, At(step, 300)).terms["consistency"].item() for step in (0, 40, 80, 200)]
    distance = values[-1] / 100
    assert values[:3] == pytest.approx([100 * math.exp(-5) * distance, 100 * math.exp(-5 / 4) * distance,
                                        100 * distance], rel=1e-6)


# ---- Mean Teacher

def test_mean_teacher_against_its_equation():
    method = _method(MeanTeacher, weight=7.0)
    _shake(method.ema.net)
    batch = _batch(method)
    x, u = batch.labeled, batch.unlabeled
    student = _logits(method.net, x["student"], u["student"])
    teacher = _logits(method.ema.net, x["teacher"], u["teacher"])  # in train mode: statistics of the batch
    expected = _cross_entropy(student[:6], x.targets.tolist()) + 7 * _distance(student, teacher)
    assert method(batch, AT).total.item() == pytest.approx(expected, rel=1e-5)


def test_mean_teacher_targets_are_the_teachers():
    """A peer takes them from the student: its loss is 0 where both views are one image. This one's is not."""
    method = _method(MeanTeacher, weight=1.0)
    batch = _batch(method)
    same = Batch(*(Rows({"student": rows["student"], "teacher": rows["student"]}, rows.targets, rows.truth,
                        rows.indices) for rows in (batch.labeled, batch.unlabeled)))
    assert method(same, AT).terms["consistency"].item() == pytest.approx(0, abs=1e-12)  # a copy, as yet
    _shake(method.ema.net)
    term = method(same, AT).terms["consistency"]
    assert term.item() > 1e-4
    assert any(gradient.abs().sum() > 0 for gradient in _gradients(method, term))
    assert all(p.grad is None and not p.requires_grad for p in method.ema.parameters())


def test_teacher_follows_the_net_after_each_step():
    method = _method(MeanTeacher, ema=0.6)
    expected = {key: p.detach().clone() for key, p in method.ema.net.named_parameters()}
    for step in range(5):
        _shake(method.net, 0.1)
        method.after_step(At(step, 5))
        a = min(1 - 1 / (step + 1), 0.6)
        for key, p in method.net.named_parameters():
            expected[key] = a * expected[key] + (1 - a) * p.detach()
        for key, p in method.ema.net.named_parameters():
            assert torch.allclose(p, expected[key])
    assert a == 0.6


def test_teacher_keeps_statistics_of_its_own_passes_and_is_evaluated():
    method = _method(MeanTeacher)
    assert method.predictor() is method.ema.net
    assert all(module.training for module in method.ema.net.modules())
    before = copy.deepcopy(dict(method.ema.net.named_buffers()))
    method(_batch(method), AT)
    moved = copy.deepcopy(dict(method.ema.net.named_buffers()))
    assert any(not torch.equal(moved[key], before[key]) for key in before)
    method.after_step(AT)
    assert all(torch.equal(buffer, moved[key]) for key, buffer in method.ema.net.named_buffers())
    assert any(not torch.equal(buffer, moved[key]) for key, buffer in method.net.named_buffers())
    method.eval()
    assert not any(module.training for module in method.ema.net.modules())


def test_an_average_that_is_no_teacher_stays_in_eval_mode_with_averaged_buffers():
    source = net("tiny_4", classes=3, style=STYLE)
    average, teacher = Ema(source, 0.5).train(), Ema(source, 0.5, teacher=True).train()
    source.train()(torch.rand(4, 1, 8, 8))
    average.update(source, At(0, 1))
    teacher.update(source, At(0, 1))
    assert not average.net.training
    assert teacher.net.training
    for name, buffer in source.named_buffers():
        assert torch.equal(average.net.get_buffer(name), buffer)
        assert torch.equal(teacher.net.get_buffer(name), buffer) == (name in {"mean", "std"})


# ---- Pseudo-Label

@pytest.mark.parametrize("threshold", [0.0, 0.5, 0.6, 1.0])
def test_pseudo_label_against_its_equation(threshold):
    method = _method(PseudoLabel, threshold=threshold, weight=0.7)
    batch = _batch(method)
    x, u = batch.labeled, batch.unlabeled
    logits = _logits(method.net, x["weak"], u["weak"])
    expected, kept = _cross_entropy(logits[:6], x.targets.tolist()), 0
    for row in logits[6:]:
        if max(softmax(row)) >= threshold:
            expected += 0.7 * -math.log(max(softmax(row))) / 10
            kept += 1
    loss = method(batch, AT)
    assert loss.total.item() == pytest.approx(expected, rel=1e-5)
    assert loss.logs["mask_rate"].item() == pytest.approx(kept / 10)
    assert (0 < kept < 10) == (threshold in {0.5, 0.6})


def test_pseudo_labels_are_constants():
    """d/dz of -log max softmax(z) with a constant label is softmax(z) - onehot, divided by the rows."""
    method = _method(PseudoLabel, threshold=0.0, weight=1.0)
    nn.init.zeros_(method.net.head.weight)
    with torch.no_grad():
        method.net.head.bias.copy_(torch.tensor([0.0, 1.0, 2.0]))
    method(_batch(method), AT).terms["unlabeled"].backward()
    expected = [p - (c == 2) for c, p in enumerate(softmax([0.0, 1.0, 2.0]))]
    assert method.net.head.bias.grad.tolist() == pytest.approx(expected)


def test_pseudo_label_is_fixmatch_with_one_view():
    from ssl_lab.methods import FixMatch

    ours, fixmatch = _method(PseudoLabel, threshold=0.4, weight=1.0), _method(FixMatch, threshold=0.4)
    batch = _batch(ours)
    u = batch.unlabeled
    both = Batch(batch.labeled, Rows({"weak": u["weak"], "strong": u["weak"]}, u.targets, u.truth, u.indices))
    ours.net.eval()  # FixMatch passes the rows twice, which BatchNorm would see
    fixmatch.net.eval()
    assert ours(batch, AT).total.item() == pytest.approx(fixmatch(both, AT).total.item(), rel=1e-6)


# ---- VAT

def test_vat_against_its_equation():
    """The direction, too, from a finite difference of each pixel's derivative."""
    method = _method(VAT, epsilon=0.5, xi=0.1, weight=0.7)
    batch = _batch(method, 3, 4)
    x, u = batch.labeled, batch.unlabeled["weak"]
    labeled, clean = _logits(method.net, x["weak"]), _logits(method.net, u)
    start = AT.draw("vat", 4).normal(1, 8, 8).double()
    start = start / start.flatten(1).norm(dim=1).view(4, 1, 1, 1)
    gradient = torch.zeros_like(u)
    for b in range(4):
        for i in range(8):
            for j in range(8):
                ends = []
                for sign in (1, -1):
                    d = 0.1 * start
                    d[b, 0, i, j] += sign * 1e-5
                    ends.append(_divergence(clean, _logits(method.net, u + 0.4 * d)))  # 0.4: the net's std
                gradient[b, 0, i, j] = (ends[0] - ends[1]) / 2e-5
    r = 0.5 * gradient / gradient.flatten(1).norm(dim=1).view(4, 1, 1, 1)
    expected = _cross_entropy(labeled, x.targets.tolist()) + 0.7 * _divergence(clean, _logits(method.net, u + 0.4 * r))
    assert method(batch, AT).total.item() == pytest.approx(expected, rel=1e-4)


def test_vat_moves_by_epsilon_in_units_of_the_normalized_image():
    method = _method(VAT, epsilon=2.0)
    seen = []
    method.net.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0].detach()))
    batch = _batch(method)
    method(batch, AT)
    moved = (seen[-1] - batch.unlabeled["weak"]) / 0.4
    assert moved.flatten(1).norm(dim=1).tolist() == pytest.approx([2.0] * 10)
    assert len(seen) == 4  # labeled, clean, one power iteration, moved


def test_vat_finds_a_worse_direction_than_chance():
    method = _method(VAT, epsilon=1.0)
    batch = _batch(method)
    found = method(batch, AT).terms["consistency"].item()
    u = batch.unlabeled["weak"]
    clean = method.net(u).logits
    for seed in range(20):
        chance = torch.randn(u.shape, generator=torch.Generator().manual_seed(seed), dtype=u.dtype)
        assert found > 2 * smoothness.divergence(clean, method.net(u + 0.4 * smoothness.unit(chance)).logits).item()


def test_vat_at_zero_epsilon_is_supervised():
    method = _method(VAT, epsilon=0.0)
    assert method(_batch(method), AT).terms["consistency"].item() == pytest.approx(0, abs=1e-12)


def test_vat_counts_only_the_labeled_pass_in_batch_statistics():
    method, plain = _method(VAT), _method(VAT)
    batch = _batch(method)
    method(batch, AT)
    plain.net(batch.labeled["weak"])
    for ours, other in zip(method.net.buffers(), plain.net.buffers(), strict=True):
        assert torch.equal(ours, other)


def test_vat_random_direction_is_a_function_of_seed_and_step():
    method = _method(VAT)
    batch = _batch(method)
    losses = [method(batch, at).terms["consistency"].item() for at in (AT, AT, At(3, 4, seed=5), At(2, 4, seed=6))]
    assert losses[0] == losses[1]
    assert len(set(losses)) == 3


def test_vat_direction_survives_float32_and_autocast():
    """With the paper's xi of 1e-6 this fails: float32 does not see the step."""
    exact, single = _method(VAT, xi=1e-5), _method(VAT).float()
    u = _batch(exact).unlabeled["weak"]
    with torch.no_grad():
        clean = exact.net(u).logits
    true = exact.worst_direction(u, clean, AT)
    seen = []
    single.net.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0].detach()))
    rows = _batch(exact)
    batch = Batch(*(Rows({"weak": r["weak"].float()}, r.targets, r.truth, r.indices)
                    for r in (rows.labeled, rows.unlabeled)))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = single(batch, AT)
    found = smoothness.unit(seen[-1] - batch.unlabeled["weak"]).double()
    assert (found * true).flatten(1).sum(dim=1).min() > 0.95
    assert loss.total.dtype == torch.float32


# ---- Temporal Ensembling

def _visits(method, seed, indices, at):
    """Forward over new images under these pool indices; returns the loss and the predictions."""
    rows = _rows(method, "unlabeled", len(indices), seed)
    rows = Rows(rows.views, rows.targets, rows.truth, torch.tensor(indices))
    batch = Batch(_rows(method, "labeled", 6, 0), rows)
    logits = _logits(method.net, batch.labeled["weak"], rows["weak"])[6:]
    return method(batch, at), [softmax(row) for row in logits]


@pytest.mark.parametrize("decay", [0.6, 0.0])
def test_temporal_ensembling_against_the_paper(decay):
    """The paper's algorithm: Z and all targets move together, at the end of an epoch of two batches."""
    method = _method(TemporalEnsembling, images=6, decay=decay, weight=7.0)
    z, target = [[0.0] * 3 for _ in range(6)], None
    step = 0
    for epoch in range(3):
        seen = {}
        for indices in ([5, 2, 0], [1, 4, 3]):
            loss, predictions = _visits(method, 10 + step, indices, At(step, 6))
            expected = 0.0
            for i, p in zip(indices, predictions, strict=True):
                seen[i] = p
                if target is not None:
                    expected += sum((a - b) ** 2 for a, b in zip(p, target[i], strict=True)) / 9
            assert loss.terms["consistency"].item() == pytest.approx(7 * expected, rel=1e-5)
            method.after_step(At(step, 6))
            _shake(method.net, 0.1)
            step += 1
        z = [[decay * a + (1 - decay) * b for a, b in zip(z[i], seen[i], strict=True)] for i in range(6)]
        target = [[a / (1 - decay ** (epoch + 1)) for a in row] for row in z]
        assert method.ensemble.tolist() == [pytest.approx(row, rel=1e-6) for row in z]


def test_temporal_ensembling_target_after_one_visit_is_that_prediction():
    method = _method(TemporalEnsembling, images=4)
    loss, predictions = _visits(method, 3, [0, 1, 2, 3], At(0, 2))
    assert loss.terms["consistency"] == 0  # no targets yet
    assert loss.logs["mask_rate"] == 0
    assert math.isnan(loss.logs["pseudo_label_accuracy"].item())
    method.after_step(At(0, 2))
    total = method.ensemble.sum(dim=1)
    assert total.tolist() == pytest.approx([0.4] * 4)
    assert (method.ensemble / total[:, None]).tolist() == [pytest.approx(p) for p in predictions]
    again, _ = _visits(method, 3, [0, 1, 2, 3], At(1, 2))
    assert again.terms["consistency"].item() == pytest.approx(0, abs=1e-12)
    assert again.logs["mask_rate"] == 1


def test_temporal_ensembling_counts_an_image_once_a_step():
    method = _method(TemporalEnsembling, images=4)
    _, predictions = _visits(method, 3, [2, 2, 1], At(0, 2))
    method.after_step(At(0, 2))
    mean = [(a + b) / 2 for a, b in zip(predictions[0], predictions[1], strict=True)]
    assert method.ensemble[2].tolist() == pytest.approx([0.4 * p for p in mean])
    assert method.ensemble[1].tolist() == pytest.approx([0.4 * p for p in predictions[2]])
    assert not method.ensemble[[0, 3]].any()


def test_temporal_ensembling_takes_all_micro_batches_and_each_once():
    method = _method(TemporalEnsembling, images=4)
    first, second = At(0, 2, rank=0, world=2), At(0, 2, rank=1, world=2)
    _visits(method, 3, [0, 1], first)
    _visits(method, 4, [2, 3], second)
    _visits(method, 3, [0, 1], first)  # an update rule evaluates the loss again
    _visits(method, 4, [2, 3], second)
    method.after_step(At(0, 2))
    assert method.ensemble.sum(dim=1).tolist() == pytest.approx([0.4] * 4)


def test_temporal_ensembling_state_survives_a_round_trip():
    method, other = (_method(TemporalEnsembling, images=4) for _ in range(2))
    _visits(method, 3, [0, 1, 2, 3], At(0, 2))
    method.after_step(At(0, 2))
    _shake(method.net)
    other.load_state_dict(copy.deepcopy(method.state_dict()))
    mine, theirs = (_visits(each, 4, [3, 2, 1, 0], At(1, 2))[0] for each in (method, other))
    assert mine.terms["consistency"] > 0
    assert torch.equal(mine.total, theirs.total)


def test_temporal_ensembling_says_what_images_is():
    with pytest.raises(UsageError, match="len\\(pool\\)"):
        _method(TemporalEnsembling, images=0)


# ---- ICT

def _ict_draws(at, kind, rows, alpha):
    return smoothness.beta_share(at, f"ict/{kind}", alpha), at.draw(f"ict/{kind}", rows).uniform().argsort().tolist()


def test_ict_against_its_equation():
    method = _method(ICT, weight=7.0, alpha=0.5)
    _shake(method.ema.net)
    batch = _batch(method)
    x, u = batch.labeled["weak"], batch.unlabeled["weak"]
    share, partner = _ict_draws(AT, "labeled", 6, 0.5)
    assert 0.01 < share < 0.99
    logits = _logits(method.net, torch.stack([share * x[b] + (1 - share) * x[partner[b]] for b in range(6)]))
    y = batch.labeled.targets.tolist()
    expected = (share * _cross_entropy(logits, y)
                + (1 - share) * _cross_entropy(logits, [y[b] for b in partner]))
    share, partner = _ict_draws(AT, "unlabeled", 10, 0.5)
    assert sorted(partner) == list(range(10))
    student = _logits(method.net, torch.stack([share * u[b] + (1 - share) * u[partner[b]] for b in range(10)]))
    z = _logits(method.ema.net, u)
    target = [[share * a + (1 - share) * c for a, c in zip(z[b], z[partner[b]], strict=True)] for b in range(10)]
    expected += 7 * _distance(student, target)
    assert method(batch, AT).total.item() == pytest.approx(expected, rel=1e-5)


def test_ict_with_cutmix_mixes_all_but_the_images_by_the_pixels_shares():
    method = _method(ICT, weight=7.0, alpha=0.5, mix="cutmix")
    batch, seen = _batch(method), []
    for each in (method.net, method.ema.net):
        each.register_forward_pre_hook(lambda module, given: seen.append(given[0]))
    loss = method(batch, AT)
    shares = []
    for kind, rows, mixed in (("labeled", 6, seen[0]), ("unlabeled", 10, seen[2])):
        images, partner = getattr(batch, kind)["weak"], AT.draw(f"ict/{kind}", rows).uniform().argsort().tolist()
        own = [(mixed[b] == images[b]).double().mean().item() for b in range(rows)]
        assert all(torch.equal(mixed[b].where(mixed[b] != images[b], images[partner[b]]), images[partner[b]])
                   for b in range(rows))
        assert len({round(share, 2) for share in own}) > 1
        shares.append((own, partner))
    (own, partner), y = shares[0], batch.labeled.targets.tolist()
    logits = _logits(method.net, seen[0])
    expected = sum(share * _cross_entropy(logits[b : b + 1], [y[b]])
                   + (1 - share) * _cross_entropy(logits[b : b + 1], [y[partner[b]]])
                   for b, share in enumerate(own) if partner[b] != b) / 6
    expected += sum(_cross_entropy(logits[b : b + 1], [y[b]]) for b in range(6) if partner[b] == b) / 6
    assert loss.terms["labeled"].item() == pytest.approx(expected, rel=1e-6)
    own, partner = shares[1]
    z = _logits(method.ema.net, batch.unlabeled["weak"])
    target = [[share * a + (1 - share) * c for a, c in zip(z[b], z[partner[b]], strict=True)]
              for b, share in enumerate(own)]
    expected = 7 * _distance(_logits(method.net, seen[2]), target)
    assert loss.terms["consistency"].item() == pytest.approx(expected, rel=1e-6)


def test_ict_that_mixes_nothing_is_mean_teacher_on_one_view():
    method = _method(ICT, weight=1.0, alpha=0.0)
    _shake(method.ema.net)
    batch = _batch(method)
    x, u = batch.labeled, batch.unlabeled["weak"]
    loss = method(batch, AT)
    assert loss.terms["labeled"].item() == pytest.approx(
        _cross_entropy(_logits(method.net, x["weak"]), x.targets.tolist()), rel=1e-6)
    assert loss.terms["consistency"].item() == pytest.approx(
        _distance(_logits(method.net, u), _logits(method.ema.net, u)), rel=1e-5)


def test_ict_refuses_a_negative_alpha():
    method = _method(ICT, alpha=-0.5)
    with pytest.raises(UsageError, match=r"alpha, of the Beta .* is -0\.5; expected 0"):
        method(_batch(method), AT)


def test_ict_learns_from_a_teacher_without_gradient():
    method = _method(ICT, weight=1.0)
    _shake(method.ema.net)
    term = method(_batch(method), AT).terms["consistency"]
    assert any(gradient.abs().sum() > 0 for gradient in _gradients(method, term))
    assert all(p.grad is None for p in method.ema.parameters())
    assert method.predictor() is method.ema.net


def test_beta_share_is_a_function_of_seed_purpose_and_step_with_the_right_spread():
    assert smoothness.beta_share(AT, "a", 0.3) == smoothness.beta_share(At(2, 4, seed=5, rank=1, world=2), "a", 0.3)
    assert len({smoothness.beta_share(at, key, 0.3) for at in (AT, At(3, 4, seed=5)) for key in "ab"}) == 4
    shares = torch.tensor([smoothness.beta_share(At(step, 2000), "a", 0.5) for step in range(2000)])
    assert shares.mean().item() == pytest.approx(0.5, abs=0.03)
    assert shares.var().item() == pytest.approx(1 / 8, abs=0.01)  # 1 / (4 (2 alpha + 1))
