"""MixMatch, S4L, ReMixMatch and SimMatch: the contract, slow references in float64, their papers' identities."""

import copy
import math
from functools import partial

import numpy as np
import pytest
import torch
from slow import noise_rows, softmax
from torch import nn

from ssl_lab import losses
from ssl_lab.batch import At, Batch, Rows, Style
from ssl_lab.errors import UsageError
from ssl_lab.methods.consistency.ict import ICT
from ssl_lab.methods.consistency.mixing import mixing, sharpen
from ssl_lab.methods.consistency.mixmatch import MixMatch
from ssl_lab.methods.consistency.remixmatch import ReMixMatch
from ssl_lab.methods.consistency.s4l import S4L
from ssl_lab.methods.consistency.simmatch import SimMatch, calibrate
from ssl_lab.methods.mixture import Mixture, beta_shares, larger, mixup, permutation, rectangles
from ssl_lab.methods.rotations import all_rotations, rotation_head, some_rotation
from ssl_lab.nets import net
from ssl_lab.testing import check_method

STYLE = Style(1, 8, 8, mean=(0.3,), std=(0.4,))
CLASSES = 3
METHODS = [MixMatch, S4L, ReMixMatch, SimMatch]
AT = At(2, 10, seed=5)


def _batch(method, labeled=4, unlabeled=6):
    return Batch(noise_rows(labeled, 0, method.views.labeled), noise_rows(unlabeled, 1, method.views.unlabeled))


def _method(cls, seed=0, **arguments):
    return cls(net("tiny_4", classes=CLASSES, style=STYLE, seed=seed), **arguments).double().train()


def _cross_entropy(target, row):
    return -sum(t * math.log(p) for t, p in zip(target, softmax(row), strict=True))


def _sharpened(p, temperature):
    powers = [value ** (1 / temperature) for value in p]
    return [power / sum(powers) for power in powers]


def _one_hot(label):
    return [1.0 if c == label else 0.0 for c in range(CLASSES)]


def _logits(module, images):
    """In training mode, but nothing moves."""
    with torch.no_grad():
        return copy.deepcopy(module)(images).logits.tolist()


def _mean(values):
    values = list(values)
    return sum(values) / len(values)


def _mixed_rows(batch, images, targets, at, alpha, mix="mixup"):
    """Each row with its partner, row by row."""
    mixture = mixing(batch, at, alpha, mix)
    share, partner = mixture.share, mixture.partner
    rows = range(len(images))
    assert sorted(partner.tolist()) == list(rows)
    if mix == "mixup":
        mixed = [share[n].item() * images[n] + (1 - share[n].item()) * images[partner[n]] for n in rows]
    else:
        mixed = [_pasted(images[n], images[partner[n]], mixture.pasted[n], share[n].item()) for n in rows]
    labels = [[share[n].item() * own + (1 - share[n].item()) * other
               for own, other in zip(targets[n], targets[partner[n]], strict=True)] for n in rows]
    return torch.stack(mixed), labels


def _pasted(own, other, pasted, share):
    """CutMix pixel by pixel, and that the share is the one of an upright rectangle's outside."""
    found, inside = own.clone(), pasted.nonzero().tolist()
    for v, u in inside:
        found[:, v, u] = other[:, v, u]
    lines, columns = {v for v, _ in inside}, {u for _, u in inside}
    assert len(inside) == len(lines) * len(columns)
    assert all(max(each) - min(each) + 1 == len(each) for each in (lines, columns) if each)
    assert share == pytest.approx(1 - len(inside) / pasted.numel(), abs=1e-7)
    return found


# Shared functions


def test_sharpen_against_its_equation():
    p = torch.rand(5, 4, dtype=torch.float64).softmax(1)
    for temperature in (0.3, 0.5, 1.0, 2.0):
        expected = torch.tensor([_sharpened(row, temperature) for row in p.tolist()], dtype=torch.float64)
        torch.testing.assert_close(sharpen(p, temperature), expected, rtol=1e-12, atol=0)


def test_sharpen_at_one_is_the_identity():
    p = torch.tensor([[0.2, 0.3, 0.5], [1.0, 0.0, 0.0]])
    torch.testing.assert_close(sharpen(p, 1.0), p)


def test_sharpen_towards_zero_is_one_hot_also_where_powers_underflow():
    p = torch.tensor([[0.2, 0.38, 0.42], [0.0, 0.6, 0.4]])
    torch.testing.assert_close(sharpen(p, 1e-3), torch.tensor([[0.0, 0.0, 1.0], [0.0, 1.0, 0.0]]), rtol=0, atol=1e-30)


def test_squared_error_is_a_mean_over_rows_and_classes():
    logits, targets = torch.randn(5, 4, dtype=torch.float64), torch.rand(5, 4, dtype=torch.float64).softmax(1)
    total = 0.0
    for row, target in zip(logits.tolist(), targets.tolist(), strict=True):
        total += sum((p - t) ** 2 for p, t in zip(softmax(row), target, strict=True))
    assert losses.squared_error(logits.softmax(1), targets).item() == pytest.approx(total / (5 * 4), rel=1e-12)


def test_shares_are_those_of_the_beta_distribution_folded():
    shares = larger(beta_shares(AT.draw("test", 20000), 0.75))
    assert shares.min() >= 0.5
    assert shares.max() <= 1
    sample = np.random.default_rng(0).beta(0.75, 0.75, 20000)
    expected = np.maximum(sample, 1 - sample)
    quantiles = [0.1, 0.3, 0.5, 0.7, 0.9]
    np.testing.assert_allclose(np.quantile(shares.numpy(), quantiles), np.quantile(expected, quantiles), atol=0.01)


def test_shares_are_a_function_of_seed_and_step_not_of_global_state():
    torch.manual_seed(0)
    first = beta_shares(AT.draw("test", 8), 0.5)
    torch.manual_seed(1)
    assert torch.equal(first, beta_shares(AT.draw("test", 8), 0.5))
    assert not torch.equal(first, beta_shares(At(3, 10, seed=5).draw("test", 8), 0.5))
    assert not torch.equal(first, beta_shares(At(2, 10, seed=6).draw("test", 8), 0.5))


def test_shares_of_two_ranks_are_those_of_one():
    whole = beta_shares(AT.draw("test", 8), 0.5, 3)
    halves = [beta_shares(At(2, 10, seed=5, rank=rank, world=2).draw("test", 4), 0.5, 3) for rank in range(2)]
    assert torch.equal(torch.cat(halves), whole)


def test_alpha_zero_mixes_nothing_and_a_negative_one_is_refused():
    assert torch.equal(beta_shares(AT.draw("test", 4), 0.0, 2), torch.ones(4, 2))
    with pytest.raises(UsageError, match="alpha"):
        beta_shares(AT.draw("test", 4), -1.0)


def test_mixup_with_share_one_is_the_identity_and_with_half_symmetric():
    values, partner = torch.rand(4, 2, 3), torch.tensor([1, 0, 3, 2])
    assert torch.equal(mixup(values, torch.ones(4), partner), values)
    half = mixup(values, torch.full((4,), 0.5), partner)
    torch.testing.assert_close(half, half[partner])


def test_rectangles_are_of_the_sides_that_the_paper_gives_them_around_any_pixel():
    shares = torch.cat([torch.tensor([1.0, 0.0]), torch.rand(4000)])
    outside, lines, columns = rectangles(AT.draw("test", len(shares)), shares, 9, 20)
    sides = (1 - shares.double()).sqrt()[:, None] * torch.tensor([9, 20])
    met = torch.stack([lines.sum(1), columns.sum(1)], dim=1)
    assert (met <= sides + 1e-5).all()  # whole pixels, and cut off at the border
    whole = (met == (sides + 1e-6).floor()).all(dim=1)
    assert 0.2 < whole.float().mean() < 0.6
    assert outside[0] == 1
    assert not met[0].any()
    assert met[1].tolist() != [0, 0]
    assert torch.equal(outside, 1 - met.prod(dim=1) / 180)
    inside = lines[shares > 0.95, :].float().mean(dim=0)
    assert inside.min() > 0
    torch.testing.assert_close(inside, inside.flip(0), atol=0.05, rtol=0)


def test_cutmix_pastes_the_partners_pixels_and_a_share_of_one_none():
    batch = _batch(MixMatch(net("tiny_4", CLASSES, STYLE)))
    images = torch.arange(16.0).view(16, 1, 1, 1).expand(16, 1, 8, 8)  # each of its number
    mixed = mixing(batch, AT, 0.75, "cutmix")
    found = mixed.images(images)
    for n in range(16):
        assert torch.equal(found[n], _pasted(images[n], images[mixed.partner[n]], mixed.pasted[n], mixed.share[n]))
    assert mixed.share.min() >= 0.5
    assert (mixed.share < 1).sum() > 8
    assert torch.equal(Mixture(mixed.share, mixed.partner).targets(images), mixed.targets(images))
    assert torch.equal(mixing(batch, AT, 0.0, "cutmix").images(images), images)


@pytest.mark.parametrize("build", [MixMatch, ReMixMatch, ICT])
def test_another_way_to_mix_is_refused(build):
    with pytest.raises(UsageError, match=r"unknown mix 'cutmx'\. Did you mean cutmix"):
        build(net("tiny_4", CLASSES, STYLE), mix="cutmx")


@pytest.mark.parametrize("world", [1, 2])
def test_partners_are_a_permutation_of_the_ranks_own_rows(world):
    for rank in range(world):
        order = permutation(At(2, 10, rank=rank, world=world).draw("test", 16))
        assert sorted(order.tolist()) == list(range(16))
        assert order.tolist() != list(range(16))


@pytest.mark.parametrize("mix", ["mixup", "cutmix"])
def test_each_row_has_a_share_of_its_own_and_images_keep_theirs_on_two_ranks(mix):
    method = _method(MixMatch)
    batch = _batch(method)
    share = mixing(batch, AT, 0.75, mix).share
    assert len(set(share.tolist())) == 4 + 2 * 6 or mix == "cutmix"
    parts = [mixing(part, At(2, 10, seed=5, rank=rank, world=2), 0.75, mix).share
             for rank, part in enumerate(batch.chunk(2))]
    labeled = torch.cat([part[:2] for part in parts])
    views = [torch.cat([part[2 + 3 * k : 5 + 3 * k] for part in parts]) for k in range(2)]
    assert torch.equal(torch.cat([labeled, *views]), share)


def test_align_against_its_equation_and_where_it_changes_nothing():
    p = torch.rand(5, 3, dtype=torch.float64).softmax(1)
    target, current = torch.tensor([0.5, 0.3, 0.2]).double(), torch.tensor([0.2, 0.0, 0.8]).double()
    for row, aligned in zip(p.tolist(), losses.align(p, target, current).tolist(), strict=True):
        weighted = [value * (t + 1e-6) / (c + 1e-6)
                    for value, t, c in zip(row, target.tolist(), current.tolist(), strict=True)]
        assert aligned == pytest.approx([w / sum(weighted) for w in weighted], rel=1e-12)
    torch.testing.assert_close(losses.align(p, target, target), p)


def test_rotations_are_those_of_numpy_and_undo_each_other():
    images = torch.rand(3, 2, 5, 5)
    for turns, rotated in enumerate(all_rotations(images).split(3)):
        np.testing.assert_array_equal(rotated.numpy(), np.rot90(images.numpy(), turns, axes=(2, 3)))
        assert torch.equal(rotated.rot90(-turns, (2, 3)), images)


def test_some_rotation_turns_each_image_once_and_says_how():
    images = torch.rand(6, 1, 4, 4)
    rotated, turns = some_rotation(images)
    back = torch.stack([image.rot90(-int(r), (1, 2)) for image, r in zip(rotated, turns, strict=True)])
    assert turns.tolist() == [0, 0, 1, 1, 2, 3]
    assert torch.equal(back, images[[0, 4, 1, 5, 2, 3]])


@pytest.mark.parametrize("rotate", [all_rotations, some_rotation])
def test_rotations_refuse_images_that_are_not_square(rotate):
    with pytest.raises(UsageError, match="square"):
        rotate(torch.rand(2, 1, 4, 5))


def test_the_rotation_heads_first_weights_come_from_the_seed_and_leave_global_randomness_alone():
    state = torch.random.get_rng_state()
    assert torch.equal(rotation_head(6).weight, rotation_head(6).weight)
    assert not torch.equal(rotation_head(6).weight, rotation_head(6, seed=1).weight)
    assert torch.equal(torch.random.get_rng_state(), state)


# All methods


@pytest.mark.parametrize("build", [partial(MixMatch, augmentations=1, alpha=0.0), partial(MixMatch, augmentations=3),
                                   partial(MixMatch, mix="cutmix"), partial(ICT, mix="cutmix"),
                                   partial(ReMixMatch, augmentations=1), partial(SimMatch, bank=8, dim=4)])
def test_contract_with_other_arguments(build):
    check_method(build, compile=False)


@pytest.mark.parametrize("method", METHODS)
def test_every_parameter_learns_under_autocast(method):
    """A pass without gradient must not leave its copies of the weights to the pass that has one."""
    method = method(net("tiny_4", classes=CLASSES, style=STYLE)).train()
    batch = _batch(method)
    batch = Batch(*(Rows({k: v.float() for k, v in rows.views.items()}, rows.targets, rows.truth, rows.indices)
                    for rows in (batch.labeled, batch.unlabeled)))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = method(batch, AT)
    loss.total.backward()
    assert all(p.grad is not None for p in method.parameters() if p.requires_grad)


@pytest.mark.parametrize("method", METHODS)
def test_batch_statistics_move_once_per_step(method):
    method = _method(method)
    norm = next(m for m in method.net.modules() if isinstance(m, nn.BatchNorm2d))
    before = norm.running_mean.clone()
    method(_batch(method), AT)
    assert norm.num_batches_tracked == 1
    assert not torch.equal(norm.running_mean, before)


# MixMatch


@pytest.mark.parametrize("arguments", [{}, {"augmentations": 1}, {"temperature": 1.0, "alpha": 0.0}, {"weight": 3.0},
                                       {"mix": "cutmix"}])
def test_mixmatch_against_its_equations(arguments):
    method = _method(MixMatch, **arguments)
    batch = _batch(method)
    x, views = batch.labeled, list(batch.unlabeled.views.values())
    temperature, alpha = arguments.get("temperature", 0.5), arguments.get("alpha", 0.75)
    guesses = []
    rows = _logits(method.net, torch.cat(views))
    for b in range(6):
        p = [softmax(rows[6 * k + b]) for k in range(len(views))]
        guesses.append(_sharpened([_mean(column) for column in zip(*p, strict=True)], temperature))
    targets = [_one_hot(int(y)) for y in x.targets] + guesses * len(views)
    images, labels = _mixed_rows(batch, torch.cat([x["weak"], *views]), targets, AT, alpha, method.mix)
    rows = _logits(method.net, images)

    loss = method(batch, AT)
    labeled = _mean(_cross_entropy(t, z) for t, z in zip(labels[:4], rows[:4], strict=True))
    unlabeled = _mean((p - q) ** 2 for target, row in zip(labels[4:], rows[4:], strict=True)
                      for q, p in zip(target, softmax(row), strict=True))
    assert loss.terms["labeled"].item() == pytest.approx(labeled, rel=1e-9)
    assert loss.terms["unlabeled"].item() == pytest.approx(arguments.get("weight", 75.0) * unlabeled, rel=1e-9)


def test_mixmatch_that_neither_averages_nor_sharpens_nor_mixes_is_cross_entropy():
    """K = 1, T = 1, s = 1, and rows that do not meet in BatchNorm: the guess is the prediction itself."""
    method = _method(MixMatch, augmentations=1, temperature=1.0, alpha=0.0, weight=1.0).eval()
    batch = _batch(method)
    loss = method(batch, AT)
    rows = _logits(method.net, batch.labeled["weak"])
    expected = _mean(_cross_entropy(_one_hot(int(y)), z) for y, z in zip(batch.labeled.targets, rows, strict=True))
    assert loss.terms["labeled"].item() == pytest.approx(expected, rel=1e-12)
    assert loss.terms["unlabeled"].item() < 1e-28
    assert method.train()(batch, AT).terms["unlabeled"] > 1e-12  # there the two passes normalize by other rows


@pytest.mark.parametrize("change", [{"augmentations": 2}, {"temperature": 0.5}, {"alpha": 0.75}])
def test_each_part_of_mixmatch_alone_makes_the_unlabeled_term_positive(change):
    plain = {"augmentations": 1, "temperature": 1.0, "alpha": 0.0, "weight": 1.0}
    method = _method(MixMatch, **(plain | change)).eval()
    assert method(_batch(method), AT).terms["unlabeled"] > 1e-8


def test_mixmatch_guesses_average_probabilities_before_they_sharpen():
    method = _method(MixMatch).eval()
    u = _batch(method).unlabeled
    with torch.no_grad():
        p = sum(method.net(view).logits.softmax(1) for view in u.views.values()) / 2
    torch.testing.assert_close(method.guess(u, AT), p**2 / (p**2).sum(1, keepdim=True))


def test_mixmatch_guesses_carry_no_gradient():
    """Without mixing, the unlabeled gradient is that of the squared error to constants."""
    method = _method(MixMatch, alpha=0.0, weight=1.0).eval()
    batch = _batch(method)
    method(batch, AT).terms["unlabeled"].backward()
    found = method.net.head.weight.grad.clone()
    guess = method.guess(batch.unlabeled, AT)
    assert not guess.requires_grad
    method.zero_grad()
    logits = method.net(torch.cat(list(batch.unlabeled.views.values()))).logits
    losses.squared_error(logits.softmax(1), torch.cat([guess, guess])).backward()
    torch.testing.assert_close(found, method.net.head.weight.grad)


def test_mixmatch_passes_all_mixed_rows_together():
    method = _method(MixMatch)
    norm = next(m for m in method.net.modules() if isinstance(m, nn.BatchNorm2d))
    seen = []
    norm.register_forward_hook(lambda module, inputs, output: seen.append((len(inputs[0]), module.track_running_stats)))
    method(_batch(method), AT)
    assert seen == [(2 * 6, False), (4 + 2 * 6, True)]


def test_mixmatch_ramps_its_weight_over_the_first_64th():
    method = _method(MixMatch)
    assert [At(step, 6400).value(method.weight) for step in (0, 50, 100, 6399)] == [0.0, 37.5, 75.0, 75.0]


# S4L


@pytest.mark.parametrize("weight", [1.0, 0.3])
def test_s4l_against_its_equations(weight):
    method = _method(S4L, weight=weight)
    batch = _batch(method)
    images, turns = [], []
    for rows in (batch.labeled, batch.unlabeled):
        for r in range(4):
            images += [image.rot90(r, (1, 2)) for image in rows["weak"]]
            turns += [r] * len(rows)
    with torch.no_grad():
        output = copy.deepcopy(method.net)(torch.stack(images))
        rotations = method.rotation_head(output.features).tolist()
    per_row = [_cross_entropy([float(r == c) for c in range(4)], z) for r, z in zip(turns, rotations, strict=True)]
    rotation = (_mean(per_row[:16]) + _mean(per_row[16:])) / 2
    labeled = _mean(_cross_entropy(_one_hot(int(batch.labeled.targets[n % 4])), output.logits[n].tolist())
                    for n in range(16))
    loss = method(batch, AT)
    assert loss.terms["labeled"].item() == pytest.approx(labeled, rel=1e-9)
    assert loss.terms["rotation"].item() == pytest.approx(weight * rotation, rel=1e-9)


def test_s4l_without_the_head_learning_anything_has_log_4():
    method = _method(S4L)
    nn.init.zeros_(method.rotation_head.weight)
    assert method(_batch(method), AT).terms["rotation"].item() == pytest.approx(math.log(4))


def test_s4l_with_weight_zero_and_images_that_turning_keeps_is_supervised():
    method = _method(S4L, weight=0.0)
    x = Rows({"weak": torch.rand(4, 1, 1, 1, dtype=torch.float64).expand(4, 1, 8, 8)}, *[torch.arange(4) % CLASSES] * 3)
    method.eval()
    loss = method(Batch(x, _batch(method).unlabeled), AT)
    rows = _logits(method.net, x["weak"])
    expected = _mean(_cross_entropy(_one_hot(int(y)), z) for y, z in zip(x.targets, rows, strict=True))
    assert loss.total.item() == pytest.approx(expected, rel=1e-6)


def test_s4l_predicts_the_image_unturned():
    method = _method(S4L)
    image = _batch(method).labeled["weak"]
    with torch.no_grad():
        assert torch.equal(method.predictor()(image).logits, method.ema.net(image).logits)


# ReMixMatch


def _set_state(method):
    """A state in which alignment shows."""
    method.data.copy_(torch.tensor([0.5, 0.3, 0.2]))
    method.model.copy_(torch.tensor([0.2, 0.3, 0.5]).expand(128, 3))


@pytest.mark.parametrize("arguments", [{}, {"augmentations": 2, "temperature": 1.0, "alpha": 0.3},
                                       {"mixed": 0.2, "anchored": 0.4, "rotated": 3.0}, {"mix": "cutmix"}])
def test_remixmatch_against_its_equations(arguments):
    method = _method(ReMixMatch, **arguments)
    _set_state(method)
    data, model = method.data.tolist(), method.model.mean(0).tolist()
    batch = _batch(method)
    x, u = batch.labeled, batch.unlabeled
    guesses = []
    for row in _logits(method.net, u["weak"]):
        p = [v * (d + 1e-6) / (m + 1e-6) for v, d, m in zip(softmax(row), data, model, strict=True)]
        guesses.append(_sharpened([v / sum(p) for v in p], arguments.get("temperature", 0.5)))
    count = arguments.get("augmentations", 4)
    views = [u["weak"], *(u[f"strong_{k + 1}"] for k in range(count))]
    targets = [_one_hot(int(y)) for y in x.targets] + guesses * (count + 1)
    images, labels = _mixed_rows(batch, torch.cat([x["strong"], *views]), targets, AT, arguments.get("alpha", 0.75),
                                 method.mix)
    mixed = [_cross_entropy(t, z) for t, z in zip(labels, _logits(method.net, images), strict=True)]
    anchored = [_cross_entropy(q, z) for q, z in zip(guesses, _logits(method.net, u["strong_1"]), strict=True)]
    turned = torch.stack([u["strong_1"][b].rot90(b % 4, (1, 2)) for b in range(6)])
    with torch.no_grad():
        rows = method.rotation_head(copy.deepcopy(method.net)(turned).features).tolist()
    rotation = [_cross_entropy([float(b % 4 == c) for c in range(4)], z) for b, z in enumerate(rows)]

    terms = method(batch, AT).terms
    assert terms["labeled"].item() == pytest.approx(_mean(mixed[:4]), rel=1e-9)
    assert terms["mixed"].item() == pytest.approx(arguments.get("mixed", 1.5) * _mean(mixed[4:]), rel=1e-9)
    assert terms["anchored"].item() == pytest.approx(arguments.get("anchored", 0.5) * _mean(anchored), rel=1e-9)
    assert terms["rotation"].item() == pytest.approx(arguments.get("rotated", 0.5) * _mean(rotation), rel=1e-9)


def test_remixmatch_guesses_carry_no_gradient():
    method = _method(ReMixMatch, alpha=0.0).eval()
    batch = _batch(method)
    weak = batch.unlabeled["weak"].requires_grad_()
    method(batch, AT).terms["anchored"].backward()
    assert weak.grad is None


def test_remixmatch_state_moves_once_per_step_by_the_mean_of_its_micro_batches():
    whole, parts = _method(ReMixMatch).eval(), _method(ReMixMatch).eval()
    batch = _batch(whole)
    before = whole.model.clone()
    whole(batch, AT)
    assert torch.equal(whole.model, before)
    whole.after_step(AT)
    for rank, part in enumerate(batch.chunk(2)):
        parts(part, At(2, 10, seed=5, rank=rank, world=2))
    parts.after_step(AT)
    torch.testing.assert_close(whole.model, parts.model)
    torch.testing.assert_close(whole.data, parts.data)

    with torch.no_grad():
        expected = whole.net(batch.unlabeled["weak"]).logits.softmax(1).mean(0)
    torch.testing.assert_close(whole.model[-1], expected)
    assert torch.equal(whole.model[:-1], before[1:])
    frequencies = torch.bincount(batch.labeled.targets, minlength=CLASSES) / 4
    torch.testing.assert_close(whole.data, 0.999 / CLASSES + 0.001 * frequencies.double())
    assert whole.data.sum().item() == pytest.approx(1)


def test_remixmatch_state_survives_a_state_dict():
    method, other = _method(ReMixMatch), _method(ReMixMatch, seed=1)
    _set_state(method)
    other.load_state_dict(copy.deepcopy(method.state_dict()))
    assert torch.equal(other(_batch(other), AT).total, method(_batch(method), AT).total)
    assert torch.equal(other.model, method.model)


def test_remixmatch_counts_a_batch_once_that_an_update_rule_evaluates_twice():
    once, twice = _method(ReMixMatch).eval(), _method(ReMixMatch).eval()
    for method, calls in ((once, 1), (twice, 2)):
        for _ in range(calls):
            method(_batch(method), AT)
        method.after_step(AT)
    assert torch.equal(once.model, twice.model)
    assert torch.equal(once.data, twice.data)


# SimMatch


def _full(**arguments):
    """SimMatch whose bank is full at AT, in a state in which alignment shows."""
    method = _method(SimMatch, **({"bank": 8, "dim": 4, "threshold": 0.4} | arguments))
    method.bank_labels.copy_(torch.tensor([0, 1, 2, 0, 1, 2, 0, 0]))
    method.model.copy_(torch.tensor([0.3, 0.3, 0.4]).expand(256, 3))
    return method


def _unit(vector):
    length = math.sqrt(sum(v * v for v in vector))
    return [v / length for v in vector]


@pytest.mark.parametrize("arguments", [{}, {"temperature": 0.5, "smooth": 0.3}, {"weight": 0.2, "instance": 3.0}])
def test_simmatch_against_its_equations(arguments):
    method = _full(**arguments)
    smooth, temperature = arguments.get("smooth", 0.9), arguments.get("temperature", 0.1)
    batch = _batch(method)
    x, u = batch.labeled, batch.unlabeled
    with torch.no_grad():
        output = copy.deepcopy(method.net)(torch.cat([x["weak"], u["weak"], u["strong"]]))
        z = [_unit(row) for row in method.projector(output.features).tolist()]
    logits, bank, model = output.logits.tolist(), method.bank.tolist(), method.model.mean(0).tolist()
    labels = method.bank_labels.tolist()

    def similarity(row):
        return softmax([sum(a * b for a, b in zip(z[row], other, strict=True)) / temperature for other in bank])

    unlabeled, instance, kept = [], [], 0
    for b in range(6):
        weak, strong = 4 + b, 10 + b
        a = [p * (1 / 3 + 1e-6) / (m + 1e-6) for p, m in zip(softmax(logits[weak]), model, strict=True)]
        a = [value / sum(a) for value in a]
        s = similarity(weak)
        w = [value * a[label] for value, label in zip(s, labels, strict=True)]
        w = [value / sum(w) for value in w]
        q = [smooth * a[c] + (1 - smooth) * sum(v for v, y in zip(s, labels, strict=True) if y == c) for c in range(3)]
        kept += max(q) >= 0.4
        unlabeled.append(_cross_entropy(q, logits[strong]) * (max(q) >= 0.4))
        instance.append(-sum(t * math.log(v) for t, v in zip(w, similarity(strong), strict=True)))
    labeled = _mean(_cross_entropy(_one_hot(int(y)), z) for y, z in zip(x.targets, logits[:4], strict=True))

    loss = method(batch, AT)
    assert loss.terms["labeled"].item() == pytest.approx(labeled, rel=1e-9)
    assert loss.terms["unlabeled"].item() == pytest.approx(arguments.get("weight", 1.0) * _mean(unlabeled), rel=1e-9)
    assert loss.terms["instance"].item() == pytest.approx(arguments.get("instance", 1.0) * _mean(instance), rel=1e-9)
    assert loss.logs["mask_rate"].item() == pytest.approx(kept / 6)


def test_simmatch_keeps_some_rows_at_the_threshold_above():
    """Else the reference would not see the mask at work."""
    rates = [_full(threshold=t)(_batch(_full()), AT).logs["mask_rate"].item() for t in (0.0, 0.4, 0.5, 0.6, 1.0)]
    assert rates[0] == 1
    assert rates[-1] == 0
    assert any(0 < rate < 1 for rate in rates)


def test_calibration_is_idle_where_one_of_the_two_says_nothing():
    similar, p = torch.rand(5, 6).softmax(1), torch.rand(5, 3).softmax(1)
    labels = torch.tensor([0, 1, 2, 0, 1, 2])
    neighbors, _ = calibrate(similar, torch.full((5, 3), 1 / 3), labels, 0.9)
    torch.testing.assert_close(neighbors, similar)  # no class is preferred: unfolding changes nothing
    _, q = calibrate(torch.full((5, 6), 1 / 6), p, labels, 0.0)
    torch.testing.assert_close(q, torch.full((5, 3), 1 / 3))  # no neighbor is, and each class has as many
    _, q = calibrate(similar, p, labels, 1.0)
    assert torch.equal(q, p)


def test_calibrated_rows_are_distributions_and_survive_a_bank_without_the_predicted_class():
    similar, p = torch.rand(5, 6).softmax(1), torch.rand(5, 3).softmax(1)
    for result in calibrate(similar, p, torch.tensor([0, 1, 2, 0, 0, 0]), 0.7):
        torch.testing.assert_close(result.sum(1), torch.ones(5))
    neighbors, q = calibrate(similar, torch.tensor([[0.0, 0.0, 1.0]]).expand(5, 3), torch.zeros(6).long(), 0.7)
    assert torch.equal(neighbors, torch.zeros(5, 6))
    assert q.isfinite().all()


def test_simmatch_is_aligned_soft_fixmatch_until_its_bank_is_full():
    method = _full(bank=8, threshold=0.0)
    batch = _batch(method)
    early, late = method(batch, At(1, 10)), method(batch, At(2, 10))  # 4 labeled rows per step
    assert early.terms["instance"] == 0
    assert late.terms["instance"] > 0
    logits = copy.deepcopy(method.net)(torch.cat([batch.labeled["weak"], *batch.unlabeled.views.values()])).logits
    a = losses.align(logits[4:10].softmax(1), torch.full((3,), 1 / 3).double(), method.model.mean(0))
    expected = _mean(_cross_entropy(q, z) for q, z in zip(a.tolist(), logits[10:].tolist(), strict=True))
    assert early.terms["unlabeled"].item() == pytest.approx(expected, rel=1e-9)


def test_simmatch_aligns_from_the_second_step_on_by_all_steps_before():
    method = _full(threshold=0.0).eval()
    batch = _batch(method)
    method.model.zero_()
    logits = copy.deepcopy(method.net)(torch.cat([batch.labeled["weak"], *batch.unlabeled.views.values()])).logits
    p, uniform = logits[4:10].softmax(1), torch.full((3,), 1 / 3).double()
    for current in (uniform, p.mean(dim=0)):
        aligned = losses.align(p, uniform, current)
        expected = _mean(_cross_entropy(q, z) for q, z in zip(aligned.tolist(), logits[10:].tolist(), strict=True))
        assert method(batch, At(0, 10)).terms["unlabeled"].item() == pytest.approx(expected, rel=1e-5)
        method.after_step(At(0, 10))
    assert not _method(SimMatch).model.any()


def test_simmatch_targets_carry_no_gradient():
    method = _full(threshold=0.0).eval()
    batch = _batch(method)
    weak = batch.unlabeled["weak"].requires_grad_()
    loss = method(batch, AT)
    (loss.terms["unlabeled"] + loss.terms["instance"]).backward()
    assert weak.grad is None or not weak.grad.any()
    assert method.projector[0].weight.grad.any()


def test_simmatch_bank_takes_the_newest_rows_first_from_all_micro_batches():
    whole, parts = _full().eval(), _full().eval()
    batch, old = _batch(whole), whole.bank.clone()
    whole(batch, AT)
    whole(batch, AT)
    with torch.no_grad():
        expected = whole._embed(whole.net(batch.labeled["weak"]).features)
    whole.after_step(AT)
    for rank, part in enumerate(batch.chunk(2)):
        parts(part, At(2, 10, seed=5, rank=rank, world=2))
    parts.after_step(AT)
    torch.testing.assert_close(whole.bank, torch.cat([expected, old[:4]]))
    assert whole.bank_labels.tolist() == [0, 1, 2, 0, 0, 1, 2, 0]
    torch.testing.assert_close(parts.bank, whole.bank)
    torch.testing.assert_close(parts.model, whole.model)
    assert torch.equal(parts.bank_labels, whole.bank_labels)
    torch.testing.assert_close(whole.bank.norm(dim=1), torch.ones(8).double())


def test_simmatch_state_survives_a_state_dict():
    method, other = _full(), _method(SimMatch, seed=1, bank=8, dim=4, threshold=0.4)
    other.load_state_dict(copy.deepcopy(method.state_dict()))
    assert torch.equal(other(_batch(other), AT).total, method(_batch(method), AT).total)
