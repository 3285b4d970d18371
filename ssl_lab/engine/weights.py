"""Weights that lie whole on each rank, or sharded over all of them: what the engine does with either.

FSDP, which shards them, takes a second to import: `sharded` is imported only where there is something to shard.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ssl_lab.engine import checkpoint
from ssl_lab.engine.placed import is_sharded
from ssl_lab.nets import Net
from ssl_lab.nets.parametrized import baked


def whole(net: nn.Module) -> AbstractContextManager[None]:
    """Within it each rank holds all weights of `net`. All ranks enter it together, and not in inference mode."""
    if not is_sharded(net):
        return nullcontext()
    from ssl_lab.engine import sharded

    return sharded.whole(net)


def whole_state(net: nn.Module) -> dict[str, Tensor]:
    """The state of `net` with all its weights, on the CPU, for export. All ranks call it."""
    if not is_sharded(net):
        return {name: tensor.detach().cpu().contiguous() for name, tensor in state_of(net).items()}
    from ssl_lab.engine import sharded

    return sharded.whole_state(net)


def state_of(net: nn.Module) -> dict[str, Tensor]:
    """The state of a net, with plain weights where they are made of other parameters."""
    return dict((baked(net) if isinstance(net, Net) else net).state_dict())


def save(method: nn.Module, optimizer: torch.optim.Optimizer, folder: Path | None) -> dict[str, Any]:
    """What a checkpoint holds of both: their states or, of a sharded run, the name of `folder`, where each rank has
    then written its part. All ranks call it. UsageError for a full disk and the like."""
    if folder is None:
        return {"method": method.state_dict(), "optimizer": optimizer.state_dict()}
    from ssl_lab.engine import sharded

    sharded.save_sharded(folder, method, optimizer)
    return {"sharded": folder.name}


def restore(saved: Mapping[str, Any], run: Path, method: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    """Puts back what `save` gave into the folder of a run. All ranks call it. UsageError where it does not fit."""
    if "sharded" not in saved:
        checkpoint.restore(saved, run, method=method, optimizer=optimizer)
        return
    from ssl_lab.engine import sharded

    sharded.load_sharded(run / saved["sharded"], method, optimizer)
