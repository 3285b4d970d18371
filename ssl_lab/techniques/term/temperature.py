"""The temperature of the softmax in the labeled loss, cyclical if it is a schedule (Smith 2022, arXiv 2202.08835)."""

from __future__ import annotations

from torch import Tensor

from ssl_lab import schedule
from ssl_lab.batch import At
from ssl_lab.methods.base import RowLosses
from ssl_lab.schedule import Scalar
from ssl_lab.techniques.term.labeled import LabeledTechnique


class Temperature(LabeledTechnique):
    """H(y, softmax(z / value)): below 1 the easy images count less and less, above 1 more.

    The paper's equation; its cycles are `cyclical`. No code was read, and the default range is ours.

    Args:
        value: 1 changes nothing, bit by bit.

    >>> pool = sl.load("digits").split(labels=10)
    >>> method = sl.Supervised(sl.net("tiny_4", classes=10, style=pool.style))
    >>> term = sl.Temperature(value=1.0).around(method, pool, seed=0)
    >>> batch = sl.Feed(pool, term.views, 8, 0, seed=0)(sl.At(0, 100))
    >>> both = [each(batch, sl.At(0, 100)).total for each in (term, method)]
    >>> torch.equal(*both)  # a temperature of 1 changes nothing
    True
    """

    name = "temperature"
    paper = "General Cyclical Training of Neural Networks"
    arxiv = "2202.08835"

    def __init__(self, value: Scalar = schedule.cyclical(0.5, 2.0)) -> None:  # noqa: B008 - it is frozen
        super().__init__()
        self.value = value

    def idle(self, at: At) -> bool:
        return at.value(self.value) == 1

    def row_losses(self, logits: Tensor, targets: Tensor, at: At, then: RowLosses) -> Tensor:
        return then(logits / at.value(self.value), targets)
