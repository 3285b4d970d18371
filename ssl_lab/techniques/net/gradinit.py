"""GradInit (Zhu et al. 2021, arXiv 2102.08098): scales of the first weights by which one step lowers the loss most."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call

from ssl_lab.data import Pool
from ssl_lab.errors import UsageError, unknown
from ssl_lab.methods import Method
from ssl_lab.nets import Net, frozen_statistics
from ssl_lab.techniques.base import NetTechnique
from ssl_lab.techniques.images import pixels, some

By = Literal["sgd", "adam"]
LEAST = 0.01  # of a weight's scale


class GradInit(NetTechnique):
    """min over m of L(B2; m w - eta A[g])    subject to ||g|| <= gamma,    g = grad L(B1; m w)

    m has one number for each parameter tensor w, 0.01 or more (0 for biases), and learns by Adam. A is the step of the
    optimizer to come: g / ||g||_2 for by="sgd", or sign(g), with ||g||_1 in the constraint, for by="adam"; no gradient
    passes it. Where the constraint is broken, a step lowers ||g|| instead. B2 shares half its images with B1. BatchNorm
    normalizes by the batch, dropout is off. Labeled images alone, as they are.

    Checked against the authors' code (`gradinit_utils.py` and its optimizer, with normalized gradients as in its
    scripts): slopes of m clipped to +-1, and separate Adam moments for loss and constraint.

    Args:
        steps, batch: of this learning; the paper takes an epoch.
        lr: of m (their 1e-3 to 1e-2 by net).
        eta, gamma: for SGD; for Adam the paper searches eta near 1e-3 and gamma in the thousands.
        by: the optimizer to come, "sgd" or "adam".

    >>> pool = sl.load("digits").split(labels=10)
    >>> net = sl.net("tiny_4", classes=10, style=pool.style)
    >>> changed = sl.GradInit(steps=2, batch=8)(net, pool, seed=0)
    >>> changed(torch.rand(2, 1, 8, 8)).logits.shape
    torch.Size([2, 10])
    """

    name = "gradinit"
    paper = "GradInit: Learning to Initialize Neural Networks for Stable and Efficient Training"
    arxiv = "2102.08098"

    def __init__(self, steps: int = 100, batch: int = 64, lr: float = 1e-2, eta: float = 0.1, gamma: float = 1.0,
                 by: By = "sgd") -> None:
        if by not in get_args(By):
            raise unknown("gradinit: by", by, get_args(By))
        if steps < 0 or batch < 2 or min(lr, eta, gamma) <= 0:
            raise UsageError(f"gradinit: steps={steps}, batch={batch}, lr={lr}, eta={eta}, gamma={gamma}; expected a "
                             "batch of 2 or more and positive numbers")
        self.steps, self.batch, self.lr, self.eta, self.gamma, self.by = steps, batch, lr, eta, gamma, by

    @property
    def overwrites(self) -> str:
        return "multiplies the weights of each layer by a number of its own" if self.steps else ""

    def check(self, method: Method, pool: Pool) -> None:
        if not method.classifies:
            raise UsageError(f"gradinit lowers the loss of labels, and {method.name} learns without")

    def check_net(self, net: Net, pool: Pool) -> None:
        if len(pool.labeled) < 2:
            raise UsageError(f"gradinit lowers the loss of labels, and {pool.name} has {len(pool.labeled)}")

    def __call__(self, net: Net, pool: Pool, seed: int) -> Net:
        self.check_net(net, pool)
        device, half = net.mean.device, max(1, self.batch // 2)
        weights = {name: weight for name, weight in net.named_parameters() if weight.requires_grad}
        scales = torch.ones(len(weights), device=device, dtype=torch.float32, requires_grad=True)
        least = torch.tensor([0.0 if name.endswith("bias") else LEAST for name in weights], device=device)
        rules = {kind: torch.optim.Adam([scales], lr=self.lr) for kind in ("loss", "constraint")}
        for step in range(self.steps):
            rows = [some(pool.labeled, half, seed, "gradinit", step, part) for part in range(3)]
            (x, y), (x1, y1), (x2, y2) = (
                (pixels(pool, each, device), torch.from_numpy(pool.labels[each]).to(device)) for each in rows)
            with batch_statistics(net):
                kind, value = objective(net, scales, (torch.cat([x, x1]), torch.cat([y, y1])),
                                        (torch.cat([x, x2]), torch.cat([y, y2])), self.eta, self.gamma, self.by)
                slopes = torch.autograd.grad(value, scales)[0]
            scales.grad = slopes.clamp(-1, 1)
            rules[kind].step()
            scales.data.clamp_(min=least)
        with torch.no_grad():
            torch._foreach_mul_(list(weights.values()), list(scales.detach().unbind()))
        return net


def objective(net: Net, scales: Tensor, first: Sequence[Tensor], second: Sequence[Tensor], eta: float, gamma: float,
              by: By) -> tuple[str, Tensor]:
    """What the scales [number of parameter tensors that learn] lower: ("loss", L after the step / eta), or
    ("constraint", ||g||) where that is above gamma. first, second: B1 and B2, images and labels."""
    learning = {name: weight.detach() for name, weight in net.named_parameters() if weight.requires_grad}
    scaled = {name: scale * weight for scale, (name, weight) in zip(scales, learning.items(), strict=True)}

    def loss(weights: dict[str, Tensor], batch: Sequence[Tensor]) -> Tensor:
        return F.cross_entropy(functional_call(net, weights, (batch[0],)).logits, batch[1])

    slopes = torch.autograd.grad(loss(scaled, first), list(scaled.values()), create_graph=True)
    length = (torch.cat([g.flatten() for g in slopes]).norm() if by == "sgd" else
              torch.stack([g.abs().sum() for g in slopes]).sum())
    if length > gamma:
        return "constraint", length
    moves = [(g / length if by == "sgd" else g.sign()).detach() for g in slopes]
    stepped = {name: w - eta * move for (name, w), move in zip(scaled.items(), moves, strict=True)}
    return "loss", loss(stepped, second) / eta


@contextmanager
def batch_statistics(net: Net) -> Iterator[None]:
    """Within it the net acts as in evaluation, but BatchNorm normalizes by the batch; running statistics stay."""
    training = net.training
    net.eval()
    for part in net.modules():
        if isinstance(part, nn.modules.batchnorm._BatchNorm):
            part.train()
    with frozen_statistics(net):
        yield
    net.train(training)
