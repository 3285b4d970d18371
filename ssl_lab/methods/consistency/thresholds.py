"""Which pseudo-labels count, and how much: thresholds, weights and alignment as pure functions.

B rows, C classes. Probabilities are float [B, C]; counts int64 [C]; no gradient unless said.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from ssl_lab.errors import unknown


def class_counts(labels: Tensor, classes: int) -> Tensor:
    """int64 [classes]: how often each class is among the labels, int64 [n], of which those below 0 do not count."""
    slots = torch.zeros(classes + 1, dtype=torch.int64, device=labels.device)
    slots.scatter_add_(0, labels.clamp(min=-1) + 1, torch.ones_like(labels))  # bincount would wait for the device
    return slots[1:]


def learning_status(counts: Tensor, unlabeled: int) -> Tensor:
    """beta_c = sigma_c / max(max_c' sigma_c', N - sum_c' sigma_c'), float [C] in [0, 1].

    sigma: counts, of the images with a confident pseudo-label so far. N: unlabeled images. The second part of
    the maximum, the images without one, is the warm-up (FlexMatch, Zhang et al. 2021, equation 11).
    """
    most = torch.maximum(counts.max(), unlabeled - counts.sum())
    return counts / most.clamp(min=1)


def convex(status: Tensor) -> Tensor:
    """M(beta) = beta / (2 - beta), from 0 at 0 to 1 at 1 (FlexMatch, equation 12)."""
    return status / (2 - status)


def class_thresholds(threshold: Tensor, prediction: Tensor) -> Tensor:
    """tau_c = tau * p_c / max_c' p_c', float [C] (FreeMatch, Wang et al. 2023, equation 8).

    threshold: scalar, the mean confidence. prediction: float [C], the mean prediction.
    """
    return threshold * prediction / prediction.max()


def fairness(logits: Tensor, mask: Tensor, prediction: Tensor, histogram: Tensor) -> Tensor:
    """sum_c S(p / h)_c log S(p_batch / h_batch)_c, S(x) = x / sum x: FreeMatch's, to be minimized; with gradient.

    It is minus a cross-entropy (equations 9 to 11 of the paper). logits: [B, C] of the strong views. mask: bool
    [B]; p_batch is their mean prediction over the rows kept, h_batch the histogram of their predicted classes.
    prediction, histogram: p and h, float [C], the same of the weak views over the steps so far. A class that
    no kept row predicts gets 0 for p / h, as in the paper's code; 0 where no row is kept.
    """
    batch = logits.softmax(dim=1, dtype=torch.promote_types(logits.dtype, torch.float32))
    counts = class_counts(torch.where(mask, logits.argmax(dim=1), -1), logits.shape[1])
    target = _normalized(_ratio(prediction, histogram))
    now = _normalized(_ratio((batch * mask[:, None]).sum(dim=0), counts))
    return torch.where(mask.any(), (target * torch.log(now + 1e-12)).sum(), 0.0)


def recent_mean(window: Tensor) -> Tensor:
    """float [C], sums to 1: the mean of the rows of a window, float [W, C], that were filled so far; zeros if none was.

    Rows that hold a distribution sum to 1, those that wait for one are zeros, so that they do not count. To
    `losses.align` a mean of zeros is one of equal shares: it changes nothing.
    """
    return _normalized(window.sum(dim=0))


def truncated_gaussian(confidence: Tensor, mean: Tensor, variance: Tensor, n_sigma: float) -> Tensor:
    """exp(-(n_sigma d)^2 / (2 variance)) with d = min(confidence - mean, 0), float [B] in [0, 1].

    The weight of SoftMatch (Chen et al. 2023, equation 5): 1 from the mean on. A variance of 0 makes it a
    threshold at the mean. confidence: float [B]; mean, variance: scalars.
    """
    below = (confidence - mean).clamp(max=0)
    return torch.exp(-(n_sigma * below).square() / (2 * variance.clamp(min=torch.finfo(variance.dtype).tiny)))


TSA: dict[str, Callable[[float], float]] = {
    "none": lambda t: 1.0,
    "linear": lambda t: t,
    "log": lambda t: 1 - math.exp(-5 * t),
    "exp": lambda t: math.exp(5 * (t - 1)),
}
"""The schedules a(t) of training-signal annealing; "none" keeps every labeled row."""


def tsa_threshold(schedule: str, t: float, classes: int) -> float:
    """eta = a(t) (1 - 1/C) + 1/C for the training fraction t in [0, 1] (UDA, Xie et al. 2020, section 2.4).

    schedule: "none", "linear", "log" or "exp", else UsageError.
    """
    if schedule not in TSA:
        raise unknown("TSA schedule", schedule, TSA)
    return TSA[schedule](t) * (1 - 1 / classes) + 1 / classes


def annealed(rows: Tensor, logits: Tensor, targets: Tensor, threshold: float) -> Tensor:
    """Mean of the losses `rows`, float [B], over those with p_target <= threshold; 0 if there are none; with gradient.

    logits: [B, C]; targets: int64 [B] (UDA's training-signal annealing).
    """
    log_p = logits.detach().log_softmax(dim=1, dtype=torch.promote_types(logits.dtype, torch.float32))
    kept = log_p.gather(1, targets[:, None])[:, 0].exp() <= threshold
    return (rows * kept).sum() / kept.sum().clamp(min=1)


def _normalized(values: Tensor) -> Tensor:
    return values / values.sum().clamp(min=torch.finfo(values.dtype).tiny)


def _ratio(values: Tensor, by: Tensor) -> Tensor:
    """values / by, and 0 where by is 0."""
    return torch.where(by > 0, values / torch.where(by > 0, by, 1), 0.0)
