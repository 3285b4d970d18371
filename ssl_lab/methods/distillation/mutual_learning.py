"""Deep mutual learning (Zhang et al. 2018, arXiv 1706.00384): two nets learn together, and from each other."""

from __future__ import annotations

import copy

import torch

from ssl_lab import losses
from ssl_lab.batch import At, Batch, Loss
from ssl_lab.class_names import shown
from ssl_lab.errors import UsageError
from ssl_lab.losses import full_precision
from ssl_lab.methods.base import Method, Views
from ssl_lab.methods.distillation.base import all_rows
from ssl_lab.methods.distillation.hooks import see
from ssl_lab.methods.distillation.kd import kd_loss
from ssl_lab.nets import Net
from ssl_lab.schedule import Scalar
from ssl_lab.seeds import generator
from ssl_lab.views import ViewFactory, Weak


class MutualLearning(Method):
    """L = H(y, p_1(x)) + H(y, p_2(x)) + weight * [KL(p_2 || p_1) + KL(p_1 || p_2)]

    The labels' terms are means over the labeled images, the others over all images of the batch. In KL(p || q) the
    gradient reaches q alone. Both nets see the same images and take their steps together, where in the paper the
    second one sees the first after its step. The first is evaluated and exported.

    Args:
        peer: the second net, for as many classes, of whatever kind. None: one like the first, with other initial
            weights, namely those of the first shuffled within each tensor: for weights that were drawn
            independently, another draw.
        weight: of the second term.
        view: of all images.

    >>> pool = sl.load("digits").split(labels=10)
    >>> method = sl.MutualLearning(sl.net("tiny_4", classes=10, style=pool.style))
    >>> batch = sl.Feed(pool, method.views, 4, 12, seed=0)(sl.At(0, 100))
    >>> loss = method(batch, sl.At(0, 100))
    >>> sorted(loss.terms)
    ['labeled', 'mutual']
    """

    name = "mutual_learning"
    family = "distillation"
    paper = "Deep Mutual Learning"
    arxiv = "1706.00384"
    recipe = "recipes/consistency.py"

    def __init__(self, net: Net, peer: Net | None = None, weight: Scalar = 1.0, view: ViewFactory = Weak,
                 ema: Scalar = 0.999) -> None:
        super().__init__(net, ema)
        if peer is net:
            raise UsageError("the peer is the net itself; give another one, or none")
        if peer is not None and peer.classes != net.classes:
            raise UsageError(f"the peer tells {peer.classes} classes apart, the net {net.classes}")
        if peer is not None and None not in (given := {peer.class_names, net.class_names}) and len(given) > 1:
            raise UsageError(f"the peer's logits stand for {shown(peer.class_names)}, the net's for "
                             f"{shown(net.class_names)}; build both with classes=pool.class_names")
        self.peer = peer or shuffled(net)
        self.weight = weight
        self.views = Views(labeled={"view": view}, unlabeled={"view": view})

    def forward(self, batch: Batch, at: At) -> Loss:
        x, rows = batch.labeled, all_rows(batch)
        first, second = (see(net, rows["view"]).logits for net in (self.net, self.peer))
        with full_precision(rows["view"].device):
            labeled = [self.labeled_loss(logits[: len(x)], x.targets) for logits in (first, second)]
            mutual = kd_loss(first, second.detach()) + kd_loss(second, first.detach())
        said, answered = (logits.detach().argmax(dim=1) for logits in (first, second))
        return Loss({"labeled": labeled[0] + labeled[1], "mutual": at.value(self.weight) * mutual}, logs={
            "train_accuracy": losses.accuracy(said[: len(x)], x.targets),
            "agreement": (said == answered).float().mean(),
        })


@torch.no_grad()
def shuffled(net: Net) -> Net:
    """A copy in which the weights of each tensor changed places."""
    other, draw = copy.deepcopy(net), generator("mutual learning")
    for parameter in other.parameters():
        order = torch.randperm(parameter.numel(), generator=draw)
        parameter.copy_(parameter.flatten()[order.to(parameter.device)].view_as(parameter))
    return other
