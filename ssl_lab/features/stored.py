"""A teacher's logits, computed once for all epochs and all students."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor, nn

from ssl_lab.data import Pool
from ssl_lab.engine import Runtime
from ssl_lab.features.store import FeatureStore
from ssl_lab.methods.distillation import StoredLogits, Teacher
from ssl_lab.nets import Net


def stored_logits(teacher: Teacher, pool: Pool, out: str | Path, runtime: Runtime) -> StoredLogits:
    """What the teacher says of each image of the pool as it is, for students whose view is `Eval`.

    They lie in a `FeatureStore`, so that they are there at once for the next student of the same teacher, and a build
    that was cut short goes on.

    Args:
        teacher: who answers.
        pool: whose images.
        out: the folder.
        runtime: where it computes.

    >>> pool, runtime = sl.load("digits"), sl.Runtime.start("cpu")
    >>> teacher = sl.methods.Teacher(sl.net("tiny_6", classes=pool.class_names, style=pool.style))
    >>> sl.features.stored_logits(teacher, pool, "logits", runtime).logits.shape
    torch.Size([1797, 10])
    """
    style = pool.style
    name = f"logits of {', '.join(net.name for net in teacher.members)} at {teacher.image_size}"
    net = Net(_Answers(teacher), nn.Linear(teacher.classes, 1), [0.0] * style.channels, [1.0] * style.channels, name)
    store = FeatureStore.build(net.eval(), pool, out, runtime,  # whose mode it restores, and so that of the nets
                               class_names=teacher.class_names)
    return StoredLogits(torch.from_numpy(store.features.copy()), store.class_names)


class _Answers(nn.Module):
    """Logits as features. (A teacher is part of no state_dict; its nets, by which the store is named, are.)"""

    def __init__(self, teacher: Teacher) -> None:
        super().__init__()
        self.teacher, self.nets = teacher, teacher.nets

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.teacher(images, torch.empty(0, dtype=torch.int64)).logits
        return logits
