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
