"""What an action asks of a device: operations, and copies to it. On the meta device they are counted without a GPU."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from ssl_lab.batch import At, Style
from ssl_lab.views import ViewFactory


@dataclass
class Launches:
    """operations: by name, of those that compute on the device; copies: to it from the host, and their bytes.

    Changes of shape alone and memory that is only taken count for nothing. What torch does within one of its operations
    is not seen.
    """

    operations: Counter[str] = field(default_factory=Counter)
    copies: int = 0
    bytes: int = 0


def launches(action: Callable[[], object], device: str = "meta") -> Launches:
    """Those of one call."""
    found = Launches()
    with _Counting(found, device):
        action()
    return found


def launches_of_view(view: ViewFactory, rows: int, side: int, channels: int = 3) -> Launches:
    """Those of a batch, after the first one, which leaves constants on the device."""
    style = Style(channels, side, side, mean=(0.5,) * channels, std=(0.25,) * channels)
    images, made = torch.empty(rows, channels, side, side, dtype=torch.uint8, device="meta"), view(style)
    made(images, At(0, 2).draw("launches", rows, "meta"))
    return launches(lambda: made(images, At(1, 2).draw("launches", rows, "meta")))


class _Counting(TorchDispatchMode):  # type: ignore[no-untyped-call]
    def __init__(self, found: Launches, device: str) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.found, self.device = found, device

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        given, made = (self._there(tree_leaves(each)) for each in ((args, kwargs), out))
        name = func.overloadpacket.__name__
        aliases = any(each.alias_info is not None and not each.alias_info.is_write for each in func._schema.returns)
        if "copy" in name and (made or given) and not (made and given and all(
                each.device.type == self.device for each in tree_leaves((args, kwargs)) if isinstance(each, Tensor))):
            self.found.copies += 1
            self.found.bytes += sum(each.nbytes for each in made[:1])
        elif (given or made) and not aliases and "empty" not in name:
            self.found.operations[name] += 1
        return out

    def _there(self, values: list[Any]) -> list[Tensor]:
        return [each for each in values if isinstance(each, Tensor) and each.device.type == self.device]
