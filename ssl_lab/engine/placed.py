"""Where the weights of a module lie: whole on a device, or in parts over all ranks."""

from __future__ import annotations

import sys

import torch
from torch import nn

MIXED = "got mixed torch.Tensor and DTensor"
"""What torch says where sharded weights are read without having been gathered."""


def is_sharded(module: nn.Module) -> bool:
    """Whether ranks hold parts of its weights."""
    fsdp = sys.modules.get("torch.distributed.fsdp")
    return fsdp is not None and any(isinstance(part, fsdp.FSDPModule) for part in module.modules())


def place(module: nn.Module, device: torch.device) -> None:
    """Moves a module to the device, in channels_last. A sharded one lies there, and has to stay as it is."""
    if not is_sharded(module):
        module.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
