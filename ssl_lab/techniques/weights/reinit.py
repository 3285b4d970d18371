"""Re-initialization (Zaidi et al. 2022, arXiv 2206.10011): the last layers, or all, are drawn anew in mid-run."""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn

from ssl_lab.data import Pool
from ssl_lab.errors import UsageError
from ssl_lab.methods import Method
from ssl_lab.nets.normed import blocks_of
from ssl_lab.techniques.weights.renewal import Renewal, after_block


class Reinit(Renewal):
    """w <- fresh weights, of the last blocks and the head, after each of several generations of equal length.

    Ours in detail: only the paper's abstract was read. It finds that this helps where nothing else regularizes, or
    labels are wrong, and little elsewhere; what is compared with it needs as many steps in all.

    Args:
        generations: so many parts of the run; 1 never draws anew.
        blocks: how many blocks of the backbone, beside what comes after them; 0 is the head alone, None the whole
            net (a restart).

    >>> pool = sl.load("digits").split(labels=10)
    >>> method = sl.Supervised(sl.net("tiny_4", classes=10, style=pool.style))
    >>> whole, head = sl.Reinit(generations=2).around(method, pool, seed=0), method.net.head.weight
    >>> before = head.detach().clone()
    >>> for step in range(4):
    ...     whole.after_step(sl.At(step, 4))
    >>> torch.equal(head, before), torch.equal(head.flatten().sort().values, before.flatten().sort().values)
    (False, True)
    """

    name = "reinit"
    paper = "When Does Re-initialization Work?"
    arxiv = "2206.10011"

    def __init__(self, generations: int = 2, blocks: int | None = 0) -> None:
        super().__init__(generations)
        if blocks is not None and blocks < 0:
            raise UsageError(f"reinit: blocks={blocks}; expected 0 or more, or None for the whole net")
        self.blocks = blocks

    @property
    def overwrites(self) -> str:
        what = "all weights" if self.blocks is None else f"the last {self.blocks} blocks and the head"
        return f"draws {what} anew in mid-run" if self.generations > 1 and self.blocks != 0 else ""

    def check(self, method: Method, pool: Pool) -> None:
        super().check(method, pool)
        known = len(blocks_of(method.net))
        if self.blocks is not None and self.blocks > known:
            raise UsageError(f"reinit: blocks={self.blocks}; {method.net.name} has {known}")
        if self.blocks == 0 and not method.classifies:
            raise UsageError(f"reinit draws the head anew, and {method.name} trains none; give blocks=1 or more")

    def renew(self, generation: int) -> Sequence[nn.Parameter]:
        kept = None if self.blocks is None else len(blocks_of(self.net)) - self.blocks
        names = [name for name, _ in self.net.named_parameters()] if kept is None else after_block(self.net, kept)
        names = [name for name in names if self.net.get_parameter(name).requires_grad]
        for name in names:
            self.net.get_parameter(name).copy_(self.fresh(name, generation))
        return self.settle(names)
