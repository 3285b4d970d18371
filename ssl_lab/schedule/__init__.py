"""Schedules: pure functions of the training fraction t in [0, 1], for any scalar hyper-parameter.

Learning rates, thresholds, loss weights and EMA decays are all a `Scalar`: a number, or a schedule.
A method reads one with `at.value(self.threshold)`.
"""

from ssl_lab.schedule.cycles import cyclical, exp_range, triangular, triangular2
from ssl_lab.schedule.shapes import (
    Scalar,
    Schedule,
    constant,
    cosine,
    cosine_7_16,
    drops,
    geometric,
    linear,
    ramp_up,
    switch,
    warm_up,
)
from ssl_lab.schedule.texts import MAKERS, course, extremes, parse, plain, scalar, times

__all__ = ["MAKERS", "Scalar", "Schedule", "constant", "cosine", "cosine_7_16", "course", "cyclical", "drops",
           "exp_range", "extremes", "geometric", "linear", "parse", "plain", "ramp_up", "scalar", "switch", "times",
           "triangular", "triangular2", "warm_up"]
