"""SimCLR with labels inside, those that are given and those that were propagated."""

from __future__ import annotations

import torch
from torch import Tensor

from ssl_lab import losses
from ssl_lab.batch import At, Batch, Loss, Share
from ssl_lab.errors import UsageError
from ssl_lab.losses import full_precision
from ssl_lab.methods.base import Method, Views
from ssl_lab.methods.pretraining.base import gather
from ssl_lab.methods.pretraining.heads import mlp
from ssl_lab.methods.pretraining.simclr import similarities
from ssl_lab.nets import Net
from ssl_lab.schedule import Scalar
from ssl_lab.views import SimCLRView


class LabeledSimCLR(Method):
    """L = NT-Xent(z_1, z_2) + labeled * H(y, p(x)) + believed * (1 / 2U) sum_b t_b (H(q_b, p(u_1b)) + H(q_b, p(u_2b)))

    Contrastive pretraining and classification at once, from the first step: all views are SimCLR's and pass the net
    together; NT-Xent is of the projections of both views (see `simclr`), the classifier's head learns from the
    features. Labels inside pretraining are SuNCEt's idea, with cross-entropy in place of its loss between labeled
    images. q_b is what a table says of image b, such as labels that were propagated over the features (Iscen et al.
    2019, arXiv 1904.04717), and t_b in [0, 1] how far it is trusted. Views of images that are believed to be of one
    class, however far, are no negatives of each other (Huynh et al. 2022, arXiv 2011.11765).

    Args:
        beliefs: the table, float [images of the pool, classes], t_b q_b, hence zeros where nothing is believed;
            None for none.
        labeled, believed: weights.
        temperature: of NT-Xent.
        hidden, dim: of the projector.
        seed: of the projector.

    >>> pool = sl.load("digits").split(labels=10)
    >>> method = sl.LabeledSimCLR(sl.net("tiny_4", classes=10, style=pool.style), hidden=16, dim=8)
    >>> batch = sl.Feed(pool, method.views, 4, 12, seed=0)(sl.At(0, 100))
    >>> loss = method(batch, sl.At(0, 100))
    >>> sorted(loss.terms)
    ['contrast', 'labeled']
    """

    name = "labeled_simclr"
    family = "consistency"
    paper = "Supervision Accelerates Pre-training in Contrastive Semi-Supervised Learning of Visual Representations"
    arxiv = "2006.10803"
    recipe = "recipes/rapid.py"
    views = Views(labeled={"crop": SimCLRView}, unlabeled={"first": SimCLRView, "second": SimCLRView})
    beliefs: Tensor | None

    def __init__(self, net: Net, beliefs: Tensor | None = None, labeled: Scalar = 0.5, believed: Scalar = 1.0,
                 temperature: Scalar = 0.2, hidden: int = 512, dim: int = 128, ema: Scalar = 0.99,
                 seed: int = 0) -> None:
        super().__init__(net, ema)
        if beliefs is not None and (beliefs.ndim != 2 or beliefs.shape[1] != net.classes):
            raise UsageError(f"beliefs of shape {list(beliefs.shape)}; expected [images, {net.classes} classes]")
        self.labeled, self.believed, self.temperature = labeled, believed, temperature
        self.projector = mlp((net.features_dim, hidden, dim), seed=seed)
        self.register_buffer("beliefs", None if beliefs is None else beliefs.float())

    def forward(self, batch: Batch, at: At) -> Loss:
        x, u = batch.labeled, batch.unlabeled
        labeled, first, second = self.joint(x["crop"], u["first"], u["second"])
        one, other = self.projector(torch.cat([first.features, second.features])).chunk(2)
        with full_precision(u.truth.device):
            scores, positives = similarities(one, other, at.value(self.temperature))
            if self.beliefs is not None:
                scores = scores.masked_fill(_alike(self.beliefs[u.indices], positives), -torch.inf)
            contrast = losses.cross_entropy(scores, positives)
        terms = {"contrast": contrast,
                 "labeled": at.value(self.labeled) * self.labeled_loss(labeled.logits, x.targets)}
        logs: dict[str, Tensor | Share] = {
            "train_accuracy": losses.accuracy(labeled.logits.detach().argmax(dim=1), x.targets),
            "contrast_accuracy": losses.accuracy(scores.detach().argmax(dim=1), positives)}
        if self.beliefs is not None:
            belief = self.beliefs[u.indices]
            trust, guess = belief.sum(dim=1), belief.argmax(dim=1)
            apart = [losses.cross_entropy(view.logits, belief) for view in (first, second)]
            terms["believed"] = at.value(self.believed) * torch.stack(apart).mean()
            logs |= {"mask_rate": trust.mean(), "pseudo_label_accuracy": losses.accuracy(guess, u.truth, trust > 0)}
        return Loss(terms, logs)


def _alike(belief: Tensor, positives: Tensor) -> Tensor:
    """bool [2N, 2NW]: whether two views are believed to be of one class, and are not those of one image."""
    kinds = torch.where(belief.sum(dim=1) > 0, belief.argmax(dim=1), -1)
    mine, all_kinds = kinds.repeat(2), gather(kinds).repeat(2)
    alike = (mine[:, None] == all_kinds) & (mine >= 0)[:, None]
    return alike.scatter(1, positives[:, None], False)
