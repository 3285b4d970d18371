"""DINO (Caron et al. 2021, arXiv 2104.14294): say of a view what a slow copy says of the other one."""

from __future__ import annotations

from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ssl_lab import losses
from ssl_lab.batch import At, Batch, Loss
from ssl_lab.losses import full_precision
from ssl_lab.methods.base import Views
from ssl_lab.methods.pretraining.base import Pretraining, Target, crossed, small_crops
from ssl_lab.methods.pretraining.heads import Head
from ssl_lab.methods.ranks import Notes
from ssl_lab.nets import Net
from ssl_lab.schedule import Scalar, cosine, linear
from ssl_lab.seeds import seeded
from ssl_lab.views import BYOL1, BYOL2, SimCLRView
from ssl_lab.views.contrastive import BYOL_JITTER

MOMENTUM = cosine(0.996, 1.0)
LARGE = 0.4  # share of the image from which a crop is a large one, in the authors' code
TEACHER_TEMPERATURE = linear(0.04, 0.07, until=0.1)
"""The paper's warm-up of 30 epochs, of 300."""


class DINO(Pretraining):
    """L = mean over images of H(P'_1, P_2) / 2 + H(P'_2, P_1) / 2,    H(a, b) = -sum_k a_k log b_k

    with P_v = softmax(s_v / T) of the student and P'_v = softmax((t_v - c) / T') of the teacher, without gradient, for
    view v. s_v and t_v are cosines with `outputs` directions (see `DINOHead`); the center c, a moving average of the
    mean of t over both views of all ranks, keeps any of them from taking over. The teacher, a copy of net and
    projector, becomes momentum * teacher + (1 - momentum) * student after each step. Both views pass together.

    With `crops`, so many views of small parts of the image (0.05 to 0.4 of it) learn from both teachers too, the mean
    being over all pairs of a student's view with another one of the teacher's, which sees parts of 0.4 and more. Here
    small crops have the size of the others, so that each costs as much. Without, the least area of 0.14 is what the
    authors' code advises for that. Directions of length 1 are an option there. With the paper's settings it starts
    slowly: while all images look alike to the net, the centered teacher is uniform, and `teacher_entropy` is near log
    outputs.

    Args:
        temperature, teacher_temperature: T and T'.
        crops: small ones.
        momentum: rises to 1; nearer to it for small batches (the authors advise 0.9995 for 256).
        center_momentum: decay of c.
        frozen: share of the run in which the last layer does not learn, an epoch in the paper.
        hidden, dim, outputs: values in the projector's hidden layers and in its bottleneck, and directions.
        norm: BatchNorm in the hidden layers, an option of the authors' code; it takes away the large part that the
            features of a convolutional net have in common at first.
        seed: of the projector. logs: `teacher_entropy`, of P'; if it stays at 0 or at log outputs, all images have
            come to look alike (log outputs: try a lower teacher_temperature, or a higher temperature; 0: a lower
            center_momentum, or a higher momentum).

    >>> pool = sl.load("digits").split(labels=10)
    >>> method = sl.DINO(sl.net("tiny_4", classes=10, style=pool.style), hidden=16, dim=8, outputs=32)
    >>> batch = sl.Feed(pool, method.views, 0, 12, seed=0)(sl.At(0, 100))
    >>> loss = method(batch, sl.At(0, 100))
    >>> 0 < loss.logs["teacher_entropy"].item() < float(np.log(32))
    True
    """

    name = "dino"
    paper = "Emerging Properties in Self-Supervised Vision Transformers"
    arxiv = "2104.14294"
    views = Views(unlabeled={"first": partial(BYOL1, area=0.14), "second": partial(BYOL2, area=0.14)})
    center: Tensor

    def __init__(self, net: Net, temperature: Scalar = 0.1, teacher_temperature: Scalar = TEACHER_TEMPERATURE,
                 momentum: Scalar = MOMENTUM, center_momentum: Scalar = 0.9, frozen: float = 0.01, hidden: int = 2048,
                 dim: int = 256, outputs: int = 65536, norm: bool = False, ema: Scalar = 0.0, seed: int = 0,
                 crops: int = 0) -> None:
        super().__init__(net, ema)
        if crops:
            self.views = Views(unlabeled={"first": partial(BYOL1, area=LARGE), "second": partial(BYOL2, area=LARGE)}
                               | small_crops(crops, partial(SimCLRView, area=0.05, most=LARGE, jitter=BYOL_JITTER)))
        self.crops = crops
        self.temperature, self.teacher_temperature = temperature, teacher_temperature
        self.momentum, self.center_momentum, self.frozen = momentum, center_momentum, frozen
        self.projector = dino_head(net.features_dim, hidden, dim, outputs, norm, seed)
        self.target = Target(net, self.projector)
        self.register_buffer("center", torch.zeros(outputs))
        self.notes = Notes()

    def forward(self, batch: Batch, at: At) -> Loss:
        views = [batch.unlabeled[name] for name in self.views.unlabeled]
        student = self.projector(self.net(torch.cat(views)).features, frozen=at.frac < self.frozen)
        teacher = self.target(torch.cat(views[:2]))
        with full_precision(teacher.device):
            taught = losses.probabilities(teacher - self.center, at.value(self.teacher_temperature)).chunk(2)
            first, _ = taught
            predictions, targets = crossed(taught, (student / at.value(self.temperature)).chunk(len(views)))
            prediction = losses.cross_entropy(predictions, targets)
            entropy = torch.special.entr(first).sum(dim=1).mean()
        self.notes.put(at, teacher.mean(dim=0))
        return Loss({"prediction": prediction}, logs={"teacher_entropy": entropy})

    @torch.no_grad()
    def after_step(self, at: At) -> None:
        super().after_step(at)
        self.target.follow(self.net, self.projector, at.value(self.momentum))
        (mean,) = self.notes.mean()
        self.center.lerp_(mean, 1 - at.value(self.center_momentum))


class DINOHead(Head):
    """Layers of which the last gives cosines: of what the others make of x with its weights, the directions."""

    def forward(self, x: Tensor, frozen: bool = False) -> Tensor:
        """[B, outputs]: cosines of x, float [B, features]. frozen: see `hold`, for the directions."""
        *layers, last = self
        for layer in layers:
            x = layer(x)
        with full_precision(x.device):
            directions = F.normalize(hold(last.get_parameter("weight"), frozen), dim=1)
            return F.linear(F.normalize(x.to(directions.dtype), dim=1), directions)


def dino_head(features: int, hidden: int, dim: int, outputs: int, norm: bool, seed: int) -> DINOHead:
    """Three linear layers with GELU (after BatchNorm, if `norm`) between them, then `outputs` directions; a pure
    function of the seed."""
    with seeded(seed, "dino head"):
        linear = nn.Linear(features, hidden), nn.Linear(hidden, hidden), nn.Linear(hidden, dim)
        for layer in linear:
            nn.init.trunc_normal_(layer.weight, std=0.02)
            nn.init.zeros_(layer.bias)
        layers: list[nn.Module] = []
        for layer in linear[:2]:
            layers += [layer, *([nn.BatchNorm1d(hidden)] if norm else []), nn.GELU()]
        return DINOHead(*layers, linear[2], nn.Linear(dim, outputs, bias=False))


def hold(weight: Tensor, frozen: bool) -> Tensor:
    """The weight; if frozen, with a gradient of 0. None would not do: DDP waits for all gradients.

    What decay then does to a weight that is scaled to length 1 does not show.
    """
    return weight.detach() + 0 * weight if frozen else weight
