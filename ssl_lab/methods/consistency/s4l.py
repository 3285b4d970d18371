"""S4L-Rotation (Zhai et al. 2019, arXiv 1905.03670): tell how an image was turned, on all images, beside its class."""

from __future__ import annotations

import torch

from ssl_lab import losses
from ssl_lab.batch import At, Batch, Loss
from ssl_lab.methods.base import Method, Views
from ssl_lab.methods.consistency.mixing import all_rotations, rotation_head
from ssl_lab.nets import Net
from ssl_lab.schedule import Scalar
from ssl_lab.views import Weak


class S4L(Method):
    """L = mean_r H(y, p(turn_r(x))) + weight * (R(x) + R(u)) / 2,    R(z) = mean_r H(r, p_rot(turn_r(z)))

    with r over 0, 90, 180 and 270 degrees, means over the rows, and p_rot a linear head on the features. Every
    image is there in all four rotations, the labeled ones with their class in each; all 4 (B + U) rows pass the
    net together. The paper's code has both: the turned classes, and the plain mean of the two rotation losses.
    The predictor classifies the image unturned. Images must be square.

    weight: of the rotation loss, w in the paper.
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
                "labeled": losses.cross_entropy(labeled.logits, x.targets.repeat(4)),
                "rotation": at.value(self.weight) * rotation,
            },
            logs={
                "train_accuracy": losses.accuracy(labeled.logits[: len(x)].detach().argmax(dim=1), x.targets),
                "rotation_accuracy": losses.accuracy(rotations_u.detach().argmax(dim=1), turns_u),
            },
        )
