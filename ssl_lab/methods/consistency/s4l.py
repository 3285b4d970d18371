"""S4L (Zhai et al. 2019, arXiv 1905.03670): a pretext task on all images, labeled or not, beside their class."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ssl_lab import losses
from ssl_lab.batch import At, Batch, Loss
from ssl_lab.errors import UsageError
from ssl_lab.methods.base import Method, Views
from ssl_lab.methods.rotations import all_rotations, rotation_head
from ssl_lab.nets import Net
from ssl_lab.schedule import Scalar
from ssl_lab.seeds import seeded
from ssl_lab.views import Strong, Weak


class S4L(Method):
    """S4L-Rotation: tell how an image was turned.

    L = mean_r H(y, p(turn_r(x))) + weight * (R(x) + R(u)) / 2,    R(z) = mean_r H(r, p_rot(turn_r(z)))

    with r over 0, 90, 180 and 270 degrees, means over the rows, and p_rot a linear head on the features. Every
    image is there in all four rotations, the labeled ones with their class in each; all 4 (B + U) rows pass the
    net together. The paper's code has both: the turned classes, and the plain mean of the two rotation losses.
    The predictor classifies the image unturned. Images must be square.

    Args:
        weight: of the rotation loss, w in the paper.

    >>> pool = sl.load("digits").split(labels=10)
    >>> method = sl.S4L(sl.net("tiny_4", classes=10, style=pool.style))
    >>> batch = sl.Feed(pool, method.views, 4, 12, seed=0)(sl.At(0, 100))
    >>> loss = method(batch, sl.At(0, 100))
    >>> loss.terms["rotation"].item() > 1  # log 4 is a guess among four rotations
    True
    """

    name = "s4l"
    family = "consistency"
    paper = "S4L: Self-Supervised Semi-Supervised Learning"
    arxiv = "1905.03670"
    recipe = "recipes/consistency.py"
    views = Views(labeled={"weak": Weak}, unlabeled={"weak": Weak})

    def __init__(self, net: Net, weight: Scalar = 1.0, ema: Scalar = 0.999) -> None:
        super().__init__(net, ema)
        self.weight = weight
        self.rotation_head = rotation_head(net.features_dim)

    def forward(self, batch: Batch, at: At) -> Loss:
        x, u = batch.labeled, batch.unlabeled
        labeled, unlabeled = self.joint(all_rotations(x["weak"]), all_rotations(u["weak"]))
        turns = torch.arange(4, device=x.targets.device)
        turns_x, turns_u = turns.repeat_interleave(len(x)), turns.repeat_interleave(len(u))
        rotations_x, rotations_u = self.rotation_head(labeled.features), self.rotation_head(unlabeled.features)
        rotation = (losses.cross_entropy(rotations_x, turns_x) + losses.cross_entropy(rotations_u, turns_u)) / 2
        return Loss(
            {
                "labeled": self.labeled_loss(labeled.logits, x.targets.repeat(4)),
                "rotation": at.value(self.weight) * rotation,
            },
            logs={
                "train_accuracy": losses.accuracy(labeled.logits[: len(x)].detach().argmax(dim=1), x.targets),
                "rotation_accuracy": losses.accuracy(rotations_u.detach().argmax(dim=1), turns_u),
            },
        )


class S4LExemplar(Method):
    """S4L-Exemplar: tell which views show the same image.

    L = mean_k H(y, p(v_k(x))) + weight * (T(x) + T(u)) / 2,    T(z) = mean of `batch_hard` over the views v_k(z)

    Every image is there in K views, the labeled ones with their class in each; all K (B + U) rows pass the net
    together. The embedding is a linear layer on the features, scaled to length 1. Triplets are sought among the
    rows of a rank, the labeled and the unlabeled ones apart.

    The paper's views are crops with noise in hue, saturation and value; here they are strong views, which suit
    small images. Its code hands the numbers of images and of views to the loss in reverse order, so that runs of
    many images count as one; here the positives are the other views of the image, as the paper says.

    Args:
        copies: K.
        dim: of the embedding, 1000 in the paper's code.
        weight: of the triplet loss, w in the paper.

    >>> pool = sl.load("digits").split(labels=10)
    >>> method = sl.S4LExemplar(sl.net("tiny_4", classes=10, style=pool.style), copies=3)
    >>> batch = sl.Feed(pool, method.views, 4, 12, seed=0)(sl.At(0, 100))
    >>> loss = method(batch, sl.At(0, 100))
    >>> len(batch.labeled.views), sorted(loss.terms)
    (3, ['exemplar', 'labeled'])
    """

    name = "s4l_exemplar"
    family = "consistency"
    paper = "S4L: Self-Supervised Semi-Supervised Learning"
    arxiv = "1905.03670"
    recipe = "recipes/consistency.py"

    def __init__(self, net: Net, copies: int = 8, dim: int = 128, weight: Scalar = 1.0, ema: Scalar = 0.999) -> None:
        super().__init__(net, ema)
        if copies < 2:
            raise UsageError(f"copies={copies}: expected 2 or more views of an image, to be told from other images'")
        self.weight = weight
        strong = {f"strong_{k + 1}": Strong for k in range(copies)}
        self.views = Views(labeled=strong, unlabeled=strong)
        with seeded("exemplar head"):
            self.exemplar_head = nn.Linear(net.features_dim, dim)

    def forward(self, batch: Batch, at: At) -> Loss:
        x, u = batch.labeled, batch.unlabeled
        labeled, unlabeled = self.joint(torch.cat([*x.views.values()]), torch.cat([*u.views.values()]))
        triplets = [batch_hard(self._embed(part.features), rows.indices.repeat(len(rows.views)))
                    for part, rows in ((labeled, x), (unlabeled, u))]  # an image may be in a batch twice
        return Loss(
            {
                "labeled": self.labeled_loss(labeled.logits, x.targets.repeat(len(x.views))),
                "exemplar": at.value(self.weight) * (triplets[0].mean() + triplets[1].mean()) / 2,
            },
            logs={
                "train_accuracy": losses.accuracy(labeled.logits[: len(x)].detach().argmax(dim=1), x.targets),
                # softplus(d+ - d-) is below log 2 where the farthest view of the image is the nearer one
                "exemplar_accuracy": (triplets[1].detach() < math.log(2)).float().mean(),
            },
        )

    def _embed(self, features: Tensor) -> Tensor:
        """[N, dim], rows of length 1, float32 at least."""
        return F.normalize(self.exemplar_head(features).to(self.exemplar_head.weight.dtype), dim=1)


def batch_hard(embeddings: Tensor, images: Tensor) -> Tensor:
    """softplus(max_(j shows i's image, j != i) d_ij - min_(j shows another image) d_ij) for each row i: float [N].

    d is the Euclidean distance, 1e-6 at least: its gradient has no limit at 0 (Hermans et al. 2017, arXiv 1703.07737,
    with the soft margin). embeddings: float [N, D]. images: int64 [N], which image a row shows, each at least twice;
    where all show the same one, the loss is 0.
    """
    distance = torch.cdist(embeddings, embeddings, compute_mode="donot_use_mm_for_euclid_dist").clamp(min=1e-6)
    same = images[:, None] == images
    others = same & ~torch.eye(len(images), dtype=torch.bool, device=images.device)
    farthest = distance.masked_fill(~others, -torch.inf).amax(dim=1)
    nearest = distance.masked_fill(same, torch.inf).amin(dim=1)
    return F.softplus(farthest - nearest)
