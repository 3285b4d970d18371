"""FineSSL (Gan and Wei 2024, arXiv 2405.11756): FixMatch for pretrained nets, which know some classes before others."""

from __future__ import annotations

import copy

import torch
from torch import Tensor

from ssl_lab import losses
from ssl_lab.batch import At, Batch, Loss
from ssl_lab.errors import UsageError
from ssl_lab.methods.base import Views
from ssl_lab.methods.consistency import thresholds
from ssl_lab.methods.consistency.flexmatch import FlexMatch
from ssl_lab.nets import Net
from ssl_lab.schedule import Scalar
from ssl_lab.views import Strong, Weak


class FineSSL(FlexMatch):
    """L = H_m(y, p(weak(x))) + H(y, a(weak(x)))
        + weight * (1 / 2U) sum_b max a(weak(u_b)) sum_k H_m(c_b, p(strong_k(u_b)))
        + (1 / 2K) sum_(b: max q_b >= threshold) sum_k H(s(c_b), a(strong_k(u_b))),    k = 1, 2

    with q_b = p(weak(u_b)) without gradient, c_b = argmax q_b, and K rows in the last sum. H_m(y, p), the balanced
    margin softmax, is the cross-entropy after Delta_y was added to the logits of all classes but y:

        Delta_c = margin (max beta - min beta) (1 - beta_c) / (1 + beta_c),    beta_c = sigma_c / max sigma

    sigma_c counts the unlabeled images whose latest pseudo-label of at least the threshold is c, so that classes which
    a pretrained net is slow to see have to win by more. a is a second classifier on the same features, to which it
    passes no gradient, and begins as the first one does; it learns smoothed labels s (1 - smoothing for the class, the
    rest shared by the others), so that its confidence says more of how far a pseudo-label may be trusted. As in the
    authors' code; there the classifier is one of cosines, and most of a vision transformer is frozen.

    Args:
        images: size of the space of global indices, `len(pool)`.
        threshold: least confidence of what a learns from and of what is counted.
        weight: of the classifier's unlabeled term.
        margin: alpha.
        smoothing: from 0 to below 1.

    >>> pool = sl.load("digits").split(labels=10)
    >>> method = sl.FineSSL(sl.net("tiny_4", classes=10, style=pool.style), images=len(pool))
    >>> batch = sl.Feed(pool, method.views, 4, 12, seed=0)(sl.At(0, 100))
    >>> sorted(method(batch, sl.At(0, 100)).terms)
    ['labeled', 'second_labeled', 'second_unlabeled', 'unlabeled']
    """

    name = "finessl"
    paper = "Erasing the Bias: Fine-Tuning Foundation Models for Semi-Supervised Learning"
    arxiv = "2405.11756"
    recipe = "recipes/finetune.py"
    views = Views(labeled={"weak": Weak}, unlabeled={"weak": Weak, "strong_1": Strong, "strong_2": Strong})

    def __init__(self, net: Net, images: int, threshold: Scalar = 0.7, weight: Scalar = 3.0, margin: Scalar = 8.0,
                 smoothing: float = 0.5, ema: Scalar = 0.999) -> None:
        super().__init__(net, images, None, threshold, weight, ema)
        if not 0 <= smoothing < 1:
            raise UsageError(f"smoothing={smoothing}: expected a number from 0 to below 1")
        self.margin, self.smoothing = margin, smoothing
        self.second_head = copy.deepcopy(net.head)

    def forward(self, batch: Batch, at: At) -> Loss:
        x, u = batch.labeled, batch.unlabeled
        labeled, weak, *strong = self.joint(x["weak"], u["weak"], u["strong_1"], u["strong_2"], constant=1)
        seen, seen_weak, *seen_strong = (self.second_head(out.features.detach()) for out in (labeled, weak, *strong))
        confidence, pseudo = losses.pseudo_labels(weak.logits)
        trust, _ = losses.pseudo_labels(seen_weak)
        sure = confidence >= at.value(self.threshold)
        margins = at.value(self.margin) * lags(thresholds.class_counts(self.selected, self.net.classes))
        self.notes.put(at, u.indices, torch.where(sure, pseudo, -1))
        smoothed = _smoothed(pseudo, self.net.classes, self.smoothing)
        unlabeled = [(trust * losses.cross_entropies(pushed(view.logits, pseudo, margins), pseudo)).mean()
                     for view in strong]
        second = [(sure * losses.cross_entropies(logits, smoothed)).sum() / sure.sum().clamp(min=1)
                  for logits in seen_strong]
        return Loss(
            {
                "labeled": self.labeled_loss(pushed(labeled.logits, x.targets, margins), x.targets),
                "second_labeled": losses.cross_entropy(seen, x.targets),
                "unlabeled": at.value(self.weight) * torch.stack(unlabeled).mean(),
                "second_unlabeled": torch.stack(second).mean(),
            },
            logs={
                "train_accuracy": losses.accuracy(labeled.logits.detach().argmax(dim=1), x.targets),
                "mask_rate": sure.float().mean(),
                "trust": trust.mean(),
                "pseudo_label_accuracy": losses.accuracy(pseudo, u.truth, sure),
            },
        )


def lags(counts: Tensor) -> Tensor:
    """(max beta - min beta) (1 - beta) / (1 + beta), float [C]; zeros before anything is counted. counts: int64 [C]."""
    beta = counts / counts.max().clamp(min=1)
    return (beta.max() - beta.min()) * (1 - beta) / (1 + beta)


def pushed(logits: Tensor, labels: Tensor, margins: Tensor) -> Tensor:
    """The logits [B, C] with a row's margin, that of its label, added to all but its label. labels: int64 [B], of which
    those below 0 have none. margins: float [C]."""
    rest = torch.ones_like(logits).scatter(1, labels.clamp(min=0)[:, None], 0.0)
    return logits + (rest * margins[labels.clamp(min=0)][:, None] * (labels >= 0)[:, None]).to(logits.dtype)


def _smoothed(labels: Tensor, classes: int, smoothing: float) -> Tensor:
    """float [B, C]: 1 - smoothing for the label, the rest in equal parts for the others."""
    others = torch.full((len(labels), classes), smoothing / max(classes - 1, 1), device=labels.device)
    return others.scatter(1, labels[:, None], 1 - smoothing)
