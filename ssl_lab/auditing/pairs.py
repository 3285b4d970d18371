"""Images that are there twice: exactly, or slightly changed."""

from __future__ import annotations

import io
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from ssl_lab.auditing.looks import SIDE, Looks, bits_apart, brightness, perceptual_hash
from ssl_lab.data import IntArray
from ssl_lab.data.images import Contents
from ssl_lab.features.search import FloatArray, matrix, top_k, unit, without_self
from ssl_lab.seeds import seed_of

NEAREST = 10
"""Others that each image is held against, by features and again by hash: of more twins than that, not each is paired
with each."""
COPIES = 100
LEAST = 0.95
"""Of how alike a pair must be: copies that are less are changed more than slightly."""
COLOR = 24
"""Levels of 255 by which mean colors of copies may differ beside their brightness."""
_SHIFT = 3
_ROWS, _PAIRS = 8192, 4096

Search = Callable[[FloatArray, int], tuple[FloatArray, IntArray]]


class Pairs(NamedTuple):
    """P pairs of images, exact ones first, then the most alike. rows: int64 [P, 2], the smaller first. exact: bool [P].
    alike: float32 [P], see `alike`; 1 of exact ones. cosine: float32 [P], of their features. bits: int64 [P], of their
    hashes, that differ."""

    rows: IntArray
    exact: NDArray[np.bool_]
    alike: FloatArray
    cosine: FloatArray
    bits: IntArray


class Bar(NamedTuple):
    """How alike two images must be to count as one, slightly changed: as nearly all of the copies are that were made
    of some images here. alike, cosine, bits: see `Pairs`; a pair needs the first, and one of the others."""

    alike: float
    cosine: float
    bits: int


def exact_pairs(contents: Contents) -> IntArray:
    """int64 [P, 2]: the first image of each group of exactly equal ones, with each other one of it."""
    order = np.argsort(contents, kind="stable")
    same = np.flatnonzero(contents[order][1:] == contents[order][:-1]) + 1
    starts = np.arange(len(order))
    starts[same] = 0
    first = np.maximum.accumulate(starts)
    return np.stack([order[first[same]], order[same]], axis=1)


def find_pairs(looks: Looks, features: FloatArray, bar: Bar, search: Search | None = None) -> Pairs:
    """The exact pairs, and those near ones that reach the bar.

    features: [N, D]. search: finds the nearest rows by features (default: `top_k`). Of equal images only the first is
    held against others.
    """
    exact = exact_pairs(looks.contents)
    keep = np.setdiff1d(np.arange(len(features)), exact[:, 1])
    a, b = _candidates(features, looks.hashes, keep, search)
    cosine, bits = _cosines(features, a, b), bits_apart(looks.hashes[a], looks.hashes[b])
    likely = (cosine >= bar.cosine) | (bits <= bar.bits)
    a, b, cosine, bits = a[likely], b[likely], cosine[likely], bits[likely]
    how = alike(looks.small, a, b)
    near = np.flatnonzero((how >= bar.alike) & same_color(looks.color[a], looks.color[b]))
    near = near[np.lexsort((b[near], a[near], -cosine[near], -how[near]))]
    count = len(exact)
    rows = np.concatenate([np.sort(exact, axis=1), np.stack([a, b], axis=1)[near]])
    ones = np.ones(count, dtype=np.float32)
    return Pairs(rows, np.arange(len(rows)) < count, np.concatenate([ones, how[near]]),
                 np.concatenate([ones, cosine[near]]), np.concatenate([np.zeros(count, np.int64), bits[near]]))


def _candidates(features: FloatArray, hashes: NDArray[np.uint64], keep: IntArray,
                search: Search | None) -> tuple[IntArray, IntArray]:
    """Rows a < b of pairs in which one is among the nearest of the other, by features or by hash."""
    n, k = len(features), min(NEAREST, len(keep) - 1)
    if k < 1:
        return np.empty(0, np.int64), np.empty(0, np.int64)
    signs = np.float32(2) * ((hashes[keep, None] >> np.arange(63, dtype=np.uint64)) & np.uint64(1)).astype(
        np.float32) - 1
    kept = np.zeros(n, dtype=bool)
    kept[keep] = True
    found = []
    for start in range(0, len(keep), _ROWS):
        own = np.arange(start, min(start + _ROWS, len(keep)))
        by_hash = keep[without_self(*top_k(signs[own], signs, k + 1), own)[1]]
        if search is None:
            by_features = without_self(*top_k(features[keep[own]], features, min(k + 1, n)), keep[own])[1]
        else:
            by_features = without_self(*search(features[keep[own]], k + 1), keep[own])[1]
        others = np.concatenate([by_hash, by_features], axis=1)
        mine = np.broadcast_to(keep[own][:, None], others.shape)
        there = kept[others] & (others >= 0)
        found.append(np.unique(np.minimum(mine, others)[there] * n + np.maximum(mine, others)[there]))
    keys = np.unique(np.concatenate(found))
    return keys // n, keys % n


def _cosines(features: FloatArray, a: IntArray, b: IntArray) -> FloatArray:
    found = np.empty(len(a), dtype=np.float32)
    for start in range(0, len(a), _PAIRS):
        part = slice(start, start + _PAIRS)
        found[part] = np.einsum("nd,nd->n", unit(features[a[part]]), unit(features[b[part]]))
    return found


def same_color(one: FloatArray, other: FloatArray) -> NDArray[np.bool_]:
    """bool [n]: whether mean colors [n, C] differ by little more than a brightness of 70% to 140%."""
    squares = np.maximum((other**2).sum(axis=1), 1)
    gain = np.clip((one * other).sum(axis=1) / squares, 0.7, 1.4)
    return np.asarray(np.abs(one - gain[:, None] * other).max(axis=1) <= COLOR)


def alike(small: NDArray[np.uint8], a: IntArray, b: IntArray) -> FloatArray:
    """float32 [n], from -1 to 1: the correlation of the brightness, uint8 [N, 32, 32], of images a and b, at the best
    of all shifts by up to 3 of these pixels. It is 1 for images that differ in brightness and contrast alone, and 0
    where one is blank."""
    found = np.empty(len(a), dtype=np.float32)
    for start in range(0, len(a), _PAIRS):
        part = slice(start, start + _PAIRS)
        found[part] = correlation(small[a[part]].astype(np.float32), small[b[part]].astype(np.float32))
    return found


def correlation(one: FloatArray, other: FloatArray) -> FloatArray:
    """As `alike`, of float32 [n, 32, 32] each."""
    side = SIDE - 2 * _SHIFT
    middle = _standard(one[:, _SHIFT:_SHIFT + side, _SHIFT:_SHIFT + side])
    best = np.full(len(one), -1, dtype=np.float32)
    for down in range(2 * _SHIFT + 1):
        for right in range(2 * _SHIFT + 1):
            window = _standard(other[:, down:down + side, right:right + side])
            best = np.maximum(best, np.einsum("nd,nd->n", middle, window))
    return best


def _standard(windows: FloatArray) -> FloatArray:
    flat = windows.reshape(len(windows), -1)
    flat = flat - flat.mean(axis=1, keepdims=True)
    length = np.sqrt(np.einsum("nd,nd->n", flat, flat))[:, None]
    scaled: FloatArray = np.where(length > 1, flat / np.maximum(length, 1), 0)  # of 255 levels: less is noise
    return scaled


def copies(images: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """uint8 [3n, C, H, W] of [n, C, H, W]: each saved as JPEG of quality 75; then each shifted by 3% of its side, which
    is no pixel of tiny ones; then each 15% darker."""
    saved = np.stack([_jpeg(image) for image in images]) if images.shape[1] in (1, 3) else images
    step, (height, width) = round(0.03 * min(images.shape[2:])), images.shape[2:]
    shifted = np.pad(images, ((0, 0), (0, 0), (step, 0), (step, 0)), mode="edge")[:, :, :height, :width]
    darker = np.rint(images * np.float32(0.85)).astype(np.uint8)
    return np.concatenate([saved, shifted, darker])


def _jpeg(image: NDArray[np.uint8]) -> NDArray[np.uint8]:
    planes = image.transpose(1, 2, 0)
    file = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(planes.squeeze(2) if len(image) == 1 else planes)).save(file, "jpeg",
                                                                                                 quality=75)
    pixels = np.asarray(Image.open(file))
    return pixels[None] if len(image) == 1 else pixels.transpose(2, 0, 1)


def sample(count: int, seed: int) -> IntArray:
    """int64, sorted: rows of which copies are made."""
    drawn = np.random.default_rng(seed_of(seed, "copies")).permutation(count)[:COPIES]
    return np.sort(drawn).astype(np.int64)


def bar_of(originals: NDArray[np.uint8], changed: NDArray[np.uint8], features: FloatArray, seen: FloatArray) -> Bar:
    """The bar that 95% of copies reach, by each measure.

    originals: uint8 [n, C, H, W]. changed: their copies [3n, C, H, W]. features: [n, D]. seen: [3n, D], of the copies.
    """
    before, after = (brightness(part)[0] for part in (originals, changed))
    own = np.tile(np.arange(len(originals)), len(changed) // len(originals))
    shows = np.ptp(before, axis=(1, 2))[own] > 0  # of a blank image copies say nothing
    if not shows.any():
        return Bar(1.0, 1.0, 0)
    how = correlation(before[own].astype(np.float32), after.astype(np.float32))[shows]
    cosine = np.einsum("nd,nd->n", unit(matrix(features, "features"))[own], unit(seen))[shows]
    bits = bits_apart(perceptual_hash(before)[own], perceptual_hash(after))[shows]
    return Bar(max(float(np.quantile(how, 0.05)), LEAST), float(np.quantile(cosine, 0.05)),
               int(np.quantile(bits, 0.95)))
