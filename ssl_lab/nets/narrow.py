"""Strided 1x1 convolutions of few channels, whose gradients oneDNN gets wrong."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

BLOCK = 16
"""Channels that the widest of oneDNN's convolutions take at once; with AVX2 it is 8."""


class EveryPlace(nn.Conv2d):
    """A strided 1x1 convolution as one without stride of every `stride`-th place, which is the same.

    With fewer channels than a block has, in channels_last, oneDNN's gradient of a strided one's weights is wrong, or
    writes past its memory, which ends a process at any later moment (uxlfoundation/oneDNN#6035; seen with AVX2).
    """

    def forward(self, x: Tensor) -> Tensor:
        down, right = self.stride
        return F.conv2d(x[:, :, ::down, ::right], self.weight, self.bias, groups=self.groups)


def mend_narrow(module: nn.Module) -> None:
    """Makes each such convolution in a module an `EveryPlace`, in place; weights and names stay."""
    for part in module.modules():
        if (type(part) is nn.Conv2d and part.kernel_size == (1, 1) and max(part.stride) > 1
                and part.padding == (0, 0) and part.in_channels // part.groups < BLOCK):
            part.__class__ = EveryPlace
