"""Blurs among the common corruptions; see `corruptions`.

x: float64 [H, W, C] in [0, 1]. scale: the side over 32, at least 1.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

Pixels = NDArray[Any]


def gaussian(x: Pixels, sigma: float, reach: float = 4.0) -> Pixels:
    """Each channel blurred; the kernel ends after `reach` standard deviations. Sigma 0 changes nothing."""
    return np.asarray(ndimage.gaussian_filter(x, (sigma, sigma, 0), mode="reflect", truncate=reach))


def defocus(x: Pixels, c: tuple[float, float], rng: np.random.Generator, scale: float) -> Pixels:
    """c: radius of the disk, in pixels of 32, and of the blur that smooths its rim."""
    return np.asarray(ndimage.convolve(x, disk(c[0] * scale, c[1])[:, :, None], mode="mirror"))


def disk(radius: float, smooth: float) -> Pixels:
    """float64 [n, n], a disk of this radius that adds up to 1; its rim is smoothed by 3 (of large ones 5) taps."""
    reach, taps = (8, 1) if radius <= 8 else (int(np.ceil(radius)), 2)
    grid = np.arange(-reach, reach + 1)
    flat = (grid[:, None] ** 2 + grid**2 <= radius**2).astype(np.float64)
    kernel = np.exp(-(np.arange(-taps, taps + 1) ** 2) / (2 * smooth**2))
    for axis in (0, 1):
        flat = ndimage.convolve1d(flat, kernel / kernel.sum(), axis=axis, mode="constant")
    return np.asarray(flat / flat.sum())


def glass(x: Pixels, c: tuple[float, int, int], rng: np.random.Generator, scale: float) -> Pixels:
    """c: sigma of the blurs before and after, how far pixels are swapped, and how often; in pixels of 32."""
    sigma, reach = c[0] * scale, max(1, round(c[1] * scale))
    x = gaussian(x, sigma).copy()
    height, width = x.shape[:2]
    for _ in range(c[2]):
        steps = rng.integers(-reach, reach, (height, width, 2))  # its end is left out, as in the authors' code
        for row in range(height - reach - 1, reach, -1):
            for column in range(width - reach - 1, reach, -1):
                down, right = steps[row, column]
                other = row + down, column + right
                x[row, column], x[other] = x[other].copy(), x[row, column].copy()
    return gaussian(x, sigma)


def motion(x: Pixels, c: tuple[float, float], rng: np.random.Generator, scale: float) -> Pixels:
    """c: radius and sigma of ImageMagick's motion blur, in pixels of 32; its angle is drawn from -45 to 45 degrees."""
    return streak(x, c[0] * scale, c[1] * scale, rng.uniform(-45, 45))


def streak(x: Pixels, radius: float, sigma: float, degrees: float) -> Pixels:
    """The mean of x and copies of it along a line, weighted by half a bell, as ImageMagick has it."""
    width = 2 * int(np.ceil(radius)) + 1
    weights = np.exp(-(np.arange(width) ** 2) / (2 * sigma**2))
    weights /= weights.sum()
    angle, rows, columns = np.deg2rad(degrees), np.arange(x.shape[0]), np.arange(x.shape[1])
    total = np.zeros_like(x)
    for step, weight in enumerate(weights):
        down, right = (int(np.ceil(step * way - 0.5)) for way in (np.sin(angle), np.cos(angle)))
        total += weight * x[np.ix_((rows + down).clip(0, len(rows) - 1), (columns + right).clip(0, len(columns) - 1))]
    return total


def zoom(x: Pixels, c: int, rng: np.random.Generator, scale: float) -> Pixels:
    """The mean of the image and of c enlargements, by 1.00, 1.01, 1.02 and so on."""
    return np.asarray((x + sum(enlarged(x, 1 + step / 100) for step in range(c))) / (c + 1))


def enlarged(x: Pixels, factor: float) -> Pixels:
    """The middle of the image, so many times as large: [H, W, C] again."""
    height, width = x.shape[:2]
    rows, columns = int(np.ceil(height / factor)), int(np.ceil(width / factor))
    top, left = (height - rows) // 2, (width - columns) // 2
    large = ndimage.zoom(x[top : top + rows, left : left + columns], (factor, factor, 1), order=1)
    top, left = (large.shape[0] - height) // 2, (large.shape[1] - width) // 2
    return np.asarray(large[top : top + height, left : left + width])
