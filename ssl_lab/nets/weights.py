"""Weights from files in nets: found under whatever prefix, with the head's classes in order; or plainly why not."""

from __future__ import annotations

import copy
import logging
import re
from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

from ssl_lab.class_names import Names, apart, order_of, places, shown
from ssl_lab.errors import UsageError
from ssl_lab.nets.base import Net
from ssl_lab.nets.stored import Weights, first

State = Mapping[str, Tensor]

_log = logging.getLogger(__name__)
_HEADS = re.compile(r"(fc|head|heads|classifier|linear|last_linear|logits|online_\w*|proj\w*|predict\w*|mlp\w*"
                    r"|decoder\w*|mask_token|prototypes?|queue\w*)(\.|$)")  # what others put beside a backbone
_AVERAGED, _COPY = ("ema", "teacher"), ("momentum", "target", "encoder_k", "_m.", "key")


def whole_net(state: Weights) -> Weights | None:
    """The weights of a whole `Net`, of the averaged one if a checkpoint has several; None if there is only a backbone
    of someone else's."""
    prefixes = [key.removesuffix("head.weight") for key in state if re.search(r"(^|\.)head\.weight$", key)]
    prefixes = [prefix for prefix in prefixes if {f"{prefix}mean", f"{prefix}std"} <= state.keys()]
    return state.under(max(prefixes, key=_worth)) if prefixes else None


def load_net(net: Net, state: Weights, source: str | Path) -> None:
    """Load a whole `Net` into `net`, with its normalization.

    The head goes by the names of its classes: in another order it is brought into that of `net`, for other classes (or,
    where names are unknown, another number) it is left out and `net` keeps its fresh head. The log says so.
    """
    head, theirs, ours = state.get("head.weight"), state.class_names, net.class_names
    new = dict(state)
    if head is not None:
        order = None if not theirs or ours is None else places(theirs, ours)
        if (theirs and ours is not None and order is None) or len(head) != net.classes:
            new |= {f"head.{key}": value for key, value in net.head.state_dict().items()}
            known = apart(theirs, ours) if theirs and ours else (f"{len(head)} classes", f"{net.classes} classes")
            _log.warning("%s has a head for %s; the head for %s starts afresh", source, *known)
        elif order is not None and theirs != ours:
            new |= {key: value[order] for key, value in state.items() if key.startswith("head.")}
            _log.warning("%s has the classes %s; its head is brought into the order of %s", source,
                         *map(shown, (theirs, ours)))
        elif theirs is None and ours is not None:
            _log.warning("%s does not name its classes; its head is taken for %s, in this order", source, shown(ours))
        elif theirs:
            net.class_names = theirs
    check_fit(new, net.state_dict(), source, net.name)
    net.load_state_dict(new, strict=False)  # check_fit is strict and says more


def fitting(state: Weights, module: nn.Module, source: str | Path, name: str, *, shapes: bool = True,
            ignore: Iterable[str] = ()) -> Weights:
    """The tensors of a file that belong to the module that people know as `name`, by the module's own names.

    They may lie under a prefix, such as module., _orig_mod., backbone. or module.encoder_q.; that with most of them is
    taken, and of copies the averaged one. A module that was cut into nn.Sequential numbers its children. What lies
    beside (heads, queues, those of `ignore`) is left out; the log says in a line what was read and what was not.
    UsageError where something is missing, or of another shape (with `shapes`).
    """
    wanted = module.state_dict()
    compiled = Weights((key.replace("_orig_mod.", ""), value) for key, value in state.items())
    numbered = {f"{number}.": f"{child}." for number, (child, _) in enumerate(module.named_children())}
    by_number = {_renamed(key, {new: old for old, new in numbered.items()}): key for key in wanted}
    prefix, found = _best_prefix(compiled, wanted)
    other, more = _best_prefix(compiled, by_number)
    if more > found:
        prefix = other
    if 2 * max(more, found) < len(wanted):
        prefix = ""  # another net, whose names the error shows as they are
    part = compiled.under(prefix)
    if more > found:
        part = Weights((_renamed(key, numbered), value) for key, value in part.items())
    tops, beside = {key.partition(".")[0] for key in wanted}, tuple(f"{each}." for each in ignore)
    heads = [key for key in part if key not in wanted and (
        key.startswith(beside) or (key.partition(".")[0] not in tops and _HEADS.match(key)))]
    part = Weights((key, value) for key, value in part.items() if key not in heads)
    check_fit(part, wanted, source, name, shapes=shapes)
    left = [key for key in compiled if not key.startswith(prefix)] + [f"{prefix}{key}" for key in heads]
    if prefix or left:
        _log.warning("%s: %d tensors%s read into %s%s", source, len(part), f" under {prefix!r}" if prefix else "", name,
                     f"; left out: {first(left)} ({len(left)} in all)" if left else "")
    return part


def load(module: nn.Module, state: Weights, source: str | Path, name: str) -> None:
    """Load `state`, read from `source`, into the module that people know as `name`; see `fitting`."""
    module.load_state_dict(fitting(state, module, source, name), strict=False)


def check_fit(state: State, wanted: State, source: str | Path, name: str, *, shapes: bool = True) -> None:
    """UsageError unless `state` has the tensors of `wanted`, no others, and, with `shapes`, their shapes.

    BatchNorm's batch counters may be missing.
    """
    common = state.keys() & wanted.keys()
    wrong = [f"{key} {list(state[key].shape)} for {list(wanted[key].shape)}"
             for key in wanted if shapes and key in common and state[key].shape != wanted[key].shape]
    missing = [key for key in wanted if key not in common and not key.endswith("num_batches_tracked")]
    foreign = [key for key in state if key not in common]
    problems = {"not in the file": missing, "not in the net": foreign, "of another shape": wrong}
    if any(problems.values()):
        found = "; ".join(f"{len(keys)} {kind}: {first(keys)}" for kind, keys in problems.items() if keys)
        raise UsageError(f"weights {source} do not fit {name}: {len(common) - len(wrong)} of {len(wanted)} "
                         f"tensors match; {found}. {_advice(foreign, name)}")


def in_order(net: Net, names: Names | None, what: str) -> Net:
    """The net with its logits in the order of these classes: itself, or a copy. A net or a list without names is taken
    as it is. UsageError, with both lists, where it tells other classes apart; `what` is what people call it."""
    if names is None or net.class_names is None or names == net.class_names:
        return net
    order = order_of(net.class_names, names, what)
    other = copy.deepcopy(net)
    with torch.no_grad():
        for parameter in other.head.parameters():
            parameter.copy_(parameter[order])
    other.class_names = names
    return other


def _best_prefix(state: State, wanted: Iterable[str]) -> tuple[str, int]:
    """The prefix under which most of the wanted names are found, and how many that are."""
    names, counts = {*wanted}, Counter({"": 0})
    for key in state:
        parts = key.split(".")
        for depth in range(len(parts)):
            if ".".join(parts[depth:]) in names:
                counts["".join(f"{part}." for part in parts[:depth])] += 1
    return max(counts.items(), key=lambda item: (item[1], _worth(item[0])))


def _worth(prefix: str) -> tuple[int, int]:
    """Of the places where a file has the same net, the averaged one is meant, and else the one that learned."""
    words = prefix.lower()
    return (any(word in words for word in _AVERAGED) - any(word in words for word in _COPY), -len(prefix))


def _renamed(key: str, parts: Mapping[str, str]) -> str:
    top, point, rest = key.partition(".")
    return parts.get(top + point, top + point) + rest


def _advice(foreign: Iterable[str], name: str) -> str:
    if not name.startswith("timm/") and any("layer1.0.conv1." in key for key in foreign):
        return "Its names are those of torchvision's ResNets, which are timm's too: try the net timm/resnet18 or so."
    return "Name the net and the image channels it was written with."
