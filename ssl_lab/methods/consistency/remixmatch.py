"""ReMixMatch (Berthelot et al. 2020, arXiv 1911.09785): a weak view, aligned and sharpened, labels many strong ones."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from ssl_lab import losses
from ssl_lab.batch import At, Batch, Loss, Rows
from ssl_lab.methods.base import Method, Views
from ssl_lab.methods.consistency.mixing import mixing, sharpen
from ssl_lab.methods.mixture import Mix, check_mix
from ssl_lab.methods.ranks import Notes
from ssl_lab.methods.rotations import rotation_head, some_rotation
from ssl_lab.nets import Net, frozen_statistics
from ssl_lab.schedule import Scalar, linear
from ssl_lab.views import Strong, Weak

MIXED = linear(0.0, 1.5, until=1 / 64)
ANCHORED = linear(0.0, 0.5, until=1 / 64)
"""The paper's weights, with their ramp of 16 thousand of a million steps."""


class ReMixMatch(Method):
    """L = H(X') + mixed * H(U') + anchored * (1/U) sum_b H(q_b, p(strong_1(u_b))) + rotated * R(strong_1(u))

    q_b = sharpen(align(p(weak(u_b))), T), without gradient, labels the weak and all K strong views of u_b;
    align(p)_c ~ p_c * data_c / model_c, where model is the mean prediction of the last 128 steps and data that of
    the labels, a moving average of decay 0.999 that starts uniform. X' and U' are all B + (K + 1) U rows after
    MixUp, as in MixMatch but with cross-entropy for both. R is the cross-entropy of telling how an image was
    turned: row b by b mod 4 quarter-turns. Images must be square. Strong views are RandAugment's, where the paper has
    CTAugment, which learns how strong they may be.

    As in the paper's code, the guesses, the mixed rows, strong_1 and the turned strong_1 pass the net apart, and
    of these only the mixed rows (all of them, where the paper's code takes a part) move BatchNorm's running
    statistics. Rows are shuffled among those of their rank; data and model are means over all ranks.

    Args:
        augmentations: K, the strong views.
        temperature: T.
        alpha: of MixUp's Beta.
        mixed, anchored, rotated: the weights lambda_U, lambda_U1 and lambda_r of the paper.
        mix: "cutmix" pastes a rectangle of the partner instead.

    >>> pool = sl.load("digits").split(labels=10)
    >>> method = sl.ReMixMatch(sl.net("tiny_4", classes=10, style=pool.style), augmentations=2)
    >>> batch = sl.Feed(pool, method.views, 4, 12, seed=0)(sl.At(0, 100))
    >>> loss = method(batch, sl.At(0, 100))
    >>> list(batch.unlabeled.views), sorted(loss.terms)
    (['weak', 'strong_1', 'strong_2'], ['anchored', 'labeled', 'mixed', 'rotation'])
    """

    name = "remixmatch"
    family = "consistency"
    paper = "ReMixMatch: Semi-Supervised Learning with Distribution Alignment and Augmentation Anchoring"
    arxiv = "1911.09785"
    unmixable = "mixes images itself: give it mix='cutmix', or its alpha"
    recipe = "recipes/consistency.py"

    model: Tensor
    data: Tensor

    def __init__(self, net: Net, augmentations: int = 4, temperature: Scalar = 0.5, alpha: Scalar = 0.75,
                 mixed: Scalar = MIXED, anchored: Scalar = ANCHORED, rotated: Scalar = 0.5,
                 ema: Scalar = 0.999, mix: Mix = "mixup") -> None:
        super().__init__(net, ema)
        check_mix(mix)
        self.mix = mix
        self.temperature, self.alpha = temperature, alpha
        self.mixed, self.anchored, self.rotated = mixed, anchored, rotated
        strong = {f"strong_{k + 1}": Strong for k in range(augmentations)}
        self.views = Views(labeled={"strong": Strong}, unlabeled={"weak": Weak, **strong})
        self.rotation_head = rotation_head(net.features_dim)
        self.register_buffer("model", torch.full((128, net.classes), 1 / net.classes))
        self.register_buffer("data", torch.full((net.classes,), 1 / net.classes))
        self.notes = Notes()

    def forward(self, batch: Batch, at: At) -> Loss:
        x, u = batch.labeled, batch.unlabeled
        y = F.one_hot(x.targets, self.net.classes).to(self.data.dtype)
        guess = self._guess(y, u, at)
        mixture = mixing(batch, at, at.value(self.alpha), self.mix)
        targets = mixture.targets(torch.cat([y, *[guess] * len(u.views)]))
        logits = self.net(mixture.images(torch.cat([x["strong"], *u.views.values()]))).logits
        with frozen_statistics(self.net):
            anchored = self.net(u["strong_1"]).logits
            turned, turns = some_rotation(u["strong_1"])
            turned_logits = self.rotation_head(self.net(turned).features)
        labeled, unlabeled = logits[: len(x)], logits[len(x) :]
        return Loss(
            {
                "labeled": self.labeled_loss(labeled, targets[: len(x)]),
                "mixed": at.value(self.mixed) * losses.cross_entropy(unlabeled, targets[len(x) :]),
                "anchored": at.value(self.anchored) * losses.cross_entropy(anchored, guess),
                "rotation": at.value(self.rotated) * losses.cross_entropy(turned_logits, turns),
            },
            logs={
                "train_accuracy": losses.accuracy(labeled.detach().argmax(dim=1), x.targets),
                "pseudo_label_accuracy": losses.accuracy(guess.argmax(dim=1), u.truth),
                "rotation_accuracy": losses.accuracy(turned_logits.detach().argmax(dim=1), turns),
            },
        )

    @torch.no_grad()
    def _guess(self, y: Tensor, u: Rows, at: At) -> Tensor:
        """q: float [U, C]."""
        with frozen_statistics(self.net):
            p = losses.probabilities(self.net(u["weak"]).logits)
        self.notes.put(at, y.mean(dim=0), p.mean(dim=0))
        return sharpen(losses.align(p, self.data, self.model.mean(dim=0)), at.value(self.temperature))

    @torch.no_grad()
    def after_step(self, at: At) -> None:
        super().after_step(at)
        labels, predictions = self.notes.mean()
        self.data.lerp_(labels, 1 - 0.999)
        self.model.copy_(torch.cat([self.model[1:], predictions[None]]))
