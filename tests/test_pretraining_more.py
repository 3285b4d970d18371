"""DINO, SwAV, NNCLR, rotation and MAE: contract, slow references in float64, identities, two ranks."""

import copy
import importlib.util
import math
import sys
from functools import partial

import numpy as np
import pytest
import torch
from forked import two_ranks
from PIL import Image
from small_runs import ROOT, flat_net
from torch import nn
from torch.nn.functional import normalize

from ssl_lab import methods
from ssl_lab.batch import At, Batch, Rows, Style
from ssl_lab.command_line import parse
from ssl_lab.errors import UsageError
from ssl_lab.losses import cross_entropy
from ssl_lab.methods.pretraining.dino import DINO, MOMENTUM, TEACHER_TEMPERATURE
from ssl_lab.methods.pretraining.heads import mlp
from ssl_lab.methods.pretraining.mae import MAE, normalized, patches
from ssl_lab.methods.pretraining.nnclr import NNCLR, contrastive, nearest
from ssl_lab.methods.pretraining.rotation import Rotation
from ssl_lab.methods.pretraining.swav import SwAV, sinkhorn
from ssl_lab.nets import Net, net
from ssl_lab.testing import check_method

STYLE = Style(1, 8, 8, mean=(0.3,), std=(0.4,))
METHODS = {
    "dino": partial(DINO, hidden=16, dim=8, outputs=12),
    "swav": partial(SwAV, prototypes=10, queue=24, hidden=16, dim=8),
    "nnclr": partial(NNCLR, queue=24, hidden=16, dim=8, predictor_hidden=16),
    "rotation": Rotation,
}
DECODER = {"width": 8, "depth": 1, "heads": 2}
LATE = At(8, 10)  # nothing is frozen, and queues are full


def _batch(rows=6, seed=0, size=8, views=("first", "second", "weak", "crop")):
    draw = torch.Generator().manual_seed(seed)
    images = {name: torch.rand(rows, 1, size, size, generator=draw, dtype=torch.float64) for name in views}
    none, nothing = torch.full((rows,), -1), torch.empty(0, dtype=torch.int64)
    return Batch(Rows({}, nothing, nothing, nothing), Rows(images, none, none, torch.arange(rows)))


BATCH = _batch()


def _method(name, **arguments):
    return METHODS[name](net("tiny_4", classes=3, style=STYLE, seed=0), **arguments).double().train()


def _random(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def _loss(method, batch=BATCH, at=LATE):
    """In float64, which `Loss.total` is not."""
    return sum(term.item() for term in method(batch, at).terms.values())


def _softmax(values, temperature):
    exps = [math.exp((x - max(values)) / temperature) for x in values]
    return [e / sum(exps) for e in exps]


def _entropy(a, b):
    """H(a, b)."""
    return -sum(x * math.log(y) for x, y in zip(a, b, strict=True))


def _both(batch=BATCH):
    return torch.cat([batch.unlabeled["first"], batch.unlabeled["second"]])


@torch.no_grad()
def _z(method, batch=BATCH):
    """The projections of both views in one pass."""
    method = copy.deepcopy(method)
    return method.projector(method.net(_both(batch)).features).chunk(2)


# --- All of them ---------------------------------------------------------------------------------


def vit(channels=1, size=8, classes=3, seed=0, **arguments):
    """A net around a tiny VisionTransformer of timm."""
    from timm.models import VisionTransformer

    settings = {"patch_size": 2, "embed_dim": 16, "depth": 2, "num_heads": 2, "num_classes": 0} | arguments
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        backbone = VisionTransformer(img_size=size, in_chans=channels, **settings)
        return Net(backbone, nn.Linear(16, classes), (0.3,) * channels, (0.4,) * channels, "vit")


def mae(**arguments):
    return MAE(vit(), **(DECODER | arguments)).double().train()


def everything(name):
    return mae() if name == "mae" else _method(name)


@pytest.mark.parametrize("name", METHODS)
def test_contract(name):
    check_method(METHODS[name], compile=name == "dino")


@pytest.mark.parametrize("pooling", ["token", "avg"])
def test_contract_of_mae(pooling):
    check_method(lambda small: MAE(vit(len(small.mean), 16, small.classes, patch_size=4, global_pool=pooling,
                                       class_token=pooling == "token"), **DECODER), compile=False)


@pytest.mark.parametrize("name", [*METHODS, "mae"])
def test_the_head_stays_and_the_exported_net_is_the_plain_one(name):
    method = everything(name)
    assert not method.classifies
    before = copy.deepcopy(method.state_dict())
    optimizer = torch.optim.SGD([p for p in method.parameters() if p.requires_grad], lr=0.1)
    for step in range(2):
        optimizer.zero_grad()
        method(BATCH, At(step, 10)).total.backward()
        optimizer.step()
        method.after_step(At(step, 10))
    assert torch.equal(method.net.head.weight, before["net.head.weight"])
    for key, parameter in method.net.backbone.named_parameters():
        assert not torch.equal(parameter, before[f"net.backbone.{key}"]), key
    exported = method.predictor().state_dict()
    assert all(torch.equal(exported[key], value) for key, value in method.net.state_dict().items())


@pytest.mark.parametrize("name", [*METHODS, "mae"])
def test_what_they_add_is_a_function_of_the_seed(name):
    def added(seed):
        method = mae(seed=seed) if name == "mae" else _method(name, seed=seed)
        return {key: p for key, p in method.named_parameters() if not key.startswith(("net.", "ema.", "target.net."))}

    one, same, other = added(1), added(1), added(2)
    assert all(torch.equal(p, same[key]) for key, p in one.items())
    drawn = [key for key, p in one.items() if p.ndim > 1 or key in ("prototypes", "mask_token")]
    assert drawn
    assert not any(torch.equal(one[key], other[key]) for key in drawn)


# --- DINO ----------------------------------------------------------------------------------------


def _diverged(method):
    """With a teacher and a center of their own."""
    with torch.no_grad():
        for number, parameter in enumerate(method.target.parameters()):
            parameter.add_(0.1 * _random(*parameter.shape, seed=number))
        method.center.copy_(0.2 * _random(*method.center.shape))
    return method


@pytest.mark.parametrize("norm", [False, True])
def test_dino_against_its_equation(norm):
    method = _diverged(_method("dino", temperature=0.2, teacher_temperature=0.05, norm=norm))
    student, teacher = _z(method), copy.deepcopy(method).target(_both()).chunk(2)
    center, expected = method.center.tolist(), 0.0
    for taught, learning in ((teacher[0], student[1]), (teacher[1], student[0])):
        for t, s in zip(taught.tolist(), learning.tolist(), strict=True):
            target = _softmax([x - c for x, c in zip(t, center, strict=True)], 0.05)
            expected += _entropy(target, _softmax(s, 0.2)) / 2 / 6
    assert _loss(method) == pytest.approx(expected, rel=1e-9)
    same = _method("dino", temperature=0.2, teacher_temperature=0.05)
    assert _loss(same) != pytest.approx(expected, rel=1e-3)


def test_dinos_center_is_an_average_of_the_teachers_outputs():
    method = _diverged(_method("dino"))
    before, output = method.center.tolist(), copy.deepcopy(method).target(_both()).tolist()
    method(BATCH, LATE)
    assert method.center.tolist() == before  # this step's outputs do not center themselves
    method.after_step(LATE)
    means = [sum(row[k] for row in output) / len(output) for k in range(12)]
    assert method.center.tolist() == pytest.approx([0.9 * c + 0.1 * m for c, m in zip(before, means, strict=True)])


def test_dinos_loss_is_least_where_student_and_teacher_agree():
    """H(a, b) = entropy of a + KL(a || b)."""
    method = _method("dino", temperature=0.1, teacher_temperature=0.1)
    one = BATCH.unlabeled["first"]
    views = {"first": one, "second": one}
    batch = Batch(BATCH.labeled, Rows(views, BATCH.unlabeled.targets, BATCH.unlabeled.truth, BATCH.unlabeled.indices))
    loss = method(batch, LATE)
    assert loss.terms["prediction"].item() == pytest.approx(loss.logs["teacher_entropy"].item())
    with torch.no_grad():
        method.projector[0].weight.add_(0.1 * _random(*method.projector[0].weight.shape))
    loss = method(batch, LATE)
    assert loss.terms["prediction"].item() > loss.logs["teacher_entropy"].item() + 1e-3


def test_dinos_schedules():
    assert At(0, 100).value(MOMENTUM) == pytest.approx(0.996)
    assert At(50, 100).value(MOMENTUM) == pytest.approx(0.998)
    assert [At(k, 100).value(TEACHER_TEMPERATURE) for k in (0, 5, 10, 99)] == pytest.approx([0.04, 0.055, 0.07, 0.07])


def test_dinos_teacher_learns_nothing_and_follows():
    method = _method("dino", momentum=0.9)
    pairs = [*zip(method.target.net.parameters(), method.net.parameters(), strict=True),
             *zip(method.target.projector.parameters(), method.projector.parameters(), strict=True)]
    assert all(torch.equal(target, source) and not target.requires_grad for target, source in pairs)
    before = [target.clone() for target, _ in pairs]
    with torch.no_grad():
        for _, source in pairs:
            source.add_(1.0)
    method(BATCH, LATE)
    method.after_step(LATE)
    for (target, source), old in zip(pairs, before, strict=True):
        torch.testing.assert_close(target, 0.9 * old + 0.1 * source.detach())


def test_the_outputs_of_dinos_head_are_cosines():
    head = _method("dino").projector
    x = _random(5, head[0].in_features)
    hidden = nn.Sequential(*list(head)[:-1])(x).tolist()
    expected = [[sum(a * b for a, b in zip(h, w, strict=True)) / math.hypot(*h) / math.hypot(*w)
                 for w in head[-1].weight.tolist()] for h in hidden]
    torch.testing.assert_close(head(x), torch.tensor(expected, dtype=torch.float64))
    assert [type(layer).__name__ for layer in head] == ["Linear", "GELU", "Linear", "GELU", "Linear", "Linear"]
    normed = _method("dino", norm=True).projector
    assert [type(layer).__name__ for layer in normed] == ["Linear", "BatchNorm1d", "GELU"] * 2 + ["Linear", "Linear"]
    assert torch.equal(normed[0].weight, head[0].weight)


def test_norm_tells_apart_what_has_a_large_common_part():
    x = 100 + _random(20, 16)
    plain, normed = (normalize(nn.Sequential(*list(_method("dino", norm=norm).projector)[:-1])(x), dim=1)
                     for norm in (False, True))
    assert (plain @ plain.T).mean() > 0.99
    assert (normed @ normed.T).mean() < 0.2


@pytest.mark.parametrize("name", ["dino", "swav"])
def test_the_last_layer_is_frozen_at_first(name):
    def weight(method):
        return method.projector[-1].weight if name == "dino" else method.prototypes

    method = _method(name, frozen=0.25)
    optimizer = torch.optim.SGD([p for p in method.parameters() if p.requires_grad], 0.1, 0.9, weight_decay=1e-2)
    for step in range(4):
        before, other = (normalize(weight(method).detach(), dim=1), method.projector[0].weight.clone())
        optimizer.zero_grad()
        method(BATCH, At(step, 8)).total.backward()
        optimizer.step()
        method.after_step(At(step, 8))
        moved = (normalize(weight(method), dim=1) - before).abs().max()
        assert (moved > 1e-6) == (step >= 2)
        assert not torch.equal(method.projector[0].weight, other)


# --- Multi-crop ----------------------------------------------------------------------------------


def _crops(method, count=2):
    """The batch with small crops too, and the outputs of the projector for each view."""
    u = BATCH.unlabeled
    views = dict(u.views) | {f"crop_{k + 1}": _random(*u["first"].shape, seed=70 + k).sigmoid() for k in range(count)}
    batch = Batch(BATCH.labeled, Rows(views, u.targets, u.truth, u.indices))
    copied = copy.deepcopy(method)
    every = [views[name] for name in method.views.unlabeled]
    return batch, copied.projector(copied.net(torch.cat(every)).features).chunk(2 + count)


def test_dino_learns_small_crops_from_both_large_ones():
    method = _diverged(_method("dino", temperature=0.2, teacher_temperature=0.05, crops=2))
    batch, students = _crops(method)
    center, expected = method.center.tolist(), 0.0
    for large, taught in enumerate(copy.deepcopy(method).target(_both()).chunk(2)):
        for view, learning in enumerate(students):
            for t, s in zip(taught.tolist(), learning.tolist(), strict=True):
                target = _softmax([x - c for x, c in zip(t, center, strict=True)], 0.05)
                expected += 0 if view == large else _entropy(target, _softmax(s, 0.2)) / 6 / 6  # pairs, rows
    assert _loss(method, batch) == pytest.approx(expected, rel=1e-9)


def test_swav_assigns_large_crops_only():
    method = _method("swav", temperature=0.2, crops=2)
    batch, z = _crops(method)
    scores = [normalize(each, dim=1) @ method.prototypes.detach().T for each in z]
    expected = 0.0
    for large in range(2):
        for view, learning in enumerate(scores):
            for q, s in zip(_slow_sinkhorn(scores[large], 0.05, 3).tolist(), learning.tolist(), strict=True):
                expected += 0 if view == large else _entropy(q, _softmax(s, 0.2)) / 6 / 6
    assert _loss(method, batch, At(1, 10)) == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize("name", ["dino", "swav"])
def test_the_contract_with_small_crops(name):
    check_method(partial(METHODS[name], crops=2), compile=False)
    method = _method(name, crops=3)
    style = Style(3, 40, 40)
    large, *small = [factory(style) for view, factory in method.views.unlabeled.items() if view != "second"]
    assert len(small) == 3
    assert all(crop.most <= 0.4 and crop.area == 0.05 for crop in small)
    assert large.most == 1.0
    assert set(method.with_views(crop="eval").views.texts["unlabeled"]) == {"first", "second", "crop_1", "crop_2",
                                                                           "crop_3"}
    with pytest.raises(UsageError, match="crops=-1"):
        _method(name, crops=-1)


# --- SwAV ----------------------------------------------------------------------------------------


def _slow_sinkhorn(scores, epsilon, iterations):
    """The paper's appendix A: columns (prototypes) to 1/K, then rows (images) to 1/N, in turn; rows to 1 at last."""
    q = [[math.exp(s / epsilon) for s in row] for row in scores.tolist()]
    n, k = len(q), len(q[0])
    for _ in range(iterations):
        sums = [sum(row[j] for row in q) for j in range(k)]
        q = [[x / sums[j] / k for j, x in enumerate(row)] for row in q]
        q = [[x / sum(row) / n for x in row] for row in q]
    return torch.tensor([[x / sum(row) for x in row] for row in q], dtype=torch.float64)


def _cosines(rows=7, columns=5):
    return normalize(_random(rows, 4), dim=1) @ normalize(_random(columns, 4, seed=1), dim=1).T


@pytest.mark.parametrize("iterations", [1, 3])
@pytest.mark.parametrize("epsilon", [0.05, 0.5])
def test_sinkhorn_against_loops(epsilon, iterations):
    slow = _slow_sinkhorn(_cosines(), epsilon, iterations)
    torch.testing.assert_close(sinkhorn(_cosines(), epsilon, iterations), slow)


def test_sinkhorns_assignments_are_equally_shared():
    q = sinkhorn(_cosines(), 0.5, 200)
    torch.testing.assert_close(q.sum(dim=1), torch.ones(7, dtype=torch.float64))
    torch.testing.assert_close(q.sum(dim=0), torch.full((5,), 7 / 5, dtype=torch.float64))
    same = sinkhorn(torch.ones(6, 3), 0.05, 3)  # as in collapse: nothing tells which prototype
    torch.testing.assert_close(same, torch.full((6, 3), 1 / 3))


def test_sinkhorn_in_float32_at_its_least_epsilon():
    scores = torch.tensor([[1.0, -1.0], [-1.0, -1.0], [-1.0, 1.0]])
    q = sinkhorn(scores, 0.025, 3)
    assert q.isfinite().all()
    torch.testing.assert_close(q.double(), _slow_sinkhorn(scores, 0.025, 3))


def test_swav_refuses_an_epsilon_that_overflows():
    with pytest.raises(UsageError, match=r"epsilon=0.01: expected 0.025 or more"):
        _method("swav", epsilon=0.01)


@pytest.mark.parametrize("filled", [False, True])
def test_swav_against_its_equation(filled):
    method = _method("swav", temperature=0.2, queue=9)
    method.queue.copy_(normalize(_random(9, 2, 8), dim=2))
    at = At(8, 10) if filled else At(1, 10)  # a step brings 6 rows
    z = [normalize(each, dim=1) for each in _z(method)]
    c = method.prototypes.detach()
    expected = 0.0
    for view, other in ((0, 1), (1, 0)):
        rows = torch.cat([z[view], method.queue[:, view]]) if filled else z[view]
        assigned = _slow_sinkhorn(rows @ c.T, 0.05, 3)[:6]
        for q, scores in zip(assigned.tolist(), (z[other] @ c.T).tolist(), strict=True):
            expected += _entropy(q, _softmax(scores, 0.2)) / 2 / 6
    assert _loss(method, at=at) == pytest.approx(expected, rel=1e-9)


def test_swavs_queue_waits_for_its_share_of_the_run():
    method = _method("swav", queue=6, queue_from=0.5)
    method.queue.copy_(normalize(_random(6, 2, 8), dim=2))
    early, late, none = (_loss(copy.deepcopy(each), at=at) for each, at in (
        (method, At(4, 10)), (method, At(5, 10)), (_method("swav", queue=0), At(5, 10))))
    assert early == none != late


def test_swav_moves_its_queue_and_scales_its_prototypes():
    method = _method("swav", queue=8)
    z = torch.stack([normalize(each, dim=1) for each in _z(method)], dim=1)
    method(BATCH, At(0, 10))
    with torch.no_grad():
        method.prototypes.mul_(torch.arange(1.0, 11.0, dtype=torch.float64)[:, None])
    method.after_step(At(0, 10))
    torch.testing.assert_close(method.queue, torch.cat([z, torch.zeros(2, 2, 8, dtype=torch.float64)]))
    torch.testing.assert_close(method.prototypes.norm(dim=1), torch.ones(10, dtype=torch.float64))


def test_swavs_assignments_have_no_gradient():
    method = _method("swav")
    method(BATCH, LATE).total.backward()
    got = method.prototypes.grad.clone()
    z = [normalize(each, dim=1) for each in _z(_method("swav"))]
    c = method.prototypes.detach().requires_grad_()
    q = [_slow_sinkhorn(torch.cat([each, method.queue[:, view]]) @ c.detach().T, 0.05, 3)[:6]
         for view, each in enumerate(z)]
    (cross_entropy(z[0] @ c.T / 0.1, q[1]) / 2 + cross_entropy(z[1] @ c.T / 0.1, q[0]) / 2).backward()
    torch.testing.assert_close(got, c.grad, rtol=1e-5, atol=1e-8)


# --- NNCLR ---------------------------------------------------------------------------------------


def _nnclr_loss(method):
    def unit(rows):
        return [[x / math.hypot(*row) for x in row] for row in rows.tolist()]

    def dot(a, b):
        return sum(x * y for x, y in zip(a, b, strict=True))

    method, queue, temperature = copy.deepcopy(method), method.queue.tolist(), method.temperature
    with torch.no_grad():
        z = [method.projector(method.net(BATCH.unlabeled[view]).features) for view in ("first", "second")]
        p = [unit(method.prediction(each)) for each in z]
    total = 0.0
    for view, other in ((0, 1), (1, 0)):
        for i, row in enumerate(unit(z[view])):
            neighbor = max(queue, key=lambda candidate, row=row: dot(row, candidate))
            exps = [math.exp(dot(neighbor, prediction) / temperature) for prediction in p[other]]
            total += -math.log(exps[i] / sum(exps)) / len(z[0]) / 2
    return total


def test_nnclr_against_its_algorithm():
    method = _method("nnclr", temperature=0.3)
    assert _loss(method) == pytest.approx(_nnclr_loss(method), rel=1e-9)


def test_nearest_is_the_row_of_the_largest_cosine():
    bank, queries = (normalize(_random(n, 5, seed=n), dim=1) for n in (40, 7))
    slow = [min(bank.tolist(), key=lambda row, query=query: math.dist(row, query)) for query in queries.tolist()]
    torch.testing.assert_close(nearest(queries, bank), torch.tensor(slow, dtype=torch.float64))
    assert torch.equal(nearest(bank, bank), bank)
    assert not nearest(queries.requires_grad_(), bank).requires_grad


def test_nnclrs_neighbors_are_of_earlier_steps_and_its_queue_holds_the_first_views():
    method = _method("nnclr", queue=13)
    expected, place = method.queue.tolist(), 0
    for step in range(5):
        batch = _batch(6, seed=step)
        before = method.queue.clone()
        with torch.no_grad():
            twin = copy.deepcopy(method)
            z = normalize(twin.projector(twin.net(batch.unlabeled["first"]).features), dim=1)
        loss = method(batch, At(step, 5))
        assert torch.equal(method.queue, before)
        assert loss.logs["neighbor_cosine"].item() == pytest.approx((z @ before.T).max(dim=1).values.mean().item())
        method.after_step(At(step, 5))
        for number, row in enumerate(z.tolist()):
            expected[(place + number) % 13] = row
        place += 6
    torch.testing.assert_close(method.queue, torch.tensor(expected, dtype=torch.float64))


def test_a_queue_of_the_other_views_makes_it_simclr_without_its_own_views():
    """If the neighbor of z_1 is z_2 and the predictor does nothing, l is the loss of telling z_2 from the others."""
    z = normalize(_random(6, 8), dim=1)
    loss = contrastive(nearest(z, z), z, 0.5)
    assert loss.item() == pytest.approx(cross_entropy(z @ z.T / 0.5, torch.arange(6)).item())


# --- Rotation --------------------------------------------------------------------------------------


def test_rotation_against_its_equation():
    method = _method("rotation")
    turned = [torch.from_numpy(np.rot90(image, turns, (1, 2)).copy())
              for turns in range(4) for image in BATCH.unlabeled["weak"].numpy()]
    with torch.no_grad():
        logits = method.rotation_head(copy.deepcopy(method).net(torch.stack(turned)).features).tolist()
    expected = sum(-math.log(_softmax(row, 1.0)[number // 6]) for number, row in enumerate(logits)) / 24
    right = sum(max(range(4), key=lambda k, row=row: row[k]) == number // 6 for number, row in enumerate(logits)) / 24
    loss = method(BATCH, LATE)
    assert loss.terms["rotation"].item() == pytest.approx(expected, rel=1e-9)
    assert loss.logs["rotation_accuracy"].item() == pytest.approx(right)


def test_rotation_refuses_oblong_images():
    oblong = torch.rand(4, 1, 8, 6, dtype=torch.float64)
    rows = Rows({"weak": oblong}, torch.full((4,), -1), torch.full((4,), -1), torch.arange(4))
    with pytest.raises(UsageError, match="square images, these are 8 x 6"):
        _method("rotation")(Batch(BATCH.labeled, rows), LATE)


def test_rotation_cannot_tell_images_without_a_direction():
    """Of constant images all turns are one: the best loss is log 4, that of guessing."""
    method = _method("rotation")
    rows = Rows({"weak": torch.full((4, 1, 8, 8), 0.7, dtype=torch.float64)}, *[torch.arange(4)] * 3)
    method.rotation_head.weight.data.zero_()
    assert _loss(method, Batch(BATCH.labeled, rows)) == pytest.approx(math.log(4))


# --- MAE -----------------------------------------------------------------------------------------


def _order(method, rows=6, at=LATE):
    return at.draw("mask", rows).uniform(len(method.positions)).argsort(dim=1)


def test_mae_against_loops():
    method = mae()
    images = (BATCH.unlabeled["crop"] - 0.3) / 0.4
    order = _order(method)
    assert order.shape == (6, 16)
    assert method.visible == 4
    with torch.no_grad():
        painted = method.decode(method.encode(images, order[:, :4]), order)
    expected = 0.0
    for image, row, patches_painted in zip(images, order.tolist(), painted.tolist(), strict=True):
        for place, values in zip(row[4:], patches_painted, strict=True):
            top, left = 2 * (place // 4), 2 * (place % 4)
            pixels = image[0, top:top + 2, left:left + 2].flatten().tolist()
            mean = sum(pixels) / 4
            deviation = math.sqrt(sum((x - mean) ** 2 for x in pixels) / 3 + 1e-6)
            expected += sum((v - (x - mean) / deviation) ** 2 for v, x in zip(values, pixels, strict=True)) / 4 / 12 / 6
    assert _loss(method) == pytest.approx(expected, rel=1e-6)


def test_masked_patches_do_not_reach_the_encoder():
    method = mae()
    images, order = BATCH.unlabeled["crop"].clone().requires_grad_(), _order(method)
    encoded = method.encode(images, order[:, :4])
    assert encoded.shape == (6, 1 + 4, 16)
    encoded.square().sum().backward()
    touched = patches(images.grad, (2, 2)).abs().sum(dim=2) > 0
    expected = torch.zeros(6, 16, dtype=torch.bool).scatter(1, order[:, :4], True)
    assert torch.equal(touched, expected)


@pytest.mark.parametrize("arguments", [{}, {"global_pool": "avg", "class_token": False}, {"reg_tokens": 2},
                                       {"no_embed_class": True, "pre_norm": True}, {"dynamic_img_size": True}])
def test_with_all_patches_the_encoder_is_the_backbone(arguments):
    method = MAE(vit(**arguments), **DECODER).double().eval()
    images = BATCH.unlabeled["crop"]
    everywhere = torch.arange(16).expand(6, -1)
    backbone = method.net.backbone
    whole = backbone.fc_norm(backbone.forward_features(images))
    torch.testing.assert_close(method.encode(images, everywhere), whole)


def test_the_order_of_tokens_means_nothing_to_the_decoder():
    method = mae()
    encoded, order = _random(6, 1 + 4, 16), _order(method)
    shuffled = torch.cat([order[:, :4].flip(1), order[:, 4:].roll(1, 1)], dim=1)
    mixed = torch.cat([encoded[:, :1], encoded[:, 1:].flip(1)], dim=1)
    torch.testing.assert_close(method.decode(mixed, shuffled), method.decode(encoded, order).roll(1, 1))


def test_the_decoder_tells_masked_patches_apart_by_their_places():
    painted = (method := mae()).decode(_random(6, 1 + 4, 16), _order(method))
    assert painted.shape == (6, 12, 4)
    assert (painted[:, 0] - painted[:, 1]).abs().max() > 1e-3


def test_patches_and_their_normalization():
    images = torch.arange(2 * 3 * 4 * 6.0).view(2, 3, 4, 6)
    cut = patches(images, (2, 3))
    assert cut.shape == (2, 4, 18)
    assert torch.equal(cut[1, 2], images[1, :, 2:4, 0:3].flatten())
    flat = normalized(cut)
    torch.testing.assert_close(flat.mean(dim=2), torch.zeros(2, 4), atol=1e-5, rtol=0)
    torch.testing.assert_close(flat.std(dim=2), torch.ones(2, 4))
    assert normalized(torch.full((2, 4), 0.3)).abs().max() < 1e-3  # a patch of one color


def test_maes_masks_differ_by_image_and_step():
    method = mae()
    masks = [_order(method, at=At(step, 10))[:, :4].sort(dim=1).values for step in range(2)]
    assert len({tuple(row) for mask in masks for row in mask.tolist()}) > 9
    assert _loss(method, at=At(0, 10)) != _loss(method, at=At(1, 10))


@pytest.mark.parametrize(("build", "words"), [
    (lambda: MAE(net("tiny_4", style=STYLE)), "MAE needs a VisionTransformer of timm, which tiny_4 is not"),
    (lambda: mae(masked=0.97), "leaves 0 of 16 patches visible"),
    (lambda: mae(masked=0.0), "leaves 16 of 16 patches visible"),
    (lambda: mae(width=10), "a decoder of width 10, 2 heads"),
    (lambda: MAE(vit(global_pool="map"), **DECODER), "pools by attention"),
])
def test_what_mae_refuses(build, words):
    with pytest.raises(UsageError, match=words):
        build()


# --- Micro-batches and ranks --------------------------------------------------------------------------


def flat_methods():
    """Methods without BatchNorm, whose rows on two ranks are those on one."""
    built = {name: METHODS[name](flat_net()) for name in METHODS} | {"mae": mae()}
    built["swav"].projector = mlp((16, 8), seed=1)
    built["nnclr"].projector, built["nnclr"].prediction = mlp((16, 8), seed=1), mlp((8, 8), seed=2)
    return {name: method.double() for name, method in built.items()}


def _moved(method):
    """The state that a step moves apart from gradients."""
    return {name: value for name, value in method.named_buffers() if name in ("center", "queue")}


@pytest.mark.parametrize("name", ["dino", "rotation", "mae"])
def test_micro_batches_take_the_step_of_the_whole_batch(name):
    whole, parts = flat_methods()[name], flat_methods()[name]
    (whole_loss := whole(BATCH, LATE)).total.backward()
    losses = []
    for number, part in enumerate(BATCH.chunk(2)):
        loss = parts(part, At(8, 10, rank=number, world=2))
        (loss.total / 2).backward()
        losses.append(sum(term.item() for term in loss.terms.values()))
    assert sum(losses) / 2 == pytest.approx(sum(term.item() for term in whole_loss.terms.values()))
    for method in (whole, parts):
        method.after_step(LATE)
    for (key, p), q in zip(whole.named_parameters(), parts.parameters(), strict=True):
        assert (p.grad is None) == (q.grad is None), key
        if p.grad is not None:
            torch.testing.assert_close(p.grad, q.grad)
    for key, value in _moved(whole).items():
        torch.testing.assert_close(value, _moved(parts)[key])


@pytest.mark.parametrize("name", ["swav", "nnclr"])
def test_queues_take_the_rows_of_all_micro_batches(name):
    whole, parts, fresh = (flat_methods()[name] for _ in range(3))
    whole(BATCH, LATE)
    for number, part in enumerate(BATCH.chunk(2)):
        parts(part, At(8, 10, rank=number, world=2))
    whole.after_step(LATE)
    parts.after_step(LATE)
    torch.testing.assert_close(whole.queue, parts.queue)
    assert not torch.equal(whole.queue, fresh.queue)


def _step_of_rank(rank):
    found = {}
    for name, method in flat_methods().items():
        at = At(8, 10, rank=rank, world=2)
        wrapped = torch.nn.parallel.DistributedDataParallel(method)
        wrapped(Batch(BATCH.labeled, BATCH.unlabeled.part(rank, 2)), at).total.backward()
        method.after_step(at)
        found[name] = {key: p.grad for key, p in method.named_parameters() if p.grad is not None}, _moved(method)
    return found


@pytest.fixture(scope="module")
def ranks(tmp_path_factory):
    return two_ranks(_step_of_rank, tmp_path_factory.mktemp("ranks"))


@pytest.mark.parametrize("name", [*METHODS, "mae"])
def test_two_ranks_take_the_step_of_one(ranks, name):
    method = flat_methods()[name]
    method(BATCH, LATE).total.backward()
    method.after_step(LATE)
    for found in ranks:
        gradients, moved = found[name]
        assert gradients.keys() == {key for key, p in method.named_parameters() if p.requires_grad}
        for key, gradient in gradients.items():
            torch.testing.assert_close(gradient, method.get_parameter(key).grad)
        assert moved.keys() == _moved(method).keys()
        for key, value in moved.items():
            torch.testing.assert_close(value, _moved(method)[key])


# --- The recipe --------------------------------------------------------------------------------------


def pretrain(*arguments):
    """What recipes/pretrain.py does with these arguments, in this process."""
    spec = importlib.util.spec_from_file_location("recipe_pretrain", ROOT / "recipes" / "pretrain.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    module.main(parse(module.Settings, ["--device", "cpu", "--precision", "fp32", "--unlabeled", "16", "--steps", "2",
                                        *map(str, arguments)]))


@pytest.fixture
def _registered(monkeypatch):
    for method in (DINO, SwAV, NNCLR, Rotation, MAE):
        monkeypatch.setitem(methods.METHODS, method.name, method)


@pytest.mark.usefixtures("_registered")
@pytest.mark.parametrize("name", METHODS)
def test_the_recipe_pretrains(tmp_path, name):
    small = {"dino": ("outputs", 16), "swav": ("prototypes", 16), "nnclr": ("queue", 64)}.get(name, ())
    arguments = ("--arguments", *small) if small else ()
    pretrain("--method", name, "--net", "tiny_8", "--labels", 40, "--out", tmp_path, *arguments)
    assert (tmp_path / "model.safetensors").exists()


@pytest.mark.usefixtures("_registered")
def test_the_recipe_pretrains_a_transformer_by_mae(tmp_path):
    draw = np.random.default_rng(0)
    for number in range(40):
        folder = tmp_path / "images" / "ab"[number % 2]
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(draw.integers(0, 256, (32, 32, 3), dtype=np.uint8)).save(folder / f"{number}.png")
    pretrain("--method", "mae", "--net", "timm/test_vit", "--data", tmp_path / "images", "--image-size", 32, "--out",
             tmp_path / "out", "--arguments", "width", 8, "depth", 1, "heads", 2)
    assert (tmp_path / "out" / "model.safetensors").exists()
