"""When Adam and its kin are sure to converge (Generic Adam, Chen et al. 2022, arXiv 2101.05471)."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable

from ssl_lab.optim.spec import Optimizer

FALLS = "beta2 falls, or is not below 1"
RISES = "rate / sqrt(1 - beta2) rises"
STAYS = "sum of rate sqrt(1 - beta2) does not vanish"
MOMENTS, WARM_UP = 1000, 100  # at which a schedule is looked at, and of them those for warming up


def adam_condition(rate: Callable[[int], float], theta: Callable[[int], float], steps: int) -> str | None:
    """What of the sufficient condition for Adam's convergence does not hold over so many steps, None if all does.

    The condition (Chen et al. 2022, arXiv 2101.05471, Generic Adam): theta does not fall and stays below 1; rate /
    sqrt(1 - theta) is, up to constants, not increasing (here: at no time 10 times what it was before); and sum_t rate_t
    sqrt(1 - theta_t) / (T rate_T) goes to 0 (here: it is smaller for T than for T / 10). Fixed values, which everybody
    uses, fail the last: it is sufficient, not necessary.

    Args:
        rate, theta: learning rate and beta2 of step t = 1 ... T.
        steps: T.

    >>> sl.optim.adam_condition(lambda t: t**-0.5, lambda t: 1 - 0.5 / t, steps=1000) is None
    True
    >>> sl.optim.adam_condition(lambda t: 0.001, lambda t: 0.999, steps=1000)
    'sum of rate sqrt(1 - beta2) does not vanish'
    """
    rates, thetas = ([part(t) for t in range(1, steps + 1)] for part in (rate, theta))
    if any(b < a for a, b in itertools.pairwise(thetas)) or not all(0 <= value < 1 for value in thetas):
        return FALLS
    least = math.inf
    for value in (a / math.sqrt(1 - b) for a, b in zip(rates, thetas, strict=True)):
        if value > 10 * least:
            return RISES
        least = min(least, value)

    def rest(last: int) -> float:
        total = sum(a * math.sqrt(1 - b) for a, b in zip(rates[:last], thetas[:last], strict=True))
        return total / (last * rates[last - 1]) if rates[last - 1] else math.inf

    return None if rest(steps) < 0.9 * rest(max(1, steps // 10)) else STAYS


def adam_remark(optimizer: Optimizer) -> str | None:
    """What to know of a run with this optimizer, if it has Adam's betas and breaks the condition (see
    `adam_condition`); else None.

    The first tenth of the run, in which rates warm up, does not count. That the sum does not vanish is left unsaid: it
    is so for every fixed beta2, which all of ours have.

    >>> sl.optim.adam_remark(sl.AdamW(lr=sl.schedule.cosine(0.001))) is None
    True
    """
    optimizer = getattr(optimizer, "base", optimizer)  # of `with_rates`
    betas = getattr(optimizer, "betas", None)
    if betas is None:
        return None
    lr = optimizer.lr
    found = adam_condition(lambda t: lr((WARM_UP + t - 1) / MOMENTS) if callable(lr) else lr, lambda t: betas[1],
                           MOMENTS - WARM_UP)
    if found in (None, STAYS):
        return None
    what = f"the learning rate {lr} rises tenfold in mid-run" if found == RISES else f"betas={betas}: {found}"
    return (f"{what}, where Adam is not sure to converge (Generic Adam, arXiv 2101.05471); a rate that falls after its "
            "warm-up, and a beta2 below 1, meet that condition")
