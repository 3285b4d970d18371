"""SoftMatch (Chen et al. 2023, arXiv 2301.10921): every pseudo-label counts, the less confident the less."""

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


class SoftMatch(Method):
    """L = H(y, p(weak(x))) + weight * (1 / mu B) sum_b w_b H(argmax q_b, p(strong(u_b)))

    with q_b = p(weak(u_b)) and w_b = exp(-(n_sigma d)^2 / (2 variance)), d = min(max A(q_b) - mean, 0): a Gaussian
    below the mean confidence, 1 above it. A aligns the mean prediction to the uniform distribution; it
    serves the weight only, not the pseudo-label. Mean and (unbiased) variance are moving averages, from
    1 / classes and 1 on, of the confidence max q_b *before* alignment (the authors' code takes it after). All
    averages move after the step (in that code just before they are used), so that micro-batches and ranks see
    the same weights; the mean prediction begins with the first step's, as there, so that only the weights of that
    very step are not aligned.

    Args:
        n_sigma: how sharply the weight falls; a standard deviation below the mean it is exp(-n_sigma^2 / 2).
        momentum: of the averages.
        weight: of the unlabeled loss.

    >>> pool = sl.load("digits").split(labels=10)
    >>> method = sl.SoftMatch(sl.net("tiny_4", classes=10, style=pool.style), n_sigma=2.0)
    >>> batch = sl.Feed(pool, method.views, 4, 12, seed=0)(sl.At(0, 100))
    >>> loss = method(batch, sl.At(0, 100))
    >>> method.after_step(sl.At(0, 100))
    >>> method.mean.item() > 0.1, method.variance.item() < 1  # moved from 1 / classes and 1
    (True, True)
    """

    name = "softmatch"
    family = "consistency"
    paper = "SoftMatch: Addressing the Quantity-Quality Trade-off in Semi-supervised Learning"
    arxiv = "2301.10921"
    recipe = "recipes/consistency.py"
    views = Views(labeled={"weak": Weak}, unlabeled={"weak": Weak, "strong": Strong})
    splits = True
    mean: Tensor
    variance: Tensor
    prediction: Tensor

    def __init__(self, net: Net, n_sigma: Scalar = 2.0, momentum: Scalar = 0.999, weight: Scalar = 1.0,
                 ema: Scalar = 0.999) -> None:
        super().__init__(net, ema)
        self.n_sigma = n_sigma
        self.momentum = momentum
        self.weight = weight
        self.register_buffer("mean", torch.tensor(1 / net.classes))
        self.register_buffer("variance", torch.tensor(1.0))
        self.register_buffer("prediction", torch.full((net.classes,), 1 / net.classes))
        self.notes = Notes()

    def forward(self, batch: Batch, at: At) -> Loss:
        x, u = batch.labeled, batch.unlabeled
        labeled, weak, strong = (out.logits for out in self.joint(x["weak"], u["weak"], u["strong"], constant=1))
        q = losses.probabilities(weak.detach())
        confidence, pseudo = q.max(dim=1)
        uniform = torch.full_like(self.prediction, 1 / self.net.classes)
        aligned = losses.align(q, uniform, self.prediction).amax(dim=1)
        weights = thresholds.truncated_gaussian(aligned, self.mean, self.variance, at.value(self.n_sigma))
        offset = confidence - self.mean  # sums of small numbers: what is left of a variance near 0 is right
        powers = torch.stack([torch.ones_like(offset), offset, offset.square()], dim=1)
        self.notes.put(at, powers.sum(dim=0, keepdim=True), q.sum(dim=0, keepdim=True))
        return Loss(
            {
                "labeled": self.labeled_loss(labeled, x.targets),
                "unlabeled": at.value(self.weight) * losses.masked_cross_entropy(strong, pseudo, weights),
            },
            logs={
                "train_accuracy": losses.accuracy(labeled.detach().argmax(dim=1), x.targets),
                "mask_rate": weights.mean(),
                "pseudo_label_accuracy": losses.accuracy(pseudo, u.truth),
            },
        )

    def after_step(self, at: At) -> None:
        super().after_step(at)
        (rows, offset, square), q = (sums.sum(dim=0) for sums in self.notes.rows())
        offset = offset / rows
        variance = (square / rows - offset.square()).clamp(min=0) * rows / (rows - 1).clamp(min=1)
        step = 1 - at.value(self.momentum)
        self.mean.add_(step * offset)
        self.variance.lerp_(variance.to(self.variance.dtype), step)
        self.prediction.lerp_((q / rows).to(self.prediction.dtype), step if at.step else 1.0)
