"""FreeMatch (Wang et al. 2023, arXiv 2205.07246): thresholds that follow the net's own confidence."""

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


class FreeMatch(Method):
    """FixMatch's loss with the mask 1[max q_b >= tau p_c / max p] for c = argmax q_b, plus a fairness term.

    tau, p and h are moving averages of the mean confidence, the mean prediction and the histogram of the
    pseudo-labels of the weak views, all from 1 / classes on. The fairness term is

        + fairness_weight * sum_c S(p / h)_c log S(p_strong / h_strong)_c,   S(x) = x / sum x

    over the strong predictions of the rows kept. The averages move after the step (the paper's code moves
    them just before they are used), so that micro-batches and ranks see the same thresholds.

    Args:
        momentum: of the averages, lambda in the paper.
        weight: of the unlabeled loss.
        fairness_weight: w_f.
        least, most: limits of the threshold of a class; 0.9 and 0.95 for SVHN in the authors' first code (TorchSSL
            at f26e1d4, models/freematch/freematch_utils.py), where their second (USB) only keeps tau below 0.95.

    >>> pool = sl.load("digits").split(labels=10)
    >>> method = sl.FreeMatch(sl.net("tiny_4", classes=10, style=pool.style))
    >>> batch = sl.Feed(pool, method.views, 4, 12, seed=0)(sl.At(0, 100))
    >>> loss = method(batch, sl.At(0, 100))
    >>> round(loss.logs["threshold"].item(), 2), sorted(loss.terms)  # it begins at 1 / classes
    (0.1, ['fairness', 'labeled', 'unlabeled'])
    """

    name = "freematch"
    family = "consistency"
    paper = "FreeMatch: Self-adaptive Thresholding for Semi-supervised Learning"
    arxiv = "2205.07246"
    recipe = "recipes/consistency.py"
    views = Views(labeled={"weak": Weak}, unlabeled={"weak": Weak, "strong": Strong})
    splits = True
    threshold: Tensor
    prediction: Tensor
    histogram: Tensor

    def __init__(self, net: Net, momentum: Scalar = 0.999, weight: Scalar = 1.0, fairness_weight: Scalar = 0.001,
                 least: Scalar = 0.0, most: Scalar = 1.0, ema: Scalar = 0.999) -> None:
        super().__init__(net, ema)
        self.momentum = momentum
        self.weight = weight
        self.fairness_weight = fairness_weight
        self.least, self.most = least, most
        self.register_buffer("threshold", torch.tensor(1 / net.classes))
        self.register_buffer("prediction", torch.full((net.classes,), 1 / net.classes))
        self.register_buffer("histogram", torch.full((net.classes,), 1 / net.classes))
        self.notes = Notes()

    def forward(self, batch: Batch, at: At) -> Loss:
        x, u = batch.labeled, batch.unlabeled
        labeled, weak, strong = (out.logits for out in self.joint(x["weak"], u["weak"], u["strong"], constant=1))
        q = losses.probabilities(weak.detach())
        confidence, pseudo = q.max(dim=1)
        limits = thresholds.class_thresholds(self.threshold, self.prediction)
        limits = limits.clamp(at.value(self.least), at.value(self.most))
        mask = confidence >= limits[pseudo]
        fairness = thresholds.fairness(strong, mask, self.prediction, self.histogram)
        histogram = thresholds.class_counts(pseudo, self.net.classes) / len(u)
        self.notes.put(at, confidence.mean(), q.mean(dim=0), histogram)
        return Loss(
            {
                "labeled": self.labeled_loss(labeled, x.targets),
                "unlabeled": at.value(self.weight) * losses.masked_cross_entropy(strong, pseudo, mask),
                "fairness": at.value(self.fairness_weight) * fairness,
            },
            logs={
                "train_accuracy": losses.accuracy(labeled.detach().argmax(dim=1), x.targets),
                "mask_rate": mask.float().mean(),
                "pseudo_label_accuracy": losses.accuracy(pseudo, u.truth, mask),
                "threshold": limits.mean(),
            },
        )

    def after_step(self, at: At) -> None:
        super().after_step(at)
        averages = self.threshold, self.prediction, self.histogram
        for average, value in zip(averages, self.notes.mean(), strict=True):
            average.lerp_(value.to(average.dtype), 1 - at.value(self.momentum))
