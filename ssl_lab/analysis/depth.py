"""Effective depth: how many nonlinearities an image passes (Mehmeti-Goepel and Disselhoff 2022, arXiv 2211.17180)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ssl_lab.errors import UsageError
from ssl_lab.nets import Net, evaluating
from ssl_lab.nets.residual import Residual, ResNet, WideBlock, WideResNet

LINEAR = (nn.Conv2d, nn.Linear, nn.modules.batchnorm._BatchNorm, nn.GroupNorm, nn.Identity, nn.Flatten, nn.Dropout,
          nn.AvgPool2d)


@torch.no_grad()
def effective_depth(net: Net, x: Tensor) -> float:
    """The mean over paths of the nonlinearities on them, each counted by the share of its channels that are not linear
    on images x; a merge of two branches gives half to each way.

    Of a PReLU, a channel is linear if its slope is 1; of a ReLU or leaky ReLU, if on these images what enters it never
    changes its sign: then it passes all, or nothing. L layers that all bend have depth L, a block of m layers beside a
    plain shortcut m / 2. The averaging is that of Mehmeti-Goepel and Disselhoff 2022 (arXiv 2211.17180), by the paper's
    summary; how a ReLU counts is ours.

    Args:
        net: of whose backbone the depth is.
        x: float [n, C, H, W] in [0, 1].

    Raises:
        UsageError: for nets with parts whose paths are not known.

    >>> first, second = torch.nn.PReLU(8), torch.nn.PReLU(8)
    >>> layers = torch.nn.Flatten(), torch.nn.Linear(4, 8), first, torch.nn.Linear(8, 8), second
    >>> net = sl.Net(torch.nn.Sequential(*layers), torch.nn.Linear(8, 2), mean=(0.5,), std=(0.25,))
    >>> second.weight.data[:4] = 1.0  # half of its channels are linear now
    >>> sl.analysis.effective_depth(net, torch.rand(64, 1, 2, 2))
    1.5
    """
    with evaluating(net):
        return _through(net.backbone, (x - net.mean) / net.std)[1]


def bends(x: Tensor) -> float:
    """The share of channels of x [n, C, ...] that have values of both signs."""
    flat = x.transpose(0, 1).flatten(1)
    return ((flat.amin(dim=1) < 0) & (flat.amax(dim=1) > 0)).double().mean().item()


def _through(part: nn.Module, x: Tensor) -> tuple[Tensor, float]:
    """The part's output, and its depth."""
    if isinstance(part, nn.Sequential) and type(part).forward is nn.Sequential.forward:
        depth = 0.0
        for each in part:
            x, more = _through(each, x)
            depth += more
        return x, depth
    if isinstance(part, Residual):
        (branch, one), (shortcut, other) = _through(part.branch, x), _through(part.shortcut, x)
        out, last = _through(part.after if isinstance(part.after, nn.Module) else nn.ReLU(), branch + shortcut)
        return out, (one + other) / 2 + last
    if isinstance(part, WideBlock):
        before = part.norm1(x)
        middle = part.norm2(part.conv1(F.leaky_relu(before, 0.1)))
        ways = bends(before) + bends(middle), bends(before) * part.activate_shortcut
        return part(x), sum(ways) / 2
    if isinstance(part, ResNet):
        x, depth = _through(nn.Sequential(part.stem, part.blocks), x)
        return x.mean((2, 3)), depth
    if isinstance(part, WideResNet):
        x, depth = _through(nn.Sequential(part.stem, part.blocks, part.norm), x)
        return F.leaky_relu(x, 0.1).mean((2, 3)), depth + bends(x)
    if isinstance(part, nn.PReLU):
        return part(x), (part.weight != 1).double().mean().item()
    if isinstance(part, nn.ReLU | nn.LeakyReLU):
        return part(x.clone()), bends(x)
    if isinstance(part, LINEAR):
        return part(x), 0.0
    raise UsageError(f"effective_depth does not know the paths of {type(part).__name__}: it has nets of convolutions, "
                     "norms, ReLU and residual blocks, such as tiny_16, resnet18 and wrn_28_2")
