"""Optimizers by name, as texts have them: `radam(lr=0.002)`, `sgd(momentum=0.8)`, `mypackage.module:Mine`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

from ssl_lab import texts
from ssl_lab.errors import unknown
from ssl_lab.notes import once
from ssl_lab.optim.adaptive import Muon, Padam, RAdam
from ssl_lab.optim.inputs import INSGD, NSGD
from ssl_lab.optim.koala import KOALA, KOALAM
from ssl_lab.optim.lars import LARS
from ssl_lab.optim.mini_block_fisher import MiniBlockFisher
from ssl_lab.optim.normed import MuonNormed
from ssl_lab.optim.spec import SGD, AdamW, Optimizer
from ssl_lab.schedule import MAKERS, Scalar, Schedule

OPTIMIZERS: dict[str, type[Optimizer]] = {
    "sgd": SGD, "adamw": AdamW, "radam": RAdam, "padam": Padam, "muon": Muon, "muon_normed": MuonNormed,
    "lars": LARS, "nsgd": NSGD, "insgd": INSGD, "koala": KOALA, "koala_m": KOALAM, "mini_block_fisher": MiniBlockFisher,
}


def optimizer(text: str | None, usual: Optimizer) -> Optimizer:
    """The optimizer that a text describes; `usual` where there is none.

    Any scalar may be a schedule. Where the text gives no learning rate, its peak is the optimizer's own default, and
    its course that of `usual`, which a line on stderr says. UsageError for unknown names and arguments.

    >>> sl.optimizer("radam(lr=cosine(0.002), weight_decay=0)", usual=sl.SGD())
    RAdam(lr=cosine(0.002, 0.0, cycles=0.5), weight_decay=0, betas=(0.9, 0.999))
    """
    if text is None:
        return usual
    call = texts.read(text, "optimizer", "radam(lr=0.002)")
    made: Any = texts.make(call, _maker)
    if not isinstance(made, Optimizer):
        raise unknown("optimizer", text, OPTIMIZERS)
    if call.args or "lr" in call.named:
        return made
    peak = made.lr
    once(f"note: the learning rate of {call.name} is {peak} at its peak, its own default, in the course that this "
         f"recipe has; {call.name}(lr=...) gives another")
    return made if callable(peak) else replace(made, lr=in_the_course_of(usual.lr, peak))


def in_the_course_of(other: Scalar, peak: float) -> Scalar:
    """A schedule like another one, whose largest value is `peak`."""
    if not callable(other):
        return peak
    most = max(other(step / 1000) for step in range(1000))
    return Schedule(f"{other!r} with a peak of {peak}", lambda t: peak * other(t) / most)


def _maker(name: str) -> Callable[..., Optimizer | Schedule]:
    if ":" in name:
        return texts.imported(name, Optimizer, "optimizer")
    if name in MAKERS:  # of a schedule, among the arguments
        return MAKERS[name]
    if name not in OPTIMIZERS:
        raise unknown("optimizer", name, OPTIMIZERS, "See `ssl-lab list optimizers`; your own is package.module:Class.")
    return OPTIMIZERS[name]

