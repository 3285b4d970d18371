"""Distillation by features: layers and adapters, contract, float64 references by loops, invariances."""

import copy
import itertools
import math
from dataclasses import replace

import pytest
import torch
from small_runs import with_teacher
from test_distillation_logits import AT, BATCH, STYLE, _method, _teacher
from torch import nn

from ssl_lab.batch import Batch, Style
from ssl_lab.errors import UsageError
from ssl_lab.methods.distillation import (
    CC,
    NST,
    PKT,
    RKD,
    SEED,
    SP,
    VID,
    AttentionTransfer,
    FitNet,
    Teacher,
)
from ssl_lab.methods.distillation.at import at_loss, attention
from ssl_lab.methods.distillation.cc import cc_loss
from ssl_lab.methods.distillation.hooks import channels, pair_layers, same_size, see, stages
from ssl_lab.methods.distillation.nst import nst_loss
from ssl_lab.methods.distillation.pkt import pkt_loss
from ssl_lab.methods.distillation.rkd import angle_loss, cosines, distance_loss, distances
from ssl_lab.methods.distillation.sp import sp_loss
from ssl_lab.methods.distillation.vid import gaussian_nll
from ssl_lab.nets import net
from ssl_lab.testing import check_method

POOLED = [CC, RKD, PKT]
MAPS = [FitNet, AttentionTransfer, SP, VID, NST]


def _map(channels, height=3, width=2, rows=4, seed=0):
    draw = torch.Generator().manual_seed(seed)
    return torch.randn(rows, channels, height, width, generator=draw, dtype=torch.float64)


def _features(rows, dim, seed):
    return torch.randn(rows, dim, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def _rotated(features, seed=7):
    dim = features.shape[1]
    return features @ torch.linalg.qr(_features(dim, dim, seed)).Q


# --- Without labels ------------------------------------------------------------------------------


@pytest.mark.parametrize("method", [CC, SEED])
def test_without_labels_features_are_learned_and_the_head_stays(method):
    check_method(with_teacher(method, labeled=0.0), compile=False)
    made = _method(method, _teacher(), labeled=0.0)
    assert not made.classifies
    assert not made.views.labeled
    loss = made(BATCH, AT)
    assert list(loss.terms) == ["distilled"]
    assert not loss.logs  # of a head that learns nothing
    loss.total.backward()
    assert made.net.head.weight.grad is None
    others = net("tiny_6", classes=7, style=STYLE)
    assert not method(net("tiny_4", classes=4, style=STYLE), others, labeled=0.0).classifies  # of any classes
    with pytest.raises(UsageError, match="tells 7 classes apart, the student 4"):
        method(net("tiny_4", classes=4, style=STYLE), others)


# --- Layers --------------------------------------------------------------------------------------


def test_stages_are_the_last_layers_of_each_resolution():
    assert [len(stages(each)) for each in (_teacher(), net("wrn_10_1", style=STYLE))] == [3, 3]
    teacher = _teacher()
    assert stages(teacher)[:2] == ("blocks.0", "blocks.1")
    assert channels(teacher, stages(teacher)) == [6, 12, 24]
    deep = net("wrn_10_1", style=Style())
    deep.backbone.blocks.append(nn.Conv2d(64, 8, 3, 2))
    deep.backbone.norm = nn.BatchNorm2d(8, eps=1e-3)
    mine, theirs = pair_layers(teacher, deep, None, None)
    assert mine == stages(teacher)
    assert len(stages(deep)) == 4
    assert theirs == stages(deep)[-3:]


def test_what_is_pooled_is_no_stage():
    pooled = net("tiny_4", style=STYLE)
    pooled.backbone = nn.Sequential(pooled.backbone.stem, pooled.backbone.blocks, nn.AdaptiveAvgPool2d(1))
    assert stages(pooled) == ("1.0", "1.1", "1")


def test_layers_are_named_by_path():
    student, teacher = _teacher("tiny_4"), _teacher()
    assert pair_layers(student, teacher, "blocks.0,blocks.1", None) == (("blocks.0", "blocks.1"),) * 2
    assert pair_layers(student, teacher, ["stem"], ("blocks.2",)) == (("stem",), ("blocks.2",))
    with pytest.raises(UsageError, match=r"1 layers of the student .* and 2 of the teacher"):
        pair_layers(student, teacher, "stem", "stem,blocks.0")
    with pytest.raises(UsageError, match=r"unknown layer 'blocks.7'. Did you mean blocks"):
        FitNet(student, teacher, layers="blocks.7")

class Flat(nn.Module):
    def forward(self, x):
        return x.flatten(1)[:, :8]


def test_layers_without_maps_are_refused():
    flat = net("tiny_4", style=STYLE)
    flat.backbone = nn.Sequential(Flat())
    with pytest.raises(UsageError, match="has no maps"):
        stages(flat)
    with pytest.raises(UsageError, match=r"gives \(8,\) per image"):
        channels(flat, ["0"])


def test_hooked_maps_are_those_before_an_activation_that_works_in_place():
    """The stem's BatchNorm is followed by such a ReLU: without a copy its map would have no negative value."""
    teacher = _teacher().eval()
    images = BATCH.labeled["view"].float()
    seen = see(teacher, images, ("stem.1", "stem.2"))
    stem = teacher.backbone.stem
    expected = stem[1](stem[0]((images - teacher.mean) / teacher.std))
    assert (seen.maps[0] < 0).any()
    assert torch.allclose(seen.maps[0], expected)
    assert torch.equal(seen.maps[1], expected.relu())
    assert torch.equal(seen.logits, teacher(images).logits)
    assert not any(module._forward_hooks for module in teacher.modules())


def test_maps_carry_gradient():
    student = _teacher("tiny_4")
    see(student, BATCH.labeled["view"].float(), ("blocks.1",)).maps[0].sum().backward()
    assert student.backbone.stem[0].weight.grad.any()
    assert student.backbone.blocks[2].branch[0].weight.grad is None


def test_a_compiled_net_gives_its_maps():
    torch._dynamo.reset()
    student = _teacher("tiny_4").eval()
    images = BATCH.labeled["view"].float()
    plain = see(student, images, ("blocks.0",))
    student.compile(backend="eager", fullgraph=True)
    student(images)
    assert torch.equal(see(student, images, ("blocks.0",)).maps[0], plain.maps[0])


def test_same_size_averages_the_larger_map():
    large, small = same_size(_map(2, 4, 6), _map(3, 2, 3))
    assert large.shape[2:] == small.shape[2:] == (2, 3)
    assert large[0, 0, 0, 0].item() == pytest.approx(_map(2, 4, 6)[0, 0, :2, :2].mean().item())
    assert torch.equal(small, _map(3, 2, 3))


# --- Every method --------------------------------------------------------------------------------


@pytest.mark.parametrize("method", [*POOLED, *MAPS])
def test_contract(method):
    check_method(with_teacher(method), compile=method is VID)


@pytest.mark.parametrize("method", [*POOLED, *MAPS])
def test_gradients_go_to_student_and_adapters_only(method):
    made = _method(method)
    made(BATCH, AT).terms["distilled"].backward()
    reached = {name.split(".")[0] for name, p in made.named_parameters() if p.grad is not None and p.grad.any()}
    adapters = {"regressors"} if method is FitNet else {"guesses"} if method is VID else set()
    assert reached == {"net"} | adapters
    learning = {name.split(".")[0] for name, p in made.named_parameters() if p.requires_grad}
    assert learning == {"net"} | adapters


@pytest.mark.parametrize("method", [*POOLED, *MAPS])
def test_under_autocast_the_nets_are_rounded_and_the_loss_is_not(method):
    made, given = _method(method).float(), []
    distance = made.distance

    def watched(*arguments):
        given.append(arguments)
        return distance(*arguments)

    made.distance = watched
    batch = Batch(*(replace(rows, views={"view": rows["view"].float()}) for rows in (BATCH.labeled, BATCH.unlabeled)))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        term = made(batch, AT).terms["distilled"]
    assert torch.equal(term, made.weight * distance(*given[0]))
    student = given[0][0]
    assert student.features.dtype == torch.float32
    assert torch.equal(student.logits, student.logits.bfloat16().float())


def test_adapters_start_the_same_and_leave_the_global_generator_alone():
    torch.manual_seed(1)
    first = _method(VID).state_dict()
    after = torch.rand(1)
    torch.manual_seed(2)
    assert all(torch.equal(value, first[name]) for name, value in _method(VID).state_dict().items())
    torch.manual_seed(1)
    assert torch.equal(torch.rand(1), after)


@pytest.mark.parametrize("method", [*POOLED, *MAPS])
def test_an_ensemble_has_no_features(method):
    with pytest.raises(UsageError, match="a teacher of 2 nets has none of its own"):
        _method(method, teacher=Teacher(_teacher(), _teacher(seed=3)))


def test_features_may_come_from_a_teacher_whose_head_is_fresh():
    loss = _method(PKT, teacher=Teacher(_teacher(), classifies=False))(BATCH, AT)
    assert loss.total.isfinite()
    assert "agreement" not in loss.logs


def _maps_of(method):
    """What the student's and the teacher's layers give for the whole batch."""
    method = copy.deepcopy(method)
    images = torch.cat([BATCH.labeled["view"], BATCH.unlabeled["view"]])
    with torch.no_grad():
        return see(method.net, images, method.layers).maps, see(method.teacher.net, images, method.teacher_layers).maps


@pytest.mark.parametrize(("method", "loss", "layers"),
                         [(AttentionTransfer, at_loss, 3), (SP, sp_loss, 1), (NST, nst_loss, 3)])
def test_layers_are_summed_over_all_rows(method, loss, layers):
    made = _method(method, weight=2.0)
    student, teacher = _maps_of(made)
    assert len(student) == layers
    expected = 2.0 * sum(loss(mine, theirs).item() for mine, theirs in zip(student, teacher, strict=True))
    assert made(BATCH, AT).terms["distilled"].item() == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize(("method", "loss"), [(CC, cc_loss), (PKT, pkt_loss)])
def test_pooled_features_of_all_rows(method, loss):
    made = _method(method, weight=2.0)
    copied = copy.deepcopy(made)
    images = torch.cat([BATCH.labeled["view"], BATCH.unlabeled["view"]])
    expected = 2.0 * loss(copied.net(images).features, copied.teacher.net(images).features).item()
    assert made(BATCH, AT).terms["distilled"].item() == pytest.approx(expected, rel=1e-9)


# --- FitNet --------------------------------------------------------------------------------------


def test_fitnet_is_the_mean_squared_error_of_the_regressed_middle_layer():
    made = _method(FitNet, weight=3.0)
    assert made.layers == ("blocks.1",)
    (student,), (teacher,) = _maps_of(made)
    weight, bias = made.regressors[0].weight[:, :, 0, 0], made.regressors[0].bias
    total = 0.0
    for n, i, j in itertools.product(range(12), *map(range, student.shape[2:])):
        guess = weight @ student[n, :, i, j] + bias
        total += sum((a - b) ** 2 for a, b in zip(guess.tolist(), teacher[n, :, i, j].tolist(), strict=True))
    assert made(BATCH, AT).terms["distilled"].item() == pytest.approx(3.0 * total / teacher.numel(), rel=1e-9)


# --- Attention transfer --------------------------------------------------------------------------


def _slow_attention(maps):
    q = [sum(channel.flatten()[place].item() ** 2 for channel in maps) for place in range(maps[0].numel())]
    length = math.sqrt(sum(value**2 for value in q))
    return [value / length for value in q]


@pytest.mark.parametrize("mode", ["code", "paper"])
def test_attention_transfer(mode):
    student, teacher = _map(3, seed=1), _map(5, seed=2)
    errors = [[(a - b) ** 2 for a, b in zip(_slow_attention(s), _slow_attention(t), strict=True)]
              for s, t in zip(student, teacher, strict=True)]
    expected = (sum(math.sqrt(sum(row)) for row in errors) / (2 * len(errors)) if mode == "paper"
                else sum(map(sum, errors)) / (len(errors) * len(errors[0])))
    assert at_loss(student, teacher, mode).item() == pytest.approx(expected, rel=1e-9)


def test_attention_ignores_scale_and_order_of_channels():
    maps = _map(4)
    assert torch.allclose(attention(-3 * maps[:, [2, 0, 3, 1]]), attention(maps))
    equal = maps.clone().requires_grad_()
    at_loss(equal, maps, "paper").backward()
    assert torch.isfinite(equal.grad).all()
    with pytest.raises(UsageError, match="unknown mode of attention transfer 'papers'"):
        _method(AttentionTransfer, mode="papers")


# --- SP, CC, PKT ---------------------------------------------------------------------------------


def _slow_sp(student, teacher):
    def rows(maps):
        flat = [image.flatten().tolist() for image in maps]
        gram = [[sum(a * b for a, b in zip(f, g, strict=True)) for g in flat] for f in flat]
        return [[value / math.hypot(*row) for value in row] for row in gram]

    pairs = zip(itertools.chain(*rows(student)), itertools.chain(*rows(teacher)), strict=True)
    return sum((a - b) ** 2 for a, b in pairs) / len(student) ** 2


def _slow_cc(student, teacher, gamma=0.4):
    def kernel(f, g):
        f, g = ([value / math.hypot(*row) for value in row] for row in (f, g))
        return math.exp(-gamma * math.dist(f, g) ** 2)

    n, s, t = len(student), student.tolist(), teacher.tolist()
    return sum((kernel(s[i], s[j]) - kernel(t[i], t[j])) ** 2 for i in range(n) for j in range(n)) / n**2


def _slow_pkt(student, teacher):
    def rows(features):
        unit = [[value / math.hypot(*row) for value in row] for row in features.tolist()]
        near = [[(1 + sum(a * b for a, b in zip(f, g, strict=True))) / 2 for g in unit] for f in unit]
        return [[value / sum(row) for value in row] for row in near]

    pairs = zip(itertools.chain(*rows(teacher)), itertools.chain(*rows(student)), strict=True)
    return sum(p * math.log(p / q) for p, q in pairs) / len(student) ** 2


@pytest.mark.parametrize(("loss", "slow", "rel"), [(sp_loss, _slow_sp, 1e-9), (cc_loss, _slow_cc, 1e-9),
                                                   (pkt_loss, _slow_pkt, 1e-3)])
def test_relations_of_a_batch(loss, slow, rel):
    """PKT differs from its equation by the 1e-7 under its logarithm."""
    student, teacher = _features(6, 3, 1), _features(6, 5, 2)
    assert loss(student, teacher).item() == pytest.approx(slow(student, teacher), rel=rel)
    assert slow(student, teacher) > 1e-4


def test_sp_takes_maps():
    assert sp_loss(_map(3, seed=1), _map(5, 2, 2, seed=2)).item() == pytest.approx(
        _slow_sp(_map(3, seed=1), _map(5, 2, 2, seed=2)), rel=1e-9)


@pytest.mark.parametrize("loss", [sp_loss, cc_loss, pkt_loss, distance_loss, angle_loss])
def test_relations_do_not_change_with_scale_and_rotation(loss):
    student, teacher = _features(6, 3, 1), _features(6, 5, 2)
    expected = loss(student, teacher).item()
    assert loss(0.3 * _rotated(student), 5 * _rotated(teacher)).item() == pytest.approx(expected, rel=1e-9)
    assert loss(2 * _rotated(teacher), teacher).item() == pytest.approx(0, abs=1e-12)
    assert expected > 1e-4


def test_the_kernel_of_cc_is_the_limit_of_the_papers_taylor_series():
    student, teacher = _features(6, 3, 1), _features(6, 5, 2)

    def series(features, order):
        cosine = torch.nn.functional.normalize(features) @ torch.nn.functional.normalize(features).T
        return sum(math.exp(-0.8) * 0.8**p / math.factorial(p) * cosine**p for p in range(order + 1))

    errors = [abs((series(student, order) - series(teacher, order)).square().mean().item()
                  - cc_loss(student, teacher).item()) for order in (2, 20)]
    assert errors[1] < 1e-12 < errors[0]


# --- RKD -----------------------------------------------------------------------------------------


def _huber(a, b):
    difference = abs(a - b)
    return difference**2 / 2 if difference < 1 else difference - 0.5


def _slow_distances(rows):
    apart = [math.dist(f, g) for f, g in itertools.permutations(rows, 2)]
    mean = sum(apart) / len(apart)
    return [math.dist(f, g) / mean for f in rows for g in rows]


def _slow_cosines(rows):
    def cosine(i, j, k):
        a, b = ([x - y for x, y in zip(rows[n], rows[j], strict=True)] for n in (i, k))
        lengths = math.hypot(*a) * math.hypot(*b)
        return sum(x * y for x, y in zip(a, b, strict=True)) / lengths if lengths else 0.0

    places = range(len(rows))
    return [cosine(i, j, k) for j in places for i in places for k in places]


def test_rkd_against_its_equations():
    student, teacher = 0.2 * _features(5, 3, 1), 6 * _features(5, 4, 2)
    for loss, slow in ((distance_loss, _slow_distances), (angle_loss, _slow_cosines)):
        pairs = list(zip(slow(student.tolist()), slow(teacher.tolist()), strict=True))
        expected = sum(_huber(a, b) for a, b in pairs) / len(pairs)
        assert loss(student, teacher).item() == pytest.approx(expected, rel=1e-6)


def test_rkd_does_not_change_with_translation():
    student, teacher = _features(6, 3, 1), _features(6, 5, 2)
    for loss in (distance_loss, angle_loss):
        assert loss(student + 3, teacher - 2).item() == pytest.approx(loss(student, teacher).item(), rel=1e-6)


def test_rkd_has_a_finite_gradient_where_images_coincide():
    student = _features(4, 3, 1)
    student[1] = student[0]
    for rows in (student, torch.zeros(4, 3, dtype=torch.float64)):
        rows = rows.clone().requires_grad_()
        (distance_loss(rows, _features(4, 3, 2)) + angle_loss(rows, _features(4, 3, 2))).backward()
        assert torch.isfinite(rows.grad).all()
    assert torch.isfinite(distances(student[:1])).all()


def test_angles_are_compared_within_groups():
    student, teacher = _features(7, 3, 1), _features(7, 5, 2)
    sums = [(cosines(student[part]) - cosines(teacher[part])).abs() for part in (slice(0, 3), slice(3, 6), slice(6, 7))]
    expected = sum(torch.where(d < 1, d**2 / 2, d - 0.5).sum() for d in sums) / (27 + 27 + 1)
    assert angle_loss(student, teacher, group=3).item() == pytest.approx(expected.item(), rel=1e-9)


def test_rkd_weighs_distances_and_angles():
    made = _method(RKD, weight=2.0, distances=3.0, angles=5.0)
    copied = copy.deepcopy(made)
    images = torch.cat([BATCH.labeled["view"], BATCH.unlabeled["view"]])
    pair = copied.net(images).features, copied.teacher.net(images).features
    expected = 2 * (3 * distance_loss(*pair) + 5 * angle_loss(*pair)).item()
    assert made(BATCH, AT).terms["distilled"].item() == pytest.approx(expected, rel=1e-9)


# --- VID, NST ------------------------------------------------------------------------------------


def test_vid_is_a_gaussian_likelihood():
    mean, target, variance = _map(3, seed=1), _map(3, seed=2), torch.tensor([0.5, 1.0, 4.0]).double()
    normal = torch.distributions.Normal(mean, variance.sqrt()[:, None, None])
    expected = -(normal.log_prob(target) + 0.5 * math.log(2 * math.pi)).mean()
    assert gaussian_nll(mean, variance[:, None, None], target).item() == pytest.approx(expected.item(), rel=1e-9)


def test_vid_learns_the_variance_of_its_error():
    mean, target = _map(3, seed=1), _map(3, seed=2)
    error = (mean - target).square().mean(dim=(0, 2, 3)).requires_grad_()
    gaussian_nll(mean, error[:, None, None], target).backward()
    assert error.grad.abs().max() < 1e-9


def test_vid_starts_with_its_variance_and_sums_layers():
    made = _method(VID, weight=2.0)
    mine, theirs = _maps_of(made)
    expected = 0.0
    for guess, student, teacher in zip(made.guesses, mine, theirs, strict=True):
        _, variance, _ = guess(student, teacher)
        assert torch.allclose(variance, torch.tensor(5.0, dtype=torch.float64), rtol=1e-6)
        expected += ((teacher - guess.mean(student)).square() / 10).mean().item() + math.log(5) / 2
    assert made(BATCH, AT).terms["distilled"].item() == pytest.approx(2.0 * expected, rel=1e-6)


def test_nst_is_the_maximum_mean_discrepancy():
    student, teacher = _map(2, seed=1), _map(3, seed=2)

    def unit(image):
        return [[value / math.hypot(*channel) for value in channel] for channel in image.flatten(1).tolist()]

    def kernel(f, g):
        values = [sum(a * b for a, b in zip(x, y, strict=True)) ** 2 for x in f for y in g]
        return sum(values) / len(values)

    per_image = [kernel(s, s) + kernel(t, t) - 2 * kernel(s, t)
                 for s, t in ((unit(s), unit(t)) for s, t in zip(student, teacher, strict=True))]
    assert nst_loss(student, teacher).item() == pytest.approx(sum(per_image) / len(per_image), rel=1e-9)


def test_nst_is_the_distance_of_the_gram_matrices_over_places():
    """An identity of the paper's section 4.2: the polynomial kernel compares similarities of regions."""
    student, teacher = _map(2, seed=1), _map(3, seed=2)

    def gram(maps):
        unit = nn.functional.normalize(maps.flatten(2), dim=2)
        return unit.transpose(1, 2) @ unit / unit.shape[1]

    expected = (gram(student) - gram(teacher)).square().sum(dim=(1, 2)).mean().item()
    assert nst_loss(student, teacher).item() == pytest.approx(expected, rel=1e-9)


def test_nst_ignores_order_and_scale_of_channels():
    maps = _map(4)
    factors = torch.tensor([0.1, 2.0, 3.0, 5.0], dtype=torch.float64)[:, None, None]
    assert nst_loss(maps, (factors * maps)[:, [2, 0, 3, 1]]).item() == pytest.approx(0, abs=1e-12)
