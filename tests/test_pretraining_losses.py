"""Pretraining methods: contract, slow references in float64, two ranks, targets and queues."""

import copy
import math
from functools import partial

import pytest
import torch
from forked import two_ranks
from small_runs import flat_net
from torch import nn

from ssl_lab.batch import At, Batch, Rows, Style
from ssl_lab.losses import cross_entropy
from ssl_lab.methods.pretraining.barlow_twins import BarlowTwins, cross_correlation_terms
from ssl_lab.methods.pretraining.base import gather
from ssl_lab.methods.pretraining.byol import BYOL, TAU, distance
from ssl_lab.methods.pretraining.heads import mlp
from ssl_lab.methods.pretraining.moco import MoCoV2, MoCoV3, contrastive
from ssl_lab.methods.pretraining.simclr import SimCLR, similarities
from ssl_lab.methods.pretraining.simsiam import SimSiam
from ssl_lab.methods.pretraining.vicreg import VICReg, covariance, hinge
from ssl_lab.nets import Net, net
from ssl_lab.testing import check_method

STYLE = Style(1, 8, 8, mean=(0.3,), std=(0.4,))
SMALL = {"hidden": 16, "dim": 8}
METHODS = {
    "simclr": SimCLR, "byol": partial(BYOL, **SMALL), "simsiam": partial(SimSiam, dim=16, bottleneck=4),
    "barlow_twins": partial(BarlowTwins, **SMALL), "vicreg": partial(VICReg, **SMALL),
    "moco_v2": partial(MoCoV2, queue=24, dim=8), "moco_v3": partial(MoCoV3, **SMALL),
}
WITH_TARGET = ["byol", "moco_v2", "moco_v3"]


def _batch(rows=6, seed=0, size=8):
    draw = torch.Generator().manual_seed(seed)
    views = {name: torch.rand(rows, 1, size, size, generator=draw, dtype=torch.float64) for name in ("first", "second")}
    none, nothing = torch.full((rows,), -1), torch.empty(0, dtype=torch.int64)
    return Batch(Rows({}, nothing, nothing, nothing), Rows(views, none, none, torch.arange(rows)))


BATCH = _batch()


def _method(name, **arguments):
    return METHODS[name](net("tiny_4", classes=3, style=STYLE, seed=0), **arguments).double().train()


def _pair(rows=5, dim=4, seed=0):
    draw = torch.Generator().manual_seed(seed)
    return [torch.randn(rows, dim, generator=draw, dtype=torch.float64) for _ in range(2)]


def _cos(a, b):
    dot = sum(x * y for x, y in zip(a, b, strict=True))
    return dot / math.sqrt(sum(x * x for x in a)) / math.sqrt(sum(y * y for y in b))


def _projections(method, batch=BATCH):
    """What projector (and predictor) make of each view, each in a pass of its own."""
    method = copy.deepcopy(method)
    with torch.no_grad():
        z = [method.projector(method.net(batch.unlabeled[view]).features) for view in ("first", "second")]
        return z, [method.prediction(each) for each in z] if hasattr(method, "prediction") else None


def _targets(method, batch=BATCH):
    method = copy.deepcopy(method)
    return [method.target(batch.unlabeled[view]) for view in ("first", "second")]


def _loss(method):
    """In float64, which `Loss.total` is not."""
    return sum(term.item() for term in method(BATCH, At(0, 1)).terms.values())


# --- All of them ---------------------------------------------------------------------------------


@pytest.mark.parametrize("name", METHODS)
def test_contract(name):
    check_method(METHODS[name], compile=name == "byol")


@pytest.mark.parametrize("name", METHODS)
def test_the_head_stays_and_the_exported_net_is_the_plain_one(name):
    method = _method(name)
    assert not method.classifies
    before = copy.deepcopy(method.state_dict())
    optimizer = torch.optim.SGD([p for p in method.parameters() if p.requires_grad], lr=0.1)
    for step in range(2):
        optimizer.zero_grad()
        method(BATCH, At(step, 10)).total.backward()
        optimizer.step()
        method.after_step(At(step, 10))
    assert torch.equal(method.net.head.weight, before["net.head.weight"])
    assert not torch.equal(method.net.backbone.stem[0].weight, before["net.backbone.stem.0.weight"])
    assert isinstance(method.predictor(), Net)
    exported = method.predictor().state_dict()
    assert all(torch.equal(exported[key], value) for key, value in method.net.state_dict().items())


@pytest.mark.parametrize("name", METHODS)
def test_projectors_are_a_function_of_the_seed(name):
    one, same, other = (_method(name, seed=seed).projector[0].weight for seed in (1, 1, 2))
    assert torch.equal(one, same)
    assert not torch.equal(one, other)


def test_heads():
    plain = mlp((4, 6, 2), norm=False)
    assert [type(layer).__name__ for layer in plain] == ["Linear", "ReLU", "Linear"]
    assert all(layer.bias is not None for layer in plain if isinstance(layer, nn.Linear))
    deep = mlp((4, 6, 5, 2), last_norm=True)
    assert [type(layer).__name__ for layer in deep] == [
        "Linear", "BatchNorm1d", "ReLU", "Linear", "BatchNorm1d", "ReLU", "Linear", "BatchNorm1d"]
    assert all(layer.bias is None for layer in deep if isinstance(layer, nn.Linear))
    assert not deep[-1].affine
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert plain(torch.rand(3, 4)).dtype == torch.float32


# --- SimCLR --------------------------------------------------------------------------------------


def _nt_xent(first, second, temperature):
    """Equation 1 of the paper, averaged over all views, in a double loop."""
    views = [*first.tolist(), *second.tolist()]
    n, total = len(first), 0.0
    for i, anchor in enumerate(views):
        exps = {k: math.exp(_cos(anchor, other) / temperature) for k, other in enumerate(views) if k != i}
        assert len(exps) == 2 * n - 1
        total += -math.log(exps[(i + n) % (2 * n)] / sum(exps.values()))
    return total / (2 * n)


@pytest.mark.parametrize("temperature", [0.1, 0.5])
@pytest.mark.parametrize("rows", [1, 5])
def test_nt_xent_against_a_double_loop(temperature, rows):
    first, second = _pair(rows)
    scores, positives = similarities(first, second, temperature)
    assert scores.shape == (2 * rows, 2 * rows)
    assert cross_entropy(scores, positives).item() == pytest.approx(_nt_xent(first, second, temperature), rel=1e-12)


def test_nt_xent_gradient():
    first, second = (z.requires_grad_() for z in _pair(3))
    assert torch.autograd.gradcheck(lambda a, b: cross_entropy(*similarities(a, b, 0.3)), (first, second))


def test_simclr_passes_both_views_together():
    method = _method("simclr", temperature=0.2)
    with torch.no_grad():
        features = copy.deepcopy(method).net(torch.cat([BATCH.unlabeled["first"], BATCH.unlabeled["second"]])).features
        first, second = method.projector(features).chunk(2)
    loss = method(BATCH, At(0, 1))
    assert loss.terms["contrast"].item() == pytest.approx(_nt_xent(first, second, 0.2), rel=1e-9)


def test_its_accuracy_counts_the_anchors_that_find_the_other_view():
    first = torch.eye(3, dtype=torch.float64)
    scores, positives = similarities(first, first.roll(1, 0), 0.5)
    assert (scores.argmax(1) == positives).sum() == 0
    scores, positives = similarities(first, first, 0.5)
    assert (scores.argmax(1) == positives).all()


# --- Targets --------------------------------------------------------------------------------------


def test_byol_sums_both_directions():
    method = _method("byol")
    with torch.no_grad():  # a target of its own
        for parameter in method.target.parameters():
            parameter.add_(0.05 * torch.ones_like(parameter))
    _, (q_1, q_2) = _projections(method)
    z_1, z_2 = _targets(method)
    expected = sum(2 - 2 * _cos(q, z) for q, z in [*zip(q_1.tolist(), z_2.tolist(), strict=True),
                                                   *zip(q_2.tolist(), z_1.tolist(), strict=True)]) / len(q_1)
    assert _loss(method) == pytest.approx(expected, rel=1e-9)
    unit = [z / z.norm(dim=1, keepdim=True) for z in (q_1, z_2)]
    assert distance(q_1, z_2).item() == pytest.approx((unit[0] - unit[1]).square().sum(1).mean().item())


def test_byols_tau_follows_the_paper():
    for k, total in ((0, 100), (37, 100), (99, 100)):
        expected = 1 - (1 - 0.996) * (math.cos(math.pi * k / total) + 1) / 2
        assert At(k, total).value(TAU) == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("name", WITH_TARGET)
def test_targets_start_equal_learn_nothing_and_follow_after_the_step(name):
    factor = {"byol": "tau"}.get(name, "momentum")
    method = _method(name, **{factor: 0.9})
    pairs = [*zip(method.target.net.parameters(), method.net.parameters(), strict=True),
             *zip(method.target.projector.parameters(), method.projector.parameters(), strict=True)]
    assert all(torch.equal(target, source) for target, source in pairs)
    before = [target.clone() for target, _ in pairs]
    method(BATCH, At(0, 10)).total.backward()
    assert all(target.grad is None and not target.requires_grad for target, _ in pairs)
    with torch.no_grad():
        for _, source in pairs:
            source.add_(1.0)
    assert all(torch.equal(target, old) for (target, _), old in zip(pairs, before, strict=True))
    method.after_step(At(0, 10))
    for (target, source), old in zip(pairs, before, strict=True):
        torch.testing.assert_close(target, 0.9 * old + 0.1 * source.detach())


@pytest.mark.parametrize("name", WITH_TARGET)
def test_targets_normalize_by_the_batch_and_keep_their_own_statistics(name):
    method = _method(name)
    norm = next(m for m in method.target.net.modules() if isinstance(m, nn.BatchNorm2d))
    before = norm.running_mean.clone()
    method(BATCH, At(0, 10))
    assert norm.training
    moved = norm.running_mean.clone()
    assert not torch.equal(moved, before)
    method.after_step(At(0, 10))
    assert torch.equal(norm.running_mean, moved)
    assert not method.eval().target.net.training


def test_simsiam_against_its_equation():
    method = _method("simsiam")
    (z_1, z_2), (p_1, p_2) = _projections(method)
    rows = zip(*(x.tolist() for x in (z_1, z_2, p_1, p_2)), strict=True)
    expected = sum(-_cos(pa, zb) / 2 - _cos(pb, za) / 2 for za, zb, pa, pb in rows) / len(z_1)
    assert _loss(method) == pytest.approx(expected, rel=1e-9)
    loss = method(BATCH, At(0, 1))
    spread = (z_1 / z_1.norm(dim=1, keepdim=True)).std(dim=0).mean() * 4
    assert loss.logs["output_std"].item() == pytest.approx(spread.item())


def test_simsiam_stops_the_gradient_of_the_targets():
    """With a predictor that ignores its input, nothing else could reach the projector."""
    method = _method("simsiam")
    nn.init.zeros_(method.prediction[-1].weight)
    method(BATCH, At(0, 1)).total.backward()
    assert not method.projector[0].weight.grad.abs().gt(1e-12).any()
    assert method.prediction[-1].bias.grad.any()


# --- Barlow Twins, VICReg ----------------------------------------------------------------------------


def test_barlow_twins_against_loops():
    first, second = _pair(6, 3)
    columns = [[z[:, i].tolist() for i in range(3)] for z in (first, second)]

    def standardized(column):
        mean = sum(column) / 6
        deviation = math.sqrt(sum((x - mean) ** 2 for x in column) / 6 + 1e-5)
        return [(x - mean) / deviation for x in column]

    c = [[sum(a * b for a, b in zip(standardized(one), standardized(two), strict=True)) / 6 for two in columns[1]]
         for one in columns[0]]
    diagonal, other = cross_correlation_terms(first, second)
    assert diagonal.item() == pytest.approx(sum((1 - c[i][i]) ** 2 for i in range(3)), rel=1e-9)
    assert other.item() == pytest.approx(sum(c[i][j] ** 2 for i in range(3) for j in range(3) if i != j), rel=1e-9)


def test_barlow_twins_weighs_redundancy():
    method = _method("barlow_twins", redundancy=0.1)
    terms = cross_correlation_terms(*_projections(method)[0])
    loss = method(BATCH, At(0, 1)).terms
    assert loss["invariance"].item() == pytest.approx(terms[0].item())
    assert loss["redundancy"].item() == pytest.approx(0.1 * terms[1].item())


def test_vicreg_against_loops():
    first, second = _pair(6, 3)
    first = 0.5 * first  # some of the deviations are below 1
    method = _method("vicreg", invariance=2.0, variance=3.0, covariance=5.0)

    def cov(z, i, j):
        a, b = z[:, i].tolist(), z[:, j].tolist()
        return sum((x - sum(a) / 6) * (y - sum(b) / 6) for x, y in zip(a, b, strict=True)) / 5

    for z in (first, second):
        v = sum(max(0.0, 1 - math.sqrt(cov(z, j, j) + 1e-4)) for j in range(3)) / 3
        c = sum(cov(z, i, j) ** 2 for i in range(3) for j in range(3) if i != j) / 3
        assert hinge(z).item() == pytest.approx(v, rel=1e-9)
        assert covariance(z).item() == pytest.approx(c, rel=1e-9)
    (a, b), _ = _projections(method)
    loss = {name: term.item() for name, term in method(BATCH, At(0, 1)).terms.items()}
    assert loss == pytest.approx({
        "invariance": 2 * sum((x - y) ** 2 for x, y in zip(a.flatten().tolist(), b.flatten().tolist(), strict=True))
        / a.numel(),
        "variance": 3 * (hinge(a) + hinge(b)).item() / 2,
        "covariance": 5 * (covariance(a) + covariance(b)).item()})


# --- MoCo ---------------------------------------------------------------------------------------


def test_moco_v2_against_its_equation():
    method = _method("moco_v2", temperature=0.3)
    (queries, _), _ = _projections(method)
    keys, expected = _targets(method)[1].tolist(), 0.0
    method.queue.copy_(nn.functional.normalize(method.queue, dim=1))  # of length 1 in float64 too
    for q, k in zip(queries.tolist(), keys, strict=True):
        exps = [math.exp(_cos(q, other) / 0.3) for other in [k, *method.queue.tolist()]]
        expected += -math.log(exps[0] / sum(exps)) / len(keys)
    assert _loss(method) == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize("queue", [4, 13, 100])
def test_the_queue_holds_the_latest_keys(queue):
    """Batches of 6 keys; a queue of 4 takes the first 4, that of 13 overwrites its oldest."""
    method = METHODS["moco_v2"](net("tiny_4", classes=3, style=STYLE, seed=0), queue=queue).double()
    expected, place = method.queue.tolist(), 0
    for step in range(5):
        batch = _batch(6, seed=step)
        keys = nn.functional.normalize(_targets(method, batch)[1], dim=1).tolist()
        method(batch, At(step, 5))
        method.after_step(At(step, 5))
        for number, key in enumerate(keys[:queue]):
            expected[(place + number) % queue] = key
        place += 6
    torch.testing.assert_close(method.queue, torch.tensor(expected, dtype=torch.float64))


def test_the_queue_takes_the_keys_of_all_micro_batches():
    whole, parts = _method("moco_v2").eval(), _method("moco_v2").eval()  # eval: rows do not meet in BatchNorm
    whole(BATCH, At(0, 10))
    for number, part in enumerate(BATCH.chunk(2)):
        parts(part, At(0, 10, rank=number, world=2))
    whole.after_step(At(0, 10))
    parts.after_step(At(0, 10))
    torch.testing.assert_close(whole.queue, parts.queue)
    assert not torch.equal(whole.queue, _method("moco_v2").queue)


def test_moco_v3_against_its_equation():
    method = _method("moco_v3", temperature=0.3)
    with torch.no_grad():
        for parameter in method.target.parameters():
            parameter.add_(0.05 * torch.ones_like(parameter))
    _, queries = _projections(method)
    keys, expected = [z.tolist() for z in _targets(method)], 0.0
    for q, k in ((queries[0].tolist(), keys[1]), (queries[1].tolist(), keys[0])):
        for i, row in enumerate(q):
            exps = [math.exp(_cos(row, other) / 0.3) for other in k]
            expected += 2 * 0.3 * -math.log(exps[i] / sum(exps)) / len(k)
    assert _loss(method) == pytest.approx(expected, rel=1e-9)


# --- Two ranks --------------------------------------------------------------------------------------


def _ranked(first, second):
    """Losses over the rows of all ranks, each a function of this rank's projections."""
    return {
        "nt_xent": lambda: cross_entropy(*similarities(first, second, 0.3)),
        "barlow_twins": lambda: sum(cross_correlation_terms(gather(first), gather(second))),
        "vicreg": lambda: hinge(gather(0.3 * first)) + covariance(gather(second)),
        "moco_v3": lambda: contrastive(first, second.detach(), 0.3),
    }


def _gradients(rank=0, world=1):
    """Loss and gradient of each function of a shared weight; the rows are divided over the ranks."""
    found = {}
    inputs = [x.chunk(world)[rank] for x in _pair(8, 4)]
    for name in _ranked(*inputs):
        weight = torch.eye(4, dtype=torch.float64, requires_grad=True)
        loss = _ranked(*(x @ weight.exp() for x in inputs))[name]()
        loss.backward()
        found[name] = loss.detach(), weight.grad
    return found


def flat_methods():
    """Methods without BatchNorm, whose rows on two ranks are those on one."""
    return {"simclr": SimCLR(flat_net(), temperature=0.3).double(), "moco_v2": MoCoV2(flat_net(), queue=24).double()}


def _step_of_rank(rank):
    found = _gradients(rank, 2)
    for values in found.values():
        for value in values:
            torch.distributed.all_reduce(value)
            value.div_(2)
    steps = {}
    for name, method in flat_methods().items():
        at = At(0, 10, rank=rank, world=2)
        wrapped = torch.nn.parallel.DistributedDataParallel(method)
        loss = wrapped(Batch(BATCH.labeled, BATCH.unlabeled.part(rank, 2)), at).total
        loss.backward()
        method.after_step(at)
        gradients = {key: p.grad for key, p in method.named_parameters() if p.grad is not None}
        steps[name] = gradients, getattr(method, "queue", None)
    return found, steps


@pytest.fixture(scope="module")
def ranks(tmp_path_factory):
    return two_ranks(_step_of_rank, tmp_path_factory.mktemp("ranks"))


@pytest.mark.parametrize("name", ["nt_xent", "barlow_twins", "vicreg", "moco_v3"])
def test_the_loss_of_two_ranks_is_that_of_one(ranks, name):
    """The mean over ranks of losses and of gradients, as DDP takes it, is that of the whole batch."""
    loss, gradient = _gradients()[name]
    assert gradient.abs().max() > 1e-3
    for found, _ in ranks:
        torch.testing.assert_close(found[name][0], loss)
        torch.testing.assert_close(found[name][1], gradient)


@pytest.mark.parametrize("name", ["simclr", "moco_v2"])
def test_two_ranks_take_the_step_of_one(ranks, name):
    method = flat_methods()[name]
    method(BATCH, At(0, 10)).total.backward()
    method.after_step(At(0, 10))
    for _, steps in ranks:
        gradients, queue = steps[name]
        assert gradients.keys() == {key for key, p in method.named_parameters() if p.requires_grad}
        for key, gradient in gradients.items():
            torch.testing.assert_close(gradient, method.get_parameter(key).grad)
        if queue is not None:
            torch.testing.assert_close(queue, method.queue)


# --- lightly --------------------------------------------------------------------------------------


def test_losses_are_lightlys():
    loss = pytest.importorskip("lightly.loss")
    first, second = (z.float() for z in _pair(8, 6))
    ours = cross_entropy(*similarities(first, second, 0.3))
    torch.testing.assert_close(ours, loss.NTXentLoss(temperature=0.3)(first, second))
    diagonal, other = cross_correlation_terms(first, second)
    torch.testing.assert_close(diagonal + 0.005 * other, loss.BarlowTwinsLoss(lambda_param=0.005)(first, second))
    ours = (25 * (first - second).square().mean() + 12.5 * (hinge(first) + hinge(second))
            + covariance(first) + covariance(second))
    torch.testing.assert_close(ours, loss.VICRegLoss()(first, second))
