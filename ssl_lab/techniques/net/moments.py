"""Means and variances of what flows through a net, by its operations alone."""

from __future__ import annotations

import math
import operator
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from ssl_lab.errors import UsageError

WEIGHTED = nn.Conv1d | nn.Conv2d | nn.Linear
_NORMS = (nn.modules.batchnorm._BatchNorm, nn.GroupNorm, nn.LayerNorm, nn.modules.instancenorm._InstanceNorm)
_NORMALIZE = {F.batch_norm, F.group_norm, F.layer_norm, F.instance_norm}
_ACTIVATIONS = (nn.ReLU, nn.LeakyReLU, nn.ELU, nn.SELU, nn.CELU, nn.GELU, nn.SiLU, nn.Mish, nn.Hardswish, nn.Hardtanh,
                nn.ReLU6, nn.Softplus, nn.Softsign, nn.Tanh, nn.Sigmoid, nn.Hardsigmoid)
_ACTIVATE = {F.relu, F.leaky_relu, F.elu, F.selu, F.celu, F.gelu, F.silu, F.mish, F.hardswish, F.hardtanh, F.relu6,
             F.softplus, F.softsign, F.tanh, F.sigmoid, F.hardsigmoid, torch.relu, torch.tanh, torch.sigmoid,
             "relu", "relu_", "tanh", "sigmoid"}
_POOLING = (nn.AvgPool2d, nn.MaxPool2d, nn.AdaptiveAvgPool2d, nn.AdaptiveMaxPool2d)
_POOL = {F.avg_pool2d, F.max_pool2d, F.adaptive_avg_pool2d, F.adaptive_max_pool2d, torch.mean, "mean"}
_SHAPE = {torch.flatten, "flatten", "view", "reshape", "contiguous"}
_ADD = {operator.add, operator.iadd, torch.add, "add", "add_"}


class Moments(NamedTuple):
    """Of the entries of a tensor."""

    mean: float
    var: float


def activated(function: Callable[[Tensor], Tensor], given: Moments) -> Moments:
    """Of f(x), x ~ N(mean, var): the integral over +-10 standard deviations."""
    z = torch.linspace(-10, 10, 20001, dtype=torch.float64)
    density = torch.exp(-(z**2) / 2)
    density /= density.sum()
    y = function(given.mean + math.sqrt(given.var) * z)
    mean = float((density * y).sum())
    return Moments(mean, float((density * (y - mean) ** 2).sum()))


class _Whole(fx.Tracer):
    """Our own kinds of layers are one operation, as torch's are."""

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return isinstance(m, WEIGHTED) or super().is_leaf_module(m, module_qualified_name)


class Following(fx.Interpreter):
    """Follows an image through a backbone in evaluation mode, and the moments of each operation's output along.

    enter: is called with each layer that has weights and the moments of its input, and returns those of its output.
    UsageError for an operation whose effect is not known. After `run`, `last` are the moments of the output.
    """

    def __init__(self, module: nn.Module, enter: Callable[[nn.Module, Moments], Moments],
                 draw: torch.Generator) -> None:
        super().__init__(fx.GraphModule(module, _Whole().trace(module)))
        self.enter, self.draw, self.known = enter, draw, dict[fx.Node, Moments]()
        self.last = Moments(0, 1)

    def run_node(self, n: fx.Node) -> Any:
        result = super().run_node(n)
        if n.op == "placeholder":
            self.known[n] = Moments(0, 1)
        elif n.op == "output":
            self.last = self.known[n.all_input_nodes[0]]
        elif isinstance(result, Tensor) and any(each in self.known for each in n.all_input_nodes):
            self.known[n] = self._moments(n)
        return result

    def _moments(self, n: fx.Node) -> Moments:
        inputs = [self.known[each] for each in n.all_input_nodes if each in self.known]
        first = inputs[0]
        what: Any = self.fetch_attr(str(n.target)) if n.op == "call_module" else n.target
        if isinstance(what, WEIGHTED):
            return self.enter(what, first)
        if isinstance(what, _NORMS) or _in(what, _NORMALIZE):
            return Moments(0, 1)
        if isinstance(what, _ACTIVATIONS) or _in(what, _ACTIVATE):
            return activated(lambda points: self._again(n, points), first)
        if isinstance(what, nn.Identity | nn.Flatten) or _in(what, _SHAPE):
            return first
        if isinstance(what, nn.modules.dropout._DropoutNd):
            return Moments(first.mean, (first.var + first.mean**2) / (1 - what.p) - first.mean**2)
        if isinstance(what, _POOLING) or _in(what, _POOL):
            return self._sampled(n, first)
        if _in(what, _ADD):
            shift = sum(each for each in n.args if isinstance(each, int | float))
            return Moments(sum(each.mean for each in inputs) + shift, sum(each.var for each in inputs))
        if what is torch.cat:
            sizes = [self.env[each].numel() for each in n.all_input_nodes]
            parts = [(size / sum(sizes), *each) for size, each in zip(sizes, inputs, strict=True)]
            mean = sum(share * m for share, m, _ in parts)
            return Moments(mean, sum(share * (v + m**2) for share, m, v in parts) - mean**2)
        raise UsageError(f"what {getattr(what, '__name__', None) or what} does to means and variances is not known")

    def _again(self, n: fx.Node, x: Tensor) -> Tensor:
        """The operation on another first input."""
        args, kwargs = self.fetch_args_kwargs_from_env(n)
        result: Tensor = getattr(self, n.op)(n.target, (x.clone(), *args[1:]), kwargs)
        return result

    def _sampled(self, n: fx.Node, given: Moments) -> Moments:
        """By Monte Carlo, of independent entries."""
        shape = self.env[n.all_input_nodes[0]].shape[1:]
        rows = max(2, min(64, 2**22 // math.prod(shape)))
        x = given.mean + math.sqrt(given.var) * torch.randn(rows, *shape, generator=self.draw)
        y = self._again(n, x)
        return Moments(float(y.mean()), float(y.var()))


def _in(what: Any, known: set[Any]) -> bool:
    return isinstance(what, str | type(F.relu) | type(torch.relu)) and what in known
