"""Distillation's base and the losses on logits: contract, float64 references row by row, identities, the teacher."""

import copy
import json
import math
import statistics
from functools import partial

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from slow import softmax
from small_runs import assert_same_run, digits, train, with_teacher
from torch import nn

from ssl_lab.batch import At, Batch, Rows, Style
from ssl_lab.data import Pool
from ssl_lab.errors import UsageError
from ssl_lab.methods import Supervised
from ssl_lab.methods.distillation import (
    DIST,
    DISTILLATION,
    DKD,
    KD,
    FunctionMatching,
    LogitStd,
    StoredLogits,
    Teacher,
    load_teacher,
)
from ssl_lab.methods.distillation.dist import pearson
from ssl_lab.methods.distillation.dkd import decoupled
from ssl_lab.methods.distillation.kd import kd_loss
from ssl_lab.methods.distillation.logit_std import standardize
from ssl_lab.methods.learning_loss import LearningLoss
from ssl_lab.nets import net
from ssl_lab.testing import check_method
from ssl_lab.views import Eval

CLASSES = 4
STYLE = Style(1, 8, 8, mean=(0.3,), std=(0.4,))
AT = At(3, 10)
LOGITS = [KD, DKD, DIST, LogitStd, FunctionMatching]


def _teacher(name="tiny_6", seed=9):
    return net(name, classes=CLASSES, style=STYLE, seed=seed)


def _method(cls=KD, teacher=None, **arguments):
    student = net("tiny_4", classes=CLASSES, style=STYLE, seed=0)
    return cls(student, teacher or _teacher(), **arguments).double().train()


def _rows(count, seed, labeled):
    images = torch.rand(count, 1, 8, 8, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    truth = torch.arange(count) % CLASSES
    return Rows({"view": images}, truth if labeled else torch.full_like(truth, -1), truth,
                torch.arange(count) + 100 * seed)


BATCH = Batch(_rows(5, 0, True), _rows(7, 1, False))
UNLABELED = Batch(Rows({}, *(torch.empty(0, dtype=torch.int64),) * 3), _rows(7, 1, False))


def _logits(count=6, seed=0, classes=CLASSES, scale=3.0):
    return scale * torch.randn(count, classes, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def _kl(p, q):
    return sum(a * math.log(a / b) for a, b in zip(p, q, strict=True))


def _slow_kd(student, teacher, temperature):
    rows = zip(student.tolist(), teacher.tolist(), strict=True)
    return temperature**2 * statistics.mean(_kl(softmax(t, temperature), softmax(s, temperature)) for s, t in rows)


# --- Every method --------------------------------------------------------------------------------


@pytest.mark.parametrize("method", LOGITS)
def test_contract(method):
    check_method(with_teacher(method), compile=method is KD)


def test_names():
    for name, method in DISTILLATION.items():
        assert (method.name, method.family, method.recipe) == (name, "distillation", "recipes/distill.py")


def _both(method, batch=BATCH):
    """The student's and the teacher's logits of all rows, from one joint pass of each."""
    method = copy.deepcopy(method)
    images = torch.cat([part["view"] for part in (batch.labeled, batch.unlabeled) if part.views])
    with torch.no_grad():
        return method.net(images).logits, method.teacher.net(images).logits


def test_kd_over_a_whole_batch():
    """Cross-entropy on the labeled rows alone, KL on all of them, of one batch in BatchNorm."""
    method = _method(temperature=3.0, weight=0.7, labeled=0.2)
    student, teacher = _both(method)
    loss = method(BATCH, AT)
    cross_entropy = statistics.mean(-math.log(softmax(row)[y]) for row, y in
                                    zip(student[:5].tolist(), BATCH.labeled.targets.tolist(), strict=True))
    assert loss.terms["labeled"].item() == pytest.approx(0.2 * cross_entropy, rel=1e-9)
    assert loss.terms["distilled"].item() == pytest.approx(0.7 * _slow_kd(student, teacher, 3.0), rel=1e-9)
    said, right = student.argmax(1), teacher.argmax(1)
    assert loss.logs["agreement"].item() == pytest.approx((said == right).double().mean().item())
    by_itself = right[5:] == BATCH.unlabeled.truth  # of labeled images it may have been told
    assert loss.logs["teacher_accuracy"].item() == pytest.approx(by_itself.double().mean().item())


def test_a_batch_without_labeled_rows_has_the_distilled_term_alone():
    method = _method()
    student, teacher = _both(method, UNLABELED)
    loss = method(UNLABELED, AT)
    assert list(loss.terms) == ["distilled"]
    assert loss.total.item() == pytest.approx(0.9 * _slow_kd(student, teacher, 4.0), rel=1e-6)


def _watch(module, kept):
    module.register_forward_pre_hook(lambda module, given: kept.append(given[0]))


@pytest.mark.parametrize("method", LOGITS)
def test_student_and_teacher_see_the_same_tensor_once(method):
    made, mine, theirs = _method(method), [], []
    _watch(made.net, mine)
    _watch(made.teacher.net, theirs)
    made(UNLABELED if method is FunctionMatching else BATCH, AT)
    assert len(mine) == len(theirs) == 1
    assert mine[0] is theirs[0]
    assert len(mine[0]) == (7 if method is FunctionMatching else 12)


# --- The teacher ---------------------------------------------------------------------------------


def test_the_teacher_stays_in_eval_mode_without_gradient():
    teacher = _teacher().train()
    method = _method(teacher=teacher)
    before = copy.deepcopy(teacher.state_dict())
    assert not any(module.training for module in method.train().teacher.modules())
    method(BATCH, AT).total.backward()
    method.after_step(AT)
    assert all(torch.equal(value, before[name].to(value.dtype)) for name, value in teacher.state_dict().items())
    assert all(p.grad is None and not p.requires_grad for p in teacher.parameters())
    assert all(p.grad is not None for p in method.net.parameters())


def test_the_teacher_is_not_saved_and_its_absence_is_no_error():
    method, other = _method(), _method(teacher=_teacher(seed=5))
    state = method.state_dict()
    assert state
    assert not any("teacher" in name for name in state)
    kept = copy.deepcopy(other.teacher.nets.state_dict())
    other.load_state_dict(state)
    assert all(torch.equal(value, kept[name]) for name, value in other.teacher.nets.state_dict().items())
    assert torch.equal(other.net.head.weight, method.net.head.weight)
    around = LearningLoss(method)
    around.load_state_dict(around.state_dict())
    with pytest.raises(RuntimeError, match="Missing key"):
        other.load_state_dict({name: value for name, value in state.items() if name != "net.head.weight"})


def test_the_teacher_moves_with_the_method():
    method = _method()
    assert method.teacher.net.head.weight.dtype == torch.float64
    assert method.to("meta").teacher.net.head.weight.device.type == "meta"


def test_a_run_leaves_the_teacher_as_it_was_and_goes_on_where_it_stopped(tmp_path):
    pool = digits()

    def method():
        teacher = net("tiny_6", classes=10, style=pool.style, seed=9)
        return DKD(net("tiny_4", classes=10, style=pool.style, seed=0), teacher)

    kept = method()
    before = copy.deepcopy(kept.teacher.nets.state_dict())

    def update(closure, optimizer, at):
        trained = {id(p) for group in optimizer.param_groups for p in group["params"]}
        assert trained == {id(p) for p in kept.net.parameters()}
        loss = closure()
        optimizer.step()
        return loss

    train(tmp_path / "whole", kept, pool, steps=4, update=update)
    assert all(torch.equal(value, before[name]) for name, value in kept.teacher.nets.state_dict().items())
    saved = torch.load(tmp_path / "whole" / "checkpoint.pt", weights_only=True)["method"]
    assert {name.split(".")[0] for name in saved} == {"net", "ema"}
    train(tmp_path / "cut", method(), pool, steps=4)
    train(tmp_path / "cut", method(), pool, steps=4, resume="auto")
    assert_same_run(tmp_path / "whole", tmp_path / "cut")


def test_a_teacher_of_another_input_size_is_given_resized_images():
    seen, teacher = [], _teacher()
    _watch(teacher, seen)
    images = torch.rand(3, 1, 8, 8)
    said = Teacher(teacher, image_size=12)(images, torch.arange(3)).logits
    assert seen[0].shape == (3, 1, 12, 12)
    resized = nn.functional.interpolate(images, (12, 12), mode="bilinear", antialias=True)
    assert torch.equal(said, teacher(resized).logits)
    Teacher(teacher, image_size=8)(images, torch.arange(3))
    assert seen[-1] is images


def test_an_ensemble_teaches_the_mean_of_the_probabilities():
    nets = [_teacher(seed=seed).double() for seed in (1, 2, 3)]
    images = _rows(5, 0, True)["view"]
    said = Teacher(*nets)(images, torch.arange(5)).logits.exp()
    expected = torch.stack([each.eval()(images).logits.softmax(1) for each in nets]).mean(0)
    assert torch.allclose(said, expected, rtol=1e-9)
    assert torch.isfinite(_method(teacher=Teacher(*nets))(BATCH, AT).total)
    with pytest.raises(UsageError, match="nets for 4, 10 classes"):
        Teacher(_teacher(), net("tiny_4", classes=10, style=STYLE))


def test_stored_logits_are_looked_up_by_global_index():
    table = _logits(300, seed=4)
    method = _method(teacher=StoredLogits(table), view=Eval)
    student = copy.deepcopy(method).net(torch.cat([BATCH.labeled["view"], BATCH.unlabeled["view"]])).logits
    expected = _slow_kd(student.detach(), table[[*range(5), *range(100, 107)]], 4.0)
    assert method(BATCH, AT).terms["distilled"].item() == pytest.approx(0.9 * expected, rel=1e-9)
    assert not any("teacher" in name for name in method.state_dict())


def test_teachers_that_do_not_fit_are_refused():
    student = _teacher()
    for words, make in (
        ("stored logits are those of images as they are", lambda: _method(teacher=StoredLogits(_logits()))),
        ("function_matching needs the nets",
         lambda: _method(FunctionMatching, teacher=StoredLogits(_logits()), view=Eval)),
        ("tells 10 classes apart, the student 4", lambda: _method(teacher=net("tiny_4", classes=10, style=STYLE))),
        ("head is not trained", lambda: _method(teacher=Teacher(_teacher(), classifies=False))),
        ("is the net that learns", lambda: KD(student, student)),
        ("is the net that learns", lambda: KD(student, Teacher(student))),
        (r"expected floats \[N, C\]", lambda: StoredLogits(torch.zeros(3))),
    ):
        with pytest.raises(UsageError, match=words):
            make()


def test_load_teacher_reads_files(tmp_path):
    teacher, images = _teacher().eval(), torch.rand(2, 1, 8, 8)
    torch.save(teacher.state_dict(), tmp_path / "net.pt")
    loaded = load_teacher(tmp_path / "net.pt", CLASSES, STYLE, "tiny_6")
    assert torch.equal(loaded(images, torch.arange(2)).logits, teacher(images).logits)
    torch.save(teacher.backbone.state_dict(), tmp_path / "backbone.pt")
    assert not load_teacher(tmp_path / "backbone.pt", CLASSES, STYLE, "tiny_6").classifies
    torch.save({"logits": _logits(9)}, tmp_path / "logits.pt")
    assert torch.equal(load_teacher(tmp_path / "logits.pt", CLASSES, STYLE, images=9).logits, _logits(9).float())
    run = tmp_path / "run"
    run.mkdir()
    (run / "config.yaml").write_text("net: tiny_6\nimage_size: 12\n")
    save_file(teacher.state_dict(), run / "model.safetensors")
    of_run = load_teacher(run, CLASSES, STYLE)
    assert (of_run.net.name, of_run.image_size, of_run.classifies) == ("tiny_6", 12, True)
    assert torch.equal(of_run.net.head.weight, teacher.head.weight)
    for learned, classifies in ((["a", "b", "c", "d"], True), ([], False)):
        (run / "summary.json").write_text(json.dumps({"class_names": learned}))
        assert load_teacher(run, CLASSES, STYLE).classifies == classifies
        assert load_teacher(run / "model.safetensors", CLASSES, STYLE, "tiny_6").classifies == classifies
    assert load_teacher(run, CLASSES, STYLE, image_size=16).image_size == 16
    for words, arguments in (("which net are the weights", (tmp_path / "net.pt", CLASSES, STYLE)),
                             ("tells 4 classes apart, the data have 7", (tmp_path / "net.pt", 7, STYLE, "tiny_6")),
                             ("9 images; the pool has 8", (tmp_path / "logits.pt", CLASSES, STYLE, None, None, 8)),
                             ("not the folder of a run", (tmp_path, CLASSES, STYLE)),
                             ("no such file", (tmp_path / "nothing.pt", CLASSES, STYLE, "tiny_6"))):
        with pytest.raises(UsageError, match=words):
            load_teacher(*arguments)


def test_a_teacher_of_a_run_takes_its_images_and_says_where_they_were_read_otherwise(tmp_path, capsys):
    wide = np.random.default_rng(0).integers(0, 4000, (16, 8, 12)).astype(np.uint16)
    labels = np.arange(16) % 2

    def pool(**options):
        return Pool.from_arrays(wide, labels, wide[:4], labels[:4], **options)

    there = pool(image_size=10, resize="pad", flip=False)
    config = {"net": "tiny_4", "data": "of that time"}
    learner = Supervised(net("tiny_4", there.class_names, there.style))
    result = train(tmp_path / "run", learner, there, 4, 0, steps=1, config=config)

    here = pool(image_size=8, value_range="0-65535")
    capsys.readouterr()
    for source, name in ((result.out, ""), (result.out / "model.safetensors", "tiny_4")):
        teacher = load_teacher(source, here.class_names, here.style, name, reading=here.reading)
        assert teacher.image_size == (10, 10)
        assert teacher(here.images.take(np.arange(2)) / 255, torch.arange(2)).logits.shape == (2, 2)
    assert capsys.readouterr().err == (
        f"note: the teacher {result.out} learned from images that were read otherwise: --resize pad (here crop), "
        "--value-range 0-4095 (here 0-65535), --flip off (here on); the same flags here read them so\n")

    again = pool(image_size=8, resize="pad", flip=False)
    assert load_teacher(result.out, again.class_names, again.style, image_size=6, reading=again.reading).image_size == 6
    same = load_teacher(result.out, there.class_names, there.style, reading=there.reading)
    assert (same.image_size, capsys.readouterr().err) == (None, "")
    (result.out / "model.json").write_text("{}")  # it says nothing of its images
    assert load_teacher(result.out, here.class_names, here.style, reading=here.reading).image_size is None


# --- KD ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("temperature", [1.0, 2.5, 4.0])
def test_kd_loss_is_a_sum_over_classes_and_a_mean_over_rows(temperature):
    student, teacher = _logits(seed=1), _logits(seed=2)
    expected = _slow_kd(student, teacher, temperature)
    assert kd_loss(student, teacher, temperature).item() == pytest.approx(expected, rel=1e-12)
    assert kd_loss(student.repeat(3, 1), teacher.repeat(3, 1), temperature).item() == pytest.approx(expected, rel=1e-12)


def test_kd_at_a_high_temperature_is_the_squared_difference_of_centered_logits():
    student, teacher = _logits(seed=1), _logits(seed=2)
    centered = (teacher - teacher.mean(1, keepdim=True)) - (student - student.mean(1, keepdim=True))
    expected = centered.square().sum(1).mean().item() / (2 * CLASSES)
    assert kd_loss(student, teacher, 1e4).item() == pytest.approx(expected, rel=1e-3)


def test_kd_of_equal_functions_is_zero_and_flat_and_logits_may_be_huge():
    student = (1000 * _logits()).requires_grad_()
    loss = kd_loss(student, student.detach() + 5.0, 2.0)
    loss.backward()
    assert abs(loss.item()) < 1e-9
    assert student.grad.abs().max() < 1e-9
    assert torch.isfinite(kd_loss(student, -student.detach()))


# --- DKD -----------------------------------------------------------------------------------------


def _slow_dkd(student, teacher, y, temperature):
    q, p = softmax(student, temperature), softmax(teacher, temperature)
    rest = [c for c in range(len(p)) if c != y]
    tckd = _kl([p[y], sum(p[c] for c in rest)], [q[y], sum(q[c] for c in rest)])
    return tckd, _kl([p[c] / (1 - p[y]) for c in rest], [q[c] / (1 - q[y]) for c in rest]), p[y]


TARGETS = torch.tensor([0, 1, 2, 3, 0, 1])


@pytest.mark.parametrize("temperature", [1.0, 4.0])
def test_dkd_and_its_identity(temperature):
    """KL = TCKD + (1 - p_y) NCKD, row by row."""
    student, teacher = _logits(seed=1), _logits(seed=2)
    tckd, nckd = decoupled(student, teacher, TARGETS, temperature)
    for i, y in enumerate(TARGETS.tolist()):
        target, others, p_y = _slow_dkd(student[i].tolist(), teacher[i].tolist(), y, temperature)
        assert tckd[i].item() == pytest.approx(target, rel=1e-9)
        assert nckd[i].item() == pytest.approx(others, rel=1e-9)
        whole = _kl(softmax(teacher[i].tolist(), temperature), softmax(student[i].tolist(), temperature))
        assert whole == pytest.approx(tckd[i].item() + (1 - p_y) * nckd[i].item(), rel=1e-9)


def test_dkd_keeps_the_other_classes_of_a_teacher_who_is_sure():
    """Where 1 - p_y underflows, NCKD is still that of the other logits; a mask of -1000 or a division would lose it."""
    student, teacher = _logits(seed=1).float().requires_grad_(), _logits(seed=2).float()
    others = decoupled(student, teacher, TARGETS).nckd
    sure = teacher + 500.0 * nn.functional.one_hot(TARGETS, CLASSES)
    tckd, nckd = decoupled(student, sure, TARGETS)
    assert torch.allclose(nckd, others, rtol=1e-5)
    (tckd + nckd).sum().backward()
    assert torch.isfinite(student.grad).all()


def test_dkd_takes_labels_and_for_unlabeled_rows_the_teachers_class():
    method = _method(DKD, alpha=0.5, beta=2.0, temperature=3.0, weight=1.0)
    student, teacher = _both(method)
    targets = [*BATCH.labeled.targets.tolist(), *teacher[5:].argmax(1).tolist()]
    assert targets[:5] != teacher[:5].argmax(1).tolist()  # else the test would not see which of them are used
    expected = 0.0
    for i, y in enumerate(targets):
        tckd, nckd, _ = _slow_dkd(student[i].tolist(), teacher[i].tolist(), y, 3.0)
        expected += 9 * (0.5 * tckd + 2.0 * nckd) / 12
    assert method(BATCH, AT).terms["distilled"].item() == pytest.approx(expected, rel=1e-9)


def test_dkd_warms_up():
    method, late = _method(DKD), _method(DKD)
    assert method(BATCH, At(0, 240)).terms["distilled"] == 0
    half, whole = late(BATCH, At(10, 240)).terms["distilled"], method(BATCH, At(20, 240)).terms["distilled"]
    assert half.item() == pytest.approx(whole.item() / 2)


def test_dkd_refuses_what_it_cannot_do():
    with pytest.raises(UsageError, match="DKD with 2 classes"):
        decoupled(_logits(classes=2), _logits(classes=2), TARGETS % 2)
    with pytest.raises(UsageError, match="DKD with 2 classes"):
        DKD(net("tiny_4", classes=2, style=STYLE), net("tiny_6", classes=2, style=STYLE))
    with pytest.raises(UsageError, match="no soft labels"):
        decoupled(_logits(), _logits(), _logits().softmax(1))


# --- DIST ----------------------------------------------------------------------------------------


def test_dist_correlates_rows_and_columns():
    student, teacher = _both(_method(DIST))
    p, q = ([softmax(row, 3.0) for row in logits.tolist()] for logits in (student, teacher))
    rows = statistics.mean(statistics.correlation(a, b) for a, b in zip(p, q, strict=True))
    columns = statistics.mean(statistics.correlation(a, b) for a, b in
                              zip(zip(*p, strict=True), zip(*q, strict=True), strict=True))
    expected = 9 * (1.5 * (1 - rows) + 0.5 * (1 - columns))
    method = _method(DIST, beta=1.5, gamma=0.5, temperature=3.0)
    assert method(BATCH, AT).terms["distilled"].item() == pytest.approx(expected, rel=1e-8)


def test_pearson_is_invariant_to_scale_and_shift():
    a, b = _logits(seed=1), _logits(seed=2)
    assert torch.allclose(pearson(2.5 * a + 7, 0.1 * b - 3), pearson(a, b), rtol=1e-9)
    assert torch.allclose(pearson(a, 3 * a + 1), torch.ones(6, dtype=a.dtype))
    assert torch.allclose(pearson(a, -a), -torch.ones(6, dtype=a.dtype))


def test_pearson_of_a_constant_row_is_zero_with_a_bounded_gradient():
    a = torch.full((1, 4), 0.25, requires_grad=True)
    value = pearson(a, _logits(1).float())
    value.sum().backward()
    assert value.item() == 0
    assert a.grad.norm() < 1.01e6


# --- LogitStd ------------------------------------------------------------------------------------


def test_logit_std_is_kd_of_z_scores():
    method = _method(LogitStd, temperature=2.0, weight=9.0)
    zs = [torch.tensor([[(z - statistics.fmean(row)) / statistics.pstdev(row) for z in row] for row in logits.tolist()],
                       dtype=torch.float64) for logits in _both(method)]
    assert method(BATCH, AT).terms["distilled"].item() == pytest.approx(9 * _slow_kd(*zs, 2.0), rel=1e-7)


def test_standardize_is_invariant_to_scale_and_shift_and_survives_a_constant_row():
    z = _logits()
    assert torch.allclose(standardize(0.2 * z - 40), standardize(z), rtol=1e-9)
    assert not torch.allclose(standardize(-z), standardize(z))
    constant = torch.ones(1, 4, requires_grad=True)
    standardize(constant).square().sum().backward()
    assert torch.isfinite(constant.grad).all()


# --- Function matching ---------------------------------------------------------------------------


def test_function_matching_is_kd_on_mixtures_of_images():
    method = _method(FunctionMatching, temperature=2.0)
    seen = []
    _watch(method.net, seen)
    expected_of = copy.deepcopy(method)
    loss = method(UNLABELED, AT)
    mixed, images = seen[0], UNLABELED.unlabeled["view"]
    for row in mixed:  # each a convex combination of two of the images
        assert any(torch.allclose(row, images[i].lerp(images[j], share), atol=1e-6)
                   for i in range(7) for j in range(7) for share in [_share(row, images[i], images[j])])
    assert not torch.equal(mixed, images)
    with torch.no_grad():
        student, teacher = expected_of.net(mixed).logits, expected_of.teacher.net(mixed).logits
    assert list(loss.terms) == ["distilled"]
    assert loss.total.item() == pytest.approx(_slow_kd(student, teacher, 2.0), rel=1e-5)
    assert math.isnan(loss.logs["teacher_accuracy"].item())
    assert not method.views.labeled


def _share(row, a, b):
    """The share at which row is nearest to a + share (b - a)."""
    d = (b - a).flatten()
    return ((row - a).flatten() @ d / (d @ d).clamp(min=1e-12)).clamp(0, 1)


def test_function_matching_with_cutmix_takes_each_pixel_from_one_of_two_images():
    method, seen = _method(FunctionMatching, mix="cutmix"), []
    _watch(method.net, seen)
    method(UNLABELED, AT)
    images = UNLABELED.unlabeled["view"]
    assert all(any(((row == images[i]) | (row == images[j])).all() for j in range(7)) for i, row in enumerate(seen[0]))
    assert not torch.equal(seen[0], images)


def test_function_matching_without_mixing_is_kd_without_labels():
    mixing, plain = _method(FunctionMatching, alpha=0, temperature=4.0), _method(KD, weight=1.0, temperature=4.0)
    assert mixing(UNLABELED, AT).total.item() == pytest.approx(plain(UNLABELED, AT).total.item(), rel=1e-12)


def test_other_arguments_keep_the_contract():
    check_method(with_teacher(partial(KD, view=Eval, ema=0.0)), compile=False)
