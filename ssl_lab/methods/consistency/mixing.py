"""What MixMatch and its successors share: sharpening, and what is mixed with what. B rows, C classes."""

from __future__ import annotations

from torch import Tensor

from ssl_lab.batch import At, Batch
from ssl_lab.methods.mixture import Mix, Mixture, beta_shares, larger, mixture


def sharpen(p: Tensor, temperature: float) -> Tensor:
    """p_c^(1/T) / sum_j p_j^(1/T): the identity at T = 1, one-hot at the maximum as T -> 0 (MixMatch, equation 7).

    p: probabilities [..., C]. Computed from log p, so that a small temperature does not underflow to 0 / 0.
    """
    return (p.log() / temperature).softmax(dim=-1)


def mixing(batch: Batch, at: At, alpha: float, mix: Mix) -> Mixture:
    """The labeled rows, then each view of the unlabeled ones in turn; shares are max(s, 1 - s), s ~ Beta(alpha, alpha).

    An image's shares are the same on any number of ranks; its partner is one of the rows of its own rank.
    """
    x, u, views = batch.labeled, batch.unlabeled, len(batch.unlabeled.views)
    labeled, unlabeled = at.draw("mixup/labeled", len(x)), at.draw("mixup/unlabeled", len(u))
    parts = [(labeled, larger(beta_shares(labeled, alpha))[:, None]),
             (unlabeled, larger(beta_shares(unlabeled, alpha, views)))]
    height, width = next(iter(u.views.values())).shape[2:]
    return mixture(parts, at.draw("mixup/partner", len(x) + views * len(u)), mix, (height, width), u.truth.device)
