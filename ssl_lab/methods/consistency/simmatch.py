"""SimMatch (Zheng et al. 2022, arXiv 2203.06915): match two views in their classes and in their labeled neighbors."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ssl_lab import losses
from ssl_lab.batch import At, Batch, Loss
from ssl_lab.methods.base import Method, Views
from ssl_lab.methods.consistency.thresholds import recent_mean
from ssl_lab.methods.queues import prepend
from ssl_lab.methods.ranks import Notes
from ssl_lab.nets import Net
from ssl_lab.schedule import Scalar
from ssl_lab.seeds import generator
from ssl_lab.views import Strong, Weak


class SimMatch(Method):
    """L = H(y, p(weak(x))) + weight * (1/U) sum_b 1[max q_b >= threshold] H(q_b, p(strong(u_b)))
                            + instance * (1/U) sum_b H(w_b, s(strong(u_b)))

    s(u) = softmax_n(z(u) . z_n / T) says which of the labeled images n in the bank u is like, by the normalized
    projection z of its features. The two similarities of the weak view calibrate each other, without gradient:
    w_n ~ s_n(weak(u)) a_(y_n) and q_c = smooth * a_c + (1 - smooth) * sum of s_n(weak(u)) over n of class c, with
    a = p(weak(u)) aligned to uniform by the mean prediction of the last 256 steps.

    Weak views pass the net that learns, in one batch with the others, as the paper has it on CIFAR; on ImageNet
    it uses an averaged teacher. The paper's bank has one averaged embedding for each labeled image; here it holds
    those of the last rows, of all ranks. Until it is full, q = a and there is no instance term.

    Alignment knows the steps before this one, as many as there are. The authors' code (mingkai-zheng/SimMatch at
    f10254b, models/simmatch.py) also begins with a window of zeros, which do not count, and enters this step first;
    USB's window for CIFAR-10 has 32 steps (config/classic_cv/simmatch).

    Args:
        threshold: least confidence of q.
        temperature: T.
        smooth: alpha in the paper.
        dim: of z.
        bank: rows in it.
        weight, instance: of the second and the third term.

    >>> pool = sl.load("digits").split(labels=10)
    >>> method = sl.SimMatch(sl.net("tiny_4", classes=10, style=pool.style), dim=16, bank=32)
    >>> batch = sl.Feed(pool, method.views, 4, 12, seed=0)(sl.At(0, 100))
    >>> loss = method(batch, sl.At(0, 100))
    >>> sorted(loss.terms), method.bank.shape
    (['instance', 'labeled', 'unlabeled'], torch.Size([32, 16]))
    """

    name = "simmatch"
    family = "consistency"
    paper = "SimMatch: Semi-supervised Learning with Similarity Matching"
    arxiv = "2203.06915"
    unmixable = "keeps what it has seen of each labeled image"
    recipe = "recipes/consistency.py"
    views = Views(labeled={"weak": Weak}, unlabeled={"weak": Weak, "strong": Strong})
    splits = True

    bank: Tensor
    bank_labels: Tensor
    model: Tensor

    def __init__(self, net: Net, threshold: Scalar = 0.95, temperature: Scalar = 0.1, smooth: Scalar = 0.9,
                 weight: Scalar = 1.0, instance: Scalar = 1.0, dim: int = 128, bank: int = 1024,
                 ema: Scalar = 0.999) -> None:
        super().__init__(net, ema)
        self.threshold, self.temperature, self.smooth = threshold, temperature, smooth
        self.weight, self.instance = weight, instance
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            width = net.features_dim
            self.projector = nn.Sequential(nn.Linear(width, width), nn.ReLU(), nn.Linear(width, dim))
        self.register_buffer("bank", F.normalize(torch.randn(bank, dim, generator=generator("simmatch/bank")), dim=1))
        self.register_buffer("bank_labels", torch.zeros(bank, dtype=torch.int64))
        self.register_buffer("model", torch.zeros(256, net.classes))
        self.notes = Notes()

    def forward(self, batch: Batch, at: At) -> Loss:
        x, u = batch.labeled, batch.unlabeled
        labeled, weak, strong = self.joint(x["weak"], u["weak"], u["strong"], constant=1)
        with torch.no_grad():
            p = losses.probabilities(weak.logits)
            aligned = losses.align(p, torch.full_like(p[0], 1 / p.shape[1]), recent_mean(self.model))
            similar = self._similarities(weak.features, at).exp()
        neighbors, q = calibrate(similar, aligned, self.bank_labels, at.value(self.smooth))
        full = at.step * at.world * len(x) >= len(self.bank)
        q = q if full else aligned
        confidence, pseudo = q.max(dim=1)
        mask = confidence >= at.value(self.threshold)
        instance = -(neighbors * self._similarities(strong.features, at)).sum(dim=1).mean()
        with torch.no_grad():
            self.notes.put(at, self._embed(labeled.features), x.targets, p)
        return Loss(
            {
                "labeled": self.labeled_loss(labeled.logits, x.targets),
                "unlabeled": at.value(self.weight) * losses.masked_cross_entropy(strong.logits, q, mask),
                "instance": (at.value(self.instance) if full else 0.0) * instance,
            },
            logs={
                "train_accuracy": losses.accuracy(labeled.logits.detach().argmax(dim=1), x.targets),
                "mask_rate": mask.float().mean(),
                "pseudo_label_accuracy": losses.accuracy(pseudo, u.truth, mask),
            },
        )

    def _embed(self, features: Tensor) -> Tensor:
        """z: [B, dim], rows of length 1."""
        return F.normalize(self.projector(features).to(self.bank.dtype), dim=1)

    def _similarities(self, features: Tensor, at: At) -> Tensor:
        """log s: [B, N] over the rows of the bank."""
        scores = (self._embed(features) @ self.bank.T).to(self.bank.dtype)
        return (scores / at.value(self.temperature)).log_softmax(dim=1)

    @torch.no_grad()
    def after_step(self, at: At) -> None:
        super().after_step(at)
        embeddings, labels, p = self.notes.rows()
        prepend(self.bank, embeddings)
        prepend(self.bank_labels, labels)
        self.model.copy_(torch.cat([self.model[1:], p.mean(dim=0, keepdim=True)]))


def calibrate(similar: Tensor, p: Tensor, labels: Tensor, smooth: float) -> tuple[Tensor, Tensor]:
    """SimMatch's unfolding and aggregation: what the classes say of the neighbors, and these of the classes.

    similar: [B, N], over the bank; p: [B, C], over the classes; rows of both sum to 1. labels: int64 [N].
    Returns w [B, N] ~ similar_n * p_(labels_n), 0 where no row has a class that p allows, and q [B, C] =
    smooth * p + (1 - smooth) * similar by class.
    """
    neighbors = similar * p[:, labels]
    neighbors = neighbors / neighbors.sum(dim=1, keepdim=True).clamp(min=torch.finfo(p.dtype).tiny)
    by_class = torch.zeros_like(p).index_add_(1, labels, similar)
    return neighbors, smooth * p + (1 - smooth) * by_class
