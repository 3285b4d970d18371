"""What every distillation method shares: a student, a frozen teacher, and the same augmented images for both."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar, Literal, Self

import torch
from torch import Tensor

from ssl_lab import losses
from ssl_lab.batch import At, Batch, Loss, Rows, Share
from ssl_lab.errors import UsageError
from ssl_lab.losses import full_precision
from ssl_lab.methods.base import Method, Views
from ssl_lab.methods.distillation.hooks import Seen, channels, pair_layers, see
from ssl_lab.methods.distillation.teacher import Teacher
from ssl_lab.nets import Net
from ssl_lab.schedule import Scalar
from ssl_lab.views import Eval, ViewFactory, Weak


class Distillation(Method):
    """L = labeled * H(y, p(x)) + weight * distance(student, teacher; x and u)

    The first term is the mean over the labeled images, the second takes every image of the batch. Student and teacher
    see the same augmented tensor, each once, and normalize it themselves. A subclass writes `distance`; its modules
    (adapters) and buffers learn and are saved, the teacher neither.

    Args:
        net: the student.
        teacher: a Net, frozen from now on, or a Teacher.
        weight, labeled: of the two terms. A method that reads features, with labeled=0, needs no labels: then the head
            stays as it was and the run leaves features, as one of pretraining does.
        view: how images are augmented; Eval where the teacher's logits were stored.

    Raises:
        UsageError: a teacher for other classes, or one without what the method reads.

    >>> pool = sl.load("digits")
    >>> student, teacher = (sl.net(name, classes=10, style=pool.style) for name in ("tiny_4", "tiny_8"))
    >>> method = sl.KD(student, teacher)
    >>> isinstance(method, sl.Distillation), any(p.requires_grad for p in teacher.parameters())  # it is frozen
    (True, False)
    """

    family = "distillation"
    recipe = "recipes/distill.py"
    reads: ClassVar[Literal["logits", "features", "nets"]] = "logits"  # nets: answers that cannot be stored
    layers: tuple[str, ...] = ()  # of the student, whose maps `distance` sees
    teacher_layers: tuple[str, ...] = ()

    def __init__(self, net: Net, teacher: Net | Teacher, weight: Scalar, labeled: Scalar = 1.0,
                 view: ViewFactory = Weak, ema: Scalar = 0.999) -> None:
        if any(module is net for module in teacher.modules()):
            raise UsageError("the teacher is the net that learns; give a copy of it")
        super().__init__(net, ema)
        self.teacher = teacher if isinstance(teacher, Teacher) else Teacher(teacher)
        self.weight, self.labeled = weight, labeled
        self.classifies = self.reads != "features" or labeled != 0
        self.views = Views(labeled={"view": view} if self.classifies else {}, unlabeled={"view": view})
        if not self.classifies:
            net.head.requires_grad_(False)
        if self.reads == "features" and len(self.teacher.nets) != 1:
            raise UsageError(f"{self.name} compares features, and a teacher of {len(self.teacher.nets)} nets has none "
                             "of its own: give a single net, or choose a method that compares logits")
        if self.reads != "features" and not self.teacher.classifies:
            raise UsageError(f"{self.name} compares logits, and the teacher's head is not trained: fine-tune it first, "
                             "or choose a method that compares features")
        if self.classifies and self.teacher.classes != net.classes:
            raise UsageError(f"the teacher tells {self.teacher.classes} classes apart, the student {net.classes}")
        if self.classifies and self.teacher.classifies and net.class_names is not None:
            self.teacher.bring_into_order(net.class_names)
        if self.teacher.fixed and self.reads == "nets":
            raise UsageError(f"{self.name} needs the nets that teach, not stored logits: what it asks them, or which, "
                             "is only known in the step")
        self._check_views()

    def with_views(self, *texts: str, **views: ViewFactory | str) -> Self:
        super().with_views(*texts, **views)
        self._check_views()
        return self

    def _check_views(self) -> None:
        made = [view for kind in self.views.by_kind.values() for view in kind.values()]
        if self.teacher.fixed and any(view is not Eval for view in made):
            raise UsageError("stored logits are those of images as they are: give view=Eval (--view eval), or a net as "
                             "the teacher")

    def distance(self, student: Seen, teacher: Seen, rows: Rows, at: At) -> Tensor:
        """Scalar, of one batch: how far the student is from the teacher, in float32 at least.

        Args:
            rows: all images, labeled ones first, as `rows["view"]`, with the labels that may be used (-1 =
                unlabeled).
        """
        raise NotImplementedError

    def rows(self, batch: Batch, at: At) -> Rows:
        """What both nets see."""
        return all_rows(batch)

    def forward(self, batch: Batch, at: At) -> Loss:
        x, rows = batch.labeled, self.rows(batch, at)
        student = see(self.net, rows["view"], self.layers)
        teacher = self.teacher(rows["view"], rows.indices, self.teacher_layers)
        terms: dict[str, Tensor] = {}
        logs: dict[str, Tensor | Share] = {}
        with full_precision(rows["view"].device):
            if self.classifies and len(x):
                terms["labeled"] = at.value(self.labeled) * self.labeled_loss(student.logits[: len(x)], x.targets)
            terms["distilled"] = at.value(self.weight) * self.distance(student, teacher, rows, at)
        said = student.logits.detach().argmax(dim=1)
        if self.classifies:
            logs["train_accuracy"] = losses.accuracy(said[: len(x)], x.targets)
        if self.classifies and self.teacher.classifies:
            logs["agreement"] = (said == teacher.logits.argmax(dim=1)).float().mean()
            unseen = rows.truth.where(rows.targets < 0, -1)  # labeled images may have trained the teacher
            logs["teacher_accuracy"] = losses.accuracy(teacher.logits.argmax(dim=1), unseen)
        return Loss(terms, logs)


class MapDistillation(Distillation):
    """A method that compares maps [B, channels, height, width] of layers, of one net each.

    Args:
        layers, teacher_layers: submodules of the backbones, by path; see `pair_layers`. By default those of `stage`:
            the last layers of all the resolutions that both nets have, of the middle or of the last one.
    """

    reads = "features"
    stage: ClassVar[Literal["all", "middle", "last"]] = "all"

    def __init__(self, net: Net, teacher: Net | Teacher, weight: Scalar, layers: str | Sequence[str] | None = None,
                 teacher_layers: str | Sequence[str] | None = None, labeled: Scalar = 1.0,
                 view: ViewFactory = Weak, ema: Scalar = 0.999) -> None:
        super().__init__(net, teacher, weight, labeled, view, ema)
        mine, theirs = pair_layers(net, self.teacher.net, layers, teacher_layers)
        if layers is None and teacher_layers is None:
            middle = len(mine) // 2
            chosen = {"all": slice(None), "middle": slice(middle, middle + 1), "last": slice(-1, None)}[self.stage]
            mine, theirs = mine[chosen], theirs[chosen]
        self.layers, self.teacher_layers = mine, theirs
        self.channels = list(zip(channels(net, mine), channels(self.teacher.net, theirs), strict=True))


def all_rows(batch: Batch) -> Rows:
    """All images of a batch as rows under one view, "view", labeled ones first."""
    parts = [part for part in (batch.labeled, batch.unlabeled) if part.views]
    views = {"view": torch.cat([part["view"] for part in parts])}
    targets, truth, indices = (torch.cat([getattr(part, name) for part in parts])
                               for name in ("targets", "truth", "indices"))
    return Rows(views, targets, truth, indices)
