"""Lookahead (Zhang et al. 2019, arXiv 1907.08610): k steps forward, one step back."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from ssl_lab.batch import At
from ssl_lab.data import Pool
from ssl_lab.errors import UsageError
from ssl_lab.techniques.base import WeightsTechnique


class Lookahead(WeightsTechnique):
    """slow <- slow + alpha (fast - slow),    fast <- slow,    after every k steps of the optimizer and after the last

    of all parameters that learn. The paper evaluates the slow weights: the last step ends at them, and the method's
    moving average, if it has one, is that of what training goes on from (ema=0 evaluates the slow weights themselves).
    The optimizer keeps its momenta, as in the authors' default ("none"). With alpha = 1 it is the optimizer alone.

    Checked against the authors' code (`lookahead_pytorch.py`).

    Args:
        k, alpha: the paper's; its code has alpha = 0.8.

    >>> pool = sl.load("digits").split(labels=10)
    >>> method = sl.Supervised(sl.net("tiny_4", classes=10, style=pool.style))
    >>> whole = sl.Lookahead(k=2, alpha=0.5).around(method, pool, seed=0)
    >>> bias = method.net.head.bias.detach().clone()
    >>> method.net.head.bias.data += 1.0
    >>> for step in range(2):
    ...     whole.after_step(sl.At(step, 100))
    >>> (method.net.head.bias - bias).mean().item()  # half of the way
    0.5
    """

    name = "lookahead"
    paper = "Lookahead Optimizer: k steps forward, 1 step back"
    arxiv = "1907.08610"

    def __init__(self, k: int = 5, alpha: float = 0.5) -> None:
        super().__init__()
        if k < 1 or not 0 < alpha <= 1:
            raise UsageError(f"lookahead: k={k}, alpha={alpha}; expected 1 step or more, and alpha above 0, at most 1")
        self.k, self.alpha = k, alpha

    def begin(self, pool: Pool, seed: int) -> None:
        self.slow = nn.ParameterList(nn.Parameter(p.detach().clone(), requires_grad=False) for p in self._fast())

    def after_step(self, at: At) -> None:
        if (at.step + 1) % self.k == 0 or at.step + 1 == at.total:
            look_back([p.data for p in self.slow], [p.data for p in self._fast()], self.alpha)
        super().after_step(at)  # averages are those of the weights that training goes on from

    def _fast(self) -> list[nn.Parameter]:
        return [p for p in self.base.parameters() if p.requires_grad]


@torch.no_grad()
def look_back(slow: Sequence[Tensor], fast: Sequence[Tensor], alpha: float) -> None:
    """Moves the slow weights towards the fast ones, which then are there too; in place."""
    torch._foreach_lerp_(list(slow), list(fast), alpha)
    torch._foreach_copy_(list(fast), list(slow))
