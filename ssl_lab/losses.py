"""Loss and mask equations as pure functions of tensors. B rows, C classes; logits float [B, C] of any precision.

Everything is computed in float32 at least, whatever the precision of the nets.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from ssl_lab.batch import Share


def cross_entropy(logits: Tensor, targets: Tensor) -> Tensor:
    """Mean of -log softmax(logits)[target] over the rows. targets: int64 [B], or probabilities [B, C]."""
    return F.cross_entropy(_full(logits), targets)


def cross_entropies(logits: Tensor, targets: Tensor) -> Tensor:
    """-log softmax(logits)[target] of each row, float [B]. targets: int64 [B], or probabilities [B, C]."""
    return F.cross_entropy(_full(logits), targets, reduction="none")


def probabilities(logits: Tensor, temperature: float = 1.0) -> Tensor:
    """softmax(logits / temperature) over the classes: float [B, C], with gradient."""
    return (_full(logits) / temperature).softmax(dim=-1)


def pseudo_labels(logits: Tensor) -> tuple[Tensor, Tensor]:
    """Confidence max_c p_c (float [B]) and class argmax_c p_c (int64 [B]) of p = softmax(logits); no gradient."""
    confidence, label = probabilities(logits.detach()).max(dim=1)
    return confidence, label


def masked_cross_entropy(logits: Tensor, targets: Tensor, mask: Tensor) -> Tensor:
    """(1/B) sum_b mask_b * H(target_b, softmax(logits_b)): divided by all B rows, not by those kept.

    With targets = pseudo-labels and mask = confidence >= threshold, this is the unlabeled loss of FixMatch
    (Sohn et al. 2020, equation 4). targets: int64 [B], or probabilities [B, C]. mask: bool or float [B].
    """
    return (cross_entropies(logits, targets) * mask).mean()


def squared_error(p: Tensor, q: Tensor) -> Tensor:
    """(1 / BC) sum_bc (p_bc - q_bc)^2: the mean is over rows *and* classes. p, q: float [B, C]."""
    return (p - q).square().mean()


def align(p: Tensor, target: Tensor, current: Tensor) -> Tensor:
    """Distribution alignment: rows proportional to p_c (target_c + 1e-6) / (current_c + 1e-6) that sum to 1.

    p: probabilities [B, C]. target: float [C], what their mean should be; current: what it is (ReMixMatch,
    Berthelot et al. 2020, section 3.1, with the constants of AdaMatch's code).
    """
    aligned = p * (target + 1e-6) / (current + 1e-6)
    return aligned / aligned.sum(dim=-1, keepdim=True)


def accuracy(predicted: Tensor, truth: Tensor, mask: Tensor | None = None) -> Share:
    """Share of rows with predicted == truth, among those with a known truth (>= 0) and, if given, mask.

    predicted, truth: int64 [B]; mask: bool [B]. On their device.
    """
    counted = truth >= 0
    if mask is not None:
        counted = counted & mask
    return Share(((predicted == truth) & counted).sum(), counted.sum())


def _full(logits: Tensor) -> Tensor:
    return logits.float() if logits.dtype in (torch.bfloat16, torch.float16) else logits
