"""Noise consistency (DiGN, Tsiligkaridis and Tsiligkaridis 2021): predictions that noise does not change."""

from __future__ import annotations

import torch
from torch import Tensor

from ssl_lab.batch import At, Batch, Loss
from ssl_lab.data import Pool
from ssl_lab.errors import UsageError
from ssl_lab.methods import Method
from ssl_lab.nets import Net
from ssl_lab.schedule import Scalar
from ssl_lab.techniques.base import TermTechnique


class NoiseConsistency(TermTechnique):
    """L + weight * (1 / B) sum_b (1 / n) sum_k KL(p(x_b) || p(x_b + s_bk e_bk))

    with s_bk ~ U(0, strength) and e_bk ~ N(0, I), over the labeled images of the batch under their first view (or all
    images, where the method takes none with labels). Noise is added after the net's own normalization, and the gradient
    passes both predictions. Clean and noisy images pass the net together, beside the method's own pass.

    Checked against the authors' code (`DiGN.py`, `train.py`), whose divergence of two AugMix views is left out.

    Args:
        weight: lambda_1 in the paper.
        strength: the largest standard deviation of noise.
        draws: n, per image.

    >>> pool = sl.load("digits").split(labels=10)
    >>> method = sl.Supervised(sl.net("tiny_4", classes=10, style=pool.style))
    >>> term = sl.NoiseConsistency(weight=0.2, strength=0.2).around(method, pool, seed=0)
    >>> batch = sl.Feed(pool, term.views, 8, 0, seed=0)(sl.At(0, 100))
    >>> sorted(term(batch, sl.At(0, 100)).terms)
    ['labeled', 'noise_consistency']
    """

    name = "noise_consistency"
    paper = "Diverse Gaussian Noise Consistency Regularization for Robustness and Uncertainty Calibration"
    arxiv = "2104.01231"

    def __init__(self, weight: Scalar = 0.2, strength: Scalar = 0.2, draws: int = 3) -> None:
        super().__init__()
        if draws < 1:
            raise UsageError(f"noise_consistency: draws={draws}; expected 1 or more")
        self.weight, self.strength, self.draws = weight, strength, draws

    def check(self, method: Method, pool: Pool) -> None:
        if not method.classifies:
            raise UsageError(f"noise_consistency compares predictions of classes, and {method.name} trains no "
                             "classifier")

    def forward(self, batch: Batch, at: At) -> Loss:
        loss = super().forward(batch, at)
        if not at.value(self.weight):  # BatchNorm's statistics are then those of the method alone
            loss.terms["noise_consistency"] = torch.zeros_like(loss.total)
            return loss
        rows = batch.labeled if len(batch.labeled) else batch.unlabeled
        x = next(iter(rows.views.values()))
        draw = at.draw("noise_consistency", len(x), x.device)
        scales = draw.to_device(draw.uniform(self.draws, 1, 1, 1, high=at.value(self.strength)))
        noise = draw.to_device(draw.normal(self.draws, *x.shape[1:])) * scales
        loss.terms["noise_consistency"] = at.value(self.weight) * divergence(self.net, x, noise)
        return loss


def divergence(net: Net, x: Tensor, noise: Tensor) -> Tensor:
    """Mean over rows and draws of KL(p(x) || p(x + noise)), noise in units of the net's normalized pixels.

    x: float [B, C, H, W] in [0, 1]. noise: float [B, n, C, H, W]. Scalar float32, with gradient through both.
    """
    noisy = (x.unsqueeze(1) + noise * net.std).flatten(0, 1)
    logits = net(torch.cat([x, noisy])).logits.float()
    clean, other = logits[: len(x)].log_softmax(dim=1), logits[len(x) :].log_softmax(dim=1)
    clean = clean.repeat_interleave(noise.shape[1], dim=0)
    per_row: Tensor = (clean.exp() * (clean - other)).sum(dim=1)
    return per_row.mean()
