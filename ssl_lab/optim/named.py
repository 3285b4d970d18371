"""Optimizers by name, as texts have them: `radam(lr=0.002)`, `sgd(momentum=0.8)`, `mypackage.module:Mine`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

from ssl_lab import texts
from ssl_lab.errors import unknown
from ssl_lab.notes import once
from ssl_lab.optim.adaptive import Padam, RAdam
from ssl_lab.optim.inputs import INSGD, NSGD
from ssl_lab.optim.koala import KOALA, KOALAM
from ssl_lab.optim.lars import LARS
from ssl_lab.optim.mini_block_fisher import MiniBlockFisher
from ssl_lab.optim.muon import Muon, MuonNormed
from ssl_lab.optim.spec import SGD, AdamW, Optimizer
from ssl_lab.schedule import MAKERS, Scalar, Schedule, extremes

OPTIMIZERS: dict[str, type[Optimizer]] = {
    "sgd": SGD, "adamw": AdamW, "radam": RAdam, "padam": Padam, "muon": Muon, "muon_normed": MuonNormed,
    "lars": LARS, "nsgd": NSGD, "insgd": INSGD, "koala": KOALA, "koala_m": KOALAM, "mini_block_fisher": MiniBlockFisher,
}

EXAMPLE = "radam(lr=0.002)"


def optimizer(text: str | None, usual: Optimizer) -> Optimizer:
    """The optimizer that a text describes; `usual` where there is none.

    Any scalar may be a schedule. Where the text gives no learning rate, its course is that of `usual`, and its peak the
    optimizer's own default; where `usual` is SGD and the other one of ours, as many times that as the peak of `usual`
    is SGD's default. A line on stderr says it.

    So defaults have one meaning: what SGD's 0.03 is to a task. Of rates three times each other, tried by supervised
    training on 40 labels of MNIST under strong views (tiny_8, 300 steps, seeds 100 and 101), they are those by which
    the training loss came as far, 0.67 and 0.71 at the end: it was 0.55 to 0.82, and 0.4 by `muon_normed` and
    `mini_block_fisher`, which go further. Validation accuracy was 69 to 78% (lars 64), by SGD 70; by the papers' or
    usual rates of `adamw`, `padam`, `muon` and `nsgd`, for longer runs, 38 to 56 (seed 100). Checked once by FixMatch:
    tests/benchmarks/README.md.

    Args:
        text: a name with arguments, as in adamw(lr=0.001, weight_decay=0.05), or None.
        usual: the optimizer of the preset.

    Raises:
        UsageError: for unknown names and arguments.

    >>> sl.optimizer("radam(lr=cosine(0.002), weight_decay=0)", usual=sl.SGD())
    RAdam(lr=cosine(0.002, 0.0, cycles=0.5), weight_decay=0, betas=(0.9, 0.999))
    """
    if text is None:
        return usual
    made, call = described(text), texts.read(text, "optimizer", EXAMPLE)
    if call.args or "lr" in call.named or callable(made.lr):
        return made
    alike = isinstance(usual, SGD) and type(made) in OPTIMIZERS.values()
    times = extremes(usual.lr)[1] / extremes(SGD().lr)[1] if alike else 1.0
    peak = float(f"{made.lr * times:.3g}")
    why = "its own default" if times == 1 else f"{times:.3g} times its default, as this recipe's is SGD's"
    once(f"note: the learning rate of {call.name} is {peak:g} at its peak, {why}, in the course that this recipe has; "
         f"{call.name}(lr=...) gives another")
    return replace(made, lr=in_the_course_of(usual.lr, peak))


def described(text: str) -> Optimizer:
    """The optimizer that a text describes, with its own defaults.

    Raises:
        UsageError: for unknown names and arguments.

    >>> sl.optim.described("nsgd(momentum=0.8)")
    NSGD(lr=0.3, weight_decay=0.0001, momentum=0.8)
    """
    made: Any = texts.make(texts.read(text, "optimizer", EXAMPLE), _maker)
    if not isinstance(made, Optimizer):
        raise unknown("optimizer", text, OPTIMIZERS)
    return made


def in_the_course_of(other: Scalar, peak: float) -> Scalar:
    """A schedule like another one, whose largest value is `peak`."""
    most = extremes(other)[1]
    if not callable(other) or not most:
        return peak
    return Schedule(f"{other!r} with a peak of {peak}", lambda t: peak * other(t) / most)


def _maker(name: str) -> Callable[..., Optimizer | Schedule]:
    if ":" in name:
        return texts.imported(name, Optimizer, "optimizer")
    if name in MAKERS:  # of a schedule, among the arguments
        return MAKERS[name]
    if name not in OPTIMIZERS:
        raise unknown("optimizer", name, OPTIMIZERS, "See `ssl-lab list optimizers`; your own is package.module:Class.")
    return OPTIMIZERS[name]

