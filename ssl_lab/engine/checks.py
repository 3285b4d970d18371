"""What is checked before a run begins, so that it does not fail or learn nonsense later."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from ssl_lab.class_names import apart
from ssl_lab.data import Pool
from ssl_lab.errors import UsageError
from ssl_lab.methods import Method
from ssl_lab.nets import Net


def check_classes(method: Method, pool: Pool) -> None:
    """UsageError unless the net's logits stand for the pool's classes, in order. Nets without names get the pool's."""
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
