"""FlexMatch (Zhang et al. 2021, arXiv 2110.08263): FixMatch with a lower threshold for classes that lag behind."""

from __future__ import annotations

import torch
from torch import Tensor

from ssl_lab import losses
from ssl_lab.batch import At, Batch, Loss
from ssl_lab.methods.base import Method, Views
from ssl_lab.methods.consistency import thresholds
from ssl_lab.methods.ranks import Notes
from ssl_lab.nets import Net
from ssl_lab.schedule import Scalar
from ssl_lab.views import Strong, Weak


class FlexMatch(Method):
    """FixMatch's loss with the mask 1[max q_b >= threshold * M(beta_c)] for the class c = argmax q_b.

    beta_c = sigma_c / max(max sigma, images not counted yet), where sigma_c counts the unlabeled images whose
    latest confident (max q >= threshold) pseudo-label is c, and M(beta) = beta / (2 - beta). As in the
    paper's code, a step is masked by the counts of the steps before it: at first every row is kept.

    Args:
        images: size of the space of global indices, `len(pool)`.
        unlabeled: how many of them are unlabeled images, `len(pool.unlabeled)`; by default all.
        threshold: least confidence in the best learned class.
        weight: of the unlabeled loss.

    >>> pool = sl.load("digits").split(labels=10)
    >>> net = sl.net("tiny_4", classes=10, style=pool.style)
    >>> method = sl.FlexMatch(net, images=len(pool), unlabeled=len(pool.unlabeled))
    >>> batch = sl.Feed(pool, method.views, 4, 12, seed=0)(sl.At(0, 100))
    >>> loss = method(batch, sl.At(0, 100))
    >>> loss.logs["mask_rate"].item(), loss.logs["threshold"].item()  # nothing was counted yet
    (1.0, 0.0)
    """

    name = "flexmatch"
    family = "consistency"
    paper = "FlexMatch: Boosting Semi-Supervised Learning with Curriculum Pseudo Labeling"
    arxiv = "2110.08263"
    recipe = "recipes/consistency.py"
    views = Views(labeled={"weak": Weak}, unlabeled={"weak": Weak, "strong": Strong})
    splits = True
    selected: Tensor

    def __init__(self, net: Net, images: int, unlabeled: int | None = None, threshold: Scalar = 0.95,
                 weight: Scalar = 1.0, ema: Scalar = 0.999) -> None:
        super().__init__(net, ema)
        self.unlabeled = images if unlabeled is None else unlabeled
        self.threshold = threshold
        self.weight = weight
        self.register_buffer("selected", torch.full((images,), -1))  # the pseudo-label of each image, -1 = not yet
        self.notes = Notes()

    def forward(self, batch: Batch, at: At) -> Loss:
        x, u = batch.labeled, batch.unlabeled
        labeled, weak, strong = (out.logits for out in self.joint(x["weak"], u["weak"], u["strong"], constant=1))
        confidence, pseudo = losses.pseudo_labels(weak)
        threshold = at.value(self.threshold)
        counts = thresholds.class_counts(self.selected, self.net.classes)
        relative = thresholds.convex(thresholds.learning_status(counts, self.unlabeled))
        mask = confidence >= (threshold * relative)[pseudo]
        self.notes.put(at, u.indices, torch.where(confidence >= threshold, pseudo, -1))
        return Loss(
            {
                "labeled": self.labeled_loss(labeled, x.targets),
                "unlabeled": at.value(self.weight) * losses.masked_cross_entropy(strong, pseudo, mask),
            },
            logs={
                "train_accuracy": losses.accuracy(labeled.detach().argmax(dim=1), x.targets),
                "mask_rate": mask.float().mean(),
                "pseudo_label_accuracy": losses.accuracy(pseudo, u.truth, mask),
                "threshold": threshold * relative.mean(),
            },
        )

    def after_step(self, at: At) -> None:
        super().after_step(at)
        indices, labels = self.notes.rows()
        # An image may be in a batch twice: the later confident row wins, on every device and rank.
        rows = torch.where(labels >= 0, torch.arange(len(labels), device=labels.device), -1)
        latest = torch.full_like(self.selected, -1).scatter_reduce(0, indices, rows, "amax")
        self.selected.copy_(torch.where(latest >= 0, labels[latest.clamp(min=0)], self.selected))
