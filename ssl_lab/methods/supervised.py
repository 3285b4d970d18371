"""Supervised: cross-entropy on the labeled images alone, the baseline of everything else."""

from __future__ import annotations

from ssl_lab import losses
from ssl_lab.batch import At, Batch, Loss
from ssl_lab.methods.base import Method, Views
from ssl_lab.nets import Net
from ssl_lab.schedule import Scalar
from ssl_lab.views import ViewFactory, Weak


class Supervised(Method):
    """L = H(y, p(x)) over the labeled images under one view.

    Args:
        view: how the labeled images are augmented; Strong makes a much harder baseline.

    >>> pool = sl.load("digits").split(labels=10)
    >>> method = sl.Supervised(sl.net("tiny_4", classes=10, style=pool.style), view=sl.Strong)
    >>> batch = sl.Feed(pool, method.views, 4, 0, seed=0)(sl.At(0, 100))
    >>> loss = method(batch, sl.At(0, 100))
    >>> {name: round(term.item(), 2) for name, term in loss.terms.items()}
    {'labeled': 2.75}
    """

    name = "supervised"
    family = "supervised"
    paper = "Cross-entropy on the labeled images"
    arxiv = ""
    recipe = "recipes/supervised.py"

    def __init__(self, net: Net, view: ViewFactory = Weak, ema: Scalar = 0.999) -> None:
        super().__init__(net, ema)
        self.views = Views(labeled={"view": view})

    def forward(self, batch: Batch, at: At) -> Loss:
        logits = self.net(batch.labeled["view"]).logits
        accuracy = losses.accuracy(logits.detach().argmax(dim=1), batch.labeled.targets)
        return Loss({"labeled": self.labeled_loss(logits, batch.labeled.targets)},
                    logs={"train_accuracy": accuracy})
