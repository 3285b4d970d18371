"""What a view is: the contract that every augmentation keeps, and the two ends of every pixel pipeline."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Protocol

import torch
from torch import Tensor

from ssl_lab.batch import Draw, Style
from ssl_lab.errors import UsageError


class View(Protocol):
    """A random (or fixed) image transform of a whole batch at once, in which every row draws for itself.

    images: uint8 [B, C, H, W] on any device, C in {1, 3}, any H and W, B may be 0; never modified.
    draw: random numbers for these B rows. Returns float32 [B, C, H, W] in [0, 1] on the same device (nets
    normalize). Row i depends on image i and on its own numbers only, and nothing is read back to the host.

    An attribute `size` may say that the result has H = W = size, `mirrors` whether it mirrors images left-right, which
    none does where `style.flip` is False.

    >>> pool = sl.load("digits")
    >>> images = pool.images.take(np.arange(3))
    >>> seen = sl.Strong(pool.style)(images, sl.At(0, 100).draw("strong", rows=3))
    >>> images.dtype, seen.dtype, seen.shape, bool(seen.min() >= 0 and seen.max() <= 1)
    (torch.uint8, torch.float32, torch.Size([3, 1, 8, 8]), True)
    """

    def __call__(self, images: Tensor, draw: Draw) -> Tensor: ...


ViewFactory = Callable[[Style], View]
"""How a method declares a view: `Weak`, `Strong`, or `partial(Strong, ops=3)`; the loop calls it."""


def compiled(view: View) -> View:
    """The view with its pixels computed by one compiled graph, where it has that (`augment`, a function of nothing but
    tensors on the images' device) and the images are not on a CPU; else itself.

    On a CPU such a graph does not pay: rows in groups are several times as fast (tests/benchmarks/README.md).
    """
    augment = getattr(view, "augment", None)
    if augment is None:
        return view
    changed = copy.copy(view)
    object.__setattr__(changed, "augment", torch.compile(augment, fullgraph=True))  # of a frozen dataclass
    return changed


def check_images(images: Tensor, draw: Draw) -> None:
    """Raise UsageError unless images are uint8 [B, 1 or 3, H, W] and draw has numbers for B rows."""
    if images.dtype != torch.uint8 or images.ndim != 4 or images.shape[1] not in (1, 3):
        raise UsageError(f"a view got {str(images.dtype).removeprefix('torch.')} images of shape "
                         f"{list(images.shape)}; it takes uint8 [B, C, H, W] with 1 or 3 channels. "
                         "Convert the images before they enter the pool.")
    if len(draw) != len(images):
        raise UsageError(f"a view got {len(images)} images and random numbers for {len(draw)}; "
                         "draw them with at.draw(purpose, rows=len(images)).")


def to_unit(images: Tensor) -> Tensor:
    """uint8 0..255 to float32 0..1, contiguous (division, because multiplying by 1/255 can pass 1)."""
    return images.to(torch.float32, memory_format=torch.contiguous_format).div_(255)
