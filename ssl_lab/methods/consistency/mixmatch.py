"""MixMatch (Berthelot et al. 2019, arXiv 1905.02249): guess labels from several views, sharpen, mix everything."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from ssl_lab import losses
from ssl_lab.batch import At, Batch, Loss, Rows
from ssl_lab.methods.base import Method, Views
from ssl_lab.methods.consistency.mixing import mixing, sharpen
from ssl_lab.methods.mixture import Mix, check_mix
from ssl_lab.nets import Net, frozen_statistics
from ssl_lab.schedule import Scalar, linear
from ssl_lab.views import Weak

WEIGHT = linear(0.0, 75.0, until=1 / 64)
"""The paper's weight of the unlabeled loss on CIFAR-10, with its ramp of 16 thousand of a million steps."""


class MixMatch(Method):
    """L = (1 / B) sum_X' H(y', p(x')) + weight * (1 / K U C) sum_U' ||q' - p(u')||^2

    q_b = sharpen(mean_k p(weak_k(u_b)), T), without gradient, labels all K views of u_b. All N = B + K U rows
    (x, y), (weak_k(u), q) are mixed, each with a row of their shuffle: x' = s x + (1 - s) x_partner and y' alike,
    s = max(s0, 1 - s0), s0 ~ Beta(alpha, alpha) for each row; X' and U' are the rows that began in x and in u.

    The mixed rows pass the net together, and that one pass moves BatchNorm's running statistics; the paper's code
    passes K + 1 interleaved parts of them and moves them by the first. The guesses come of a pass of their own,
    by the statistics of the batch, which moves nothing. Rows are shuffled among those of their rank.

    Args:
        augmentations: K views per unlabeled image.
        temperature: T.
        alpha: of Beta; 0 mixes nothing.
        weight: of the unlabeled loss, lambda_U in the paper.
        mix: "cutmix" pastes a rectangle of the partner, see `Mixture`.

    >>> pool = sl.load("digits").split(labels=10)
    >>> method = sl.MixMatch(sl.net("tiny_4", classes=10, style=pool.style), augmentations=3)
    >>> batch = sl.Feed(pool, method.views, 4, 12, seed=0)(sl.At(0, 100))
    >>> loss = method(batch, sl.At(0, 100))
    >>> list(batch.unlabeled.views), sorted(loss.terms)
    (['weak_1', 'weak_2', 'weak_3'], ['labeled', 'unlabeled'])
    """

    name = "mixmatch"
    family = "consistency"
    paper = "MixMatch: A Holistic Approach to Semi-Supervised Learning"
    arxiv = "1905.02249"
    unmixable = "mixes images itself: give it mix='cutmix', or its alpha"
    recipe = "recipes/consistency.py"

    def __init__(self, net: Net, augmentations: int = 2, temperature: Scalar = 0.5, alpha: Scalar = 0.75,
                 weight: Scalar = WEIGHT, ema: Scalar = 0.999, mix: Mix = "mixup") -> None:
        super().__init__(net, ema)
        check_mix(mix)
        self.mix = mix
        self.temperature, self.alpha, self.weight = temperature, alpha, weight
        self.views = Views(labeled={"weak": Weak}, unlabeled={f"weak_{k + 1}": Weak for k in range(augmentations)})

    def forward(self, batch: Batch, at: At) -> Loss:
        x, u = batch.labeled, batch.unlabeled
        guess = self.guess(u, at)
        y = F.one_hot(x.targets, self.net.classes).to(guess.dtype)
        mixed = mixing(batch, at, at.value(self.alpha), self.mix)
        images = mixed.images(torch.cat([x["weak"], *u.views.values()]))
        targets = mixed.targets(torch.cat([y, *[guess] * len(u.views)]))
        logits = self.net(images).logits
        labeled, unlabeled = logits[: len(x)], logits[len(x) :]
        distance = losses.squared_error(losses.probabilities(unlabeled), targets[len(x) :])
        return Loss(
            {
                "labeled": self.labeled_loss(labeled, targets[: len(x)]),
                "unlabeled": at.value(self.weight) * distance,
            },
            logs={
                "train_accuracy": losses.accuracy(labeled.detach().argmax(dim=1), x.targets),
                "pseudo_label_accuracy": losses.accuracy(guess.argmax(dim=1), u.truth),
            },
        )

    @torch.no_grad()
    def guess(self, u: Rows, at: At) -> Tensor:
        """q: float [U, C], float32 at least."""
        with frozen_statistics(self.net):
            logits = self.net(torch.cat(list(u.views.values()))).logits
        p = losses.probabilities(logits).view(len(u.views), len(u), -1).mean(dim=0)
        return sharpen(p, at.value(self.temperature))
