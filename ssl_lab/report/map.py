"""A map of embeddings: a dot for each image, which shows itself under the pointer."""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ssl_lab.errors import UsageError
from ssl_lab.report.images import png
from ssl_lab.report.metrics import FloatArray
from ssl_lab.report.text import Markup, escape

Layout = Literal["pca", "umap"]
SIDE = 48  # pixels of an image, at most
STYLE = (".map image { image-rendering: pixelated; pointer-events: none; } "
         ".map g > image, .map g > text { visibility: hidden; } .map g:hover circle { stroke: currentColor; } "
         ".map g:hover > image, .map g:hover > text { visibility: visible; }")


def in_two_dimensions(features: ArrayLike, layout: Layout = "pca", seed: int = 0) -> FloatArray:
    """float64 [n, 2]: the first two principal components, the sign of each such that its largest entry is positive; or
    UMAP's places by cosine (McInnes et al. 2018, arXiv 1802.03426; extra `umap`).

    Args:
        features: [n, D].
        layout: pca or umap.
        seed: of UMAP; principal components draw nothing.

    Raises:
        UsageError: where umap-learn is missing.

    >>> rng = np.random.default_rng(0)
    >>> sl.report.in_two_dimensions(rng.normal(size=(20, 8))).shape
    (20, 2)
    """
    rows = np.asarray(features, dtype=np.float64)
    if layout == "umap":
        try:
            umap = importlib.import_module("umap")
        except ImportError as error:
            raise UsageError('a map by UMAP needs umap-learn: pip install "ssl_lab[umap]"') from error
        return np.asarray(umap.UMAP(random_state=seed, n_jobs=1, metric="cosine").fit_transform(rows), np.float64)
    left, sizes, _ = np.linalg.svd(rows - rows.mean(axis=0), full_matrices=False)
    points = np.zeros((len(rows), 2))
    points[:, :min(2, len(sizes))] = left[:, :2] * sizes[:2]
    signed: FloatArray = points * np.where(points.max(axis=0) < -points.min(axis=0), -1.0, 1.0)
    return signed


def image_map(points: FloatArray, labels: NDArray[np.int64], images: NDArray[np.uint8],
              class_names: Sequence[str]) -> Markup:
    """Dots in the color of their class, as SVG; by style sheet alone, image and class show beside the map while the
    pointer is on a dot.

    Args:
        points: float [n, 2].
        labels: int [n], -1 for unknown.
        images: uint8 [n, 1 or 3, H, W].
        class_names: of the labels.

    >>> points, images = np.array([[0.0, 1.0], [1.0, 0.0]]), np.zeros((2, 1, 8, 8), dtype=np.uint8)
    >>> "<svg" in sl.report.image_map(points, np.array([0, 1]), images, ["cat", "dog"])
    True
    """
    low, size = points.min(axis=0), np.maximum(np.ptp(points, axis=0), 1e-12)
    places = 8 + 284 * (points - low) / size
    colors = [f"hsl({360 * label // len(class_names)} 70% {(40, 58)[label % 2]}%)" for label in range(len(class_names))]
    names = [*map(escape, class_names), escape("unknown")]  # of -1: the last
    colors.append("gray")
    dots = []
    for (x, y), label, image in zip(places, labels.tolist(), images, strict=True):
        name = names[label]
        dots.append(f'<g><circle cx="{x:.1f}" cy="{300 - y:.1f}" r="4" fill="{colors[label]}">'
                    f"<title>{name}</title></circle>"
                    f'<image x="312" y="8" width="140" height="140" href="{png(image, SIDE)}"/>'
                    f'<text x="382" y="168" text-anchor="middle" fill="currentColor">{name}</text></g>')
    legend = [f'<text x="{312 + 72 * (i // 6)}" y="{196 + 18 * (i % 6)}" font-size="11" fill="currentColor">'
              f'<tspan fill="{colors[i]}">●</tspan> {escape(name[:10])}</text>'
              for i, name in enumerate(class_names[:12])]
    return Markup('<svg xmlns="http://www.w3.org/2000/svg" class="map" viewBox="0 0 460 300" role="img" '
                  f'aria-label="map of {len(points)} images" font-size="13">\n<style>{STYLE}</style>\n'
                  + "\n".join([*legend, *dots]) + "\n</svg>")
