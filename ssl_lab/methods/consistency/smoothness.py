"""Equations that ask a net for the same answer on nearby inputs. B rows, C classes; logits float [B, C]."""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ssl_lab.batch import At
from ssl_lab.methods.mixture import check_alpha
from ssl_lab.seeds import seed_of


def divergence(target: Tensor, logits: Tensor) -> Tensor:
    """(1/B) sum_b KL(p_b || q_b), p = softmax(target), q = softmax(logits); gradient reaches both."""
    log_p, log_q = (x.float() if x.dtype in (torch.bfloat16, torch.float16) else x for x in (target, logits))
    return F.kl_div(log_q.log_softmax(dim=1), log_p.log_softmax(dim=1), reduction="batchmean", log_target=True)


def unit(d: Tensor) -> Tensor:
    """Each row of d, float [B, ...], divided by its L2 norm; rows of zeros stay zeros."""
    rows = d.flatten(1)
    rows = rows / rows.abs().amax(dim=1, keepdim=True).clamp(min=torch.finfo(d.dtype).tiny)  # squares of tiny
    return F.normalize(rows).view_as(d)  # numbers underflow


def beta_share(at: At, purpose: str, alpha: float) -> float:
    """One number from Beta(alpha, alpha), the same on all ranks: a pure function of (seed, purpose, step).

    alpha = 0 is the limit in which nothing is mixed: 1.
    """
    check_alpha(alpha)
    if alpha == 0:
        return 1.0
    return float(np.random.default_rng(seed_of(at.seed, purpose, at.step)).beta(alpha, alpha))
