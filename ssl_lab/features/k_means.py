"""Lloyd's k-means on all rows (FAISS)."""

from __future__ import annotations

from typing import Any

import numpy as np

from ssl_lab.features.search import FloatArray


def trained(x: FloatArray, k: int, seed: int, iterations: int = 25, restarts: int = 1,
            spherical: bool = False) -> Any:
    """FAISS's k-means of x, float32 [N, D], N >= k: its `centroids` are float32 [k, D], its `index` holds them.

    Starts from k rows drawn from the seed; the best of `restarts`. spherical: of rows of length 1, as are its centers.
    """
    import faiss

    # FAISS takes a sample of 256 rows per cluster unless told otherwise, and complains about fewer than 39.
    means: Any = faiss.Kmeans(x.shape[1], k, niter=iterations, nredo=restarts, seed=seed % 2**31, spherical=spherical,
                              min_points_per_centroid=1, max_points_per_centroid=max(len(x), 1))
    means.train(np.ascontiguousarray(x))
    return means
