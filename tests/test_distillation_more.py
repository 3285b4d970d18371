"""Distillation with memories, fusion, ladders and peers: contract, float64 references by loops, identities."""

import copy
import itertools
import json
import math
import os
import signal
import statistics
from functools import partial

import pytest
import torch
from forked import two_ranks
from slow import softmax
from small_runs import assert_same_run, digits, train, with_teacher
from test_distillation_logits import AT, BATCH, CLASSES, STYLE, _kl, _method, _slow_kd, _teacher
from test_recipes import run as run_recipe
from torch import nn

import ssl_lab as sl
from ssl_lab import methods
from ssl_lab.batch import At, Batch, Rows
from ssl_lab.errors import Interrupted, UsageError
from ssl_lab.methods.distillation import (
    CESKD,
    CRD,
    DISTILLATION,
    KD,
    SEED,
    TEACHERLESS,
    MutualLearning,
    ReviewKD,
    SelfDistillation,
    SoTeacher,
    StoredLogits,
    Teacher,
    TeacherAssistant,
    load_teacher,
)
from ssl_lab.methods.distillation.crd import nce, remember
from ssl_lab.methods.distillation.hooks import see
from ssl_lab.methods.distillation.kd import kd_loss
from ssl_lab.methods.distillation.mutual_learning import shuffled
from ssl_lab.methods.distillation.review_kd import Fusion, hcl
from ssl_lab.methods.distillation.seed import seed_loss
from ssl_lab.methods.distillation.so_teacher import lipschitz
from ssl_lab.nets import Net, net
from ssl_lab.testing import check_method
from ssl_lab.views import Eval

IMAGES = 120  # indices of BATCH are below
IMAGES_OF_BATCH = torch.cat([BATCH.labeled["view"], BATCH.unlabeled["view"]])
INDICES = torch.cat([BATCH.labeled.indices, BATCH.unlabeled.indices])


def _double(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def _unit(*shape, seed=0):
    return nn.functional.normalize(_double(*shape, seed=seed), dim=-1)


def _alone(cls, **arguments):
    """A method without a teacher."""
    return cls(net("tiny_4", classes=CLASSES, style=STYLE, seed=0), **arguments).double().train()


# --- Every method --------------------------------------------------------------------------------


@pytest.mark.parametrize(("build", "compiled"), [
    (with_teacher(partial(CRD, images=20, rows=torch.arange(20))), False), (with_teacher(ReviewKD), False),
    (with_teacher(partial(SEED, queue=40)), False),
    (with_teacher(TeacherAssistant), False), (with_teacher(CESKD), False), (SelfDistillation, False),
    (MutualLearning, True), (partial(SoTeacher, images=20), False)])
def test_contract(build, compiled):
    check_method(build, compile=compiled)


def test_ces_kd_with_a_ladder_keeps_the_contract():
    def build(student):
        large = with_teacher(CESKD)(student).teacher.net
        return CESKD(student, Teacher(shuffled(large), large))

    check_method(build, compile=False)


def test_names():
    assert list(TEACHERLESS) == ["self_distillation", "mutual_learning", "so_teacher"]
    assert list(DISTILLATION)[-5:] == ["crd", "seed", "review_kd", "teacher_assistant", "ces_kd"]
    assert {method.family for method in TEACHERLESS.values()} == {"distillation"}


@pytest.fixture
def _registered(monkeypatch):
    monkeypatch.setattr(methods, "METHODS", methods.METHODS | DISTILLATION | TEACHERLESS)


@pytest.mark.usefixtures("_registered")
@pytest.mark.parametrize("method", TEACHERLESS)
def test_methods_without_a_teacher_run(tmp_path, method):
    run_recipe("consistency", "--method", method, "--steps", 2, "--unlabeled", 16, "--out", tmp_path)
    assert json.loads((tmp_path / "summary.json").read_text())["method"] == method


@pytest.mark.usefixtures("_registered")
def test_what_so_teacher_trained_teaches(tmp_path, capsys):
    run_recipe("distill", "--net", "tiny_4", "--teacher", "so_teacher", "--teacher-net", "tiny_6", "--teacher-steps", 2,
               "--steps", 2, "--out", tmp_path)
    assert json.loads((tmp_path / "teacher" / "summary.json").read_text())["method"] == "so_teacher"
    assert "teacher tiny_6" in capsys.readouterr().out


# --- CRD -----------------------------------------------------------------------------------------


def _slow_nce(anchors, memory, indices, chosen, temperature, mean=None):
    """The loss, and Z / images: the mean of exp(score) over the rows and the chosen images."""
    score = [[math.exp(sum(a * m for a, m in zip(anchor, other, strict=True)) / temperature) for other in memory]
             for anchor in anchors]
    others = [[j for j in chosen if j != i] for i in indices]
    mean = mean or statistics.fmean(score[n][j] for n in range(len(anchors)) for j in chosen)
    k, total = len(chosen), 0.0
    for n, i in enumerate(indices):
        h = [value / (value + k * mean) for value in score[n]]
        total -= math.log(h[i]) + k * statistics.fmean(math.log(1 - h[j]) for j in others[n])
    return total / len(anchors), mean


@pytest.mark.parametrize("known", [None, 3.7])
def test_nce_against_its_equation(known):
    anchors, memory, indices, chosen = _unit(3, 4), _unit(9, 4, seed=1), [2, 8, 2], [0, 2, 5, 8]
    log_mean = torch.tensor(math.nan if known is None else math.log(known), dtype=torch.float64)
    found = nce(anchors, memory, torch.tensor(indices), torch.tensor(chosen), 0.2, log_mean)
    loss, mean = _slow_nce(anchors.tolist(), memory.tolist(), indices, chosen, 0.2, known)
    assert found.loss.item() == pytest.approx(loss, rel=1e-12)
    assert found.log_mean.item() == pytest.approx(math.log(mean), rel=1e-9)


def test_nce_that_tells_nothing_apart_is_that_of_its_prior():
    """At a high temperature h = 1 / (1 + K), whatever the embeddings."""
    found = nce(_unit(3, 4), _unit(9, 4, seed=1), torch.tensor([2, 8, 1]), torch.arange(6), 1e9, torch.tensor(math.nan))
    assert found.loss.item() == pytest.approx(math.log(7) + 6 * math.log(7 / 6), rel=1e-6)


def test_nce_is_finite_for_a_tiny_temperature():
    anchors = _unit(3, 4).float().requires_grad_()
    found = nce(anchors, _unit(9, 4, seed=1).float(), torch.tensor([2, 8, 1]), torch.arange(6), 1e-3,
                torch.tensor(math.nan))
    found.loss.backward()
    assert torch.isfinite(found.loss)
    assert torch.isfinite(anchors.grad).all()


def _crd(**arguments):
    given = {"rows": torch.arange(IMAGES), "negatives": 30, **arguments}
    return _method(partial(CRD, images=IMAGES, dim=5, **given))


def _embeddings(method):
    """Of student and teacher, from one joint pass of each: [rows, dim] twice."""
    method = copy.deepcopy(method)
    features = [see(each, IMAGES_OF_BATCH).features for each in (method.net, method.teacher.net)]
    return [nn.functional.normalize(embed(each), dim=1).detach()
            for embed, each in zip(method.embed, features, strict=True)]


def test_crd_compares_each_net_with_the_other_ones_memory():
    method = _crd(weight=2.0, temperature=0.3)
    s, t = (each.tolist() for each in _embeddings(method))
    chosen = []
    spied = pytest.MonkeyPatch()
    spied.setattr("ssl_lab.methods.distillation.crd.nce", lambda *given: chosen.append(given[3]) or nce(*given))
    loss = method(BATCH, AT).terms["distilled"].item()
    spied.undo()
    assert torch.equal(chosen[0], chosen[1])
    assert len(set(chosen[0].tolist())) == 30
    memory_s, memory_t = method.memory.tolist()
    expected = [_slow_nce(a, memory, INDICES.tolist(), chosen[0].tolist(), 0.3)[0]
                for a, memory in ((s, memory_t), (t, memory_s))]
    assert loss == pytest.approx(2 * sum(expected), rel=1e-9)


def test_crd_remembers():
    method = _crd(momentum=0.25)
    before, embeddings = method.memory.clone(), _embeddings(method)
    method(BATCH, AT)
    method.after_step(AT)
    for old, new, said in zip(before, method.memory, embeddings, strict=True):
        expected = old.clone()
        for i, row in zip(INDICES.tolist(), said, strict=True):
            moved = 0.25 * old[i] + 0.75 * row
            expected[i] = moved / moved.norm()
        assert torch.allclose(new, expected, rtol=1e-9)
        assert not torch.allclose(new, old)
    assert torch.allclose(method.memory.norm(dim=2), torch.ones(2, IMAGES, dtype=torch.float64))


def test_an_image_that_is_there_twice_leaves_the_mean_of_its_embeddings():
    memory, said = _unit(2, 6, 3), _unit(3, 2, 3, seed=1)
    old = memory.clone()
    remember(memory, torch.tensor([4, 1, 4]), said, 0.5)
    expected = nn.functional.normalize(0.5 * old[:, 4] + 0.5 * said[[0, 2]].mean(dim=0), dim=1)
    assert torch.allclose(memory[:, 4], expected)
    assert torch.equal(memory[:, [0, 2, 3, 5]], old[:, [0, 2, 3, 5]])


def test_the_normalizer_of_crd_is_that_of_the_first_step():
    method = _crd()
    assert method.log_mean.isnan().all()
    kept = []
    for step in range(3):
        method(BATCH, At(step, 10))
        method.after_step(At(step, 10))
        kept.append(method.log_mean.clone())
    assert torch.isfinite(kept[0]).all()
    assert torch.equal(kept[0], kept[2])


def test_negatives_depend_on_seed_and_step_and_are_no_more_than_images():
    def loss(at, **arguments):
        return _crd(**arguments)(BATCH, at).terms["distilled"].item()

    assert loss(AT) == loss(AT)
    assert loss(AT) != loss(At(4, 10))
    assert loss(AT) != loss(At(3, 10, seed=1))
    assert _crd(negatives=16384).negatives == IMAGES
    for words, arguments in (("CRD with 1 images that train", {"rows": torch.arange(1)}),
                             ("images=120, but row 120 trains", {"rows": torch.arange(121)})):
        with pytest.raises(UsageError, match=words):
            _crd(**arguments)


def test_negatives_are_images_that_train():
    """What the others have in the memories changes nothing."""
    method = _crd(rows=INDICES, negatives=16384)
    other = copy.deepcopy(method)
    idle = [i for i in range(IMAGES) if i not in INDICES.tolist()]
    other.memory[:, idle] = 1
    assert method.negatives == len(INDICES)
    assert method(BATCH, AT).total == other(BATCH, AT).total
    pool = digits()
    built = sl.build.method("crd", net("tiny_4", style=pool.style), pool,
                            {"teacher": net("tiny_6", style=pool.style)})
    assert built.candidates.tolist() == pool.unlabeled.tolist()


def test_crds_memory_resumes(tmp_path):
    pool = digits()

    def method():
        return CRD(net("tiny_4", classes=10, style=pool.style, seed=0),
                   net("tiny_6", classes=10, style=pool.style, seed=9), len(pool),
                   torch.from_numpy(pool.unlabeled), negatives=64, dim=8)

    def stop(closure, optimizer, at):
        loss = closure()
        optimizer.step()
        if at.step == 1:
            os.kill(os.getpid(), signal.SIGINT)
        return loss

    train(tmp_path / "whole", method(), pool, steps=4)
    with pytest.raises(Interrupted):
        train(tmp_path / "cut", method(), pool, steps=4, update=stop)
    state = torch.load(tmp_path / "cut" / "checkpoint.pt", weights_only=True)
    assert 0 < state["step"] < 4
    assert state["method"]["memory"].shape == (2, len(pool), 8)
    train(tmp_path / "cut", method(), pool, steps=4, resume="auto")
    assert_same_run(tmp_path / "whole", tmp_path / "cut")


# --- SEED ----------------------------------------------------------------------------------------


def _slow_seed(student, teacher, queue, temperature, teacher_temperature):
    """Row by row, over the teacher's own embedding and those in the queue."""
    def dot(a, b):
        return sum(x * y for x, y in zip(a, b, strict=True))

    total = 0.0
    for s, t in zip(student, teacher, strict=True):
        others = [t, *queue]
        p_t = softmax([dot(t, d) for d in others], teacher_temperature)
        p_s = softmax([dot(s, d) for d in others], temperature)
        total -= sum(a * math.log(b) for a, b in zip(p_t, p_s, strict=True))
    return total / len(student)


def test_seed_against_its_equation():
    student, teacher, queue = _unit(3, 4), _unit(3, 4, seed=1), _unit(9, 4, seed=2)
    for temperatures in ((0.2, 0.3), (1.0, 0.1)):
        expected = _slow_seed(student.tolist(), teacher.tolist(), queue.tolist(), *temperatures)
        assert seed_loss(student, teacher, queue, *temperatures).item() == pytest.approx(expected, rel=1e-12)


def test_seed_is_least_where_the_student_is_the_teacher():
    """At equal temperatures: there it is the entropy of the teacher's similarities."""
    teacher, queue = _unit(5, 4, seed=1), _unit(9, 4, seed=2)
    student = teacher.clone().requires_grad_()
    least = seed_loss(student, teacher, queue, 0.2, 0.2)
    assert torch.autograd.grad(least, student)[0].abs().max() < 1e-12
    assert all(seed_loss(_unit(5, 4, seed=seed), teacher, queue, 0.2, 0.2) > least for seed in range(3, 8))


def _seed(**arguments):
    """In eval mode: the passes of a step do not change the next one's."""
    return _method(partial(SEED, **{"queue": 20, **arguments})).eval()


def test_seed_compares_with_what_the_teacher_saw_in_the_last_steps():
    method = _seed(weight=0.7, temperature=0.3, teacher_temperature=0.1)
    queue = method.queue.tolist()
    with torch.no_grad():
        student, teacher = (see(each, IMAGES_OF_BATCH).features for each in (method.net, method.teacher.net))
        s, t = (nn.functional.normalize(each, dim=1).tolist() for each in (method.projector(student), teacher))
    places = iter([*range(20)] * 2)
    for step in range(3):  # 12 rows each: the second step takes the first places again
        found = method(BATCH, At(step, 10)).terms["distilled"].item()
        assert found == pytest.approx(0.7 * _slow_seed(s, t, queue, 0.3, 0.1), rel=1e-9)
        method.after_step(At(step, 10))
        for row in INDICES.argsort().tolist():
            queue[next(places)] = t[row]
        assert torch.allclose(method.queue, torch.tensor(queue, dtype=torch.float64), atol=1e-12)


def test_seed_without_labels_leaves_the_head_and_without_a_queue_makes_no_sense():
    method = _seed()
    loss = method(Batch(Rows({}, *(torch.empty(0, dtype=torch.int64),) * 3), BATCH.unlabeled), AT)
    assert list(loss.terms) == ["distilled"]
    loss.total.backward()
    assert method.net.head.weight.grad is None
    assert any(bool(each.grad.any()) for each in method.net.backbone.parameters())
    with pytest.raises(UsageError, match="queue=0"):
        _seed(queue=0)


# --- State that is equal on all ranks ------------------------------------------------------------

STATEFUL = [_crd, _seed, partial(_alone, SoTeacher, images=IMAGES)]
EVEN = Batch(*(Rows({"view": rows["view"][:4]}, rows.targets[:4], rows.truth[:4], rows.indices[:4])
               for rows in (BATCH.labeled, BATCH.unlabeled)))


def _stepped(build, rank=0, world=1):
    method = build().eval()  # with statistics of its own, BatchNorm tells ranks apart
    for step in range(3):
        at = At(step, 10, rank=rank, world=world)
        part = Batch(EVEN.labeled.part(rank, world), EVEN.unlabeled.part(rank, world))
        method(part, at)
        method.after_step(at)
    return {name: value for name, value in method.named_buffers() if "." not in name}


def _states_of_rank(rank):
    return [_stepped(build, rank, 2) for build in STATEFUL]


def test_state_is_equal_on_one_rank_and_on_two(tmp_path):
    first, second = two_ranks(_states_of_rank, tmp_path)
    for build, one, two in zip(STATEFUL, first, second, strict=True):
        alone, start = _stepped(build), dict(build().named_buffers())
        for name in one:
            assert torch.equal(one[name], two[name]), name
            assert torch.allclose(one[name], alone[name], atol=1e-12), name
            assert not torch.equal(one[name], start[name]), name


# --- ReviewKD ------------------------------------------------------------------------------------


@pytest.mark.parametrize(("height", "width"), [(1, 1), (2, 2), (4, 4), (8, 8), (8, 12)])
def test_hcl_compares_at_several_sizes(height, width):
    student, teacher = _double(2, 3, height, width), _double(2, 3, height, width, seed=1)
    errors, weights = [(student - teacher).square().mean().item()], [1.0]
    for size in (s for s in (4, 2, 1) if s < height):
        h, w = height // size, width // size
        parts = [[(student - teacher)[n, c, i * h:(i + 1) * h, j * w:(j + 1) * w].mean().item() ** 2]
                 for n, c, i, j in itertools.product(range(2), range(3), range(size), range(size))]
        errors.append(statistics.fmean(part[0] for part in parts))
        weights.append(weights[-1] / 2)
    expected = sum(w * e for w, e in zip(weights, errors, strict=True)) / sum(weights)
    assert hcl(student, teacher).item() == pytest.approx(expected, rel=1e-9)


def test_hcl_of_maps_that_differ_by_a_constant_is_its_square():
    maps = _double(2, 3, 8, 8)
    assert hcl(maps + 0.3, maps).item() == pytest.approx(0.09, rel=1e-9)
    assert hcl(maps, maps).item() == 0


def _fusion(alone=False):
    torch.manual_seed(0)
    return Fusion(3, 4, 5, alone).double().eval()


def test_fusion_place_by_place():
    fusion, own, review = _fusion(), _double(2, 3, 4, 4), _double(2, 4, 2, 2, seed=1)
    fused, output = fusion(own, review, (8, 8))
    with torch.no_grad():
        entered = fusion.enter(own)
        conv = fusion.attend[0]
        for n, i, j in itertools.product(range(2), range(8), range(8)):
            a, b = entered[n, :, i // 2, j // 2], review[n, :, i // 4, j // 4]
            shares = torch.sigmoid(conv.weight[:, :, 0, 0] @ torch.cat([a, b]) + conv.bias)
            assert torch.allclose(fused[n, :, i, j], shares[0] * a + shares[1] * b, rtol=1e-9)
        assert torch.allclose(output, fusion.leave(fused))
    assert output.shape == (2, 5, 8, 8)


def test_fusion_that_attends_to_its_own_map_alone_needs_no_review():
    fusion, alone, own = _fusion(), _fusion(alone=True), _double(2, 3, 4, 4)
    fusion.attend[0].weight.data.zero_()
    fusion.attend[0].bias.data.copy_(torch.tensor([800.0, -800.0]))
    alone.load_state_dict({key: value for key, value in fusion.state_dict().items() if "attend" not in key})
    given = fusion(own, _double(2, 4, 2, 2, seed=1), (4, 4))
    assert all(torch.equal(a, b) for a, b in zip(given, alone(own, None, (4, 4)), strict=True))


def _levels(method):
    """Maps and pooled features, a map of one place, of student and teacher."""
    method = copy.deepcopy(method)
    for each, layers in ((method.net, method.layers), (method.teacher.net, method.teacher_layers)):
        seen = see(each, IMAGES_OF_BATCH, layers)
        yield [*seen.maps, seen.features[:, :, None, None]]


def test_review_kd_goes_from_the_last_level_to_the_first():
    method = _method(ReviewKD, weight=2.0)
    assert method.layers == ("blocks.0", "blocks.1", "blocks")
    copied = copy.deepcopy(method)
    with torch.no_grad():
        student, teacher = _levels(method)
        review, output = copied.last[0](student[3], None, (1, 1))
        expected = hcl(output, teacher[3])
        for level in (2, 1, 0):
            review, output = copied.fusions[level](student[level], review, teacher[level].shape[2:])
            assert output.shape == teacher[level].shape
            expected = expected + hcl(output, teacher[level])
    assert method(BATCH, AT).terms["distilled"].item() == pytest.approx(2 * expected.item(), rel=1e-9)


def test_the_teachers_first_level_teaches_the_students_last_one():
    method = _method(ReviewKD)
    student, teacher = ([each.detach().requires_grad_() for each in levels] for levels in _levels(method))
    review, _ = method.last[0](student[3], None, (1, 1))
    for level in (2, 1, 0):
        review, output = method.fusions[level](student[level], review, teacher[level].shape[2:])
    hcl(output, teacher[0].detach()).backward()
    assert all(each.grad.abs().max() > 0 for each in student)


def test_review_kd_warms_up_and_takes_layers():
    assert _method(ReviewKD)(BATCH, At(0, 240)).terms["distilled"] == 0
    named = _method(ReviewKD, layers="stem", teacher_layers="blocks.1")
    assert torch.isfinite(named(BATCH, AT).total)
    assert len(named.fusions) == 1


# --- Teacher assistants, CES-KD ------------------------------------------------------------------


def test_a_rung_of_the_ladder_is_kd():
    rung, kd = _method(TeacherAssistant)(BATCH, AT), _method(KD)(BATCH, AT)
    assert rung.total == kd.total


@pytest.mark.usefixtures("_registered")
def test_a_ladder_of_runs(tmp_path):
    run_recipe("supervised", "--net", "tiny_6", "--steps", 2, "--out", tmp_path / "teacher")
    for name, teacher, out in (("tiny_5", "teacher", "assistant"), ("tiny_4", "assistant", "student")):
        run_recipe("distill", "--method", "teacher_assistant", "--teacher", tmp_path / teacher, "--net", name,
                   "--steps", 2, "--out", tmp_path / out)
    assert load_teacher(tmp_path / "student", 10, digits().style).net.name == "tiny_4"
    assert "tiny_5" in (tmp_path / "assistant" / "config.yaml").read_text()


LADDER = ("tiny_4", "tiny_5", "tiny_6")


def _nets():
    return [_teacher(name, seed=seed).double() for seed, name in enumerate(LADDER, start=1)]


def test_ces_kd_chooses_a_teacher_by_difficulty():
    nets = _nets()
    method = _method(CESKD, teacher=Teacher(*nets), temperature=3.0, weight=1.0)
    said = [each.eval()(IMAGES_OF_BATCH).logits.detach() for each in nets]
    difficulty = [1 - max(softmax(row)) for row in said[2].tolist()]
    chosen = torch.stack([said[sum(other < mine for other in difficulty) * 3 // 12][n]
                          for n, mine in enumerate(difficulty)])
    assert not any(torch.equal(chosen, each) for each in said)
    student = copy.deepcopy(method).net(IMAGES_OF_BATCH).logits.detach()
    assert method(BATCH, AT).terms["distilled"].item() == pytest.approx(_slow_kd(student, chosen, 3.0), rel=1e-9)


def test_only_the_last_teacher_sees_all_images():
    nets, seen = _nets(), {name: [] for name in LADDER}
    for each in nets:
        each.register_forward_pre_hook(lambda module, given: seen[module.name].append(len(given[0])))
    _method(CESKD, teacher=Teacher(*nets))(BATCH, AT)
    assert seen == {"tiny_4": [4], "tiny_5": [4], "tiny_6": [12]}


def test_ces_kd_with_one_teacher_is_kd():
    assert _method(CESKD)(BATCH, AT).total == _method(KD)(BATCH, AT).total
    same = Teacher(*[_teacher() for _ in range(3)])
    assert _method(CESKD, teacher=same)(BATCH, AT).total.item() == pytest.approx(
        _method(KD)(BATCH, AT).total.item(), rel=1e-12)


def test_a_ladder_takes_more_rungs_than_images_and_its_own_size():
    few = Batch(Rows({}, *(torch.empty(0, dtype=torch.int64),) * 3), BATCH.unlabeled.part(0, 7))
    nets, sizes = _nets(), []
    nets[0].register_forward_pre_hook(lambda module, given: sizes.append(tuple(given[0].shape)))
    assert torch.isfinite(_method(CESKD, teacher=Teacher(*nets, image_size=12))(few, AT).total)
    assert sizes == [(1, 1, 12, 12)]
    with pytest.raises(UsageError, match="ces_kd needs the nets that teach"):
        _method(CESKD, teacher=StoredLogits(_double(9, CLASSES)), view=Eval)


def test_several_teachers_are_loaded_in_order(tmp_path):
    for each in _nets()[1:]:
        torch.save(each.float().state_dict(), tmp_path / f"{each.name}.pt")
    torch.save({"logits": _double(9, CLASSES)}, tmp_path / "logits.pt")
    both = f"{tmp_path / 'tiny_6.pt'},{tmp_path / 'tiny_6.pt'}"
    loaded = load_teacher(both, CLASSES, STYLE, "tiny_6")
    assert [each.name for each in loaded.members] == ["tiny_6", "tiny_6"]
    assert loaded.classifies
    images = torch.rand(3, 1, 8, 8)
    alone = load_teacher(tmp_path / "tiny_6.pt", CLASSES, STYLE, "tiny_6")
    assert torch.allclose(loaded(images, torch.arange(3)).logits.softmax(1),
                          alone(images, torch.arange(3)).logits.softmax(1), atol=1e-6)
    with pytest.raises(UsageError, match="are no ensemble"):
        load_teacher(f"{both},{tmp_path / 'logits.pt'}", CLASSES, STYLE, "tiny_6")


# --- Self-distillation ---------------------------------------------------------------------------


def _entropy(row, y):
    return -math.log(softmax(row)[y])


def test_self_distillation_stage_by_stage():
    method = _alone(SelfDistillation, alpha=0.3, hint=0.01, temperature=2.0)
    assert method.layers == ("blocks.0", "blocks.1")
    copied, targets = copy.deepcopy(method), BATCH.labeled.targets.tolist()
    labeled = distilled = hints = 0.0
    with torch.no_grad():
        seen = see(copied.net, IMAGES_OF_BATCH, method.layers)
        for stage in range(2):
            features = copied.branches[stage](seen.maps[stage])
            logits = copied.heads[stage](features)
            labeled += statistics.mean(map(_entropy, logits[:5].tolist(), targets))
            distilled += _slow_kd(logits, seen.logits, 2.0)
            hints += statistics.mean(math.dist(a, b) ** 2 for a, b in
                                     zip(features.tolist(), seen.features.tolist(), strict=True))
    terms = {name: term.item() for name, term in method(BATCH, AT).terms.items()}
    last = statistics.mean(map(_entropy, seen.logits[:5].tolist(), targets))
    assert terms == pytest.approx({"labeled": last, "branches": 0.7 * labeled, "distilled": 0.3 * distilled,
                                   "hints": 0.01 * hints}, rel=1e-9)


@pytest.mark.parametrize("term", ["distilled", "hints"])
def test_the_last_stage_is_taught_by_labels_alone(term):
    """No gradient of what the branches learn reaches the last block or the head."""
    method = _alone(SelfDistillation)
    method(BATCH, AT).terms[term].backward()
    assert method.net.head.weight.grad is None
    assert all(p.grad is None for p in method.net.backbone.blocks[2].parameters())
    assert method.net.backbone.blocks[1].branch[0].weight.grad.abs().max() > 0


def test_branches_are_no_part_of_what_is_exported_and_may_start_anywhere():
    method = _alone(SelfDistillation, layers="stem,blocks.1")
    assert [len(branch) - 2 for branch in method.branches] == [2, 1]
    assert method.predictor().state_dict().keys() == _teacher("tiny_4").state_dict().keys()
    assert torch.isfinite(method(BATCH, AT).total)
    flat = _teacher("tiny_4")
    flat.backbone.blocks = nn.Sequential()
    flat.backbone.stem[0].stride = (64, 64)
    with pytest.raises(UsageError, match="has no maps"):
        SelfDistillation(flat)
    flat = _teacher("tiny_4")
    flat.backbone.blocks = nn.Sequential()
    with pytest.raises(UsageError, match="maps of one resolution"):
        SelfDistillation(flat)


# --- Mutual learning -----------------------------------------------------------------------------


def _logits_of(method):
    copied = copy.deepcopy(method)
    return [each(IMAGES_OF_BATCH).logits.detach() for each in (copied.net, copied.peer)]


def test_mutual_learning_is_two_losses():
    method = _alone(MutualLearning, weight=0.6)
    first, second = _logits_of(method)
    targets = BATCH.labeled.targets.tolist()
    labeled = sum(statistics.mean(map(_entropy, logits[:5].tolist(), targets)) for logits in (first, second))
    mutual = statistics.mean(_kl(q, p) + _kl(p, q) for p, q in
                             zip(map(softmax, first.tolist()), map(softmax, second.tolist()), strict=True))
    terms = {name: term.item() for name, term in method(BATCH, AT).terms.items()}
    assert terms == pytest.approx({"labeled": labeled, "mutual": 0.6 * mutual}, rel=1e-9)


def test_each_net_learns_from_the_other_as_from_a_constant():
    method = _alone(MutualLearning)
    expected = copy.deepcopy(method)
    _, constant = _logits_of(method)
    kd_loss(expected.net(IMAGES_OF_BATCH).logits, constant).backward()
    method(BATCH, AT).terms["mutual"].backward()
    assert torch.allclose(method.net.head.weight.grad, expected.net.head.weight.grad, rtol=1e-9)
    assert method.peer.head.weight.grad.abs().max() > 0


def test_nets_that_agree_have_nothing_to_learn_from_each_other():
    twin = net("tiny_4", classes=CLASSES, style=STYLE, seed=0)
    loss = _alone(MutualLearning, peer=twin)(BATCH, AT)
    assert loss.terms["mutual"].item() == pytest.approx(0, abs=1e-12)
    assert loss.logs["agreement"] == 1


def test_the_peer_is_another_draw_of_initial_weights():
    first = net("tiny_16", style=STYLE, seed=0)
    before = copy.deepcopy(first.state_dict())
    second = shuffled(first)
    assert all(torch.equal(value, before[name]) for name, value in first.state_dict().items())
    for (name, one), two in zip(first.named_parameters(), second.parameters(), strict=True):
        assert torch.equal(one.flatten().sort().values, two.flatten().sort().values)
        assert torch.equal(one, two) == (one.ndim == 1), name
    assert all(torch.equal(one, two) for one, two in zip(second.parameters(), shuffled(first).parameters(),
                                                        strict=True))


def test_a_peer_may_be_of_another_kind_and_the_first_net_is_exported():
    method = _alone(MutualLearning, peer=_teacher("tiny_6"))
    assert torch.isfinite(method(BATCH, AT).total)
    assert isinstance(method.predictor(), Net)
    assert method.predictor().name == "tiny_4"
    assert {name.split(".")[0] for name, p in method.named_parameters() if p.requires_grad} == {"net", "peer"}
    student = _teacher("tiny_4")
    with pytest.raises(UsageError, match="the peer is the net itself"):
        MutualLearning(student, student)
    with pytest.raises(UsageError, match="tells 10 classes apart, the net 4"):
        MutualLearning(student, net("tiny_4", classes=10, style=STYLE))


# --- SoTeacher -----------------------------------------------------------------------------------


def test_the_lipschitz_term_layer_by_layer():
    made = _alone(SoTeacher, images=IMAGES).net
    for module in made.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_var.uniform_(0.2, 3, generator=torch.Generator().manual_seed(1))
            module.weight.data.uniform_(-2, 2, generator=torch.Generator().manual_seed(2))
    expected = 0.0
    for name, value in made.state_dict().items():
        if value.ndim == 4:
            expected += sum(abs(w) for w in value.flatten().tolist())
        elif name.endswith("running_var"):
            gamma = made.get_parameter(name.replace("running_var", "weight")).tolist()
            expected += max(abs(g) / math.sqrt(v + 1e-5) for g, v in zip(gamma, value.tolist(), strict=True))
    expected += max(sum(map(abs, column)) for column in zip(*made.head.weight.tolist(), strict=True))
    assert lipschitz(made).item() == pytest.approx(expected, rel=1e-9)


def test_the_bound_of_a_linear_layer_is_how_far_it_can_carry_an_input():
    """The largest of |W d|_1 / |d|_1 is that of a unit vector d."""
    layer = nn.Linear(4, 3, bias=False).double()
    d = _double(4, 2000)
    stretched = ((layer.weight @ d).abs().sum(dim=0) / d.abs().sum(dim=0)).max().item()
    units = layer.weight.abs().sum(dim=0).max().item()
    assert stretched <= lipschitz(layer).item() == pytest.approx(units)


def test_so_teacher_is_held_to_the_mean_of_its_past_predictions():
    """Image 3 is in the second batch twice; both rows count."""
    method = _alone(SoTeacher, images=9, lipschitz=0.0, consistency=2.0)
    past, images = {i: [] for i in range(9)}, _double(3, 6, 1, 8, 8).sigmoid()
    steps = [[0, 1, 2, 3, 4, 5], [3, 3, 1, 6, 7, 8], [3, 6, 0, 1, 5, 2]]
    for step, indices in enumerate(steps):
        rows = Rows({"view": images[step]}, torch.full((6,), -1), torch.full((6,), -1), torch.tensor(indices))
        labeled = Rows({"view": images[step, :0]}, *(torch.empty(0, dtype=torch.int64),) * 3)
        said = [softmax(row) for row in copy.deepcopy(method).net(images[step]).logits.tolist()]
        expected = sum(math.dist(p, [statistics.fmean(part) for part in zip(*past[i], strict=True)]) ** 2
                       for i, p in zip(indices, said, strict=True) if past[i]) / 6
        loss = method(Batch(labeled, rows), At(step, 10))
        assert loss.terms["consistency"].item() == pytest.approx(2 * expected, rel=1e-9)
        assert (expected == 0) == (step == 0)
        method.after_step(At(step, 10))
        for i, p in zip(indices, said, strict=True):
            past[i].append(p)
    assert method.visits.tolist() == [len(past[i]) for i in range(9)]


def test_so_teacher_without_its_terms_is_supervised_learning():
    method = _alone(SoTeacher, images=IMAGES, lipschitz=0.0, consistency=0.0)
    logits = copy.deepcopy(method).net(IMAGES_OF_BATCH).logits[:5].tolist()
    expected = statistics.mean(map(_entropy, logits, BATCH.labeled.targets.tolist()))
    assert method(BATCH, AT).total.item() == pytest.approx(expected, rel=1e-6)
    with pytest.raises(UsageError, match="give the number of images"):
        SoTeacher(_teacher(), images=0)
