"""SwAV (Caron et al. 2020, arXiv 2006.09882): predict, from one view, the cluster that the other is assigned to."""

from __future__ import annotations

from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ssl_lab import losses
from ssl_lab.batch import At, Batch, Loss
from ssl_lab.errors import UsageError
from ssl_lab.losses import full_precision
from ssl_lab.methods.base import Views
from ssl_lab.methods.pretraining.base import Pretraining, crossed, global_places, small_crops
from ssl_lab.methods.pretraining.dino import hold
from ssl_lab.methods.pretraining.heads import mlp
from ssl_lab.methods.queues import prepend
from ssl_lab.methods.ranks import Notes, cat_over_ranks
from ssl_lab.nets import Net
from ssl_lab.schedule import Scalar
from ssl_lab.seeds import generator
from ssl_lab.views import SimCLRView

LEAST_EPSILON = 0.025
CROP = partial(SimCLRView, area=0.14)


class SwAV(Pretraining):
    """L = mean over images of H(q_1, p_2) / 2 + H(q_2, p_1) / 2,    H(a, b) = -sum_k a_k log b_k

    with p_v = softmax_k(z_v . c_k / T), z_v the unit projection of view v and c_k the prototypes, which learn and are
    scaled to length 1 after each step; and q_v the assignments of `sinkhorn`, without gradient, which share the images
    among the prototypes equally: those of all ranks and, with a queue, of the last steps. (The paper sums the two
    directions; the mean is its code's.) Micro-batches share their own rows only. Both views pass the net together.

    With `crops`, so many views of small parts of the image (0.05 to 0.14 of it) learn from both assignments too, the
    mean being over all pairs; here they have the size of the others, so that each costs as much. A loss that stays at
    log K says that assignments are noise; the authors then advise a lower epsilon, 0.03; a higher temperature does more
    in short runs.

    Args:
        queue_from: fraction of the run, in [0, 1].
        crops: small ones, six in the paper.
        prototypes: their number K, several times that of the classes; many more than images per step need a queue.
        temperature: T.
        epsilon, iterations: of Sinkhorn-Knopp; 0.025 at least, for the range of float32.
        queue: rows of earlier steps, 3840 in the paper for small batches, used once it is full and `queue_from` of
            the run is over (15 of 200 epochs).
        frozen: share of the run in which prototypes do not learn.
        hidden, dim: values in the projector's hidden layer and of z.
        seed: of projector and prototypes. logs: `assignment_agreement`, the share of images whose two views have
            the same prototype as their first.

    >>> pool = sl.load("digits").split(labels=10)
    >>> method = sl.SwAV(sl.net("tiny_4", classes=10, style=pool.style), prototypes=16, hidden=16, dim=8)
    >>> batch = sl.Feed(pool, method.views, 0, 12, seed=0)(sl.At(0, 100))
    >>> loss = method(batch, sl.At(0, 100))
    >>> 0 <= loss.logs["assignment_agreement"].item() <= 1
    True
    """

    name = "swav"
    paper = "Unsupervised Learning of Visual Features by Contrasting Cluster Assignments"
    arxiv = "2006.09882"
    views = Views(unlabeled={"first": CROP, "second": CROP})
    queue: Tensor

    def __init__(self, net: Net, prototypes: int = 3000, temperature: Scalar = 0.1, epsilon: float = 0.05,
                 iterations: int = 3, queue: int = 0, queue_from: float = 0.075, frozen: float = 0.01,
                 hidden: int = 2048, dim: int = 128, ema: Scalar = 0.0, seed: int = 0, crops: int = 0) -> None:
        super().__init__(net, ema)
        if crops:
            self.views = Views(unlabeled=dict(self.views.unlabeled) | small_crops(crops, partial(CROP, area=0.05,
                                                                                                 most=0.14)))
        self.crops = crops
        if epsilon < LEAST_EPSILON:
            raise UsageError(f"epsilon={epsilon}: expected {LEAST_EPSILON} or more; the paper has 0.05")
        self.temperature, self.epsilon, self.iterations = temperature, epsilon, iterations
        self.queue_from, self.frozen = queue_from, frozen
        self.projector = mlp((net.features_dim, hidden, dim), seed=seed)
        drawn = torch.randn(prototypes, dim, generator=generator(seed, "prototypes"))
        self.prototypes = nn.Parameter(F.normalize(drawn, dim=1))
        self.register_buffer("queue", torch.zeros(queue, 2, dim))  # row by row, of both views
        self.notes = Notes()

    def forward(self, batch: Batch, at: At) -> Loss:
        seen = [batch.unlabeled[name] for name in self.views.unlabeled]
        projections = self.projector(self.net(torch.cat(seen)).features)
        filled = at.step * at.world * len(batch.unlabeled) >= len(self.queue) and at.frac >= self.queue_from
        with full_precision(projections.device):
            z = F.normalize(projections, dim=1)
            scores = z @ hold(self.prototypes, at.frac < self.frozen).T
            views = torch.stack(z.detach().chunk(len(seen))[:2], dim=1)
            first, second = self._assigned(views, self.queue if filled else self.queue[:0])
            prediction = losses.cross_entropy(*crossed([first, second],
                                                       (scores / at.value(self.temperature)).chunk(len(seen))))
        self.notes.put(at, views)
        return Loss({"prediction": prediction}, logs={
            "assignment_agreement": losses.accuracy(first.argmax(dim=1), second.argmax(dim=1))})

    @torch.no_grad()
    def _assigned(self, views: Tensor, queue: Tensor) -> list[Tensor]:
        """q_1 and q_2, each [N, K]. Ranks exchange z, which is many times smaller than the scores."""
        everyone = torch.cat([cat_over_ranks(views), queue])
        return [sinkhorn(z @ self.prototypes.T, self.epsilon, self.iterations)[global_places(views)]
                for z in everyone.unbind(dim=1)]

    @torch.no_grad()
    def after_step(self, at: At) -> None:
        super().after_step(at)
        self.prototypes.copy_(F.normalize(self.prototypes, dim=1))
        (views,) = self.notes.rows()
        prepend(self.queue, views)


def sinkhorn(scores: Tensor, epsilon: float, iterations: int) -> Tensor:
    """Soft assignments float [N, K]: exp(scores / epsilon), scaled so that rows sum to 1 and columns to about N / K.

    Each iteration scales the columns to equal sums, then the rows. As the scales multiply, it is two products of a
    matrix and a vector. scores: cosines [N, K].
    """
    q = ((scores - scores.amax()) / epsilon).exp()
    rows, columns = torch.ones_like(q[:, 0]), torch.ones_like(q[0])
    for _ in range(iterations):
        columns = 1 / (rows @ q)
        rows = 1 / (q @ columns)
    return rows[:, None] * q * columns
