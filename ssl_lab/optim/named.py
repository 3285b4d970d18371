"""Optimizers by name, as texts have them: `radam(lr=0.002)`, `sgd(momentum=0.8)`, `mypackage.module:Mine`."""

from __future__ import annotations

import itertools
import math
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
from ssl_lab.optim.spec import SGD, AdamW, Optimizer
from ssl_lab.schedule import MAKERS, Scalar, Schedule

OPTIMIZERS: dict[str, type[Optimizer]] = {
    "sgd": SGD, "adamw": AdamW, "radam": RAdam, "padam": Padam, "muon": Muon, "lars": LARS, "nsgd": NSGD,
    "insgd": INSGD, "koala": KOALA, "koala_m": KOALAM, "mini_block_fisher": MiniBlockFisher,
}


def optimizer(text: str | None, usual: Optimizer) -> Optimizer:
    """The optimizer that a text describes; `usual` where there is none.

    Any scalar may be a schedule. Where the text gives no learning rate, its peak is the optimizer's own default, and
    its course that of `usual`, which a line on stderr says. UsageError for unknown names and arguments.
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


def adam_condition(rate: Callable[[int], float], theta: Callable[[int], float], steps: int) -> str | None:
    """What of the sufficient condition for Adam's convergence does not hold over so many steps, None if all does.

    rate, theta: learning rate and beta2 of step t = 1 ... T. The condition (Chen et al. 2022, arXiv 2101.05471, Generic
    Adam): theta does not fall and stays below 1; rate / sqrt(1 - theta) is, up to constants, not increasing (here: at
    no time 10 times what it was before); and sum_t rate_t sqrt(1 - theta_t) / (T rate_T) goes to 0 (here: it is smaller
    for T than for T / 10). Fixed values, which everybody uses, fail the last: it is sufficient, not necessary.
    """
    rates, thetas = ([part(t) for t in range(1, steps + 1)] for part in (rate, theta))
    if any(b < a for a, b in itertools.pairwise(thetas)) or not all(0 <= value < 1 for value in thetas):
        return "beta2 falls, or is not below 1"
    least = math.inf
    for value in (a / math.sqrt(1 - b) for a, b in zip(rates, thetas, strict=True)):
        if value > 10 * least:
            return "rate / sqrt(1 - beta2) rises"
        least = min(least, value)

    def rest(last: int) -> float:
        total = sum(a * math.sqrt(1 - b) for a, b in zip(rates[:last], thetas[:last], strict=True))
        return total / (last * rates[last - 1])

    return None if rest(steps) < 0.9 * rest(max(1, steps // 10)) else "sum of rate sqrt(1 - beta2) does not vanish"


def _maker(name: str) -> Callable[..., Optimizer | Schedule]:
    if ":" in name:
        return texts.imported(name, Optimizer, "optimizer")
    if name in MAKERS:  # of a schedule, among the arguments
        return MAKERS[name]
    if name not in OPTIMIZERS:
        raise unknown("optimizer", name, OPTIMIZERS, "See `ssl-lab list optimizers`; your own is package.module:Class.")
    return OPTIMIZERS[name]

