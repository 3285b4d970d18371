"""Optimisers as small specs, parameter groups, and update rules."""

from ssl_lab.optim.lars import LARS
from ssl_lab.optim.rates import with_rates
from ssl_lab.optim.spec import SGD, AdamW, Optimizer, parameter_groups
from ssl_lab.optim.update import Closure, Update, plain

__all__ = ["LARS", "SGD", "AdamW", "Closure", "Optimizer", "Update", "parameter_groups", "plain", "with_rates"]
