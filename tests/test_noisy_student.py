"""Noisy Student: a slow reference in float64, the teacher's isolation, and its generations."""

import copy
import math

import pytest
import torch
from slow import noise_rows, softmax
from small_runs import digits, tiny_net, train
from torch import nn

from ssl_lab.batch import At, Batch, Rows, Style
from ssl_lab.errors import UsageError
from ssl_lab.methods.consistency.noisy_student import NoisyStudent
from ssl_lab.nets import net
from ssl_lab.testing import check_method
from ssl_lab.views import Eval, Strong

STYLE = Style(1, 8, 8, mean=(0.3,), std=(0.4,))
CLASSES, LABELED, UNLABELED = 3, 6, 10
TAUGHT = At(4, 8)  # with a teacher, of generation 2 of 3


def _batch():
    views = NoisyStudent.views
    return Batch(noise_rows(LABELED, 0, views.labeled), noise_rows(UNLABELED, 1, views.unlabeled))


def _method(seed=0, **arguments):
    """Noisy Student with a teacher that is not the student, and surer of itself."""
    method = NoisyStudent(net("tiny_4", classes=CLASSES, style=STYLE, seed=seed), **arguments)
    method.teacher.net.load_state_dict(net("tiny_4", classes=CLASSES, style=STYLE, seed=7).state_dict())
    with torch.no_grad():
        method.teacher.net.head.weight.mul_(8)
    return method.double().train()


def _train(method, steps, total=8, start=0):
    """SGD steps as the loop takes them; returns the generation's teacher before each step."""
    optimizer = torch.optim.SGD([p for p in method.parameters() if p.requires_grad], lr=0.05)
    teachers = []
    for step in range(start, start + steps):
        teachers.append(copy.deepcopy(method.teacher.net.state_dict()))
        optimizer.zero_grad()
        method(_batch(), At(step, total)).total.backward()
        optimizer.step()
        method.after_step(At(step, total))
    return teachers


def _equal(one, two):
    return all(torch.equal(value, two[name]) for name, value in one.items())


@pytest.mark.parametrize("generations", [1, 20])  # without and with a teacher at the step that is looked at
def test_contract_with_other_arguments(generations):
    check_method(lambda net: NoisyStudent(net, generations=generations), compile=False)


@pytest.mark.parametrize(("threshold", "weight"), [(0.0, 1.0), (0.6, 0.3), (1.0, 1.0)])
def test_against_its_equations(threshold, weight):
    method, batch = _method(threshold=threshold, weight=weight), _batch()
    x, u = batch.labeled, batch.unlabeled
    with torch.no_grad():
        taught = copy.deepcopy(method.teacher.net).eval()(u["clean"]).logits.tolist()
        said = copy.deepcopy(method.net)(torch.cat([x["strong"], u["strong"]])).logits.tolist()
    labeled = sum(-math.log(softmax(row)[y]) for row, y in zip(said, x.targets.tolist(), strict=False)) / LABELED
    unlabeled, kept = 0.0, 0
    for row, student in zip(map(softmax, taught), map(softmax, said[LABELED:]), strict=True):
        if max(row) >= threshold:
            unlabeled += -sum(q * math.log(p) for q, p in zip(row, student, strict=True))
            kept += 1
    loss = method(batch, TAUGHT)
    assert loss.terms["labeled"].item() == pytest.approx(labeled, rel=1e-9)
    assert loss.terms["unlabeled"].item() == pytest.approx(weight * unlabeled / UNLABELED, rel=1e-9)
    assert loss.logs["mask_rate"].item() == pytest.approx(kept / UNLABELED)


def test_the_threshold_above_keeps_some_rows():
    """Else the reference would not see the mask at work."""
    assert 0 < _method(threshold=0.6)(_batch(), TAUGHT).logs["mask_rate"] < 1


def test_teacher_sees_the_image_as_it_is_and_the_student_noise():
    assert NoisyStudent.views.unlabeled == {"clean": Eval, "strong": Strong}
    assert NoisyStudent.views.labeled == {"strong": Strong}
    dropout = nn.Dropout(0.5)
    method = _method()
    method.net.backbone = nn.Sequential(method.net.backbone, dropout)
    method.teacher.net.backbone = nn.Sequential(method.teacher.net.backbone, copy.deepcopy(dropout))
    method.train()
    seen = []
    for part in (method.net, method.teacher.net):
        part.backbone[1].register_forward_hook(lambda module, inputs, output: seen.append(torch.equal(*inputs, output)))
    method(_batch(), TAUGHT)
    assert sorted(seen) == [False, True]  # the student's features lose some entries, the teacher's none


def test_teacher_does_not_learn():
    method, batch = _method().train(), _batch()
    before = copy.deepcopy(method.teacher.state_dict())
    for view in batch.unlabeled.views.values():
        view.requires_grad_()
    method(batch, TAUGHT).total.backward()
    assert batch.unlabeled["clean"].grad is None
    assert batch.unlabeled["strong"].grad.any()
    assert all(parameter.grad is None and not parameter.requires_grad for parameter in method.teacher.parameters())
    assert not method.teacher.net.training
    assert not method.eval().train().teacher.net.training
    assert _equal(method.teacher.state_dict(), before)  # BatchNorm's running statistics, too


def test_first_generation_is_the_labeled_loss_alone():
    method, batch = _method(weight=7.0), _batch()
    loss = method(batch, At(1, 8))
    with torch.no_grad():
        logits = copy.deepcopy(method.net)(batch.labeled["strong"]).logits  # unlabeled rows play no part in BatchNorm
    expected = torch.nn.functional.cross_entropy(logits, batch.labeled.targets)
    assert loss.total.item() == pytest.approx(expected.item(), rel=1e-6)
    assert loss.logs["mask_rate"].isnan()
    assert method(batch, At(2, 8)).terms["unlabeled"] > 0


@pytest.mark.parametrize(("generations", "total", "changes"), [(3, 8, [2, 4, 6]), (1, 8, [4]), (2, 8, [3, 6]),
                                                               (3, 10, [3, 5, 8])])
def test_the_average_becomes_the_teacher_at_the_end_of_each_generation(generations, total, changes):
    method = _method(generations=generations, ema=0.5)
    averages = {}
    moved = method.after_step

    def after_step(at):
        moved(at)
        averages[at.step + 1] = copy.deepcopy(method.ema.net.state_dict())

    method.after_step = after_step
    teachers = _train(method, total, total)
    assert [step for step in range(1, total) if not _equal(teachers[step - 1], teachers[step])] == changes
    for step in changes:
        assert _equal(teachers[step], averages[step])
        assert not _equal(teachers[step], method.net.state_dict())


def test_a_student_that_is_its_teacher_and_sees_no_noise_has_nothing_to_learn():
    """Why noise: the cross-entropy of q with itself is its entropy, and the gradient is zero."""
    method, batch = _method(threshold=0.0).eval(), _batch()
    method.teacher.net.load_state_dict(method.net.state_dict())
    u = batch.unlabeled
    same = Rows({"clean": u["clean"], "strong": u["clean"]}, u.targets, u.truth, u.indices)
    gradients = {}
    for name, rows in (("same", same), ("noisy", u)):
        method.zero_grad()
        method(Batch(batch.labeled, rows), TAUGHT).terms["unlabeled"].backward()
        gradients[name] = max(parameter.grad.abs().max().item() for parameter in method.net.parameters())
    assert gradients["same"] < 1e-12
    assert gradients["noisy"] > 1e-3


@pytest.mark.parametrize("stop", [2, 3, 6])
def test_state_survives_a_state_dict(stop):
    straight, first, resumed = _method(), _method(), _method(seed=1)
    _train(straight, 8)
    _train(first, stop)
    resumed.load_state_dict(copy.deepcopy(first.state_dict()))
    _train(resumed, 8 - stop, start=stop)
    assert _equal(straight.state_dict(), resumed.state_dict())


def test_micro_batches_have_the_loss_of_one_batch():
    method, batch = _method(threshold=0.6).eval(), _batch()  # eval: rows do not meet in BatchNorm
    halves = [method(part, At(4, 8, rank=i, world=2)).terms for i, part in enumerate(batch.chunk(2))]
    for name, term in method(batch, TAUGHT).terms.items():
        assert sum(half[name].item() for half in halves) / 2 == pytest.approx(term.item())


def test_a_run_by_the_clock_times_steps_that_have_a_teacher(tmp_path, monkeypatch):
    timed, pool = [], digits()
    monkeypatch.setattr("ssl_lab.engine.resolve.steps_within",
                        lambda seconds, begun, step, *rest: timed.append(step()) or 1)
    train(tmp_path, NoisyStudent(tiny_net(pool)), pool, steps=None, minutes=1.0)
    assert not timed[0].logs["mask_rate"].isnan()


def test_no_students_are_refused():
    with pytest.raises(UsageError, match="generations=0"):
        _method(generations=0)
