"""How far a student has become its teacher, beside how accurate it is."""

from __future__ import annotations

import copy
import time

import torch

from ssl_lab.batch import At
from ssl_lab.class_names import order_of
from ssl_lab.data import IntArray, Pool
from ssl_lab.engine import Runtime
from ssl_lab.engine.evaluate import accuracy, rates, tallies
from ssl_lab.features.cka import linear_cka
from ssl_lab.features.embed import batch_of
from ssl_lab.methods.distillation.hooks import Seen, see
from ssl_lab.methods.distillation.teacher import Teacher
from ssl_lab.nets import Net
from ssl_lab.views import Eval

MOST = 1000
"""Training images to compare features on, where there are no others."""


@torch.inference_mode()
def fidelity(student: Net, teacher: Net | Teacher, pool: Pool, indices: IntArray, runtime: Runtime) -> dict[str, float]:
    """Does distillation really work? (Stanton et al. 2021, arXiv 2106.05945.) On images that trained neither net.

    agreement: share of images to which both give the same class. kl: mean of KL(p_teacher || p_student), in nats, at
    temperature 1. student_ece, teacher_ece: expected calibration error, as in `rates`, over the images whose truth
    the pool knows (NaN without one). cka: linear CKA of the pooled features, NaN of a teacher without features.

    Logits stand for the pool's classes, by name.

    Evaluation mode and view; the student's mode is restored, the teacher is frozen for good.

    Args:
        student: the net that learned.
        teacher: what it learned from.
        pool: whose images, and their truth.
        indices: int64 [n], n >= 2, which of its images.
        runtime: where it computes.

    Raises:
        UsageError: for nets of other classes than the pool's.

    >>> pool = sl.load("digits")
    >>> net = sl.net("tiny_4", classes=pool.class_names, style=pool.style)
    >>> found = sl.features.fidelity(net, net, pool, pool.test[:50], sl.Runtime.start("cpu"))
    >>> found["agreement"], round(found["kl"], 6), round(found["cka"], 4)
    (1.0, 0.0, 1.0)
    """
    frozen = teacher if isinstance(teacher, Teacher) else Teacher(copy.deepcopy(teacher))
    order = slice(None) if student.class_names in (None, pool.class_names) else order_of(
        student.class_names, pool.class_names, f"the student {student.name}")
    if frozen.classifies:
        frozen.bring_into_order(pool.class_names)
    mine, theirs = _seen(student, frozen, pool, indices, runtime)
    logits = mine.logits[:, order], theirs.logits
    q, p = (each.double().log_softmax(dim=1) for each in logits)
    truth = pool.truth[indices]
    return {
        "agreement": float((logits[0].argmax(dim=1) == logits[1].argmax(dim=1)).double().mean()),
        "kl": float((p.exp() * (p - q)).sum(dim=1).mean()),
        "student_ece": rates(tallies(q.exp().numpy(), truth))["ece"],
        "teacher_ece": rates(tallies(p.exp().numpy(), truth))["ece"],
        "cka": linear_cka(mine.features, theirs.features) if theirs.features.shape[1] else float("nan"),
    }


@torch.inference_mode()
def _seen(student: Net, teacher: Teacher, pool: Pool, indices: IntArray, runtime: Runtime) -> tuple[Seen, Seen]:
    """What both say of the images as they are, on the CPU."""
    view, batch = Eval(pool.style), batch_of(pool.style, runtime)
    was_training = student.training
    student.eval().to(runtime.device)
    teacher.to(runtime.device)
    seen = []
    for start in range(0, len(indices), batch):
        rows = indices[start : start + batch]
        images = view(pool.images.take(rows).to(runtime.device), At(0, 1).draw("fidelity", len(rows), runtime.device))
        with runtime.autocast():
            both = see(student, images), teacher(images, torch.from_numpy(rows).to(runtime.device))
        seen.append([part.cpu() for each in both for part in each[:2]])
    student.train(was_training)
    mine, mine_features, theirs, their_features = map(torch.cat, zip(*seen, strict=True))
    return Seen(mine, mine_features), Seen(theirs, their_features)


def compared_to_teacher(student: Net, teacher: Net | Teacher, pool: Pool, runtime: Runtime,
                        classifies: bool = True) -> str:
    """A line on the `fidelity` on test images (else validation images), and one on accuracy and cost of each net.

    Args:
        student: as in `fidelity`.
        teacher: as in `fidelity`.
        pool: whose images.
        runtime: where it computes.
        classifies: whether the student's head has learned; else features are compared alone.

    >>> pool = sl.load("digits")
    >>> net = sl.net("tiny_4", classes=pool.class_names, style=pool.style)
    >>> sl.features.compared_to_teacher(net, net, pool, sl.Runtime.start("cpu")).partition(",")[0]
    'fidelity on 599 test images: agreement 100.00%'
    """
    split, indices = ("test", pool.test) if len(pool.test) else ("valid", pool.valid)
    if not len(indices) and not classifies:
        split, indices = "training", pool.train[:MOST]
    if len(indices) < 2:
        return "no test or validation images to compare student and teacher on"
    frozen = teacher if isinstance(teacher, Teacher) else Teacher(copy.deepcopy(teacher))
    if classifies:
        found = fidelity(student, frozen, pool, indices, runtime)
        lines = [f"fidelity on {len(indices)} {split} images: agreement {found['agreement']:.2%}, KL "
                 f"{found['kl']:.4f}, ECE {found['student_ece']:.2%} (teacher {found['teacher_ece']:.2%}), CKA "
                 f"{found['cka']:.3f}"]
    else:
        mine, theirs = _seen(student, frozen, pool, indices, runtime)
        lines = [f"features on {len(indices)} {split} images: CKA {linear_cka(mine.features, theirs.features):.3f}"]
    for name, net in [("student", student), *(("teacher", each) for each in frozen.members if not frozen.image_size)]:
        right = f"{split} accuracy {accuracy(net, pool, indices, runtime):.2%}, " if classifies else ""
        lines.append(f"{name} {net.name}: {right}{sum(p.numel() for p in net.parameters()):,} parameters, "
                     f"{images_per_second(net, pool, runtime):,.0f} images/s")
    return "\n".join(lines)


def images_per_second(net: Net, pool: Pool, runtime: Runtime) -> float:
    """How many images of the pool's style the net classifies per second: the best of five batches of 256."""
    images = torch.zeros(256, *pool.images.shape, device=runtime.device)
    took = []
    was_training = net.training
    net.eval()
    for _ in range(5):
        begun = time.perf_counter()
        with torch.inference_mode(), runtime.autocast():
            net(images).logits[0, 0].item()  # waits for the device
        took.append(time.perf_counter() - begun)
    net.train(was_training)
    return len(images) / min(took)
