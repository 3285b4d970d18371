"""What techniques share that draw weights anew between generations of equal length."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import ClassVar

import torch
from torch import Tensor, nn

from ssl_lab.batch import At
from ssl_lab.data import Pool
from ssl_lab.errors import UsageError
from ssl_lab.methods import Method
from ssl_lab.methods.base import Edit
from ssl_lab.nets import Ema, Net
from ssl_lab.nets.normed import blocks_of
from ssl_lab.seeds import generator
from ssl_lab.techniques.base import WeightsTechnique


class Renewal(WeightsTechnique):
    """Edits the net's weights after every generation but the last.

    Fresh weights are the tensor's first ones in another order, drawn by the seed: so they have the distribution of any
    initializer with independent entries, of whatever net, after net techniques too; constants (BatchNorm's, biases of
    0) are the constants. Of a net that has learned before, they are what it learned in another order. The moving
    average starts again at what was edited, BatchNorm's running statistics from their first values, and the optimizer
    forgets momenta. A schedule of the learning rate goes on as it is: for one that starts again with each generation
    give a cyclical one.
    """

    excludes: ClassVar[Mapping[str, str]] = {
        "lookahead": "its slow weights would bring back those that were drawn anew"}

    def __init__(self, generations: int) -> None:
        super().__init__()
        if generations < 1:
            raise UsageError(f"{self.name}: generations={generations}; expected 1 or more")
        self.generations = generations
        self._edited: Sequence[nn.Parameter] = ()

    def check(self, method: Method, pool: Pool) -> None:
        if any(nn.utils.parametrize.is_parametrized(part) for part in method.net.modules()):
            raise UsageError(f"{self.name} draws weights anew, and those of {method.net.name} are made of other "
                             "parameters (weight_norm); leave one of them out")

    def begin(self, pool: Pool, seed: int) -> None:
        self.first = Ema(self.net, 1.0)  # that is never updated: the weights that training starts with
        self._seed = seed

    @torch.no_grad()
    def after_step(self, at: At) -> None:
        super().after_step(at)
        done = generations_done(at, self.generations)
        self._edited = self.renew(done) if done else ()

    def renew(self, generation: int) -> Sequence[nn.Parameter]:
        """Edits weights as generation number `generation`, from 1, begins; returns those edited. See `fresh`."""
        raise NotImplementedError

    def edited(self) -> Sequence[Edit]:
        return [*super().edited(), *self._edited]

    def fresh(self, name: str, generation: int) -> Tensor:
        """Fresh weights for the net's parameter of this name."""
        return shuffled(self.first.net.get_parameter(name).data, self._seed, self.name, generation, name)

    def settle(self, parameters: Iterable[str]) -> list[nn.Parameter]:
        """Resets the running statistics of the modules that have these parameters of the net, and sets the moving
        average of them to the net. Returns the parameters."""
        names = list(parameters)
        for name in dict.fromkeys(name.rpartition(".")[0] for name in names):
            ours, averages = self.net.get_submodule(name), self.ema.net.get_submodule(name)
            for key, buffer in ours._buffers.items():
                first = self.first.net.get_submodule(name)._buffers[key]
                if buffer is not None and first is not None:
                    buffer.copy_(first)
            for kind in ("_parameters", "_buffers"):
                for key, value in getattr(ours, kind).items():
                    if value is not None:
                        getattr(averages, kind)[key].data.copy_(value.data)
        return [self.net.get_parameter(name) for name in names]


def generations_done(at: At, generations: int) -> int:
    """How many of so many generations of equal length, up to a step, are over just after this one: 0 if none ends
    here, and after the last."""
    for done in range(1, generations):
        if at.step + 1 == done * at.total // generations:
            return done
    return 0


def shuffled(x: Tensor, *key: int | str) -> Tensor:
    """The entries of x in an order that the key draws."""
    order = torch.randperm(x.numel(), generator=generator(*key)).to(x.device)
    return x.flatten()[order].view_as(x)


def after_block(net: Net, count: int) -> list[str]:
    """The names of the parameters after the first `count` blocks, in order; the head's are the last ones."""
    names, found = [name for name, _ in net.named_parameters()], blocks_of(net)
    if count < len(found):
        return names[next(i for i, name in enumerate(names) if name.startswith(f"{found[count]}.")):]
    last = max((i for i, name in enumerate(names) if name.startswith(f"{found[-1]}.")), default=-1) if found else -1
    return names[last + 1:]
