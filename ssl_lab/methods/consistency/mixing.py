"""What MixMatch and its successors share: sharpening, what is mixed with what, rotations. B rows, C classes."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ssl_lab.batch import At, Batch, seed_of
from ssl_lab.errors import UsageError
from ssl_lab.methods.mixture import Mix, Mixture, beta_shares, larger, mixture
from ssl_lab.nets.base import linear_head


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
