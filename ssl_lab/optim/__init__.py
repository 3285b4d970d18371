"""Optimisers as small specs, parameter groups, and update rules.

SGD with Nesterov momentum is the default and AdamW beside it, second-order rules are by blocks and never whole, and
rates go with the batch (`scaled_rate`): what two surveys find most used and most reliable. "A survey of deep learning
optimizers - first and second order methods" (arXiv 2211.15596); of large batches "Large-Scale Deep Learning
Optimizations: A Comprehensive Survey" (arXiv 2111.00856). Read in their abstracts.
"""

from ssl_lab.optim.adaptive import Padam, RAdam
from ssl_lab.optim.generic_adam import adam_condition, adam_remark
from ssl_lab.optim.inputs import INSGD, NSGD
from ssl_lab.optim.koala import KOALA, KOALAM
from ssl_lab.optim.lars import LARS
from ssl_lab.optim.mini_block_fisher import MiniBlockFisher
from ssl_lab.optim.muon import Muon, MuonNormed
from ssl_lab.optim.named import OPTIMIZERS, described, optimizer
from ssl_lab.optim.rates import with_rates
from ssl_lab.optim.scaling import lanczos, largest_eigenvalue, scaled_rate, stable_rate
from ssl_lab.optim.spec import SGD, AdamW, Optimizer, parameter_groups
from ssl_lab.optim.update import Closure, Update, forget, plain

__all__ = ["INSGD", "KOALA", "KOALAM", "LARS", "NSGD", "OPTIMIZERS", "SGD", "AdamW", "Closure", "MiniBlockFisher",
           "Muon", "MuonNormed", "Optimizer", "Padam", "RAdam", "Update", "adam_condition", "adam_remark", "described",
           "forget", "lanczos", "largest_eigenvalue", "optimizer", "parameter_groups", "plain", "scaled_rate",
           "stable_rate", "with_rates"]
