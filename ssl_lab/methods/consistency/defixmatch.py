"""DeFixMatch (Schmutz et al. 2023, arXiv 2203.07512): FixMatch less what it would do on the labeled images."""

from __future__ import annotations

from ssl_lab import losses
from ssl_lab.batch import At, Batch, Loss
from ssl_lab.methods.base import Method, Views
from ssl_lab.nets import Net
from ssl_lab.schedule import Scalar
from ssl_lab.views import Strong, Weak


class DeFixMatch(Method):
    """L = (H(y, p(weak(x))) + H(y, p(strong(x)))) / 2 + weight * (U(u) - U(x)), where U is FixMatch's loss,

    U(v) = mean_b 1[max q_b >= threshold] H(argmax q_b, p(strong(v_b))), q_b = p(weak(v_b)) without gradient.
    On the labeled images x, U does not use the labels: its expectation there is that on u, so that the whole
    is an unbiased estimate of the supervised risk, whatever the pseudo-labels are worth.

    Args:
        threshold: least confidence of a pseudo-label.
        weight: of the difference, lambda in the paper.

    >>> pool = sl.load("digits").split(labels=10)
    >>> method = sl.DeFixMatch(sl.net("tiny_4", classes=10, style=pool.style), threshold=0.2)
    >>> batch = sl.Feed(pool, method.views, 4, 12, seed=0)(sl.At(0, 100))
    >>> loss = method(batch, sl.At(0, 100))
    >>> sorted(loss.terms), loss.terms["debiasing"].item() <= 0  # what is taken away again
    (['debiasing', 'labeled', 'unlabeled'], True)
    """

    name = "defixmatch"
    family = "consistency"
    paper = "Don't fear the unlabelled: safe semi-supervised learning via debiasing"
    arxiv = "2203.07512"
    recipe = "recipes/consistency.py"
    views = Views(labeled={"weak": Weak, "strong": Strong}, unlabeled={"weak": Weak, "strong": Strong})
    splits = True

    def __init__(self, net: Net, threshold: Scalar = 0.95, weight: Scalar = 0.5, ema: Scalar = 0.999) -> None:
        super().__init__(net, ema)
        self.threshold = threshold
        self.weight = weight

    def forward(self, batch: Batch, at: At) -> Loss:
        x, u = batch.labeled, batch.unlabeled
        x_weak, x_strong, u_weak, u_strong = (
            out.logits for out in self.joint(x["weak"], x["strong"], u["weak"], u["strong"], constant=2)
        )
        supervised = (self.labeled_loss(x_weak, x.targets) + self.labeled_loss(x_strong, x.targets)) / 2
        x_confidence, x_pseudo = losses.pseudo_labels(x_weak)
        u_confidence, u_pseudo = losses.pseudo_labels(u_weak)
        threshold, weight = at.value(self.threshold), at.value(self.weight)
        mask = u_confidence >= threshold
        debiasing = losses.masked_cross_entropy(x_strong, x_pseudo, x_confidence >= threshold)
        return Loss(
            {
                "labeled": supervised,
                "unlabeled": weight * losses.masked_cross_entropy(u_strong, u_pseudo, mask),
                "debiasing": -weight * debiasing,
            },
            logs={
                "train_accuracy": losses.accuracy(x_weak.detach().argmax(dim=1), x.targets),
                "mask_rate": mask.float().mean(),
                "pseudo_label_accuracy": losses.accuracy(u_pseudo, u.truth, mask),
            },
        )
