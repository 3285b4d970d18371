"""MixUp (Zhang et al. 2018, arXiv 1710.09412) and CutMix (Yun et al. 2019, arXiv 1905.04899): rows and partners."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
import torch
from torch import Tensor

from ssl_lab.batch import Draw
from ssl_lab.errors import UsageError, unknown
from ssl_lab.seeds import seed_of
from ssl_lab.views.send import send

Mix = Literal["mixup", "cutmix"]
"""What becomes of two images: their mean by shares, or one of them with a rectangle of the other."""


@dataclass(frozen=True)
class Mixture:
    """N rows, each mixed with another one of them.

    share: float [N], how much of row n is its own. partner: int64 [N], the other row. pasted: bool [N, H, W], the
    pixels that are the partner's; None in MixUp.
    """

    share: Tensor
    partner: Tensor
    pasted: Tensor | None = None

    def images(self, x: Tensor) -> Tensor:
        """x: float [N, C, H, W]. MixUp: share_n x_n + (1 - share_n) x_partner(n). CutMix: x_n, with the pixels of
        x_partner(n) within its rectangle."""
        if self.pasted is None:
            return mixup(x, self.share, self.partner)
        return torch.where(self.pasted[:, None], x[self.partner], x)

    def targets(self, p: Tensor) -> Tensor:
        """share_n p_n + (1 - share_n) p_partner(n), of probabilities or logits, float [N, C]."""
        return mixup(p, self.share, self.partner)


def mixture(parts: Sequence[tuple[Draw, Tensor]], order: Draw, mix: Mix, size: tuple[int, int],
            device: torch.device) -> Mixture:
    """Draws what is mixed with what, on the host, and sends it to `device` in one copy.

    parts: of the rows, one after another: where their rectangles come from, and their shares, float [rows, views]; each
    part has the rows of its first view, then those of the next. An image's numbers are the same on any number of ranks.
    order: of the partners, which are rows of the same rank. size: height and width of the images. CutMix's share is
    that of the pixels that the rectangle leaves.
    """
    partner = permutation(order)
    if mix == "mixup":
        return Mixture(*send([torch.cat([share.T.flatten() for _, share in parts]), partner], device))
    drawn = [rectangles(draw.child("rectangle"), share, *size) for draw, share in parts]
    share, lines, columns = (torch.cat([part.transpose(0, 1).flatten(0, 1) for part in kind])
                             for kind in zip(*drawn, strict=True))
    share, partner, lines, columns = send([share, partner, lines, columns], device)
    return Mixture(share, partner, lines[:, :, None] & columns[:, None, :])


def mixup(values: Tensor, share: Tensor, partner: Tensor) -> Tensor:
    """share_n * values_n + (1 - share_n) * values[partner_n].

    values: float [N, ...]. share: float [N]. partner: int64 [N], e.g. a permutation of the rows.
    """
    share = share.to(values.dtype).view(-1, *(1,) * (values.dim() - 1))
    return values[partner].lerp(values, share)


def rectangles(draw: Draw, share: Tensor, height: int, width: int) -> tuple[Tensor, Tensor, Tensor]:
    """A rectangle for each of `share`, float [rows, ...]: sqrt(1 - share) as high and as wide as the image, in whole
    pixels, around a random one, cut off at the border (the authors' code makes odd sides a pixel shorter).

    Returns the exact shares of the pixels outside it, and which lines and columns it meets, bool [rows, ..., H] and
    [..., W].
    """
    met = []
    for side in (height, width):
        length = ((1 - share).sqrt() * side).long()[..., None]
        offset = torch.arange(side) - draw.integers(0, side, *share.shape[1:], 1) + length // 2
        met.append((offset >= 0) & (offset < length))
    lines, columns = met
    return 1 - lines.sum(-1) * columns.sum(-1) / (height * width), lines, columns


def beta_shares(draw: Draw, alpha: float, *shape: int) -> Tensor:
    """float32 [rows, *shape], on the CPU, from Beta(alpha, alpha): a number for each row.

    Drawn, as all of `Draw`, for the rows of all ranks. alpha = 0 is the limit in which nothing is mixed: 1.
    """
    check_alpha(alpha)
    if alpha == 0:
        return torch.ones(len(draw), *shape)
    generator = np.random.default_rng(seed_of(*draw.key, "beta"))
    return torch.from_numpy(generator.beta(alpha, alpha, size=(draw.total, *shape)))[draw.rows].float()


def larger(share: Tensor) -> Tensor:
    """max(s, 1 - s): a row then stays nearer to itself than to its partner."""
    return torch.maximum(share, 1 - share)


def permutation(draw: Draw) -> Tensor:
    """int64 [rows], on the CPU: a random order of this rank's own rows."""
    return draw.uniform().argsort()


def check_alpha(alpha: float) -> None:
    """UsageError unless it is one of Beta(alpha, alpha), or 0."""
    if alpha < 0:
        raise UsageError(f"alpha, of the Beta distribution by which images are mixed, is {alpha}; expected 0 (no "
                         "mixing) or more.")


def check_mix(mix: str) -> None:
    """UsageError unless it is one of `Mix`."""
    if mix not in get_args(Mix):
        raise unknown("mix", mix, get_args(Mix))
