"""Loss and mask equations as pure functions of tensors. B rows, C classes; logits float [B, C] of any precision.

Everything is computed in float32 at least, whatever the precision of the nets.
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext

import torch
import torch.nn.functional as F
from torch import Tensor

from ssl_lab.batch import Share

__all__ = ["accuracy", "align", "cross_entropies", "cross_entropy", "masked_cross_entropy", "probabilities",
           "pseudo_labels", "squared_error"]


def cross_entropy(logits: Tensor, targets: Tensor) -> Tensor:
    """Mean of -log softmax(logits)[target] over the rows.

    Args:
        logits: float [B, C].
        targets: int64 [B], or probabilities [B, C].

    >>> guess = torch.zeros(4, 10)  # that all of ten classes are as likely
    >>> sl.losses.cross_entropy(guess, torch.tensor([3, 1, 4, 1])).exp().item()
    10.0
    """
    return F.cross_entropy(_full(logits), targets)


def cross_entropies(logits: Tensor, targets: Tensor) -> Tensor:
    """-log softmax(logits)[target] of each row, float [B].

    Args:
        logits: float [B, C].
        targets: int64 [B], or probabilities [B, C].

    >>> p = torch.tensor([[0.5, 0.25, 0.25]])
    >>> bits = sl.losses.cross_entropies(p.log(), p) / np.log(2)  # of a distribution and itself: its entropy
    >>> round(bits.item(), 4)
    1.5
    """
    return F.cross_entropy(_full(logits), targets, reduction="none")


def probabilities(logits: Tensor, temperature: float = 1.0) -> Tensor:
    """softmax(logits / temperature) over the classes: float [B, C], with gradient.

    Args:
        logits: float [B, C].
        temperature: above 0; below 1 it sharpens, above 1 it flattens.

    >>> logits = torch.tensor([[2.0, 0.0]])
    >>> [round(sl.losses.probabilities(logits, t)[0, 0].item(), 3) for t in (0.5, 1.0, 2.0)]
    [0.982, 0.881, 0.731]
    """
    return (_full(logits) / temperature).softmax(dim=-1)


def pseudo_labels(logits: Tensor) -> tuple[Tensor, Tensor]:
    """Confidence max_c p_c (float [B]) and class argmax_c p_c (int64 [B]) of p = softmax(logits); no gradient.

    Args:
        logits: float [B, C].

    >>> sl.losses.pseudo_labels(torch.tensor([[0.1, 0.9], [0.6, 0.4]]).log())
    (tensor([0.9000, 0.6000]), tensor([1, 0]))
    """
    confidence, label = probabilities(logits.detach()).max(dim=1)
    return confidence, label


def masked_cross_entropy(logits: Tensor, targets: Tensor, mask: Tensor) -> Tensor:
    """(1/B) sum_b mask_b * H(target_b, softmax(logits_b)): divided by all B rows, not by those kept.

    With targets = pseudo-labels and mask = confidence >= threshold, this is the unlabeled loss of FixMatch (Sohn et al.
    2020, equation 4).

    Args:
        logits: float [B, C].
        targets: int64 [B], or probabilities [B, C].
        mask: bool or float [B].

    >>> logits, targets = torch.zeros(4, 2), torch.tensor([0, 1, 1, 0])
    >>> keep = torch.tensor([True, False, False, False])
    >>> (sl.losses.masked_cross_entropy(logits, targets, keep) / np.log(2)).item()  # one row of log 2, over four
    0.25
    """
    return (cross_entropies(logits, targets) * mask).mean()


def squared_error(p: Tensor, q: Tensor) -> Tensor:
    """(1 / BC) sum_bc (p_bc - q_bc)^2: the mean is over rows *and* classes.

    Args:
        p, q: float [B, C].

    >>> sl.losses.squared_error(torch.eye(2), torch.zeros(2, 2)).item()
    0.5
    """
    return (p - q).square().mean()


def align(p: Tensor, target: Tensor, current: Tensor) -> Tensor:
    """Distribution alignment: rows proportional to p_c (target_c + 1e-6) / (current_c + 1e-6) that sum to 1, float
    [B, C] (ReMixMatch, Berthelot et al. 2020, arXiv 1911.09785, section 3.1, with the constants of AdaMatch's code).

    Args:
        p: probabilities [B, C].
        target: float [C], what their mean should be.
        current: float [C], what it is.

    >>> p = torch.tensor([[0.8, 0.2], [0.6, 0.4]])
    >>> sl.losses.align(p, target=torch.tensor([0.5, 0.5]), current=p.mean(dim=0))
    tensor([[0.6316, 0.3684],
            [0.3913, 0.6087]])
    """
    aligned = p * (target + 1e-6) / (current + 1e-6)
    return aligned / aligned.sum(dim=-1, keepdim=True)


def accuracy(predicted: Tensor, truth: Tensor, mask: Tensor | None = None) -> Share:
    """Share of rows with predicted == truth, among those with a known truth (>= 0) and, if given, mask.

    On their device.

    Args:
        predicted, truth: int64 [B].
        mask: bool [B].

    >>> truth = torch.tensor([3, 5, -1])  # -1: unknown, which does not count
    >>> sl.losses.accuracy(torch.tensor([3, 6, 6]), truth).item()
    0.5
    """
    counted = truth >= 0
    if mask is not None:
        counted = counted & mask
    return Share(((predicted == truth) & counted).sum(), counted.sum())


def full_precision(device: torch.device) -> AbstractContextManager[object]:
    """Within it, products of matrices and convolutions are not rounded to bf16 by autocast."""
    if torch.amp.is_autocast_available(device.type):
        return torch.autocast(device.type, enabled=False)
    return nullcontext()


def _full(logits: Tensor) -> Tensor:
    return logits.float() if logits.dtype in (torch.bfloat16, torch.float16) else logits
