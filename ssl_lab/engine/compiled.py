"""Compiled nets. On a GPU, small ones run as CUDA graphs: all operations of a pass are started at once.

What is recorded is the call of a net, forward and backward, and nothing else: random numbers are seeded, batches made,
rates set and weights changed outside of it, so that no number of a step is part of the recording. A replay writes to
the memory that the last one wrote to. Hence a step is marked where it begins (`mark_step`), what a net gives is cloned,
and gradients are dropped, not zeroed, before the first pass of a step. Evaluation, whose last batch has a size of its
own, passes the net as it is.

On an NVIDIA H200 FixMatch of `tiny_16` takes 11.5 ms a step as graphs, 11.9 as it is and 18.3 compiled without them.
What this rests on is tested on a CPU (`test_compiled.py`).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map_only

from ssl_lab.batch import Style
from ssl_lab.engine.feed import Feed
from ssl_lab.engine.runtime import Runtime
from ssl_lab.nets import Net
from ssl_lab.nets.base import describe
from ssl_lab.notes import once

FLOP_PER_LAUNCH = 1e9
"""What a GPU computes while the host starts an operation: 10 microseconds at 100 TFLOP/s. An estimate."""

VARIANTS = 10_000  # of the code of a contract that may be compiled


def compile_nets(method: nn.Module, graphs: bool = False, backend: str = "inductor") -> None:
    """The method's nets compile when they are first called. graphs: as CUDA graphs."""
    for module in method.modules():
        if isinstance(module, Net):
            if graphs:
                module._compiled_call_impl = Replayed(module, backend)
            else:
                module.compile(backend=backend)


def uncompile(method: nn.Module) -> None:
    """Takes that back."""
    for module in method.modules():
        module._compiled_call_impl = None


def as_graphs(runtime: Runtime, method: nn.Module, style: Style, feed: Feed) -> bool:
    """Whether nets are to run as CUDA graphs: where a process alone has batches of one size and a GPU, on which its
    nets are launch-bound; says so."""
    nets = [module for module in method.modules() if isinstance(module, Net)]
    graphs = runtime.device.type == "cuda" and runtime.world == 1 and feed.steady and all(
        launch_bound(net, style, feed.images_per_step) for net in nets)
    if graphs:
        once("note: nets are small for a GPU and compiled as CUDA graphs; --compile off does without")
    return graphs


def launch_bound(net: Net, style: Style, rows: int) -> bool:
    """Whether to start a net's operations takes longer than to compute them, by `FLOP_PER_LAUNCH`."""
    operations = sum(not [*module.children()] for module in net.modules())
    return rows * describe(net, style)[1] < FLOP_PER_LAUNCH * operations


def compile_as_others(net: Net, backend: str, fullgraph: bool = False) -> None:
    """As `net.compile`, but what was compiled for a net serves all that are like it: of the many that contract suites
    make, the first alone takes seconds. Each size of a batch is compiled by itself, and nothing of it stays in the code
    that nets share, of which a process compiles only so many variants. Nets with other hooks are not alike."""
    compiled = torch.compile(_passed, backend=backend, fullgraph=fullgraph, dynamic=False)
    many = {"recompile_limit": VARIANTS, "accumulated_recompile_limit": VARIANTS, "skip_nnmodule_hook_guards": False}

    def call(*given: Any, **named: Any) -> Any:
        with torch._dynamo.config.patch(many):
            return compiled(net, *given, **named)

    net._compiled_call_impl = call


def _passed(net: Net, *given: Any, **named: Any) -> Any:
    return net._call_impl(*given, **named)  # type: ignore[no-untyped-call]


def mark_step() -> None:
    """Where a step begins that has CUDA graphs: memory of the last step's may be written to."""
    torch.compiler.cudagraph_mark_step_begin()  # type: ignore[no-untyped-call]


class Replayed:
    """What calls a net in place of its own call."""

    def __init__(self, net: Net, backend: str) -> None:
        self.plain: Callable[..., Any] = net._call_impl
        mode = "reduce-overhead" if backend == "inductor" else None
        self.compiled: Callable[..., Any] = torch.compile(self.plain, mode=mode, backend=backend)

    def __call__(self, *given: Any, **named: Any) -> Any:
        if torch.is_inference_mode_enabled():
            return self.plain(*given, **named)
        return tree_map_only(Tensor, torch.clone, self.compiled(*given, **named))
