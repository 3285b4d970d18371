"""Noisy Student (Xie et al. 2020, arXiv 1911.04252): a frozen teacher labels clean images for a noised student."""

from __future__ import annotations

import torch

from ssl_lab import losses
from ssl_lab.batch import At, Batch, Loss
from ssl_lab.errors import UsageError
from ssl_lab.methods.base import Method, Views
from ssl_lab.nets import Ema, Net
from ssl_lab.schedule import Scalar
from ssl_lab.views import Eval, Strong


class NoisyStudent(Method):
    """L = H(y, p(strong(x))) + weight * (1/U) sum_b 1[max q_b >= threshold] H(q_b, p(strong(u_b)))

    with the soft pseudo-label q_b = p'(u_b) of the teacher on the image as it is, without noise or gradient. The run
    has generations + 1 parts of equal length. In the first there is no teacher, only the labeled loss; at the end of
    each, the averaged net becomes the teacher of the next, in eval mode for good. Noise is the strong view, and
    dropout and stochastic depth where the net has them.

    A run has one optimizer and one schedule, so a generation goes on from the weights of the last; in the paper each
    student starts anew, and may be larger. There, labels are smoothed, classes of pseudo-labels balanced, and batches
    filled with confident ones; here the loss is divided by all U rows. A run by the clock (minutes) is as long as if
    all steps took the time of those with a teacher, so it ends early.

    It is here and Meta Pseudo Labels (arXiv 2003.10580) is not, for that needs two optimizers, and the student's loss
    before and after its own step.

    Args:
        generations: how many students learn from a teacher.
        threshold: least confidence of a pseudo-label.
        weight: of the unlabeled loss.

    >>> pool = sl.load("digits").split(labels=10)
    >>> method = sl.NoisyStudent(sl.net("tiny_4", classes=10, style=pool.style), generations=3)
    >>> batch = sl.Feed(pool, method.views, 4, 12, seed=0)(sl.At(0, 100))
    >>> loss = method(batch, sl.At(0, 100))
    >>> loss.terms["unlabeled"].item()  # there is no teacher before a quarter of the run
    0.0
    """

    name = "noisy_student"
    family = "consistency"
    paper = "Self-training with Noisy Student improves ImageNet classification"
    arxiv = "1911.04252"
    recipe = "recipes/consistency.py"
    views = Views(labeled={"strong": Strong}, unlabeled={"clean": Eval, "strong": Strong})

    def __init__(self, net: Net, generations: int = 3, threshold: Scalar = 0.3, weight: Scalar = 1.0,
                 ema: Scalar = 0.999) -> None:
        super().__init__(net, ema)
        if generations < 1:
            raise UsageError(f"Noisy Student with generations={generations}: expected at least 1 student.")
        self.generations = generations
        self.threshold, self.weight = threshold, weight
        self.teacher = Ema(net, decay=0.0)  # a copy without gradient that is always in eval mode; see `after_step`

    def forward(self, batch: Batch, at: At) -> Loss:
        x, u = batch.labeled, batch.unlabeled
        if self._generation(at.step, at) == 0:
            logits, none = self.net(x["strong"]).logits, torch.full((), torch.nan, device=x.targets.device)
            unlabeled, mask_rate, nothing = torch.zeros_like(none), none, x.targets[:0]
            pseudo_label_accuracy = losses.accuracy(nothing, nothing)
        else:
            logits, strong = (out.logits for out in self.joint(x["strong"], u["strong"]))
            with torch.no_grad():
                q = losses.probabilities(self.teacher.net(u["clean"]).logits)
            confidence, pseudo = q.max(dim=1)
            mask = confidence >= at.value(self.threshold)
            unlabeled = at.value(self.weight) * losses.masked_cross_entropy(strong, q, mask)
            mask_rate, pseudo_label_accuracy = mask.float().mean(), losses.accuracy(pseudo, u.truth, mask)
        return Loss(
            {
                "labeled": self.labeled_loss(logits, x.targets),
                "unlabeled": unlabeled,
            },
            logs={
                "train_accuracy": losses.accuracy(logits.detach().argmax(dim=1), x.targets),
                "mask_rate": mask_rate,
                "pseudo_label_accuracy": pseudo_label_accuracy,
            },
        )

    def _generation(self, step: int, at: At) -> int:
        """Of a step: 0 has no teacher."""
        return step * (self.generations + 1) // at.total

    def after_step(self, at: At) -> None:
        super().after_step(at)
        if self._generation(at.step + 1, at) > self._generation(at.step, at):
            self.teacher.update(self.ema.net, at)  # with decay 0: copies it
