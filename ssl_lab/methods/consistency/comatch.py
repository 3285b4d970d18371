"""CoMatch (Li et al. 2021, arXiv 2011.11183): pseudo-labels and embeddings that shape each other through graphs."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ssl_lab import losses
from ssl_lab.batch import At, Batch, Loss
from ssl_lab.losses import full_precision
from ssl_lab.methods.base import Method, Views
from ssl_lab.methods.consistency.thresholds import recent_mean
from ssl_lab.methods.queues import prepend
from ssl_lab.methods.ranks import Notes
from ssl_lab.nets import Net
from ssl_lab.schedule import Scalar
from ssl_lab.seeds import seeded
from ssl_lab.views import Strong, Weak


class CoMatch(Method):
    """L = H(y, p(weak(x))) + weight * (1/U) sum_b 1[max q_b >= threshold] H(q_b, p(strong_1(u_b)))
                            + contrast * (1/U) sum_b H(W_b, S_b)

    q_b = smooth * a_b + (1 - smooth) * sum_k m_bk p_k, without gradient, with a = p(weak(u)) aligned to uniform by
    the mean prediction of the last 32 steps and m_b = softmax_k(z(weak(u_b)) . z_k / T), over the memory: pairs
    (z_k, p_k) of normalized projections and aligned predictions of weak unlabeled rows, or labels of labeled ones.
    S_b = softmax_j(z(strong_1(u_b)) . z(strong_2(u_j)) / T) is the graph of embeddings, and the graph of pseudo-labels
    W_bj ~ q_b . q_j where that is at least `edge`, else 0, with W_bb ~ 1; rows of both sum to 1.

    The memory holds the last rows of all ranks, and until it is full q = a. Graphs span the rows of one rank (one
    micro-batch). All rows pass the net that learns, in one batch, as the paper has it on CIFAR; on ImageNet it uses
    an averaged teacher. Alignment knows the steps before this one, as many as there are; the authors' code
    (salesforce/CoMatch at 08b4cce, Train_CoMatch.py), whose list also begins empty, this one too.

    Args:
        threshold: least confidence of q.
        temperature: T.
        smooth: alpha in the paper.
        edge: least similarity of two pseudo-labels that an edge joins.
        dim: of z.
        memory: rows in it, by default five of the paper's batches.
        weight, contrast: of the second and the third term.

    >>> pool = sl.load("digits").split(labels=10)
    >>> method = sl.CoMatch(sl.net("tiny_4", classes=10, style=pool.style), dim=16, memory=64)
    >>> batch = sl.Feed(pool, method.views, 4, 12, seed=0)(sl.At(0, 100))
    >>> loss = method(batch, sl.At(0, 100))
    >>> sorted(loss.terms), loss.logs["edges"].item() >= 1  # each row is its own neighbor
    (['contrast', 'labeled', 'unlabeled'], True)
    """

    name = "comatch"
    family = "consistency"
    paper = "CoMatch: Semi-supervised Learning with Contrastive Graph Regularization"
    arxiv = "2011.11183"
    unmixable = "keeps what it has seen of each labeled image"
    recipe = "recipes/consistency.py"
    views = Views(labeled={"weak": Weak}, unlabeled={"weak": Weak, "strong_1": Strong, "strong_2": Strong})
    splits = True

    memory: Tensor
    memory_labels: Tensor
    model: Tensor

    def __init__(self, net: Net, threshold: Scalar = 0.95, temperature: Scalar = 0.2, smooth: Scalar = 0.9,
                 edge: Scalar = 0.8, weight: Scalar = 1.0, contrast: Scalar = 1.0, dim: int = 64, memory: int = 2560,
                 ema: Scalar = 0.999) -> None:
        super().__init__(net, ema)
        self.threshold, self.temperature, self.smooth, self.edge = threshold, temperature, smooth, edge
        self.weight, self.contrast = weight, contrast
        with seeded(0, "comatch/projector"):
            width = net.features_dim
            self.projector = nn.Sequential(nn.Linear(width, width), nn.LeakyReLU(0.1), nn.Linear(width, dim))
        self.register_buffer("memory", torch.zeros(memory, dim))
        self.register_buffer("memory_labels", torch.zeros(memory, net.classes))
        self.register_buffer("model", torch.zeros(32, net.classes))
        self.notes = Notes()

    def forward(self, batch: Batch, at: At) -> Loss:
        x, u = batch.labeled, batch.unlabeled
        temperature = at.value(self.temperature)
        labeled, weak, strong, other = self.joint(x["weak"], u["weak"], u["strong_1"], u["strong_2"], constant=1)
        z_labeled, z_weak, z_strong, z_other = (self._embed(out.features) for out in (labeled, weak, strong, other))
        with full_precision(u.truth.device):
            with torch.no_grad():
                p = losses.probabilities(weak.logits)
                aligned = q = losses.align(p, torch.full_like(p[0], 1 / p.shape[1]), recent_mean(self.model))
                if at.step * at.world * (len(x) + len(u)) >= len(self.memory):
                    neighbors = losses.probabilities(z_weak @ self.memory.T, temperature)
                    q = q.lerp(neighbors @ self.memory_labels, 1 - at.value(self.smooth))
                graph = pseudo_label_graph(q, at.value(self.edge))
                labels = F.one_hot(x.targets, self.net.classes).to(q.dtype)
                self.notes.put(at, torch.cat([z_labeled, z_weak]), torch.cat([labels, aligned]), p)
            contrast = losses.cross_entropy(z_strong @ z_other.T / temperature, graph)
        confidence, pseudo = q.max(dim=1)
        mask = confidence >= at.value(self.threshold)
        return Loss(
            {
                "labeled": self.labeled_loss(labeled.logits, x.targets),
                "unlabeled": at.value(self.weight) * losses.masked_cross_entropy(strong.logits, q, mask),
                "contrast": at.value(self.contrast) * contrast,
            },
            logs={
                "train_accuracy": losses.accuracy(labeled.logits.detach().argmax(dim=1), x.targets),
                "mask_rate": mask.float().mean(),
                "pseudo_label_accuracy": losses.accuracy(pseudo, u.truth, mask),
                "edges": (graph > 0).float().sum(dim=1).mean(),
            },
        )

    def _embed(self, features: Tensor) -> Tensor:
        """z: [B, dim], rows of length 1."""
        return F.normalize(self.projector(features).to(self.memory.dtype), dim=1)

    @torch.no_grad()
    def after_step(self, at: At) -> None:
        super().after_step(at)
        embeddings, labels, p = self.notes.rows()
        prepend(self.memory, embeddings)
        prepend(self.memory_labels, labels)
        self.model.copy_(torch.cat([self.model[1:], p.mean(dim=0, keepdim=True)]))


def pseudo_label_graph(q: Tensor, edge: float) -> Tensor:
    """W: [B, B], W_bj ~ q_b . q_j where that is at least `edge`, else 0, and W_bb ~ 1; rows sum to 1.

    q: probabilities [B, C].
    """
    similar = (q @ q.T).fill_diagonal_(1.0)
    similar = torch.where(similar >= edge, similar, 0.0)
    return similar / similar.sum(dim=1, keepdim=True)
