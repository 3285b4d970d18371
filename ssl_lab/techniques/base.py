"""What a technique is: it changes how any method's run trains. Five kinds, by where it acts."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import ClassVar, Literal, Self

import torch
from torch import nn

from ssl_lab.batch import At, Batch, Loss
from ssl_lab.data import Pool
from ssl_lab.methods import Method
from ssl_lab.methods.base import Edit, Forward, RowLosses
from ssl_lab.nets import Ema, Net
from ssl_lab.optim import Closure, Optimizer

Kind = Literal["net", "term", "step", "weights", "data"]
Serves = Literal["accuracy", "size", "privacy", "robustness", "insight"]


class Technique:
    """Base of the five kinds. The arguments of a technique's `__init__` are kept as attributes of the same names.

    overwrites: what it does to weights that a net has learned before, in words that follow its name; "" if they stay. A
    run of such a net says so.

    Attributes:
        serves: what it is meant to better, or to show.
        excludes: techniques that it may not be combined with, by name, and why.
        shards: whether it works where each rank holds a part of every weight.
        fresh_only: it is refused instead.
        one_pass: whether a step has to be the plain one, which passes its batch once.

    >>> sl.SAM(rho=0.1).kind, sl.SAM(rho=0.1).text
    ('step', 'sam(rho=0.1)')
    >>> sl.techniques.technique("sam(rho=0.1)").rho
    0.1
    """

    kind: ClassVar[Kind]
    name: ClassVar[str]
    paper: ClassVar[str]
    arxiv: ClassVar[str]
    serves: ClassVar[Serves] = "accuracy"
    excludes: ClassVar[Mapping[str, str]] = {}
    shards: ClassVar[bool] = False
    fresh_only: ClassVar[bool] = False
    one_pass: ClassVar[bool] = False

    @property
    def overwrites(self) -> str:
        return ""

    @property
    def text(self) -> str:
        """The text that describes it, with all arguments that are not the defaults: sam(rho=0.1)."""
        said, own = [], type(self)
        name = self.name if own.__module__.startswith("ssl_lab.") else f"{own.__module__}:{own.__qualname__}"
        for word, parameter in inspect.signature(type(self)).parameters.items():
            value = getattr(self, word, parameter.default)
            if value is not parameter.default and value != parameter.default:
                said.append(f"{word}={value!r}")
        return f"{name}({', '.join(said)})" if said else name

    def check(self, method: Method, pool: Pool) -> None:
        """UsageError where it cannot act on this method or this pool."""

    def check_optimizer(self, optimizer: Optimizer) -> None:
        """UsageError where it cannot act beside this optimizer."""


class NetTechnique(Technique):
    """Before the method is built: initializes, wraps or reparametrizes the net. What it gives loads and saves the
    weights of the plain net.

    >>> class Halved(sl.NetTechnique):
    ...     name, paper, arxiv = "halved", "The head begins with half of its weights", ""
    ...     def __call__(self, net, pool, seed):
    ...         net.head.weight.data /= 2
    ...         return net
    >>> pool = sl.load("digits")
    >>> sl.prepared(sl.net("tiny_4", style=pool.style), [Halved()], pool).prepared
    ('example:Halved',)
    """

    kind = "net"

    def __call__(self, net: Net, pool: Pool, seed: int) -> Net:
        """The net to train; `net` may be changed in place. Randomness from the seed alone."""
        raise NotImplementedError

    def check_net(self, net: Net, pool: Pool) -> None:
        """UsageError where it cannot act on this net; `net` stays as it is. It is tried on a copy, unless a technique
        knows better."""
        self(copy.deepcopy(net), pool, 0)


class DataTechnique(Technique):
    """Which rows are drawn, with which labels. The run's split stays the pool's own.

    >>> class First(sl.DataTechnique):
    ...     name, paper, arxiv = "first", "The first labels alone", ""
    ...     def __call__(self, pool, seed):
    ...         return pool.split(labeled=pool.labeled[:5])
    >>> len(First()(sl.load("digits").split(labels=10), seed=0).labeled)
    5
    """

    kind = "data"
    shards = True

    def __call__(self, pool: Pool, seed: int) -> Pool:
        """The pool that batches are drawn from. Randomness from the seed alone."""
        raise NotImplementedError


class StepTechnique(Technique, nn.Module):
    """An update rule (see `optim.Update`) that may call the closure again; what it keeps from step to step are buffers
    and parameters, so that it is saved. Randomness from (seed, purpose, step): `at.draw`, or `generator(at.seed, ...)`.

    Attributes:
        keeps_copies: whether these are copies of the weights, which a technique that writes into weights would not
            reach.

    >>> class Twice(sl.StepTechnique):
    ...     name, paper, arxiv = "twice", "Two steps on the same views", ""
    ...     def forward(self, closure, optimizer, at):
    ...         sl.optim.plain(closure, optimizer, at)
    ...         return sl.optim.plain(closure, optimizer, at)
    >>> Twice().kind
    'step'
    """

    kind = "step"
    keeps_copies: ClassVar[bool] = False

    def __init__(self) -> None:
        nn.Module.__init__(self)

    def begin(self, method: Method, seed: int) -> None:
        """Before the first step, and before the optimizer is built over the parameters of `method` and its own."""

    def forward(self, closure: Closure, optimizer: torch.optim.Optimizer, at: At) -> Loss:
        """One step: calls the closure, steps the optimizer, returns the loss to report."""
        raise NotImplementedError


class Around(Method):
    """A method around a method, `base`, that does as it does. Terms and weights techniques override what they change;
    state is kept in buffers, parameters and modules, so that it is saved. DDP wraps all of it.

    >>> pool = sl.load("digits").split(labels=10)
    >>> method = sl.FixMatch(sl.net("tiny_4", classes=10, style=pool.style))
    >>> around = sl.techniques.Around().around(method, pool, seed=0)
    >>> around.views is method.views, around.predictor() is method.predictor()
    (True, True)
    """

    base: Method

    def __init__(self) -> None:
        nn.Module.__init__(self)

    def around(self, base: Method, pool: Pool, seed: int) -> Self:
        """This, around `base`, which trains on `pool`."""
        self.base = base
        self.views, self.classifies = base.views, base.classifies
        self.begin(pool, seed)
        return self

    def begin(self, pool: Pool, seed: int) -> None:
        """Before the first step: makes the state that depends on `self.base` or the pool."""

    @property
    def net(self) -> Net:  # type: ignore[override]
        return self.base.net

    @property
    def ema(self) -> Ema[Net]:  # type: ignore[override]
        return self.base.ema

    def forward(self, batch: Batch, at: At) -> Loss:
        loss: Loss = self.base(batch, at)
        return loss

    def after_step(self, at: At) -> None:
        self.base.after_step(at)

    def edited(self) -> Sequence[Edit]:
        return self.base.edited()

    def predictor(self) -> Net:
        return self.base.predictor()

    def account(self, steps: int) -> dict[str, float | str | None]:
        return self.base.account(steps)

    def set_forward(self, policy: Forward) -> None:
        self.base.set_forward(policy)

    @contextmanager
    def labeled_by(self, wrap: Callable[[RowLosses], RowLosses]) -> Iterator[None]:
        with self.base.labeled_by(wrap):
            yield


class TermTechnique(Technique, Around):
    """Adds terms to the loss of the method, or replaces some: overrides `forward`.

    >>> class Small(sl.TermTechnique):
    ...     name, paper, arxiv = "small", "A head of small weights", ""
    ...     def forward(self, batch, at):
    ...         loss = self.base(batch, at)
    ...         return sl.Loss(loss.terms | {"small": self.net.head.weight.square().sum()}, loss.logs)
    >>> Small().kind
    'term'
    """

    kind = "term"
    first: ClassVar[bool] = False  # whether it acts before other terms, wherever it is given: the method sees its batch


class WeightsTechnique(Technique, Around):
    """Averages weights, or edits them while they are trained: overrides `after_step`, `edited` and `predictor`.

    What it writes into parameters that learn it names in `edited`: the optimizer then forgets their momenta.

    Attributes:
        writes: whether it ever does that, or only looks on.

    >>> class NoBias(sl.WeightsTechnique):
    ...     name, paper, arxiv = "no_bias", "The head's bias stays 0", ""
    ...     def after_step(self, at):
    ...         self.net.head.bias.data.zero_()
    ...         self.base.after_step(at)
    >>> NoBias().kind
    'weights'
    """

    kind = "weights"
    writes: ClassVar[bool] = True


def learner_and_averages(method: Method) -> list[Net]:
    """The net that learns, and all its averages: what edits a net edits these alike."""
    averages = [part.net for part in method.modules() if isinstance(part, Ema)]
    return [method.net, *(net for net in averages if isinstance(net, Net) and net.name == method.net.name)]
