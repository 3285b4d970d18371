"""The norm of the last layer, written down (for slingshots: Thilak et al. 2022, arXiv 2206.04817)."""

from __future__ import annotations

from ssl_lab.batch import At, Batch, Loss
from ssl_lab.data import Pool
from ssl_lab.errors import UsageError
from ssl_lab.methods import Method
from ssl_lab.techniques.base import TermTechnique


class HeadNorm(TermTechnique):
    """head_norm = |W|_2, W the weights of the classifier's head, in each row of the metrics; training stays as it is.

    Under Adam, late and without weight decay, it may grow in jumps, each with a spike of the loss: a slingshot.
    `recipes/analyze.py` looks for them.

    >>> pool = sl.load("digits").split(labels=10)
    >>> method = sl.Supervised(sl.net("tiny_4", classes=10, style=pool.style))
    >>> term = sl.HeadNorm().around(method, pool, seed=0)
    >>> batch = sl.Feed(pool, term.views, 8, 0, seed=0)(sl.At(0, 100))
    >>> loss = term(batch, sl.At(0, 100))
    >>> torch.allclose(loss.logs["head_norm"], torch.linalg.matrix_norm(method.net.head.weight)), sorted(loss.terms)
    (True, ['labeled'])
    """

    name = "head_norm"
    paper = "The Slingshot Mechanism: An Empirical Study of Adaptive Optimizers and the Grokking Phenomenon"
    arxiv = "2206.04817"
    serves = "insight"

    def check(self, method: Method, pool: Pool) -> None:
        if not hasattr(method.net, "head"):
            raise UsageError(f"head_norm writes down the norm of the last layer, and {method.name} has several nets")

    def forward(self, batch: Batch, at: At) -> Loss:
        loss = super().forward(batch, at)
        loss.logs["head_norm"] = self.net.head.weight.detach().float().norm()
        return loss
