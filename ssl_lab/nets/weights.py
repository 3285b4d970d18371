"""Weights from files: reading them, and saying plainly why they do not fit."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping
from pathlib import Path

import safetensors
import safetensors.torch
import torch
from torch import Tensor, nn

from ssl_lab.errors import UsageError
from ssl_lab.nets.base import Net

State = dict[str, Tensor]

_log = logging.getLogger(__name__)


def read_weights(path: str | Path) -> State:
    """The tensors of a .safetensors, .pt or .pth file, on the CPU.

    A .pt file holds a state dict, bare or under "state_dict" or "model"; it is read without unpickling code.
    """
    path = Path(path)
    if path.suffix not in (".safetensors", ".pt", ".pth"):
        raise UsageError(f"weights {path}: expected a .safetensors, .pt or .pth file")
    if not path.is_file():
        raise UsageError(f"weights {path}: no such file")
    try:
        if path.suffix == ".safetensors":
            return dict(safetensors.torch.load_file(path))
        loaded = torch.load(path, map_location="cpu", weights_only=True)
    except safetensors.SafetensorError as error:
        raise UsageError(f"weights {path}: not a whole safetensors file ({error}); copy it again") from error
    except Exception as error:  # torch.load has no exception of its own: a bad file raises any of ten types
        raise UsageError(f"weights {path}: not a whole file of tensors written by torch.save "
                         f"({one_line(error)}); copy it again or convert it to .safetensors") from error
    if isinstance(loaded, dict):
        loaded = loaded.get("state_dict", loaded.get("model", loaded))
    if not isinstance(loaded, dict) or not all(isinstance(value, Tensor) for value in loaded.values()):
        keys = f" with the keys {_first(map(str, loaded))}" if isinstance(loaded, dict) else ""
        raise UsageError(f"weights {path}: expected a dict of tensors, got a {type(loaded).__name__}{keys}; "
                         "of a run, take its model.safetensors")
    return loaded


def is_net(state: Mapping[str, Tensor]) -> bool:
    """Whether these are the weights of a whole `Net` and not of a backbone alone."""
    return any(key.startswith("backbone.") for key in state)


def load_net(net: Net, state: State, source: str | Path) -> None:
    """Load a whole `Net` into `net`, with its normalization.

    A head for another number of classes is left out: `net` keeps its fresh head, and the log says so.
    """
    head = state.get("head.weight")
    fresh = head is not None and head.shape[0] != net.classes
    if fresh:
        state = state | {f"head.{key}": value for key, value in net.head.state_dict().items()}
    load(net, state, source, net.name)
    if head is not None and fresh:
        _log.warning("%s has a head for %d classes; the head for %d classes starts afresh",
                     source, len(head), net.classes)


def load(module: nn.Module, state: State, source: str | Path, name: str) -> None:
    """Load `state`, read from `source`, into the module that people know as `name`."""
    check_fit(state, module.state_dict(), source, name)
    module.load_state_dict(state, strict=False)  # check_fit is strict and says more


def check_fit(state: Mapping[str, Tensor], wanted: Mapping[str, Tensor], source: str | Path, name: str, *,
              shapes: bool = True, ignore: Iterable[str] = ()) -> None:
    """UsageError unless `state` has the tensors of `wanted`, no others, and, with `shapes`, their shapes.

    BatchNorm's batch counters may be missing. Tensors of the modules in `ignore` may be left over.
    """
    prefixes = tuple(f"{module}." for module in ignore)
    common = state.keys() & wanted.keys()
    wrong = [f"{key} {list(state[key].shape)} for {list(wanted[key].shape)}"
             for key in wanted if shapes and key in common and state[key].shape != wanted[key].shape]
    missing = [key for key in wanted if key not in common and not key.endswith("num_batches_tracked")]
    foreign = [key for key in state if key not in common and not key.startswith(prefixes)]
    problems = {"not in the file": missing, "not in the net": foreign, "of another shape": wrong}
    if any(problems.values()):
        found = "; ".join(f"{len(keys)} {kind}: {_first(keys)}" for kind, keys in problems.items() if keys)
        raise UsageError(f"weights {source} do not fit {name}: {len(common) - len(wrong)} of {len(wanted)} "
                         f"tensors match; {found}. Name the net and the image channels it was written with.")


def one_line(error: Exception) -> str:
    """The message of an error of somebody else's, in one line of readable length."""
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= 300 else text[:300] + "..."


def _first(keys: Iterable[str]) -> str:
    listed = list(keys)
    return ", ".join(listed[:3]) + (", ..." if len(listed) > 3 else "")
