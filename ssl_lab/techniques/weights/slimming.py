"""Network slimming (Liu et al. 2017, arXiv 1708.06519): BatchNorm's scales are made sparse, and small ones go."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ssl_lab.batch import At, Batch, Loss
from ssl_lab.data import Pool
from ssl_lab.errors import UsageError
from ssl_lab.methods import Method
from ssl_lab.schedule import Scalar
from ssl_lab.techniques.weights.pruning import Pruning, contributions


class Slimming(Pruning):
    """L + weight * sum |gamma| until the fraction `until` of training; then the channels of smallest |gamma| go

    over all BatchNorms together; what is left trains on without the term. Of channels that residual connections add up,
    the mean of their |gamma| counts.

    The equation is from memory (and a reading of a PyTorch copy's masks); no code of the authors was read.

    Args:
        ratio: of all channels that go.
        weight: lambda, 1e-4 in the paper (1e-5 for VGG-A), for runs of 160 epochs; a short run needs more.
        rounds, until: see `Pruning`; the paper's multi-pass scheme repeats all of it.

    >>> pool = sl.load("digits").split(labels=10)
    >>> method = sl.Supervised(sl.net("tiny_4", classes=10, style=pool.style))
    >>> whole = sl.Slimming(ratio=0.5, weight=1e-3).around(method, pool, seed=0)
    >>> batch = sl.Feed(pool, method.views, 8, 0, seed=0)(sl.At(0, 100))
    >>> scales = [part.num_features for part in method.net.modules() if isinstance(part, torch.nn.BatchNorm2d)]
    >>> round(whole(batch, sl.At(0, 100)).terms["slimming"].item() / 1e-3), sum(scales)  # each scale begins as 1
    (84, 84)
    """

    name = "slimming"
    paper = "Learning Efficient Convolutional Networks through Network Slimming"
    arxiv = "1708.06519"
    serves = "size"

    def __init__(self, ratio: float = 0.5, weight: Scalar = 1e-4, rounds: int = 1, until: float = 0.5) -> None:
        super().__init__(ratio, rounds, until)
        self.weight = weight

    def check(self, method: Method, pool: Pool) -> None:
        super().check(method, pool)
        if not scales(method.net):
            raise UsageError(f"slimming goes by the scales of BatchNorm, and {method.net.name} has none")

    def begin(self, pool: Pool, seed: int) -> None:
        super().begin(pool, seed)
        with_scales = scales(self.net)
        self._gates = [member.name for group in self._groups for member in group.gates if member.name in with_scales]

    def forward(self, batch: Batch, at: At) -> Loss:
        loss = super().forward(batch, at)
        if at.frac < self.until:
            total = torch.stack([gamma.abs().sum() for gamma in scales(self.net).values()]).sum()
            loss.terms["slimming"] = at.value(self.weight) * total
        else:
            loss.terms["slimming"] = torch.zeros_like(loss.total)
        return loss

    def measured(self, at: At) -> Tensor:
        found = scales(self.net)
        names = {member.name for group in self._groups for member in group.gates}
        sizes = {name: found[name].detach().abs() if name in found else
                 self.net.get_parameter(f"{name}.weight").detach().flatten(1).norm(dim=1) for name in names}
        counts = contributions(self.net, self._groups, {name: torch.ones_like(size) for name, size in sizes.items()})
        return contributions(self.net, self._groups, sizes) / counts.clamp(min=1)


def scales(net: nn.Module) -> dict[str, nn.Parameter]:
    """gamma of each BatchNorm that has one, by the module's name."""
    return {name: part.weight for name, part in net.named_modules()
            if isinstance(part, nn.modules.batchnorm._BatchNorm) and isinstance(part.weight, nn.Parameter)}
