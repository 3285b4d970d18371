"""Sharded runs: each rank holds a part of every weight, of its gradient, averages and momenta (FSDP2).

`shard` takes the place of DistributedDataParallel for nets that are too large for one device; a step is the same step
(ZeRO, Rajbhandari et al. 2020, arXiv 1910.02054; FSDP, Zhao et al. 2023, arXiv 2304.11277). A checkpoint is a folder
of safetensors files, a file per rank, written and read through torch.distributed.checkpoint: any number of ranks reads
what any other number wrote. torch's own file format is not used, for it unpickles what it reads.
"""

from __future__ import annotations

import atexit
import shutil
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageReader, HuggingFaceStorageWriter
from torch.distributed.checkpoint.metadata import TensorStorageMetadata
from torch.distributed.checkpoint.state_dict import get_optimizer_state_dict
from torch.distributed.checkpoint.state_dict_loader import load
from torch.distributed.checkpoint.state_dict_saver import save
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor

from ssl_lab.engine.checkpoint import check_files, list_files
from ssl_lab.engine.placed import is_sharded
from ssl_lab.errors import UsageError
from ssl_lab.files import cannot_write
from ssl_lab.nets import Net

M = TypeVar("M", bound=nn.Module)


def shard(method: M, device: torch.device) -> M:
    """Moves the method to the device and spreads its parameters over the ranks of the process group, in place.

    Gathered together, and freed again after use: each repeated block of a backbone (see `blocks`), the rest of the
    backbone, the head, and what the method learns beside its nets. Averages and teachers, which are nets as well, lie
    as the nets do that they follow; buffers stay whole on each rank. Build the optimizer afterwards. The method is
    returned, to be called as ever; its gradients are means over the ranks.

    Weights get torch's default memory format, in which a net that was embedded before is not: those of `channels_last`
    cannot be cut into parts. UsageError if a net is sharded already.
    """
    if is_sharded(method):
        raise UsageError("a net of this method belongs to an earlier sharded run; load that run's model.safetensors "
                         "into a new one: net(..., weights=FILE)")
    method.to(device, memory_format=torch.contiguous_format)  # type: ignore[call-overload]
    mesh = init_device_mesh(device.type, (dist.get_world_size(),))
    # Caches of DTensor keep the mesh, and the mesh the process group; see `part_for_good`, which comes after this.
    atexit.register(getattr(mesh, "_pg_registry", {}).clear)
    nets = [module for module in method.modules() if isinstance(module, Net) and hasattr(module, "backbone")]
    units = {id(unit) for net in nets for unit in (net.backbone, net.head, *blocks(net.backbone))} | {id(method)}
    for module in reversed([*method.modules()]):  # from the inside out
        if id(module) in units:
            fully_shard(module, mesh=mesh, reshard_after_forward=True)
    root: Any = method
    root._get_fsdp_state()._lazy_init()  # else a net that is evaluated before the first step becomes the root
    return method


def blocks(backbone: nn.Module) -> list[nn.Module]:
    """The modules that repeat: those that lie in a Sequential or ModuleList with others of their class, and are made
    of modules themselves. In a transformer its blocks, in a residual net those of each stage."""
    found = []
    for module in backbone.modules():
        if isinstance(module, nn.Sequential | nn.ModuleList):
            composed = [child for child in module if any(child.children()) and any(True for _ in child.parameters())]
            kinds = [type(child) for child in composed]
            found += [child for child in composed if kinds.count(type(child)) > 1]
    return found


@contextmanager
def whole(net: nn.Module) -> Iterator[None]:
    """Within it, all ranks hold all weights of `net`, so that each may pass as many batches as it likes.

    All ranks enter it together. Outside of it a pass gathers weights as it goes, for which all ranks must pass as
    many batches: those of evaluation may differ by one.
    """
    units = [module for module in net.modules() if isinstance(module, FSDPModule)]
    for unit in units:
        unit.set_reshard_after_forward(False, recurse=False)
        unit.unshard()
    try:
        yield
    finally:
        for unit in units:
            unit.set_reshard_after_forward(True, recurse=False)
            unit.reshard()


def whole_state(net: nn.Module) -> dict[str, Tensor]:
    """The state of a net with all its weights, for export: on the CPU of every rank. All ranks call it."""
    return {name: (tensor.full_tensor() if isinstance(tensor, DTensor) else tensor).detach().cpu()
            for name, tensor in net.state_dict().items()}


def save_sharded(path: Path, method: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    """Writes the state of method and optimizer into the folder `path`, which all ranks share. All ranks call it.

    `path` is a new folder for each checkpoint: one that is torn by a kill is never taken for a whole one, and the one
    before it is still there. UsageError on the ranks whose disk is full or read-only.
    """
    main = not dist.is_initialized() or dist.get_rank() == 0
    try:
        if main:
            shutil.rmtree(path, ignore_errors=True)  # what a killed run left of it
            path.mkdir(parents=True)
        _meet()
        with _one_process_will_do():
            save(_tensors(method, optimizer),
                 storage_writer=HuggingFaceStorageWriter(str(path), save_distributed=True))
        if main:
            list_files(path)
        _meet()
    except OSError as error:
        raise cannot_write(path, error) from error
    except CheckpointException as error:
        raise UsageError(f"cannot write {path}: {_reason(error)}") from None


def load_sharded(path: Path, method: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    """Reads into method and optimizer, sharded or not, what any number of ranks wrote. All ranks call it.

    Only tensors are read, and no code is run. UsageError if the checkpoint is missing, torn, or of another method.
    """
    check_files(path)
    reader = HuggingFaceStorageReader(str(path))
    with _readable(path):
        saved = {name: tensor.size for name, tensor in reader.read_metadata().state_dict_metadata.items()
                 if isinstance(tensor, TensorStorageMetadata)}
    get_optimizer_state_dict(method, optimizer)  # makes a new optimizer's state, which is then read into
    moved = {name.rpartition(".")[0] for name in saved}
    for name, parameter in method.named_parameters():
        if f"optimizer.{name}" not in moved:  # the loss does not reach it
            optimizer.state.pop(parameter, None)
    state = _tensors(method, optimizer)
    ours = {name: tensor.shape for name, tensor in state.items()}
    differ = sorted(name for name in saved | ours if saved.get(name) != ours.get(name))
    if differ:
        raise UsageError(f"the run in {path} has another method or optimizer than this one: {differ[0]} and "
                         f"{len(differ) - 1} more tensors differ")
    with _readable(path), _one_process_will_do():
        load(state, storage_reader=reader)


def _tensors(method: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """All tensors of the state by name; they are the very ones, to be written or read into."""
    state = {f"method.{name}": tensor for name, tensor in method.state_dict().items()}
    names: dict[Tensor, str] = {parameter: name for name, parameter in method.named_parameters()}
    for parameter, values in optimizer.state.items():
        state |= {f"optimizer.{names[parameter]}.{key}": value for key, value in values.items()
                  if isinstance(value, Tensor)}
    return state


def _meet() -> None:
    if dist.is_initialized():
        dist.barrier()


@contextmanager
def _one_process_will_do() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "torch.distributed is disabled, unavailable or uninitialized")
        yield


@contextmanager
def _readable(path: Path) -> Iterator[None]:
    """Turns whatever a damaged file makes safetensors and torch raise into a UsageError."""
    try:
        yield
    except (Exception, CheckpointException) as error:
        raise UsageError(f"cannot read {path}: {_reason(error)}. It may be damaged") from None


def _reason(error: BaseException) -> str:
    failures = error.failures.values() if isinstance(error, CheckpointException) else [(error,)]
    return " ".join(str(next(iter(failures))[0]).split())[:200]
