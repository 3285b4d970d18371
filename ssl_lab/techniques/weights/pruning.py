"""What techniques share that take channels out of a net while it is trained: see `Taylor` and `Slimming`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import ClassVar

import torch
from torch import Tensor, nn

from ssl_lab.batch import At
from ssl_lab.data import Pool
from ssl_lab.errors import UsageError
from ssl_lab.methods import Method
from ssl_lab.methods.base import Edit
from ssl_lab.nets import Net
from ssl_lab.techniques.base import WeightsTechnique
from ssl_lab.techniques.weights.channels import Group, check_slim, groups_of, silence, slim
from ssl_lab.techniques.weights.invariant import nets_of


class Pruning(WeightsTechnique):
    """Takes out channels, those of least importance in all layers together, in `rounds` equal parts until the fraction
    `until` of training; then what is left trains on. A layer keeps one channel at least.

    Channels that residual connections add up, and all that read and write them, go together (the dependency graph is
    torch-pruning's). While the run goes on they are held at zero; what is evaluated, reported and exported is the net
    without them, which computes the same: {net}+slim.
    """

    excludes: ClassVar[Mapping[str, str]] = dict.fromkeys(
        ("reinit", "shrink_perturb", "layerwise_reinit", "gradmax", "lookahead", "sphere", "swa", "weight_norm",
         "rigl", "lottery", "scl", "weight_rescaling", "deep_supervision", "relay"),
        "one takes channels out, and the other counts on their weights or features")
    alive: Tensor
    importance: Tensor

    def __init__(self, ratio: float, rounds: int, until: float) -> None:
        super().__init__()
        if not 0 <= ratio < 1 or rounds < 1 or not 0 < until <= 1:
            raise UsageError(f"{self.name}: ratio={ratio}, rounds={rounds}, until={until}; expected a ratio from 0 to "
                             "below 1, 1 round or more, and until above 0 to 1")
        self.ratio, self.rounds, self.until = ratio, rounds, until
        self._edits: Sequence[Edit] = ()

    def check(self, method: Method, pool: Pool) -> None:
        if any(nn.utils.parametrize.is_parametrized(part) for part in method.net.modules()):
            raise UsageError(f"{self.name} takes channels out, and the weights of {method.net.name} are made of other "
                             "parameters; leave one of them out")
        check_slim(method.net, pool.style, self.name)

    def begin(self, pool: Pool, seed: int) -> None:
        self._style, self._groups = pool.style, groups_of(self.net, pool.style)
        total = sum(group.size for group in self._groups)
        device = self.net.mean.device
        self.register_buffer("alive", torch.ones(total, dtype=torch.bool, device=device))
        self.register_buffer("importance", torch.zeros(total, device=device))

    def by_group(self, values: Tensor) -> list[Tensor]:
        """A number of each channel, as parts of one for each group."""
        return list(torch.split(values, [group.size for group in self._groups]))

    def measured(self, at: At) -> Tensor:
        """The importance of each channel, float of the shape of `alive`; called after every step."""
        raise NotImplementedError

    @torch.no_grad()
    def after_step(self, at: At) -> None:
        super().after_step(at)
        found, self._edits = self.measured(at), ()
        done = self._rounds_done(at)
        if done:
            count = int(self.ratio * done / self.rounds * len(self.alive))
            self.alive.copy_(survivors(found, self.alive, [group.size for group in self._groups], count))
            self.importance.zero_()
            self._edits = [each for group in self._groups for member in group.members
                           for each in self.net.get_submodule(member.name).parameters(recurse=False)]
        for net in nets_of(self):
            silence(net, self._groups, self.by_group(self.alive))

    def _rounds_done(self, at: At) -> int:
        """How many rounds are over just after this step; 0 if none ends here."""
        ends = [max(1, int(self.until * at.total * done / self.rounds)) for done in range(1, self.rounds + 1)]
        return max((done for done, end in enumerate(ends, 1) if end == at.step + 1), default=0) if self.ratio else 0

    def edited(self) -> Sequence[Edit]:
        return [*super().edited(), *dict.fromkeys(self._edits)]

    def predictor(self) -> Net:
        net, alive = super().predictor(), self.by_group(self.alive.cpu())
        if self.alive.all():
            return net
        return slim(net, self._style, self._groups, alive).to(net.mean.device)


def survivors(importance: Tensor, alive: Tensor, sizes: Sequence[int], count: int) -> Tensor:
    """bool [n]: which channels are left when `count` of all are gone: of those alive, the least important go, but none
    that is the last of its group. importance: float [n], of groups of these sizes."""
    score = torch.where(alive, importance.double(), -torch.inf)
    start = 0
    for size in sizes:
        score[start + int(score[start:start + size].argmax())] = torch.inf
        start += size
    order = score.sort(stable=True).indices
    left = alive.clone()
    left[order[:min(count, len(alive) - len(sizes))]] = False
    return left


def contributions(net: Net, groups: Sequence[Group], value: Mapping[str, Tensor]) -> Tensor:
    """float [n]: for each channel of each group, what `value` has for its gates, summed over them. value: for each
    gate's module name float [rows]."""
    parts = []
    for group in groups:
        total = torch.zeros(group.size, device=net.mean.device)
        for member in group.gates:
            rows = value[member.name].float()
            total.index_add_(0, member.roots.to(total.device), rows[member.rows.to(total.device)])
        parts.append(total)
    return torch.cat(parts)
