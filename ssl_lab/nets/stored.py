"""Reading files of weights, whoever wrote them: the tensors by name, and what the classes are called."""

from __future__ import annotations

import json
from collections import OrderedDict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch
from torch import Tensor
from torch.serialization import get_unsafe_globals_in_checkpoint, safe_globals

from ssl_lab.class_names import Names
from ssl_lab.errors import UsageError

SUFFIXES = (".safetensors", ".pt", ".pth", ".ckpt", ".bin", ".tar", ".pkl")
KEY = "class_names"
"""Where class names stand in a file: JSON in the metadata of safetensors, a list in a file of torch.save."""
_OTHER = ("optim", "lr_sched", "sched", "scaler", "amp", "callbacks", "loops")  # what training goes on with


class Weights(dict[str, Tensor]):
    """Tensors by name. class_names: of the classes that the head, or stored logits, tell apart; () where no head was
    trained, as in pretraining; None where the file does not say."""

    class_names: Names | None = None

    def under(self, prefix: str) -> Weights:
        """Those whose name begins with `prefix`, without it."""
        part = Weights((key.removeprefix(prefix), value) for key, value in self.items() if key.startswith(prefix))
        part.class_names = self.class_names
        return part


def read_weights(path: str | Path) -> Weights:
    """The tensors of a .safetensors file, or of one that torch.save wrote, on the CPU, and what it calls its classes.

    Of dicts within dicts, those of Lightning, DINO or VISSL say, names are joined by points; of a whole model that was
    pickled, its state is read. No code of the file is run, and none is imported by it. The optimizer's state, and
    settings whatever their type, are passed over. UsageError for a file without tensors, or a damaged one.
    """
    path = Path(path)
    if path.suffix not in SUFFIXES:
        raise UsageError(f"weights {path}: expected a .safetensors file, or one written by torch.save (.pt, .pth, "
                         ".ckpt, .bin, .pth.tar)")
    if not path.is_file():
        raise UsageError(f"weights {path}: no such file")
    try:
        if path.suffix == ".safetensors":
            return _read_safetensors(path)
        loaded = _unpickled(path)
    except safetensors.SafetensorError as error:
        raise UsageError(f"weights {path}: not a whole safetensors file ({error}); copy it again") from error
    except Exception as error:  # torch.load has no exception of its own: a bad file raises any of ten types
        raise UsageError(f"weights {path}: not a whole file of tensors written by torch.save "
                         f"({one_line(error)}); copy it again or convert it to .safetensors") from error
    found = Weights(plain(dict(_tensors(loaded))))
    if not found:
        keys = f" with the keys {first(map(str, loaded))}" if isinstance(loaded, dict) else ""
        raise UsageError(f"weights {path}: expected a dict of tensors, got a {type(loaded).__name__}{keys}; "
                         "of a run, take its model.safetensors")
    if isinstance(loaded, dict):
        given = vars(loaded).get(KEY) if isinstance(loaded, OrderedDict) else None
        found.class_names = _names(loaded.get(KEY, loaded.get("classes", given)))
    return found


def plain(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The state with weights w = g v / ||v|| in place of the g and v of torch's weight norm, under either of its names;
    itself where there are none."""
    found = dict(state)
    for names in (("parametrizations.weight.original0", "parametrizations.weight.original1"), ("weight_g", "weight_v")):
        for key in [key for key in found if key == names[0] or key.endswith(f".{names[0]}")]:
            prefix = key.removesuffix(names[0])
            if prefix + names[1] in found:
                found[f"{prefix}weight"] = torch._weight_norm(found.pop(prefix + names[1]), found.pop(key), 0)
    return found


def metadata(class_names: Sequence[str] | None) -> dict[str, str]:
    """What a safetensors file says of its tensors, beside them. One entry alone: several are written in any order."""
    return {} if class_names is None else {KEY: json.dumps(list(class_names))}


def one_line(error: Exception) -> str:
    """The message of an error of somebody else's, in one line of readable length."""
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= 300 else text[:300] + "..."


def first(keys: Iterable[str], most: int = 3) -> str:
    """So many of the keys, and whether there are more."""
    listed = list(keys)
    return ", ".join(listed[:most]) + (", ..." if len(listed) > most else "")


def _read_safetensors(path: Path) -> Weights:
    with safetensors.safe_open(path, "pt") as file:
        found = Weights((key, file.get_tensor(key)) for key in file.keys())  # noqa: SIM118
        text = (file.metadata() or {}).get(KEY)
    try:
        found.class_names = _names(json.loads(text)) if text is not None else None
    except ValueError as error:
        raise UsageError(f"weights {path}: its metadata {KEY!r} is no JSON ({one_line(error)})") from error
    return found


class _Inert:
    """Stands for whatever type or function a file names that is not torch's own: calling it makes an empty dict, which
    keeps the items and attributes that it is given."""

    def __new__(cls, *args: Any, **more: Any) -> Any:
        return OrderedDict()


def _unpickled(path: Path) -> Any:
    try:
        strangers = get_unsafe_globals_in_checkpoint(path)
    except Exception:  # a file from before torch 1.6, which cannot be asked; or a damaged one
        strangers = ["argparse.Namespace"]
    with safe_globals([(_Inert, name) for name in strangers]):
        return torch.load(path, map_location="cpu", weights_only=True)


def _tensors(value: Any, at: str = "") -> Iterator[tuple[str, Tensor]]:
    """All tensors of nested dicts, and of pickled modules, by path."""
    if isinstance(value, Tensor):
        yield at, value.detach()
    elif isinstance(value, Mapping):
        inside = vars(value) if isinstance(value, OrderedDict) else {}
        parts = [value, *(inside[name] for name in ("_parameters", "_buffers", "_modules") if name in inside)]
        for key, part in (item for each in parts if isinstance(each, Mapping) for item in each.items()):
            if at or isinstance(part, Tensor) or not str(key).lower().startswith(_OTHER):
                yield from _tensors(part, f"{at}.{key}" if at else str(key))


def _names(given: Any) -> Names | None:
    """Class names, if this is a list of texts."""
    if isinstance(given, Sequence) and not isinstance(given, str) and all(isinstance(name, str) for name in given):
        return tuple(given)
    return None
