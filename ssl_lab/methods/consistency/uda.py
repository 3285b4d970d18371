"""UDA (Xie et al. 2020, arXiv 1904.12848): the strong view is to agree with a sharpened weak one."""

from __future__ import annotations

import torch.nn.functional as F

from ssl_lab import losses
from ssl_lab.batch import At, Batch, Loss
from ssl_lab.methods.base import Method, Views
from ssl_lab.methods.consistency import thresholds
from ssl_lab.nets import Net
from ssl_lab.schedule import Scalar
from ssl_lab.views import Strong, Weak


class UDA(Method):
    """L = mean of H(y, p(weak(x))) over the rows with p_y <= eta
        + weight * (1 / mu B) sum_b 1[max softmax(z_b) > threshold] KL(softmax(z_b / T) || p(strong(u_b)))

    with z_b the logits of weak(u_b), without gradient. eta = a(t) (1 - 1/C) + 1/C rises with the training
    fraction t (training-signal annealing): labeled rows that are learned well enough for now do not count.

    Args:
        threshold: least confidence, of the prediction that is not sharpened.
        temperature: T.
        tsa: a(t) is "linear", "log" or "exp" ("exp" releases the labels last, for when there are few), or "none",
            as in the authors' commands for CIFAR-10 and SVHN (google-research/uda at 960684e, image/scripts),
            TorchSSL and USB. These have seven unlabeled images to each labeled one; the authors' commands before
            February 2020, five.
        weight: of the unlabeled loss.

    >>> pool = sl.load("digits").split(labels=10)
    >>> method = sl.UDA(sl.net("tiny_4", classes=10, style=pool.style), threshold=0.2)
    >>> batch = sl.Feed(pool, method.views, 4, 12, seed=0)(sl.At(0, 100))
    >>> loss = method(batch, sl.At(0, 100))
    >>> round(loss.logs["mask_rate"].item(), 2), sorted(loss.terms)
    (0.83, ['labeled', 'unlabeled'])
    """

    name = "uda"
    family = "consistency"
    paper = "Unsupervised Data Augmentation for Consistency Training"
    arxiv = "1904.12848"
    recipe = "recipes/consistency.py"
    views = Views(labeled={"weak": Weak}, unlabeled={"weak": Weak, "strong": Strong})
    splits = True

    def __init__(self, net: Net, threshold: Scalar = 0.8, temperature: Scalar = 0.4, tsa: str = "none",
                 weight: Scalar = 1.0, ema: Scalar = 0.999) -> None:
        super().__init__(net, ema)
        thresholds.tsa_threshold(tsa, 0.0, net.classes)  # a wrong name is an error now, not in the first step
        self.threshold = threshold
        self.temperature = temperature
        self.tsa = tsa
        self.weight = weight

    def forward(self, batch: Batch, at: At) -> Loss:
        x, u = batch.labeled, batch.unlabeled
        labeled, weak, strong = (out.logits for out in self.joint(x["weak"], u["weak"], u["strong"], constant=1))
        confidence, pseudo = losses.pseudo_labels(weak)
        mask = confidence > at.value(self.threshold)
        target = losses.probabilities(weak.detach(), at.value(self.temperature))
        log_p = strong.log_softmax(dim=1, dtype=target.dtype)
        divergence = F.kl_div(log_p, target, reduction="none").sum(dim=1)
        eta = thresholds.tsa_threshold(self.tsa, at.frac, self.net.classes)
        return Loss(
            {
                "labeled": thresholds.annealed(self.labeled_losses(labeled, x.targets), labeled, x.targets, eta),
                "unlabeled": at.value(self.weight) * (divergence * mask).mean(),
            },
            logs={
                "train_accuracy": losses.accuracy(labeled.detach().argmax(dim=1), x.targets),
                "mask_rate": mask.float().mean(),
                "pseudo_label_accuracy": losses.accuracy(pseudo, u.truth, mask),
            },
        )
