"""The views' path for GPUs: the pixels of the other path, in few operations. No GPU is needed to know either."""

from __future__ import annotations

from functools import partial

import pytest
import torch
from small_runs import nothing_waits_for_the_gpu
from torch import Tensor

from ssl_lab.batch import At, Draw, Style
from ssl_lab.bench.launches import launches_of_view
from ssl_lab.data import load
from ssl_lab.engine import Feed
from ssl_lab.methods import Views
from ssl_lab.seeds import generator
from ssl_lab.views import BYOL1, BYOL2, VIEWS, SimCLRView, Strong, ViewFactory, Weak, dense, dense_contrastive
from ssl_lab.views.base import compiled
from ssl_lab.views.randaugment import OPERATIONS

EVERY = 14 * 9  # operations and levels


def style_of(channels: int, height: int, width: int) -> Style:
    return Style(channels, height, width, mean=(0.5,) * channels, std=(0.25,) * channels)


def pictures(rows: int, channels: int, height: int, width: int) -> Tensor:
    """Noise of several ranges, ramps, flat images, some of two colors and some that are almost black."""
    draw = generator("dense", height, width)
    batch = torch.randint(0, 256, (rows, channels, height, width), generator=draw)
    batch[1::5] = torch.randint(60, 140, batch[1::5].shape, generator=draw)
    batch[2::5] = torch.linspace(3, 250, batch[0].numel()).view(batch[0].shape).long()
    batch[3::10] = 77
    batch[4::10] = torch.where(batch[4::10] > 128, 200, 31)
    batch[8::10] = torch.randint(0, 3, batch[8::10].shape, generator=draw)
    return batch.byte()


class EveryOperation(Draw):
    """Applies all operations at all levels in the first turn, each of them in one of 126 rows, and others later."""

    def __init__(self, rows: int) -> None:
        super().__init__(("every",), rows, slice(0, rows), torch.device("cpu"))

    def uniform(self, *shape: int, low: float = 0.0, high: float = 1.0) -> Tensor:
        return super().uniform(*shape, low=low, high=high) * (0.6 if shape == (2,) else 1.0)

    def integers(self, low: int, high: int, *shape: int) -> Tensor:
        drawn, rows = super().integers(low, high, *shape), torch.arange(len(self))
        if (low, high) == (0, len(OPERATIONS)):
            drawn[:, 0] = rows % len(OPERATIONS)
        if (low, high) == (1, 10):
            drawn[:, 0] = 1 + rows // len(OPERATIONS) % 9
        return drawn


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize(("size", "rows"), [((1, 1), EVERY), ((2, 5), EVERY), ((3, 3), EVERY), ((8, 8), 4 * EVERY),
                                            ((28, 28), 2 * EVERY), ((32, 32), 2 * EVERY), ((33, 47), EVERY),
                                            ((96, 96), 42), ((224, 224), 14)])
def test_strong_has_the_same_pixels(size: tuple[int, int], rows: int, channels: int) -> None:
    style, images = style_of(channels, *size), pictures(rows, channels, *size)
    here, there = Strong(style)(images, EveryOperation(rows)), dense.strong(images, EveryOperation(rows), style, 2, 0.5)
    assert torch.equal(there, here)


@pytest.mark.parametrize("flip", [True, False])
@pytest.mark.parametrize(("ops", "cutout"), [(0, 0.0), (0, 0.5), (1, 0.0), (3, 0.3)])
def test_settings_have_the_same_pixels(ops: int, cutout: float, flip: bool) -> None:
    style, images = Style(height=12, width=20, flip=flip), pictures(64, 3, 12, 20)
    here = Strong(style, ops, cutout)(images, At(3, 9).draw("s", 64))
    assert torch.equal(dense.strong(images, At(3, 9).draw("s", 64), style, ops, cutout), here)
    if not ops and not cutout:
        assert torch.equal(dense.weak(images, At(3, 9).draw("s", 64), style), here)


def test_layout_ranks_and_empty_batches() -> None:
    style, images = Style(height=16, width=16), pictures(8, 3, 16, 16)
    whole = dense.strong(images, At(0, 1).draw("s", 8), style, 2, 0.5)
    other = images.contiguous(memory_format=torch.channels_last)
    assert torch.equal(dense.strong(other, At(0, 1).draw("s", 8), style, 2, 0.5), whole)
    halves = [dense.strong(images[4 * rank : 4 * rank + 4], At(0, 1, rank=rank, world=2).draw("s", 4), style, 2, 0.5)
              for rank in range(2)]
    assert torch.equal(torch.cat(halves), whole)
    assert whole.is_contiguous()
    assert dense.strong(images[:0], At(0, 1).draw("s", 0), style, 2, 0.5).shape == (0, 3, 16, 16)


@pytest.mark.parametrize(("view", "most"), [(Strong, 60), (partial(Strong, ops=3), 84), (Weak, 7), (SimCLRView, 57),
                                            (BYOL2, 59)])
@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize(("rows", "side"), [(448, 32), (64, 224)])
def test_launches(view: ViewFactory, most: int, rows: int, side: int, channels: int) -> None:
    """Device operations and copies of a batch."""
    found = launches_of_view(view, rows, side, channels)
    assert found.operations.total() <= most
    assert found.copies == 1


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("size", [(1, 1), (8, 8), (32, 32), (33, 47), (96, 96), (224, 224)])
@pytest.mark.parametrize("view", [SimCLRView, partial(BYOL2, gray=0.5), partial(SimCLRView, jitter=(1.5, 1.5, 1.5, .5)),
                                  partial(BYOL1, blur=0.0), partial(SimCLRView, size=20)])
def test_simclr_has_the_same_pixels(view: ViewFactory, size: tuple[int, int], channels: int) -> None:
    rows = max(8, 400 // max(size))
    style, images = style_of(channels, *size), pictures(rows, channels, *size)
    made, draws = view(style), [At(1, 2).draw("v", rows) for _ in range(2)]
    found = made._at_once(images, made._drawn(draws[0], *size))
    torch.testing.assert_close(found, made(images, draws[1]), atol=1e-5, rtol=0)
    assert found.min() >= 0
    assert found.max() <= 1
    assert found.is_contiguous()


def test_rows_of_simclr_do_not_depend_on_others() -> None:
    images, view = pictures(8, 3, 40, 40), SimCLRView(Style(height=40, width=40))
    whole = view._at_once(images, view._drawn(At(0, 1).draw("s", 8), 40, 40))
    halves = [view._at_once(images[4 * rank : 4 * rank + 4],
                            view._drawn(At(0, 1, rank=rank, world=2).draw("s", 4), 40, 40)) for rank in range(2)]
    assert torch.equal(torch.cat(halves), whole)


def test_what_is_sent_does_not_grow_with_the_image() -> None:
    assert launches_of_view(Weak, 64, 224).bytes == launches_of_view(Weak, 64, 8).bytes == 64 * 6 * 4


def test_the_whole_view_compiles_as_one_graph() -> None:
    """Traced alone, which is quick: that there is one graph, not what a compiler makes of it."""
    style, images = Style(height=16, width=16), pictures(32, 3, 16, 16)
    plain = Strong(style)(images, At(0, 1).draw("s", 32))
    whole = torch.compile(dense.augmented, fullgraph=True, backend="eager")
    assert torch.equal(dense.strong(images, At(0, 1).draw("s", 32), style, 2, 0.5, augment=whole), plain)
    view, images = SimCLRView(Style(height=40, width=40)), pictures(4, 3, 40, 40)
    drawn = view._drawn(At(0, 1).draw("s", 4), 40, 40)
    plain = view._at_once(images, drawn)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch, "compile", partial(torch.compile, backend="eager"))
        one = compiled(view)
    assert one == view
    assert one.augment is not view.augment is dense_contrastive.augmented
    assert torch.equal(one._at_once(images, drawn), plain)


def test_a_feed_compiles_views_but_on_a_cpu() -> None:
    pool = load("digits").split(labels=10, seed=0)
    views = Views(labeled={"weak": Weak}, unlabeled={"strong": Strong, "other": VIEWS["eval"]})
    for device in ("cpu", "meta"):
        feed = Feed(pool, views, 2, 2, 0, torch.device(device), compile=True)
        made = [view for stream in feed.streams.values() for view in stream.views.values()]
        assert [getattr(view, "augment", None) is dense.augmented for view in made] == [*2 * [device == "cpu"], False]
        assert feed.said == Feed(pool, views, 2, 2, 0, torch.device("cpu")).said
        feed.uncompile()
        assert feed.streams["unlabeled"].views["strong"].augment is dense.augmented


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("side", [8, 32, 96, 224])
def test_pixels_on_a_gpu(side: int) -> None:
    style, images = Style(height=side, width=side), pictures(64, 3, side, side)
    for view, close in ((Strong, 1e-6), (Weak, 1e-6), (SimCLRView, 1e-4)):  # these two of an H200 are 6e-8 off
        here = view(style)(images, At(0, 1).draw("v", 64))
        there = view(style)(images.cuda(), At(0, 1).draw("v", 64, "cuda"))
        torch.testing.assert_close(there.cpu(), here, atol=close, rtol=0)
        with nothing_waits_for_the_gpu():
            view(style)(images.cuda(non_blocking=True), At(1, 2).draw("v", 64, "cuda"))
