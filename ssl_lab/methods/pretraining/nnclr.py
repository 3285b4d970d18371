"""NNCLR (Dwibedi et al. 2021, arXiv 2104.14548): the positive is the nearest of the images seen before."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from ssl_lab import losses
from ssl_lab.batch import At, Batch, Loss
from ssl_lab.losses import full_precision
from ssl_lab.methods.base import Views
from ssl_lab.methods.pretraining.base import Pretraining, gather, global_places
from ssl_lab.methods.pretraining.heads import mlp
from ssl_lab.methods.queues import push
from ssl_lab.methods.ranks import Notes
from ssl_lab.nets import Net
from ssl_lab.schedule import Scalar
from ssl_lab.seeds import generator
from ssl_lab.views import SimCLRView


class NNCLR(Pretraining):
    """L = mean_i of l(n(z_1), p_2)_i / 2 + l(n(z_2), p_1)_i / 2,    l(n, p)_i = -log softmax_j(n_i . p_j / T)_i

    with z_v = projector(net(view v)) and p_v = predictor(z_v), scaled to length 1; n(z) the row of the queue that is
    nearest to z, without gradient; and j over the images of all ranks (micro-batches see their own rows only). The
    queue has z_1 of the last steps, of all ranks; at first, random directions. Each view passes the net by itself.
    This is the paper's algorithm 1; its text adds the softmax over the neighbors, and finds it to be of no effect.

    Args:
        temperature: T.
        queue: rows in it.
        hidden, dim: values in the projector's two hidden layers, and of z.
        predictor_hidden: values in the predictor's one.
        seed: of the two. logs: `neighbor_cosine`, of z_1 and n(z_1).

    >>> pool = sl.load("digits").split(labels=10)
    >>> method = sl.NNCLR(sl.net("tiny_4", classes=10, style=pool.style), queue=32, hidden=16, dim=8)
    >>> batch = sl.Feed(pool, method.views, 0, 12, seed=0)(sl.At(0, 100))
    >>> loss = method(batch, sl.At(0, 100))
    >>> 0 < loss.logs["neighbor_cosine"].item() <= 1
    True
    """

    name = "nnclr"
    paper = "With a Little Help from My Friends: Nearest-Neighbor Contrastive Learning of Visual Representations"
    arxiv = "2104.14548"
    views = Views(unlabeled={"first": SimCLRView, "second": SimCLRView})
    queue: Tensor

    def __init__(self, net: Net, temperature: Scalar = 0.1, queue: int = 98304, hidden: int = 2048, dim: int = 256,
                 predictor_hidden: int = 4096, ema: Scalar = 0.0, seed: int = 0) -> None:
        super().__init__(net, ema)
        self.temperature = temperature
        sizes = (net.features_dim, hidden, hidden, dim)
        self.projector = mlp(sizes, last_norm=True, seed=seed, name="projector")
        self.prediction = mlp((dim, predictor_hidden, dim), seed=seed, name="prediction")
        self.register_buffer("queue", F.normalize(torch.randn(queue, dim, generator=generator(seed, "queue")), dim=1))
        self.notes = Notes()

    def forward(self, batch: Batch, at: At) -> Loss:
        u = batch.unlabeled
        projections = [self.projector(self.net(u[view]).features) for view in ("first", "second")]
        predicted_1, predicted_2 = (self.prediction(z) for z in projections)
        temperature = at.value(self.temperature)
        with full_precision(u.truth.device):
            z_1, z_2 = (F.normalize(z.detach(), dim=1) for z in projections)
            neighbors_1, neighbors_2 = nearest(z_1, self.queue), nearest(z_2, self.queue)
            contrast = (contrastive(neighbors_1, predicted_2, temperature)
                        + contrastive(neighbors_2, predicted_1, temperature)) / 2
            cosine = (z_1 * neighbors_1).sum(dim=1).mean()
        self.notes.put(at, z_1)
        return Loss({"contrast": contrast}, logs={"neighbor_cosine": cosine})

    def after_step(self, at: At) -> None:
        super().after_step(at)
        (rows,) = self.notes.rows()
        push(self.queue, rows, at.step)


def nearest(queries: Tensor, bank: Tensor) -> Tensor:
    """[N, D]: the row of `bank`, float [Q, D], with the largest product with each of the queries, float [N, D].

    One matrix product. FAISS's exact search (IndexFlatIP), without the time to add the rows, takes longer: for 256
    queries of 256 values, one thread of a Xeon, 7 : 20 ms at 4096 rows, 47 : 129 at 16384, and 369 : 2158 at 98304.
    Its approximate indices would have to learn anew what each step changes.
    """
    return bank[(queries @ bank.T).argmax(dim=1)]


def contrastive(neighbors: Tensor, predictions: Tensor, temperature: float) -> Tensor:
    """The mean of l(n, p): float scalar. neighbors: unit rows [N, D] of this rank. predictions: [N, D], any length."""
    scores = neighbors @ gather(F.normalize(predictions, dim=1)).T / temperature
    return losses.cross_entropy(scores, global_places(neighbors))
