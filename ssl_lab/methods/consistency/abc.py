"""ABC (Lee et al. 2021, arXiv 2110.10368): a second classifier that sees all classes equally often."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ssl_lab import losses
from ssl_lab.batch import At, Batch, Draw, Loss
from ssl_lab.errors import UsageError
from ssl_lab.methods.base import Method, Views
from ssl_lab.nets import Net
from ssl_lab.nets.base import linear_head
from ssl_lab.schedule import Scalar
from ssl_lab.seeds import seeded
from ssl_lab.views import Strong, Weak


class ABC(Method):
    """L = FixMatch(p) + M(y) H(y, b(weak(x)))
        + sum_k (1/U) sum_b M(argmax q_b) 1[max q_b >= threshold] H(q_b, b(strong_k(u_b))),    k = 1, 2

    with q_b = b(weak(u_b)) without gradient, b the balanced classifier and p a plain one on the same features. M(c)
    is 1 with probability N_min / N_c, else 0, where N_c labeled images have class c: the rows kept are balanced. For
    unlabeled rows the probability falls from 1 to that over the run. FixMatch's unlabeled term is the mean over both
    strong views.

    Chosen among methods for imbalanced classes because a linear layer is all it adds, and features still learn from
    every row. b is the net's own head, so what is evaluated is balanced; p serves only in training. As in the paper's
    code, the terms of both train the features; there each view passes the net apart.

    Args:
        class_counts: N_c, the number of labeled images of each class, all positive.
        threshold: least confidence of either classifier's pseudo-label.
        weight: of FixMatch's unlabeled term.

    >>> pool = sl.load("digits").split(labels=10)
    >>> counts = np.bincount(pool.labels[pool.labeled], minlength=10).tolist()
    >>> method = sl.ABC(sl.net("tiny_4", classes=10, style=pool.style), class_counts=counts)
    >>> batch = sl.Feed(pool, method.views, 4, 12, seed=0)(sl.At(0, 100))
    >>> loss = method(batch, sl.At(0, 100))
    >>> sorted(loss.terms)
    ['labeled', 'plain_labeled', 'plain_unlabeled', 'unlabeled']
    """

    name = "abc"
    family = "consistency"
    paper = "ABC: Auxiliary Balanced Classifier for Class-imbalanced Semi-supervised Learning"
    arxiv = "2110.10368"
    recipe = "recipes/consistency.py"
    views = Views(labeled={"weak": Weak}, unlabeled={"weak": Weak, "strong_1": Strong, "strong_2": Strong})
    splits = True
    rarity: Tensor

    def __init__(self, net: Net, class_counts: Sequence[int], threshold: Scalar = 0.95, weight: Scalar = 1.0,
                 ema: Scalar = 0.999) -> None:
        super().__init__(net, ema)
        self.threshold = threshold
        self.weight = weight
        counts = checked_counts(class_counts, net.classes)
        self.register_buffer("rarity", counts.min() / counts, persistent=False)
        with seeded("abc"):
            self.plain_head = linear_head(net.features_dim, net.classes)

    def forward(self, batch: Batch, at: At) -> Loss:
        x, u = batch.labeled, batch.unlabeled
        labeled, weak, *strong = self.joint(x["weak"], u["weak"], u["strong_1"], u["strong_2"], constant=1)
        threshold = at.value(self.threshold)

        plain = self.plain_head(labeled.features)
        confidence, pseudo = losses.pseudo_labels(self.plain_head(weak.features))
        mask = confidence >= threshold
        plain_unlabeled = [losses.masked_cross_entropy(self.plain_head(view.features), pseudo, mask)
                           for view in strong]

        q = losses.probabilities(weak.logits.detach())
        confidence, pseudo = q.max(dim=1)
        kept = bernoulli(at.draw("abc/labeled", len(x), q.device), self.rarity[x.targets])
        chance = 1 - at.frac * (1 - self.rarity[pseudo])
        kept_u = bernoulli(at.draw("abc/unlabeled", len(u), q.device), chance) & (confidence >= threshold)
        unlabeled = [losses.masked_cross_entropy(view.logits, q, kept_u) for view in strong]
        return Loss(
            {
                "plain_labeled": self.labeled_loss(plain, x.targets),
                "plain_unlabeled": at.value(self.weight) * torch.stack(plain_unlabeled).mean(),
                "labeled": (self.labeled_losses(labeled.logits, x.targets) * kept).mean(),
                "unlabeled": torch.stack(unlabeled).sum(),
            },
            logs={
                "train_accuracy": losses.accuracy(labeled.logits.detach().argmax(dim=1), x.targets),
                "mask_rate": kept_u.float().mean(),
                "plain_mask_rate": mask.float().mean(),
                "pseudo_label_accuracy": losses.accuracy(pseudo, u.truth, kept_u),
            },
        )


def bernoulli(draw: Draw, chance: Tensor) -> Tensor:
    """True with the given probability, for each row of the draw: bool [B]; always True at 1. chance: float [B]."""
    return draw.to_device(draw.uniform()) < chance


def checked_counts(class_counts: Sequence[int], classes: int) -> Tensor:
    """The counts as float32 [C]. UsageError unless there is one, and a positive one, for each class."""
    counts = torch.tensor([float(count) for count in class_counts])
    if len(counts) != classes or not bool((counts > 0).all()):
        raise UsageError(f"class_counts={list(class_counts)}: expected {classes} positive numbers, one for each class "
                         "of the net. Label at least one image of each class, e.g. with balance='class'.")
    return counts
