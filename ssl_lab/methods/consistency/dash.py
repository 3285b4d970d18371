"""Dash (Xu et al. 2021, arXiv 2109.00650): keeps pseudo-labels whose loss is below a threshold that falls."""

from __future__ import annotations

import torch
from torch import Tensor

from ssl_lab import losses
from ssl_lab.batch import At, Batch, Loss
from ssl_lab.methods.base import Method, Views
from ssl_lab.methods.ranks import Notes
from ssl_lab.nets import Net
from ssl_lab.schedule import Scalar
from ssl_lab.views import Strong, Weak


class Dash(Method):
    """L = H(y, p(weak(x))) + weight * (1 / kept) sum_b 1[-log max q_b < rho] H(target_b, p(strong(u_b)))

    with q_b = p(weak(u_b)) without gradient. Training is cut into `epochs` equal parts t = 0, 1, ...: in the first,
    every row is kept, and the mean of H(q_b, p(strong(u_b))) becomes rho_0; then rho = max(rho_0 gamma^-(t - 1),
    least). The target is q_b, and the hard argmax q_b once rho has come down to `least`. Loss and settings are
    those of the paper's code, where the mean is over the rows kept.

    gamma: how fast rho falls, above 1. epochs: parts of the run. least: the smallest rho, in nats. weight: of
    the unlabeled loss.
    """

    name = "dash"
    family = "consistency"
    paper = "Dash: Semi-Supervised Learning with Dynamic Thresholding"
    arxiv = "2109.00650"
    recipe = "recipes/consistency.py"
    views = Views(labeled={"weak": Weak}, unlabeled={"weak": Weak, "strong": Strong})
    splits = True
    first_loss: Tensor

    def __init__(self, net: Net, gamma: Scalar = 1.004, epochs: int = 1024, least: Scalar = 0.05,
                 weight: Scalar = 0.9, ema: Scalar = 0.999) -> None:
        super().__init__(net, ema)
        self.gamma = gamma
        self.epochs = epochs
        self.least = least
        self.weight = weight
        self.register_buffer("first_loss", torch.tensor(0.0))  # rho_0: the mean so far while t = 0
        self.notes = Notes()

    def forward(self, batch: Batch, at: At) -> Loss:
        x, u = batch.labeled, batch.unlabeled
        labeled, weak, strong = (out.logits for out in self.joint(x["weak"], u["weak"], u["strong"], constant=1))
        q = losses.probabilities(weak.detach())
        confidence, pseudo = q.max(dim=1)
        falling = self.first_loss * at.value(self.gamma) ** -max(0, self._epoch(at) - 1)
        if self._warming_up(at):
            falling = torch.full_like(falling, torch.inf)
        mask = -confidence.log() < falling.clamp(min=at.value(self.least))
        log_p = strong.log_softmax(dim=1, dtype=q.dtype)
        soft = -(q * log_p).sum(dim=1)
        hard = -log_p.gather(1, pseudo[:, None])[:, 0]
        per_row = torch.where(falling > at.value(self.least), soft, hard)
        self.notes.put(at, soft.mean())
        return Loss(
            {
                "labeled": losses.cross_entropy(labeled, x.targets),
                "unlabeled": at.value(self.weight) * (per_row * mask).sum() / mask.sum().clamp(min=1),
            },
            logs={
                "train_accuracy": losses.accuracy(labeled.detach().argmax(dim=1), x.targets),
                "mask_rate": mask.float().mean(),
                "pseudo_label_accuracy": losses.accuracy(pseudo, u.truth, mask),
            },
        )

    def after_step(self, at: At) -> None:
        super().after_step(at)
        (loss,) = self.notes.mean()
        if self._warming_up(at):
            self.first_loss.lerp_(loss.to(self.first_loss.dtype), 1 / (at.step + 1))

    def _epoch(self, at: At) -> int:
        return at.step * self.epochs // at.total

    def _warming_up(self, at: At) -> bool:
        """A run shorter than `epochs` steps warms up for its first step."""
        return self._epoch(at) == 0
