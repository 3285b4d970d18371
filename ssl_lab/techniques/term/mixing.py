"""MixUp (Zhang et al. 2018, arXiv 1710.09412) and CutMix (Yun et al. 2019, arXiv 1905.04899) of labeled images."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import ClassVar

import torch
from torch import Tensor

from ssl_lab.batch import At, Batch, Loss
from ssl_lab.data import Pool
from ssl_lab.errors import UsageError
from ssl_lab.methods import Method
from ssl_lab.methods.base import RowLosses
from ssl_lab.methods.mixture import Mix, beta_shares, check_alpha, mixture
from ssl_lab.schedule import Scalar, extremes
from ssl_lab.techniques.term.labeled import LabeledTechnique

ONE_LABEL = "it goes by one label of each image, and a mixture has two"


class Mixing(LabeledTechnique):
    """The method sees mixtures in place of its labeled images, and its labeled loss is mixed by the same shares:

        s_b l(z_b, y_b) + (1 - s_b) l(z_b, y_partner(b)),    s_b ~ Beta(alpha, alpha), partner(b) a row of the batch

    A share `chance` of the images is mixed, each by a share of its own, all views of an image alike; partners are rows
    of the same micro-batch and rank. What else the method does with labels goes by the larger share's.
    """

    mix: ClassVar[Mix]
    first = True
    excludes: ClassVar[Mapping[str, str]] = {
        "mixup": "an image is mixed once", "cutmix": "an image is mixed once", "deep_supervision": ONE_LABEL,
        "relay": ONE_LABEL, "batch_entropy": ONE_LABEL}

    def __init__(self, alpha: Scalar = 1.0, chance: Scalar = 1.0) -> None:
        super().__init__()
        check_alpha(extremes(alpha)[0])
        least, most = extremes(chance)
        if not 0 <= least <= most <= 1:
            raise UsageError(f"{self.name}: chance={chance}; expected a share of the images, 0 to 1")
        self.alpha, self.chance = alpha, chance

    def check(self, method: Method, pool: Pool) -> None:
        super().check(method, pool)
        stored = any(getattr(part, "fixed", False) for part in method.modules())
        why = method.unmixable or ("goes by answers that were stored of whole ones" if stored else "")
        if why:
            raise UsageError(f"{self.name} mixes labeled images, and {method.name} {why}")

    def begin(self, pool: Pool, seed: int) -> None:
        self._rows_known = False

    def idle(self, at: At) -> bool:
        return at.value(self.alpha) == 0 or at.value(self.chance) == 0

    def forward(self, batch: Batch, at: At) -> Loss:
        if self.idle(at):
            return super().forward(batch, at)
        x = batch.labeled
        pixels, draw = next(iter(x.views.values())), at.draw(self.name, len(x))
        share = torch.where(draw.uniform() < at.value(self.chance), beta_shares(draw, at.value(self.alpha)), 1.0)
        height, width = pixels.shape[2:]
        mixed = mixture([(draw, share[:, None])], draw.child("partner"), self.mix, (height, width), pixels.device)
        own, other, nearer = x.targets, x.targets[mixed.partner], mixed.share >= 0.5
        targets = torch.where(nearer, own, other)
        truth = torch.where(nearer, x.truth, x.truth[mixed.partner])
        views = {name: mixed.images(view) for name, view in x.views.items()}

        def row_losses(logits: Tensor, labels: Tensor, at: At, then: RowLosses) -> Tensor:
            self._check_rows(labels, targets)
            times = len(labels) // len(targets)  # it may see each image several times
            shares = mixed.share.to(logits.dtype).repeat(times)
            return shares * then(logits, own.repeat(times)) + (1 - shares) * then(logits, other.repeat(times))

        return self.by(row_losses, replace(batch, labeled=replace(x, views=views, targets=targets, truth=truth)), at)

    def _check_rows(self, labels: Tensor, targets: Tensor) -> None:
        """UsageError where the labeled loss has other rows than those of the batch; looked at once, as it waits."""
        if not self._rows_known:
            if labels.ndim > 1 or len(labels) % len(targets) or not torch.equal(
                    labels, targets.repeat(len(labels) // len(targets))):
                raise UsageError(f"{self.name} mixes labeled images, and {self.base.name} has other rows than those, in"
                                 " this order, in its labeled loss")
            self._rows_known = True


class MixUp(Mixing):
    """Images are mixed pixel by pixel: s_b x_b + (1 - s_b) x_partner(b).

    Args:
        alpha: of Beta, 0.1 to 0.4 on ImageNet and 1 on CIFAR in the paper; 0 mixes nothing.
        chance: share of the images that is mixed, in [0, 1]; the paper mixes all.

    >>> pool = sl.load("digits").split(labels=10)
    >>> method = sl.Supervised(sl.net("tiny_4", classes=10, style=pool.style))
    >>> term = sl.MixUp(alpha=1.0).around(method, pool, seed=0)
    >>> batch = sl.Feed(pool, term.views, 8, 0, seed=0)(sl.At(0, 100))
    >>> sorted(term(batch, sl.At(0, 100)).terms)
    ['labeled']
    """

    name = "mixup"
    paper = "mixup: Beyond Empirical Risk Minimization"
    arxiv = "1710.09412"
    mix = "mixup"


class CutMix(Mixing):
    """An image has a rectangle of its partner, sqrt(1 - s_b) as high and as wide, around a random pixel and cut off at
    the border; s_b is then the share of the pixels that it leaves.

    Args:
        alpha: of Beta; 0 mixes nothing.
        chance: 0.5 on CIFAR and 1 on ImageNet in the authors' code, where one share and one rectangle serve the
            whole batch.

    >>> pool = sl.load("digits").split(labels=10)
    >>> method = sl.Supervised(sl.net("tiny_4", classes=10, style=pool.style))
    >>> term = sl.CutMix(alpha=1.0, chance=0.5).around(method, pool, seed=0)
    >>> batch = sl.Feed(pool, term.views, 8, 0, seed=0)(sl.At(0, 100))
    >>> sorted(term(batch, sl.At(0, 100)).terms)
    ['labeled']
    """

    name = "cutmix"
    paper = "CutMix: Regularization Strategy to Train Strong Classifiers with Localizable Features"
    arxiv = "1905.04899"
    mix = "cutmix"

    def __init__(self, alpha: Scalar = 1.0, chance: Scalar = 0.5) -> None:
        super().__init__(alpha, chance)
