"""FixMatch (Sohn et al. 2020, arXiv 2001.07685): a confident prediction on a weak view labels the strong one."""

from __future__ import annotations

from ssl_lab import losses
from ssl_lab.batch import At, Batch, Loss
from ssl_lab.methods.base import Method, Views
from ssl_lab.nets import Net
from ssl_lab.schedule import Scalar
from ssl_lab.views import Strong, Weak


class FixMatch(Method):
    """L = H(y, p(weak(x))) + weight * (1 / mu B) sum_b 1[max q_b >= threshold] H(argmax q_b, p(strong(u_b)))

    with q_b = p(weak(u_b)) of the net that learns (not of its average), without gradient. The labeled, weak
    and strong rows pass the net together, so BatchNorm sees one batch, as in the paper's code.

    Args:
        threshold: least confidence of a pseudo-label.
        weight: of the unlabeled loss, lambda_u in the paper.

    >>> pool = sl.load("digits").split(labels=10)
    >>> method = sl.FixMatch(sl.net("tiny_4", classes=10, style=pool.style), threshold=0.2)
    >>> batch = sl.Feed(pool, method.views, 4, 12, seed=0)(sl.At(0, 100))
    >>> loss = method(batch, sl.At(0, 100))
    >>> sorted(loss.terms), round(loss.logs["mask_rate"].item(), 2)  # the share of confident rows
    (['labeled', 'unlabeled'], 0.83)
    """

    name = "fixmatch"
    family = "consistency"
    paper = "FixMatch: Simplifying Semi-Supervised Learning with Consistency and Confidence"
    arxiv = "2001.07685"
    recipe = "recipes/fixmatch.py"
    views = Views(labeled={"weak": Weak}, unlabeled={"weak": Weak, "strong": Strong})
    splits = True

    def __init__(self, net: Net, threshold: Scalar = 0.95, weight: Scalar = 1.0, ema: Scalar = 0.999) -> None:
        super().__init__(net, ema)
        self.threshold = threshold
        self.weight = weight

    def forward(self, batch: Batch, at: At) -> Loss:
        x, u = batch.labeled, batch.unlabeled
        labeled, weak, strong = (out.logits for out in self.joint(x["weak"], u["weak"], u["strong"], constant=1))
        confidence, pseudo = losses.pseudo_labels(weak)
        mask = confidence >= at.value(self.threshold)
        return Loss(
            {
                "labeled": self.labeled_loss(labeled, x.targets),
                "unlabeled": at.value(self.weight) * losses.masked_cross_entropy(strong, pseudo, mask),
            },
            logs={
                "train_accuracy": losses.accuracy(labeled.detach().argmax(dim=1), x.targets),
                "mask_rate": mask.float().mean(),
                "pseudo_label_accuracy": losses.accuracy(pseudo, u.truth, mask),
            },
        )
