"""Layerwise re-initialization (Alabdulmohsin et al. 2021, arXiv 2109.00267): from the bottom up, all above anew."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import ClassVar

import torch
from torch import Tensor, nn

from ssl_lab.data import Pool
from ssl_lab.errors import UsageError
from ssl_lab.methods import Method
from ssl_lab.nets import Net, frozen_statistics
from ssl_lab.nets.normed import NORMED, blocks_of, moments, normed
from ssl_lab.techniques.base import learner_and_averages
from ssl_lab.techniques.images import as_seen
from ssl_lab.techniques.weights.renewal import Renewal, after_block
from ssl_lab.techniques.weights.swa import renew_statistics

IMAGES = 256


class LayerwiseReinit(Renewal):
    """For k = 1 ... K, each so many rounds long: w <- w ||w_first|| / ||w|| up to block k; all after it starts afresh

    with a fixed (x - m) / s on the output of block k, m and s of each channel on 256 training images as the method sees
    them; those of blocks before it stay too. The whole net learns all the time: in rounds K + 1 generations of equal
    length, K the number of blocks of the backbone. A tensor whose first norm is at most 1e-6 becomes 0.

    Checked against a comparison with the paper in other authors' code (`fortuitous_forgetting`), which takes m and s of
    the first batch; of the paper the abstract was read.

    The net that comes out is {net}+normed, with the normalizations in it.

    Args:
        rounds: N in the paper; 0 is the plain run.

    >>> pool = sl.load("digits").split(labels=10)
    >>> method = sl.Supervised(sl.net("tiny_4", classes=10, style=pool.style))
    >>> whole, head = sl.LayerwiseReinit(rounds=1).around(method, pool, seed=0), method.net.head.weight.detach().clone()
    >>> first = next(method.net.backbone.parameters())
    >>> length = first.norm().item()
    >>> first.data *= 2
    >>> for step in range(whole.generations):
    ...     whole.after_step(sl.At(step, whole.generations))
    >>> round(first.norm().item() / length, 3), torch.equal(method.net.head.weight, head)  # kept; drawn anew
    (1.0, False)
    """

    name = "layerwise_reinit"
    paper = "The Impact of Reinitialization on Generalization in Convolutional Neural Networks"
    arxiv = "2109.00267"
    excludes: ClassVar[Mapping[str, str]] = {
        **Renewal.excludes, "swa": "an average needs the same fixed normalizations in all its nets"}

    def __init__(self, rounds: int = 1) -> None:
        super().__init__(1)
        if rounds < 0:
            raise UsageError(f"layerwise_reinit: rounds={rounds}; expected 0 or more")
        self.rounds = rounds

    @property
    def overwrites(self) -> str:
        return "draws weights anew in mid-run, block by block" if self.rounds else ""

    def check(self, method: Method, pool: Pool) -> None:
        super().check(method, pool)
        if not blocks_of(method.net):
            raise UsageError(f"layerwise_reinit goes block by block, and {method.net.name} has none")
        backbone, known = method.net.backbone, {net.backbone for net in learner_and_averages(method)}
        for part in method.modules():
            if type(part) is type(backbone) and part not in known and torch.equal(next(part.parameters()),
                                                                                  next(backbone.parameters())):
                raise UsageError(f"layerwise_reinit: {method.name} keeps a copy of the net, which would not get its "
                                 "fixed normalizations")

    def begin(self, pool: Pool, seed: int) -> None:
        if self.rounds and not self.net.name.endswith(NORMED):
            for net in learner_and_averages(self.base):
                normed(net, pool.style)
        self.generations = self.rounds * len(blocks_of(self.net)) + 1
        self._pool = pool
        super().begin(pool, seed)

    def renew(self, generation: int) -> Sequence[nn.Parameter]:
        kept = (generation - 1) // self.rounds + 1
        anew = set(after_block(self.net, kept))
        learning = {name: weight for name, weight in self.net.named_parameters() if weight.requires_grad}
        for name, weight in learning.items():
            weight.copy_(self.fresh(name, generation) if name in anew else
                         to_norm_of(weight, self.first.net.get_parameter(name)))
        images = as_seen(self, self._pool, IMAGES, self._seed, self.name)
        fix(self.net, blocks_of(self.net)[kept - 1], images)
        renew_statistics(self.net, [images])
        for net in learner_and_averages(self.base):
            net.load_state_dict(self.net.state_dict())
        return list(learning.values())


def to_norm_of(now: Tensor, first: Tensor) -> Tensor:
    """`now` at the norm of `first`; zeros if that is at most 1e-6, or if `now` is all zeros."""
    norm, wanted = now.norm(), first.norm()
    return torch.where((wanted > 1e-6) & (norm > 0), now * (wanted / norm), 0.0)


@torch.no_grad()
def fix(net: Net, block: str, images: Tensor) -> None:
    """Sets the fixed normalization of the block's output to these images' moments, in train mode."""
    part, training = net.get_submodule(block), net.training
    mean, sd = part.get_buffer("fixed_mean"), part.get_buffer("fixed_sd")
    mean.zero_()
    sd.fill_(1)
    found: list[tuple[Tensor, Tensor]] = []
    handle = part.register_forward_hook(lambda _, __, output: found.append(moments(output)))
    with frozen_statistics(net), torch.compiler.set_stance("force_eager"):  # compiled code knows of no new hook
        net.train()(images)
    handle.remove()
    net.train(training)
    mean.copy_(found[0][0])
    sd.copy_(torch.where(found[0][1] > 1e-6, found[0][1], 1))  # a rectifier may be closed for all of these images
