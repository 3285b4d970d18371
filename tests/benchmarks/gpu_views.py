"""The parts of `gpu.py` that measure views."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ssl_lab.batch import At, Draw, Style
from ssl_lab.bench.launches import launches_of_view
from ssl_lab.bench.measure import Spread, in_turn, seconds, waiting
from ssl_lab.views import VIEWS, SimCLRView, dense, dense_contrastive
from ssl_lab.views.base import to_unit
from ssl_lab.views.randaugment import rand_augment
from ssl_lab.views.shift import cutout, flip_and_shift

if TYPE_CHECKING:
    from gpu import Bench

Row = tuple[str, float | str, str]
"""What was measured, its value, and what it is to be compared with or noted."""


def count_launches(bench: Bench) -> Iterator[Row]:
    for name, rows, side in (("weak", 448, 32), ("strong", 448, 32), ("simclr", 256, 96), ("simclr", 256, 224)):
        found = launches_of_view(VIEWS[name], rows, side)
        yield (f"{name}, {side} px: operations", found.operations.total(),
               f"{found.copies} copies, {found.bytes:,} bytes")


def views(bench: Bench) -> Iterator[Row]:
    """Images per second of all views that have names, and of the strong one by groups, as a CPU takes it."""
    for side, rows in ((8, 16),) if bench.tiny else ((32, 448), (96, 256), (224, 128)):
        style = Style(height=side, width=side)
        images = torch.randint(0, 256, (rows, 3, side, side), dtype=torch.uint8).to(bench.runtime.device)
        made = {name: partial(view(style), images) for name, view in VIEWS.items()}
        made["strong, all rows at once"] = partial(at_once, images, style)
        made["strong, by groups"] = partial(by_groups, images, style)
        yield from viewed(bench, rows, side, made)


def compiled_views(bench: Bench) -> Iterator[Row]:
    """Views whose pixels are computed by one compiled graph, as `--compile` has them; in small only traced."""
    side, rows = (8, 16) if bench.tiny else (32, 448)
    style = Style(height=side, width=side)
    images = torch.randint(0, 256, (rows, 3, side, side), dtype=torch.uint8).to(bench.runtime.device)
    whole = partial(torch.compile, fullgraph=True, backend="eager" if bench.tiny else "inductor")
    drawn, pixels = SimCLRView(style)._drawn, whole(dense_contrastive.augmented)
    yield from viewed(bench, rows, side, {
        "strong, compiled": partial(at_once, images, style, augment=whole(dense.augmented)),
        "simclr, compiled": lambda draw: simclr_at_once(images, drawn(draw, side, side), pixels)})


def viewed(bench: Bench, rows: int, side: int, made: dict[str, Callable[[Draw], Tensor]]) -> Iterator[Row]:
    """How many images views make in a second; what one cannot do is a row."""
    def take(view: Callable[[Draw], Tensor]) -> None:
        view(At(0, 1).draw("bench", rows, bench.runtime.device))

    for name, view in made.items():
        try:
            laps = in_turn({name: partial(seconds, partial(take, view), waiting(bench.runtime.device))},
                           2 * bench.repeats + 1, 2)
        except TimeoutError:
            raise
        except Exception as error:
            yield f"{name}, {rows} x {side} px", "failed", " ".join(str(error).split())[:200]
            continue
        took = Spread.of(laps[name])
        yield (f"{name}, {rows} x {side} px: images/s", rows / took.median,
               f"{1e3 * took.median:.2f} ms, {1e3 * took.least:.2f} to {1e3 * took.most:.2f}")


def at_once(images: Tensor, style: Style, draw: Draw, augment: dense.Augment | None = None) -> Tensor:
    """The strong view as a GPU takes it, on any device."""
    return dense.strong(images, draw, style, 2, 0.5, augment=augment)


def simclr_at_once(images: Tensor, drawn: Any, augment: dense.Augment) -> Tensor:
    """The same of SimCLR's view."""
    return dense_contrastive.simclr(images, tuple(images.shape[2:]), *drawn[:4], None, None, augment)


def by_groups(images: Tensor, style: Style, draw: Draw) -> Tensor:
    """The strong view as a CPU takes it, on any device."""
    return to_unit(cutout(rand_augment(flip_and_shift(images, draw, style), draw, 2), draw, 0.5))
