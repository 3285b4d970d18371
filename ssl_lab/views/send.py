"""What a view draws on the host, sent to the device in one copy."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor


def send(parts: Sequence[Tensor], device: torch.device) -> list[Tensor]:
    """The parts, of any types and shapes on the CPU, on `device`: one copy for all of them.

    To a GPU it goes from pinned memory, and nothing waits for it. Each part is a view of what was copied.
    """
    if device.type == "cpu":
        return list(parts)
    sizes = [8 * math.ceil(part.numel() * part.element_size() / 8) for part in parts]  # so that each is aligned
    together = torch.empty(sum(sizes), dtype=torch.uint8, pin_memory=device.type == "cuda")
    for piece, part in zip(torch.split(together, sizes), parts, strict=True):
        piece[: part.numel() * part.element_size()].view(part.dtype).copy_(part.flatten())
    pieces = torch.split(together.to(device, non_blocking=True), sizes)
    return [piece[: part.numel() * part.element_size()].view(part.dtype).view(part.shape)
            for piece, part in zip(pieces, parts, strict=True)]
