"""SoTeacher (Dong et al. 2022, arXiv 2206.06661): train a teacher for what its student will learn from it."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ssl_lab import losses
from ssl_lab.batch import At, Batch, Loss
from ssl_lab.errors import UsageError
from ssl_lab.methods.base import Method, Views
from ssl_lab.methods.distillation.base import all_rows
from ssl_lab.methods.ranks import Notes
from ssl_lab.nets import Net
from ssl_lab.schedule import Scalar, linear
from ssl_lab.views import ViewFactory, Weak

RISE = linear(0.0, 1.0)


class SoTeacher(Method):
    """L = H(y, p(x)) + lipschitz * sum over layers of Lip(layer) + consistency * (1/N) sum_n |p(u_n) - m_n|^2

    Lip is a bound in the 1-norm: of a convolution the sum of |w|, of a linear layer the largest column sum of |w|, of a
    BatchNorm max |gamma| / sqrt(running variance + eps); other layers have none. m_n is the mean of the net's
    predictions of image n, under its views so far; an image that was never seen has none, and its part of the sum is 0.
    The last term needs no label: it is a mean over all images of the batch, where the paper has labeled ones only.

    It trains the teacher: `recipes/distill.py --teacher so_teacher` distills what it trained.

    Args:
        images: size of the space of global indices, `len(pool)`.
        lipschitz, consistency: weights of the terms.
        view: of all images.

    >>> pool = sl.load("digits").split(labels=10)
    >>> method = sl.SoTeacher(sl.net("tiny_4", classes=10, style=pool.style), images=len(pool))
    >>> batch = sl.Feed(pool, method.views, 4, 12, seed=0)(sl.At(0, 100))
    >>> loss = method(batch, sl.At(0, 100))
    >>> loss.terms["lipschitz"].item() > 0, loss.terms["consistency"].item()  # nothing was seen before
    (True, 0.0)
    """

    name = "so_teacher"
    family = "distillation"
    paper = "Toward Student-Oriented Teacher Network Training For Knowledge Distillation"
    arxiv = "2206.06661"
    recipe = "recipes/distill.py"
    predictions: Tensor
    visits: Tensor

    def __init__(self, net: Net, images: int, lipschitz: Scalar = 1e-5, consistency: Scalar = RISE,
                 view: ViewFactory = Weak, ema: Scalar = 0.999) -> None:
        super().__init__(net, ema)
        if images < 1:
            raise UsageError(f"SoTeacher(images={images}): give the number of images of the pool, len(pool)")
        self.lipschitz, self.consistency = lipschitz, consistency
        self.views = Views(labeled={"view": view}, unlabeled={"view": view})
        self.register_buffer("predictions", torch.zeros(images, net.classes))  # m
        self.register_buffer("visits", torch.zeros(images))
        self.notes = Notes()

    def forward(self, batch: Batch, at: At) -> Loss:
        x, rows = batch.labeled, all_rows(batch)
        logits = self.net(rows["view"]).logits
        p = losses.probabilities(logits)
        distance = (p - self.predictions[rows.indices]).square().sum(dim=1)
        distance = (distance * (self.visits[rows.indices] > 0)).mean()
        self.notes.put(at, rows.indices, p)
        return Loss(
            {
                "labeled": self.labeled_loss(logits[: len(x)], x.targets),
                "lipschitz": at.value(self.lipschitz) * lipschitz(self.net),
                "consistency": at.value(self.consistency) * distance,
            },
            logs={"train_accuracy": losses.accuracy(logits[: len(x)].detach().argmax(dim=1), x.targets)},
        )

    def after_step(self, at: At) -> None:
        super().after_step(at)
        indices, p = self.notes.rows()
        copies = (indices[:, None] == indices).sum(dim=1)
        seen = self.visits[indices] + copies
        change = (p.to(self.predictions.dtype) - self.predictions[indices]) / seen[:, None]
        self.predictions.index_add_(0, indices, change)
        self.visits[indices] = seen


def lipschitz(net: nn.Module) -> Tensor:
    """Scalar: the sum of the layers' bounds, see SoTeacher."""
    bounds = []
    for module in net.modules():
        if isinstance(module, nn.Conv2d):
            bounds.append(module.weight.abs().sum())
        elif isinstance(module, nn.Linear):
            bounds.append(module.weight.abs().sum(dim=0).max())
        elif isinstance(module, nn.modules.batchnorm._BatchNorm) and module.running_var is not None:
            bounds.append((module.weight.abs() / (module.running_var + module.eps).sqrt()).max())
    return torch.stack(bounds).sum()
