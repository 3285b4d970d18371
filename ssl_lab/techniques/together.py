"""Several techniques as a run has them: read, in order, and checked against each other."""

from __future__ import annotations

import copy
import itertools
from collections.abc import Sequence
from typing import TypeVar, cast

import torch
from torch import nn

from ssl_lab.data import Pool
from ssl_lab.errors import UsageError
from ssl_lab.methods import Method
from ssl_lab.nets import Net
from ssl_lab.notes import once
from ssl_lab.optim import Update, plain
from ssl_lab.seeds import seeded
from ssl_lab.techniques.base import (
    Around,
    DataTechnique,
    NetTechnique,
    StepTechnique,
    Technique,
    TermTechnique,
    WeightsTechnique,
)

T = TypeVar("T", bound=Technique)
S = TypeVar("S")


class Techniques:
    """The techniques of a run. The picture:

        pool -> data techniques -> net -> net techniques -> method -> terms -> weights -> update rule

    Within a kind they act in the order in which they are given, but for terms that are `first`. UsageError where two
    exclude each other.

    Args:
        given: of any kinds.

    >>> pool = sl.load("digits").split(labels=10)
    >>> techniques = sl.techniques.together(["dropout(rate=0.2)", sl.SAM(rho=0.1), "swa"])
    >>> techniques.texts, [each.kind for each in techniques.given]
    (['dropout(rate=0.2)', 'sam(rho=0.1)', 'swa'], ['net', 'step', 'weights'])
    """

    def __init__(self, given: Sequence[Technique]) -> None:
        self.given = tuple(given)
        for each in self.given:
            if isinstance(each, nn.Module) and "_modules" not in vars(each):
                raise UsageError(f"{each.name}: its __init__ has to call super().__init__() first")
        for one, other in itertools.combinations(self.given, 2):
            if one.name == other.name:
                raise UsageError(f"{one.text} and {other.text} are the same technique; give one of them")
            if one.kind == other.kind == "step":
                raise UsageError(f"{one.text} and {other.text} are both rules for a whole step; give one of them")
            why = one.excludes.get(other.name) or other.excludes.get(one.name) or _apart(one, other)
            if why:
                raise UsageError(f"{one.text} and {other.text} exclude each other: {why}")

    @property
    def texts(self) -> list[str]:
        """What describes each."""
        return [each.text for each in self.given]

    def of(self, kind: type[T]) -> list[T]:
        """Those of this class."""
        return [each for each in self.given if isinstance(each, kind)]

    def net(self, net: Net, pool: Pool, seed: int) -> Net:
        """The net after the net techniques; it remembers them."""
        for each in self.of(NetTechnique):
            _beware(each, net)
            before = net.prepared
            with seeded(seed, each.name):
                net = _given(each, each(net, pool, seed), Net)
            net.prepared = (*before, each.text)
        return net

    def check_net(self, net: Net, pool: Pool) -> None:
        """UsageError where one of the net techniques cannot act on this net; `net` stays as it is."""
        for each in self.of(NetTechnique):
            _beware(each, net)
            each.check_net(net, pool)

    def pool(self, pool: Pool, seed: int) -> Pool:
        """The pool that batches are drawn from."""
        for each in self.of(DataTechnique):
            with seeded(seed, each.name):
                pool = _given(each, each(pool, seed), Pool)
        return pool

    def check(self, method: Method, pool: Pool, update: Update | None, sharded: bool) -> None:
        """UsageError where one of them cannot act on this method, this pool, beside this update rule or on sharded
        weights, and where a net technique was not applied."""
        if update is not None and (rules := self.of(StepTechnique)):
            raise UsageError(f"{rules[0].text} and update={update} are both rules for a whole step; give one of them")
        found = {text for part in method.modules() for text in getattr(part, "prepared", ())}
        for each in self.given:
            if sharded and not each.shards:
                raise UsageError(f"{each.text} needs whole weights, of which a sharded run holds parts; leave out "
                                 "--shard")
            if isinstance(each, NetTechnique) and each.text not in found:
                raise UsageError(f"{each.text} changes the net before a method is built around it: build the method "
                                 "around sl.prepared(net, techniques, pool, seed)")
            if each.one_pass and update is not None:
                raise UsageError(f"{each.text} needs the plain step, and update={update} is another")
            each.check(method, pool)
            if not isinstance(each, NetTechnique):
                _beware(each, method.net)

    def around(self, method: Method, pool: Pool, seed: int) -> Method:
        """The method with terms and weights techniques around it; itself, if there are none. The techniques stay as
        they are, for other runs."""
        terms = sorted(self.of(TermTechnique), key=lambda each: not each.first)
        layers: list[Around] = [*terms, *self.of(WeightsTechnique)]
        if self.of(StepTechnique):  # has a place for its state
            layers.append(Around())
        for each in layers:
            with seeded(seed, each.name if isinstance(each, Technique) else "around"):
                method = copy.deepcopy(each).around(method, pool, seed)
        return method

    def update(self, method: Method, device: torch.device, seed: int) -> Update:
        """The update rule for what `around` gave, which keeps its state, and which has been wrapped for ranks: they
        share no gradients of the rule's own parameters."""
        for each in self.of(StepTechnique):
            rule = copy.deepcopy(each)
            with seeded(seed, each.name):
                rule.begin(method, seed)
            method.add_module("update", rule.to(device))
            return cast(Update, rule)
        return plain


def _given(technique: Technique, made: object, kind: type[S]) -> S:
    """What a technique made. UsageError where that is something else."""
    if not isinstance(made, kind):
        raise UsageError(f"{technique.text} returns {type(made).__name__}; expected the {kind.__name__} to go on with")
    return made


def _apart(*both: Technique) -> str:
    """Why these two exclude each other by what they do, "" if they do not."""
    if (any(isinstance(each, StepTechnique) and each.keeps_copies for each in both)
            and any(isinstance(each, WeightsTechnique) and each.writes for each in both)):
        return "one keeps copies of the weights from step to step, and the other writes into weights"
    return ""


def _beware(technique: Technique, net: Net) -> None:
    """Says what becomes of weights that the net has learned before. UsageError where nothing would be left of them."""
    if net.origin and technique.overwrites:
        what = f"{technique.text} {technique.overwrites}, and {net.name} has learned its own ({net.origin})"
        if technique.fresh_only:
            raise UsageError(f"{what}; leave out one of the two")
        once(f"note: {what}; without it they stay")
