"""What images look like before anybody asks what is in them: blank, colorless, of another size or kind of file."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch.nn.functional import interpolate

from ssl_lab.data import IntArray, Pool
from ssl_lab.data.cache import outcomes
from ssl_lab.data.decode import decoding, is_deep, is_wide, opened
from ssl_lab.data.images import Contents, Images, content_of

BLANK = 5.0
"""Levels of 255: an image whose brightness varies less, in standard deviation, shows nothing."""
RARE = 0.05
"""A kind of image that makes up less than this share is odd."""
LEAST = 20
"""Images from which on a size or a kind can be odd."""
SIDE = 32
_BLOCK = 512
_COLORLESS = 4
"""Levels of 255 by which the channels of a gray JPEG may differ."""


class Looks(NamedTuple):
    """Of N images. contents: uint64 [N], a hash of the pixels, alike for the same image only. small: uint8 [N, 32, 32],
    the brightness. hashes: uint64 [N], `perceptual_hash`. spread: float32 [N], the standard deviation of the
    brightness, in levels of 255. gray: bool [N], whether there is no color. color: float32 [N, C], the mean."""

    contents: Contents
    small: NDArray[np.uint8]
    hashes: NDArray[np.uint64]
    spread: NDArray[np.float32]
    gray: NDArray[np.bool_]
    color: NDArray[np.float32]


class Header(NamedTuple):
    """Of an image file. kind: its color mode, in a word."""

    width: int
    height: int
    kind: str


class Odd(NamedTuple):
    """Images that stand out, the oddest first. rows: int64 [n]. scores: float64 [n]. notes: [n], what is odd."""

    rows: IntArray
    scores: NDArray[np.float64]
    notes: list[str]


def look(images: Images) -> Looks:
    """One pass over all pixels, in blocks."""
    known, parts = images.contents(), list[tuple[NDArray[np.generic], ...]]()
    for start in range(0, len(images), _BLOCK):
        pixels = images.take(np.arange(start, min(start + _BLOCK, len(images)))).numpy()
        own = content_of(pixels) if known is None else known[start:start + _BLOCK]
        small, spread = brightness(pixels)
        channels = (pixels.max(axis=1) - pixels.min(axis=1)).max(axis=(1, 2))
        parts.append((own, small, perceptual_hash(small), spread, channels <= _COLORLESS,
                      pixels.mean(axis=(2, 3), dtype=np.float32)))
    found = [np.concatenate(each) for each in zip(*parts, strict=True)]
    return Looks(*found)


def brightness(images: NDArray[np.uint8]) -> tuple[NDArray[np.uint8], NDArray[np.float32]]:
    """uint8 [n, 32, 32], the mean of the channels of uint8 [n, C, H, W] made small; float32 [n], its standard deviation
    at full size."""
    light = torch.from_numpy(images).float().mean(dim=1, keepdim=True)
    small = interpolate(light, size=(SIDE, SIDE), mode="bilinear", antialias=True)[:, 0]
    return small.round().to(torch.uint8).numpy(), light.flatten(1).std(dim=1, correction=0).numpy()


def perceptual_hash(small: NDArray[np.uint8]) -> NDArray[np.uint64]:
    """uint64 [n] of brightness uint8 [n, 32, 32]: 63 bits, which of the lowest frequencies are above their median.

    The discrete cosine transform's 8 x 8 lowest frequencies without the constant (pHash, Zauner 2010). Bits change
    little with compression, size, brightness and contrast. 0 for an image of one brightness.
    """
    places = np.arange(SIDE, dtype=np.float32)
    waves = np.cos(np.float32(np.pi / (2 * SIDE)) * (2 * places + 1) * np.arange(8, dtype=np.float32)[:, None])
    low = (waves @ small.astype(np.float32) @ waves.T).reshape(len(small), 64)[:, 1:]
    bits = (low > np.median(low, axis=1, keepdims=True)) & (np.ptp(small, axis=(1, 2)) > 0)[:, None]
    hashed: NDArray[np.uint64] = (bits.astype(np.uint64) << np.arange(63, dtype=np.uint64)).sum(axis=1, dtype=np.uint64)
    return hashed


def bits_apart(one: NDArray[np.uint64], other: NDArray[np.uint64]) -> IntArray:
    """int64 [n]: how many bits differ."""
    bytes_ = np.ascontiguousarray(one ^ other).view(np.uint8).reshape(len(one), 8)
    apart: IntArray = np.unpackbits(bytes_, axis=1).sum(axis=1, dtype=np.int64)
    return apart


def blank(looks: Looks) -> Odd:
    """Images that show nothing: one brightness all over, or nearly."""
    rows = np.flatnonzero(looks.spread < BLANK)
    rows = rows[np.argsort(looks.spread[rows], kind="stable")]
    return Odd(rows, 1 - looks.spread[rows].astype(np.float64) / BLANK,
               [f"brightness varies by {spread:.1f} of 255" for spread in looks.spread[rows]])


def odd_colors(looks: Looks, headers: Sequence[Header | None]) -> Odd:
    """Images of a kind that few have: without color among colored ones, files of another color mode."""
    kinds = ["" if header is None else header.kind for header in headers] if headers else [""] * len(looks.gray)
    plain = np.where(looks.gray, "no color", "color").tolist()
    found: dict[int, tuple[float, str]] = {}
    for each in (kinds, plain):
        counts = Counter(kind for kind in each if kind)
        total = sum(counts.values())
        for row, kind in enumerate(each):
            share = counts[kind] / total if kind else 1.0
            if total >= LEAST and share < RARE and row not in found:
                usual = counts.most_common(1)[0]
                found[row] = (1 - share, f"{kind}, {usual[1]:,} of {total:,} images: {usual[0]}")
    order = sorted(found, key=lambda row: (-found[row][0], row))
    return Odd(np.array(order, dtype=np.int64), np.array([found[row][0] for row in order]),
               [found[row][1] for row in order])


def odd_sizes(headers: Sequence[Header | None]) -> Odd:
    """Files far from the usual size, by a factor of two or more, and five times as far as images usually are."""
    return _apart(headers, 2.0, lambda header: (header.width * header.height) ** 0.5,
                  lambda header, usual: f"{header.width}x{header.height} px, usually about {usual:.0f} px a side")


def odd_shapes(headers: Sequence[Header | None]) -> Odd:
    """Files whose longer side is another multiple of the shorter than usual, by a factor of 1.5 or more, and five times
    as far as images usually are."""
    return _apart(headers, 1.5, lambda header: max(header.width, header.height) / min(header.width, header.height),
                  lambda header, usual: f"{header.width}x{header.height} px, sides usually 1 : {usual:.2g}")


def _apart(headers: Sequence[Header | None], least: float, measure: Callable[[Header], float],
           say: Callable[[Header, float], str]) -> Odd:
    """Images whose measure is away from the median by a factor of `least`, and by five usual deviations of its log."""
    there = [(row, header) for row, header in enumerate(headers) if header is not None]
    if len(there) < LEAST:
        return Odd(np.empty(0, np.int64), np.empty(0), [])
    values = np.log([measure(header) for _, header in there])
    usual = float(np.median(values))
    away = np.abs(values - usual)
    odd = np.flatnonzero(away >= max(np.log(least), 5 * 1.4826 * float(np.median(away))))
    odd = odd[np.argsort(-away[odd], kind="stable")]
    return Odd(np.array([there[i][0] for i in odd], dtype=np.int64), 1 - np.exp(-away[odd]),
               [say(there[i][1], float(np.exp(usual))) for i in odd])


def read_headers(pool: Pool) -> list[Header | None]:
    """The header of each image's file, None where there is none to read; [] if the pool has no files at hand."""
    if not pool.files or not pool.root or not os.path.exists(os.path.join(pool.root, pool.files[0])):
        return []
    with decoding(), ThreadPoolExecutor(min(32, os.cpu_count() or 1)) as threads:
        work = partial(_header, max_pixels=pool.reading.max_pixels)
        return [None if isinstance(found, str) else found
                for _, found in outcomes(threads, work, Path(pool.root), pool.files, "reading headers")]


def _header(path: Path, max_pixels: int) -> Header:
    with opened(path, max_pixels) as image:
        return Header(image.width, image.height, _kind(image))


def _kind(image: Image.Image) -> str:
    if is_wide(image) or is_deep(image):
        return "more than 8 bits a channel"
    if image.has_transparency_data:
        return "may be transparent"
    return {"1": "black and white", "L": "gray", "P": "palette", "CMYK": "CMYK", "RGB": "RGB"}.get(image.mode,
                                                                                                  image.mode)
