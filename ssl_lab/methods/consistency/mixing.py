"""What MixMatch and its successors share: sharpening, MixUp, rotations. B or N rows, C classes."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn

from ssl_lab.batch import At, Batch, Draw, seed_of
from ssl_lab.errors import UsageError
from ssl_lab.nets.base import linear_head


def sharpen(p: Tensor, temperature: float) -> Tensor:
    """p_c^(1/T) / sum_j p_j^(1/T): the identity at T = 1, one-hot at the maximum as T -> 0 (MixMatch, equation 7).

    p: probabilities [..., C]. Computed from log p, so that a small temperature does not underflow to 0 / 0.
    """
    return (p.log() / temperature).softmax(dim=-1)


def mixup_shares(draw: Draw, alpha: float, *shape: int) -> Tensor:
    """float32 [rows, *shape] on the draw's device: max(s, 1 - s) of s ~ Beta(alpha, alpha), so in [0.5, 1].

    Drawn, as all of `Draw`, for the rows of all ranks. alpha = 0 is the limit in which nothing is mixed: 1.
    """
    if alpha < 0:
        raise UsageError(f"MixUp's alpha is {alpha}; expected 0 (no mixing) or more.")
    if alpha == 0:
        return draw.to_device(torch.ones(len(draw), *shape))
    generator = np.random.default_rng(seed_of(*draw.key, "beta"))
    shares = torch.from_numpy(generator.beta(alpha, alpha, size=(draw.total, *shape)))[draw.rows].float()
    return draw.to_device(torch.maximum(shares, 1 - shares))


def permutation(draw: Draw) -> Tensor:
    """int64 [rows] on the draw's device: a random order of this rank's own rows."""
    return draw.to_device(draw.uniform().argsort())


def mixup(values: Tensor, share: Tensor, partner: Tensor) -> Tensor:
    """share_n * values_n + (1 - share_n) * values[partner_n] (Zhang et al. 2018).

    values: float [N, ...]. share: float [N]. partner: int64 [N], e.g. a permutation of the rows.
    """
    share = share.to(values.dtype).view(-1, *(1,) * (values.dim() - 1))
    return values[partner].lerp(values, share)


def mixing(batch: Batch, at: At, alpha: float) -> tuple[Tensor, Tensor]:
    """MixUp's share and partner of each row: the labeled rows, then each view of the unlabeled ones in turn.

    An image's shares are the same on any number of ranks; its partner is one of the rows of its own rank.
    """
    x, u = batch.labeled, batch.unlabeled
    views, device = len(u.views), u.truth.device
    labeled = mixup_shares(at.draw("mixup/labeled", len(x), device), alpha)
    unlabeled = mixup_shares(at.draw("mixup/unlabeled", len(u), device), alpha, views)
    partner = permutation(at.draw("mixup/partner", len(x) + views * len(u), device))
    return torch.cat([labeled, unlabeled.T.flatten()]), partner


def all_rotations(images: Tensor) -> Tensor:
    """float [4B, C, H, H]: the images unturned, then all turned by 90, by 180 and by 270 degrees."""
    _check_square(images)
    return torch.cat([images.rot90(turns, (2, 3)) for turns in range(4)])


def some_rotation(images: Tensor) -> tuple[Tensor, Tensor]:
    """Every image in one rotation, that of its row mod 4, in order of the rotations; and those, int64 [B]."""
    _check_square(images)
    turns = torch.arange(len(images), device=images.device) % 4
    return (torch.cat([images[first::4].rot90(first, (2, 3)) for first in range(4)]),
            torch.cat([turns[first::4] for first in range(4)]))


def _check_square(images: Tensor) -> None:
    """Refuse images whose shape changes when they are turned."""
    height, width = images.shape[2:]
    if height != width:
        raise UsageError(f"rotations need square images, these are {height} x {width}; give an image size.")


def rotation_head(features_dim: int, seed: int = 0) -> nn.Linear:
    """A linear layer features -> 4 rotations whose initial weights are a function of the seed."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed_of(seed, "rotation head"))
        return linear_head(features_dim, 4)
