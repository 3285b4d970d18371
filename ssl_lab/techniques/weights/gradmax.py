"""GradMax (Evci et al. 2022, arXiv 2201.05125): a net grows in mid-run, where its gradient will be largest."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, ClassVar, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.grad import conv2d_weight

from ssl_lab.batch import At, Batch, Loss
from ssl_lab.data import Pool
from ssl_lab.errors import UsageError
from ssl_lab.methods import Method
from ssl_lab.methods.ranks import Notes
from ssl_lab.nets import frozen_statistics
from ssl_lab.nets.residual import Residual, WideBlock
from ssl_lab.techniques.base import WeightsTechnique
from ssl_lab.techniques.weights.renewal import generations_done

ENTRIES = 2**24  # of the gradients of one part of a growth matrix


class GradMax(WeightsTechnique):
    """New neurons with fan-in 0 and fan-out c u_1, c u_2, ...,    u the first left singular vectors of dL/dz' h'

    z' the next layer's output and h the input of theirs: the function stays, and of all fan-outs of norm c these give
    fan-ins the largest gradients. Neurons are channels between the first two convolutions of residual blocks. A share
    of them sleeps at first, with weights 0 whose gradients are 0, and is woken up in equal parts: so the net has its
    shapes from the start, and a small net's function, but not its cost.

    share: of each block's channels that sleep. times: how often some are woken, between generations of equal length.
    scale: c in mean norms of the fan-outs that are awake.

    The matrix is of one batch, over all ranks and micro-batches, by a pass of its own. It is exact: patches follow
    strides and padding, and BatchNorm, which passes no gradient's mean back, is part of it; the authors' code
    (`growers.py`, against which the rest was checked) has one convolution in place of two. As there, rectifiers between
    have slope 1 at 0. BatchNorm of a channel that is 0 multiplies gradients by 1 / sqrt(eps): a first step is long.
    """

    name = "gradmax"
    paper = "GradMax: Growing Neural Networks using Gradient Information"
    arxiv = "2201.05125"
    excludes: ClassVar[Mapping[str, str]] = dict.fromkeys(("reinit", "shrink_perturb", "layerwise_reinit"),
                                                          "what is drawn anew does not sleep")

    def __init__(self, share: float = 0.5, times: int = 4, scale: float = 1.0) -> None:
        super().__init__()
        if not 0 <= share < 1 or times < 1 or scale <= 0:
            raise UsageError(f"gradmax: share={share}, times={times}, scale={scale}; expected a share from 0 to below "
                             "1, 1 time or more, and a positive scale")
        self.share, self.times, self.scale = share, times, scale

    def check(self, method: Method, pool: Pool) -> None:
        if not list(pairs(method.net)):
            raise UsageError(f"gradmax grows residual blocks, and {method.net.name} has none that it knows")

    def begin(self, pool: Pool, seed: int) -> None:
        self._notes, backbone = Notes(), self.net.backbone
        first = [weight.detach().clone() for weight in backbone.parameters()]
        for part in list(self.base.modules()):  # averages and targets are copies of the net
            if type(part) is type(backbone) and all(map(torch.equal, part.parameters(), first)):
                for pair in pairs(part):
                    sleep(pair, self._asleep(pair))
        for block in self.net.modules():
            if isinstance(block, Residual) and self.share:
                block.branch[2] = SteepReLU()

    def forward(self, batch: Batch, at: At) -> Loss:
        loss = super().forward(batch, at)
        if self.share and self.training and generations_done(at, self.times + 1):
            with torch.enable_grad(), frozen_statistics(self.net), torch.compiler.set_stance("force_eager"):
                self._notes.put(at, *self._matrices(batch, at))
        return loss

    @torch.no_grad()
    def after_step(self, at: At) -> None:
        super().after_step(at)
        done = generations_done(at, self.times + 1)
        if not (self.share and done):
            return
        for pair, matrix in zip(pairs(self.net), self._notes.mean(), strict=True):
            asleep, width = self._asleep(pair), pair.first.out_channels
            start, end = (width - asleep + asleep * part // self.times for part in (done - 1, done))
            wake(pair, slice(start, end), matrix, self.scale)

    def _asleep(self, pair: Pair) -> int:
        return int(self.share * pair.first.out_channels)

    def _matrices(self, batch: Batch, at: At) -> list[Tensor]:
        """The growth matrix of each block, by a pass of its own."""
        inputs, seen, found = {}, list[tuple[int, Tensor, Tensor]](), list(pairs(self.net))
        handles = []
        for i, pair in enumerate(found):
            handles += [
                pair.first.register_forward_pre_hook(lambda _, given, i=i: inputs.update({i: given[0].detach()})),
                pair.second.register_forward_hook(lambda _, __, output, i=i: seen.append((i, inputs[i], output)))]
        total = self.base(batch, at).total
        for handle in handles:
            handle.remove()
        learning = [each for each in seen if each[2].requires_grad]
        slopes = torch.autograd.grad(total, [output for _, _, output in learning], allow_unused=True)
        matrices = [torch.zeros(_rows(pair), pair.first.weight[0].numel(), device=total.device) for pair in found]
        for (i, x, _), slope in zip(learning, slopes, strict=True):
            if slope is not None:
                matrices[i] += growth_matrix(found[i], x.float(), slope.float())
        return matrices


class Pair(NamedTuple):
    """Two convolutions of a residual block, with BatchNorm and a rectifier between."""

    first: nn.Conv2d
    second: nn.Conv2d


def pairs(net: nn.Module) -> Iterator[Pair]:
    """The first two convolutions of each residual block."""
    for block in net.modules():
        if isinstance(block, Residual | WideBlock):
            two: Any = (block.branch[0], block.branch[3]) if isinstance(block, Residual) else (block.conv1, block.conv2)
            yield Pair(*two)


class SteepReLU(nn.Module):
    """max(x, 0), with slope 1 at 0, where torch's has 0."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.where(x >= 0, x, 0)


@torch.no_grad()
def sleep(pair: Pair, count: int) -> None:
    """Sets the fan-in and the fan-out of the last `count` channels between the two to 0."""
    start = pair.first.out_channels - count
    pair.first.weight[start:] = 0
    pair.second.weight[:, start:] = 0


def growth_matrix(pair: Pair, x: Tensor, slope: Tensor) -> Tensor:
    """dL/d(fan-in) of a new channel is u'M, up to a factor, for the fan-out u.

    M: [out * kernel of the second, in * kernel of the first].

    x: the input of the first convolution [B, in, H, W]. slope: dL/d(output of the second) [B, out, H2, W2].
    """
    first, second = pair
    (high, wide), (down, right) = second.kernel_size, second.stride
    taps, outputs = high * wide, slope.shape[1]
    size = [(x.shape[2 + i] + 2 * int(first.padding[i]) - first.kernel_size[i]) // first.stride[i] + 1 for i in (0, 1)]
    rest = [size[0] - (slope.shape[2] - 1) * down + 2 * int(second.padding[0]) - high,
            size[1] - (slope.shape[3] - 1) * right + 2 * int(second.padding[1]) - wide]
    parts = []
    for some in torch.split(slope, max(1, ENTRIES // (len(x) * taps * size[0] * size[1])), dim=1):
        count = some.shape[1]
        one_tap = torch.eye(taps, device=x.device, dtype=x.dtype).view(taps, high, wide).repeat(count, 1, 1, 1)
        hidden = F.conv_transpose2d(some, one_tap.view(count, taps, high, wide), stride=second.stride,
                                    padding=[int(p) for p in second.padding], output_padding=rest, groups=count)
        hidden = hidden - hidden.mean((0, 2, 3), keepdim=True)  # as BatchNorm passes it back
        shape = (count * taps, x.shape[1], *first.kernel_size)
        found: Tensor = conv2d_weight(x, shape, hidden, first.stride, first.padding)  # type: ignore[no-untyped-call]
        parts.append(found.flatten(1))
    matrix = torch.cat(parts)
    assert len(matrix) == outputs * taps
    return matrix


@torch.no_grad()
def wake(pair: Pair, channels: slice, matrix: Tensor, scale: float) -> None:
    """Sets the fan-outs of these channels, before which all are awake, by their growth matrix."""
    count, weight = channels.stop - channels.start, pair.second.weight
    if not count:
        return
    directions = torch.linalg.svd(matrix, full_matrices=False).U[:, :count]
    most = directions.gather(0, directions.abs().argmax(dim=0, keepdim=True))
    directions = directions * most.sign()  # which singular vectors leave open
    length = scale * weight[:, : channels.start].transpose(0, 1).flatten(1).norm(dim=1).mean()
    fan_outs = length * directions.T.reshape(count, len(weight), *weight.shape[2:])
    weight[:, channels] = fan_outs.transpose(0, 1).to(weight.dtype)


def _rows(pair: Pair) -> int:
    return pair.second.weight[:, 0].numel()
