"""`ssl-lab bench views`: the views beside the same ones made with Kornia, and with Pillow, image by image."""

from __future__ import annotations

import json as jsonlib
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageEnhance, ImageOps
from torch import Tensor

from ssl_lab.batch import At, Draw, Style
from ssl_lab.bench.measure import Spread, in_turn, seconds, waiting
from ssl_lab.errors import UsageError
from ssl_lab.machine import keep_freed_memory, resolve_device
from ssl_lab.report import Column, Table, print_tables
from ssl_lab.seeds import generator
from ssl_lab.views import VIEWS, View
from ssl_lab.views.naming import OURS

Array = NDArray[np.uint8]


def pillow_eval(images: Tensor, draw: Draw, style: Style) -> Tensor:
    """The images themselves."""
    return _tensor([Image.fromarray(array) for array in _arrays(images)])


def pillow_weak(images: Tensor, draw: Draw, style: Style) -> Tensor:
    """Flip and shift, with the numbers that `Weak` draws."""
    return _tensor(_shifted(images, draw, style))


def pillow_strong(images: Tensor, draw: Draw, style: Style) -> Tensor:
    """FixMatch's strong view, with the numbers that `Strong` draws."""
    shifted = _shifted(images, draw, style)
    applied, numbers = (draw.uniform(2) < 0.5).tolist(), draw.integers(0, 14, 2).tolist()
    levels, signs = draw.integers(1, 10, 2).tolist(), (draw.integers(0, 2, 2) * 2 - 1).tolist()
    ys, xs = (draw.integers(0, side, 1).flatten().tolist() for side in images.shape[2:])
    done = []
    for row, image in enumerate(shifted):
        for turn in range(2):
            if applied[row][turn]:
                image = pillow_operation(image, numbers[row][turn], levels[row][turn], signs[row][turn])
        done.append(square(image, xs[row], ys[row]))
    return _tensor(done)


PILLOW: dict[str, Callable[[Tensor, Draw, Style], Tensor]] = {
    "eval": pillow_eval, "weak": pillow_weak, "strong": pillow_strong}
"""Equivalents of the views, by name: (uint8 images, the same numbers, style) -> what the view returns."""
KORNIA = "_kornia"  # at the end of the names of the same views by Kornia


def pillow_operation(image: Image.Image, number: int, v: int, sign: int) -> Image.Image:
    """Operation `number` of RandAugment's table at level v."""
    def affine(*coefficients: float) -> Image.Image:
        return image.transform(image.size, Image.Transform.AFFINE, coefficients)

    factor = v * 1.8 / 10 + 0.1
    operations: list[Callable[[], Image.Image]] = [
        lambda: image,
        lambda: ImageOps.autocontrast(image),
        lambda: ImageOps.equalize(image),
        lambda: image.rotate(sign * 3 * v),
        lambda: ImageOps.solarize(image, 256 - int(25.6 * v)),
        lambda: ImageOps.posterize(image, 4 - int(0.4 * v)),
        lambda: ImageEnhance.Color(image).enhance(factor),
        lambda: ImageEnhance.Contrast(image).enhance(factor),
        lambda: ImageEnhance.Brightness(image).enhance(factor),
        lambda: ImageEnhance.Sharpness(image).enhance(factor),
        lambda: affine(1, sign * v * 0.3 / 10, 0, 0, 1, 0),
        lambda: affine(1, 0, 0, sign * v * 0.3 / 10, 1, 0),
        lambda: affine(1, 0, sign * (v * image.width // 32), 0, 1, 0),
        lambda: affine(1, 0, 0, 0, 1, sign * (v * image.height // 32)),
    ]
    return operations[number]()


def square(image: Image.Image, x: int, y: int) -> Image.Image:
    """A gray square of half the side, centered on a pixel and clipped at the border."""
    side = min(image.size) // 2
    top, left = y - side // 2, x - side // 2
    array = np.array(image)
    array[max(0, top) : max(0, top + side), max(0, left) : max(0, left + side)] = 127
    return Image.fromarray(array)


def bench_views(size: tuple[int, ...] = (32, 96, 224), rows: int = 448, repeats: int = 5, device: str = "auto",
                json: bool = False) -> list[dict[str, Any]]:
    """Times each view, the same by Kornia and by Pillow, in turn, and prints images per second; returns the rows of
    the JSON.

    The results are compared with Pillow's too: `differing` is the share of the values that differ by half a gray level
    or more. `ratio` is ours to the other's.

    Args:
        size: sides of the images, in pixels.
        rows: images per batch.
        repeats: of each.
        device: of the views; Pillow knows only the CPU, of which all have one core.
        json: print JSON.
    """
    if rows < 1 or min(size, default=0) < 1:
        raise UsageError(f"rows={rows}, size={size}: expected 1 or more of each")
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # as Pillow has
    keep_freed_memory()  # as a run does
    try:
        found = [row for side in size for row in _views_at(side, rows, repeats, resolve_device(device))]
    finally:
        torch.set_num_threads(threads)
    if json:
        print(jsonlib.dumps(found, indent=2))
    else:
        print_tables(Table(
            f"batches of {rows} images, {device}, one thread",
            [Column("view"), *(Column(name, "right", format) for name, format in (
                ("px", ""), ("ms", ".1f"), ("least", ".1f"), ("most", ".1f"), ("images/s", ",.0f"),
                ("Kornia's", ",.0f"), ("ratio", ".2f"), ("Pillow's", ",.0f"), ("ratio", ".1f"),
                ("differing", ".3%")))],
            [[row[key] for key in ("view", "size", "ms", "ms_least", "ms_most", "images_per_second",
                                   "kornia_images_per_second", "kornia_ratio", "pillow_images_per_second", "ratio",
                                   "differing")] for row in found]))
        kind = resolve_device(device).type
        why = OURS.get(kind, "Kornia's were not measured there")
        print(f"Methods take ours on {kind}: {why}. --view strong=strong_kornia takes Kornia's.")
    return found


def _views_at(side: int, rows: int, repeats: int, device: torch.device) -> list[dict[str, Any]]:
    noise = torch.rand(rows, 3, 8, 8, generator=generator("bench/views")) * 255
    images = torch.nn.functional.interpolate(noise, side, mode="bilinear").byte()  # smooth, as photographs are
    style, on_device = Style(height=side, width=side), images.to(device)

    found = []
    for name, factory in VIEWS.items():
        if name.endswith(KORNIA):
            continue
        view, pillow, kornia = factory(style), PILLOW.get(name), VIEWS.get(name + KORNIA)
        ours = partial(_made, view, on_device)
        actions = {"view": partial(seconds, ours, waiting(device))}
        if kornia:
            actions["kornia"] = partial(seconds, partial(_made, kornia(style), on_device), waiting(device))
        if pillow:
            theirs = partial(_made, lambda images, draw, pillow=pillow: pillow(images, draw, style), images)
            actions["pillow"] = partial(seconds, theirs)
        laps = in_turn(actions, repeats)
        took = Spread.of(laps["view"])
        row = {"view": name, "size": side, "rows": rows, "device": str(device),
               "ms": 1e3 * took.median, "ms_least": 1e3 * took.least, "ms_most": 1e3 * took.most,
               "images_per_second": rows / took.median,
               "kornia_images_per_second": None, "kornia_ratio": None,
               "pillow_images_per_second": None, "ratio": None, "differing": None}
        if kornia:
            other = Spread.of(laps["kornia"]).median
            row |= {"kornia_images_per_second": rows / other, "kornia_ratio": other / took.median}
        if pillow:
            other = Spread.of(laps["pillow"]).median  # of one core
            off = (ours().cpu() - theirs()).abs()
            row |= {"pillow_images_per_second": rows / other, "ratio": other / took.median,
                    "differing": (off > 0.5 / 255).float().mean().item()}
        found.append(row)
    return found


def _made(view: View, images: Tensor) -> Tensor:
    """The view of the images, by the same numbers on every call."""
    return view(images, At(0, 1).draw("bench", len(images), images.device))


def _shifted(images: Tensor, draw: Draw, style: Style) -> list[Image.Image]:
    most = min(style.shift, min(images.shape[2:]) - 1)
    downs, rights = (draw.integers(-most, most + 1, 1).flatten().tolist() for _ in range(2))
    flips = (draw.uniform(1) < 0.5).flatten().tolist() if style.flip else [False] * len(images)
    done = []
    for array, down, right, flip in zip(_arrays(images), downs, rights, flips, strict=True):
        image = ImageOps.mirror(Image.fromarray(array)) if flip else Image.fromarray(array)
        padded = np.pad(np.asarray(image), ((most, most), (most, most), (0, 0)), mode="reflect")
        left, top = most + right, most + down
        done.append(Image.fromarray(padded).crop((left, top, left + image.width, top + image.height)))
    return done


def _arrays(images: Tensor) -> list[Array]:
    """The rows as [H, W, C]."""
    return list(images.permute(0, 2, 3, 1).contiguous().numpy())


def _tensor(images: list[Image.Image]) -> Tensor:
    """float32 [B, C, H, W] in 0..1."""
    return torch.stack([torch.from_numpy(np.array(image)).permute(2, 0, 1).float() / 255 for image in images])
