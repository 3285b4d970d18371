"""Snow, frost and fog among the common corruptions; see `corruptions`. x: float64 [H, W, C] in [0, 1]."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from ssl_lab.views.blurs import enlarged, streak

Pixels = NDArray[Any]
LUMA = np.array([0.299, 0.587, 0.114])


def snow(x: Pixels, c: tuple[float, ...], rng: np.random.Generator, scale: float) -> Pixels:
    """c: mean and deviation of flakes, their size, the least one, length and width of their streaks, and what is left
    of the image under them."""
    mean, sd, size, least, radius, sigma, left = c
    flakes = enlarged(rng.normal(mean, sd, (*x.shape[:2], 1)), size)
    flakes = np.clip(np.where(flakes < least, 0, flakes), 0, 1)
    flakes = streak(flakes, radius * scale, sigma * scale, rng.uniform(-135, -45))
    gray = x if x.shape[2] == 1 else (x @ LUMA)[:, :, None]
    white = left * x + (1 - left) * np.maximum(x, gray * 1.5 + 0.5)
    return np.asarray(white + flakes + np.rot90(flakes, 2))


def fog(x: Pixels, c: tuple[float, float], rng: np.random.Generator, scale: float) -> Pixels:
    """c: how thick it is, and how quickly its details fade."""
    height, width = x.shape[:2]
    thick = c[0] * plasma(height, width, c[1], rng)[:, :, None]
    most = x.max()
    return np.asarray((x + thick) * most / (most + c[0]))


def frost(x: Pixels, c: tuple[float, float], rng: np.random.Generator, scale: float) -> Pixels:
    """c: what is left of the image, and how much of the frost is added: crystals of a fractal, cold blue-white."""
    height, width = x.shape[:2]
    ice = np.abs(2 * plasma(height, width, 1.6, rng) - 1) ** 0.5  # ridges where the fractal crosses its middle
    tint = np.ones(1) if x.shape[2] == 1 else np.array([0.85, 0.93, 1.0])
    return np.asarray(c[0] * x + c[1] * ice[:, :, None] * tint)


def plasma(height: int, width: int, decay: float, rng: np.random.Generator) -> Pixels:
    """float64 [height, width] in [0, 1]: a fractal by the diamond-square algorithm, on a torus whose side is a power of
    two. decay: by which displacements fall when the grid is halved; as in the authors' code they are drawn within
    w^2, w = 100, 100 / decay, ..."""
    side = 1 << (max(height, width, 2) - 1).bit_length()
    land = np.zeros((side, side))
    step, rough = side, 100.0

    def displaced(total: Pixels) -> Pixels:
        return np.asarray(total / 4 + rough * rng.uniform(-rough, rough, total.shape))

    while step >= 2:
        half = step // 2
        corners = land[::step, ::step]
        square = corners + np.roll(corners, -1, axis=0)
        land[half::step, half::step] = displaced(square + np.roll(square, -1, axis=1))
        centers = land[half::step, half::step]
        land[::step, half::step] = displaced(corners + np.roll(corners, -1, 1) + centers + np.roll(centers, 1, 0))
        land[half::step, ::step] = displaced(corners + np.roll(corners, -1, 0) + centers + np.roll(centers, 1, 1))
        step, rough = half, rough / decay
    land -= land.min()
    return np.asarray(land / land.max())[:height, :width]
