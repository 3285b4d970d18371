"""What a net is: `Net(backbone, head)`, which normalizes its own input and returns an `Output`."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from ssl_lab.batch import Style
from ssl_lab.class_names import Names
from ssl_lab.nets.depthwise import has_depthwise, quick_gradients
from ssl_lab.nets.narrow import mend_narrow

MOVING = "moving_ranges"  # of a layer: whether training passes move the ranges of its rounded inputs


class Output(NamedTuple):
    """What a net says of images, in autocast's dtype.

    Attributes:
        features: [B, D], pooled, before the head.
        logits: [B, classes].

    >>> out = sl.net("tiny_4")(torch.rand(2, 3, 32, 32))
    >>> out.features.shape, out.logits.shape
    (torch.Size([2, 16]), torch.Size([2, 10]))
    """

    features: Tensor
    logits: Tensor


class Net(nn.Module):
    """A classifier of float images [B, C, H, W] in [0, 1].

    Args:
        backbone: images -> pooled features [B, D].
        head: features -> logits.
        mean, std: one number per channel; they are buffers, so that a saved net carries its normalization with it.
        class_names: what its logits stand for, in order; None if nobody said.
        unit: whether features are scaled to length 1.
        name: what it is called; `sl.net` knows its own again by it.

    Attributes:
        prepared: the techniques that it was prepared by, as texts.
        origin: what its weights were learned in, in words; "" if they were drawn.

    >>> backbone = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 16), torch.nn.ReLU())
    >>> net = sl.Net(backbone, torch.nn.Linear(16, 10), mean=(0.3,), std=(0.4,))
    >>> net(torch.rand(2, 1, 8, 8)).logits.shape
    torch.Size([2, 10])
    """

    mean: Tensor
    std: Tensor
    prepared: tuple[str, ...] = ()
    origin: str = ""

    def __init__(self, backbone: nn.Module, head: nn.Linear, mean: Sequence[float], std: Sequence[float],
                 name: str = "custom", class_names: Names | None = None, unit: bool = False) -> None:
        super().__init__()
        self.name, self.class_names, self.unit = name, class_names, unit
        self.features_dim, self.classes = head.in_features, head.out_features
        self.register_buffer("mean", torch.tensor(mean).view(-1, 1, 1))
        self.register_buffer("std", torch.tensor(std).view(-1, 1, 1))
        self.backbone = backbone
        self.head = head
        mend_narrow(backbone)
        self._depthwise = has_depthwise(backbone)

    def forward(self, x: Tensor) -> Output:
        with quick_gradients(x) if self._depthwise else nullcontext():
            features = self.backbone((x - self.mean) / self.std)
        if self.unit:
            features = F.normalize(features, dim=1)
        return Output(features, self.head(features))


def linear_head(features_dim: int, classes: int) -> nn.Linear:
    """A linear classifier with Glorot-normal weights and zero bias, as FixMatch's code has it."""
    head = nn.Linear(features_dim, classes)
    nn.init.xavier_normal_(head.weight)
    nn.init.zeros_(head.bias)
    return head


def describe(net: nn.Module, style: Style) -> tuple[int, int]:
    """(parameters, FLOPs of the forward pass of one image); a multiply-add counts as 2.

    Args:
        net: of images.
        style: what these are like.

    >>> parameters, flops = sl.nets.describe(sl.net("wrn_28_2"), sl.Style())
    >>> f"{parameters:,} parameters, {flops / 1e9:.2f} GFLOP"
    '1,467,610 parameters, 0.43 GFLOP'
    """
    shadow = copy.deepcopy(net).to("meta").eval()  # shapes only: computes nothing, leaves `net` as it was
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        shadow(torch.empty(1, style.channels, style.height, style.width, device="meta"))
    return sum(p.numel() for p in net.parameters()), counter.get_total_flops()


@contextmanager
def frozen_statistics(module: nn.Module) -> Iterator[None]:
    """Within it, BatchNorm (Ioffe and Szegedy 2015, arXiv 1502.03167) normalizes by the batch as ever, but its running
    statistics do not move; nor do the ranges of rounded inputs (`round_inputs`).

    Args:
        module: with its submodules.

    >>> net = sl.net("tiny_4")
    >>> before = [each.clone() for each in net.buffers()]
    >>> with sl.nets.frozen_statistics(net):
    ...     out = net(torch.rand(8, 3, 32, 32))
    >>> all(torch.equal(a, b) for a, b in zip(before, net.buffers()))
    True
    """
    moving: list[tuple[nn.Module, str]] = [
        (m, "track_running_stats") for m in module.modules()
        if isinstance(m, nn.modules.batchnorm._BatchNorm) and m.track_running_stats]
    moving += [(m, MOVING) for m in module.modules() if getattr(m, MOVING, False)]
    for part, key in moving:
        setattr(part, key, False)
    try:
        yield
    finally:
        for part, key in moving:
            setattr(part, key, True)


@contextmanager
def evaluating(module: nn.Module) -> Iterator[None]:
    """Within it, the module is in evaluation mode; afterwards each of its parts is in the mode that it had.

    >>> net = sl.net("tiny_4")
    >>> with sl.nets.evaluating(net):
    ...     print(net.training)
    False
    >>> net.training
    True
    """
    modes = [(part, part.training) for part in module.modules()]
    module.eval()
    try:
        yield
    finally:
        for part, mode in modes:
            part.training = mode
