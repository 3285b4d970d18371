"""Self-distillation (Zhang et al. 2019, arXiv 1905.08094): a net's early stages learn from its last one."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import torch
from torch import nn

from ssl_lab import losses
from ssl_lab.batch import At, Batch, Loss
from ssl_lab.errors import UsageError
from ssl_lab.losses import full_precision
from ssl_lab.methods.base import Method, Views
from ssl_lab.methods.distillation.base import all_rows
from ssl_lab.methods.distillation.hooks import adapters, channels, paths, see, stages
from ssl_lab.methods.distillation.kd import kd_loss
from ssl_lab.nets import Net
from ssl_lab.nets.base import linear_head
from ssl_lab.schedule import Scalar
from ssl_lab.views import ViewFactory, Weak


class SelfDistillation(Method):
    """L = H(y, p(x)) + sum over stages i of [(1 - alpha) H(y, p_i(x)) + alpha T^2 KL(p || p_i) + hint |F_i - F|^2]

    p and F are the net's probabilities and pooled features, and no gradient reaches them through the sum's last two
    terms; p_i = softmax(W_i F_i) and F_i those of a branch that starts at stage i. Both terms need no label: they are
    means over all images of the batch. Probabilities in KL are softened by T. A branch has a 3x3 convolution of stride
    2, with norm and ReLU, for each stage that it leaves out; the paper's have bottlenecks. The net is exported without
    its branches.

    This is "be your own teacher". The other self-distillation, born-again networks (arXiv 1805.04770), is `kd` with a
    teacher of the student's own kind, a run for each generation.

    Args:
        layers: where branches start: submodules of the backbone, by path; see `paths`. By default the last of each
            resolution but the coarsest.
        alpha, hint, temperature: as in the equation; the defaults are those of common code, where |F_i - F|^2 is
            summed over 128 images, with a weight of 1e-6.
        view: of all images.

    >>> pool = sl.load("digits").split(labels=10)
    >>> method = sl.SelfDistillation(sl.net("tiny_4", classes=10, style=pool.style))
    >>> batch = sl.Feed(pool, method.views, 4, 12, seed=0)(sl.At(0, 100))
    >>> loss = method(batch, sl.At(0, 100))
    >>> sorted(loss.terms)
    ['branches', 'distilled', 'hints', 'labeled']
    """

    name = "self_distillation"
    family = "distillation"
    paper = "Be Your Own Teacher: Improve the Performance of Convolutional Neural Networks via Self Distillation"
    arxiv = "1905.08094"
    recipe = "recipes/consistency.py"

    def __init__(self, net: Net, layers: str | Sequence[str] | None = None, alpha: Scalar = 0.1,
                 hint: Scalar = 1e-4, temperature: Scalar = 3.0, view: ViewFactory = Weak,
                 ema: Scalar = 0.999) -> None:
        super().__init__(net, ema)
        self.layers = stages(net)[:-1] if layers is None else paths(layers)
        if not self.layers:
            raise UsageError(f"{net.name} has maps of one resolution, so no earlier stage to teach: name layers")
        self.alpha, self.hint, self.temperature = alpha, hint, temperature
        self.views = Views(labeled={"view": view}, unlabeled={"view": view})
        widths = [*channels(net, self.layers), net.features_dim]
        self.branches = adapters(lambda first, end: branch(widths[first:end]),
                                 [(first, len(widths)) for first in range(len(self.layers))])
        self.heads = adapters(linear_head, [(net.features_dim, net.classes)] * len(self.layers))

    def forward(self, batch: Batch, at: At) -> Loss:
        x, rows = batch.labeled, all_rows(batch)
        seen = see(self.net, rows["view"], self.layers)
        alpha, temperature = at.value(self.alpha), at.value(self.temperature)
        labeled, distilled, hints, last = [], [], [], torch.empty(0)
        with full_precision(rows["view"].device):
            for branch, head, start in zip(self.branches, self.heads, seen.maps, strict=True):
                features = branch(start)
                last = head(features)
                labeled.append(self.labeled_loss(last[: len(x)], x.targets))
                distilled.append(kd_loss(last, seen.logits.detach(), temperature))
                hints.append((features - seen.features.detach()).square().sum(dim=1).mean())
            terms = {
                "labeled": self.labeled_loss(seen.logits[: len(x)], x.targets),
                "branches": (1 - alpha) * torch.stack(labeled).sum(),
                "distilled": alpha * torch.stack(distilled).sum(),
                "hints": at.value(self.hint) * torch.stack(hints).sum(),
            }
        said = seen.logits.detach().argmax(dim=1)
        return Loss(terms, logs={
            "train_accuracy": losses.accuracy(said[: len(x)], x.targets),
            "agreement": (said == last.detach().argmax(dim=1)).float().mean(),  # of the deepest branch
        })


def branch(widths: Sequence[int]) -> nn.Sequential:
    """[B, widths[0], h, w] -> [B, widths[-1]]: strided convolutions, then the mean over places."""
    steps = [nn.Sequential(nn.Conv2d(inputs, outputs, 3, 2, padding=1, bias=False), nn.BatchNorm2d(outputs), nn.ReLU())
             for inputs, outputs in itertools.pairwise(widths)]
    return nn.Sequential(*steps, nn.AdaptiveAvgPool2d(1), nn.Flatten())
