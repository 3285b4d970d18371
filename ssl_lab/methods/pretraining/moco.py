"""MoCo v2 (Chen et al. 2020, arXiv 2003.04297) and v3 (Chen et al. 2021, arXiv 2104.02057): keys of a slow encoder."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from ssl_lab import losses
from ssl_lab.batch import At, Batch, Loss
from ssl_lab.losses import full_precision
from ssl_lab.methods.base import Views
from ssl_lab.methods.pretraining.base import Pretraining, Target, global_places
from ssl_lab.methods.pretraining.heads import mlp
from ssl_lab.methods.queues import push
from ssl_lab.methods.ranks import Notes, cat_over_ranks
from ssl_lab.nets import Net
from ssl_lab.schedule import Scalar, cosine
from ssl_lab.seeds import generator
from ssl_lab.views import BYOL1, BYOL2, MOCO

MOMENTUM = cosine(0.99, 1.0)


class MoCoV2(Pretraining):
    """L = mean over images of -log( exp(q . k+ / T) / (exp(q . k+ / T) + sum_n exp(q . k_n / T)) )

    with q the unit projection of the first view, k+ that of the second view by the target, and k_n the keys in the
    queue: those of the last steps, of all ranks; at first, random directions. The target is a copy of net and
    projector, and after each step becomes momentum * target + (1 - momentum) * (net, projector).

    The paper shuffles the target's rows among ranks, so that BatchNorm's statistics do not tell which key belongs to
    the batch; here each rank's BatchNorm has its own rows, as in the paper's code on one device.

    Args:
        temperature: T.
        momentum: m.
        queue: keys in it.
        hidden, dim: values in the projector's hidden layer (default: as many as there are features) and of q.
        seed: of the projector.

    >>> pool = sl.load("digits").split(labels=10)
    >>> method = sl.MoCoV2(sl.net("tiny_4", classes=10, style=pool.style), queue=32, hidden=16, dim=8)
    >>> batch = sl.Feed(pool, method.views, 0, 12, seed=0)(sl.At(0, 100))
    >>> loss = method(batch, sl.At(0, 100))
    >>> before = method.queue.clone()
    >>> method.after_step(sl.At(0, 100))
    >>> int((method.queue != before).any(dim=-1).sum())  # keys of this step came in
    12
    """

    name = "moco_v2"
    paper = "Improved Baselines with Momentum Contrastive Learning"
    arxiv = "2003.04297"
    views = Views(unlabeled={"first": MOCO, "second": MOCO})
    queue: Tensor

    def __init__(self, net: Net, temperature: Scalar = 0.2, momentum: Scalar = 0.999, queue: int = 65536,
                 hidden: int | None = None, dim: int = 128, ema: Scalar = 0.0, seed: int = 0) -> None:
        super().__init__(net, ema)
        self.temperature, self.momentum = temperature, momentum
        self.projector = mlp((net.features_dim, hidden or net.features_dim, dim), norm=False, seed=seed)
        self.target = Target(net, self.projector)
        self.register_buffer("queue", F.normalize(torch.randn(queue, dim, generator=generator(seed, "queue")), dim=1))
        self.notes = Notes()

    def forward(self, batch: Batch, at: At) -> Loss:
        u = batch.unlabeled
        projections, keys = self.projector(self.net(u["first"]).features), self.target(u["second"])
        with full_precision(u.truth.device):
            queries, keys = F.normalize(projections, dim=1), F.normalize(keys, dim=1)
            positive = (queries * keys).sum(dim=1, keepdim=True)
            scores = torch.cat([positive, queries @ self.queue.T], dim=1) / at.value(self.temperature)
            first = torch.zeros(len(scores), dtype=torch.int64, device=scores.device)
            contrast = losses.cross_entropy(scores, first)
        self.notes.put(at, keys)
        return Loss({"contrast": contrast}, logs={
            "contrast_accuracy": losses.accuracy(scores.detach().argmax(dim=1), first)})

    @torch.no_grad()
    def after_step(self, at: At) -> None:
        super().after_step(at)
        self.target.follow(self.net, self.projector, at.value(self.momentum))
        (keys,) = self.notes.rows()
        push(self.queue, keys, at.step)


class MoCoV3(Pretraining):
    """L = ctr(q_1, k_2) + ctr(q_2, k_1),    ctr(q, k) = 2 T mean_i -log softmax_j(q_i . k_j / T)_i

    with q_v = predictor(projector(net(view v))) and k_v the target's projection of view v, all of length 1; j runs over
    the images of all ranks. Micro-batches see their own rows only. Each view passes each net by itself. After each step
    the target becomes momentum * target + (1 - momentum) * (net, projector). All layers of both heads have BatchNorm,
    as the paper says; for ResNets, its code has one layer less, and none at the predictor's end. For a ViT, the paper
    freezes the patch embedding: `net.backbone.patch_embed.requires_grad_(False)`.

    Args:
        temperature: T, 0.2 for ViTs and 1 for ResNet-50.
        momentum: rises to 1.
        hidden, dim: values in the hidden layers of projector and predictor, and of q.
        seed: of the two.

    >>> pool = sl.load("digits").split(labels=10)
    >>> method = sl.MoCoV3(sl.net("tiny_4", classes=10, style=pool.style), temperature=1.0, hidden=16, dim=8)
    >>> batch = sl.Feed(pool, method.views, 0, 12, seed=0)(sl.At(0, 100))
    >>> loss = method(batch, sl.At(0, 100))
    >>> round(float(loss.terms["contrast"].item() / 4 / np.log(12)), 1)  # as of a guess among the 12 images
    1.0
    """

    name = "moco_v3"
    paper = "An Empirical Study of Training Self-Supervised Vision Transformers"
    arxiv = "2104.02057"
    views = Views(unlabeled={"first": BYOL1, "second": BYOL2})

    def __init__(self, net: Net, temperature: Scalar = 0.2, momentum: Scalar = MOMENTUM, hidden: int = 4096,
                 dim: int = 256, ema: Scalar = 0.0, seed: int = 0) -> None:
        super().__init__(net, ema)
        self.temperature, self.momentum = temperature, momentum
        sizes = (net.features_dim, hidden, hidden, dim)
        self.projector = mlp(sizes, last_norm=True, seed=seed, name="projector")
        self.prediction = mlp((dim, hidden, dim), last_norm=True, seed=seed, name="prediction")
        self.target = Target(net, self.projector)

    def forward(self, batch: Batch, at: At) -> Loss:
        first, second = batch.unlabeled["first"], batch.unlabeled["second"]
        query_1, query_2 = (self.prediction(self.projector(self.net(x).features)) for x in (first, second))
        key_1, key_2 = self.target(first), self.target(second)
        temperature = at.value(self.temperature)
        with full_precision(first.device):
            contrast = contrastive(query_1, key_2, temperature) + contrastive(query_2, key_1, temperature)
        return Loss({"contrast": contrast})

    def after_step(self, at: At) -> None:
        super().after_step(at)
        self.target.follow(self.net, self.projector, at.value(self.momentum))


def contrastive(queries: Tensor, keys: Tensor, temperature: float) -> Tensor:
    """MoCo v3's ctr: float scalar. queries, keys: [N, D] of this rank, of any length; keys have no gradient."""
    queries, keys = F.normalize(queries, dim=1), F.normalize(keys, dim=1)
    scores = queries @ cat_over_ranks(keys).T / temperature
    return 2 * temperature * losses.cross_entropy(scores, global_places(queries))
