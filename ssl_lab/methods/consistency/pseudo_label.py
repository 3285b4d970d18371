"""Pseudo-Label (Lee 2013): the net's own confident predictions are its labels, on the same view."""

from __future__ import annotations

from ssl_lab import losses
from ssl_lab.batch import At, Batch, Loss
from ssl_lab.methods.base import Method, Views
from ssl_lab.nets import Net
from ssl_lab.schedule import Scalar, ramp_up
from ssl_lab.views import Weak


class PseudoLabel(Method):
    """L = H(y, p(x)) + weight * (1/B) sum_b 1[max p(u_b) >= threshold] H(argmax p(u_b), p(u_b))

    The label is a constant; one weak view both gives it and learns from it.

    Args:
        threshold, weight: by default those of Oliver et al. 2018 (arXiv 1804.09170), 0.95, and 1 after a ramp-up
            over 0.4 of the run. Lee's own loss has threshold=0 (every row counts) and a weight that rises in a line
            from 0 to 3.

    >>> pool = sl.load("digits").split(labels=10)
    >>> method = sl.PseudoLabel(sl.net("tiny_4", classes=10, style=pool.style), threshold=0.2, weight=1.0)
    >>> batch = sl.Feed(pool, method.views, 4, 12, seed=0)(sl.At(0, 100))
    >>> loss = method(batch, sl.At(0, 100))
    >>> round(loss.logs["mask_rate"].item(), 2)
    0.75
    """

    name = "pseudo_label"
    family = "consistency"
    paper = "Pseudo-Label: The Simple and Efficient Semi-Supervised Learning Method for Deep Neural Networks"
    arxiv = ""
    recipe = "recipes/consistency.py"
    views = Views(labeled={"weak": Weak}, unlabeled={"weak": Weak})

    def __init__(self, net: Net, threshold: Scalar = 0.95, weight: Scalar = ramp_up(1.0, until=0.4),
                 ema: Scalar = 0.999) -> None:
        super().__init__(net, ema)
        self.threshold = threshold
        self.weight = weight

    def forward(self, batch: Batch, at: At) -> Loss:
        x, u = batch.labeled, batch.unlabeled
        labeled, unlabeled = (out.logits for out in self.joint(x["weak"], u["weak"]))
        confidence, pseudo = losses.pseudo_labels(unlabeled)
        mask = confidence >= at.value(self.threshold)
        return Loss(
            {
                "labeled": self.labeled_loss(labeled, x.targets),
                "unlabeled": at.value(self.weight) * losses.masked_cross_entropy(unlabeled, pseudo, mask),
            },
            logs={
                "train_accuracy": losses.accuracy(labeled.detach().argmax(dim=1), x.targets),
                "mask_rate": mask.float().mean(),
                "pseudo_label_accuracy": losses.accuracy(pseudo, u.truth, mask),
            },
        )
