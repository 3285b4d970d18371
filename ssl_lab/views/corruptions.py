"""Common corruptions of images: 15 kinds of 5 strengths (Hendrycks and Dietterich 2019, arXiv 1903.12261).

`corrupt(images, "fog", 3)`. Definitions and constants are those of CIFAR-10-C, checked against the authors' code
(`make_cifar_c.py`), whose images have 32 pixels a side: lengths grow with larger ones. What differs: frost is a fractal
in place of their six photographs; glass blur swaps pixels, where their code, by an alias, copies them.
"""

from __future__ import annotations

import io
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from scipy import ndimage
from torch import Tensor

from ssl_lab.errors import UsageError, unknown
from ssl_lab.seeds import seed_of
from ssl_lab.views import blurs, weather

Pixels = NDArray[Any]
Kind = Callable[[Pixels, Any, np.random.Generator, float], Pixels]
"""One image float64 [H, W, C] in [0, 1], a constant, random numbers, and the side over 32, at least 1 -> the image, not
yet cut to [0, 1]."""


def gaussian_noise(x: Pixels, c: float, rng: np.random.Generator, scale: float) -> Pixels:
    """c: the standard deviation."""
    return x + rng.normal(scale=c, size=x.shape)


def shot_noise(x: Pixels, c: float, rng: np.random.Generator, scale: float) -> Pixels:
    """c: photons of a white pixel."""
    return np.asarray(rng.poisson(x * c) / c)


def impulse_noise(x: Pixels, c: float, rng: np.random.Generator, scale: float) -> Pixels:
    """c: the share of values that become black or white, half of them each."""
    hit, white = rng.random(x.shape) < c, rng.random(x.shape) < 0.5
    return np.where(hit, white, x)


def brightness(x: Pixels, c: float, rng: np.random.Generator, scale: float) -> Pixels:
    """c is added to the value (the largest channel), hue and saturation stay."""
    value = x.max(axis=2, keepdims=True)
    bright = np.minimum(value + c, 1)
    scaled: Pixels = np.where(value > 0, x * bright / np.where(value > 0, value, 1), bright)
    return scaled


def contrast(x: Pixels, c: float, rng: np.random.Generator, scale: float) -> Pixels:
    """c: what is left of the distance from each channel's mean."""
    mean: Pixels = x.mean(axis=(0, 1), keepdims=True)
    return (x - mean) * c + mean


def elastic(x: Pixels, c: tuple[float, float, float], rng: np.random.Generator, scale: float) -> Pixels:
    """c: length and smoothness of displacements, and of the affine map's, in sides."""
    height, width, channels = x.shape
    side = min(height, width)
    length, smooth, corner = (each * side for each in c)
    center, half = np.array([height // 2, width // 2], np.float64), side // 3
    points = center + half * np.array([[1, 1], [1, -1], [-1, -1]])
    moved = points + rng.uniform(-corner, corner, points.shape)
    system = np.column_stack([moved, np.ones(3)])  # from where each pixel comes: moved -> points
    back = np.linalg.solve(system, points) if abs(np.linalg.det(system)) > 1e-9 else np.eye(3, 2)
    place = np.stack(np.meshgrid(np.arange(height), np.arange(width), indexing="ij"), axis=2).astype(np.float64)

    def sampled(image: Pixels, at: Pixels, mode: str) -> Pixels:
        return np.stack([ndimage.map_coordinates(image[:, :, each], at.transpose(2, 0, 1), order=1, mode=mode)
                         for each in range(channels)], axis=2)

    turned = sampled(x, place @ back[:2] + back[2], "mirror")
    shifts = np.stack([length * blurs.gaussian(rng.uniform(-1, 1, (height, width, 1)), smooth, 3.0)[:, :, 0]
                       for _ in range(2)], axis=2)
    return sampled(turned, place + shifts, "reflect")


def pixelate(x: Pixels, c: float, rng: np.random.Generator, scale: float) -> Pixels:
    """c: what is left of the side, before it is enlarged again."""
    image, (height, width) = _to_image(x), x.shape[:2]
    small = image.resize((max(1, int(width * c)), max(1, int(height * c))), Image.Resampling.BOX)
    return _of_image(small.resize((width, height), Image.Resampling.BOX), x.shape)


def jpeg(x: Pixels, c: int, rng: np.random.Generator, scale: float) -> Pixels:
    """c: the quality."""
    buffer = io.BytesIO()
    _to_image(x).save(buffer, "JPEG", quality=c)
    return _of_image(Image.open(buffer), x.shape)


def _to_image(x: Pixels) -> Image.Image:
    pixels = np.rint(255 * x).astype(np.uint8)
    return Image.fromarray(pixels[:, :, 0] if pixels.shape[2] == 1 else pixels)


def _of_image(image: Image.Image, shape: tuple[int, ...]) -> Pixels:
    return np.asarray(image, np.float64).reshape(shape) / 255


KINDS: dict[str, tuple[str, Kind, tuple[Any, ...]]] = {
    "gaussian_noise": ("noise", gaussian_noise, (0.04, 0.06, 0.08, 0.09, 0.10)),
    "shot_noise": ("noise", shot_noise, (500, 250, 100, 75, 50)),
    "impulse_noise": ("noise", impulse_noise, (0.01, 0.02, 0.03, 0.05, 0.07)),
    "defocus_blur": ("blur", blurs.defocus, ((0.3, 0.4), (0.4, 0.5), (0.5, 0.6), (1, 0.2), (1.5, 0.1))),
    "glass_blur": ("blur", blurs.glass, ((0.05, 1, 1), (0.25, 1, 1), (0.4, 1, 1), (0.25, 1, 2), (0.4, 1, 2))),
    "motion_blur": ("blur", blurs.motion, ((6, 1), (6, 1.5), (6, 2), (8, 2), (9, 2.5))),
    "zoom_blur": ("blur", blurs.zoom, (6, 11, 16, 21, 26)),
    "snow": ("weather", weather.snow, (
        (0.1, 0.2, 1, 0.6, 8, 3, 0.95), (0.1, 0.2, 1, 0.5, 10, 4, 0.9), (0.15, 0.3, 1.75, 0.55, 10, 4, 0.9),
        (0.25, 0.3, 2.25, 0.6, 12, 6, 0.85), (0.3, 0.3, 1.25, 0.65, 14, 12, 0.8))),
    "frost": ("weather", weather.frost, ((1, 0.2), (1, 0.3), (0.9, 0.4), (0.85, 0.4), (0.75, 0.45))),
    "fog": ("weather", weather.fog, ((0.2, 3), (0.5, 3), (0.75, 2.5), (1, 2), (1.5, 1.75))),
    "brightness": ("weather", brightness, (0.05, 0.1, 0.15, 0.2, 0.3)),
    "contrast": ("digital", contrast, (0.75, 0.5, 0.4, 0.3, 0.15)),
    "elastic": ("digital", elastic, ((0, 0, 0.08), (0.05, 0.2, 0.07), (0.08, 0.06, 0.06), (0.1, 0.04, 0.05),
                                     (0.1, 0.03, 0.03))),
    "pixelate": ("digital", pixelate, (0.95, 0.9, 0.85, 0.75, 0.65)),
    "jpeg": ("digital", jpeg, (80, 65, 58, 50, 40)),
}
"""Name -> family, function, and its constants of strength 1 to 5."""


def corrupt(images: Tensor, kind: str, strength: int, seed: int = 0) -> Tensor:
    """float32 [B, C, H, W] in [0, 1], whole 255ths, on the images' device: a common corruption (Hendrycks and
    Dietterich 2019, arXiv 1903.12261).

    Image i is a function of itself, of its place i and of the seed. One by one, on the CPU: for evaluation.

    Args:
        images: uint8 [B, 1 or 3, H, W].
        kind: one of `KINDS`.
        strength: 1 to 5.
        seed: of what it draws.

    Raises:
        UsageError: for an unknown kind or strength, and for other images.

    >>> gray = torch.full((1, 3, 32, 32), 128, dtype=torch.uint8)
    >>> [round(sl.views.corrupt(gray, "gaussian_noise", strength).std().item(), 2) for strength in (1, 3, 5)]
    [0.04, 0.08, 0.1]
    """
    if kind not in KINDS:
        raise unknown("corruption", kind, KINDS)
    _, function, constants = KINDS[kind]
    if not 1 <= strength <= len(constants):
        raise UsageError(f"corrupt: strength={strength}; expected 1 to {len(constants)}")
    if images.dtype != torch.uint8 or images.ndim != 4 or images.shape[1] not in (1, 3):
        raise UsageError(f"corrupt: {images.dtype} images of shape {list(images.shape)}; expected uint8 [B, 1 or 3, H, "
                         "W]")
    pixels = images.permute(0, 2, 3, 1).cpu().numpy() / 255.0
    scale = max(1.0, min(images.shape[2:]) / 32)
    found = [function(x, constants[strength - 1], np.random.default_rng(seed_of(seed, kind, row)), scale)
             for row, x in enumerate(pixels)]
    stacked = np.stack(found) if found else pixels
    whole = np.rint(255 * np.clip(stacked, 0, 1)).astype(np.float32) / np.float32(255)
    return torch.from_numpy(whole).permute(0, 3, 1, 2).contiguous().to(images.device)
