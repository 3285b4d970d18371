"""Depthwise convolutions whose gradients are quick on a CPU too."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode


def quick_gradients(x: Tensor) -> AbstractContextManager[Any]:
    """Within it, depthwise convolutions on a CPU, in bf16, have other code for their gradients, the same but for
    rounding.

    oneDNN falls back to plain loops for filters of 5 x 5 and more (their gradient) and for strides (the input's).
    Filters' gradients are put together from those of 3 x 3, and a strided input's are taken in float32, which has no
    such loops: a step of EfficientNet-Lite0 at 128 px takes half of the time (tests/benchmarks/README.md).
    """
    usual = x.device.type != "cpu" or not torch.is_grad_enabled() or torch.compiler.is_compiling()
    return nullcontext() if usual or torch._C._functorch.peek_interpreter_stack() is not None else _Quick()


def has_depthwise(module: nn.Module) -> bool:
    """Whether any part is a depthwise convolution that `quick_gradients` knows."""
    return any(isinstance(part, nn.Conv2d) and part.groups == part.in_channels == part.out_channels > 1
               and (max(part.kernel_size) > 3 or max(part.stride) > 1) for part in module.modules())


class _Quick(TorchFunctionMode):
    def __torch_function__(self, func: Callable[..., Any], types: Any, args: Sequence[Any] = (),
                           kwargs: dict[str, Any] | None = None) -> Any:
        found = _convolved(*args, **(kwargs or {})) if func is F.conv2d else None
        return func(*args, **(kwargs or {})) if found is None else found


def _convolved(x: Tensor, weight: Tensor, bias: Tensor | None = None, stride: Any = 1, padding: Any = 0,
               dilation: Any = 1, groups: int = 1) -> Tensor | None:
    """The convolution, if it is one of those."""
    (side, other), steps = weight.shape[2:], _pair(stride)
    known = (groups == x.shape[1] == len(weight) > 1 and weight.shape[1] == 1 and side == other and side % 2
             and side >= 3 and (side > 3 or max(steps) > 1) and steps[0] == steps[1] and _pair(dilation) == (1, 1)
             and not isinstance(padding, str) and (x.requires_grad or weight.requires_grad))
    dtype = torch.get_autocast_dtype("cpu") if torch.is_autocast_enabled("cpu") else x.dtype
    if not known or dtype not in (torch.bfloat16, torch.float16):
        return None
    result: Tensor = _Depthwise.apply(x.to(dtype), weight.to(dtype), steps[0], _pair(padding))
    return result if bias is None else result + bias.to(result.dtype).view(-1, 1, 1)


def _pair(value: Any) -> tuple[int, ...]:
    return tuple(value) * (2 // len(value)) if isinstance(value, Sequence) else (value, value)


class _Depthwise(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, stride: int, padding: tuple[int, int]) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.how = stride, padding
        return F.conv2d(x, weight, None, stride, padding, 1, len(weight))

    @staticmethod
    def backward(ctx: Any, slope: Tensor) -> tuple[Tensor | None, Tensor | None, None, None]:
        x, weight = ctx.saved_tensors
        needs_x, needs_weight = ctx.needs_input_grad[:2]
        return (_of_input(slope, x, weight, *ctx.how) if needs_x else None,
                _of_weight(slope, x, weight, *ctx.how) if needs_weight else None, None, None)


def _of_input(slope: Tensor, x: Tensor, weight: Tensor, stride: int, padding: tuple[int, int]) -> Tensor:
    if stride == 1:
        return _gradients(slope, x, weight, 1, padding, (True, False))[0]
    dtype = torch.promote_types(x.dtype, torch.float32)
    shape = torch.empty_like(x, dtype=dtype)  # whose values do not matter
    return _gradients(slope.to(dtype), shape, weight.to(dtype), stride, padding, (True, False))[0].to(x.dtype)


def _of_weight(slope: Tensor, x: Tensor, weight: Tensor, stride: int, padding: tuple[int, int]) -> Tensor:
    """Put together from 3 x 3 parts, which overlap by a line: of each the gradient of a smaller convolution."""
    padded = F.pad(x, (padding[1], padding[1], padding[0], padding[0])) if any(padding) else x
    height, width = (stride * (size - 1) + 3 for size in slope.shape[2:])
    found, part = torch.empty_like(weight), weight[:, :, :3, :3].contiguous()
    for top in range(0, weight.shape[2] - 2, 2):
        for left in range(0, weight.shape[3] - 2, 2):
            seen = padded[:, :, top:top + height, left:left + width].contiguous(memory_format=torch.channels_last)
            found[:, :, top:top + 3, left:left + 3] = _gradients(slope, seen, part, stride, (0, 0), (False, True))[1]
    return found


def _gradients(slope: Tensor, x: Tensor, weight: Tensor, stride: int, padding: Sequence[int],
               wanted: tuple[bool, bool]) -> tuple[Tensor, Tensor]:
    """Of the input and of the weight, as far as wanted."""
    found: tuple[Tensor, Tensor, Tensor] = torch.ops.aten.convolution_backward(
        slope, x, weight, None, [stride] * 2, list(padding), [1, 1], False, [0, 0], len(weight), [*wanted, False])
    return found[:2]
