"""Learning loss (Yoo and Kweon 2019, arXiv 1905.03677): a second head learns which images have the higher loss."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ssl_lab.batch import At, Batch, Loss
from ssl_lab.errors import UsageError
from ssl_lab.methods.base import Forward, Method, RowLosses
from ssl_lab.nets import Ema, Net, frozen_statistics
from ssl_lab.schedule import Scalar


class LearningLoss(Method):
    """L = L_base + weight * (2 / B) sum over pairs (i, j) of max(0, margin - sign(l_i - l_j) (g_i - g_j))

    l_i = H(y_i, p(x_i)) of the labeled images, without gradient, and g_i the loss that the head predicts from their
    features; rows 0 and 1 of the batch are a pair, 2 and 3, and so on. sign(0) is -1, as in the paper.

    Works around any method with a labeled view: the first one passes the net once more, and leaves BatchNorm's
    running statistics alone. The paper's head sees four feature maps of a ResNet, each pooled; this one sees the
    last, pooled, whatever the net. `predicted_loss` is what the query `learning_loss` needs.

    base: the method that trains the net. weight: lambda. margin: xi. flow: until this fraction of training the
    gradient of the second term reaches the net, then only the head (120 of 200 epochs in the paper). hidden: the
    head's width.
    """

    name = "learning_loss"
    family = "active"
    paper = "Learning Loss for Active Learning"
    arxiv = "1905.03677"
    recipe = "recipes/active.py"

    def __init__(self, base: Method, weight: Scalar = 1.0, margin: Scalar = 1.0, flow: float = 0.6,
                 hidden: int = 128) -> None:
        nn.Module.__init__(self)
        if not base.views.labeled:
            raise UsageError(f"learning_loss works around a method with a labeled view; {base.name} has none")
        self.base, self.views = base, base.views
        self.weight, self.margin, self.flow = weight, margin, flow
        self.__dict__["net"] = base.net  # not registered a second time: state_dict has it once, under `base`
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            self.head = nn.Sequential(nn.Linear(base.net.features_dim, hidden), nn.ReLU(),
                                      nn.Linear(hidden, 1, bias=False))  # which no difference of two would show
        self.head_ema = Ema(self.head, base.ema.decay, base.ema.warm_up)

    def forward(self, batch: Batch, at: At) -> Loss:
        loss: Loss = self.base(batch, at)
        with frozen_statistics(self.net):
            features, logits = self.net(batch.labeled[next(iter(self.views.labeled))])
        actual = F.cross_entropy(_full(logits.detach()), batch.labeled.targets, reduction="none")
        predicted = self.head(features if at.frac < self.flow else features.detach())[:, 0]
        ranking = ranking_loss(predicted, actual, at.value(self.margin))
        return Loss(loss.terms | {"ranking": at.value(self.weight) * ranking}, loss.logs)

    def after_step(self, at: At) -> None:
        self.base.after_step(at)
        self.head_ema.update(self.head, at)

    def predictor(self) -> Net:
        return self.base.predictor()

    @contextmanager
    def labeled_by(self, wrap: Callable[[RowLosses], RowLosses]) -> Iterator[None]:
        with self.base.labeled_by(wrap):
            yield

    def set_forward(self, policy: Forward) -> None:
        self.base.set_forward(policy)

    @torch.no_grad()
    def predicted_loss(self, x: Tensor) -> Tensor:
        """float [B]: higher where the predictor's loss on images x [B, C, H, W] is likely higher."""
        predicted: Tensor = self.head_ema.net(self.predictor()(x).features)
        return predicted[:, 0].float()


def ranking_loss(predicted: Tensor, actual: Tensor, margin: float) -> Tensor:
    """Mean over the pairs (0, 1), (2, 3) ... of max(0, margin - sign * (predicted_i - predicted_j)), float [B] each.

    sign is 1 if actual_i > actual_j, else -1. 0 if there is no pair; the last of an odd number of rows has none.
    """
    pairs = len(actual) // 2
    first, second = _full(predicted)[: 2 * pairs].view(pairs, 2).unbind(dim=1)
    i, j = actual[: 2 * pairs].view(pairs, 2).unbind(dim=1)
    sign = torch.where(i > j, 1.0, -1.0)
    return (margin - sign * (first - second)).relu().sum() / max(pairs, 1)


def _full(values: Tensor) -> Tensor:
    return values.to(torch.promote_types(values.dtype, torch.float32))
