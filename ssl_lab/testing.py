"""Contract suites: what the loop relies on, to be run on your own parts too. Each raises AssertionError."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

from ssl_lab.batch import At, Style, generator
from ssl_lab.views import ViewFactory

ROWS = 8


def check_views(
    view_factory: ViewFactory,
    *,
    sizes: Iterable[tuple[int, int]] = ((8, 8), (32, 32), (33, 47)),
    channels: Iterable[int] = (1, 3),
) -> None:
    """Hold a view to the contract of `ssl_lab.views.View`, at each (height, width) and number of channels.

    Checked: shape, type and range of the result; that the input is left alone; that the result is a function
    of the images and the drawn numbers alone; that two ranks see what one would; that a row does not depend
    on its neighbors; that a batch may be empty. Example: `check_views(partial(MyView, strength=0.3))`.
    """
    for count in channels:
        for height, width in sizes:
            _check_view(view_factory, Style(count, height, width, mean=(0.5,) * count, std=(0.25,) * count))


def _check_view(view_factory: ViewFactory, style: Style) -> None:
    view = view_factory(style)
    name = f"{view!r} on {style.channels} x {style.height} x {style.width} images"

    def run(images: Tensor, rank: int = 0, world: int = 1) -> Tensor:
        at = At(step=3, total=10, rank=rank, world=world)
        return view(images, at.draw("check", len(images)))

    shape = (ROWS, style.channels, style.height, style.width)
    images = torch.randint(0, 256, shape, generator=generator("check_views"), dtype=torch.uint8)
    original = images.clone()
    result = run(images)

    assert result.shape == images.shape, f"{name}: the result has shape {list(result.shape)}"
    assert result.dtype == torch.float32, f"{name}: the result is {result.dtype}, expected float32"
    assert result.device == images.device, f"{name}: the result is on {result.device}, not with the images"
    assert bool(((result >= 0) & (result <= 1)).all()), (
        f"{name}: values from {result.min():g} to {result.max():g}, expected [0, 1]; nets normalize"
    )
    assert torch.equal(images, original), f"{name}: it modified its input"
    assert torch.equal(run(images), result), (
        f"{name}: two calls with the same random numbers differ; take all randomness from `draw`"
    )

    others = images.clone()
    others[1:] = 255 - others[1:]
    assert torch.equal(run(others)[0], result[0]), f"{name}: row 0 changes with another image of the batch"

    half = ROWS // 2
    ranks = torch.cat([run(images[:half], rank=0, world=2), run(images[half:], rank=1, world=2)])
    assert torch.equal(ranks, result), (
        f"{name}: two ranks with half of the batch each see other pixels than one; draw per row, with `draw`"
    )

    try:
        empty = run(images[:0])
    except Exception as error:
        raise AssertionError(f"{name}: it fails on a batch of 0 rows") from error
    assert empty.shape == images[:0].shape, f"{name}: a batch of 0 rows gives shape {list(empty.shape)}"
