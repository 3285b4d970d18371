"""Nets: images in [0, 1] -> features and logits, by name; their moving averages."""

from ssl_lab.nets import start as start
from ssl_lab.nets.base import Net, Output, describe, evaluating, frozen_statistics
from ssl_lab.nets.ema import Ema
from ssl_lab.nets.named import net
from ssl_lab.nets.zoo import NETS

__all__ = ["NETS", "Ema", "Net", "Output", "describe", "evaluating", "frozen_statistics", "net"]
