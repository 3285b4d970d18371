"""What is checked before a run begins, so that it does not fail or learn nonsense later."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from ssl_lab.class_names import apart
from ssl_lab.data import Pool
from ssl_lab.errors import UsageError
from ssl_lab.methods import Method
from ssl_lab.nets import Net
from ssl_lab.nets.named import NO_CLASSES
from ssl_lab.schedule import extremes

if TYPE_CHECKING:
    from ssl_lab.engine.trainer import Trainer


def check_settings(trainer: Trainer) -> None:
    """UsageError for a run of no length or of two, and for settings that no run can have."""
    steps, minutes = trainer.steps, trainer.minutes
    if (steps is None) == (minutes is None):
        raise UsageError(f"give either steps or minutes (--steps, --minutes), not steps={steps} and minutes={minutes}")
    if (steps is not None and steps < 1) or (minutes is not None and minutes <= 0):
        raise UsageError(f"steps={steps}, minutes={minutes}: a run needs a positive length")
    if trainer.evaluations < 1 or (trainer.clip is not None and extremes(trainer.clip)[0] <= 0):
        raise UsageError(f"evaluations={trainer.evaluations}, clip={trainer.clip}: both must be positive")
    least, most = extremes(trainer.batch)
    if not 0 < least <= most <= 1:
        raise UsageError(f"batch={trainer.batch}: it is the share of its images that a step has, above 0 and at most 1")
    if least < 1 and trainer.micro_batches == "auto":
        raise UsageError(f"batch={trainer.batch} and micro_batches='auto' exclude each other: say how many parts")


def check_classes(method: Method, pool: Pool) -> None:
    """UsageError unless the net's logits stand for the pool's classes, in order. Nets without names get the pool's."""
    if not pool.classes:
        raise UsageError(NO_CLASSES)
    if method.net.classes != pool.classes:
        raise UsageError(f"the net tells {method.net.classes} classes apart, but {pool.name} has {pool.classes}; "
                         "build it with classes=pool.class_names")
    names = getattr(method.net, "class_names", None)  # several nets in one may have none
    if names not in (None, pool.class_names):
        theirs, ours = apart(names, pool.class_names)
        raise UsageError(f"the net's logits stand for {theirs}, in this order, but {pool.name} has {ours}; build it "
                         "with classes=pool.class_names")
    for part in method.modules():
        if isinstance(part, Net) and part.class_names is None and part.classes == pool.classes:
            part.class_names = pool.class_names


@contextmanager
def explaining_single_images(method: Method) -> Iterator[None]:
    """Within it a step of (micro-)batches of one image is tried: BatchNorm of a vector has nothing to normalize by."""
    try:
        yield
    except ValueError as error:
        if "more than 1 value per channel" not in str(error):
            raise
        raise UsageError(f"{method.name} normalizes by the statistics of a batch (BatchNorm), and one image has none: "
                         "give each micro-batch of each rank 2 images or more (--labeled, --unlabeled; labeled=, "
                         "unlabeled=)") from error
