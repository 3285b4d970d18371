"""Methods that choose or weigh pseudo-labels: contract, float64 references row by row, identities, state."""

import copy
import math
from functools import partial

import pytest
import torch
from forked import two_ranks
from slow import entropy_of, softmax

from ssl_lab import losses
from ssl_lab.batch import At, Batch, Rows, Style
from ssl_lab.errors import UsageError
from ssl_lab.methods import FixMatch, Method, Supervised
from ssl_lab.methods.consistency import thresholds
from ssl_lab.methods.consistency.adamatch import RISE, AdaMatch
from ssl_lab.methods.consistency.dash import Dash
from ssl_lab.methods.consistency.defixmatch import DeFixMatch
from ssl_lab.methods.consistency.flexmatch import FlexMatch
from ssl_lab.methods.consistency.freematch import FreeMatch
from ssl_lab.methods.consistency.softmatch import SoftMatch
from ssl_lab.methods.consistency.uda import UDA
from ssl_lab.nets import Output, net
from ssl_lab.testing import check_method

STYLE = Style(1, 8, 8, mean=(0.3,), std=(0.4,))
CLASSES, IMAGES = 3, 20
FLEX = partial(FlexMatch, images=IMAGES, threshold=0.34)
STATEFUL = [FLEX, FreeMatch, SoftMatch, AdaMatch, Dash]
ALL = [*STATEFUL, UDA, DeFixMatch]


def _name(build):
    return getattr(build, "func", build).__name__


def _rows(count, seed, views=("weak", "strong")):
    draw = torch.Generator().manual_seed(seed)
    targets = torch.arange(count) % CLASSES
    images = {name: torch.rand(count, 1, 8, 8, generator=draw, dtype=torch.float64) for name in views}
    return Rows(images, targets, targets, torch.arange(count))


BATCH = Batch(_rows(6, 0), _rows(10, 1))


def _method(build, **arguments) -> Method:
    return build(net("tiny_4", classes=CLASSES, style=STYLE, seed=0), **arguments).double().train()


def _logits(method, batch=BATCH, labeled=("weak",)):
    """Lists of logits, of one pass over all: the labeled views, weak, strong."""
    views = [*(batch.labeled[view] for view in labeled), batch.unlabeled["weak"], batch.unlabeled["strong"]]
    method = copy.deepcopy(method)
    with torch.no_grad():
        return [part.logits.tolist() for part in method.joint(*views)]


def _labeled_loss(logits, targets=BATCH.labeled.targets):
    return sum(entropy_of(y, row) for row, y in zip(logits, targets.tolist(), strict=True)) / len(logits)


def _terms(method, at=None, batch=BATCH):
    return {name: term.item() for name, term in method(batch, at or At(0, 10)).terms.items()}


def _run(method, steps, start=0, batch=BATCH):
    for step in range(start, start + steps):
        at = At(step, 10)
        method(batch, at)
        method.after_step(at)
    return method


def _moved(build, method):
    """Whether all of the method's own state is no longer what it began with; else a test of it sees nothing."""
    own = [(name, value) for name, value in method.named_buffers() if "." not in name]
    return own and all(not torch.equal(value, _method(build).get_buffer(name)) for name, value in own)


# --- All of them ---------------------------------------------------------------------------------


@pytest.mark.parametrize("build", [partial(UDA, tsa="linear"), partial(Dash, epochs=5, start=1)], ids=_name)
def test_contract_with_other_arguments(build):
    check_method(build, compile=False)


@pytest.mark.parametrize("build", STATEFUL, ids=_name)
def test_state_is_in_the_state_dict_and_goes_on_where_it_was(build):
    straight = _run(_method(build), 4)
    first = _run(_method(build), 2)
    resumed = _method(build)
    resumed.load_state_dict(copy.deepcopy(first.state_dict()))
    _run(resumed, 2, start=2)
    state = straight.state_dict()
    assert all(torch.equal(value, state[name]) for name, value in resumed.state_dict().items())
    assert _moved(build, straight)


@pytest.mark.parametrize("build", STATEFUL, ids=_name)
def test_state_moves_once_per_step(build):
    """An update rule may call forward again in a step, and forward alone moves nothing."""
    method = _method(build)
    before = {name: value.clone() for name, value in method.named_buffers() if "." not in name}
    first = _terms(method)
    assert _terms(method) == first
    assert all(torch.equal(value, before[name]) for name, value in method.named_buffers() if "." not in name)
    method.after_step(At(0, 10))
    once = _run(_method(build), 1)
    for name, value in method.named_buffers():
        if "." not in name:
            assert torch.allclose(value, once.get_buffer(name), rtol=1e-6), name


@pytest.mark.parametrize("build", STATEFUL, ids=_name)
def test_micro_batches_move_the_state_as_one_batch_does(build):
    whole, parts = _method(build).eval(), _method(build).eval()  # eval: rows do not meet in BatchNorm
    for step in range(3):
        at = At(step, 10)
        whole(BATCH, at)
        for i, part in enumerate(BATCH.chunk(2)):
            parts(part, At(step, 10, rank=i, world=2))
        whole.after_step(at)
        parts.after_step(at)
    assert _moved(build, whole)
    for name, value in whole.named_buffers():
        assert torch.allclose(value, parts.get_buffer(name), atol=1e-12), name


def _states_of_rank(rank):
    states = []
    for build in STATEFUL:
        method = _method(build).eval()
        for step in range(3):
            at = At(step, 10, rank=rank, world=2)
            method(Batch(BATCH.labeled.part(rank, 2), BATCH.unlabeled.part(rank, 2)), at)
            method.after_step(at)
        states.append({name: value for name, value in method.named_buffers() if "." not in name})
    return states


def test_state_is_equal_on_one_rank_and_on_two(tmp_path):
    first, second = two_ranks(_states_of_rank, tmp_path)
    for build, one, two in zip(STATEFUL, first, second, strict=True):
        alone = _run(_method(build).eval(), 3)
        assert _moved(build, alone)
        for name in one:
            assert torch.equal(one[name], two[name]), (_name(build), name)
            assert torch.allclose(one[name], alone.get_buffer(name), atol=1e-12), (_name(build), name)


# --- FlexMatch -----------------------------------------------------------------------------------


def _flex(selected, **arguments):
    method = _method(FLEX, **arguments)
    method.selected.copy_(torch.tensor(selected))
    return method


@pytest.mark.parametrize("selected", [[-1] * 20, [0] * 9 + [1] * 4 + [2] * 1 + [-1] * 6, [2] * 18 + [-1] * 2])
def test_flexmatch_against_its_equations(selected):
    method = _flex(selected, threshold=0.7, weight=0.5)
    labeled, weak, strong = _logits(method)
    sigma = [selected.count(c) for c in range(CLASSES)]
    beta = [s / max(*sigma, selected.count(-1)) for s in sigma]
    expected, kept = 0.0, 0
    for w, s in zip(weak, strong, strict=True):
        q = softmax(w)
        c = q.index(max(q))
        if max(q) >= 0.7 * beta[c] / (2 - beta[c]):
            expected += entropy_of(c, s)
            kept += 1
    loss = method(BATCH, At(0, 1))
    assert loss.terms["labeled"].item() == pytest.approx(_labeled_loss(labeled), rel=1e-9)
    assert loss.terms["unlabeled"].item() == pytest.approx(0.5 * expected / 10, rel=1e-9)
    assert loss.logs["mask_rate"].item() == pytest.approx(kept / 10)


@pytest.mark.parametrize("threshold", [0.4, 0.5, 0.6])
def test_flexmatch_with_equal_counts_is_fixmatch(threshold):
    flex = _flex([0] * 6 + [1] * 6 + [2] * 6 + [-1] * 2, threshold=threshold)
    assert _terms(flex) == _terms(_method(FixMatch, threshold=threshold))


def test_flexmatch_keeps_every_row_before_any_image_counts():
    assert _method(FLEX, threshold=1.0)(BATCH, At(0, 1)).logs["mask_rate"] == 1


def test_flexmatch_images_outside_the_unlabeled_set_do_not_hold_the_warm_up():
    """Test images are never counted: were they taken for images to come, no class would reach the threshold."""
    counts = torch.tensor([3, 3, 3])
    assert thresholds.learning_status(counts, 9).tolist() == [1, 1, 1]
    assert thresholds.learning_status(counts, 100).tolist() == pytest.approx([3 / 91] * 3)
    selected = [0, 1, 2] * 3 + [-1] * 11
    assert _terms(_flex(selected, unlabeled=9, threshold=0.5)) == _terms(_method(FixMatch, threshold=0.5))


def test_flexmatch_counts_the_latest_confident_label_of_each_image():
    method = _flex([1] * 20, threshold=0.5)
    _, weak, _ = _logits(method)
    _run(method, 1)
    expected = [1] * 20
    for i, row in enumerate(weak):
        q = softmax(row)
        if max(q) >= 0.5:
            expected[i] = q.index(max(q))
    assert method.selected.tolist() == expected
    assert 0 < sum(max(softmax(row)) >= 0.5 for row in weak) < 10  # else this would not see the threshold at work


def test_flexmatch_takes_the_later_confident_row_of_an_image_that_is_there_twice():
    method = _method(FLEX)
    method.notes.put(At(0, 10), torch.tensor([4, 4, 4, 7, 7]), torch.tensor([0, 2, -1, 1, 0]))
    method.after_step(At(0, 10))
    assert method.selected[4] == 2
    assert method.selected[7] == 0
    assert (method.selected >= 0).sum() == 2


def test_convex_map():
    assert thresholds.convex(torch.tensor([0.0, 0.5, 1.0])).tolist() == pytest.approx([0, 1 / 3, 1])


def test_class_counts_is_bincount():
    labels = torch.tensor([2, -1, 0, 2, 2, -1])
    assert thresholds.class_counts(labels, 4).tolist() == [1, 0, 3, 0]


# --- FreeMatch -----------------------------------------------------------------------------------


def _sum_norm(values):
    return [value / sum(values) for value in values]


def _fairness(strong, kept, p, h):
    rows = [softmax(row) for row, keep in zip(strong, kept, strict=True) if keep]
    mean = [sum(row[c] for row in rows) / len(rows) for c in range(CLASSES)]
    share = [sum(row.index(max(row)) == c for row in rows) / len(rows) for c in range(CLASSES)]
    target = _sum_norm([a / b for a, b in zip(p, h, strict=True)])
    now = _sum_norm([m / s if s else 0.0 for m, s in zip(mean, share, strict=True)])
    return sum(t * math.log(n + 1e-12) for t, n in zip(target, now, strict=True))


def test_freematch_against_its_equations():
    method = _method(FreeMatch, weight=0.5, fairness_weight=0.2)
    tau, p, h = 0.55, [0.36, 0.34, 0.3], [0.6, 0.2, 0.2]
    for buffer, value in zip((method.threshold, method.prediction, method.histogram), (tau, p, h), strict=True):
        buffer.copy_(torch.tensor(value))
    labeled, weak, strong = _logits(method)
    expected, kept = 0.0, []
    for w, s in zip(weak, strong, strict=True):
        q = softmax(w)
        c = q.index(max(q))
        kept.append(max(q) >= tau * p[c] / max(p))
        expected += entropy_of(c, s) * kept[-1]
    assert 0 < sum(kept) < 10
    terms = _terms(method)
    assert terms["labeled"] == pytest.approx(_labeled_loss(labeled), rel=1e-9)
    assert terms["unlabeled"] == pytest.approx(0.5 * expected / 10, rel=1e-9)
    assert terms["fairness"] == pytest.approx(0.2 * _fairness(strong, kept, p, h), rel=1e-5)


def test_freematch_keeps_the_thresholds_of_classes_within_limits():
    """As in TorchSSL for SVHN: the threshold of a row's class is brought between 0.9 and 0.95."""
    method = _method(FreeMatch, least=0.36, most=0.38)
    method.threshold.fill_(0.7)
    method.prediction.copy_(torch.tensor([0.1, 0.37 / 0.7 * 0.5, 0.5]))
    _, weak, _ = _logits(method)
    limits = [0.36, 0.37, 0.38]
    kept = [max(q) >= limits[q.index(max(q))] for q in map(softmax, weak)]
    assert method(BATCH, At(0, 10)).logs["mask_rate"].item() == pytest.approx(sum(kept) / len(kept))
    assert method(BATCH, At(0, 10)).logs["threshold"].item() == pytest.approx(0.37)


def test_freematch_moves_its_averages():
    method = _method(FreeMatch, momentum=0.9)
    _, weak, _ = _logits(method)
    _run(method, 1)
    q = [softmax(row) for row in weak]
    top = [row.index(max(row)) for row in q]
    assert method.threshold.item() == pytest.approx(0.9 / 3 + 0.1 * sum(map(max, q)) / 10, rel=1e-6)
    for c in range(CLASSES):
        assert method.prediction[c].item() == pytest.approx(0.9 / 3 + 0.1 * sum(row[c] for row in q) / 10, rel=1e-6)
        assert method.histogram[c].item() == pytest.approx(0.9 / 3 + 0.1 * top.count(c) / 10, rel=1e-6)


def test_freematch_fairness_is_minus_a_cross_entropy_that_is_minimized():
    """Least where the batch is far from the target: with h = 1/C the value is sum p log p_batch, plus sign."""
    uniform = torch.full((3,), 1 / 3, dtype=torch.float64)
    logits = torch.eye(3, dtype=torch.float64) * 2
    mask = torch.ones(3, dtype=torch.bool)
    value = thresholds.fairness(logits, mask, uniform, uniform)
    assert value.item() == pytest.approx(math.log(1 / 3))
    skewed = torch.tensor([[2.0, 0, 0], [0, 0.1, 0], [0, 0, 0.1]], dtype=torch.float64)
    assert thresholds.fairness(skewed, mask, uniform, uniform) < value


def test_freematch_fairness_without_rows_is_zero_and_has_a_finite_gradient():
    logits = torch.randn(4, 3, generator=torch.Generator().manual_seed(0)).requires_grad_()
    uniform = torch.full((3,), 1 / 3)
    value = thresholds.fairness(logits, torch.zeros(4, dtype=torch.bool), uniform, uniform)
    value.backward()
    assert value == 0
    assert (logits.grad == 0).all()


def test_freematch_with_a_uniform_mean_prediction_is_fixmatch_at_its_threshold():
    method = _method(FreeMatch, fairness_weight=0.0)
    method.threshold.fill_(0.55)
    fixed = _terms(_method(FixMatch, threshold=method.threshold.item()))
    assert {name: value for name, value in _terms(method).items() if name in fixed} == fixed


# --- SoftMatch -----------------------------------------------------------------------------------


def test_softmatch_against_its_equations():
    method = _method(SoftMatch, weight=0.5, n_sigma=1.5)
    mean, variance, model = 0.6, 0.02, [0.5, 0.3, 0.2]
    for buffer, value in zip((method.mean, method.variance, method.prediction), (mean, variance, model), strict=True):
        buffer.copy_(torch.tensor(value))
    labeled, weak, strong = _logits(method)
    expected, weights = 0.0, []
    for w, s in zip(weak, strong, strict=True):
        q = softmax(w)
        aligned = _sum_norm([v * (1 / 3 + 1e-6) / (m + 1e-6) for v, m in zip(q, model, strict=True)])
        d = min(max(aligned) - mean, 0.0)
        weights.append(math.exp(-(d**2) * 1.5**2 / (2 * variance)))
        expected += weights[-1] * entropy_of(q.index(max(q)), s)  # the label is that of q, not the aligned one
    assert min(weights) < 0.9
    assert max(weights) == 1
    loss = method(BATCH, At(0, 1))
    assert loss.terms["labeled"].item() == pytest.approx(_labeled_loss(labeled), rel=1e-9)
    assert loss.terms["unlabeled"].item() == pytest.approx(0.5 * expected / 10, rel=1e-6)
    assert loss.logs["mask_rate"].item() == pytest.approx(sum(weights) / 10, rel=1e-6)


def test_softmatch_with_sigma_zero_is_a_threshold_at_the_mean():
    confidence = torch.tensor([0.2, 0.4999, 0.5, 0.5001, 0.9])
    weight = thresholds.truncated_gaussian(confidence, torch.tensor(0.5), torch.tensor(0.0), 2.0)
    assert weight.tolist() == [0, 0, 1, 1, 1]
    method = _method(SoftMatch)
    method.mean.fill_(0.55)
    method.variance.zero_()  # and the mean prediction is uniform: nothing to align
    fixed = _terms(_method(FixMatch, threshold=method.mean.item()))
    assert _terms(method) == pytest.approx(fixed)
    assert 0 < fixed["unlabeled"] < _terms(_method(FixMatch, threshold=0.0))["unlabeled"]


def test_softmatch_with_a_large_sigma_keeps_everything():
    weight = thresholds.truncated_gaussian(torch.rand(9), torch.tensor(1.0), torch.tensor(1e12), 2.0)
    assert weight.tolist() == pytest.approx([1] * 9)


def test_softmatch_moves_the_moments_of_the_confidence_before_alignment():
    method = _method(SoftMatch, momentum=0.9)
    method.prediction.copy_(torch.tensor([0.8, 0.1, 0.1]))
    _, weak, _ = _logits(method)
    q = [softmax(row) for row in weak]
    top = [max(row) for row in q]
    mean = sum(top) / 10
    _run(method, 1, start=1)
    assert method.mean.item() == pytest.approx(0.9 / 3 + 0.1 * mean, rel=1e-6)
    assert method.variance.item() == pytest.approx(0.9 + 0.1 * sum((t - mean) ** 2 for t in top) / 9, rel=1e-9)
    assert method.prediction[0].item() == pytest.approx(0.9 * 0.8 + 0.1 * sum(row[0] for row in q) / 10, rel=1e-6)


def test_softmatch_takes_its_first_mean_prediction_from_the_first_step():
    method = _method(SoftMatch)
    _, weak, _ = _logits(method)
    _run(method, 1)
    expected = [sum(softmax(row)[c] for row in weak) / 10 for c in range(CLASSES)]
    assert method.prediction.tolist() == pytest.approx(expected)


def test_alignment_keeps_probabilities_and_has_its_constant_on_both_sides():
    p = torch.tensor([[0.7, 0.3, 0.0], [0.2, 0.2, 0.6]], dtype=torch.float64)
    model = torch.tensor([0.5, 0.5, 0.0], dtype=torch.float64)
    target = torch.tensor([0.25, 0.75, 0.0], dtype=torch.float64)
    aligned = losses.align(p, target, model)
    assert aligned.sum(dim=1).tolist() == pytest.approx([1, 1])
    for row, result in zip(p.tolist(), aligned.tolist(), strict=True):
        expected = _sum_norm([v * (t + 1e-6) / (m + 1e-6) for v, t, m in
                              zip(row, target.tolist(), model.tolist(), strict=True)])
        assert result == pytest.approx(expected, rel=1e-12)
    assert torch.allclose(losses.align(p, model, model), p)


# --- UDA -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(("schedule", "start", "middle", "end"), [
    ("none", 1, 1, 1), ("linear", 0.25, 0.625, 1), ("log", 0.25, 0.25 + 0.75 * 0.917915, 0.25 + 0.75 * 0.993262),
    ("exp", 0.25 + 0.75 * 0.006738, 0.25 + 0.75 * 0.082085, 1),
])
def test_tsa_schedules(schedule, start, middle, end):
    eta = [thresholds.tsa_threshold(schedule, t, 4) for t in (0.0, 0.5, 1.0)]
    assert eta == pytest.approx([start, middle, end], abs=1e-6)


def test_tsa_names():
    with pytest.raises(UsageError, match="linear"):
        _method(UDA, tsa="linaer")


@pytest.mark.parametrize("step", [1, 5, 9])
def test_uda_against_its_equations(step):
    method = _method(UDA, threshold=0.5, temperature=0.4, tsa="linear", weight=0.7)
    labeled, weak, strong = _logits(method)
    eta = step / 10 * (2 / 3) + 1 / 3
    kept = [(entropy_of(y, row), softmax(row)[y]) for row, y in
            zip(labeled, BATCH.labeled.targets.tolist(), strict=True)]
    kept = [loss for loss, p in kept if p <= eta]
    unlabeled = 0.0
    for w, s in zip(weak, strong, strict=True):
        if max(softmax(w)) > 0.5:  # of the prediction that is not sharpened
            target = softmax(w, 0.4)
            unlabeled += entropy_of(target, s) + sum(t * math.log(t) for t in target)
    terms = _terms(method, At(step, 10))
    assert terms["labeled"] == pytest.approx(sum(kept) / len(kept), rel=1e-9)
    assert terms["unlabeled"] == pytest.approx(0.7 * unlabeled / 10, rel=1e-9)


def test_uda_without_sharpening_and_annealing_is_kl_and_cross_entropy():
    method = _method(UDA, threshold=0.0, temperature=1.0, tsa="none")
    labeled, weak, strong = _logits(method)
    kl = sum(entropy_of(softmax(w), s) - entropy_of(softmax(w), w) for w, s in zip(weak, strong, strict=True)) / 10
    assert _terms(method) == pytest.approx({"labeled": _labeled_loss(labeled), "unlabeled": kl})
    x, u = BATCH.labeled, BATCH.unlabeled
    same = Batch(x, Rows({"weak": u["weak"], "strong": u["weak"]}, u.targets, u.truth, u.indices))
    assert _terms(method, batch=same)["unlabeled"] == pytest.approx(0, abs=1e-12)
    assert _terms(_method(UDA, threshold=0.0, temperature=0.4), batch=same)["unlabeled"] > 1e-3


def annealed(logits, targets, threshold):
    return thresholds.annealed(losses.cross_entropies(logits, targets), logits, targets, threshold)


def test_tsa_averages_over_the_rows_kept_and_is_zero_without_any():
    p = torch.tensor([[0.9, 0.1], [0.5, 0.5], [0.2, 0.8]], dtype=torch.float64)
    targets = torch.tensor([0, 0, 0])
    logits = p.log().requires_grad_()
    loss = annealed(logits, targets, 0.6)
    assert loss.item() == pytest.approx(-(math.log(0.5) + math.log(0.2)) / 2)
    nothing = annealed(logits, targets, 0.1)
    nothing.backward()
    assert nothing == 0
    assert (logits.grad == 0).all()


# --- AdaMatch ------------------------------------------------------------------------------------


def test_adamatch_against_its_equations():
    method = _method(AdaMatch, confidence=0.9, weight=0.6)
    p_labeled = [0.5, 0.3, 0.2]
    method.labeled_prediction.copy_(torch.tensor(p_labeled))
    method.unlabeled_predictions.copy_(torch.tensor([[0.2, 0.3, 0.5]] * 64 + [[0.4, 0.3, 0.3]] * 64))
    p_unlabeled = [0.3, 0.3, 0.4]
    x_weak, x_strong, weak, strong = _logits(method, labeled=("weak", "strong"))
    with torch.no_grad():
        alone = copy.deepcopy(method).net(torch.cat([BATCH.labeled["weak"], BATCH.labeled["strong"]])).logits.tolist()
    at = At(2, 10, seed=5)
    draw = at.draw("adamatch", 6)
    r = [*draw.uniform(CLASSES).tolist(), *draw.uniform(CLASSES).tolist()]
    mixed = [[z + (other - z) * share for z, other, share in zip(*rows, strict=True)]
             for rows in zip(x_weak + x_strong, alone, r, strict=True)]
    threshold = 0.9 * sum(max(softmax(row)) for row in mixed[:6]) / 6
    unlabeled, kept = 0.0, 0
    for w, s in zip(weak, strong, strict=True):
        q = _sum_norm([v * (a + 1e-6) / (b + 1e-6) for v, a, b in
                       zip(softmax(w), p_labeled, p_unlabeled, strict=True)])
        if max(q) >= threshold:
            unlabeled += entropy_of(q.index(max(q)), s)
            kept += 1
    assert 0 < kept < 10
    terms = _terms(method, at)
    assert terms["labeled"] == pytest.approx((_labeled_loss(mixed[:6]) + _labeled_loss(mixed[6:])) / 2, rel=1e-6)
    assert terms["unlabeled"] == pytest.approx(0.6 * unlabeled / 10, rel=1e-6)


def test_adamatchs_threshold_is_of_a_ranks_own_labeled_rows(monkeypatch):
    """As that of a micro-batch is, so that two ranks take the steps of two micro-batches."""
    monkeypatch.setattr("ssl_lab.methods.ranks.sum_over_ranks", lambda mine: pytest.fail("ranks talk before the step"))
    method = _method(AdaMatch)
    method(BATCH, At(0, 1))
    with pytest.raises(pytest.fail.Exception):
        method.after_step(At(0, 1))


def test_adamatch_moves_its_mean_predictions():
    method = _method(AdaMatch, momentum=0.9).eval()  # without batch statistics both passes give the same logits
    x_weak, _, weak, _ = _logits(method, labeled=("weak", "strong"))
    _run(method, 1, start=3)
    for c in range(CLASSES):
        labeled = sum(softmax(row)[c] for row in x_weak) / 6
        assert method.labeled_prediction[c].item() == pytest.approx(0.9 / 3 + 0.1 * labeled, rel=1e-6)
        assert method.unlabeled_predictions[3, c].item() == pytest.approx(sum(softmax(row)[c] for row in weak) / 10)
    assert torch.allclose(method.unlabeled_predictions[4:], torch.tensor(1 / 3, dtype=torch.float64))


def test_adamatch_running_statistics_see_the_joint_pass_alone():
    method, fixed = _method(AdaMatch), _method(DeFixMatch)  # both pass the same four views together
    method(BATCH, At(0, 1))
    fixed(BATCH, At(0, 1))
    for mine, theirs in zip(method.net.buffers(), fixed.net.buffers(), strict=True):
        assert torch.equal(mine, theirs)


def test_adamatch_weight_rises_over_the_first_half():
    assert [RISE(t) for t in (0.0, 0.25, 0.5, 1.0)] == pytest.approx([0, 0.5, 1, 1])


# --- DeFixMatch ----------------------------------------------------------------------------------


@pytest.mark.parametrize("threshold", [0.0, 0.5])
def test_defixmatch_against_its_equations(threshold):
    method = _method(DeFixMatch, threshold=threshold, weight=0.3)
    x_weak, x_strong, weak, strong = _logits(method, labeled=("weak", "strong"))

    def fixmatch(weak, strong):
        total = 0.0
        for w, s in zip(weak, strong, strict=True):
            q = softmax(w)
            total += entropy_of(q.index(max(q)), s) * (max(q) >= threshold)
        return total / len(weak)

    expected = {"labeled": (_labeled_loss(x_weak) + _labeled_loss(x_strong)) / 2,
                "unlabeled": 0.3 * fixmatch(weak, strong), "debiasing": -0.3 * fixmatch(x_weak, x_strong)}
    assert _terms(method) == pytest.approx(expected, rel=1e-9)


def test_defixmatch_with_weight_zero_is_supervised():
    method, plain = _method(DeFixMatch, weight=0.0).eval(), _method(Supervised).eval()  # eval: rows do not meet
    x = BATCH.labeled
    both = Batch(Rows({"view": torch.cat([x["weak"], x["strong"]])}, x.targets.repeat(2), x.truth.repeat(2),
                      x.indices.repeat(2)), BATCH.unlabeled)
    one, other = method(BATCH, At(0, 1)).total, plain(both, At(0, 1)).total
    assert one.item() == pytest.approx(other.item())
    one.backward()
    other.backward()
    for mine, theirs in zip(method.net.parameters(), plain.net.parameters(), strict=True):
        assert torch.allclose(mine.grad, theirs.grad, atol=1e-9)


def test_defixmatch_is_supervised_where_the_unlabeled_images_are_the_labeled_ones():
    """The two FixMatch losses cancel, whatever the weight: the estimate is not biased."""
    method = _method(DeFixMatch, weight=7.0, threshold=0.0)
    terms = _terms(method, batch=Batch(BATCH.labeled, BATCH.labeled))
    assert terms["unlabeled"] == pytest.approx(-terms["debiasing"])
    assert terms["unlabeled"] > 0


# --- Dash ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("temperature", [1.0, 0.5])
@pytest.mark.parametrize(("step", "first_loss", "rho", "soft"), [
    (0, 0.0, math.inf, True), (1, 0.0, math.inf, True), (2, 0.6, 0.6 / 1.3**0, True), (4, 1.2, 1.2 / 1.3, True),
    (6, 1.2, 1.2 / 1.3, True), (7, 1.2, 1.2 / 1.3**2, True), (9, 0.5, 0.45, False),
])
def test_dash_against_its_equations(step, first_loss, rho, soft, temperature):
    method = _method(Dash, gamma=1.3, every=3, start=2, epochs=10, temperature=temperature, least=0.45, weight=0.8)
    method.first_loss.fill_(first_loss)
    labeled, weak, strong = _logits(method)
    kept = []
    for w, s in zip(weak, strong, strict=True):
        q = softmax(w)
        if -math.log(max(q)) < rho:
            kept.append(entropy_of(softmax([z / temperature for z in w]) if soft else q.index(max(q)), s))
    assert kept
    terms = _terms(method, At(step, 10))
    assert terms["labeled"] == pytest.approx(_labeled_loss(labeled), rel=1e-9)
    assert terms["unlabeled"] == pytest.approx(0.8 * sum(kept) / len(kept), rel=1e-6)


@pytest.mark.parametrize(("unlabeled", "steps"), [(None, [2, 3]), (1000, [2, 3]), (11, [2, 3]), (10, [3]), (3, [3])])
def test_dash_takes_its_first_threshold_from_the_last_images_of_the_warm_up(unlabeled, steps):
    """Five parts of two steps, of which two are the warm-up; ten unlabeled rows a step."""
    method = _method(Dash, epochs=5, start=2, temperature=0.5, unlabeled=unlabeled)
    seen = []
    for step in range(6):
        _, weak, strong = _logits(method)
        sharp = [softmax([z / 0.5 for z in w]) for w in weak]
        seen.append(sum(map(entropy_of, sharp, strong)) / 10)
        with torch.no_grad():
            _run(method, 1, start=step)
            for parameter in method.net.parameters():
                parameter.mul_(1.2)
    assert method.first_loss.item() == pytest.approx(sum(seen[step] for step in steps) / len(steps), rel=1e-6)
    assert len(set(seen)) == 6


@pytest.mark.parametrize("epoch", [9, 10, 18, 19, 100, 500])
def test_dash_has_the_threshold_of_its_published_command(epoch):
    """start_train.sh of idstcv/Dash: gamma 1.27, drop_step 9, dt_start_epoch 10, min_select_th 0.05, of 1024 epochs."""
    published = math.inf if epoch < 10 else max(2.3 * 1.27 ** -int((epoch - 1) / 9), 0.05)

    class Fixed(Dash):
        def joint(self, *views, constant=None):
            return tuple(Output(logits, logits) for logits in (WEAK, WEAK, STRONG))

    method = Fixed(net("tiny_4", classes=4, style=STYLE, seed=0))
    method.first_loss.fill_(2.3)
    rate = method(Batch(_rows(6, 0), _rows(6, 1)), At(epoch * 7, 1024 * 7)).logs["mask_rate"].item()
    assert rate == pytest.approx((-WEAK.softmax(dim=1).amax(dim=1).log() < published).double().mean().item())
    assert (method.temperature, method.weight) == (0.5, 0.9)


def test_dash_of_few_steps_warms_up_for_one():
    method = _method(Dash)
    assert method(BATCH, At(0, 2)).logs["mask_rate"] == 1
    method.after_step(At(0, 2))
    assert method.first_loss > 0
    assert method(BATCH, At(1, 2)).logs["mask_rate"] < 1


@pytest.mark.parametrize("wrong", [{"every": 0}, {"start": 0}, {"start": 11, "epochs": 10}])
def test_dash_refuses_parts_that_do_not_fit(wrong):
    with pytest.raises(UsageError, match="Dash with every="):
        _method(Dash, **wrong)


def test_dash_without_rows_below_the_threshold_has_no_unlabeled_loss():
    method = _method(Dash, least=1e-9, every=1, epochs=10, start=1)
    method.first_loss.fill_(1e-9)
    loss = method(BATCH, At(9, 10))
    loss.total.backward()
    assert loss.terms["unlabeled"] == 0
    assert all(parameter.grad.isfinite().all() for parameter in method.net.parameters())


# --- No gradient through the targets -------------------------------------------------------------


@pytest.mark.parametrize("build", [FLEX, FreeMatch, SoftMatch, partial(AdaMatch, weight=1.0), Dash,
                                   partial(UDA, threshold=0.0), partial(DeFixMatch, threshold=0.0)], ids=_name)
def test_pseudo_labels_and_weights_carry_no_gradient(build):
    method = _method(build).eval()  # rows do not meet in BatchNorm: weak rows could reach the loss by the target alone
    x, u = _rows(6, 0), _rows(10, 1)
    for rows in (x, u):
        for view in rows.views.values():
            view.requires_grad_()
    terms = method(Batch(x, u), At(0, 1)).terms
    sum(term for name, term in terms.items() if name != "labeled").backward()
    assert u["strong"].grad.any()
    for weak in (x["weak"], u["weak"]):
        assert weak.grad is None or not weak.grad.any()


# --- Numbers of the papers' code -----------------------------------------------------------------
# Computed with the formulas of google-research/uda (image/main.py) and of microsoft/Semi-supervised-learning, the
# code of FlexMatch's, FreeMatch's and SoftMatch's authors, in float64 on these logits.

_ROW, _CLASS = torch.arange(6, dtype=torch.float64)[:, None], torch.arange(4, dtype=torch.float64)
WEAK = 2 * torch.sin(1.7 * _ROW + 2.3 * _CLASS + 1)
STRONG = 1.5 * torch.cos(0.9 * _ROW + 1.1 * _CLASS)
PREDICTION = torch.tensor([0.3, 0.2, 0.275, 0.225], dtype=torch.float64)


def test_flexmatch_gives_the_numbers_of_its_code():
    selected = torch.tensor([0] * 7 + [1] * 3 + [3] * 5 + [-1] * 4)
    status = thresholds.learning_status(thresholds.class_counts(selected, 4), 19)
    assert status.tolist() == pytest.approx([1, 3 / 7, 0, 5 / 7])
    confidence, pseudo = losses.pseudo_labels(WEAK)
    mask = confidence >= 0.7 * thresholds.convex(status.double())[pseudo]
    assert mask.tolist() == [True, True, True, True, False, True]
    assert losses.masked_cross_entropy(STRONG, pseudo, mask).item() == pytest.approx(2.031987370649762, rel=1e-6)


def test_softmatch_gives_the_numbers_of_its_code():
    q = losses.probabilities(WEAK)
    weight = thresholds.truncated_gaussian(q.amax(dim=1), torch.tensor(0.75), torch.tensor(0.03), 2)
    assert weight.tolist() == pytest.approx([0.046652160901742276, 0.38927350124347987, 0.005912783129397667,
                                             0.42160219859655795, 0.04444755231952784, 1.0], rel=1e-5)
    aligned = losses.align(q, torch.full((4,), 0.25, dtype=torch.float64), PREDICTION)
    assert aligned[0].tolist() == pytest.approx([0.3238782767661956, 0.06585121241285989, 0.018576615987674377,
                                                 0.5916938948332702], rel=1e-9)


def test_freematch_gives_the_numbers_of_its_code():
    q = losses.probabilities(WEAK)
    confidence, pseudo = q.max(dim=1)
    limits = thresholds.class_thresholds(torch.tensor(0.66, dtype=torch.float64), PREDICTION)
    mask = confidence >= limits[pseudo]
    assert mask.tolist() == [True, True, False, True, False, True]
    histogram = torch.tensor([0.3, 0.2, 0.4, 0.1], dtype=torch.float64)
    value = thresholds.fairness(STRONG, mask, PREDICTION, histogram)
    assert value.item() == pytest.approx(-6.4309683557870425, rel=1e-12)


def test_uda_gives_the_numbers_of_its_code():
    targets = torch.tensor([0, 1, 2, 3, 0, 1])
    assert annealed(WEAK, targets, 0.3).item() == pytest.approx(2.986144946172395, rel=1e-12)

    class Fixed(UDA):
        def joint(self, *views, constant=None):
            return tuple(Output(logits, logits) for logits in (WEAK, WEAK, STRONG))

    method = Fixed(net("tiny_4", classes=4, style=STYLE, seed=0), threshold=0.6)
    loss = method(Batch(_rows(6, 0), _rows(6, 1)), At(0, 1))
    assert loss.logs["mask_rate"].item() == pytest.approx(3 / 6)
    assert loss.terms["unlabeled"].item() == pytest.approx(0.8922433138168225, rel=1e-12)
