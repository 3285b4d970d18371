"""Shrink and perturb (Ash and Adams 2020, arXiv 1910.08475; Zaidi et al. 2022, arXiv 2206.10011)."""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn

from ssl_lab.errors import UsageError
from ssl_lab.techniques.weights.renewal import Renewal


class ShrinkPerturb(Renewal):
    """w <- keep w + noise w_fresh    for all weights of the net, after each of several generations of equal length.

    keep = 1 and noise = 0 change nothing, 0 and 1 are a restart. The defaults are those of one study, another has 0.8
    and 0.01.

    Ours in detail: the equation is that of both papers, of which only abstracts were read.

    Args:
        keep: in [0, 1].
        noise: 0 or more.
        generations: parts of the run.

    >>> pool = sl.load("digits").split(labels=10)
    >>> method = sl.Supervised(sl.net("tiny_4", classes=10, style=pool.style))
    >>> whole = sl.ShrinkPerturb(keep=0.4, noise=0.1).around(method, pool, seed=0)
    >>> head = method.net.head.weight.detach().clone()
    >>> for step in range(2):
    ...     whole.after_step(sl.At(step, 4))
    >>> round((method.net.head.weight.norm() / head.norm()).item(), 1)
    0.4
    """

    name = "shrink_perturb"
    paper = "When Does Re-initialization Work?"
    arxiv = "2206.10011"

    def __init__(self, keep: float = 0.4, noise: float = 0.1, generations: int = 2) -> None:
        super().__init__(generations)
        if not 0 <= keep <= 1 or noise < 0:
            raise UsageError(f"shrink_perturb: keep={keep}, noise={noise}; expected keep from 0 to 1, and noise of 0 "
                             "or more")
        self.keep, self.noise = keep, noise
        self._acts = keep != 1 or noise != 0

    @property
    def overwrites(self) -> str:
        return "shrinks all weights in mid-run and adds noise" if self.generations > 1 and self._acts else ""

    def renew(self, generation: int) -> Sequence[nn.Parameter]:
        if not self._acts:
            return ()
        names = [name for name, weight in self.net.named_parameters() if weight.requires_grad]
        for name in names:
            self.net.get_parameter(name).mul_(self.keep).add_(self.fresh(name, generation), alpha=self.noise)
        return self.settle(names)
