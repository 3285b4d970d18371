"""The contract of views as a suite, for yours too."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from typing import TypeVar

import torch
from torch import Tensor

from ssl_lab.batch import At, Draw, Style
from ssl_lab.seeds import generator
from ssl_lab.views.base import View, ViewFactory

T = TypeVar("T")
ROWS = 8
STEPS = 8
"""Draws after which a view that is random has shown itself to be."""


def check_views(
    view_factory: ViewFactory,
    *,
    sizes: Iterable[tuple[int, int]] = ((8, 8), (32, 32), (33, 47)),
    channels: Iterable[int] = (1, 3),
) -> None:
    """Hold a view to the contract of `ssl_lab.views.View`, at each size and number of channels.

    Checked: shape, type and range of the result; that the input is left alone; that the result is a function
    of the images and the drawn numbers alone; that two ranks see what one would; that a row depends neither on its
    neighbors nor on their numbers, so that equal images get different views; that a batch may be empty; that nothing
    is read back to the host and all happens on the device of the images. Example:
    `check_views(partial(MyView, strength=0.3))`.

    Args:
        view_factory: makes the view of a `Style`.
        sizes: (height, width) of the images.
        channels: of the images.

    Raises:
        AssertionError: where it breaks the contract; the message says how.

    >>> def bright(style):
    ...     return lambda images, draw: (images / 255 + draw.to_device(draw.uniform(1, 1, 1, high=0.2))).clamp(0, 1)
    >>> sl.testing.check_views(bright, sizes=[(8, 8)])  # it holds
    """
    for count in channels:
        for height, width in sizes:
            _check_view(view_factory, Style(count, height, width, mean=(0.5,) * count, std=(0.25,) * count))


def _check_view(view_factory: ViewFactory, style: Style) -> None:
    try:
        view = view_factory(style)
    except TypeError as error:
        raise AssertionError(f"{_plain(view_factory)}: it takes no Style alone ({error}); expected a function of a "
                             "Style that returns a function of (images, draw)") from error
    check_pixels(view, style)
    check_rows(view, style)
    _check_device(view, _images(style), _name(view, style))


def check_pixels(view: View, style: Style) -> None:
    """What a view must do for anything to be trained on it: images of the right kind, and its input left alone."""
    images, name = _images(style), _name(view, style)
    result = _run(view, images)
    assert isinstance(result, Tensor), f"{name}: the result is a {type(result).__name__}, expected a tensor"
    assert result.shape == _shape(view, images), f"{name}: the result has shape {list(result.shape)}"
    assert result.dtype == torch.float32, f"{name}: the result is {result.dtype}, expected float32"
    assert result.device == images.device, f"{name}: the result is on {result.device}, not with the images"
    assert bool(((result >= 0) & (result <= 1)).all()), (
        f"{name}: values from {result.min():g} to {result.max():g}, expected [0, 1]; nets normalize"
    )
    assert torch.equal(images, _images(style)), f"{name}: it modified its input"


def _shape(view: View, images: Tensor) -> tuple[int, ...]:
    """Of the view of images: theirs, but for the sides of a view that says which these are."""
    size: int | None = getattr(view, "size", None)
    return tuple(images.shape) if size is None else (*images.shape[:2], size, size)


def check_rows(view: View, style: Style) -> None:
    """The result is a function of the images and of the drawn numbers alone, each row of its own."""
    images, name = _images(style), _name(view, style)
    result = _run(view, images)
    assert torch.equal(_run(view, images), result), (
        f"{name}: two calls with the same random numbers differ; take all randomness from `draw`"
    )

    others = images.clone()
    others[1:] = 255 - others[1:]
    assert torch.equal(_run(view, others)[0], result[0]), f"{name}: row 0 changes with another image of the batch"

    half = ROWS // 2
    ranks = torch.cat([_run(view, images[:half], rank=0, world=2), _run(view, images[half:], rank=1, world=2)])
    assert torch.equal(ranks, result), (
        f"{name}: two ranks with half of the batch each see other pixels than one; draw per row, with `draw`"
    )

    try:
        empty = _run(view, images[:0])
    except Exception as error:
        raise AssertionError(f"{name}: it fails on a batch of 0 rows") from error
    assert empty.shape == _shape(view, images[:0]), f"{name}: a batch of 0 rows gives shape {list(empty.shape)}"
    _check_own_numbers(view, images, name)


def _images(style: Style) -> Tensor:
    shape = (ROWS, style.channels, style.height, style.width)
    return torch.randint(0, 256, shape, generator=generator("check_views"), dtype=torch.uint8)


def _plain(what: object) -> str:
    return re.sub(r" at 0x[0-9a-fA-F]+", "", repr(what))


def _name(view: View, style: Style) -> str:
    return f"{_plain(view)} on {style.channels} x {style.height} x {style.width} images"


def _run(view: View, images: Tensor, rank: int = 0, world: int = 1) -> Tensor:
    return view(images, At(step=3, total=10, rank=rank, world=world).draw("check", len(images)))


class _Exchanged(Draw):
    """The numbers of another `Draw`, of which row i has those of row order[i]; what is not drawn for a row is new."""

    def __init__(self, draw: Draw, order: Tensor) -> None:
        super().__init__((*draw.key, "exchanged"), draw.total, draw.rows, draw.device, draw.frac)
        self.draw, self.order = draw, order

    def child(self, purpose: str) -> Draw:
        return _Exchanged(self.draw.child(purpose), self.order)

    def uniform(self, *shape: int, low: float = 0.0, high: float = 1.0) -> Tensor:
        return self.draw.uniform(*shape, low=low, high=high)[self.order]

    def integers(self, low: int, high: int, *shape: int) -> Tensor:
        return self.draw.integers(low, high, *shape)[self.order]

    def normal(self, *shape: int) -> Tensor:
        return self.draw.normal(*shape)[self.order]

    def by_global_generator(self, make: Callable[[], T]) -> T:
        return self.draw.by_global_generator(make)

    def rows_of(self, values: Tensor) -> Tensor:
        return self.draw.rows_of(values)[self.order]


def _check_own_numbers(view: View, images: Tensor, name: str) -> None:
    """Every row decides for itself: by its own numbers, and not once for the batch."""
    same = images[:1].expand_as(images).contiguous()
    draws = [At(step, STEPS).draw("check", ROWS) for step in range(STEPS)]
    seen = [view(same, draw) for draw in draws]
    random = any(not torch.equal(one[0], seen[0][0]) for one in seen)
    alike = all(torch.equal(row, one[0]) for one in seen for row in one)
    own = "draw a number for each row, e.g. draw.uniform() of shape [rows]"
    assert not (random and alike), f"{name}: equal images get equal views, one decision for the whole batch; {own}"
    order = torch.arange(ROWS).roll(3)
    for step in range(STEPS):
        exchanged = view(images[order], _Exchanged(At(step, STEPS).draw("check", ROWS), order))
        straight = view(images, At(step, STEPS).draw("check", ROWS))[order]
        assert torch.allclose(exchanged, straight, atol=1e-5), (
            f"{name}: rows that change places, with their images and their numbers, get other views: a row goes by the "
            f"numbers of another one, or one decision is made for the whole batch; {own}"
        )


def _check_device(view: View, images: Tensor, name: str) -> None:
    """On the meta device there are no values: whatever reads one to the host fails there, as do tensors left on the
    CPU."""
    try:
        result = view(images.to("meta"), At(3, 10).draw("check", ROWS, "meta"))
    except Exception as error:
        why = f"{type(error).__name__}: {str(error).partition(chr(10))[0]}"
        raise AssertionError(
            f"{name}: of images on another device it reads pixels back to the host, or mixes them with tensors on the "
            f"CPU; move what you drew by draw.to_device(...) ({why})"
        ) from error
    assert result.device.type == "meta", (
        f"{name}: of images on another device the result is on {result.device}; make tensors with device=images.device"
    )
    assert (result.shape, result.dtype) == (_shape(view, images), torch.float32), (
        f"{name}: on another device the result is {result.dtype} of shape {list(result.shape)}"
    )
